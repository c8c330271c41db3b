"""The acceptance run's promises, without a GPU: its table, resuming after a kill, and that no
figure of a CPU reaches docs/h200.

The stages themselves are rehearsed by `tools/gpu_acceptance.py --device cpu --size tiny` (minutes;
not a test).
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import descendants, is_alive, wait_until

from megaladder.errors import ConfigError, MegaladderError
from megaladder.tools import gpu_acceptance
from megaladder.tools.acceptance import kit, page, record
from megaladder.tools.acceptance.context import Context, kept_cases
from megaladder.tools.acceptance.stages import gpu_tests, grpo, rollout
from megaladder.tools.acceptance.stages.kernels import goal_figures
from megaladder.tools.acceptance.table import BY_NAME, BY_VALUE, LIMIT_S, STAGES
from megaladder.tools.bench_kernels import HEAD_TABLE

ROOT = Path(__file__).resolve().parents[1]
GPU = {"device": "cuda", "gpu": "NVIDIA H200", "driver": "580.1", "cuda": "13.0"}
CPU = {"device": "cpu", "gpu": None, "driver": None, "cuda": None}


def made(
    stage: str, facts: dict, figures: dict, status: str = record.DONE, size: str = "full"
) -> dict:
    return record.make_record(
        stage,
        status,
        "python3 tools/gpu_acceptance.py",
        facts,
        figures=figures,
        size=size,
        seconds=1.0,
    )


def test_the_table_covers_the_issue_and_fits_a_lent_machine() -> None:
    names = [stage.name for stage in STAGES]
    assert len(names) == len(set(names)) == len(BY_NAME)
    assert all(stage.limit_s <= 480 for stage in STAGES) and LIMIT_S == 480
    for stage in STAGES:
        assert all(names.index(earlier) < names.index(stage.name) for earlier in stage.after), (
            stage.name
        )
        assert callable(
            importlib.import_module(f"megaladder.tools.acceptance.stages.{stage.module}").run
        )
        assert stage.on_cpu, "every stage can be rehearsed on a CPU"
    goals = {
        (target.figure, target.goal, target.at_least)
        for stage in STAGES
        for target in stage.targets
        if target.source == "our goal"
    }
    assert goals == {
        ("sft_ratio", 1.05, False),
        ("grpo_ratio", 1.06, False),
        ("grpo_inactive_over_dense", 0.50, False),
        ("sft_tp8_ratio", 1.20, False),
        ("odd_over_aligned_vocabulary", 1.02, False),
        ("row_kernels_tp8", 0.90, True),
        ("extrapolated.mfu", 0.57, True),
        ("speedup", 1.45, True),
        ("extrapolated.tflops", 760.0, True),
        ("failed", 0.0, False),
        ("mismatch_mean", 0.012, False),
        ("sync_14b_s", 2.0, False),
    }
    assert [stage.name for stage in BY_VALUE][:2] == ["throughput_bf16", "throughput_fp8"]
    assert sum(stage.expected_s for stage in STAGES) <= 780


def test_the_heads_goals_come_from_the_tables_rows() -> None:
    """Every shape of the head's table decides a goal; what was not run decides none."""
    rows = [
        {
            "case": shape.case,
            "tokens": str(shape.tokens),
            "vocab": str(shape.vocab),
            "stored": str(shape.stored),
            "contender": contender,
            "ratio": "1.25" if contender == "ours" else "1",
            "median_ms": "60" if "inactive" not in shape.case else "30",
        }
        for shape in HEAD_TABLE
        for contender in ("ours", "Liger")
    ]
    assert goal_figures(rows) == {
        "sft_ratio": 1.25,
        "grpo_ratio": 1.25,
        "grpo_inactive_ratio": 1.25,
        "grpo_inactive_over_dense": 0.5,
        "sft_tp8_ratio": 1.25,
        "sft_odd_vocabulary_ratio": 1.25,
        "odd_over_aligned_vocabulary": 1.0,
        "row_kernels_tp8": 0.8,
    }
    assert goal_figures(rows[:2]) == {"sft_ratio": 1.25} and goal_figures([]) == {}


def test_a_log_of_pytest_gives_counts_and_reasons_even_where_it_was_cut() -> None:
    log = (
        "tests/gpu/test_a.py::test_one[a b-True] PASSED                  [ 10%]\n"
        "tests/gpu/test_a.py::test_two FAILED                            [ 20%]\n"
        "tests/gpu/test_a.py::test_three SKIPPED (needs CUDA)            [ 30%]\n"
        "tests/gpu/test_a.py::test_four ERROR                            [ 40%]\n"
        "FAILED tests/gpu/test_a.py::test_two - assert 1.0 < 0.5\n"
    )
    failures = {
        "tests/gpu/test_a.py::test_two": "assert 1.0 < 0.5",
        "tests/gpu/test_a.py::test_four": "",
    }
    counted = {"passed": 1, "failed": 2, "skipped": 1}
    assert gpu_tests.verdicts(log) == {**counted, "failures": failures}
    with pytest.raises(MegaladderError, match="no test ran; fix:"):
        gpu_tests.verdicts("collected 0 items")


def test_figures_are_kept_one_by_one(tmp_path: Path) -> None:
    """A stage that goes on does not measure again what it has."""
    context = Context("memory", "cpu", "tiny", tmp_path, tmp_path, 0.0)
    assert context.case("first", lambda: {"seconds": 1.0}) == {"seconds": 1.0}
    again = Context("memory", "cpu", "tiny", tmp_path, tmp_path, 0.0)
    assert again.case("first", lambda: {"seconds": 2.0}) == {"seconds": 1.0}
    assert kept_cases(tmp_path, "memory") == {"first": {"seconds": 1.0}}
    assert kept_cases(tmp_path, "convert") == {}


def test_a_small_budget_starts_nothing_and_says_so(tmp_path: Path, capsys) -> None:
    assert gpu_acceptance.main(command(tmp_path, "--budget-s", "30")[2:]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [stage.name for stage in BY_VALUE]
    assert all("left for the next call" in line for line in lines)


@pytest.mark.parametrize(
    ("value", "met"), [(1.46, True), (1.45, True), (1.44, False), (None, None), ("fast", None)]
)
def test_targets_are_judged_or_left_open(value: object, met: bool | None) -> None:
    target = next(
        target for target in BY_NAME["throughput_fp8"].targets if target.figure == "speedup"
    )
    assert target.judge({"speedup": value})["met"] is met
    assert target.judge({})["met"] is None


def test_a_cpu_run_needs_a_folder_of_its_own() -> None:
    for out in (None, str(ROOT / "docs" / "h200"), str(ROOT / "docs" / "h200" / "deeper")):
        with pytest.raises(ConfigError, match="fix:"):
            record.output_folder("cpu", out, ROOT)
    assert record.output_folder("cuda", None, ROOT) == ROOT / "docs" / "h200"


def test_figures_of_a_cpu_never_reach_the_gpu_folder(tmp_path: Path) -> None:
    home = tmp_path / "docs" / "h200"
    with pytest.raises(AssertionError, match="a record of cpu was about to go to"):
        record.write_record(home, made("convert", CPU, {}), tmp_path)
    with pytest.raises(AssertionError):  # cuda by name, but no device was seen
        record.write_record(home / "x", made("convert", {**CPU, "device": "cuda"}, {}), tmp_path)
    assert not home.exists()
    assert record.write_record(tmp_path / "mine", made("convert", CPU, {"a": 1}), tmp_path).exists()


def test_the_page_ignores_strangers_and_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "convert.json").write_text(
        json.dumps(made("convert", CPU, {"secret_figure": 4321}))
    )
    figures = {"speedup": 1.46, "extrapolated": {"tflops": 765.0}, "recipes": {}}
    (tmp_path / "throughput_fp8.json").write_text(json.dumps(made("throughput_fp8", GPU, figures)))
    (tmp_path / "grpo.json").write_text("{ torn")
    text = page.render(tmp_path, tmp_path / "h200.md")
    assert "4321" not in text and "secret_figure" not in text
    assert "Ignored, because they do not come from a CUDA device: convert." in text
    assert (
        "| FP8 against bf16 step time (our goal) | ≥ 1.45 | 1.46 | yes | throughput_fp8 |" in text
    )
    assert (
        "| MFU, bf16, 14B layer shapes (our goal) | ≥ 0.57 | not measured | not measured |"
        " throughput_bf16 |" in text
    )
    assert "NVIDIA H200, driver 580.1" in text
    for stage in STAGES:
        if stage.name != "throughput_fp8":
            assert f"not measured; `python3 tools/gpu_acceptance.py --stages {stage.name}`" in text


def test_the_shipped_page_is_what_the_records_say(tmp_path: Path) -> None:
    assert (ROOT / "docs" / "h200.md").read_text() == page.render(
        ROOT / "docs" / "h200", tmp_path / "h200.md"
    )


def command(tmp_path: Path, *words: str) -> list[str]:
    return [
        sys.executable,
        str(ROOT / "tools" / "gpu_acceptance.py"),
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "out"),
        "--work",
        str(tmp_path / "work"),
        *words,
    ]


def test_done_stages_are_kept_and_others_run(tmp_path: Path, capsys) -> None:
    record.write_record(tmp_path / "out", made("convert", CPU, {}, size="tiny"), tmp_path)
    record.write_record(
        tmp_path / "out", made("grpo", CPU, {}, status=record.FAILED, size="tiny"), tmp_path
    )
    record.write_record(tmp_path / "out", made("memory", CPU, {}, size="full"), tmp_path)
    assert (
        gpu_acceptance.main(command(tmp_path, "--dry-run", "--stages", "memory,convert,grpo")[2:])
        == 0
    )
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["convert"].split() == ["convert", "done"]
    assert (
        "acceptance.child grpo" in lines["grpo"] and "acceptance.child memory" in lines["memory"]
    )  # failed; another size
    assert (
        gpu_acceptance.main(
            command(tmp_path, "--dry-run", "--no-resume", "--stages", "convert")[2:]
        )
        == 0
    )
    assert "acceptance.child convert" in capsys.readouterr().out


def test_a_killed_run_leaves_no_half_record_and_goes_on(tmp_path: Path) -> None:
    """Killed while a stage is at work: nothing is written for it, its processes are gone, and the
    same command then finishes it."""
    begun = subprocess.Popen(
        command(tmp_path, "--stages", "kernel_checks,te_parity"),
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert begun.stdout is not None
    assert begun.stdout.readline().split() == ["kernel_checks", "…"]
    wait_until(lambda: descendants(begun.pid), "the stage's process")
    stage = list(descendants(begun.pid))
    begun.send_signal(signal.SIGINT)
    begun.wait(240)
    wait_until(lambda: not any(is_alive(pid) for pid in stage), "end of the stage's processes")
    assert not (tmp_path / "out" / "te_parity.json").exists()
    done = subprocess.run(
        command(tmp_path, "--stages", "kernel_checks"),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = record.read_record(tmp_path / "out", "kernel_checks")
    assert (found["status"], found["device"], found["gpu"], found["size"]) == (
        "done",
        "cpu",
        None,
        "tiny",
    )
    assert max(found["figures"]["against_fp64"].values()) < 1e-5
    assert (
        "kernel_checks    done"
        in subprocess.run(
            command(tmp_path, "--stages", "kernel_checks"),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        ).stdout
    )


def test_without_a_gpu_nothing_is_started(tmp_path: Path, capsys) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu_acceptance.main(["--stages", "convert"]) == 2
    assert "torch finds no CUDA device here; fix:" in capsys.readouterr().err
    assert gpu_acceptance.main(["--stages", "nonsense"]) == 2
    assert gpu_acceptance.main(["--kit"]) == 0
    assert "tools/env/gpu_kit_core_te.txt" in capsys.readouterr().out


def names(*files: str) -> set[str]:
    """Packages of requirement lists, as indexes spell them."""
    lines = [line for file in files for line in (ROOT / "tools/env" / file).read_text().split("\n")]
    return {plain(line) for line in lines if line and not line.startswith("#")}


def plain(requirement: str) -> str:
    return re.split(r"[<>=\[ ]", requirement)[0].lower().replace("_", "-")


def test_the_machine_and_the_kit_have_all_that_an_installation_has() -> None:
    """The lent machine has no network: what is in neither list ends the first stage."""
    there = names("gpu_machine.txt", "gpu_kit_core_te.txt")
    required = [line for line in setup_requirements() if plain(line) not in there]
    assert required == []


def setup_requirements() -> list[str]:
    """REQUIRES of setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "REQUIRES":
            return ast.literal_eval(node.value)
    raise AssertionError("setup.py has no REQUIRES")


def test_the_kit_has_what_vllm_imports_before_it_generates() -> None:
    """On 28 November 2026 its first stop on an H200 was `import llguidance`."""
    listed = names("gpu_kit_vllm.txt")
    assert {"llguidance", "xgrammar", "apache-tvm-ffi", "outlines-core"} <= listed
    assert "lm-format-enforcer" in listed and "flashinfer-python" not in listed
    assert "VLLM_USE_FLASHINFER_SAMPLER=0" in kit.TEXT


def test_steps_that_miss_a_figure_do_not_cost_the_others() -> None:
    """A phase that only some steps have, and a run whose engine was compared with nothing."""
    row = {"reward": 0.5, "loss": 0.0, "step_s": 2.0, "tokens": 10, "update_s": 1.0}
    found = grpo._summary([row, row | {"grading_cpu_s": 0.5}, row])
    assert found["phases_s"] == {"grading_cpu_s": 0.25, "update_s": 1.0}
    assert rollout._mismatch([row])["mismatch_max"] is None
    watched = {"mismatch_mean": 0.01, "mismatch_k3": 0.1, "mismatch_max": 0.3}
    assert rollout._mismatch([row, row | watched]) == watched
