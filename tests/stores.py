"""Token samples as a store, without a file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from megaladder.data.store import DataReport, SampleStore, StoreWriter, with_totals
from megaladder.types import TokenSample


def store_of_samples(samples: Iterable[TokenSample]) -> SampleStore:
    """The fingerprint is the hash of ids, masks and lengths."""
    writer = StoreWriter()
    for sample in samples:
        writer.add(sample)
    arrays, names = writer.finish()
    digest = hashlib.sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays)))
    report = with_totals(DataReport(samples=len(names)), arrays)
    return SampleStore(arrays, names, digest.hexdigest(), report)
