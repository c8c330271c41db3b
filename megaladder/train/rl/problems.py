"""The problems of a GRPO run as an endless, seeded stream of prompts. Read by rank 0; the others
know how many there are.

A stream position is a whole number from 0 on; which problem stands there is a function of (seed,
position), so one number in a checkpoint says where to go on.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megaladder import parallel
from megaladder.config.grpo import GrpoConfig
from megaladder.data.chat.stops import stop_token_ids
from megaladder.data.chat.tokenizer import load_tokenizer, tokenizer_dir, tokenizer_fingerprint
from megaladder.data.prompts import render_prompts
from megaladder.data.read import BadRowLog
from megaladder.data.read_problems import ProblemOptions, read_problems
from megaladder.errors import DataError
from megaladder.model.hf_config import ModelShape
from megaladder.process.faults import fault_point
from megaladder.rewards.verifiers import parameters_of
from megaladder.rollout.sample import Prompt
from megaladder.run_dir import to_json
from megaladder.train.packing import check_vocabulary
from megaladder.types import Problem, Tokenizer


@dataclass(frozen=True, slots=True)
class ProblemStream:
    """All usable problems with their prompt ids: shuffled anew for every pass, or as the file has
    them."""

    problems: tuple[Problem, ...]
    prompt_ids: tuple[tuple[int, ...], ...]
    seed: int
    shuffled: bool = True

    def take(self, start: int, count: int) -> list[Prompt]:
        """The prompts at positions start … start + count − 1."""
        found, orders = [], {}
        for position in range(start, start + count):
            epoch, place = divmod(position, len(self.problems))
            if epoch not in orders:
                orders[epoch] = self._order(epoch)
            index = int(orders[epoch][place])
            found.append(Prompt(self.problems[index], self.prompt_ids[index], position))
        return found

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffled:
            return np.arange(len(self.problems))
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.problems))


@dataclass(frozen=True, slots=True)
class ProblemFacts:
    """What every rank knows about the problems. `stop_token_ids` end an answer: end-of-sequence and
    the template's end of turn."""

    num_problems: int
    total_steps: int
    pad_token_id: int
    stop_token_ids: tuple[int, ...]
    lines: tuple[str, ...]
    identity: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ProblemData:
    """Facts on every rank; stream and tokenizer on rank 0 only."""

    facts: ProblemFacts
    stream: ProblemStream | None = None
    tokenizer: Tokenizer | None = None


def prepare_problems(config: GrpoConfig, shape: ModelShape, model_folder: Path) -> ProblemData:
    """Reads, renders and filters the problems on rank 0. Collective.

    Raises:
        DataError: unreadable rows, or no problem whose prompt is short enough; on every rank.
    """
    box: list[tuple[ProblemStream, Tokenizer]] = []

    def read() -> ProblemFacts:
        stream, tokenizer, facts = _read(config, shape, model_folder)
        box.append((stream, tokenizer))
        return facts

    facts = parallel.on_main(read)
    stream, tokenizer = box[0] if box else (None, None)
    return ProblemData(facts, stream, tokenizer)


def _read(
    config: GrpoConfig, shape: ModelShape, model_folder: Path
) -> tuple[ProblemStream, Tokenizer, ProblemFacts]:
    fault_point("data")
    folder = tokenizer_dir(config.model.tokenizer or str(model_folder), config.model.revision)
    tokenizer = load_tokenizer(
        folder, None, config.model.chat_template, config.model.trust_remote_code
    )
    section, bad_rows = config.data, BadRowLog(config.data.on_bad_row)
    kind = None if config.reward.kind == "auto" else config.reward.kind
    suffix = config.rollout.prompt_suffix.replace("\\n", "\n")
    options = ProblemOptions(
        kind, suffix, section.system_prompt, section.revision, section.on_bad_row
    )
    problems = read_problems(section.path, options, bad_rows)
    prompts = render_prompts(problems, tokenizer)
    longest = config.data.seq_length - config.rollout.max_tokens
    limit = min(config.rollout.max_prompt_tokens or longest, longest)
    kept = [index for index, ids in enumerate(prompts) if 0 < len(ids) <= limit]
    if not kept:
        raise DataError(
            f"{section.path}: expected prompts of at most {limit} tokens, found {len(prompts)}"
            f" longer ones (shortest {min(map(len, prompts))}); fix: a larger data.seq_length, or a"
            " smaller rollout.max_tokens"
        )
    largest = max((max(ids) for ids in prompts if ids), default=0)
    check_vocabulary(largest, shape, folder)
    stream = ProblemStream(
        tuple(problems[i] for i in kept),
        tuple(prompts[i] for i in kept),
        config.train.seed,
        shuffled=config.data.order == "shuffled",
    )
    left_out = Counter(bad_rows.counts)
    left_out[f"prompt longer than {limit} tokens"] = len(prompts) - len(kept)
    lines = [
        f"problems {section.path}: {len(kept):,} of {len(problems):,}; prompt tokens p50"
        f" {_quantile(stream, 0.5)}, max {_quantile(stream, 1.0)}; kinds"
        f" {dict(Counter(problem.kind for problem in stream.problems))}"
    ]
    lines += [f"  {count:,} left out: {reason}" for reason, count in left_out.items() if count]
    template = (
        Path(config.model.chat_template).read_text("utf-8") if config.model.chat_template else None
    )
    identity = {
        "data": problems_fingerprint(stream),
        "tokenizer": tokenizer_fingerprint(folder, template),
    }
    facts = ProblemFacts(
        len(kept),
        _total_steps(config, len(kept)),
        tokenizer.pad_token_id or 0,
        stop_token_ids(tokenizer, model_folder),
        tuple(lines),
        identity,
    )
    return stream, tokenizer, facts


def problems_fingerprint(stream: ProblemStream) -> str:
    """sha256 over ids, golds, kinds with their parameters, and prompt ids."""
    digest = hashlib.sha256()
    for problem, ids in zip(stream.problems, stream.prompt_ids, strict=True):
        asked = to_json(parameters_of(problem.kind, problem.metadata), sort_keys=True)
        digest.update(f"{problem.id}\0{problem.gold}\0{problem.kind}{asked}\0{ids}\n".encode())
    return digest.hexdigest()


def _total_steps(config: GrpoConfig, num_problems: int) -> int:
    steps = max(1, int(config.train.epochs * num_problems) // config.grpo.prompts_per_step)
    return min(steps, config.train.max_steps) if config.train.max_steps is not None else steps


def _quantile(stream: ProblemStream, share: float) -> int:
    return int(np.quantile([len(ids) for ids in stream.prompt_ids], share, method="higher"))
