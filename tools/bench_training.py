"""Tokens/s of an SFT step.

Ours (one process, packed) against plain transformers loops, side by side in one run.

    megaladder bench train --data data/gsm8k/train.jsonl
    python tools/bench_training.py --data data/gsm8k/train.jsonl --profile
    megaladder bench train --shape qwen3-14b --layers 12 --fp8 tensorwise          one GPU: TFLOP/s,
    MFU, memory, phases

Every contender trains the same random Qwen3 on the same samples with fused AdamW and gradient
clipping; one round times one step of each, so that what else the machine does hits all of them.
Tokens are real tokens (no padding). Not here: many ranks, GPUs (tools/gpu_acceptance.py),
convergence.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from megaladder import parallel
from megaladder.config.resolve import resolve
from megaladder.config.sections.shared import OptimSection
from megaladder.config.verbs.bench import BenchTrainConfig
from megaladder.errors import ConfigError, MegaladderError
from megaladder.parallel import Layout
from megaladder.run_dir import atomic_write, to_json
from megaladder.types import IGNORE_INDEX, PackedBatch, TokenSample

PADDED_BATCH = 8  # rows of a padded batch
OPTIMIZER = OptimSection(lr=1e-4)
KINDS = {  # profiler operation → what a person calls it, first match wins
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("flash_attention",),
    "optimizer": ("_fused_adam", "_foreach", "Optimizer"),
    "gather and copy": ("index", "copy_", "cat", "scatter", "gather"),
}


@dataclass(frozen=True, slots=True)
class Workload:
    """One step's samples and how our packer lays them out."""

    samples: list[TokenSample]
    batches: list[PackedBatch]

    @property
    def num_tokens(self) -> int:
        return sum(sample.num_tokens for sample in self.samples)

    @property
    def num_loss_tokens(self) -> int:
        return sum(int(sample.loss_mask[1:].sum()) for sample in self.samples)


def workload(config: BenchTrainConfig, model: Path) -> Workload:
    """The samples of a bench and their packed micro-batches of one global batch, on one rank.

    Raises ConfigError when the data has fewer samples than asked for.
    """
    from megaladder.data.chat.tokenizer import load_tokenizer, tokenizer_fingerprint
    from megaladder.data.pack import PackSpec, build_micro_batches, plan_global_batch
    from megaladder.data.sources.find import SourceSpec
    from megaladder.data.store_build import DataSpec, open_store

    store = open_store(
        DataSpec(SourceSpec(config.data), config.seq_length),
        load_tokenizer(model),
        tokenizer_fingerprint(model),
    )
    if len(store) < config.samples:
        raise ConfigError(
            f"{config.data}: {len(store)} samples, --samples asks for {config.samples}; fix:"
            f" --samples {len(store)}"
        )
    chosen = np.random.default_rng(config.seed).permutation(len(store))[: config.samples]
    samples = [store[int(i)] for i in chosen]
    plan = plan_global_batch(
        [s.num_tokens for s in samples], np.arange(len(samples)), PackSpec(config.seq_length), 1
    )
    return Workload(samples, build_micro_batches(plan, 0, lambda i: samples[i]))


def ours(model: Path, work: Workload, precision: str) -> Callable[[], float]:
    """Our trainer's step.

    megatron-core schedule, portable layers, loss head, distributed optimizer."""
    from megaladder.checkpoints_conv.live_model import load_hf_into_chunks
    from megaladder.model.build import BuildOptions, build_chunks
    from megaladder.model.hf_config import model_shape, read_config_json
    from megaladder.train.objectives.losses import sft_head, sft_loss
    from megaladder.train.optimizer import build_optimizer, guarded_update, wrap_chunks, zero_grad
    from megaladder.train.step import run_micro_batches
    from megaladder.types import TokenWeighting

    shape, options = model_shape(read_config_json(model)), BuildOptions(precision=precision)
    chunks = build_chunks(shape, Layout(), options)
    load_hf_into_chunks(chunks, model, shape)
    wrapped = wrap_chunks(chunks)
    optimizer, loss = build_optimizer(wrapped, OPTIMIZER, options), sft_loss(TokenWeighting.VANILLA)

    def step() -> float:
        zero_grad(wrapped, optimizer)
        sums = run_micro_batches(
            wrapped, work.batches, loss, head=sft_head(TokenWeighting.VANILLA, loss)
        )
        guarded_update(optimizer, sums.loss, OPTIMIZER.lr)
        return sums.mean_loss

    return step


def _transformers_step(
    model: Path, precision: str, rows: list[dict[str, Any]], num_loss_tokens: int
) -> Callable[[], float]:
    """A plain loop over micro-batches: forward, cross-entropy over labelled tokens, backward; clip.

    AdamW."""
    from transformers import AutoModelForCausalLM

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    network = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=OPTIMIZER.lr, weight_decay=OPTIMIZER.weight_decay, fused=True
    )

    def step() -> float:
        optimizer.zero_grad()
        total = 0.0
        for row in rows:
            logits = network(**row["inputs"], use_cache=False).logits
            loss = (
                torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1).float(),
                    row["labels"].flatten(),
                    ignore_index=IGNORE_INDEX,
                    reduction="sum",
                )
                / num_loss_tokens
            )
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(network.parameters(), OPTIMIZER.clip_grad)
        optimizer.step()
        return total

    return step


def padded_rows(samples: list[TokenSample]) -> list[dict[str, Any]]:
    """Batches of PADDED_BATCH samples, padded right to their longest; labels shifted."""
    rows = []
    for begin in range(0, len(samples), PADDED_BATCH):
        group = samples[begin : begin + PADDED_BATCH]
        width = max(sample.num_tokens for sample in group)
        ids, mask = (
            torch.zeros(len(group), width, dtype=torch.long),
            torch.zeros(len(group), width, dtype=torch.long),
        )
        labels = torch.full((len(group), width), IGNORE_INDEX)
        for row, sample in enumerate(group):
            n = sample.num_tokens
            ids[row, :n], mask[row, :n] = torch.from_numpy(sample.input_ids.astype(np.int64)), 1
            labels[row, : n - 1] = torch.where(
                torch.from_numpy(np.array(sample.loss_mask[1:])), ids[row, 1:n], IGNORE_INDEX
            )
        rows.append({"inputs": {"input_ids": ids, "attention_mask": mask}, "labels": labels})
    return rows


def packed_rows(batches: list[PackedBatch]) -> list[dict[str, Any]]:
    """Our packed rows for transformers.

    Position ids that restart, and a block-diagonal causal mask."""
    rows = []
    for batch in batches:
        lengths = torch.from_numpy(np.diff(batch.cu_seqlens)).long()
        sequence = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        mask = (sequence[:, None] == sequence[None, :]).tril()
        rows.append(
            {
                "inputs": {
                    "input_ids": torch.from_numpy(batch.input_ids_t)[None],
                    "position_ids": torch.from_numpy(batch.position_ids_t)[None],
                    "attention_mask": mask[None, None],
                },
                "labels": torch.from_numpy(batch.labels_t)[None],
            }
        )
    return rows


def measure(config: BenchTrainConfig, hidden: int, folder: Path) -> dict[str, Any]:
    """One size: median tokens/s of each contender and the ratios to ours."""
    model, work = folder, workload(config, folder)
    makers: dict[str, Callable[[], Callable[[], float]]] = {
        "ours": lambda: ours(model, work, config.precision),
        "padded": lambda: _transformers_step(
            model, config.precision, padded_rows(work.samples), work.num_loss_tokens
        ),
        "sorted": lambda: _transformers_step(
            model,
            config.precision,
            padded_rows(sorted(work.samples, key=lambda s: s.num_tokens)),
            work.num_loss_tokens,
        ),
        "packed": lambda: _transformers_step(
            model, config.precision, packed_rows(work.batches), work.num_loss_tokens
        ),
    }
    unknown = set(config.contenders) - set(makers)
    if unknown:
        raise ConfigError(
            f"--contenders {sorted(unknown)}: not known; fix: choose from {', '.join(makers)}"
        )
    steps = {name: makers[name]() for name in config.contenders}
    # the warm-up; all start from the same weights
    losses = {name: step() for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(config.rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    rates = {name: work.num_tokens / median(times) for name, times in seconds.items()}
    result: dict[str, Any] = {
        "hidden": hidden,
        "tokens": work.num_tokens,
        "first_loss": losses,
        "tokens_per_s": rates,
        "ratio": {
            name: rates["ours"] / rate
            for name, rate in rates.items()
            if "ours" in rates and name != "ours"
        },
        "non_padding_share": (
            work.num_tokens / sum(len(batch.input_ids_t) for batch in work.batches)
        ),
    }
    if config.profile and "ours" in steps:
        result["profile"] = profile(steps["ours"])
    return result


def profile(step: Callable[[], float]) -> dict[str, float]:
    """Share of one step's CPU time by kind of operation."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        step()
    shares = dict.fromkeys([*KINDS, "element-wise and the rest"], 0.0)
    for event in recorded.key_averages():
        kind = next(
            (kind for kind, names in KINDS.items() if any(name in event.key for name in names)),
            "element-wise and the rest",
        )
        shares[kind] += event.self_cpu_time_total
    total = sum(shares.values())
    return {kind: share / total for kind, share in shares.items()}


def run_shape(config: BenchTrainConfig) -> int:
    """Our step alone at a model's layer shapes, on this process's device."""
    from megaladder import platform
    from megaladder.capabilities import fp8_fix, fp8_problem
    from megaladder.tools.acceptance.step_bench import Work
    from megaladder.tools.acceptance.step_bench import measure as measure_step

    machine = platform.machine()
    if config.fp8 and (reason := fp8_problem(config.fp8, machine)):
        raise ConfigError(
            f"--fp8 {config.fp8}: {reason}; fix:"
            f" {fp8_fix(config.fp8, machine).replace('train.fp8', '--fp8')}"
        )
    parallel.initialize(Layout())
    result = measure_step(
        Work(
            shape=config.shape,
            layers=config.layers,
            sequence=config.sequence,
            micro_batch_tokens=config.micro_batch_tokens,
            micro_batches=config.micro_batches,
            precision=config.precision,
            fp8=config.fp8,
            recompute=config.recompute,
            warmup=config.warmup,
            steps=config.rounds,
        ),
        profile_folder=Path(config.profile_dir) if config.profile_dir else None,
    )
    parallel.shutdown()
    mfu = (
        f"{result['mfu']:.1%} of the bf16 peak"
        if result["mfu"]
        else "not measured (peak of this device not known)"
    )
    precision = config.precision + (f" + FP8 {config.fp8}" if config.fp8 else "")
    print(
        f"{config.shape}, {result['layers']} layers ({result['parameters'] / 1e9:.3f} G"
        f" parameters), {precision}, {config.micro_batches} × {config.micro_batch_tokens:,} tokens,"
        f" on {machine.device}"
    )
    rate = f"{result['tokens_per_s']:,.0f} tokens/s{'/GPU' if machine.has_cuda else ''}"
    print(
        f"step {result['step_s']:.4g} s (median of {config.rounds}, {config.warmup} warm-up)  "
        f" {rate}   {result['tflops']:.4g} TFLOP/s   MFU {mfu}   peak"
        f" {result['memory_peak_bytes'] / 1024**3:.2f} GiB"
    )
    for name, seconds in result["phases_s"].items():
        print(f"    {seconds:10.4g} s  {name}")
    if config.json_out:
        atomic_write(
            config.json_out,
            to_json({"device": machine.device, **result}, sort_keys=True, indent=1) + "\n",
        )
    return 0


def run_bench_train(config: BenchTrainConfig) -> int:
    """Measures every size and prints a table."""
    if config.shape:
        return run_shape(config)
    from transformers import AutoModelForCausalLM, Qwen3Config
    from transformers.utils import logging as transformers_logging

    from megaladder.tools.make_tiny_model import TinyModelConfig, write_tiny_model

    transformers_logging.disable_progress_bar()
    parallel.initialize(Layout())
    results = []
    print(
        f"threads {torch.get_num_threads()}, {config.samples} samples a step, rows of"
        f" {config.seq_length}, {config.layers} layers, vocabulary {config.vocab_size},"
        f" {config.precision}, median of {config.rounds} rounds"
    )
    for hidden in config.hidden_sizes:
        heads = hidden // (64 if hidden >= 256 else 32)
        with tempfile.TemporaryDirectory() as folder:
            write_tiny_model(
                TinyModelConfig(
                    data=config.data,
                    out=folder,
                    vocab_size=config.vocab_size,
                    hidden=hidden,
                    layers=config.layers,
                    heads=heads,
                    kv_heads=max(1, heads // 2),
                    ffn=3 * hidden,
                )
            )
            torch.manual_seed(config.seed)
            AutoModelForCausalLM.from_config(
                Qwen3Config.from_pretrained(folder), dtype=torch.float32
            ).save_pretrained(folder)
            result = measure(config, hidden, Path(folder))
        results.append(result)
        rates = "  ".join(
            f"{name} {rate:,.0f} tok/s" for name, rate in result["tokens_per_s"].items()
        )
        ratios = "  ".join(f"ours/{name} {ratio:.2f}×" for name, ratio in result["ratio"].items())
        print(
            f"hidden {hidden}: {rates}  |  {ratios}  |  filled {result['non_padding_share']:.1%}",
            flush=True,
        )
        for kind, share in result.get("profile", {}).items():
            print(f"    {share:6.1%}  {kind}")
    parallel.shutdown()
    if config.json_out:
        atomic_write(
            config.json_out,
            to_json(
                {"threads": torch.get_num_threads(), "results": results}, sort_keys=True, indent=1
            )
            + "\n",
        )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(
            run_bench_train(
                resolve(BenchTrainConfig, sys.argv[1:], prog="bench_training", takes_yaml=False)
            )
        )
    except MegaladderError as error:
        print(f"bench_training: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
