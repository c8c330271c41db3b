"""Times the loss head against its peers in one interleaved loop.

And against what the machine could do.

    python -m megaladder.tools.bench_kernels --head --rounds 7 --csv F --markdown F   # one GPU
    python -m megaladder.tools.bench_kernels --csv F --markdown F   # one GPU: a sweep of shapes
    python -m megaladder.tools.bench_kernels --checks   # one GPU: CUDA graph, torch.compile, …
    python -m megaladder.tools.bench_kernels --memory   # CPU: peak bytes per token of an SFT head
    python -m megaladder.tools.bench_kernels --fp8-errors   # CPU: gradient products in eight bits

Every round runs all contenders of a shape once, in another order (rotations of a fixed shuffle),
next to a copy of as many bytes as the logits hold and to the bare three matrix products: ratios
within a round cancel the clock. A peer that is not installed, or fails, is a row with its reason.
Shards V/2 … V/8 are shapes on one device: no communication is timed. Figures from a CPU are a smoke
test only. Ours is what training runs (float32 main_grad, active rows known, the trainer's loss with
its metrics); the device waits before each call, so that no host time is measured.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import itertools
import random
import statistics
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from megaladder.tools.kernel_peers.contenders import (
    CONTENDERS,
    LOGP_BASELINE,
    STEP_BASELINE,
    Call,
    Inputs,
    Shape,
    step_loss,
)

if TYPE_CHECKING:
    # needs pydantic, which a bare GPU machine lacks
    from megaladder.config.verbs.bench import BenchKernelsConfig

CASES = (
    "logp",
    "logp+entropy",
    "sft step",
    "grpo step",
    "grpo step 50% inactive",
    "grpo step 50% inactive, 20% prompt",
)


_H, _V = 5120, 151_936
HEAD_TABLE = (
    Shape("sft step", 8192, _H, _V),
    Shape("grpo step", 8192, _H, _V),
    Shape("grpo step 50% inactive, 20% prompt", 8192, _H, _V),
    Shape("grpo step 50% inactive", 8192, _H, _V),
    Shape(
        "sft step", 2048, _H, _V // 8
    ),  # tensor parallel over eight ranks, communication left out
    Shape("grpo step", 2048, _H, _V // 8),
    Shape("sft step", 8192, _H, 151_669, stored=_V),  # an odd vocabulary
    Shape("logp", 8192, _H, _V // 8),
)
"""The shapes by which the loss head is judged, most important first: Qwen3-14B's head."""


@dataclass(frozen=True, slots=True)
class Row:
    """One contender at one shape.

    Times in ms; ratio: to the baseline of the same loop (copy for log-probs, products for steps).
    """

    case: str
    tokens: int
    hidden: int
    vocab: int
    stored: int
    contender: str
    rounds: int
    median_ms: float | None
    iqr_ms: float | None
    ratio: float | None
    peak_extra_mib: float | None
    max_abs_error: float | None
    sm_clock_mhz: int | None
    note: str


def _sm_clock() -> int | None:
    """Megahertz; None where NVML or its Python package is missing: the clock is an extra."""
    if importlib.util.find_spec("pynvml") is None:
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetClockInfo(
            pynvml.nvmlDeviceGetHandleByIndex(0), pynvml.NVML_CLOCK_SM
        )
    except pynvml.NVMLError:
        return None


def _time_ms(call: Call, device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e3
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    # the device waits about 4 ms first: launches run ahead and no host time is measured, as in a
    # training step, where the layers before the head keep the device busy
    torch.cuda._sleep(8_000_000)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def _truth(inputs: Inputs, rows: int = 32) -> torch.Tensor:
    """float64: log-probs (and entropy) of the first rows, or d hidden of the first rows."""
    x, w = inputs.hidden[:rows].detach().double(), inputs.weight.detach().double()
    if inputs.logits is not None:
        logs = torch.log_softmax(inputs.logits[:rows].double(), -1)
        logp = logs.gather(1, inputs.targets[:rows].unsqueeze(1)).squeeze(1)
        return (
            torch.stack([logp, -(logs.exp() * logs).sum(1)])
            if "entropy" in inputs.shape.case
            else logp
        )
    x.requires_grad_()
    logp = torch.log_softmax(x @ w.t(), -1).gather(1, inputs.targets[:rows].unsqueeze(1)).squeeze(1)
    part = Inputs.__new__(Inputs)
    part.shape, part.advantages = inputs.shape, inputs.advantages[:rows]
    part.old_logp = None if inputs.old_logp is None else inputs.old_logp[:rows]
    part.rows = None
    step_loss(logp, part).backward()
    return x.grad


def _error(found: torch.Tensor | None, truth: torch.Tensor) -> float | None:
    if found is None or found.dim() != truth.dim():
        return None
    part = (
        found[:, : truth.shape[1]]
        if found.dim() == 2 and found.shape[0] == 2 and truth.shape[0] == 2
        else found[: truth.shape[0]]
    )
    return (part.double() - truth).abs().max().item() if part.shape == truth.shape else None


def measure(
    shape: Shape, device: torch.device, rounds: int, skip: tuple[str, ...] = ()
) -> list[Row]:
    """All contenders at one shape; `rounds` interleaved rounds after one warm-up call each."""
    inputs = Inputs(shape, device)
    truth, calls, rows, peaks, errors = _truth(inputs), {}, [], {}, {}
    for name, make in CONTENDERS.items():
        if name in skip:
            continue
        try:
            call = make(inputs)
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
            found = call()
            peaks[name] = (
                (torch.cuda.max_memory_allocated() - before) / 2**20
                if device.type == "cuda"
                else None
            )
            errors[name] = (
                _error(found, truth) if name not in (LOGP_BASELINE, STEP_BASELINE) else None
            )
            calls[name] = call
        except Exception as reason:  # noqa: BLE001, whatever a peer raises is its row in the table
            text = f"{type(reason).__name__}: {reason}".splitlines()[0][:120]
            rows.append(
                Row(**asdict(shape), contender=name, rounds=0, note=text, **dict.fromkeys(_FIGURES))
            )
            inputs.clear()
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    random.Random(0).shuffle(order)
    clocks = []
    for number in range(rounds):
        shift = number % len(order)
        for name in order[shift:] + order[:shift]:
            times[name].append(_time_ms(calls[name], device))
        clocks.append(_sm_clock())
    base = statistics.median(times[LOGP_BASELINE if inputs.logits is not None else STEP_BASELINE])
    clock = next((c for c in reversed(clocks) if c), None)
    for name, values in times.items():
        low, middle, high = (
            statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
        )
        figures = (middle, high - low, middle / base, peaks[name], errors[name], clock)
        rows.append(
            Row(
                **asdict(shape),
                contender=name,
                rounds=rounds,
                note="",
                **dict(zip(_FIGURES, figures, strict=True)),
            )
        )
    return rows


_FIGURES = ("median_ms", "iqr_ms", "ratio", "peak_extra_mib", "max_abs_error", "sm_clock_mhz")


def markdown(rows: list[Row], device: torch.device) -> str:
    """The table; on a GPU with its name."""
    title = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else "CPU, a smoke test of the benchmark: says nothing about the kernels"
    )
    lines = [
        (
            f"Device: {title}; torch {torch.__version__}. Ratio: to the copy (log-probs) or the"
            " three products (steps) of the same loop."
        ),
        "",
    ]
    names = [field.name for field in fields(Row)]
    lines += ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = [
            ("–" if v is None else f"{v:.3g}" if isinstance(v, float) else str(v))
            for v in asdict(row).values()
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def shapes(arguments: argparse.Namespace) -> list[Shape]:
    """The shapes to measure, the smallest token count of every combination first.

    So that a time limit cuts the largest."""
    if arguments.head:
        return list(HEAD_TABLE)
    combinations = itertools.product(
        arguments.tokens, arguments.hidden, arguments.shards, arguments.cases
    )
    return [
        Shape(case, tokens, hidden, -(-arguments.vocab // shards))
        for tokens, hidden, shards, case in combinations
    ]


def run_table(arguments: argparse.Namespace) -> int:
    """Measures until the budget is spent; says which shapes are missing."""
    device = torch.device(arguments.device)
    rows: list[Row] = []
    wanted, done, start = shapes(arguments), 0, time.monotonic()
    for shape in wanted:
        if time.monotonic() - start > arguments.budget_s:
            break
        rows += measure(shape, device, arguments.rounds, tuple(arguments.skip))
        done += 1
        if arguments.csv:
            write_csv(arguments.csv, rows)
    table = markdown(rows, device)
    if done < len(wanted):
        table += (
            f"\nNot measured within {arguments.budget_s} s: {len(wanted) - done} of {len(wanted)}"
            f" shapes, from {wanted[done]} on.\n"
        )
    if arguments.markdown:
        arguments.markdown.write_text(table)
    print(table)
    return 0


def write_csv(path: Path, rows: list[Row]) -> None:
    """Rewritten after every shape: a run that is cut off leaves what it had."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def run_checks() -> int:
    """Prints each check of `gpu_checks`; exit status 1 when one fails, 2 without a CUDA device."""
    if not torch.cuda.is_available():
        print("not measured: no CUDA device here; fix: run --checks on one")
        return 2
    from megaladder.tools.kernel_peers.gpu_checks import CHECKS

    failed = 0
    for check in CHECKS:
        try:
            print(f"{check.__name__}: ok, {check()}")
        except (AssertionError, RuntimeError) as reason:
            failed += 1
            print(f"{check.__name__}: FAILED, {reason}")
        torch.cuda.empty_cache()
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 16384, 32768])
    parser.add_argument("--hidden", type=int, nargs="+", default=[4096, 2048, 5120])
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument(
        "--skip", nargs="+", choices=list(CONTENDERS), default=[], help="contenders to leave out"
    )
    parser.add_argument(
        "--head", action="store_true", help="the head's own eight shapes instead of the sweep"
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--budget-s", type=float, default=540.0)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--checks", action="store_true")
    parser.add_argument(
        "--fp8-errors",
        action="store_true",
        help="what eight bits would do to the gradients; on a CPU",
    )
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--memory-tokens", type=int, nargs="+", default=[128, 256, 512, 1024])
    parser.add_argument(
        "--memory-child", nargs=4, metavar=("VARIANT", "T", "H", "V"), help=argparse.SUPPRESS
    )
    arguments = parser.parse_args(argv)
    if arguments.memory or arguments.memory_child:
        from megaladder.tools.kernel_peers.memory import memory_table, peak_bytes_per_token

        if arguments.memory_child:
            variant, *sizes = arguments.memory_child
            print(peak_bytes_per_token(variant, *map(int, sizes)))
        else:
            print(memory_table(arguments.memory_tokens, 64, arguments.vocab))
        return 0
    if arguments.fp8_errors:
        from megaladder.tools.kernel_peers.fp8_error import table

        print(table())
        return 0
    if arguments.checks:
        return run_checks()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("not measured: no CUDA device here; fix: run this command on one, or --device cpu")
        return 2
    if arguments.device == "cpu" and (arguments.head or arguments.tokens[0] > 1024):
        print(
            "not measured: these sizes need a CUDA device; fix: run this command on one, or give"
            " small --tokens --hidden --vocab for a smoke test, without --head"
        )
        return 2
    return run_table(arguments)


def run_bench_kernels(config: BenchKernelsConfig) -> int:
    """The verb `bench kernels`: the same as the command, from a configuration."""
    words: list[str] = []
    for name in ("tokens", "hidden", "shards"):
        words += [f"--{name}", *map(str, getattr(config, name))]
    for name in ("vocab", "rounds", "budget_s", "device", "csv", "markdown"):
        value = getattr(config, name)
        words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    flags = [f"--{name}" for name in ("checks", "head") if getattr(config, name)]
    return main([*words, *flags])


if __name__ == "__main__":
    sys.exit(main())
