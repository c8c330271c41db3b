"""GRPO on one page, on the product's own parts: the page to fork.

    python examples/minimal/grpo.py MODEL_DIR problems.jsonl out/ --rounds 8            # real vLLM
    python examples/minimal/grpo.py MODEL_DIR problems.jsonl out/ --engine fake         # no engine

problems → n answers each (the group) → grade → advantages → loss → update → weights to the engine.
What `megaladder grpo` adds: layouts, mini-batches, resume, corrections, KL, logs, failures.
Legend: G = groups of a round, n = answers of a group, T = tokens of a micro-batch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megaladder import parallel
from megaladder.checkpoints_conv.live_model import export_hf, load_hf_into_chunks
from megaladder.config.sections.shared import OptimSection
from megaladder.data.chat.prompts import render_prompts
from megaladder.data.chat.stops import stop_token_ids
from megaladder.data.chat.tokenizer import load_tokenizer
from megaladder.data.pack import PackSpec, build_micro_batches, plan_global_batch
from megaladder.data.read_problems import read_problems
from megaladder.model.batch import DeviceBatch
from megaladder.model.build import BuildOptions, build_chunks
from megaladder.model.head import HeadOptions, HeadOutput, LossSums
from megaladder.model.hf_config import model_shape, read_config_json
from megaladder.parallel import Layout
from megaladder.rewards.worker import GradePool, GradeTask
from megaladder.rollout.engine import Engine, SamplingParams
from megaladder.rollout.fake_engine import FakeEngine
from megaladder.rollout.sample import Prompt, sample_groups
from megaladder.rollout.vllm_engine import VllmEngine, VllmOptions
from megaladder.rollout.weight_sync import SyncOptions, TrainedModel, WeightSync, chosen_transport
from megaladder.train.model_files import model_files
from megaladder.train.objectives.advantages import group_advantages
from megaladder.train.optimizer import build_optimizer, guarded_update, wrap_chunks, zero_grad
from megaladder.train.step import run_micro_batches
from megaladder.types import RolloutGroup, TokenSample


def policy_loss(output: HeadOutput, batch: DeviceBatch) -> LossSums:
    """REINFORCE with group advantages; on-policy, so the ratio of PPO is 1. Edit it here.

    output.logprobs: float32 [T], 0 where there is no loss; batch.advantages: float32 [T].
    """
    return LossSums(-(batch.advantages * output.logprobs).sum())


def rewards_of(groups: Sequence[RolloutGroup], pool: GradePool) -> np.ndarray:
    """float64 [G, n]: 1 for an answer that the grader finds correct, else 0."""
    tasks = [
        GradeTask(f"{group.problem.id}/{i}", one.text, group.problem.gold, group.problem.kind)
        for group in groups
        for i, one in enumerate(group.completions)
    ]
    verdicts = [float(graded.correct is True) for graded in pool.grade_many(tasks)]
    return np.array(verdicts, np.float64).reshape(len(groups), -1)


def samples_of(groups: Sequence[RolloutGroup], advantages_gn: np.ndarray) -> list[TokenSample]:
    """Prompt and answer as one sequence, with loss on the answer, end of sequence included."""
    samples = []
    for group, advantages_n in zip(groups, advantages_gn, strict=True):
        for number, (one, advantage) in enumerate(
            zip(group.completions, advantages_n, strict=True)
        ):
            if not one.token_ids:
                continue
            ids = np.array([*group.prompt_ids, *one.token_ids], np.int32)  # [prompt + answer]
            mask = np.arange(len(ids)) >= len(group.prompt_ids)  # bool, the same length
            name = f"{group.problem.id}/{number}"
            samples.append(TokenSample(name, ids, mask, advantage=float(advantage)))
    return samples


def update(chunks: list[Any], optimizer: Any, samples: list[TokenSample], args: Any) -> float:
    """Packs the round, forward and backward through the loss head, one AdamW step."""
    spec = PackSpec(seq_length=args.seq_length)
    numbers = list(range(len(samples)))
    plan = plan_global_batch([one.num_tokens for one in samples], numbers, spec, parallel.dp_size())
    batches = build_micro_batches(plan, parallel.dp_rank(), lambda index: samples[index])
    zero_grad(chunks, optimizer)
    head = HeadOptions(loss=policy_loss)  # temperature 1, as sampled
    sums = run_micro_batches(chunks, batches, policy_loss, head=head)
    guarded_update(optimizer, sums.loss, args.lr)
    return sums.mean_loss


def open_engine(args: argparse.Namespace, tokenizer: Any) -> Engine:
    """vLLM in a child process with the model's own weights as version 0, or a stand-in."""
    if args.engine == "fake":
        return FakeEngine(tokenizer=tokenizer, vocab_size=len(tokenizer))
    return VllmEngine(VllmOptions(model=args.model, dtype="float32", log_dir=f"{args.out}/engine"))


def train(args: argparse.Namespace) -> list[float]:
    """Mean reward of each round; a Hugging Face folder in `args.out`."""
    tokenizer, rewards = load_tokenizer(args.model), []
    problems = read_problems(args.problems)
    prompt_ids = render_prompts(problems, tokenizer)
    params = SamplingParams(
        n=args.n,
        max_tokens=args.max_tokens,
        seed=42,
        stop_token_ids=stop_token_ids(tokenizer, args.model),
    )
    layout = Layout()
    with (
        parallel.session(layout),
        open_engine(args, tokenizer) as engine,
        GradePool(num_workers=2) as pool,
    ):
        shape = model_shape(read_config_json(Path(args.model)))
        options = BuildOptions()
        bare = build_chunks(shape, layout, options)
        load_hf_into_chunks(bare, args.model, shape)
        chunks = wrap_chunks(bare, options)
        optimizer = build_optimizer(chunks, OptimSection(lr=args.lr), options)
        trained = TrainedModel(chunks, shape, Path(args.model))
        transport = "file" if args.engine == "fake" else chosen_transport("auto")
        sync = SyncOptions(transport, 512 << 20, "first", Path(args.out))
        weights = WeightSync(trained, sync, engine, version=0)

        for step in range(args.rounds):
            places = [(step * args.prompts + i) % len(problems) for i in range(args.prompts)]
            prompts = [
                Prompt(problems[place], prompt_ids[place], step * args.prompts + i)
                for i, place in enumerate(places)
            ]
            groups = sample_groups(engine, prompts, params, version=step).groups  # G × n answers
            rewards_gn = rewards_of(groups, pool)
            advantages_gn = group_advantages(rewards_gn, baseline="mean", std=True)
            loss = update(chunks, optimizer, samples_of(groups, advantages_gn), args)
            weights.send(step + 1)
            rewards.append(float(rewards_gn.mean()))
            print(f"round {step + 1}: reward {rewards[-1]:.3f}, loss {loss:.4f}")
        weights.close()
        # the model's configuration and tokenizer, with the template and the ends of answers in use
        source, files = Path(args.model), Path(args.out) / "files"
        model_files(source, source, tokenizer).write(files)
        export_hf(bare, shape, Path(args.out) / "hf", source_dir=files)
    return rewards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="Hugging Face folder with weights and tokenizer")
    parser.add_argument("problems", help="rows with question and answer, or verl rows")
    parser.add_argument("out", help="folder for logs and the trained model")
    parser.add_argument("--engine", choices=("vllm", "fake"), default="vllm")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=8, help="problems a round")
    parser.add_argument("--n", type=int, default=8, help="answers a problem: the group")
    parser.add_argument("--max-tokens", type=int, default=256, help="longest answer")
    parser.add_argument("--seq-length", type=int, default=1024, help="tokens of a packed row")
    parser.add_argument("--lr", type=float, default=1e-5)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
