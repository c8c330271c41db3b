"""Answers problems with plain `transformers` and grades them.

An exported folder is an ordinary Hugging Face model.

    python -m megaladder.tools.generate_hf --model runs/x/hf/step_400 --data problems.jsonl
    --num-problems 200

Not the engine: for benchmarks, many samples and large models use `megaladder eval` (vLLM). Grader
and problem reader are the shared ones.
"""

from __future__ import annotations

import sys
import time
from typing import Annotated

from pydantic import Field

from megaladder.config.base import StrictModel
from megaladder.config.resolve import resolve
from megaladder.errors import MegaladderError
from megaladder.types import Kind, Problem

Positive = Annotated[int, Field(ge=1)]


class GenerateHfConfig(StrictModel):
    """Answer problems with transformers, grade them, print the accuracy with its interval."""

    model: str
    """Hugging Face folder."""
    data: str
    """Problems: `question,answer` rows, verl rows or a benchmark file."""
    kind: Kind | None = None
    """Grader; null = as the file's rows say."""
    num_problems: Positive = 200
    """The first N problems."""
    max_tokens: Positive = 256
    """Longest answer, tokens."""
    batch_size: Positive = 50
    """Problems at once."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 = greedy; above, one sample each."""
    seed: int = 42
    """Of sampling."""
    show: Annotated[int, Field(ge=0)] = 1
    """Answers to print in full."""


def answer(config: GenerateHfConfig, problems: list[Problem]) -> list[str]:
    """One response text per problem, same order; special tokens that end a response are cut off."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(config.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(config.model).to(device).eval()
    sampling = (
        {"do_sample": True, "temperature": config.temperature}
        if config.temperature
        else {"do_sample": False}
    )
    torch.manual_seed(config.seed)
    responses: list[str] = []
    for begin in range(0, len(problems), config.batch_size):
        chunk = problems[begin : begin + config.batch_size]
        chats = [
            [{"role": m.role, "content": m.content} for m in problem.prompt] for problem in chunk
        ]
        prompts = [
            tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            for chat in chats
        ]
        batch = tokenizer(
            prompts,
            return_tensors="pt",
            padding=True,
            add_special_tokens=False,
            return_token_type_ids=False,
        ).to(device)
        with torch.inference_mode():
            ids = model.generate(
                **batch,
                max_new_tokens=config.max_tokens,
                pad_token_id=tokenizer.pad_token_id,
                **sampling,
            )
        responses += tokenizer.batch_decode(
            ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
    return responses


def run(config: GenerateHfConfig) -> int:
    """Prints sample answers and the accuracy; returns 0."""
    import numpy as np

    from megaladder.data.read_problems import ProblemOptions, read_problems
    from megaladder.evaluation.metrics import SHARE, bootstrap_interval
    from megaladder.rewards.verifiers import verify

    problems = read_problems(config.data, ProblemOptions(kind=config.kind))[: config.num_problems]
    began = time.monotonic()
    responses = answer(config, problems)
    seconds = time.monotonic() - began
    correct = np.array(
        [
            verify(p.kind, text, p.gold, p.metadata).correct is True
            for text, p in zip(responses, problems, strict=True)
        ],
        dtype=float,
    )
    for problem, text in list(zip(problems, responses, strict=True))[: config.show]:
        print(f"{problem.prompt[-1].content}\n{text}\ngold: {problem.gold}\n")
    interval = bootstrap_interval(correct, seed=config.seed, bounds=SHARE)
    around = "" if interval is None else f" [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    print(
        f"accuracy {100 * correct.mean():.1f} %{around} ({len(problems)} problems, 95 % interval"
        f" over problems, {seconds:.0f} s)"
    )
    return 0


def main(args: list[str]) -> int:
    try:
        return run(
            resolve(
                GenerateHfConfig, args, "python -m megaladder.tools.generate_hf", takes_yaml=False
            )
        )
    except MegaladderError as error:
        print(f"generate_hf: {error}", file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
