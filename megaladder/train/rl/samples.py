"""A round as flat numpy arrays that travel to every rank, and its mini-batches.

Pure; no torch.

Legend: B = trainable samples of a round, |o_b| = response tokens of sample b. Left out, and
counted: empty completions, undecided ones, and truncated ones where they are filtered. A sample has
loss on every token of its response, the end-of-sequence token included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megaladder.errors import DataError
from megaladder.ledger.book import Phase
from megaladder.ledger.work import Work
from megaladder.model.moe.choices import from_text
from megaladder.train.objectives.advantages import Aggregation, group_statistics, token_weights
from megaladder.train.rl.records import Round
from megaladder.types import FinishReason, TokenSample

_AGAIN = "grpo.router_replay none, or delete the round's two files, then it is made again"


@dataclass(frozen=True, slots=True)
class SampleTable:
    """The trainable samples of a round. ids, rollout_logprobs: those of all samples end to end.

    Worked example, prompt [5, 6], responses [7, 2] and [8]: ids = [5,6,7,2,5,6,8], prompt_lengths =
    [2,2], response_lengths = [2,1], rollout_logprobs (of the response tokens) has 3 entries.
    """

    step: int
    version: int
    cursor: int
    names: tuple[str, ...]  # [B] problem id and sample, for messages
    group_b: np.ndarray  # int32 [B], index of the group in the round
    prompt_lengths: np.ndarray  # int64 [B]
    response_lengths: np.ndarray  # int64 [B]
    ids: np.ndarray  # int32 [Σ (prompt + response)]
    rollout_logprobs: np.ndarray | None  # float32 [Σ response], None where the engine gave none
    advantages_b: np.ndarray  # float64 [B]
    metrics: Mapping[str, float | int | str]  # of the round, for the log
    seconds: Mapping[str, float]  # of the round, by phase
    work: Mapping[Phase, Work]  # of the round
    # uint8 or uint16 [Σ (prompt + response − 1), layers, K], None where the engine gave none
    routed_experts: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [B]: tokens of each sample, prompt and response."""
        return self.prompt_lengths + self.response_lengths

    def sample(
        self,
        index: int,
        loss_weight: float,
        *,
        with_rollout_as_old: bool = False,
        with_experts: bool = False,
    ) -> TokenSample:
        """Sample `index` with the given weight.

        `with_rollout_as_old`: the engine's log-probs stand in for the old ones. `with_experts`: the
        engine's experts come along, where they are known.
        """
        start, length, prompt = (
            int(self.lengths[:index].sum()),
            int(self.lengths[index]),
            int(self.prompt_lengths[index]),
        )
        rollout = None
        if self.rollout_logprobs is not None:
            first = int(self.response_lengths[:index].sum())
            rollout = np.zeros(length, np.float32)
            rollout[prompt:] = self.rollout_logprobs[first : first + length - prompt]
        return TokenSample(
            self.names[index],
            self.ids[start : start + length],
            np.arange(length) >= prompt,
            advantage=float(self.advantages_b[index]),
            loss_weight=loss_weight,
            rollout_logprobs_n=rollout,
            routed_experts_n=self._experts(index) if with_experts else None,
            old_logprobs_n=rollout if with_rollout_as_old else None,
            policy_version=self.version,
            group=int(self.group_b[index]),
        )

    def _experts(self, index: int) -> np.ndarray | None:
        """int16 [N, layers, K] of a sample; -1 at its last token, which the engine only sampled."""
        if self.routed_experts is None:
            return None
        first, count = int(self.lengths[:index].sum()) - index, int(self.lengths[index]) - 1
        found = np.full((count + 1, *self.routed_experts.shape[1:]), -1, np.int16)
        found[:-1] = self.routed_experts[first : first + count]
        return found


def table_of(found: Round, filter_truncated: bool) -> SampleTable:
    """The trainable samples of a round, and its numbers for the log.

    Raises:
        DataError: an engine's experts are not those of their sample.
    """
    names, group_b, prompts, responses, logprobs, advantages = [], [], [], [], [], []
    experts: list[str] = []
    filtered = empty = undecided = 0
    for number, group in enumerate(found.groups):
        for sample, completion in enumerate(group.completions):
            cut = filter_truncated and completion.finish_reason is FinishReason.LENGTH
            unknown = group.rewards[sample] is None
            filtered, empty = filtered + cut, empty + (not completion.token_ids)
            undecided += unknown
            if cut or unknown or not completion.token_ids:
                continue
            names.append(f"{group.problem.id}/sample {sample}")
            group_b.append(number)
            prompts.append(group.prompt_ids)
            responses.append(completion.token_ids)
            logprobs.append(completion.logprobs)
            experts.append(completion.routed_experts)
            advantages.append(group.advantages[sample])
    whole = list(zip(prompts, responses, strict=True))
    known = bool(logprobs) and all(
        len(one) == len(ids) for one, ids in zip(logprobs, responses, strict=True)
    )
    return SampleTable(
        found.step,
        found.version,
        found.cursor,
        tuple(names),
        np.array(group_b, np.int32),
        np.array([len(ids) for ids in prompts], np.int64),
        np.array([len(ids) for ids in responses], np.int64),
        _flat([ids for pair in whole for ids in pair], np.int32),
        _flat(logprobs, np.float32) if known else None,
        np.array(advantages, np.float64),
        {
            **round_metrics(found),
            "empty_left_out": empty,
            "truncated_left_out": filtered,
            "undecided_left_out": undecided,
        },
        dict(found.seconds),
        dict(found.work),
        _routed(names, experts, [sum(map(len, pair)) - 1 for pair in whole]),
    )


def _routed(
    names: Sequence[str], texts: Sequence[str], num_tokens: Sequence[int]
) -> np.ndarray | None:
    """The engine's experts of all samples end to end; None where one has none."""
    if not texts or not all(texts):
        return None
    found: list[np.ndarray] = []
    for name, text, count in zip(names, texts, num_tokens, strict=True):
        try:
            choices = from_text(text)
        except ValueError as error:
            raise DataError(f"{name}: its routed_experts are {error}; fix: {_AGAIN}") from None
        if len(choices) != count or choices.shape[1:] != (found or [choices])[0].shape[1:]:
            raise DataError(
                f"{name}: routed_experts of {list(choices.shape)} for {count} tokens that the"
                f" engine computed; fix: {_AGAIN}"
            )
        found.append(choices)
    return np.concatenate(found)


def round_metrics(found: Round) -> dict[str, float | int | str]:
    """What the log says about a round.

    Rewards, lengths, what was left out, and the record of its groups.
    """
    completions = [completion for group in found.groups for completion in group.completions]
    statistics = [group_statistics(np.array([group.decided_rewards])) for group in found.groups]
    rewards = [reward for group in found.groups for reward in group.decided_rewards]
    graded = [one.correct for group in found.groups for one in group.graded]
    verdicts = [correct for correct in graded if correct is not None]
    lengths = [len(completion.token_ids) for completion in completions]
    terms: dict[str, list[float]] = {}
    for group in found.groups:
        for parts in group.reward_terms:
            for name, value in parts.items():
                terms.setdefault(name, []).append(value)
    metrics: dict[str, float | int | str] = {
        "reward": float(np.mean(rewards)) if rewards else 0.0,
        "reward_std": float(np.mean([one.reward_std_mean for one in statistics] or [0.0])),
        "num_groups": len(found.groups),
        "response_tokens_mean": float(np.mean(lengths)) if lengths else 0.0,
        "response_tokens_max": max(lengths, default=0),
        "groups_sha256": found.digest(),
        **found.counts,
    }
    if verdicts:
        metrics["accuracy"] = float(np.mean(verdicts))
    if len(terms) > 1:
        metrics |= {f"reward_{name}": float(np.mean(values)) for name, values in terms.items()}
    return metrics


@dataclass(frozen=True, slots=True)
class MiniBatchSamples:
    """The samples of one update over all ranks.

    weights_b: what each token of sample b weighs in Σ weight·loss / N, N = loss tokens.
    """

    indices: np.ndarray  # int64 [samples of the mini-batch], into the table
    weights_b: np.ndarray  # float64, the same length
    num_loss_tokens: int


def split_round(
    table: SampleTable, num_mini_batches: int, aggregation: Aggregation, max_tokens: int
) -> list[MiniBatchSamples]:
    """Mini-batches of equal sample counts (to within one), in order.

    Those without a sample are left out.

    megatron-core divides gradients by N, the loss tokens over all ranks, so the weights carry that
    factor: w_b = N · token_weights_b.
    """
    parts: Sequence[np.ndarray] = np.array_split(np.arange(len(table)), num_mini_batches)
    found = []
    for indices in parts:
        if len(indices):
            lengths = table.response_lengths[indices]
            num_tokens = int(lengths.sum())
            found.append(
                MiniBatchSamples(
                    indices,
                    token_weights(lengths, aggregation, max_tokens) * num_tokens,
                    num_tokens,
                )
            )
    return found


def _flat(rows: Sequence[Sequence[float]], dtype: type) -> np.ndarray:
    return np.concatenate([np.asarray(row, dtype) for row in rows]) if rows else np.zeros(0, dtype)
