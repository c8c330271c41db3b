"""LIMO, reasoning_ladder, Quagmires and Rethinking selections on pools with known answers;
similarity against a plain computation; every kind of bad input."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from megaladder.config.verbs.data import SelectConfig
from megaladder.curate.score import LimoRule, limo_parts, limo_scores
from megaladder.curate.select.plans import Plan, equal_budget
from megaladder.curate.select.recipe import load_recipes
from megaladder.curate.select.run import STAGES, run_select
from megaladder.curate.select.similar import tfidf_cosine
from megaladder.data.layouts.learn import ReadOptions
from megaladder.data.read_examples import ExampleReader
from megaladder.errors import ConfigError, DataError

RECIPES = Path(__file__).resolve().parents[2] / "examples" / "recipes"


def write(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def load(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def select(
    tmp_path: Path,
    rows: list[dict],
    recipe: str | Path,
    *sets: str,
    out: str = "out.jsonl",
    **options,
) -> Path:
    """Runs the verb over the rows; returns the output path. `recipe` is a shipped one, or the text
    of one."""
    source = write(tmp_path / "pool.jsonl", rows)
    if "\n" in str(recipe):
        (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
        recipe = tmp_path / "recipe.yaml"
    else:
        recipe = RECIPES / recipe
    run_select(
        SelectConfig(path=source, recipe=str(recipe), out=str(tmp_path / out), set=sets, **options)
    )
    return tmp_path / out


def recipe_of(*stages: str) -> str:
    return "name: test\nstages:\n" + "".join(f"  - {stage}\n" for stage in stages)


@pytest.mark.parametrize("ids", [True, False])
def test_repeated_rows_are_left_out_or_kept_and_counted(tmp_path: Path, capsys, ids: bool) -> None:
    rows = [{"x": 1}, {"x": 2}, {"x": 1}, {"x": 1}]
    rows = [{"id": row["x"], **row} for row in rows] if ids else rows
    recipe = recipe_of("drop_missing: {columns: [x]}")
    assert sorted(row["x"] for row in load(select(tmp_path, rows, recipe))) == [1, 2]
    assert "2 rows that repeat an earlier one: left out" in capsys.readouterr().out
    kept = load(select(tmp_path, rows, recipe, duplicates="keep"))
    assert sorted(row["x"] for row in kept) == [1, 1, 1, 2]
    with pytest.raises(
        DataError, match=r"pool.jsonl:3: expected a new row, found one that repeats"
    ):
        select(tmp_path, rows, recipe, duplicates="error")


# --- LIMO
# --------------------------------------------------------------------------------------------------


def limo_pool(num_questions: int = 30, per_question: int = 3) -> list[dict]:
    rng = random.Random(3)
    words = [
        "check",
        "verify",
        "perhaps",
        "might",
        "therefore",
        "since",
        "one",
        "two",
        "three",
        "four",
        "five",
    ]
    return [
        {
            "id": f"{q}-{s}",
            "question": f"question {q}",
            "solution": " ".join(rng.choices(words, k=rng.randrange(20, 200))),
        }
        for q in range(num_questions)
        for s in range(per_question)
    ]


def test_limo_keeps_the_best_solution_of_each_question_then_the_top(tmp_path) -> None:
    rows = limo_pool()
    out = select(tmp_path, rows, "limo/limo_800.yaml", "n=10")
    entries = limo_scores([limo_parts(row["solution"], LimoRule()) for row in rows], LimoRule())
    scores = {row["id"]: entry["score"] for row, entry in zip(rows, entries, strict=True)}
    best = [
        max((row for row in rows if row["question"] == question), key=lambda row: scores[row["id"]])
        for question in {r["question"] for r in rows}
    ]
    expected = sorted(best, key=lambda row: -scores[row["id"]])[:10]
    selected = load(out)
    assert {row["id"] for row in selected} == {row["id"] for row in expected}
    assert all(row["score"] == pytest.approx(scores[row["id"]]) for row in selected)
    assert set(selected[0]["score_parts"]) == {
        "elaboration",
        "verification",
        "exploration",
        "granularity",
    }


def test_limo_does_not_depend_on_workers_or_file_order(tmp_path) -> None:
    rows = limo_pool()
    expected = select(tmp_path, rows, "limo/limo_800.yaml", "n=12").read_bytes()
    assert (
        select(tmp_path, rows[::-1], "limo/limo_800.yaml", "n=12", workers=2).read_bytes()
        == expected
    )


def test_limo_ties_go_by_id_whatever_the_order(tmp_path) -> None:
    rows = [{"id": f"row{i}", "question": "same", "solution": "check this"} for i in range(5)]
    for order in (rows, rows[::-1]):
        assert [
            row["id"] for row in load(select(tmp_path, order, "limo/limo_800.yaml", "n=1"))
        ] == ["row0"]


def test_quality_levels_as_a_grid(tmp_path) -> None:
    out = select(tmp_path, limo_pool(), "limo/quality_levels.yaml", "questions=8", out="levels")
    by_level = [load(out / f"limo_L{level}.jsonl") for level in range(1, 6)]
    assert all(
        len(rows) == 8 and {row["level"] for row in rows} == {level}
        for level, rows in enumerate(by_level, 1)
    )
    assert all(
        max(r["score"] for r in low) <= min(r["score"] for r in high)
        for low, high in pairwise(by_level)
    )


# --- lengths, grids, plans
# --------------------------------------------------------------------------------------------------


def test_instance_level_subsets(tmp_path) -> None:
    rows = [{"id": i, "length": (i * 79) % 4000} for i in range(4000)]
    out = select(tmp_path, rows, "quagmires/instance_level.yaml", "n=2000", "half=1000", out="sets")
    lengths = {
        order: sorted(row["length"] for row in load(out / f"sft_2000_{order}.jsonl"))
        for order in ("shortest", "longest", "mixed", "random")
    }
    assert lengths["shortest"] == list(range(2000))
    assert lengths["longest"] == list(range(2000, 4000))
    assert lengths["mixed"] == [*range(1000), *range(3000, 4000)]
    assert len(set(lengths["random"])) == 2000
    assert abs(np.mean(lengths["random"]) - 2000) < 100


def test_equal_budget_sets_are_nested_and_cost_the_same() -> None:
    plans = equal_budget(50_000, [1, 2, 4], 125)
    assert [(plan.label, plan.rows, plan.steps) for plan in plans] == [
        ("50k1ep", 50_000, 400),
        ("25k2ep", 25_000, 400),
        ("12.5k4ep", 12_500, 400),
    ]
    with pytest.raises(ConfigError, match="fix: a multiple of 750"):
        equal_budget(50_000, [3], 250)


def test_smaller_samples_are_parts_of_larger_ones(tmp_path) -> None:
    rows = [{"id": i} for i in range(400)]
    text = "name: s{n}\nvary: {n: [50, 100, 200]}\nstages:\n  - sample: {n: '{n}'}\n"
    out = select(tmp_path, rows, text, out="nested")
    small, middle, large = (
        {row["id"] for row in load(out / f"s{n}.jsonl")} for n in (50, 100, 200)
    )
    assert small < middle < large


def test_ladder_grid_names_and_rows(tmp_path) -> None:
    recipes = load_recipes(str(RECIPES / "ladder/grid.yaml"), [], STAGES)
    names = [recipe.name for recipe in recipes]
    assert len(names) == len(set(names)) == 47
    assert sum(name.startswith("openr1_diverse_1000_") for name in names) == 12, (
        "three lengths × four seeds"
    )
    assert sum(name.startswith("openr1_diverse") for name in names) == 19, "and seven more sizes"
    assert {f"openr1_geometry_1000_longest_{seed}" for seed in range(4)} <= set(names)
    rows = [{"id": i, "category": ("algebra", "geometry")[i % 2], "length": i} for i in range(6000)]
    out = select(tmp_path, rows, "ladder/grid.yaml", out="grid", only="openr1_algebra_*")
    sets = [
        {row["id"] for row in load(out / f"openr1_algebra_1000_longest_{seed}.jsonl")}
        for seed in range(4)
    ]
    assert all(len(ids) == 1000 and all(i % 2 == 0 for i in ids) for ids in sets)
    assert len({frozenset(ids) for ids in sets}) == 4


def test_length_stage_in_words_characters_and_tokens(tmp_path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    rows = [{"id": 1, "response": "ab ab"}, {"id": 2, "response": "a"}]
    for unit, expected in (
        ("words", {1: 2, 2: 1}),
        ("characters", {1: 5, 2: 1}),
        ("tokens", {1: 5, 2: 1}),
    ):
        out = select(
            tmp_path, rows, "ladder/add_length.yaml", f"unit={unit}", f"tokenizer={tmp_path}"
        )
        assert {row["id"]: row["length"] for row in load(out)} == expected


# --- similarity
# --------------------------------------------------------------------------------------------------


def test_tfidf_is_the_textbook_formula() -> None:
    """Two documents, idf = ln(3 / (1 + df)) + 1: `x` in both has 1, `y` and `z` in one have 1 + ln
    1.5."""
    rare = 1 + np.log(1.5)
    cosine = tfidf_cosine(["x y", "unknown"], ["x y", "x z z"])
    norm = np.hypot(1, rare)
    assert cosine[0] == pytest.approx([1.0, 1 / (norm * np.hypot(1, 2 * rare))])
    assert cosine[1] == pytest.approx([0.0, 0.0])


def similar_recipe(benchmark: str, **params) -> str:
    fields = ", ".join(
        f"{name}: {json.dumps(value)}" for name, value in {"to": benchmark, **params}.items()
    )
    return recipe_of(f"similar: {{{fields}}}")


def test_similar_takes_every_problems_best_first(tmp_path) -> None:
    bench = write(
        tmp_path / "bench.jsonl",
        [
            {"id": 60, "problem": "red apples"},
            {"id": 61, "problem": "blue boats"},
            {"id": 62, "problem": "x"},
        ],
    )
    rows = [
        {"id": i, "question": text}
        for i, text in enumerate(
            ["red apples", "apples red ripe", "blue boats", "green cars", "red boats"]
        )
    ]
    out = select(tmp_path, rows, similar_recipe(bench, ids=[60, 61], per_problem=2))
    assert {row["id"] for row in load(out)} == {0, 1, 2, 4}
    assert next(row for row in load(out) if row["id"] == 0)["similarity"] == pytest.approx(1.0)
    record = json.loads(Path(f"{out}.stages.json").read_text())
    assert record["stages"][0]["notes"] == {"vectors": "tf-idf", "problems": 2}
    assert {
        row["id"]
        for row in load(
            select(tmp_path, rows, similar_recipe(bench, ids=[60, 61], per_problem=2, total=2))
        )
    } == {0, 2}
    least = select(tmp_path, rows, similar_recipe(bench, ids=[60], per_problem=2, least=True))
    assert {row["id"] for row in load(least)} == {2, 3}, "equal similarities go by id"


def test_similar_by_an_embedding_column(tmp_path) -> None:
    bench = write(tmp_path / "bench.jsonl", [{"id": 1, "problem": "p", "vec": [1.0, 0.0]}])
    rows = [
        {"id": i, "question": "q", "vec": vector}
        for i, vector in enumerate([[0.0, 1.0], [3.0, 0.1], [1.0, 1.0]])
    ]
    out = select(tmp_path, rows, similar_recipe(bench, per_problem=2, embedding="vec"))
    assert [row["id"] for row in sorted(load(out), key=lambda row: -row["similarity"])] == [1, 2]
    assert (
        json.loads(Path(f"{out}.stages.json").read_text())["stages"][0]["notes"]["vectors"] == "vec"
    )
    rows[2]["vec"] = [1.0]
    with pytest.raises(DataError, match=r"lengths \[1, 2\]"):
        select(tmp_path, rows, similar_recipe(bench, embedding="vec"))


# --- Rethinking
# --------------------------------------------------------------------------------------------------


def teacher_samples() -> list[dict]:
    return [
        {
            "id": f"p{p}#{s}",
            "problem_id": f"p{p}",
            "correct": s != 0 and p != 9,
            "message": [{"role": "user", "content": f"Q{p}"}],
            "response": f"<think>try {s}</think>\n\nso \\boxed{{{p}}}",
            "advantage": 1.0,
            "logprob": [-0.1, -0.2],
            "entropy": [0.1, 0.2],
        }
        for p in range(12)
        for s in range(4)
    ]


def test_math_cot_one_correct_answer_per_question(tmp_path) -> None:
    out = load(select(tmp_path, teacher_samples(), "rethinking/math_cot.yaml", "n=8"))
    assert len({row["problem_id"] for row in out}) == len(out) == 8
    assert all(row["correct"] for row in out)
    assert len({row["id"][-1] for row in out}) > 1, "a random one, not always the first"


def test_nocot_strips_the_trace_of_the_same_rows(tmp_path) -> None:
    cot = load(select(tmp_path, teacher_samples(), "rethinking/math_cot.yaml", "n=8"))
    nocot = load(
        select(tmp_path, teacher_samples(), "rethinking/math_nocot.yaml", "n=8", out="nocot.jsonl")
    )
    assert [row["id"] for row in nocot] == [row["id"] for row in cot]
    assert [row["response"] for row in nocot] == [
        row["response"].split("</think>\n\n")[1] for row in cot
    ]
    assert all("logprob" not in row and "entropy" not in row for row in nocot), (
        "they belong to other tokens"
    )
    examples = list(ExampleReader(tmp_path / "nocot.jsonl", ReadOptions()))
    assert all(
        example.raw_response and "<think>" not in example.messages[-1].content
        for example in examples
    )


def test_rows_that_cannot_be_stripped_are_counted(tmp_path) -> None:
    rows = [
        {
            "id": 1,
            "messages": [
                {"role": "user", "content": "<think> stays"},
                {"role": "assistant", "content": "<think>a</think>\nb"},
            ],
        },
        {"id": 2, "response": "<think>never closed"},
        {"id": 3, "response": "<think>only this</think>"},
    ]
    out = select(tmp_path, rows, recipe_of("strip_reasoning:"))
    assert load(out) == [
        {"id": 1, "messages": [rows[0]["messages"][0], {"role": "assistant", "content": "b"}]}
    ]
    assert json.loads(Path(f"{out}.stages.json").read_text())["stages"][0]["dropped"] == {
        "nothing but reasoning": 1,
        "unpaired <think>": 1,
    }


def test_published_step_counts() -> None:
    assert [
        Plan(*plan).steps
        for plan in (
            (20_480, 8, 256),
            (20_480, 16, 256),
            (2_560, 8, 32),
            (20_480, 1, 32),
            (800, 15, 32),
        )
    ] == [640, 1280, 640, 640, 375]


# --- promises that hold for every stage
# ----------------------------------------------------------------------------------------------


def test_unchanged_rows_are_copied_byte_for_byte_and_parquet_keeps_values(tmp_path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw = ['{"id":  1,"x":1.50, "t":"\\u00e9"}', '{"x": null,"id": 2}', '{"id": 3, "x": 2e0}']
    (tmp_path / "pool.jsonl").write_text("\n".join(raw))
    (tmp_path / "recipe.yaml").write_text(recipe_of("drop_missing: {columns: [x]}"))
    out = tmp_path / "out.jsonl"
    run_select(
        SelectConfig(
            path=str(tmp_path / "pool.jsonl"), recipe=str(tmp_path / "recipe.yaml"), out=str(out)
        )
    )
    assert sorted(out.read_text().splitlines()) == sorted([raw[0], raw[2]])
    pq.write_table(pa.table({"id": [1, 2, 3], "x": [1.5, None, 2.0]}), tmp_path / "pool.parquet")
    run_select(
        SelectConfig(
            path=str(tmp_path / "pool.parquet"),
            recipe=str(tmp_path / "recipe.yaml"),
            out=str(tmp_path / "out.parquet"),
        )
    )
    assert sorted(pq.read_table(tmp_path / "out.parquet").to_pylist(), key=lambda r: r["id"]) == [
        {"id": 1, "x": 1.5},
        {"id": 3, "x": 2.0},
    ]


def test_dedup_and_decontaminate_as_stages_do_not_depend_on_file_order(tmp_path) -> None:
    bench = write(
        tmp_path / "bench.jsonl",
        [
            {
                "problem": (
                    "how many red marbles are left in the jar after the third child has drawn two"
                    " of them"
                )
            }
        ],
    )
    text = "one two three four five six seven eight nine ten eleven twelve thirteen"
    rows = [
        {"id": "b", "question": text},
        {"id": "a", "question": text.upper()},
        {"id": "c", "question": "something else entirely"},
        {
            "id": "d",
            "question": (
                "So: how many red marbles are left in the jar after the third child has drawn two?"
            ),
        },
    ]
    recipe = recipe_of(f"decontaminate: {{against: [{bench}], n: 8}}", "dedup: {method: near}")
    for order in (rows, rows[::-1], rows[2:] + rows[:2]):
        assert {row["id"] for row in load(select(tmp_path, order, recipe))} == {"a", "c"}


def test_rows_without_ids_are_told_apart_by_content(tmp_path) -> None:
    rows = [{"x": 1}, {"x": 2}, {"x": 1}, {"x": 3}]
    first = select(tmp_path, rows, recipe_of("sample: {n: 3}")).read_bytes()
    assert select(tmp_path, rows[::-1], recipe_of("sample: {n: 3}")).read_bytes() == first


BAD = [
    (
        [{"id": 1, "x": 1}],
        "drop_missing: {columns: [y]}",
        r"no column 'y', which stage 1 \(drop_missing\) of .*needs; .* have id, x",
    ),
    (
        [{"id": 1, "x": 1}],
        "keep: {where: {column: x, equals: 2}}",
        r"stage 1 \(keep\) .* leaves none of 1 rows; .*does not fit': 1",
    ),
    (
        [{"id": 1}, {"id": "1"}],
        "sample: {n: 1}",
        r"pool.jsonl:2: expected a unique id, found id '1' again, first at .*pool.jsonl:1",
    ),
    ([{"id": 1, "score": float("nan")}], "top: {n: 1}", r"pool.jsonl:1: .*NaN"),
    (
        [{"id": 1, "score": "high"}],
        "top: {n: 1}",
        r"pool.jsonl:1: column 'score' is 'high', stage 1 \(top\) .* needs a finite number",
    ),
    (
        [{"id": 1, "score": 1}, {"id": 2}],
        "top: {n: 1}",
        r"pool.jsonl:2: no column 'score', which stage 1 \(top\)",
    ),
    (
        [{"id": 1}],
        "sample: {n: 5}",
        r"stage 1 \(sample\) of .* wants 5 rows, 1 are left; fix: a smaller n, or allow_fewer",
    ),
    (
        [{"id": 1, "x": 3}],
        "drop: {rules: [{column: x, contains: a}]}",
        r"column 'x' is 3, stage 1 \(drop\) .* tests it as text",
    ),
    ([{"id": 1, "x": 3}], "score: {}", r"stage 1 \(score\) .*expected an answer"),
    ([{"id": 1, "x": 3}], "length: {unit: tokens}", r"counts tokens and has no tokenizer"),
]


@pytest.mark.parametrize(("rows", "stage", "message"), BAD, ids=[stage for _, stage, _ in BAD])
def test_bad_rows(tmp_path, rows: list[dict], stage: str, message: str) -> None:
    with pytest.raises((DataError, ConfigError), match=message):
        select(tmp_path, rows, recipe_of(stage))
    assert not (tmp_path / "out.jsonl").exists()


def test_nan_in_parquet(tmp_path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.table({"id": [1, 2], "score": [float("nan"), 1.0]}), tmp_path / "pool.parquet"
    )
    (tmp_path / "recipe.yaml").write_text(recipe_of("top: {n: 1}"))
    with pytest.raises(
        DataError,
        match=(
            r"pool.parquet:row 1: column 'score' is nan, stage 1 \(top\) .* needs a finite number"
        ),
    ):
        run_select(
            SelectConfig(
                path=str(tmp_path / "pool.parquet"),
                recipe=str(tmp_path / "recipe.yaml"),
                out=str(tmp_path / "o.jsonl"),
            )
        )


def test_not_utf8(tmp_path) -> None:
    (tmp_path / "pool.jsonl").write_bytes(b'{"id": 1}\n{"id": "caf\xe9"}\n')
    (tmp_path / "recipe.yaml").write_text(recipe_of("sample: {n: 1}"))
    with pytest.raises(DataError, match=r"pool.jsonl:2: expected UTF-8 text, found byte 0xe9"):
        run_select(
            SelectConfig(
                path=str(tmp_path / "pool.jsonl"),
                recipe=str(tmp_path / "recipe.yaml"),
                out=str(tmp_path / "o.jsonl"),
            )
        )


BAD_RECIPES = [
    ("smaple: {n: 1}", "unknown stage 'smaple'; fix: one of"),
    ("sample: {m: 1}", r"recipe.yaml:3: stage 1 \(sample\), m: Extra inputs"),
    ("sample: {n: 1, share: 0.5}", "expected one of n"),
    ("drop: {rules: [{column: x}]}", "a condition on 'x' has no test"),
    ("drop: {rules: [{column: x, matches: '('}]}", "no regular expression"),
    ("take: {n: 3, order: mixed, parts: {longest: 1}}", "parts that sum to n"),
]


@pytest.mark.parametrize(("stage", "message"), BAD_RECIPES, ids=[stage for stage, _ in BAD_RECIPES])
def test_bad_recipes(tmp_path, stage: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select(tmp_path, [{"id": 1, "x": "a"}], recipe_of(stage))


def test_bad_parameters(tmp_path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"--set m=1: expected NAME=VALUE with one of the recipe's parameters \(seed, n\)",
    ):
        select(tmp_path, [{"id": 1}], "limo/limo_800.yaml", "m=1")
    with pytest.raises(ConfigError, match=r"no selection of .* has such a name"):
        select(tmp_path, [{"id": 1}], "ladder/grid.yaml", out="folder", only="nothing_*")
    with pytest.raises(ConfigError, match="selections need a folder"):
        select(tmp_path, [{"id": 1}], "ladder/grid.yaml")
