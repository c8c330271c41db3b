"""`megaladder plan` on the command line: its flags, files and errors."""

from __future__ import annotations

import json

import pytest

from megaladder.cli import main
from megaladder.plan.hardware import known_models

ASK = ["plan", "--gpus", "8", "--gpu", "h200", "--seq-length", "8192", "--global-batch-size", "256"]
GRPO = ["plan", "--model", "Qwen3-14B", "--gpus", "8", "--seq-length", "8192", "--workload", "grpo"]
LAYOUT_KEYS = {
    "tp",
    "pp",
    "vpp",
    "cp",
    "ep",
    "etp",
    "dp",
    "micro_batch_size",
    "micro_batches",
    "recompute",
    "sequence_parallel",
    "memory_per_gpu_bytes",
    "step_seconds",
    "step_parts_seconds",
    "tokens_per_s_per_gpu",
    "model_tflops_per_gpu",
    "mfu",
}


@pytest.fixture
def folder(tmp_path):
    """A model folder with only a config.json."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(known_models()["Qwen3-14B"]))
    return tmp_path / "model"


def test_json_is_one_sorted_object_with_ranked_layouts(folder, tmp_path, capsys) -> None:
    out = tmp_path / "new" / "plan.json"
    assert main([*ASK, "--model", str(folder), "--json", str(out)]) == 0
    text = out.read_text()
    report = json.loads(text)
    assert list(report) == sorted(report)
    assert json.dumps(report, sort_keys=True, indent=1, ensure_ascii=False) + "\n" == text
    assert [path.name for path in out.parent.iterdir()] == ["plan.json"]
    assert report["parameters"] == 14768307200
    first = report["layouts"][0]
    assert set(first) == LAYOUT_KEYS
    assert first["tp"] * first["pp"] * first["cp"] * first["dp"] == 8
    memory = first["memory_per_gpu_bytes"]
    assert (
        sum(size for part, size in memory.items() if part != "total")
        == memory["total"]
        <= report["memory_available_bytes"]
    )
    assert all(isinstance(size, int) for size in memory.values())
    parts = first["step_parts_seconds"]
    assert sum(seconds for part, seconds in parts.items() if part != "total") == pytest.approx(
        first["step_seconds"]
    )
    assert first["tokens_per_s_per_gpu"] == pytest.approx(256 * 8192 / first["step_seconds"] / 8)
    shown = capsys.readouterr().out
    assert "tokens/s/GPU" in shown
    assert "docs/plan.md" in shown


def test_a_known_name_equals_its_folder(folder, tmp_path) -> None:
    reports = []
    for model in (str(folder), "Qwen3-14B", "Qwen/Qwen3-14B-Base", "qwen3-14b"):
        assert main([*ASK, "--model", model, "--json", str(tmp_path / "p.json")]) == 0
        reports.append(json.loads((tmp_path / "p.json").read_text())["layouts"])
    assert all(report == reports[0] for report in reports)


def test_pinned_sizes(folder, tmp_path) -> None:
    pins = ["--tp", "4", "--pp", "2", "--vpp", "2", "--cp", "1", "--micro-batch-size", "1"]
    assert main([*ASK, "--model", str(folder), *pins, "--json", str(tmp_path / "p.json")]) == 0
    layouts = json.loads((tmp_path / "p.json").read_text())["layouts"]
    assert {
        (row["tp"], row["pp"], row["vpp"], row["cp"], row["micro_batch_size"]) for row in layouts
    } == {(4, 2, 2, 1, 1)}


def test_fp8_reports_both_utilizations(tmp_path) -> None:
    assert (
        main(
            [*ASK, "--model", "Qwen3-8B", "--precision", "fp8", "--json", str(tmp_path / "p.json")]
        )
        == 0
    )
    first = json.loads((tmp_path / "p.json").read_text())["layouts"][0]
    assert first["mfu_of_fp8_peak"] == pytest.approx(first["mfu"] / 2, rel=1e-3)
    assert first["memory_per_gpu_bytes"]["fp8_copies"] > 0


def test_grpo_has_phases(tmp_path, capsys) -> None:
    asked = [
        "--prompts-per-step",
        "128",
        "--n",
        "8",
        "--mini-batches",
        "4",
        "--response-length",
        "2000",
        "--max-tokens",
        "6000",
    ]
    assert main([*GRPO, *asked, "--json", str(tmp_path / "p.json")]) == 0
    report = json.loads((tmp_path / "p.json").read_text())
    assert report["global_batch_size"] == 256
    first = report["layouts"][0]
    assert set(first) == LAYOUT_KEYS | {"phases_seconds", "engine_tp", "gpu_memory_utilization"}
    phases = first["phases_seconds"]
    assert set(phases) == {"generation", "logprobs", "update", "sync", "other", "waiting", "total"}
    assert first["step_seconds"] == phases["total"]
    assert phases["update"] > phases["logprobs"] > 0
    assert first["memory_per_gpu_bytes"]["engine"] > 0
    assert "round s" in capsys.readouterr().out
    apart = [*asked, "--engine-gpus", "4", "--lag", "1", "--engine-tp", "2"]
    assert main([*GRPO, *apart, "--json", str(tmp_path / "p.json")]) == 0
    first = json.loads((tmp_path / "p.json").read_text())["layouts"][0]
    assert first["tp"] * first["pp"] * first["dp"] == 4
    assert (first["engine_tp"], first["memory_per_gpu_bytes"]["engine"]) == (2, 0)
    assert first["phases_seconds"]["waiting"] < 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            [*ASK, "--model", "Qwen3-15B"],
            "--model Qwen3-15B: no such folder, and not a known name; fix:",
        ),
        (
            [*ASK, "--model", "Qwen3-14B", "--gpu", "h300"],
            "--gpu h300: not known; fix: one of h100, h100-500w, h200, b200, a800",
        ),
        (
            [*ASK, "--model", "Qwen3-14B", "--gpu", "a800", "--precision", "fp8"],
            "A800 SXM 80 GB has no FP8 units; fix: --precision bf16",
        ),
        ([*ASK, "--model", "Llama-3.1-405B"], "no layout fits 8 × H200 SXM 141 GB: the nearest"),
        (
            [*ASK, "--model", "Qwen3-14B", "--tp", "16"],
            "--tp 16 does not divide the model's 40 attention heads",
        ),
        (
            ["plan", "--model", "Qwen3-14B", "--gpus", "8", "--seq-length", "8192"],
            "--global-batch-size is required",
        ),
        (
            [*ASK, "--model", "Qwen3-14B", "--sample-length", "9000"],
            "--sample-length 9000 is more than --seq-length 8192",
        ),
        (GRPO, "--prompts-per-step is required for --workload grpo"),
        (
            [
                *GRPO,
                "--prompts-per-step",
                "8",
                "--n",
                "4",
                "--response-length",
                "9",
                "--max-tokens",
                "8",
            ],
            "above --max-tokens 8",
        ),
        (
            [
                *GRPO,
                "--prompts-per-step",
                "8",
                "--n",
                "4",
                "--response-length",
                "9",
                "--max-tokens",
                "8100",
            ],
            "fix: --seq-length 8300",
        ),
    ],
)
def test_user_errors(args: list[str], message: str, capsys, tmp_path) -> None:
    assert main([*args, "--json", str(tmp_path / "p.json")]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert not (tmp_path / "p.json").exists()


def test_a_folder_that_is_no_model(tmp_path, capsys) -> None:
    assert main([*ASK, "--model", str(tmp_path)]) == 2
    assert "config.json: no such file; fix:" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    assert main([*ASK, "--model", str(tmp_path)]) == 2
    assert "model_type 'mamba' is not supported" in capsys.readouterr().err


def test_check_compares_with_the_plan(folder, tmp_path, capsys) -> None:
    flags = [
        "check",
        "--model.path",
        str(folder),
        "--model.init",
        "random",
        "--data.path",
        str(tmp_path / "d"),
    ]
    flags += [
        "--data.seq_length",
        "8192",
        "--train.global_batch_size",
        "256",
        "--train.precision",
        "bf16",
        "--parallel.ranks",
        "8",
    ]
    main([*flags, "--parallel.tp", "8", "--train.recompute", "full"])
    shown = capsys.readouterr().out
    assert "memory/rank about " in shown
    line = next(row for row in shown.splitlines() if row.startswith("plan "))
    assert "8 × H200 SXM 141 GB" in line
    assert "`plan` would take tp 1" in line
    main([*flags, "--parallel.tp", "1", "--parallel.pp", "1", "--plan-gpu", "h100"])
    assert "DOES NOT FIT 79 GiB; `plan` would take" in capsys.readouterr().out
