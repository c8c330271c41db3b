"""Exact and near duplicates of texts.

Candidates by MinHash (datasketch), each pair confirmed by the exact Jaccard similarity of its word
shingles.

Which of several duplicates stays is the caller's order: the first one seen. Near duplicates are
compared with kept rows only, so a chain a ~ b ~ c keeps a and c. Memory: about 16 bytes a kept row
for exact, signature and shingles of each kept row (a few KB) for near.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

from megaladder.curate.ngrams import words
from megaladder.errors import ConfigError, MissingDependencyError

SHINGLE_WORDS = 5
NUM_PERMUTATIONS = 128
RECALL = 0.999  # of pairs at the threshold


class Duplicate(NamedTuple):
    """`of` is the key of the row that stays.

    `similarity` 1.0 = the same words in the same order."""

    of: str
    similarity: float


class ExactDuplicates:
    """Texts with the same words in the same order.

    Unicode form, case, punctuation and white space aside."""

    def __init__(self) -> None:
        self._first: dict[bytes, str] = {}

    def check(self, key: str, text: str) -> Duplicate | None:
        """The earlier row that `text` repeats.

        None, and the row is remembered, if there is none."""
        digest = hashlib.blake2b(" ".join(words(text)).encode("utf-8"), digest_size=16).digest()
        earlier = self._first.setdefault(digest, key)
        return None if earlier == key else Duplicate(earlier, 1.0)


class NearDuplicates:
    """Texts whose 5-word shingles have a Jaccard similarity of at least `threshold`.

    Texts without words are never duplicates."""

    def __init__(self, threshold: float = 0.8, seed: int = 42):
        if not 0 < threshold <= 1:
            raise ConfigError(
                f"near-duplicate threshold {threshold} should be in (0, 1]; fix: 0.8 is usual"
            )
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError:
            raise MissingDependencyError(
                "near-duplicate removal needs datasketch; add it: pip install datasketch==2.0.0"
            ) from None
        self._threshold, self._new = (
            threshold,
            lambda: MinHash(num_perm=NUM_PERMUTATIONS, seed=seed, hashfunc=_identity),
        )
        self._lsh = MinHashLSH(num_perm=NUM_PERMUTATIONS, params=bands(threshold))
        self._shingles: dict[str, np.ndarray] = {}

    def check(self, key: str, text: str) -> Duplicate | None:
        """The most similar kept row at or above the threshold.

        None, and the row is kept, if there is none."""
        shingles = shingle_hashes(text)
        if not len(shingles):
            return None
        minhash = self._new()
        minhash.update_batch(shingles.tolist())
        best: Duplicate | None = None
        for other in sorted(self._lsh.query(minhash)):
            similarity = jaccard(shingles, self._shingles[other])
            if similarity >= self._threshold and (best is None or similarity > best.similarity):
                best = Duplicate(other, similarity)
        if best is None:
            self._lsh.insert(key, minhash)
            self._shingles[key] = shingles
        return best


def bands(threshold: float) -> tuple[int, int]:
    """(bands, rows per band) of the LSH.

    As many rows as still find 99.9 % of the pairs right at the threshold, 1 − (1 − s^r)^b.

    A pair that is missed cannot be repaired; a candidate too many is only compared.

    >>> bands(0.8), bands(0.6)
    ((25, 5), (42, 3))
    """
    for rows in range(8, 1, -1):
        count = NUM_PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** count >= RECALL:
            return count, rows
    return NUM_PERMUTATIONS, 1


def shingle_hashes(text: str) -> np.ndarray:
    """uint32 hashes of the distinct 5-word shingles, sorted; a shorter text is one shingle."""
    found = words(text)
    if not found:
        return np.zeros(0, np.uint32)
    count = max(1, len(found) - SHINGLE_WORDS + 1)
    shingles = {" ".join(found[i : i + SHINGLE_WORDS]) for i in range(count)}
    hashes = (
        int.from_bytes(hashlib.blake2b(s.encode("utf-8"), digest_size=4).digest(), "little")
        for s in shingles
    )
    return np.unique(np.fromiter(hashes, np.uint32))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|a ∩ b| / |a ∪ b| of two sorted arrays of distinct numbers."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def _identity(value: int) -> int:
    """datasketch's hash function: the shingles come hashed."""
    return value
