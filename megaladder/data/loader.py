"""The order in which samples are seen, and the iterator that a training loop consumes.

The global order is a pure function of (seed, epoch): a permutation of all rows (or file order,
unshuffled), cut into global batches, the remainder left out (another random remainder each epoch).
A mixture orders itself (`mixture`) and leaves nothing out: its parts are endless.
The number of ranks does not enter, so a run may resume with another data-parallel size and still
see the same batches. The state to save is five small numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np

from megaladder.data.pack import BatchPlan, PackSpec, build_micro_batches, plan_global_batch
from megaladder.data.store import SampleStore
from megaladder.errors import CheckpointError, ConfigError
from megaladder.types import PackedBatch

ORDER_STREAM = 0x0DE2  # keeps the shuffle apart from other uses of the same seed
_MUST_MATCH = ("fingerprint", "num_samples", "global_batch_size", "seed")


@dataclass(frozen=True, slots=True)
class BatchStats:
    """What one global batch is made of, over all ranks.

    Every rank computes the same numbers without communication."""

    epoch: int  # 0-based
    step_in_epoch: int  # 0-based
    sample_ids: np.ndarray  # int64 [global batch], indices into the store
    num_tokens: int  # real tokens
    num_loss_tokens: int  # the denominator of a per-token mean
    total_tokens: int  # tokens through the model, padding included
    num_micro_batches: int  # per rank

    @property
    def non_padding_share(self) -> float:
        return self.num_tokens / self.total_tokens


def epoch_order(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """Permutation of 0…num_samples-1, int64.

    Built on raw PCG64 output and a stable sort, which no numpy release may change."""
    keys = np.random.PCG64(np.random.SeedSequence((ORDER_STREAM, seed, epoch))).random_raw(
        num_samples
    )
    return np.argsort(keys, kind="stable")


class SftLoader:
    """Endless iterator of (micro-batches of this rank, BatchStats).

    `total_steps(epochs)` says where to stop.

    >>> for micro_batches, stats in loader: ...

    `state_dict()` taken after a step and loaded into a fresh loader gives exactly the batches that
    would have followed.
    """

    def __init__(
        self,
        store: SampleStore,
        global_batch_size: int,
        seed: int,
        spec: PackSpec,
        dp_rank: int = 0,
        dp_size: int = 1,
        shuffle: bool = True,
    ) -> None:
        if global_batch_size > len(store):
            raise ConfigError(
                f"train.global_batch_size {global_batch_size} is more than the {len(store)}"
                f" training samples; fix: at most {len(store)}"
            )
        assert 0 <= dp_rank < dp_size, f"dp_rank {dp_rank} of {dp_size}"
        self.store, self.global_batch_size, self.seed, self.spec = (
            store,
            global_batch_size,
            seed,
            spec,
        )
        self.dp_rank, self.dp_size, self.shuffle = dp_rank, dp_size, shuffle
        self._epoch = self._step_in_epoch = 0
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def steps_per_epoch(self) -> int:
        return len(self.store) // self.global_batch_size

    @property
    def dropped_per_epoch(self) -> int:
        """Samples that an epoch leaves out because they do not fill a global batch.

        Others in each epoch."""
        return len(self.store) % self.global_batch_size

    def total_steps(self, epochs: float) -> int:
        """ceil(steps per epoch · epochs), exact for decimal fractions such as 0.1."""
        return ceil(self.steps_per_epoch * Fraction(str(epochs)))

    def batch_ids(self, epoch: int, step_in_epoch: int) -> np.ndarray:
        """Indices into the store of one global batch, int64 [global_batch_size].

        The same whatever dp is."""
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self._epoch_order(epoch))
        begin = step_in_epoch * self.global_batch_size
        return self._order[1][begin : begin + self.global_batch_size]

    def _epoch_order(self, epoch: int) -> np.ndarray:
        count, mixture = len(self.store), self.store.mixture
        if mixture is not None:
            seen = self.steps_per_epoch * self.global_batch_size
            return mixture.order(self.seed, epoch, seen, self.shuffle)
        return epoch_order(count, self.seed, epoch) if self.shuffle else np.arange(count)

    def __iter__(self) -> SftLoader:
        return self

    def __next__(self) -> tuple[list[PackedBatch], BatchStats]:
        epoch, step = self._epoch, self._step_in_epoch
        batch = _make_batch(
            self.store,
            self.batch_ids(epoch, step),
            self.spec,
            (self.dp_rank, self.dp_size),
            (epoch, step),
        )
        self._epoch, self._step_in_epoch = (
            (epoch, step + 1) if step + 1 < self.steps_per_epoch else (epoch + 1, 0)
        )
        return batch

    def state_dict(self) -> dict[str, Any]:
        """JSON-able. The position is that of the next batch."""
        return {"epoch": self._epoch, "step_in_epoch": self._step_in_epoch, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state` was taken.

        Raises CheckpointError when data, seed or global batch are others: the order would be too.
        """
        identity = self._identity()
        wrong = [
            f"{name}: saved {state.get(name)!r}, now {identity[name]!r}"
            for name in _MUST_MATCH
            if state.get(name) != identity[name]
        ]
        if wrong:
            raise CheckpointError(
                f"the data position cannot be restored: {'; '.join(wrong)}; fix: restore these"
                " settings, or start in a new run_dir"
            )
        self._epoch, self._step_in_epoch = int(state["epoch"]), int(state["step_in_epoch"])

    def _identity(self) -> dict[str, Any]:
        return {
            "fingerprint": self.store.fingerprint,
            "num_samples": len(self.store),
            "global_batch_size": self.global_batch_size,
            "seed": self.seed,
        }


def eval_batches(
    store: SampleStore, batch_size: int, spec: PackSpec, dp_rank: int = 0, dp_size: int = 1
) -> Iterator[tuple[list[PackedBatch], BatchStats]]:
    """Every sample once, in file order; the last batch may be smaller.

    All ranks get the same number of batches and micro-batches."""
    for step, begin in enumerate(range(0, len(store), batch_size)):
        ids = np.arange(begin, min(begin + batch_size, len(store)), dtype=np.int64)
        yield _make_batch(store, ids, spec, (dp_rank, dp_size), (0, step))


def _make_batch(
    store: SampleStore,
    ids: np.ndarray,
    spec: PackSpec,
    dp: tuple[int, int],
    position: tuple[int, int],
) -> tuple[list[PackedBatch], BatchStats]:
    plan: BatchPlan = plan_global_batch(store.lengths[ids].tolist(), ids.tolist(), spec, dp[1])
    stats = BatchStats(
        epoch=position[0],
        step_in_epoch=position[1],
        sample_ids=ids,
        num_tokens=plan.num_tokens,
        num_loss_tokens=int(store.loss_lengths[ids].sum(dtype=np.int64)),
        total_tokens=plan.total_tokens,
        num_micro_batches=plan.num_micro_batches,
    )
    return build_micro_batches(plan, dp[0], store.__getitem__), stats
