"""The machine code of every shipped configuration, compiled for sm_90a without a GPU: a performance
regression test."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

# Instructions per element. At 4.3 TB/s a Hopper card has 15 for each bfloat16 element that it
# reads, 30 for each that it reads and writes.
BUDGETS = {
    ("ce_stats", False): 8.0,
    ("ce_stats", True): 8.5,
    ("ce_backward", False): 13.0,
    ("ce_backward", True): 16.0,
}


FEW = r"16 warps|^adamw|^ce_stats.*(bf16|fp32).* 8 warps"


@pytest.fixture(
    scope="module", params=[FEW, pytest.param("", marks=pytest.mark.slow)], ids=["few", "all"]
)
def reports(request, tmp_path_factory, repository) -> list[dict]:
    out = tmp_path_factory.mktemp("report") / "report.json"
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    clean |= {"TRITON_CACHE_DIR": str(out.parent / "cache")}
    subprocess.run(
        [
            sys.executable,
            "-m",
            "megaladder.tools.kernel_report",
            "--json",
            str(out),
            "--only",
            request.param,
        ],
        check=True,
        env=clean,
        cwd=repository,
    )
    return json.loads(out.read_text())


def named(report: dict) -> str:
    return f"{report['kernel']} [{report['config']}]"


def test_no_spills_and_registers_within_the_machine(reports):
    assert len(reports) >= 8
    assert {named(r): r["spills"] for r in reports if r["spills"]} == {}
    assert max(r["registers"] for r in reports) <= 255


def test_loads_of_logits_are_128_bits_wide(reports):
    row_kernels = [r for r in reports if r["kernel"].startswith("ce_")]
    assert {named(r): r["ld_bits_max"] for r in row_kernels if r["ld_bits_max"] != 128} == {}


def test_column_loops_have_no_shuffle_and_no_barrier_but_the_one_they_need(reports):
    """A 16-bit gradient over float32 logits needs one between load and store, no other loop any."""
    found = {named(r): (r["loop_shuffles"], r["loop_barriers"]) for r in reports}
    assert found == {name: (0, int("over the logits" in name)) for name in found}


def test_instructions_per_element_stay_within_budget(reports):
    over = {
        named(r): r["instr_per_element"]
        for r in reports
        if r["instr_per_element"] is not None
        and r["instr_per_element"] > BUDGETS[r["kernel"], "entropy" in r["config"]]
    }
    assert over == {}
