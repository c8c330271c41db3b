"""The problems of a GRPO run as an endless, seeded stream of prompts.

Read by rank 0; the others know how many there are.

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
from megaladder.config.sections.data import MixturePart
from megaladder.data.chat.prompts import render_prompts
from megaladder.data.chat.tokenizer import model_tokenizer, tokenizer_fingerprint, tokenizer_folder
from megaladder.data.mixture import Mixture
from megaladder.data.read_problems import ProblemOptions, ProblemReader
from megaladder.data.sources.find import SourceSpec
from megaladder.errors import DataError
from megaladder.model.hf_config import ModelShape
from megaladder.process.faults import fault_point
from megaladder.rewards.grade import grader_label
from megaladder.rewards.verifiers import parameters_of
from megaladder.rollout.sample import Prompt
from megaladder.run_dir import to_json
from megaladder.train.model_files import ModelFiles, model_files
from megaladder.train.packing import check_vocabulary
from megaladder.types import Problem, Tokenizer


@dataclass(frozen=True, slots=True)
class ProblemStream:
    """All usable problems with their prompt ids.

    Shuffled anew for every pass, or as the file has them, or as a mixture of files orders them."""

    problems: tuple[Problem, ...]
    prompt_ids: tuple[tuple[int, ...], ...]
    seed: int
    shuffled: bool = True
    mixture: Mixture | None = None

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
        if self.mixture is not None:
            return self.mixture.order(self.seed, epoch, len(self.problems), self.shuffled)
        if not self.shuffled:
            return np.arange(len(self.problems))
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.problems))


@dataclass(frozen=True, slots=True)
class ProblemFacts:
    """What every rank knows about the problems.

    `files` travel with the weights; their stop ids end an answer."""

    num_problems: int
    total_steps: int
    pad_token_id: int
    files: ModelFiles
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


@dataclass(frozen=True, slots=True)
class ProblemPart:
    """The usable problems of one source, of `num_read` in it; `lines` say what was left out.

    `limit`: tokens of the longest prompt that is usable."""

    name: str
    problems: list[Problem]
    prompt_ids: list[tuple[int, ...]]
    num_read: int
    limit: int
    lines: list[str]

    @property
    def largest_token_id(self) -> int:
        return max(max(ids) for ids in self.prompt_ids)


def read_parts(config: GrpoConfig, tokenizer: Tokenizer) -> list[ProblemPart]:
    """The problems of each source that fit, rendered.

    Raises DataError for unreadable rows, or a source without any prompt that is short enough."""
    return [_read_part(config, part, tokenizer) for part in config.data.parts]


def _read_part(config: GrpoConfig, part: MixturePart, tokenizer: Tokenizer) -> ProblemPart:
    data = config.data
    options = ProblemOptions(
        kind=None if config.reward.kind == "auto" else config.reward.kind,
        prompt_suffix=config.rollout.prompt_suffix.replace("\\n", "\n"),
        system_prompt=data.system_prompt,
        on_bad_row=data.on_bad_row,
        duplicates=data.duplicates,
        format=part.format,
    )
    reader = ProblemReader(SourceSpec.of(part), options)
    problems = list(reader)
    prompts = render_prompts(problems, tokenizer)
    longest = data.seq_length - config.rollout.max_tokens
    limit = min(config.rollout.max_prompt_tokens or longest, longest)
    kept = [index for index, ids in enumerate(prompts) if 0 < len(ids) <= limit]
    if not kept:
        by_lengths = "data.seq_length, or a smaller rollout.max_tokens"
        raise DataError(
            f"{reader.source.path}: expected prompts of at most {limit} tokens, found"
            f" {len(prompts)} longer ones (shortest {min(map(len, prompts), default=0)}); fix: a"
            f" larger {by_lengths if limit == longest else 'rollout.max_prompt_tokens'}"
        )
    lines = reader.lines()
    if len(kept) < len(prompts):
        lines.append(f"{len(prompts) - len(kept):,} left out: prompt longer than {limit} tokens")
    return ProblemPart(
        reader.source.path,
        [problems[i] for i in kept],
        [prompts[i] for i in kept],
        len(problems),
        limit,
        lines,
    )


def _mixture(config: GrpoConfig, parts: list[ProblemPart]) -> Mixture | None:
    if not config.data.mixture:
        return None
    weights = tuple(part.weight for part in config.data.mixture if part.weight is not None)
    return Mixture(tuple(len(part.problems) for part in parts), weights or None)


def _read(
    config: GrpoConfig, shape: ModelShape, model_folder: Path
) -> tuple[ProblemStream, Tokenizer, ProblemFacts]:
    fault_point("data")
    folder = tokenizer_folder(config.model, model_folder)
    tokenizer = model_tokenizer(config.model, folder)
    parts = read_parts(config, tokenizer)
    check_vocabulary(max(part.largest_token_id for part in parts), shape, folder)
    stream = ProblemStream(
        tuple(problem for part in parts for problem in part.problems),
        tuple(ids for part in parts for ids in part.prompt_ids),
        config.train.seed,
        shuffled=config.data.order == "shuffled",
        mixture=_mixture(config, parts),
    )
    names = [part.name for part in parts]
    lines = [
        f"problems {', '.join(names)}: {len(stream.problems):,} of"
        f" {sum(part.num_read for part in parts):,}; prompt tokens p50 {_quantile(stream, 0.5)}, max"
        f" {_quantile(stream, 1.0)}; verified as {_kinds(stream)} by"
        f" {grader_label(dialect=config.reward.extract)}"
    ]
    lines += [f"  {line}" for part in parts for line in part.lines]
    if stream.mixture is not None:
        lines += stream.mixture.lines(names, len(stream.problems))
    files = model_files(model_folder, folder, tokenizer)
    identity = {
        "data": problems_fingerprint(stream),
        "tokenizer": tokenizer_fingerprint(folder, tokenizer.chat_template),
        "stop_token_ids": files.stop_ids,
    }
    facts = ProblemFacts(
        len(stream.problems),
        _total_steps(config, len(stream.problems)),
        tokenizer.pad_token_id or 0,
        files,
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


def _kinds(stream: ProblemStream) -> str:
    """`countdown 8,000, math 12`: how many problems each verifier has."""
    counts = Counter(problem.kind for problem in stream.problems)
    return ", ".join(f"{kind} {count:,}" for kind, count in counts.most_common())


def _quantile(stream: ProblemStream, share: float) -> int:
    return int(np.quantile([len(ids) for ids in stream.prompt_ids], share, method="higher"))
