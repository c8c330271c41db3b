"""Our files against lm-eval's own `result_schema.py` (found without importing lm-eval), and against
its way of reading them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from tiny_models import build_tokenizer

from megaladder.analysis.samples.sets import read_samples
from megaladder.analysis.tables import Warnings
from megaladder.cli import main
from megaladder.evaluation.lm_eval_format import sanitized
from megaladder.rewards.grade import grader_label


@pytest.fixture(scope="module")
def schema():
    package = importlib.util.find_spec("lm_eval")  # finds the folder; does not import it
    if package is None:
        pytest.skip("lm-eval is not installed; fix: pip install lm-eval==0.4.13")
    path = Path(package.submodule_search_locations[0]) / "result_schema.py"
    spec = importlib.util.spec_from_file_location("lm_eval_result_schema", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folders(tmp_path_factory, shared_data):
    out = tmp_path_factory.mktemp("out")
    tokenizer = build_tokenizer(out / "tokenizer")
    names = "aime24,amc23,math500,gsm8k"
    more = [
        "--extract",
        "last-box",
        "--limit",
        "40",
        "--n",
        "4",
        "--data-dir",
        str(shared_data),
        "--out",
        str(out),
    ]
    assert (
        main(
            ["eval", "--engine", "fake", "--tokenizer", str(tokenizer), "--benchmark", names, *more]
        )
        == 0
    )
    return {name: out / "fake" / name for name in names.split(",")}


def rows(folder: Path) -> list[dict]:
    return [
        json.loads(line)
        for line in (folder / f"samples_{folder.name}.jsonl").read_text("utf-8").splitlines()
    ]


def test_samples_conform(schema, folders):
    adapter = TypeAdapter(schema.SampleResult)
    for name, folder in folders.items():
        found = rows(folder)
        assert len(found) == (30 if name == "aime24" else 40)
        for index, row in enumerate(found):
            adapter.validate_python(row, strict=False)
            assert (
                row["doc_id"] == index and len(row["resps"][0]) == len(row["filtered_resps"]) == 4
            )
            assert set(row["metrics"]) <= row.keys()


def test_a_row_with_a_list_beside_the_metrics_would_be_caught(schema, folders):
    """The schema check has teeth: our per-sample lists are inside `doc` for this reason."""
    row = rows(folders["aime24"])[0]
    with pytest.raises(ValueError, match="exact_matches"):
        TypeAdapter(schema.SampleResult).validate_python({**row, "exact_matches": [True]})


def test_results_conform(schema, folders):
    adapter = TypeAdapter(schema.EvalResults)
    for name, folder in folders.items():
        results = json.loads((folder / f"results_{name}.json").read_text("utf-8"))
        adapter.rebuild(_types_namespace=vars(schema))
        adapter.validate_python(results)
        table = results["results"][name]
        found = rows(folder)
        assert table["sample_len"] == len(found)
        for metric in ("exact_match", "avg@4", "pass@4", "cov@4", "maj@4", "response_length"):
            mean = sum(row[metric] for row in found) / len(found)
            assert table[f"{metric},none"] == pytest.approx(mean, rel=1e-12)
        assert {"exact_match", "avg@4"} <= results["higher_is_better"][name].keys()
        assert results["n-samples"][name]["effective"] == len(found)


def test_analyses_read_what_eval_wrote(folders):
    samples = read_samples(folders["amc23"] / "samples_amc23.jsonl", "fake", "amc23", Warnings())
    summary = json.loads((folders["amc23"] / "summary.json").read_text("utf-8"))
    assert samples.num_samples == 4 and len(samples.problems) == 40
    assert float(samples.accuracy_p.mean()) == pytest.approx(summary["metrics"]["avg@4"])
    assert float(samples.mean_tokens_p.mean()) == pytest.approx(
        summary["metrics"]["response_length"]
    )


def test_summary_says_how_it_was_made(folders):
    summary = json.loads((folders["aime24"] / "summary.json").read_text("utf-8"))
    assert (
        summary["num_problems"] == 30
        and summary["n"] == 4
        and set(summary["groups"]) == {"easy", "medium", "hard", "exhard"}
    )
    low, high = summary["ci95"]["avg@4"]
    assert 0 <= low <= summary["metrics"]["avg@4"] <= high <= 1
    protocol = summary["protocol"]
    assert (
        protocol["decoding"]["temperature"] == 0.6
        and protocol["data"]["revision"].startswith("sha256:")
        and protocol["limit"] is None
    )
    assert {"truncated", "no_answer", "undecided", "aborted"} <= summary["counts"].keys()


def test_command_summary_and_report_name_one_grader(folders, tmp_path, capsys):
    label = grader_label(dialect="last-box")
    for folder in folders.values():
        summary = json.loads((folder / "summary.json").read_text("utf-8"))
        assert summary["protocol"]["grader"] == label
    model = folders["aime24"].parent
    assert main(["report", str(model), "--out", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count(label) == 2 * len(folders), "accuracy and protocol of each benchmark"
    assert "Undecided samples have no verdict" in page


def test_names_of_folders():
    assert sanitized("Qwen/Qwen3-14B") == "Qwen__Qwen3-14B"
    assert (
        sanitized("../..") == "__" and sanitized("..") == "model" and "/" not in sanitized("a/../b")
    )
    long = sanitized("模" * 200)
    assert len(long.encode()) <= 100 and long != sanitized("模" * 201)
