"""The walks of the verbs that read models: convert, bench, analyze shift."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from walks.stand_ins import converted_here, measured_kernels, measured_step, named_folder
from walks.walk import Walk


def model_walks(i: Path) -> list[Walk]:
    """`i`: the folder of `make_inputs` and `make_models`."""
    return [*_conversions(i), *_benches(i), _shift(i)]


def _conversions(i: Path) -> list[Walk]:
    model, other = str(i / "model"), str(i / "other_model")
    converted, other_converted = str(i / "converted"), str(i / "other_converted")
    filled = {"out": str(i / "filled")}
    return [
        Walk(
            "convert hf-to-megatron",
            {"hf": model, "out": "o"},
            values={"hf": other, "out": "another", "dtype": "bf16"},
            beside={"force": {**filled, "force": True}},
        ),
        Walk(
            "convert megatron-to-hf",
            {"megatron": converted, "out": "o"},
            values={
                "megatron": other_converted,
                "out": "another",
                "dtype": "bf16",
                "max_shard_gb": 1e-4,
            },
            beside={"force": {**filled, "force": True}},
        ),
        Walk(
            "convert adapter",
            {"megatron": str(i / "adapted/checkpoints/step_2"), "out": "o"},
            values={"megatron": str(i / "other_adapted/checkpoints/step_2"), "out": "another"},
            beside={"force": {**filled, "force": True}},
            slow=True,
        ),
        Walk(
            "convert merge",
            {"hf": model, "adapter": str(i / "adapter"), "out": "o"},
            values={
                "hf": other,
                "adapter": str(i / "other_adapter"),
                "out": "another",
                "dtype": "bf16",
                "max_shard_gb": 1e-4,
            },
            beside={"force": {**filled, "force": True}},
        ),
        Walk(
            "convert verify",
            {"hf": model, "megatron": converted},
            values={
                "hf": other,
                "megatron": other_converted,
                "tolerance": 1e-12,
                "json_file": "j.json",
            },
            refuses={
                **dict.fromkeys(("hf", "megatron"), "elements differ"),
                "tolerance": "logits: DIFFERENT",
            },
        ),
    ]


def _benches(i: Path) -> list[Walk]:
    kernels = "megaladder.tools.bench_kernels"
    convert = "megaladder.tools.bench_convert"
    return [
        _bench_train(i),
        Walk(
            "bench kernels",
            {"device": "cpu", "tokens": [8], "hidden": [4], "vocab": 16, "rounds": 1},
            values={"shards": [3], "budget_s": 1e-9, "csv": "o.csv", "markdown": "o.md"},
            probes=(f"{kernels}:measure",),
            stand_ins={f"{kernels}:measure": measured_kernels},
            # repeats what it was asked for
            unseen=r"^\|",
        ),
        Walk(
            "bench convert",
            {"gb": 1e-4, "repeats": 1, "folder": "work"},
            values={"gb": 2e-3, "folder": "another", "json_file": "j.json"},
            probes=(
                f"{convert}:_run",
                f"{convert}:tempfile.TemporaryDirectory",
                "megaladder.checkpoints_conv.writer:HFWriter.write",
            ),
            stand_ins={
                f"{convert}:_run": converted_here,
                f"{convert}:tempfile": SimpleNamespace(TemporaryDirectory=named_folder),
                **{f"{convert}:{name}": 64 for name in ("_VOCABULARY", "_HIDDEN", "_FFN")},
            },
        ),
    ]


def _bench_train(i: Path) -> Walk:
    shaped = {
        "data": None,
        "shape": "tiny",
        "hidden_sizes": [128, 512],
        "vocab_size": 2048,
        "samples": 64,
        "seq_length": 1024,
        "contenders": ["ours", "padded", "sorted", "packed"],
    }
    of_shape = ("sequence", "micro_batch_tokens", "micro_batches", "fp8", "recompute", "warmup")
    return Walk(
        "bench train",
        {
            "data": str(i / "rows.jsonl"),
            "hidden_sizes": [32],
            "layers": 1,
            "vocab_size": 300,
            "samples": 4,
            "seq_length": 256,
            "rounds": 1,
            "contenders": ["ours"],
        },
        values={
            "data": str(i / "more.jsonl"),
            "hidden_sizes": [64],
            "samples": 2,
            "micro_batch_tokens": 16384,
            "sequence": 4096,
            "contenders": ["padded"],
            "json_out": "j.json",
            "profile_dir": "profile",
        },
        together={"shape": shaped},
        needs=dict.fromkeys((*of_shape, "profile_dir"), shaped),
        probes=(
            "megaladder.train.optimizer:guarded_update",
            "megaladder.tools.bench_training:measure",
            "megaladder.tools.acceptance.step_bench:measure",
            "megaladder.tools.make_tiny_model:write_tiny_model",
        ),
        stand_ins={
            "megaladder.tools.acceptance.step_bench:measure": measured_step,
            "megaladder.tools.bench_training:tempfile": SimpleNamespace(
                TemporaryDirectory=named_folder
            ),
        },
        slow=True,
        forks=True,
    )


def _shift(i: Path) -> Walk:
    return Walk(
        "analyze shift",
        {
            "base": str(i / "model"),
            "tuned": str(i / "other_model"),
            "data": str(i / "answered.jsonl"),
            "json_path": "j.json",
        },
        values={
            "base": str(i / "other_model"),
            "tuned": str(i / "model"),
            "data": str(i / "other_answered.jsonl"),
            "max_rows": 1,
            "max_length": 9,
            "pca_texts": 2,
            "pca_max_length": 3,
            "batch_tokens": 8,
            "chunk_tokens": 2,
            "device": "cuda",
            "dtype": "bfloat16",
            "runs": ["nowhere"],
            "tokens": "t.jsonl",
        },
        probes=tuple(
            f"megaladder.analysis.shift.score:{name}" for name in ("_score_chunk", "_left_padded")
        ),
    )
