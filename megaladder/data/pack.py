"""Samples of one optimizer step → micro-batches of packed tokens, for every data-parallel rank.

Pure functions, no torch, no I/O.

A global batch is a number of *samples*; packing only decides how many rows they fill. Its samples
go best-fit-decreasing into bins of `seq_length` tokens (one sample a bin when packing is off), the
bins go to the ranks with equal counts and balanced cost, and `micro_batch_size` bins laid end to
end form a micro-batch: one row of T tokens in the THD layout of `types.PackedBatch`. Sequences
never see each other (attention is cut at `cu_seqlens`), so a plan changes speed and memory, never
the loss or the gradient.

Context parallelism cuts every sequence into 2·cp chunks: each is padded at its end to a multiple
(`sequence_align`), which causal attention never shows to a real token.
Legend: T = tokens of a micro-batch, N = tokens of a sample, S = sequences of a micro-batch.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from megaladder.errors import ConfigError, DataError
from megaladder.types import IGNORE_INDEX, PackedBatch, TokenSample, required

PADDING_SAMPLE = -1
# padding is cut into sequences of at most this many tokens: attention over padding stays cheap
MAX_PADDING_SEQUENCE = 512
PER_SAMPLE = {"advantage": "advantages_t", "loss_weight": "loss_weights_t"}
PER_TOKEN = {
    "old_logprobs_n": "old_logprobs_t",
    "rollout_logprobs_n": "rollout_logprobs_t",
    "ref_logprobs_n": "ref_logprobs_t",
}
ROUTED = "routed_experts_n"  # the only array that goes with inputs, not with what they predict


@dataclass(frozen=True, slots=True)
class PackSpec:
    """How samples become micro-batches. Lengths in tokens.

    `static`: every micro-batch has exactly micro_batch_size · seq_length tokens (pipeline stages
    exchange fixed shapes). Otherwise it is trimmed to its filled tokens rounded up to `align`.
    `align`: what T must be a multiple of (`capabilities.token_alignment`). `sequence_align`:
    what each sequence is padded to a multiple of; divides `align`. `micro_batches_multiple_of`: the
    number of micro-batches per rank is rounded up to it (interleaved pipeline: pp).
    `attention_cost_tokens`: the sequence length at which attention costs as much as all matrix
    products: 12 · hidden size (per token and layer 24h² FLOPs of matrix products against 2·N·h of
    causal attention); only used to balance ranks.
    """

    seq_length: int
    micro_batch_size: int = 1
    packing: bool = True
    static: bool = False
    align: int = 1
    sequence_align: int = 1
    pad_token_id: int = 0
    micro_batches_multiple_of: int = 1
    attention_cost_tokens: int = 12 * 2560

    def __post_init__(self) -> None:
        for name in (
            "seq_length",
            "micro_batch_size",
            "align",
            "sequence_align",
            "micro_batches_multiple_of",
            "attention_cost_tokens",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"PackSpec.{name} is {getattr(self, name)}; fix: at least 1")
        if self.align % self.sequence_align or self.seq_length % self.sequence_align:
            raise ConfigError(
                f"seq_length {self.seq_length} and align {self.align} are not multiples of"
                f" {self.sequence_align}, which each sequence is padded to (2·cp); fix: seq_length"
                f" {-(-self.seq_length // self.sequence_align) * self.sequence_align}"
            )
        if self.static and self.max_tokens % self.align:
            up = -(-self.seq_length // self.align) * self.align
            raise ConfigError(
                f"micro_batch_size {self.micro_batch_size} × seq_length {self.seq_length} ="
                f" {self.max_tokens} tokens is not a multiple of {self.align}, which this layout"
                f" needs (tensor/sequence parallel, fp8); fix: seq_length {up}"
            )

    @property
    def max_tokens(self) -> int:
        """Most tokens of a micro-batch before alignment: micro_batch_size · seq_length."""
        return self.micro_batch_size * self.seq_length

    def slot(self, num_tokens: int) -> int:
        """Tokens that a sample of `num_tokens` takes."""
        return -(-num_tokens // self.sequence_align) * self.sequence_align

    def padded(self, filled: int) -> int:
        """T of a micro-batch whose samples take `filled` tokens."""
        if self.static:
            return self.max_tokens
        return -(-max(filled, 1) // self.align) * self.align


@dataclass(frozen=True, slots=True)
class MicroBatchPlan:
    """Samples of one micro-batch in the order they are laid out.

    `bins[b]` are sample ids; an empty bin is padding only."""

    bins: tuple[tuple[int, ...], ...]
    num_tokens: int  # real tokens
    total_tokens: int  # T, padding included

    @property
    def sample_ids(self) -> tuple[int, ...]:
        return tuple(sample for samples in self.bins for sample in samples)


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """One global batch on all ranks; every rank computes the same plan.

    `ranks[r][m]` is micro-batch m of data-parallel rank r.

    Worked example, lengths [3, 5, 2, 4] (ids 10…13), seq_length 8, dp 2, not static, align 2: bins
    (11, 10) and (13, 12), ranks = ((MicroBatchPlan(((11, 10),), 8, 8),), (MicroBatchPlan(((13,
    12),), 6, 6),)).
    """

    spec: PackSpec
    ranks: tuple[tuple[MicroBatchPlan, ...], ...]

    @property
    def dp_size(self) -> int:
        return len(self.ranks)

    @property
    def num_micro_batches(self) -> int:
        """Per rank; equal on all ranks."""
        return len(self.ranks[0])

    @property
    def num_tokens(self) -> int:
        """Real tokens over all ranks."""
        return sum(micro.num_tokens for micros in self.ranks for micro in micros)

    @property
    def total_tokens(self) -> int:
        """Tokens that go through the model over all ranks, padding included."""
        return sum(micro.total_tokens for micros in self.ranks for micro in micros)

    @property
    def sample_ids(self) -> tuple[int, ...]:
        """All samples, in layout order."""
        return tuple(
            sample for micros in self.ranks for micro in micros for sample in micro.sample_ids
        )


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of positions into `lengths`, none above `capacity`.

    Longest first, each into the fullest bin that still takes it.

    At most 11/9 · optimum + 1 bins (Johnson 1973). Ties go to the earlier position and the older
    bin, so the result is deterministic.
    """
    order = sorted(range(len(lengths)), key=lambda position: (-lengths[position], position))
    bins: list[list[int]] = []
    open_bins: list[tuple[int, int]] = []  # (free tokens, bin index), ascending
    for position in order:
        length = lengths[position]
        slot = bisect_left(open_bins, (length, -1))
        if slot < len(open_bins):
            free, index = open_bins.pop(slot)
        else:
            free, index = capacity, len(bins)
            bins.append([])
        bins[index].append(position)
        if free > length:
            insort(open_bins, (free - length, index))
    return bins


def _balance(costs: Sequence[float], num_groups: int) -> list[list[int]]:
    """Splits items into `num_groups` equally large groups.

    Dearest first to the cheapest group that has room. Positions per group."""
    room = len(costs) // num_groups
    groups: list[list[int]] = [[] for _ in range(num_groups)]
    load = [0.0] * num_groups
    for item in sorted(range(len(costs)), key=lambda item: (-costs[item], item)):
        group = min(
            (g for g in range(num_groups) if len(groups[g]) < room), key=lambda g: (load[g], g)
        )
        groups[group].append(item)
        load[group] += costs[item]
    return groups


def plan_global_batch(
    lengths: Sequence[int], sample_ids: Sequence[int], spec: PackSpec, dp_size: int
) -> BatchPlan:
    """Distributes the samples of one step. `lengths[i]` is the token count of `sample_ids[i]`.

    The samples of the plan are exactly `sample_ids`. Every rank gets the same number of
    micro-batches, at least one, with empty bins where samples do not suffice. The plan depends on
    `dp_size`, its samples do not. Raises DataError for a sample above seq_length.
    """
    lengths, sample_ids = (
        [int(length) for length in lengths],
        [int(sample) for sample in sample_ids],
    )
    assert len(lengths) == len(sample_ids), f"{len(lengths)} lengths for {len(sample_ids)} samples"
    assert dp_size >= 1, f"dp_size {dp_size}"
    for length, sample in zip(lengths, sample_ids, strict=True):
        if not 0 < length <= spec.seq_length:
            raise DataError(
                f"sample {sample} has {length} tokens, expected 1 to seq_length {spec.seq_length};"
                " fix: truncate or drop it before"
            )
    slots = [spec.slot(length) for length in lengths]
    bins = (
        best_fit_decreasing(slots, spec.seq_length)
        if spec.packing
        else [[position] for position in range(len(lengths))]
    )
    per_round = dp_size * spec.micro_batch_size * spec.micro_batches_multiple_of
    bins += [[] for _ in range(max(-(-len(bins) // per_round), 1) * per_round - len(bins))]
    costs = [
        sum(lengths[p] + lengths[p] ** 2 / spec.attention_cost_tokens for p in members)
        for members in bins
    ]
    ranks = []
    for group in _balance(costs, dp_size):
        num_micro = len(group) // spec.micro_batch_size
        micros = []
        for first in range(num_micro):
            # strided: dear and cheap bins meet in one micro-batch
            chosen = [bins[index] for index in group[first::num_micro]]
            members = [p for group_members in chosen for p in group_members]
            ids = tuple(tuple(sample_ids[p] for p in members) for members in chosen)
            num_tokens, filled = sum(lengths[p] for p in members), sum(slots[p] for p in members)
            micros.append(MicroBatchPlan(ids, num_tokens, spec.padded(filled)))
        ranks.append(tuple(micros))
    return BatchPlan(spec, tuple(ranks))


def build_micro_batches(
    plan: BatchPlan, dp_rank: int, get_sample: Callable[[int], TokenSample]
) -> list[PackedBatch]:
    """The micro-batches of one rank as arrays.

    `get_sample(id)` must return a sample of the planned length.

    `advantages_t` and the log-prob arrays are filled when the samples have them; either all samples
    of the batch have one or none has (DataError). A rank that got only padding asks for one sample
    of the plan to learn which arrays there are.
    """
    micros = plan.ranks[dp_rank]
    samples = {sample: get_sample(sample) for micro in micros for sample in micro.sample_ids}
    probe = next(iter(samples.values()), None)
    if probe is None and plan.sample_ids:
        probe = get_sample(plan.sample_ids[0])
    wanted = tuple(name for name in _optional_arrays(samples, probe) if name != ROUTED)
    batches = [_build(micro, plan.spec, samples, wanted) for micro in micros]
    if probe is None or probe.routed_experts_n is None:
        return batches
    sizes = probe.routed_experts_n.shape[1:]
    return [replace(batch, routed_experts_t=_routed(batch, samples, sizes)) for batch in batches]


def _optional_arrays(samples: dict[int, TokenSample], probe: TokenSample | None) -> tuple[str, ...]:
    names = (*PER_SAMPLE, *PER_TOKEN, ROUTED)
    wanted = tuple(name for name in names if getattr(probe, name, None) is not None)
    for index, sample in samples.items():
        for name in names:
            if (getattr(sample, name) is not None) != (name in wanted):
                state = "has no" if name in wanted else "has"
                raise DataError(
                    f"sample {index} ({sample.id}) {state} {name}, sample {probe and probe.id} is the"
                    " opposite; fix: give it to all or none"
                )
    return wanted


def _layout(sequence_lengths: list[int], total_tokens: int, sequence_align: int) -> np.ndarray:
    """cu_seqlens int32 [S + 1].

    The samples' slots, then padding cut into sequences of at most MAX_PADDING_SEQUENCE tokens."""
    longest = max(MAX_PADDING_SEQUENCE // sequence_align, 1) * sequence_align
    full, rest = divmod(total_tokens - sum(sequence_lengths), longest)
    return np.cumsum(
        [0, *sequence_lengths, *[longest] * full, *([rest] if rest else [])], dtype=np.int32
    )


def _build(
    micro: MicroBatchPlan, spec: PackSpec, samples: dict[int, TokenSample], wanted: tuple[str, ...]
) -> PackedBatch:
    ids, total = micro.sample_ids, micro.total_tokens
    members = [samples[index] for index in ids]
    cu_seqlens = _layout(
        [spec.slot(sample.num_tokens) for sample in members], total, spec.sequence_align
    )
    assert micro.num_tokens == sum(sample.num_tokens for sample in members), (
        "get_sample returned another length than the planned one"
    )
    input_ids_t = np.full(total, spec.pad_token_id, np.int64)
    labels_t = np.full(total, IGNORE_INDEX, np.int64)
    extra = {_array_name(name): np.zeros(total, np.float32) for name in wanted}
    for sample, begin in zip(members, cu_seqlens, strict=False):
        end = begin + sample.num_tokens
        input_ids_t[begin:end] = sample.input_ids
        predicted = sample.loss_mask[1:]  # position i predicts token i + 1
        labels_t[begin : end - 1] = np.where(predicted, sample.input_ids[1:], IGNORE_INDEX)
        for name in wanted:
            values = (
                np.float32(getattr(sample, name))
                if name in PER_SAMPLE
                else getattr(sample, name)[1:]
            )
            extra[_array_name(name)][begin : end - 1] = np.where(predicted, values, np.float32(0))
    sequence_lengths = np.diff(cu_seqlens)
    sample_index = np.full(len(sequence_lengths), PADDING_SAMPLE, np.int64)
    sample_index[: len(ids)] = ids
    return PackedBatch(
        input_ids_t=input_ids_t,
        labels_t=labels_t,
        position_ids_t=np.arange(total, dtype=np.int64)
        - np.repeat(cu_seqlens[:-1].astype(np.int64), sequence_lengths),
        cu_seqlens=cu_seqlens,
        max_seqlen=int(sequence_lengths.max()),
        sample_index=sample_index,
        num_tokens=micro.num_tokens,
        **extra,
    )


def _routed(
    batch: PackedBatch, samples: dict[int, TokenSample], sizes: tuple[int, ...]
) -> np.ndarray:
    """int16 [T, layers, K]: the samples' experts where their tokens lie, else -1."""
    routed = np.full((len(batch.input_ids_t), *sizes), -1, np.int16)
    for index, begin in zip(batch.sample_index.tolist(), batch.cu_seqlens, strict=False):
        if index != PADDING_SAMPLE:
            values = required(samples[index].routed_experts_n, ROUTED)
            routed[begin : begin + len(values)] = values
    return routed


def _array_name(sample_field: str) -> str:
    return (PER_SAMPLE | PER_TOKEN)[sample_field]


def unpack(batch: PackedBatch, values_t: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The inverse for per-token results aligned with `labels_t`.

    Yields (sample index, float array [N]) for each sample, where entry i belongs to token i of the
    sample (entry 0 is 0: token 0 is never predicted; N includes what its slot was padded by). Used
    to give log-probs back to their samples."""
    for index, begin, end in zip(
        batch.sample_index, batch.cu_seqlens, batch.cu_seqlens[1:], strict=False
    ):
        if index != PADDING_SAMPLE:
            values_n = np.zeros(end - begin, values_t.dtype)
            values_n[1:] = values_t[begin : end - 1]
            yield int(index), values_n
