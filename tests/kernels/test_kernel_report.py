"""The machine code of every shipped configuration, compiled for sm_90a without a GPU: a performance
regression test."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

# Instructions per element. Reading at HBM speed leaves 15 for bfloat16, reading and writing 30:
BUDGETS = {
    ("ce_stats", False): 8.0,
    ("ce_stats", True): 8.5,
    ("ce_stats_rank", False): 11.0,
    ("ce_stats_rank", True): 11.0,
    ("count_at_least", False): 8.0,
    ("ce_backward", False): 13.0,
    ("ce_backward", True): 16.0,
    ("ce_policy", False): 13.0,
    ("ce_policy", True): 16.0,
    ("ce_policy fused", False): 21.0,  # two reads and a write
    ("ce_policy fused", True): 24.0,
    (
        "linear_stats",
        False,
    ): 18.0,  # epilogue per element of the tile; the product loop is not counted
    ("linear_stats", True): 20.0,
}


FEW = (  # twelve of 34
    r"^(ce_stats|ce_backward|linear).*bf16|^ce_policy.*bf16.*entropy, (fused|gathered),"
    r" ppo|^ce_stats .fp32"
)


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
    assert len(reports) >= 10
    assert {named(r): r["spills"] for r in reports if r["spills"]} == {}
    assert max(r["registers"] for r in reports) <= 255


def test_loads_of_logits_are_128_bits_wide(reports):
    row_kernels = [r for r in reports if r["kernel"].startswith(("ce_", "count_"))]
    assert {named(r): r["ld_bits_max"] for r in row_kernels if r["ld_bits_max"] != 128} == {}


def test_column_loops_have_no_shuffle_and_no_barrier(reports):
    assert [named(r) for r in reports if r["loop_shuffles"] or r["loop_barriers"]] == []


def test_instructions_per_element_stay_within_budget(reports):
    over = {}
    for r in reports:
        if r["kernel"] == "merge_stats":
            continue
        kind = r["kernel"] + (" fused" if "fused" in r["config"] else "")
        if r["instr_per_element"] > BUDGETS[kind, "entropy" in r["config"]]:
            over[named(r)] = r["instr_per_element"]
    assert over == {}


def test_the_linear_kernel_uses_wgmma_fed_by_tma(reports):
    linear = [r for r in reports if r["kernel"] == "linear_stats"]
    assert len(linear) == 2
    assert all(r["uses_wgmma"] and r["uses_tma"] for r in linear)
    assert all(r["shared_bytes"] <= 227 * 1024 for r in reports), (
        "shared memory of a program on Hopper"
    )
