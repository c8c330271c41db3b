"""lm-eval itself, on our engine: a task file of one's own, its metric, the cache that makes it
resumable."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny_models import build_tokenizer

from megaladder.config.sections.evaluate import PromptSection
from megaladder.config.verbs.evaluation import EvalConfig
from megaladder.data.chat.tokenizer import load_tokenizer
from megaladder.evaluation import lm_eval_tasks
from megaladder.evaluation.benchmarks.prompting import make_prompter
from megaladder.evaluation.benchmarks.spec import BenchmarkSpec, registry
from megaladder.rollout.fake_engine import FakeEngine

pytest.importorskip("lm_eval", reason="lm-eval is not installed; fix: pip install lm-eval==0.4.13")
TASK = """
task: toy_capitals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "Capital of {{{{country}}}}?"
doc_to_target: "{{{{capital}}}}"
generation_kwargs: {{until: ["\\n"], do_sample: false, max_gen_toks: 24}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""
CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Peru": "Lima"}


@pytest.fixture
def toy(tmp_path):
    folder = tmp_path / "data" / "toy"
    folder.mkdir(parents=True)
    rows = [
        json.dumps({"country": country, "capital": capital})
        for country, capital in CAPITALS.items()
    ]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "toy.yaml").write_text(TASK.format(data=folder / "rows.jsonl"))
    return tmp_path


def responder(tokenizer):
    """Thinks first, knows three of four capitals, goes on talking after the answer."""

    def respond(request) -> str:
        prompt = tokenizer.decode(list(request.prompt_ids))
        country = next(name for name in CAPITALS if name in prompt)
        return (
            "<think>not"
            f" {country}\nhm</think>{'Cusco' if country == 'Peru' else CAPITALS[country]}\nQ: more"
        )

    return respond


def run(toy: Path, style: str, engine: FakeEngine, tokenizer) -> dict:
    config = EvalConfig(
        benchmark=("toy",),
        data_dir=str(toy / "data"),
        rollout={"engine": "fake", "max_tokens": 100},
    )
    spec = BenchmarkSpec(
        "toy", "t", "lm_eval", "plain", "exact", (), {}, "", {}, task="toy_capitals"
    )
    prompter = make_prompter(tokenizer, PromptSection(style=style), None)
    return lm_eval_tasks.run_spec(spec, config, prompter, engine, toy / "out")


def test_a_task_of_lm_eval_runs_on_our_engine_and_resumes(toy):
    tokenizer = load_tokenizer(build_tokenizer(toy / "tokenizer"))
    engine = FakeEngine(responder(tokenizer), tokenizer=tokenizer)
    summary = run(toy, "chat", engine, tokenizer)
    assert (
        summary["metrics"]["exact_match"] == 0.75
        and summary["num_problems"] == 4
        and engine.num_calls == 4
    )
    samples = [
        json.loads(line)
        for line in (toy / "out" / "toy" / "samples_toy.jsonl").read_text().splitlines()
    ]
    assert [row["exact_match"] for row in samples] == [1.0, 1.0, 1.0, 0.0]
    assert samples[0]["filtered_resps"] == ["Paris"]
    assert "<|im_start|>user\nCapital of France?" in samples[0]["arguments"]["gen_args_0"]["arg_0"]
    results = json.loads((toy / "out" / "toy" / "results_toy.json").read_text())
    assert (
        results["results"]["toy_capitals"]["exact_match,none"] == 0.75
        and results["protocol"]["decoding"]["max_tokens"] == 100
    )
    path = toy / "out" / "toy" / "generations.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]) + b'{"torn')
    again = FakeEngine(responder(tokenizer), tokenizer=tokenizer)
    assert (
        run(toy, "chat", again, tokenizer)["metrics"] == summary["metrics"] and again.num_calls == 2
    )


def test_raw_prompts_stop_in_the_engine(toy):
    tokenizer = load_tokenizer(build_tokenizer(toy / "tokenizer"))
    seen = []

    def respond(request) -> str:
        seen.append(
            (
                tokenizer.decode(list(request.prompt_ids)),
                request.params.stop,
                request.params.temperature,
            )
        )
        return "Paris"

    summary = run(toy, "raw", FakeEngine(respond, tokenizer=tokenizer), tokenizer)
    assert summary["metrics"]["exact_match"] == 0.25
    assert seen[0] == ("Capital of France?", ("\n",), 0.0)


def test_the_registrys_tasks_are_known_to_lm_eval():
    """By file, since lm-eval takes long to list its tasks."""
    tasks = Path(find_spec("lm_eval").submodule_search_locations[0]) / "tasks"
    for spec in (spec for spec in registry().values() if spec.runner == "lm_eval"):
        found = [
            path
            for folder in ("ifeval", "coqa", "truthfulqa")
            for path in (tasks / folder).glob("*.yaml")
            if f"task: {spec.task}\n" in path.read_text("utf-8")
        ]
        assert len(found) == 1 and "output_type: generate_until" in found[0].read_text("utf-8"), (
            spec.name
        )
