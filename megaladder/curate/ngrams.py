"""Word n-grams of benchmark problems, and where a text contains them.

Exact: a hit is a run of equal words, never a hash collision.

Words are the `\\w+` runs of the NFKC-normalised, case-folded text (GPT-3 appendix C as in lm-eval;
s1 lower-cases and uses n = 8). A text becomes an array of word numbers (0 = a word no benchmark
has); a rolling 64-bit hash built from each word's blake2b-64 finds candidates through a bitmap, and
each candidate is compared word by word. Memory: the benchmarks only, whatever is scanned.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import NamedTuple

import numpy as np

WORD = re.compile(r"\w+")
ASCII_WORDS = (
    bytes(ord(chr(c).lower()) if chr(c).isalnum() or chr(c) == "_" else 32 for c in range(128))
    + b" " * 128
)
# odd: every word of the window counts in all higher bits
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
MIN_BITMAP_BITS = 12
# of the bitmap: fewer than 2 % of the windows are looked up without need, and it stays in the
# processor's cache
FLAGS_PER_NGRAM = 64


def words(text: str) -> list[str]:
    """`words("Ａ_b, 1/2 É")` → `["a_b", "1", "2", "é"]`."""
    if text.isascii():  # the same result, several times as fast
        return text.encode("ascii").translate(ASCII_WORDS).decode("ascii").split()
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


class Problem(NamedTuple):
    """One benchmark text. `position` is its row in the file, 0-based."""

    benchmark: str
    id: str
    position: int
    word_ids: tuple[int, ...]


class Span(NamedTuple):
    """Words `start…start+length` of the scanned text equal words `problem_start…` of a problem."""

    problem: Problem
    start: int
    problem_start: int
    length: int


@dataclass
class NgramIndex:
    """All n-grams of the added problems.

    A problem shorter than n words but of `min_words` or more counts as one n-gram of its own
    length; a still shorter one cannot be told from chance and is only counted (`too_short`)."""

    n: int = 13
    min_words: int = 8
    problems: list[Problem] = field(default_factory=list)
    too_short: list[Problem] = field(default_factory=list)
    vocabulary: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.n >= 2, self.n
        # length → hash → where it occurs
        self._starts: dict[int, dict[int, list[tuple[Problem, int]]]] = {}
        self._bitmaps: dict[int, tuple[np.ndarray, np.uint64]] = {}
        self._lengths: list[int] = []
        self._word_hashes: list[int] = [0]
        self._table = np.zeros(1, np.uint64)

    @property
    def num_ngrams(self) -> int:
        return sum(len(grams) for grams in self._starts.values())

    def add(self, benchmark: str, problem_id: str, position: int, text: str) -> None:
        """Adds one problem's text; call `seal` after the last."""
        ids = tuple(self._number(word) for word in words(text))
        problem = Problem(benchmark, problem_id, position, ids)
        if len(ids) < min(self.min_words, self.n):
            self.too_short.append(problem)
            return
        self.problems.append(problem)

    def seal(self) -> None:
        """Builds the tables; nothing can be added afterwards."""
        self._table = np.array(self._word_hashes, np.uint64)
        for problem in self.problems:
            length = min(self.n, len(problem.word_ids))
            grams = self._starts.setdefault(length, {})
            for start, key in enumerate(
                self._windows(np.array(problem.word_ids), [length])[length].tolist()
            ):
                grams.setdefault(key, []).append((problem, start))
        self._lengths = sorted(self._starts)
        for length, grams in self._starts.items():
            bits = max(MIN_BITMAP_BITS, (len(grams) * FLAGS_PER_NGRAM).bit_length())
            keys = np.fromiter(grams, np.uint64, len(grams))
            shift = np.uint64(64 - bits)
            bitmap = np.zeros(1 << bits, bool)
            bitmap[keys >> shift] = True
            self._bitmaps[length] = (bitmap, shift)

    def find(self, text: str) -> list[Span]:
        """Maximal spans of the text that are in a problem, in the text's order."""
        found = words(text)
        ids = np.fromiter(map(self.vocabulary.get, found, repeat(0)), np.int64, len(found))
        spans: list[Span] = []
        for length, keys in self._windows(ids, self._lengths).items():
            bitmap, shift = self._bitmaps[length]
            at = np.flatnonzero(bitmap[keys >> shift])
            if len(at):
                spans += _merge(self._confirm(ids, length, at, keys), length)
        return sorted(
            spans,
            key=lambda span: (
                span.start,
                -span.length,
                span.problem.benchmark,
                span.problem.position,
            ),
        )

    def _number(self, word: str) -> int:
        found = self.vocabulary.setdefault(word, len(self._word_hashes))
        if found == len(self._word_hashes):
            self._word_hashes.append(
                int.from_bytes(
                    hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(),
                    "little",
                )
            )
        return found

    def _windows(self, ids: np.ndarray, lengths: Sequence[int]) -> dict[int, np.ndarray]:
        """Per length (ascending) the uint64 hash of each window of that many words.

        Wraps modulo 2^64 on purpose.

        One Horner pass serves all lengths: the hash of k + 1 words is the hash of the first k,
        times the multiplier, plus the next word.
        """
        hashes = self._table[ids]
        total, at, found = hashes.copy(), 1, {}
        for length in lengths:
            if len(ids) < length:
                break
            while at < length:
                total = total[:-1] * MULTIPLIER
                total += hashes[at:]
                at += 1
            found[length] = total.copy() if length != lengths[-1] else total
        return found

    def _confirm(
        self, ids: np.ndarray, length: int, at: np.ndarray, keys: np.ndarray
    ) -> list[tuple[int, Problem, int]]:
        grams, found = self._starts[length], []
        for start in at.tolist():
            for problem, problem_start in grams.get(int(keys[start]), ()):
                if problem.word_ids[problem_start : problem_start + length] == tuple(
                    ids[start : start + length].tolist()
                ):
                    found.append((start, problem, problem_start))
        return found


def _merge(found: Sequence[tuple[int, Problem, int]], length: int) -> list[Span]:
    """Windows that follow each other in text and problem become one span."""
    spans: list[Span] = []
    open_spans: dict[tuple[str, int, int], int] = {}  # (problem, diagonal) → index of its last span
    for start, problem, problem_start in found:
        diagonal = (problem.benchmark, problem.position, start - problem_start)
        last = open_spans.get(diagonal)
        if last is not None and spans[last].start + spans[last].length - length + 1 == start:
            spans[last] = spans[last]._replace(length=spans[last].length + 1)
        else:
            open_spans[diagonal] = len(spans)
            spans.append(Span(problem, start, problem_start, length))
    return spans
