"""Times both conversions of a random model against a plain copy of the same files in the same run.

Peak memory of each.

    python tools/bench_convert.py --gb 1        or        megaladder bench convert --gb 1

Every step runs `repeats` times in a process of its own (imports not counted in the seconds), in
turns, so that all steps see the same disk and page cache; the median is reported. "copy" is
`shutil.copyfile` of the weights, read and written once like a conversion. On a machine that is busy
with other work the CPU seconds are the steadier figure. Memory: `anonymous` is what the process
allocated and the kernel cannot drop, as growth over the process before the step; `resident` is its
ru_maxrss, which also counts the mapped pages of the input file and the libraries.
"""

from __future__ import annotations

import filecmp
import json
import multiprocessing
import resource
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from megaladder.config.verbs.convert import BenchConvertConfig

_STEPS = ("copy", "hf-to-megatron", "megatron-to-hf")
_VOCABULARY, _HIDDEN, _FFN = 32768, 1024, 3072


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step took.

    Wall seconds (median and all), CPU seconds (median), and memory in bytes (largest of the
    repeats)."""

    seconds: float
    all_seconds: list[float]
    cpu_seconds: float
    anonymous_peak_bytes: int
    resident_peak_bytes: int


def random_model(folder: Path, num_gb: float, seed: int) -> int:
    """Writes a random bf16 Qwen3 (untied) of about `num_gb` GB as an HF folder.

    Returns the bytes of its weights."""
    from megaladder.model.hf_config import model_shape

    config = {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": _HIDDEN,
        "intermediate_size": _FFN,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": _VOCABULARY,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 4096,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "num_hidden_layers": 1,
    }
    one_layer = model_shape(config)
    per_layer = one_layer.num_parameters - 2 * _VOCABULARY * _HIDDEN - _HIDDEN
    config["num_hidden_layers"] = max(
        1, round((num_gb * 1e9 / 2 - 2 * _VOCABULARY * _HIDDEN) / per_layer)
    )
    return write_random_model(folder, config, seed)


def write_random_model(folder: Path, config: dict[str, Any], seed: int) -> int:
    """Writes bf16 weights for a config.json's content, tensor by tensor, as an HF folder.

    Returns their bytes."""
    import torch

    from megaladder.checkpoints_conv.families import name_table
    from megaladder.checkpoints_conv.writer import HFWriter, TensorSpec, WriteOptions
    from megaladder.model.hf_config import model_shape

    source = folder.with_name(folder.name + "-config")
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    specs = [
        TensorSpec(name, shape, torch.bfloat16)
        for name, shape in name_table(model_shape(config)).hf_shapes.items()
    ]
    generator = torch.Generator().manual_seed(seed)
    with HFWriter(folder, specs, WriteOptions()) as writer:
        for spec in specs:
            writer.write(spec.name, torch.randn(spec.shape, generator=generator))
        writer.commit(source)
    return sum(spec.num_bytes for spec in specs)


def _copy(source: Path, target: Path) -> None:
    target.mkdir()
    for path in sorted(source.glob("*.safetensors")):
        shutil.copyfile(path, target / path.name)


def _steps(work: Path) -> dict[str, Callable[[Path], Any]]:
    from megaladder.checkpoints_conv.hf_to_megatron import convert_to_megatron
    from megaladder.checkpoints_conv.megatron_to_hf import convert_to_hf

    return {
        "copy": lambda out: _copy(work / "hf", out),
        "hf-to-megatron": lambda out: convert_to_megatron(work / "hf", out),
        "megatron-to-hf": lambda out: convert_to_hf(work / "megatron", out),
    }


def anonymous_bytes() -> int:
    """Memory of this process that is no page of a file."""
    status = Path("/proc/self/status").read_text()
    return next(
        (int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")),
        0,
    )


def _measure(step: str, work: Path, queue: Any) -> None:
    """Runs one step in this process and measures it.

    Reports (seconds, CPU seconds, anonymous growth, ru_maxrss)."""
    action, out = _steps(work)[step], work / f"out-{step}"
    stop, peak, before = threading.Event(), 0, anonymous_bytes()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.005):
            peak = max(peak, anonymous_bytes() - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    began, cpu_began = time.perf_counter(), time.process_time()
    action(out)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    stop.set()
    watcher.join()
    queue.put(
        (
            seconds,
            cpu_seconds,
            max(peak, anonymous_bytes() - before),
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )
    )


def _run(step: str, work: Path, queue: Any) -> tuple[float, float, int, int]:
    # a fresh process: its peak is the step's, not the parent's
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_measure, args=(step, work, queue))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"step {step} failed with exit status {process.exitcode}")
    return queue.get()


def measure(work: Path, repeats: int) -> dict[str, StepResult]:
    """All steps in turns.

    `work/hf` holds the model; the last outputs stay, `work/megatron` among them."""
    queue = multiprocessing.get_context("spawn").Queue()
    found: dict[str, list[tuple[float, float, int, int]]] = {step: [] for step in _STEPS}
    for _ in range(repeats):
        for step in _STEPS:
            shutil.rmtree(work / f"out-{step}", ignore_errors=True)
            found[step].append(_run(step, work, queue))
            if step == "hf-to-megatron":
                shutil.rmtree(work / "megatron", ignore_errors=True)
                (work / "out-hf-to-megatron").rename(work / "megatron")
    return {
        step: StepResult(
            seconds=statistics.median(r[0] for r in rows),
            all_seconds=[r[0] for r in rows],
            cpu_seconds=statistics.median(r[1] for r in rows),
            anonymous_peak_bytes=max(r[2] for r in rows),
            resident_peak_bytes=max(r[3] for r in rows),
        )
        for step, rows in found.items()
    }


def run_bench_convert(config: BenchConvertConfig) -> int:
    """The verb `bench convert`; exit status 0."""
    from megaladder.log import format_table
    from megaladder.run_dir import atomic_write, to_json

    if config.folder is not None:
        config.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-convert-", dir=config.folder) as folder:
        work = Path(folder)
        num_bytes = random_model(work / "hf", config.gb, config.seed)
        results = measure(work, config.repeats)
        back = work / "out-megatron-to-hf"
        same = all(
            filecmp.cmp(path, back / path.name, shallow=False)
            for path in (work / "hf").glob("*.safetensors")
        )
    copy_s = results["copy"].seconds
    rows = [
        (
            step,
            (
                f"{r.seconds:.2f} s  (CPU {r.cpu_seconds:.2f} s)  {num_bytes / 1e9 / r.seconds:.2f}"
                f" GB/s  {r.seconds / copy_s:.2f} × copy  anonymous"
                f" +{r.anonymous_peak_bytes / 1e6:.0f} MB  resident"
                f" {r.resident_peak_bytes / 1e6:.0f} MB"
            ),
        )
        for step, r in results.items()
    ]
    rows.append(("round trip", "bit-exact" if same else "DIFFERENT"))
    print(
        format_table(f"conversion of {num_bytes / 1e9:.3f} GB (median of {config.repeats})", rows)
    )
    if config.json_file is not None:
        report = {
            "num_bytes": num_bytes,
            "round_trip_exact": same,
            "steps": {step: asdict(result) for step, result in results.items()},
        }
        atomic_write(config.json_file, to_json(report, sort_keys=True, indent=2) + "\n")
    return 0 if same else 1


def main() -> int:
    """`python tools/bench_convert.py`."""
    from megaladder.config.resolve import resolve

    return run_bench_convert(
        resolve(BenchConvertConfig, sys.argv[1:], prog="bench_convert", takes_yaml=False)
    )


if __name__ == "__main__":
    raise SystemExit(main())
