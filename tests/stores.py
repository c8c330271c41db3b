"""Token samples as a store, without a file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from megaladder.data.store import DataReport, SampleStore, StoreWriter
from megaladder.types import TokenSample


def store_of_samples(samples: Iterable[TokenSample]) -> SampleStore:
    """The fingerprint is the hash of ids, masks and lengths."""
    writer = StoreWriter()
    for sample in samples:
        writer.add(sample)
    arrays, report = writer.finish(DataReport())
    content = b"".join(np.asarray(arrays[name]).tobytes() for name in sorted(arrays))
    return SampleStore(arrays, hashlib.sha256(content).hexdigest(), report)


def names_of(store: SampleStore) -> list[str]:
    """Sample ids in order."""
    return [sample.id for sample in store]
