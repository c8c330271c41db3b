"""Analyses on folders alone: what lies where is found by what runs and evaluations record, and the
numbers are those that a table typed by hand gives."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from analysis.stored_runs import verdicts, write_eval, write_model, write_rows, write_run
from clean_fork import run_in_fork
from grpo_runs import GrpoRuns
from tiny_models import build_tokenizer
from tokenizers import Tokenizer

from megaladder.analysis.runs.read import read_runs
from megaladder.analysis.tables import Warnings

SFT, GRPO = {"train": {"loss": "sft"}}, {"grpo": {"preset": "dapo"}}


def percent(correct_pn: np.ndarray) -> float:
    return 100 * float(correct_pn.mean())


@pytest.fixture
def ladder(tmp_path):
    """base → sft (steps 2 and 4) → grpo (step 3, from sft's step 4), all evaluated on two sets."""
    base = write_model(tmp_path / "models" / "tiny-base", 1)
    sft = write_run(tmp_path / "runs" / "sft", base, SFT, (2, 4), num_samples=100)
    write_rows(sft / "held_out.jsonl", [{"step": s, "held_out_loss": 2 - s / 4} for s in (0, 2, 4)])
    grpo = write_run(tmp_path / "runs" / "grpo", sft / "hf" / "step_4", GRPO, (3,))
    models = {
        ("tiny-base", 0): base,
        ("sft", 2): sft / "hf" / "step_2",
        ("sft", 4): sft / "hf" / "step_4",
        ("grpo", 3): grpo / "hf" / "step_3",
    }
    given = {}
    for i, (key, model) in enumerate(models.items()):
        for j, benchmark in enumerate(("aime24", "ifeval")):
            given[key, benchmark] = verdicts(7 * i + j, 0.3 + 0.15 * i)
            name = f"{key[0]}-{key[1]}"
            write_eval(tmp_path / "eval", model, benchmark, given[key, benchmark], name=name)
    return given


def folders(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "runs", tmp_path / "eval"


def test_records_say_what_each_began_with(ladder, tmp_path):
    runs = read_runs([str(path) for path in folders(tmp_path)], Warnings())
    assert [(r.name, r.stage) for r in runs] == [
        ("tiny-base-0", "base"),
        ("sft", "sft"),
        ("grpo", "grpo"),
    ]
    base, sft, grpo = runs
    assert (sft.parent.name, sft.parent.step) == ("tiny-base-0", 0)
    assert (grpo.parent.name, grpo.parent.step) == ("sft", 4)
    assert sft.steps == [2, 4] and grpo.steps == [3] and base.steps == [0]
    assert sft.held_out == {0: 2.0, 2: 1.5, 4: 1.0} and runs.root(grpo) is base
    for (name, step), benchmark in ladder:
        record = next(r for r in runs if r.name.startswith(name))
        score = runs.score(record, benchmark, step)
        correct = ladder[(name, step), benchmark]
        assert runs.percent(record, score) == pytest.approx(percent(correct))
        assert runs.length(record, score) == pytest.approx(5 + 5.5 + 1.5)


def test_one_evaluation_folder_leads_to_the_runs(ladder, tmp_path):
    runs = read_runs([str(tmp_path / "eval" / "grpo-3")], Warnings())
    assert [(r.name, bool(r.scores)) for r in runs] == [
        ("tiny-base", False),
        ("sft", False),
        ("grpo", True),
    ]


def test_moved_runs_are_known_by_their_weights(ladder, tmp_path):
    (tmp_path / "runs").rename(tmp_path / "archive")
    (tmp_path / "archive" / "sft").rename(tmp_path / "archive" / "renamed")
    runs = read_runs([str(tmp_path / "archive"), str(tmp_path / "eval")], Warnings())
    found = {r.name: (r.stage, r.steps, r.parent and (r.parent.name, r.parent.step)) for r in runs}
    assert found == {
        "tiny-base-0": ("base", [0], None),
        "renamed": ("sft", [2, 4], ("tiny-base-0", 0)),
        "grpo": ("grpo", [3], ("renamed", 4)),
    }


def test_a_copy_that_is_asked_about_stands_for_the_run(ladder, tmp_path):
    """Records name the folder that was copied, which still lies there."""
    shutil.copytree(tmp_path / "runs", tmp_path / "copy")
    runs = read_runs([str(tmp_path / "copy"), str(tmp_path / "eval")], Warnings())
    found = {r.name: (r.path, r.steps, r.parent and (r.parent.name, r.parent.step)) for r in runs}
    assert found == {
        "tiny-base-0": (found["tiny-base-0"][0], [0], None),
        "sft": (str(tmp_path / "copy" / "sft"), [2, 4], ("tiny-base-0", 0)),
        "grpo": (str(tmp_path / "copy" / "grpo"), [3], ("sft", 4)),
    }


def test_scores_inside_a_run_belong_to_its_steps(ladder, tmp_path):
    inside = tmp_path / "runs" / "sft" / "eval" / "step_3"
    write_eval(inside, tmp_path / "gone", "gsm8k", verdicts(1, 0.5), name="x")
    runs = read_runs([str(tmp_path / "runs" / "*ft")], Warnings())
    sft = runs.named("sft")
    assert [(s.step, s.benchmark) for s in sft.scores] == [(3, "gsm8k")]
    for place in (inside, inside / "x" / "gsm8k", sft.scores[0].samples):
        alone = read_runs([str(place)], Warnings()).named("sft")
        assert [(s.step, s.benchmark) for s in alone.scores] == [(3, "gsm8k")], place


def test_trajectory_equals_the_table(ladder, tmp_path, verb, write):
    own = verb("analyze trajectory", *folders(tmp_path))
    assert own.status == 0, own.err
    lines = ["model,benchmark,step,score,length"]
    for benchmark in ("aime24", "ifeval"):
        score = {key: percent(ladder[key, benchmark]) for key, name in ladder if name == benchmark}
        chains = {"sft": (("tiny-base", 0), ("sft", 2), ("sft", 4))}
        chains["grpo"] = (("sft", 4), ("grpo", 3))
        for run, keys in chains.items():
            lines += [
                f"{run},{benchmark},{0 if key[0] != run else key[1]},{score[key]!r},12"
                for key in keys
            ]
    table = verb("analyze trajectory", "--table", write("c.csv", "\n".join(lines)))
    assert (
        own.json["curves"].keys()
        == table.json["curves"].keys()
        == {*("sft/aime24", "sft/ifeval", "grpo/aime24", "grpo/ifeval")}
    )
    assert own.json == {**table.json, "points": own.json["points"], "curves": own.json["curves"]}
    for name, points in table.json["points"].items():
        for a, b in zip(own.json["points"][name], points, strict=True):
            assert a == pytest.approx(b)
    only = verb("analyze trajectory", *folders(tmp_path), "--benchmark", "aime24")
    assert set(only.json["curves"]) == {"sft/aime24", "grpo/aime24"}


def test_a_run_without_a_score_of_before_is_named(ladder, tmp_path, verb):
    done = verb("analyze trajectory", tmp_path / "eval" / "grpo-3")
    assert done.status == 2 and "grpo (grpo) at steps [3]" in done.err
    assert "no score before the first step" in done.err and "it began with sft" in done.err
    done = verb("analyze trajectory")
    assert done.status == 2 and "neither run folders nor --table" in done.err
    done = verb("analyze trajectory", tmp_path / "models")
    assert done.status == 2 and "no training run and no scores" in done.err


def test_transfer_equals_the_table(ladder, tmp_path, verb, write):
    own = verb("analyze transfer", *folders(tmp_path), "--sigma", "1,1,1", "--draws", 200)
    assert own.status == 0, own.err
    rows = ["model,group,benchmark,score"]
    for model, key in (("b", ("tiny-base", 0)), ("sft", ("sft", 4)), ("grpo", ("grpo", 3))):
        rows += [
            f"{model},{group},{name},{percent(ladder[key, name])!r}"
            for group, name in (("math", "aime24"), ("non", "ifeval"))
        ]
    path = write("s.csv", "\n".join(rows))
    table = verb("analyze transfer", "--table", path, "--base", "b", "--sigma", "1,1,1")
    assert own.json["base"] == "tiny-base-0" and set(own.json["models"]) == {"sft", "grpo"}
    for model, found in table.json["models"].items():
        assert own.json["models"][model]["ti_non"] == pytest.approx(found["ti_non"])
        assert own.json["models"][model]["gain"] == pytest.approx(found["gain"])
    assert own.json["ci95"].keys() == {"sft", "grpo"}
    swapped = verb(
        "analyze transfer",
        *folders(tmp_path),
        *("--sigma", "1,1,1", "--draws", 100, "--group", "ifeval=math,aime24=other"),
    )
    assert swapped.json["scores"]["sft"] == {
        "other": {"aime24": pytest.approx(percent(ladder[("sft", 4), "aime24"]))},
        "math": {"ifeval": pytest.approx(percent(ladder[("sft", 4), "ifeval"]))},
    }


def test_compare_puts_grpo_against_sft_first(ladder, tmp_path, verb):
    own = verb("analyze compare", *folders(tmp_path), "--draws", 500)
    assert own.status == 0, own.err
    pairs = [(c["b_name"], c["a_name"]) for c in own.json["comparisons"].values()]
    assert sorted(set(pairs)) == [("grpo", "sft/step_4"), ("sft/step_4", "tiny-base-0")]
    first = own.json["sentences"][0]
    assert first.index("grpo") < first.index("sft/step_4")
    files = {
        name: tmp_path / "eval" / name / "aime24" / "samples_aime24.jsonl"
        for name in ("sft-4", "grpo-3")
    }
    plain = verb("analyze compare", files["grpo-3"], "--base", files["sft-4"], "--draws", 500)
    pair, by_hand = own.json["comparisons"]["grpo/aime24"], plain.json["comparisons"]
    (found,) = by_hand.values()
    assert pair["p"] == found["p"] and pair["difference"] == found["difference"]
    named = verb("analyze compare", *folders(tmp_path), "--base", "tiny-base-0", "--draws", 100)
    assert {c["b_name"] for c in named.json["comparisons"].values()} == {"grpo", "sft/step_4"}
    assert own.json["compute"]["totals"]["sft"]["tokens"] == 4000


def test_runs_from_one_model_are_matched_by_their_cost(tmp_path, verb):
    """SFT and GRPO from one base: the published controlled comparison, without a table."""
    base = write_model(tmp_path / "base", 1)
    write_eval(tmp_path / "eval", base, "gsm8k", verdicts(0, 0.2))
    scores = {}
    for name, config, steps in (("sft", SFT, (2, 4)), ("rl", GRPO, (3, 8))):
        run = write_run(tmp_path / "runs" / name, base, config, steps)
        for step in steps:
            scores[name, step] = verdicts(step, 0.1 * step)
            folder = tmp_path / "eval" / name
            write_eval(folder, run / "hf" / f"step_{step}", "gsm8k", scores[name, step])
    done = verb("analyze compare", *folders(tmp_path), "--draws", 100)
    first = done.json["sentences"][0]
    assert first.index("rl/step_8") < first.index("sft/step_4")
    matched = done.json["compute"]["matched"]["gsm8k"]["tokens"]
    share = (4 - 3) / (8 - 3)
    between = (1 - share) * percent(scores["rl", 3]) + share * percent(scores["rl", 8])
    assert matched["at"] == 4000 and matched["rl"] == pytest.approx(between)
    assert matched["sft"] == pytest.approx(percent(scores["sft", 4]))


def test_predict_equals_the_table(tmp_path, verb, write):
    """Six SFT runs that differ in their epochs and data, five of them taken into RL."""
    base = write_model(tmp_path / "base", 1)
    rows = ["run,series,epochs,avg@n,pass@4,held_out_loss,rl"]
    for i in range(6):
        config = {"train": {"loss": "sft", "epochs": 1 + i % 2}, "data": {"path": f"d{i // 2}"}}
        run = write_run(tmp_path / "runs" / f"sft{i}", base, config, (3 + i,))
        loss = (1.5, 1.4, 1.3, 1.35, 1.2, 1.25)[i]
        write_rows(run / "held_out.jsonl", [{"step": 3 + i, "held_out_loss": loss}])
        before, after = verdicts(i, 0.2 + 0.08 * i), verdicts(50 + i, 0.3 + 0.08 * i)
        export = run / "hf" / f"step_{3 + i}"
        write_eval(tmp_path / "eval", export, "gsm8k", before, name=f"s{i}")
        target = ""
        if i < 5:
            rl = write_run(tmp_path / "runs" / f"rl{i}", export, GRPO, (2,))
            write_eval(tmp_path / "eval", rl / "hf" / "step_2", "gsm8k", after, name=f"r{i}")
            target = repr(percent(after))
        solved = 100 * float(before.any(axis=1).mean())
        rows.append(f"sft{i},d{i // 2},{i},{percent(before)!r},{solved!r},{loss},{target}")
    own = verb("analyze predict", *folders(tmp_path), "--metrics", "avg@n,pass@4,held_out_loss")
    assert own.status == 0, own.err
    table = verb(
        "analyze predict",
        *("--table", write("r.csv", "\n".join(rows)), "--target", "rl"),
        *("--metrics", "avg@n,pass@4,held_out_loss", "--lower-is-better", "held_out_loss"),
        *("--series", "series", "--order", "epochs", "--flag-score", "avg@n"),
    )
    for key in ("select", "overfit", "num_runs", "num_splits", "lower_is_better"):
        assert own.json[key] == table.json[key], key
    assert own.json["overfit"] and own.json["select"] in ([], ["sft5"])
    for name, found in table.json["metrics"].items():
        assert own.json["metrics"][name] == pytest.approx(found), name
    assert own.json["spearman_by_k"]["4"] == pytest.approx(table.json["spearman_by_k"]["4"])
    alone = verb("analyze predict", tmp_path / "runs" / "sft0", tmp_path / "eval" / "s0")
    assert alone.status == 2 and "no GRPO run with scores began" in alone.err


def test_scaling_equals_the_table(tmp_path, verb, write):
    model = write_model(tmp_path / "m", 1)
    rows, eval_folder = ["method,setting,tokens,accuracy,instructed_min,instructed_max"], "eval"
    for i, (limit, thinking) in enumerate(((500, 480), (1000, 1100), (2000, 1900))):
        correct = verdicts(i, 0.2 + 0.2 * i)
        budget = {"max_thinking": limit, "num_waits": 0, "tokens": None}
        write_eval(
            *(tmp_path / eval_folder, model, "gsm8k", correct),
            name=f"m-{limit}",
            budget=budget,
            thinking=thinking,
        )
        rows.append(f"budget forcing,{limit},{thinking},{percent(correct)!r},,{limit}")
    plain = write_eval(tmp_path / "eval", model, "gsm8k", verdicts(9, 0.5), name="plain")
    own = verb("analyze scaling", tmp_path / "eval")
    assert own.status == 0, own.err
    table = verb("analyze scaling", "--table", write("r.csv", "\n".join(rows)), "--samples", plain)
    for method, found in table.json["methods"].items():
        assert own.json["methods"][method] == pytest.approx(found)
    assert own.json["methods"]["budget forcing"]["control"] == pytest.approx(200 / 3)
    assert own.json["parallel"] == table.json["parallel"]


def test_budget_and_pass_at_k_of_many(ladder, tmp_path, verb):
    done = verb("analyze pass-at-k", *folders(tmp_path), "--k", "1,4", "--draws", 100)
    assert done.status == 0, done.err
    assert set(done.json["runs"]) >= {"sft/step_2/aime24", "tiny-base-0/ifeval"}
    for (name, step), benchmark in ladder:
        label = f"sft/step_{step}" if name == "sft" else {"grpo": "grpo"}.get(name, "tiny-base-0")
        found = done.json["runs"][f"{label}/{benchmark}"]
        correct = ladder[(name, step), benchmark]
        assert found["avg@n"] == pytest.approx(correct.mean())
        assert found["pass@k"]["4"] == pytest.approx(correct.any(axis=1).mean())
    path = tmp_path / "eval" / "grpo-3"
    one = verb("analyze pass-at-k", path, "--benchmark", "aime24", "--k", "1,4", "--draws", 100)
    assert one.json == done.json["runs"]["grpo/aime24"]
    cut = verb("analyze budget", *folders(tmp_path), "--budgets", "9,99", "--benchmark", "aime24")
    assert cut.json["runs"]["grpo/aime24"]["accuracy"]["99"] == pytest.approx(
        ladder[("grpo", 3), "aime24"].mean()
    )


def test_ladder_of_steps_and_recorded_sizes(tmp_path, verb):
    base = write_model(tmp_path / "base", 1)
    for name, size in (("small", 100), ("large", 1000)):
        run = write_run(tmp_path / "runs" / name, base, SFT, (2, 4), num_samples=size)
        for step in (2, 4):
            export = run / "hf" / f"step_{step}"
            write_eval(tmp_path / "eval" / name, export, "aime24", verdicts(step, 0.5))
    done = verb("analyze ladder", *folders(tmp_path), "--draws", 100)
    assert set(done.json["models"]) == {f"{n}/step_{s}" for n in ("small", "large") for s in (2, 4)}
    assert done.json["factors"]["avg@n"]["log_size"]["num_models"] == 2
    last = verb("analyze ladder", *folders(tmp_path), "--steps", "last", "--draws", 100)
    assert set(last.json["models"]) == {"small/step_4", "large/step_4"}


def test_real_runs_need_no_table(tmp_path, verb):
    """SFT, GRPO from its export with the fake engine, `eval` of all three: as a person runs them."""
    runs = GrpoRuns(tmp_path)
    questions = [{"question": f"{i} + 1 = ?", "answer": f"It is {i + 1}."} for i in range(24)]
    data = write_rows(tmp_path / "sft.jsonl", questions)
    sft = tmp_path / "runs" / "sft"
    flags = {
        "--run-dir": sft,
        "--model.path": runs.model,
        "--data.path": data,
        "--data.seq-length": 128,
        "--data.holdout": 0.2,
        "--train.global-batch-size": 4,
        "--train.max-steps": 2,
        "--train.eval-every": 1,
        "--checkpoint.keep-steps": "1,2",
        "--checkpoint.export-hf": "true",
    }

    def train() -> int:
        from megaladder.config.resolve import resolve
        from megaladder.config.sft import SftConfig
        from megaladder.train.sft import run_sft

        words = [str(word) for pair in flags.items() for word in pair]
        return run_sft(resolve(SftConfig, words, prog="test"))

    assert run_in_fork(train, stdout=Path(os.devnull)) == 0
    chain = GrpoRuns.__new__(GrpoRuns)
    chain.folder, chain.model, chain.problems = tmp_path / "runs", sft / "hf/step_2", runs.problems
    more = ("--train.max-steps", "1", "--checkpoint.export-hf", "true", "--checkpoint.every", "1")
    assert chain.run("grpo", *more).status == 0
    models = [runs.model, *sorted(sft.glob("hf/*")), tmp_path / "runs" / "grpo" / "hf" / "step_1"]
    for i, model in enumerate(models):
        samples = write_eval(tmp_path / "eval" / str(i), model, "gsm8k", verdicts(i, 0.4))
    found = read_runs([str(path) for path in folders(tmp_path)], Warnings())
    assert [(r.name, r.stage, r.steps) for r in found] == [
        ("model", "base", [0]),
        ("sft", "sft", [1, 2]),
        ("grpo", "grpo", [1]),
    ]
    assert sorted(found.named("sft").held_out) == [0, 1, 2]
    assert found.named("sft").identity["num_samples"] == 19
    assert found.named("grpo").parent.step == 2
    for name in ("trajectory", "compare", "ladder --benchmark gsm8k", "pass-at-k", "transfer"):
        done = verb(f"analyze {name}", *folders(tmp_path))
        assert done.status == 0, f"{name}: {done.err}"
    assert set(done.json["models"]) == {"sft", "grpo"}
    grpo = tmp_path / "runs" / "grpo"
    own = verb("analyze shift", grpo, tmp_path / "eval", "--max-rows", 3, "--pca-texts", 2)
    assert own.status == 0, own.err
    places = ("--base", sft / "hf/step_2", "--tuned", grpo / "hf/step_1", "--data", samples)
    told = verb("analyze shift", *places, "--max-rows", 3, "--pca-texts", 2)
    assert own.json == told.json and own.json["num_rows"] == 3 and own.json["kl_exact"] > 0


def test_published_outputs_are_read_by_name_and_rows(tmp_path, verb):
    """Files as each study's own programs write them, in their folders."""
    right = verdicts(3, 0.5, num_problems=6)
    rows = range(6)
    limo = [
        {
            "question": f"q{i}",
            "generated_responses": ["r"] * 4,
            "gold_answer": "1",
            "generated_answers": ["1" if ok else "2" for ok in right[i]],
            "is_correct": bool(right[i].any()),
            "answers_correctness": [bool(ok) for ok in right[i]],
        }
        for i in rows
    ]
    write_rows(tmp_path / "limo" / "m" / "math" / "test_qwen-instruct_t0.7_k4_s0_e-1.jsonl", limo)
    rethinking = [
        {
            "problem": f"q{i}",
            "solution": "s",
            "responses": ["r"] * 4,
            "response_ids": [[1, 2]] * 4,
            "prediction": ["1"] * 4,
            "gold": "1",
            "tokens": [2] * 4,
            "accuracy": [bool(ok) for ok in right[i]],
        }
        for i in rows
    ]
    cut = tmp_path / "new_outputs" / "m" / "aime24_budget2000" / "m_2000.json"
    cut.parent.mkdir(parents=True)
    cut.write_text(json.dumps(rethinking))
    s1 = [
        {
            "doc": {"id": i, "problem": f"q{i}"},
            "resps": [["r"] * 4],
            "exact_matches": right[i].tolist(),
        }
        for i in rows
    ]
    write_rows(
        tmp_path / "s1" / "m" / "checkpoint-40" / "samples_aime24_2025-01-01T00-00-00.jsonl",
        [{**row, "exact_matches": [int(ok) for ok in row["exact_matches"]]} for row in s1],
    )
    for name, step, benchmark in (
        ("limo", 0, "math"),
        ("new_outputs", 0, "aime24"),
        ("s1", 40, "aime24"),
    ):
        (record,) = read_runs([str(tmp_path / name)], Warnings())
        (score,) = record.scores
        assert (record.name, score.step, score.benchmark) == ("m", step, benchmark), name
        done = verb("analyze pass-at-k", tmp_path / name, "--draws", 100)
        assert done.status == 0, f"{name}: {done.err}"
        assert done.json["avg@n"] == pytest.approx(right.mean()), name
    assert score.budget == {}
    results = {"AIME24": {"accuracy_avg": 0.5, "num_total": 30}, "coqa": {"f1,none": 0.25}}
    for model, more in (("m-base", 0.0), ("m-rl", 0.25)):
        found = {task: {k: v + more for k, v in t.items()} for task, t in results.items()}
        place = tmp_path / "harness" / model / "results_2025-01-01T00-00-00.json"
        place.parent.mkdir(parents=True)
        place.write_text(
            json.dumps({"results": found, "config": {"model_args": f"pretrained={model}"}})
        )
    done = verb("analyze transfer", tmp_path / "harness", "--sigma", "1,1,1")
    assert done.status == 0, done.err
    assert done.json["scores"]["m-rl"] == {"math": {"AIME24": 75.0}, "non": {"coqa": 50.0}}
    assert "no intervals" in done.err
    nothing = verb("analyze pass-at-k", tmp_path / "harness")
    assert nothing.status == 2 and "no stored samples" in nothing.err and "fix:" in nothing.err


def test_grade_takes_a_folder_and_keeps_what_it_belongs_to(ladder, tmp_path, verb):
    """Graded again by a published grader: the same records, with the new verdicts."""
    runs, evaluations = folders(tmp_path)
    again = tmp_path / "again"
    given = ("--input", evaluations, "--output", again, "--workers", 1, "--grader", "qwen")
    done = verb("grade", *given, with_json=False)
    assert done.status == 0, done.err
    assert "graded 384 responses of 96 rows" in done.out
    before = read_runs([str(runs), str(evaluations)], Warnings())
    after = read_runs([str(runs), str(again)], Warnings())
    steps = [[(r.name.removesuffix("-0"), r.steps, r.parent and r.parent.step) for r in found]
             for found in (before, after)]  # fmt: skip
    assert steps[0] == steps[1]
    for record in before.evaluated:
        other = next(r for r in after if r.steps == record.steps and r.stage == record.stage)
        for score in record.scores:
            twin = after.score(other, score.benchmark, score.step)
            assert after.percent(other, twin) == pytest.approx(before.percent(record, score))
            assert "qwen" in after.samples(other, twin).grader
    nowhere = verb("grade", "--input", evaluations, "--output", Path(__file__), with_json=False)
    assert nowhere.status == 2 and "--output needs a folder here" in nowhere.err


def test_thinking_is_counted_in_the_stored_ids(tmp_path, verb):
    """An asked-for budget counts nothing while it samples: tokens up to the end of thinking."""
    model = build_tokenizer(write_model(tmp_path / "m", 1))
    for steps in (4, 8):
        path = write_eval(
            *(tmp_path / "eval", model, "gsm8k", verdicts(steps, 0.5)),
            name=f"m-{steps}", budget={"steps": steps, "end": "</think>"},
        )  # fmt: skip
        end = Tokenizer.from_file(str(model / "tokenizer.json")).token_to_id("</think>")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row["doc"]["samples"]["response_ids"] = [[3] * (90 * steps) + [end, 3, 3]] * 4
        write_rows(path, rows)
    done = verb("analyze scaling", tmp_path / "eval")
    assert done.status == 0, done.err
    found = done.json["points"]["step-conditional"]
    assert [point["tokens"] for point in found] == [360.0, 720.0]
    assert done.json["methods"]["step-conditional"]["control"] == 100.0
