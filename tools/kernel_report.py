"""Compiles every shipped kernel configuration for sm_90a, without a GPU.

Reports what the machine code looks like.

    python -m megaladder.tools.kernel_report [--json F] [--markdown]

Needs only the triton package (its ptxas, cuobjdump and nvdisasm). Registers and shared memory come
from `cuobjdump -res-usage`, the rest from the disassembly: spills are local-memory loads and
stores; a loop is what lies between a backward branch and its label; instructions per element are
those of the column loop over the elements that a thread handles in it. It says nothing about time:
that needs a GPU (`bench_kernels`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

TARGET = ("cuda", 90, 32)
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*)$")
_LABEL = re.compile(r"^(\.L_\w+):")
_BRANCH = re.compile(r"`\((\.L_\w+)\)")


@dataclass(frozen=True, slots=True)
class Variant:
    """One compilation: the kernel, what is constant, what the pointers point to."""

    kernel: str
    config: str
    function: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    elements_per_vector: int  # of the logits; 0 without


@dataclass(frozen=True, slots=True)
class Report:
    """One row of the table. `instr_per_element` is None for kernels without a loop over columns."""

    kernel: str
    config: str
    registers: int
    spills: int
    shared_bytes: int
    instr_per_element: float | None
    ld_bits_max: int
    loop_shuffles: int
    loop_barriers: int


def variants() -> list[Variant]:
    """What training launches.

    Bfloat16 and float32 logits with bfloat16 gradients, per-token temperature, whole vocabularies
    and shards of them."""
    found = []
    for letters, entropy in itertools.product(("bf16", "fp32"), (False, True)):
        found += _row_variants(letters, entropy)
    return [*found, _merge_variant(), *map(_adamw_variant, (True, False))]


def _row_variants(letters: str, entropy: bool) -> list[Variant]:
    import triton.language as tl

    from megaladder.kernels.triton_kernels import configs
    from megaladder.kernels.triton_kernels.ce_backward import ce_backward_kernel
    from megaladder.kernels.triton_kernels.ce_stats import ce_stats_kernel

    pointers = {"logits_ptr": f"*{letters}", "out_ptr": "*bf16", "targets_ptr": "*i64"}
    vector = 8 if letters == "bf16" else 4
    label = f"{letters} logits" + (", entropy" if entropy else "")
    shared = {"VEC": vector, "ACC": tl.float32, "PER_TOKEN": 1}

    def make(name: str, function, config: configs.RowConfig, label: str, **constants) -> Variant:
        known = {**shared, "LANES": config.lanes, **constants}
        label = f"{label}, {config.num_warps} warps"
        return Variant(name, label, function, pointers, known, config.num_warps, 3, vector)

    wide, narrow = configs.WIDE, configs.NARROW
    rows = [
        make("ce_stats", ce_stats_kernel, config, label, ENTROPY=entropy)
        for config in (wide["stats"], narrow)
    ]
    for config, half in itertools.product((wide["backward"], narrow), (False, letters == "fp32")):
        constants = {"HAS_ENTROPY": entropy, "HALF": half}
        place = ", over the logits" if half else ""
        rows.append(make("ce_backward", ce_backward_kernel, config, label + place, **constants))
    return list({row.config + row.kernel: row for row in rows}.values())


def _merge_variant() -> Variant:
    import triton.language as tl

    from megaladder.kernels.triton_kernels import configs
    from megaladder.kernels.triton_kernels.merge_stats import merge_kernel

    constants = {"BLOCK": configs.MERGE_BLOCK, "ACC": tl.float32}
    signature = {"targets_ptr": "*i64", "part_stride": "i64"}
    return Variant("merge_stats", "log-prob", merge_kernel, signature, constants, 4, 3, 0)


def _adamw_variant(whole: bool) -> Variant:
    from megaladder.kernels.triton_kernels import adamw

    constants = {"COPY": 1, "WHOLE": whole, "BLOCK": adamw.BLOCK}
    kinds = {"copy_ptr": "*bf16", "num_elements": "i32"}
    scalars = ("lr", "beta1", "beta2", "rest1", "rest2", "unbias1", "unbias2")
    kinds |= dict.fromkeys((*scalars, "eps", "weight_decay", "grad_scale"), "fp32")
    label = (
        f"fp32 states, bf16 copy, {'' if whole else 'a last block of 16 n, '}{adamw.WARPS} warps"
    )
    return Variant("adamw", label, adamw.adamw_kernel, kinds, constants, adamw.WARPS, 3, 0)


def _compile(variant: Variant):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = variant.function.arg_names
    signature, aligned = {}, []
    for name in names:
        if name in variant.constants:
            signature[name] = "constexpr"
            continue
        default = "*fp32" if name.endswith("_ptr") else "i32"
        signature[name] = variant.signature.get(name, default)
        if signature[name].startswith("*") or name in ("row_stride", "out_stride", "num_elements"):
            aligned.append(name)
    source = ASTSource(
        fn=variant.function,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in variant.constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {
        "num_warps": variant.num_warps,
        "num_stages": variant.num_stages,
        "enable_fp_fusion": True,
    }
    return triton.compile(source, target=GPUTarget(*TARGET), options=options)


@cache
def _tools() -> Path:
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def _run_on_cubin(cubin: bytes, tool: str, *flags: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        return subprocess.run(
            [str(_tools() / tool), *flags, str(path)], check=True, capture_output=True, text=True
        ).stdout


@dataclass(frozen=True, slots=True)
class Loop:
    """Operation names between a label and the branch back to it, by position in the listing."""

    first: int
    last: int
    operations: tuple[str, ...]

    def count(self, prefix: str) -> int:
        return sum(op.startswith(prefix) for op in self.operations)


def parse_loops(listing: str) -> tuple[list[str], list[Loop]]:
    """All operations of a disassembly, and its loops."""
    operations: list[str] = []
    labels: dict[str, int] = {}
    spans = []
    for line in listing.splitlines():
        label = _LABEL.match(line)
        if label:
            labels[label.group(1)] = len(operations)
        instruction = _INSTRUCTION.match(line)
        if not instruction:
            continue
        operations.append(instruction.group(1))
        goal = (
            _BRANCH.search(instruction.group(2)) if instruction.group(1).startswith("BRA") else None
        )
        if goal and goal.group(1) in labels and labels[goal.group(1)] < len(operations) - 1:
            spans.append((labels[goal.group(1)], len(operations) - 1))
    return operations, [Loop(a, b, tuple(operations[a : b + 1])) for a, b in spans]


def _column_loops(loops: list[Loop]) -> list[Loop]:
    """Loops over whole column blocks: those with 128-bit global loads."""
    return [
        loop
        for loop in loops
        if any(op.startswith("LDG") and ".128" in op for op in loop.operations)
    ]


def _per_element(variant: Variant, loops: list[Loop]) -> float | None:
    passes = [_loop_cost(variant, loop) for loop in _column_loops(loops)]
    if not passes:
        return None
    # the second loop is the guarded pass, which only rows with −inf columns take
    return passes[0] if variant.constants.get("ENTROPY") else sum(passes)


def _loop_cost(variant: Variant, loop: Loop) -> float:
    wide = sum(op.startswith("LDG") and ".128" in op for op in loop.operations)
    return len(loop.operations) / (wide * variant.elements_per_vector)


def _load_bits(operations: list[str]) -> int:
    widths = [0]
    for op in operations:
        if op.startswith("LDG"):
            widths.append(next((int(w) for w in ("128", "64") if f".{w}" in op), 32))
    return max(widths)


def report_on(variant: Variant) -> Report:
    """Compiles one variant and reads its machine code."""
    compiled = _compile(variant)
    cubin = compiled.asm["cubin"]
    usage = _run_on_cubin(cubin, "cuobjdump", "-res-usage")
    operations, loops = parse_loops(_run_on_cubin(cubin, "nvdisasm", "-c"))
    main = _column_loops(loops)
    per_element = _per_element(variant, loops)
    return Report(
        kernel=variant.kernel,
        config=variant.config,
        registers=int(re.search(r"REG:(\d+)", usage).group(1)),
        spills=sum(op.startswith(("LDL", "STL")) for op in operations),
        shared_bytes=int(compiled.metadata.shared),
        instr_per_element=None if per_element is None else round(per_element, 2),
        ld_bits_max=_load_bits(operations),
        loop_shuffles=sum(loop.count("SHFL") for loop in main),
        loop_barriers=sum(loop.count("BAR") for loop in main),
    )


def markdown(reports: list[Report]) -> str:
    """The table as Markdown."""
    columns = (
        "kernel",
        "configuration",
        "registers",
        "spills",
        "shared bytes",
        "instr/elem",
        "loop SHFL/BAR",
        "widest load",
    )
    lines = ["| " + " | ".join(columns) + " |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for r in reports:
        per_element = "–" if r.instr_per_element is None else f"{r.instr_per_element:.1f}"
        loops = f"{r.loop_shuffles}/{r.loop_barriers}"
        cells = (
            r.kernel,
            r.config,
            r.registers,
            r.spills,
            r.shared_bytes,
            per_element,
            loops,
            r.ld_bits_max,
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the list of reports to this file")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument(
        "--only",
        default="",
        help="only configurations whose 'kernel [configuration]' matches this regular expression",
    )
    arguments = parser.parse_args()
    # interpreted functions cannot be compiled: start over without it
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        return subprocess.run(
            [sys.executable, "-m", "megaladder.tools.kernel_report", *sys.argv[1:]],
            env=clean,
            check=False,
        ).returncode
    reports = [
        report_on(variant)
        for variant in variants()
        if re.search(arguments.only, f"{variant.kernel} [{variant.config}]")
    ]
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(r) for r in reports], indent=1) + "\n")
    if arguments.markdown or not arguments.json:
        print(markdown(reports))
    return 0


if __name__ == "__main__":
    sys.exit(main())
