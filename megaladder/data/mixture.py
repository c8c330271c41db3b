"""Several sources in given shares: who comes when is a function of (seed, epoch), exact to a row.

An epoch has a fixed number of samples. After E epochs of L samples, a part of share p has given
E·L·p samples, rounded to a neighbouring whole number, so that all parts together gave E·L. Each
part is walked through in passes of its own: nothing of it repeats before all of it was seen. Since
the order is computed and not drawn, five small numbers in a checkpoint say where to go on.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from megaladder.data.store import DataReport, SampleStore, length_quantiles
from megaladder.errors import DataError
from megaladder.types import TokenSample

SLOT_STREAM, PASS_STREAM = 0x3142, 0x3143  # keep these draws apart from others of the same seed


@dataclass(frozen=True, slots=True)
class Mixture:
    """`sizes`: rows of each part; `weights`: relative shares, None = the sizes.

    >>> Mixture((10, 100), (1.0, 3.0)).counts(0, 40)
    (10, 30)
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...] | None = None

    @property
    def shares(self) -> tuple[Fraction, ...]:
        """Exact, summing to 1; a weight means its decimal digits."""
        given = [Fraction(str(weight)) for weight in self.weights or self.sizes]
        return tuple(weight / sum(given) for weight in given)

    def counts(self, epoch: int, length: int) -> tuple[int, ...]:
        """Samples of each part in epoch `epoch` (from 0) of `length` samples."""
        before, after = self.given(epoch, length), self.given(epoch + 1, length)
        return tuple(new - old for old, new in zip(before, after, strict=True))

    def given(self, epochs: int, length: int) -> tuple[int, ...]:
        """Samples that each part gave in the first `epochs`.

        Its exact share, rounded so that the sum is epochs · length and no part ever takes one back.
        """
        given = [0] * len(self.sizes)
        for epoch in range(1, epochs + 1):
            exact = [share * (epoch * length) for share in self.shares]
            given = [max(old, int(share)) for old, share in zip(given, exact, strict=True)]
            missing = epoch * length - sum(given)
            behind = sorted(range(len(given)), key=lambda part: (given[part] - exact[part], part))
            for part in behind[:missing]:
                given[part] += 1
        return tuple(given)

    def order(self, seed: int, epoch: int, length: int, shuffle: bool) -> np.ndarray:
        """Rows of epoch `epoch`, int64 [length]: indices into the parts laid end to end.

        Unshuffled, each part keeps its file's order and the parts are spread evenly.
        """
        counts, begins = self.counts(epoch, length), self.given(epoch, length)
        first_row = np.concatenate([[0], np.cumsum(self.sizes)])
        rows = [
            first_row[part]
            + self._walk(part, begins[part], counts[part], seed if shuffle else None)
            for part in range(len(self.sizes))
        ]
        if shuffle:
            return np.concatenate(rows)[_permutation((SLOT_STREAM, seed, epoch), length)]
        spread = [(np.arange(count) + 0.5) / max(count, 1) for count in counts]
        return np.concatenate(rows)[np.argsort(np.concatenate(spread), kind="stable")]

    def _walk(self, part: int, begin: int, count: int, seed: int | None) -> np.ndarray:
        """`count` rows of a part from place `begin` of its endless stream of passes."""
        size, rows = self.sizes[part], []
        for number in range(begin // size, (begin + count - 1) // size + 1 if count else 0):
            order = (
                np.arange(size)
                if seed is None
                else _permutation((PASS_STREAM, seed, part, number), size)
            )
            start, stop = max(begin - number * size, 0), min(begin + count - number * size, size)
            rows.append(order[start:stop])
        return np.concatenate(rows) if rows else np.empty(0, np.int64)

    def lines(self, names: Sequence[str], length: int) -> list[str]:
        """What an epoch of `length` samples takes of each part, for a person."""
        return [
            f"  {name}: {count:,} of {length:,} samples an epoch ({float(share):.2%}), its"
            f" {size:,} rows {count / size:.3g} times"
            for name, count, share, size in zip(
                names, self.counts(0, length), self.shares, self.sizes, strict=True
            )
        ]


def _permutation(key: tuple[int, ...], length: int) -> np.ndarray:
    """Of 0…length−1, int64.

    Raw PCG64 output and a stable sort, which no numpy release may change."""
    keys = np.random.PCG64(np.random.SeedSequence(key)).random_raw(length)
    return np.argsort(keys, kind="stable")


class MixedStore(SampleStore):
    """The samples of several stores, laid end to end, with the mixture that orders them."""

    def __init__(
        self, stores: Sequence[SampleStore], weights: tuple[float, ...] | None, label: str = ""
    ) -> None:
        self.stores, self.weights, self._label = tuple(stores), weights, label
        self._ends = np.cumsum([len(store) for store in stores])
        self.mixture: Mixture = Mixture(tuple(len(store) for store in stores), weights)
        self.lengths = np.concatenate([store.lengths for store in stores])
        self.loss_lengths = np.concatenate([store.loss_lengths for store in stores])
        self.report = joined_report([store.report for store in stores], self.lengths)
        parts = [store.fingerprint for store in stores]
        self.fingerprint = hashlib.sha256(f"{parts}|{weights}|{label}".encode()).hexdigest()
        self._check_columns()

    def _check_columns(self) -> None:
        for name in ("has_advantages", "has_old_logprobs"):
            found = {getattr(store, name): store.report.path for store in self.stores}
            if len(found) > 1:
                raise DataError(
                    f"{found[False]}: expected {name.removeprefix('has_').replace('_', ' ')} as in"
                    f" {found[True]}; fix: give them to all parts of data.mixture or to none"
                )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> TokenSample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self.stores[part][int(index - (self._ends[part - 1] if part else 0))]

    @property
    def has_advantages(self) -> bool:
        return self.stores[0].has_advantages

    @property
    def has_old_logprobs(self) -> bool:
        return self.stores[0].has_old_logprobs

    def lines(self, length: int) -> list[str]:
        """What an epoch of `length` samples takes of each part, for a person."""
        return self.mixture.lines([store.report.path for store in self.stores], length)

    def select(self, indices: np.ndarray, label: str) -> MixedStore:
        """The samples at `indices`, which ascend, as a mixture with the same weights.

        Raises DataError where a part is left empty."""
        indices = np.asarray(indices, np.int64)
        chosen, begin = [], 0
        for store, end in zip(self.stores, self._ends, strict=True):
            inside = indices[(indices >= begin) & (indices < end)] - begin
            if not len(inside):
                raise DataError(
                    f"{store.report.path}: data.holdout leaves none of its {len(store)} samples in"
                    " one of the two parts; fix: a file as data.holdout, or a larger share"
                )
            chosen.append(store.select(inside, label))
            begin = int(end)
        return MixedStore(chosen, self.weights, label)


def joined_report(reports: Sequence[DataReport], lengths: np.ndarray) -> DataReport:
    """The counts of several data files as one report."""

    def counts(name: str) -> dict[str, int]:
        return dict(sum((Counter(getattr(report, name)) for report in reports), Counter()))

    totals: dict[str, Any] = {
        name: sum(getattr(report, name) for report in reports) for name in _SUMMED
    }
    return replace(
        reports[0],
        path=", ".join(report.path for report in reports),
        schema=", ".join(dict.fromkeys(report.schema for report in reports)),
        bad_rows=counts("bad_rows"),
        dropped=counts("dropped"),
        largest_token_id=max(report.largest_token_id for report in reports),
        token_quantiles=length_quantiles(lengths),
        **totals,
    )


_SUMMED = (
    "rows",
    "samples",
    "truncated",
    "duplicate_rows",
    "no_end_of_turn",
    "num_tokens",
    "num_loss_tokens",
)
