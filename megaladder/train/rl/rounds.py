"""The sources of rounds: an engine with the grader, or stored rollouts. Rank 0 only.

prompts → groups of n samples → verdicts and rewards → advantages; under dynamic sampling groups that
teach nothing give way to fresh ones. Nothing here knows of training ranks; `feed` hands the rounds
out.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from megaladder import parallel
from megaladder.config.grpo import GrpoConfig
from megaladder.config.rules.grpo import asks_experts
from megaladder.errors import ConfigError
from megaladder.ledger.book import Phase
from megaladder.ledger.work import Work, generation_work, total_work
from megaladder.model.hf_config import ModelShape
from megaladder.model.lora.peft_config import engine_adapters
from megaladder.process.faults import fault_point
from megaladder.rewards.terms.builtin import Sample
from megaladder.rewards.terms.total import RewardTerms, Scored
from megaladder.rewards.verifiers.pool import VerifierPool
from megaladder.rewards.worker import GradeTask
from megaladder.rollout.engine import Engine, SamplingParams
from megaladder.rollout.fake_engine import KnownAnswers
from megaladder.rollout.sample import Prompt, sample_groups
from megaladder.run_dir import to_json
from megaladder.train.evaluation.benchmarks import BenchmarkSet
from megaladder.train.life.engines import EngineSetup, Servers, dtype_of
from megaladder.train.objectives.advantages import group_advantages, zero_variance
from megaladder.train.rl.problems import ProblemData
from megaladder.train.rl.records import Round, read_round, stored_steps
from megaladder.types import FinishReason, RolloutGroup, required

COUNTS = (
    "sampled_groups",
    "zero_variance_groups",
    "missing_groups",
    "aborted_groups",
    "truncated_completions",
    "empty_completions",
    "undecided_answers",
    "resample_rounds",
    "surplus_groups",
    "engine_restarts",
)
"""Keys of a sampled round's counts, always all of them."""
# dynamic sampling draws what is missing / (share of groups that were usable so far), taken as at
# least this
LEAST_USABLE_SHARE = 0.25


class RoundSource(Protocol):
    """Makes rounds, one after the other. `cursor`: the stream position of the next one."""

    cursor: int
    key: str

    @property
    def grader(self) -> VerifierPool | None:
        """What gives the verdicts; None where nothing is graded."""

    def collect(self, step: int, version: int) -> Round: ...

    def close(self) -> None: ...


def with_advantages(groups: Sequence[RolloutGroup], config: GrpoConfig) -> tuple[RolloutGroup, ...]:
    """The groups with the advantages that the configuration asks for.

    See `advantages.group_advantages`. An undecided sample has 0 and does not count in its group.
    """
    return tuple(replace(group, advantages=_advantages(group, config)) for group in groups)


def _advantages(group: RolloutGroup, config: GrpoConfig) -> tuple[float, ...]:
    rewards = np.array([group.decided_rewards], dtype=np.float64)
    found = iter(
        group_advantages(rewards, baseline=config.grpo.baseline, std=config.grpo.std)[0].tolist()
    )
    return tuple(0.0 if reward is None else next(found) for reward in group.rewards)


class Rewarder:
    """Verdicts and rewards of groups: the row's verifier, then the weighted terms."""

    def __init__(self, config: GrpoConfig) -> None:
        self._max_tokens = config.rollout.max_tokens
        reward = config.reward
        self.pool = VerifierPool(reward.workers, reward.timeout_s, dialect=reward.extract)
        self._terms = RewardTerms(config.reward)

    def score(self, groups: Sequence[RolloutGroup]) -> tuple[list[RolloutGroup], Counter[str]]:
        """The groups with verdicts and rewards, and how many answers stayed undecided.

        An undecided answer has reward None: it takes no part in its group's statistics and is not
        trained on.

        Raises:
            RewardError: a user's function raised or returned no finite number; names the sample.
        """
        names = [
            (f"{group.problem.id}/sample {number}", group.problem, completion)
            for group in groups
            for number, completion in enumerate(group.completions)
        ]
        verdicts = self.pool.grade_many(
            [
                GradeTask(name, completion.text, problem.gold, problem.kind, problem.metadata)
                for name, problem, completion in names
            ]
        )
        samples = [
            Sample(*named, graded, self._max_tokens)
            for named, graded in zip(names, verdicts, strict=True)
        ]
        scored = self._terms.score(samples)
        found = [
            replace(
                group,
                rewards=tuple(one.reward for one in own),
                reward_terms=tuple(one.terms for one in own),
                graded=tuple(verdicts[start : start + len(own)]),
            )
            for group, start, own in _by_group(groups, scored)
        ]
        undecided = sum(one.reward is None for one in scored)
        return found, Counter(undecided_answers=undecided) if undecided else Counter()

    @property
    def cpu_s(self) -> float:
        """CPU seconds of the processes that have graded so far."""
        return self.pool.cpu_s + self._terms.cpu_s

    def close(self) -> None:
        self.pool.close()
        self._terms.close()


def _by_group(
    groups: Sequence[RolloutGroup], scored: Sequence[Scored]
) -> Iterator[tuple[RolloutGroup, int, Sequence[Scored]]]:
    """Each group with where its samples start and what they scored."""
    start = 0
    for group in groups:
        yield group, start, scored[start : start + len(group.completions)]
        start += len(group.completions)


def teaches_nothing(group: RolloutGroup, by: Literal["none", "accuracy", "reward"]) -> bool:
    """Whether dynamic sampling replaces a group.

    It has fewer than two decided answers, or all of them are equal.

    accuracy is DAPO's published filter (`filter_groups.metric acc`, arXiv 2503.14476): a group of
    wrong answers of different lengths says nothing about the task, whatever its shaped rewards.
    """
    if by == "accuracy":
        pairs = zip(group.graded, group.rewards, strict=True)
        verdicts = {one.correct for one, reward in pairs if reward is not None}
        return len(verdicts - {None}) < 2
    return bool(zero_variance(np.array([group.decided_rewards]))[0])


class EngineRounds:
    """Rounds from an engine. `collect` is for one thread at a time."""

    def __init__(
        self, config: GrpoConfig, shape: ModelShape, data: ProblemData, engine: Engine, cursor: int
    ) -> None:
        """shape: of the model that the engine samples from."""
        assert data.stream is not None, "rank 0 holds the problems"
        self.cursor, self.engine, self._shape = cursor, engine, shape
        self._config, self._stream, self._rewarder = config, data.stream, Rewarder(config)
        self._restarts = 0  # of the engine, as far as they are counted
        rollout = config.rollout
        # a fake engine's log-probs are of no model: without them nothing is compared or corrected
        self._params = SamplingParams(
            n=rollout.n,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            max_tokens=rollout.max_tokens,
            seed=config.train.seed,
            stop_token_ids=data.facts.files.stop_ids,
            logprobs=rollout.engine != "fake",
            routed_experts=asks_experts(config, shape),
        )
        self.key = _settings_key(
            config, data.facts.identity["data"], experts=self._params.routed_experts
        )

    def collect(self, step: int, version: int) -> Round:
        """Samples and grades `prompts_per_step` groups by weights `version`.

        Under dynamic sampling until all of them teach something, or the cap is reached, and then
        fewer. What a last draw finds beyond the need is dropped and counted.

        Raises:
            EngineError: the engine is lost or holds other weights. RewardError: the user's reward
            function is broken.
        """
        wanted, grpo = self._config.grpo.prompts_per_step, self._config.grpo
        kept: list[RolloutGroup] = []
        counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
        seconds: defaultdict[str, float] = defaultdict(float)
        work: defaultdict[Phase, Work] = defaultdict(Work)
        filters = grpo.dynamic_sampling != "none"
        for wave in range(1 + (grpo.max_resamples if filters else 0)):
            counts["resample_rounds"] = wave
            missing = wanted - len(kept)
            usable = max(len(kept) / counts["sampled_groups"], LEAST_USABLE_SHARE) if wave else 1.0
            prompts = self._stream.take(self.cursor, min(wanted, math.ceil(missing / usable)))
            groups, found = self._wave(prompts, version, seconds, work)
            counts.update(found)
            dull = [teaches_nothing(group, grpo.dynamic_sampling) for _, group in groups]
            counts["zero_variance_groups"] += sum(dull)
            good = [
                item for item, equal in zip(groups, dull, strict=True) if not (filters and equal)
            ]
            kept += [group for _, group in good[:missing]]
            counts["surplus_groups"] += max(0, len(good) - missing)
            # the problems after the last group that is used come again in the next round, by newer
            # weights
            self.cursor = (
                good[missing - 1][0] + 1 if len(good) > missing else prompts[-1].position + 1
            )
            if len(kept) == wanted or not filters:
                break
        counts["missing_groups"] = wanted - len(kept)
        counts["engine_restarts"], self._restarts = (
            self.engine.restarts - self._restarts,
            self.engine.restarts,
        )
        return Round(
            step,
            version,
            with_advantages(kept, self._config),
            self.cursor,
            dict(counts),
            dict(seconds),
            dict(work),
        )

    def _wave(
        self,
        prompts: Sequence[Prompt],
        version: int,
        seconds: defaultdict[str, float],
        work: defaultdict[Phase, Work],
    ) -> tuple[list[tuple[int, RolloutGroup]], Counter[str]]:
        """Graded groups with their stream positions, and what to count."""
        began = time.perf_counter()
        sampled = sample_groups(
            self.engine,
            prompts,
            self._params,
            version=version,
            on_progress=lambda *_: fault_point("completion"),
        )
        generated, cpu_s = time.perf_counter(), self._rewarder.cpu_s
        fault_point("before_grading")
        groups, counts = self._rewarder.score(sampled.groups)
        seconds["generation"] += generated - began
        seconds["grading"] += time.perf_counter() - generated
        work["generation"] += total_work(map(self._generation, sampled.groups))
        work["grading"] += Work(cpu_s=self._rewarder.cpu_s - cpu_s)
        counts.update(sampled_groups=len(prompts), aborted_groups=sampled.num_aborted)
        for group in sampled.groups:
            counts["truncated_completions"] += sum(
                one.finish_reason is FinishReason.LENGTH for one in group.completions
            )
            counts["empty_completions"] += sum(not one.token_ids for one in group.completions)
        return list(zip(sampled.positions, groups, strict=True)), counts

    def _generation(self, group: RolloutGroup) -> Work:
        lengths = [len(completion.token_ids) for completion in group.completions]
        return generation_work(self._shape, len(group.prompt_ids), lengths)

    @property
    def grader(self) -> VerifierPool:
        """What gives the verdicts."""
        return self._rewarder.pool

    def close(self) -> None:
        self.engine.close()
        self._rewarder.close()


class ReplayRounds:
    """The rounds that an earlier run stored, step by step.

    Advantages are computed anew, so that the objective may be another one.
    """

    grader = None

    def __init__(self, config: GrpoConfig) -> None:
        self._config, self._folder = config, replay_folder(config)
        self.cursor, self.key = 0, "replay"

    def collect(self, step: int, version: int) -> Round:
        """Raises ConfigError where that step was not stored, DataError for a broken file."""
        found = read_round(self._folder, step)
        if found is None:
            raise ConfigError(
                f"{self._folder}: no rollouts of step {step}; fix: train.max_steps {step - 1}, or"
                " another rollout.replay_dir"
            )
        return replace(
            found,
            groups=with_advantages(found.groups, self._config),
            counts={},
            seconds={},
            work={},
        )

    def close(self) -> None:
        """Nothing is held."""


def open_source(
    config: GrpoConfig, shape: ModelShape, data: ProblemData, engine: Engine | None, cursor: int
) -> RoundSource | None:
    """Where this run's rounds come from; None but on rank 0."""
    if not parallel.is_main():
        return None
    if config.rollout.engine == "replay":
        return ReplayRounds(config)
    return EngineRounds(config, shape, data, required(engine, "rank 0's engine"), cursor)


def replay_folder(config: GrpoConfig) -> Path:
    """`rollout.replay_dir`, or the `rollouts` folder in it.

    Raises ConfigError where neither holds rollouts.
    """
    given = Path(config.rollout.replay_dir or "")
    folder = given / "rollouts" if (given / "rollouts").is_dir() else given
    if not stored_steps(folder):
        raise ConfigError(
            f"rollout.replay_dir {given}: no step_N.jsonl there; fix: the run folder of a GRPO run,"
            " or its rollouts folder"
        )
    return folder


def engine_setup(
    config: GrpoConfig, data: ProblemData, shape: ModelShape, benchmarks: BenchmarkSet | None = None
) -> EngineSetup:
    """What the engine that makes the rounds, and answers the benchmarks, is started with."""
    rollout = config.rollout
    known = None
    if rollout.engine == "fake" and data.stream is not None:
        golds = (problem.gold for problem in data.stream.problems)
        gold_of = dict(zip(data.stream.prompt_ids, golds, strict=True))
        gold_of |= benchmarks.known.gold_of if benchmarks is not None else {}
        known = KnownAnswers(gold_of, required(data.tokenizer, "the problems' tokenizer"))
    return EngineSetup(
        rollout.engine,
        rollout,
        config.model,
        dtype_of(config),
        config.train.seed,
        config.data.seq_length,
        known,
        apart=bool(config.grpo.lag),
        servers=Servers(rollout.servers, rollout.server_concurrency, rollout.sync_dir),
        lora=config.lora,
        adapters=engine_adapters(config.lora, shape, "rollout.sync", rollout.sync),
        routed_experts=asks_experts(config, shape),
    )


def _settings_key(config: GrpoConfig, data: str, *, experts: bool) -> str:
    """Hash of everything that decides a round's rollouts besides weights and stream position."""
    rollout = config.rollout.model_dump(
        include={"engine", "n", "temperature", "top_p", "top_k", "max_tokens"}
    )
    grpo = config.grpo.model_dump(
        include={"prompts_per_step", "dynamic_sampling", "max_resamples", "baseline", "std"}
    )
    text = to_json(
        {
            "rollout": rollout,
            "grpo": grpo,
            "reward": config.reward.model_dump(mode="json"),
            "seed": config.train.seed,
            "data": data,
            **({"experts": True} if experts else {}),
        },
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]
