"""Supervised fine-tuning on one page, on the product's own parts: the page to fork.

    python examples/minimal/sft.py MODEL_DIR data.jsonl out/ --steps 20
    torchrun --nproc-per-node 2 examples/minimal/sft.py MODEL_DIR data.jsonl out/ --tp 2

What `megaladder sft` adds: caches, checkpoints and resume, held-out loss, signals, FP8, logs.
Legend: T = tokens of a micro-batch, padding included; S = its sequences; V = vocabulary.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megaladder import parallel
from megaladder.capabilities import token_alignment
from megaladder.checkpoints_conv.live_model import export_hf, load_hf_into_chunks
from megaladder.config.sections.shared import OptimSection
from megaladder.data.chat.samples import tokenize_batch
from megaladder.data.chat.templates import TemplateOptions
from megaladder.data.chat.tokenizer import load_tokenizer
from megaladder.data.layouts.learn import ReadOptions
from megaladder.data.pack import PackSpec, build_micro_batches, plan_global_batch
from megaladder.data.read import BadRow, BadRowLog
from megaladder.data.read_examples import ExampleReader
from megaladder.model.batch import DeviceBatch
from megaladder.model.build import BuildOptions, build_chunks
from megaladder.model.head import HeadOptions, HeadOutput, LossSums
from megaladder.model.hf_config import model_shape, read_config_json
from megaladder.parallel import Layout
from megaladder.train.model_files import model_files
from megaladder.train.optimizer import build_optimizer, guarded_update, wrap_chunks, zero_grad
from megaladder.train.step import run_micro_batches
from megaladder.types import PackedBatch, Tokenizer, TokenSample


def cross_entropy(output: HeadOutput, batch: DeviceBatch) -> LossSums:
    """The loss: a sum over the tokens of a micro-batch. Edit it here.

    output.logprobs: float32 [T], log-prob of each token's label, 0 where there is no loss;
    batch.loss_mask: bool [T]. The step divides the gradient by the loss tokens of all ranks.
    """
    return LossSums(-output.logprobs.sum())


def read_samples(path: str, tokenizer: Tokenizer, seq_length: int) -> list[TokenSample]:
    """Rows of any known layout → chat template → token ids and loss mask, cut to seq_length."""
    reader = ExampleReader(path, ReadOptions(), BadRowLog("error"))
    samples: list[TokenSample] = []
    for sample in tokenize_batch(list(reader), tokenizer, TemplateOptions()):
        if isinstance(sample, BadRow):  # the template cannot render this row
            raise sample
        if sample.num_tokens <= seq_length:
            # input_ids: int32 [n]; loss_mask: bool [n], True on what the assistant says
            samples.append(sample)
    return samples


def micro_batches(
    samples: Sequence[TokenSample], chosen: np.ndarray, spec: PackSpec
) -> list[PackedBatch]:
    """This rank's share of a global batch: samples laid end to end in rows of seq_length.

    chosen: int64 [global_batch_size]. Of each micro-batch: input_ids, labels, positions [T];
    cu_seqlens [S + 1]; attention stays inside a sequence.
    """
    lengths = [samples[index].num_tokens for index in chosen]
    plan = plan_global_batch(lengths, chosen.tolist(), spec, parallel.dp_size())
    return build_micro_batches(plan, parallel.dp_rank(), lambda index: samples[index])


def train(args: argparse.Namespace) -> list[float]:
    """Loss in nats per token of each step; a Hugging Face folder in `args.out`."""
    layout = Layout(tp=args.tp, pp=args.pp, sequence_parallel=args.tp > 1)
    losses = []
    with parallel.session(layout):
        shape = model_shape(read_config_json(Path(args.model)))
        options = BuildOptions(seed=args.seed)
        bare = build_chunks(shape, layout, options)  # this rank's part of a megatron-core GPTModel
        load_hf_into_chunks(bare, args.model, shape)
        chunks = wrap_chunks(bare, options)  # fp32 gradients in buffers, reduced over dp
        optimizer = build_optimizer(chunks, OptimSection(lr=args.lr), options)

        tokenizer = load_tokenizer(args.model)
        samples = read_samples(args.data, tokenizer, args.seq_length)
        spec = pack_spec(args, shape.hidden_size)
        order = np.random.default_rng(args.seed)  # the same on every rank
        for step in range(1, args.steps + 1):
            size = min(args.global_batch_size, len(samples))
            batches = micro_batches(samples, order.choice(len(samples), size, replace=False), spec)
            losses.append(update(chunks, optimizer, batches, args.lr))
            if parallel.is_main():
                print(f"step {step}: {losses[-1]:.4f} nats a token")
        # the model's configuration and tokenizer, with the template and the end of an answer in use
        source, files = Path(args.model), Path(f"{args.out}.files")
        parallel.on_main(lambda: model_files(source, source, tokenizer, samples).write(files))
        export_hf(bare, shape, Path(args.out), source_dir=files)
    return losses


def pack_spec(args: argparse.Namespace, hidden_size: int) -> PackSpec:
    """T is a multiple of what the layout divides it by; pipeline stages exchange fixed shapes."""
    return PackSpec(
        seq_length=args.seq_length,
        static=args.pp > 1,
        align=token_alignment(tp=args.tp, cp=1, sequence_parallel=args.tp > 1, fp8=None),
        attention_cost_tokens=12 * hidden_size,
    )


def update(chunks: list[Any], optimizer: Any, batches: list[PackedBatch], lr: float) -> float:
    """Forward, backward, one AdamW step that is skipped when loss or gradient is not finite."""
    zero_grad(chunks, optimizer)
    # hidden_states [T, hidden] → the head forms loss and gradient, block by block of logits [·, V]
    sums = run_micro_batches(chunks, batches, cross_entropy, head=HeadOptions(loss=cross_entropy))
    guarded_update(optimizer, sums.loss, lr)
    return sums.mean_loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="Hugging Face folder with weights and tokenizer")
    parser.add_argument("data", help="messages, question and answer, or any layout of `data stats`")
    parser.add_argument("out", help="folder for the trained model")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--global-batch-size", type=int, default=32, help="samples a step")
    parser.add_argument("--seq-length", type=int, default=1024, help="tokens of a packed row")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--pp", type=int, default=1)
    parser.add_argument("--seed", type=int, default=42)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
