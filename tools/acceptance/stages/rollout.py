"""A real vLLM beside the trainer.

Each weight transport with its seconds and checksums, and how far the engine's log-probs are from
the trainer's, over three GRPO steps from the exported SFT model; then the transfer alone at the
width of Qwen3-14B.
"""

from __future__ import annotations

import shutil
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from megaladder.errors import MegaladderError
from megaladder.tools.acceptance.context import Context, StageSkipped
from megaladder.tools.acceptance.stages.sft import exported
from megaladder.tools.acceptance.step_bench import slice_of

STEPS = 3
SIZE_LAYERS = 4  # of Qwen3-14B, for the transfer at size


def run(context: Context) -> dict[str, Any]:
    """Each transport that is possible here; the fastest decides the figures."""
    model = exported(context)
    if find_spec("vllm") is None:
        raise StageSkipped(
            "vLLM is not installed; fix: unpack the kit's vllm parts (tools/gpu_acceptance.py"
            " --kit)"
        )
    if model is None:
        raise StageSkipped("there is no exported SFT model; fix: run the stage sft_curves first")
    transports = {name: _transport(context, model, name) for name in ("file", "ipc", "nccl")}
    worked = {name: found for name, found in transports.items() if "not_run" not in found}
    if not worked:
        raise MegaladderError(
            "no transport worked: "
            + "; ".join(f"{name}: {found['not_run']}" for name, found in transports.items())
        )
    best = min(worked, key=lambda name: worked[name]["sync_s"])
    note = (
        "the model is the one of sft_curves, trained on generated arithmetic; not Qwen3-14B's"
        " weights"
    )
    figures = {
        "steps": STEPS,
        "note": note,
        "transports": transports,
        "fastest": best,
        "precision": worked[best]["precision"],
        "mismatch_mean": worked[best]["mismatch_mean"],
        "mismatch_max": worked[best]["mismatch_max"],
    }
    if not context.tiny:
        figures["at_size"] = _at_size(context, best)
        figures["sync_14b_s"] = figures["at_size"].get("extrapolated_14b_s")
    return figures


def _transport(context: Context, model: Path, transport: str) -> dict[str, Any]:
    problem = _impossible(context, transport)
    if problem:
        return {"not_run": problem}
    try:
        return context.case(transport, partial(_synced, context, model, transport))
    except MegaladderError as error:
        return {"not_run": str(error)[-1500:]}


def _synced(context: Context, model: Path, transport: str) -> dict[str, Any]:
    folder = context.work / f"rollout_{transport}"
    shutil.rmtree(folder, ignore_errors=True)
    context.megaladder(
        f"rollout_{transport}",
        "grpo",
        **grpo_overrides(context, model, folder, STEPS),
        rollout__sync=transport,
        rollout__check_sync="always",
        grpo__skip_zero_advantage=False,  # so that every token is compared with the engine's
        optim__lr=1e-6,
    )
    rows = context.metrics(folder)
    log = (folder / "log.txt").read_text(encoding="utf-8").splitlines()
    syncs = [row["sync_s"] for row in rows[1:]]  # the first step's engine holds the weights already
    return {
        "sync_s": sorted(syncs)[len(syncs) // 2],
        "sync_s_all": syncs,
        "precision": "bf16",
        **_mismatch(rows),
        "checks": [line for line in log if "weights version" in line],
    }


def _mismatch(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the steps that trained on tokens.

    One whose advantages are all zero compares none."""
    compared = [row for row in rows if "mismatch_mean" in row]
    if not compared:
        note = "no step trained on a token"
        return {"mismatch_mean": None, "mismatch_max": None, "mismatch_note": note}
    means = {
        name: sum(row[name] for row in compared) / len(compared)
        for name in ("mismatch_mean", "mismatch_k3")
    }
    return {**means, "mismatch_max": max(row["mismatch_max"] for row in compared)}


def _impossible(context: Context, transport: str) -> str | None:
    if transport == "file":
        return None
    if not context.on_cuda:
        return "it moves CUDA memory; this is a CPU"
    # the engine's half came earlier than the trainer's, `clients`
    halves = ("vllm.distributed.weight_transfer", "vllm.distributed.weight_transfer.clients")
    if any(find_spec(half) is None for half in halves):
        return "this vLLM has no native weight transfer; fix: vLLM 0.28 or later"
    if transport == "nccl" and torch.cuda.device_count() < 2:
        return "NCCL joins two devices, the trainer's and the engine's; there is one GPU here"
    return None


def grpo_overrides(context: Context, model: Path, folder: Path, steps: int) -> dict[str, Any]:
    """A short run from the SFT model on problems of the same kind."""
    problems = context.work / "problems.jsonl"
    if not problems.exists():
        fresh = context.work / "problems.tmp.jsonl"
        context.megaladder(
            "problems", "data", "make", "arithmetic", form="problem", rows=2000, seed=7, out=fresh
        )
        fresh.rename(problems)
    sizes = (
        {
            "rollout__n": 4,
            "grpo__prompts_per_step": 4,
            "rollout__max_tokens": 32,
            "data__seq_length": 512,
        }
        if context.tiny
        else {
            "rollout__n": 16,
            "grpo__prompts_per_step": 64,
            "rollout__max_tokens": 512,
            "data__seq_length": 4096,
        }
    )
    return {
        "run_dir": folder,
        "model__path": model,
        "data__path": problems,
        "train__max_steps": steps,
        "train__precision": "bf16",
        "checkpoint__every": 0,
        "rollout__gpu_memory_utilization": 0.35,
        "grpo__dynamic_sampling": "none",
        "grpo__mismatch_limit": 5.0,
        "reward__kind": "math",
        "reward__workers": 1,
        **sizes,
    }


def _at_size(context: Context, transport: str) -> dict[str, Any]:
    """The transfer of a few layers of Qwen3-14B's width, by bytes up to all 40 layers.

    An extrapolation."""
    import sys

    from megaladder.tools.acceptance.step_bench import SHAPES

    raw, folder, run = (
        SHAPES["qwen3-14b"],
        context.work / "wide_model",
        context.work / "rollout_at_size",
    )
    shutil.rmtree(run, ignore_errors=True)
    try:
        if not (folder / "config.json").exists():
            flags = [
                "--hidden",
                str(raw["hidden_size"]),
                "--ffn",
                str(raw["intermediate_size"]),
                "--layers",
                str(SIZE_LAYERS),
                "--heads",
                str(raw["num_attention_heads"]),
                "--kv-heads",
                str(raw["num_key_value_heads"]),
                "--no-weights",
            ]
            context.run(
                "wide_model",
                [
                    sys.executable,
                    "-m",
                    "megaladder.tools.make_tiny_model",
                    "--data",
                    str(context.work / "arithmetic.jsonl"),
                    "--out",
                    str(folder),
                    *flags,
                ],
            )
        small = {
            **grpo_overrides(context, folder, run, 3),
            "rollout__n": 4,
            "grpo__prompts_per_step": 8,
            "rollout__max_tokens": 32,
        }
        context.megaladder(
            "rollout_at_size",
            "grpo",
            **small,
            model__init="random",
            rollout__sync=transport,
            rollout__check_sync="never",
        )
    except MegaladderError as error:
        return {"not_run": str(error)[-1500:]}
    seconds = [row["sync_s"] for row in context.metrics(run)[1:]]
    from megaladder.model.hf_config import model_shape, read_config_json

    num_bytes = 2 * model_shape(read_config_json(folder)).num_parameters
    whole = 2 * slice_of("qwen3-14b").num_parameters
    typical = sorted(seconds)[len(seconds) // 2]
    return {
        "transport": transport,
        "layers": SIZE_LAYERS,
        "bytes": num_bytes,
        "sync_s_all": seconds,
        "sync_s": typical,
        "gb_per_s": num_bytes / 1e9 / typical,
        "extrapolated_14b_s": typical * whole / num_bytes,
        "extrapolated": True,
    }
