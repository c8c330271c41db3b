"""n-gram search against brute force, and duplicates."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaladder.curate.dedup import ExactDuplicates, NearDuplicates, jaccard, shingle_hashes
from megaladder.curate.ngrams import NgramIndex, words

SENTENCE = "the quick brown fox jumps over the lazy dog and runs away from the angry old farmer"


def index_of(*texts: str, n: int = 5, min_words: int = 3) -> NgramIndex:
    index = NgramIndex(n, min_words)
    for position, text in enumerate(texts):
        index.add("bench", str(position), position, text)
    index.seal()
    return index


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_words_is_the_regular_expression_also_on_its_fast_path(text: str) -> None:
    assert words(text) == re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


@given(st.text(alphabet=st.characters(max_codepoint=127)))
@settings(max_examples=300, deadline=None)
def test_words_of_ascii(text: str) -> None:
    assert words(text) == re.findall(r"\w+", text.lower())


WORD_LISTS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=25)


@given(WORD_LISTS, st.lists(WORD_LISTS, min_size=1, max_size=3), st.integers(2, 5))
@settings(max_examples=200, deadline=None)
def test_find_equals_brute_force(text: list[str], problems: list[list[str]], n: int) -> None:
    index = NgramIndex(n, min_words=2)
    for position, problem in enumerate(problems):
        index.add("bench", str(position), position, " ".join(problem))
    index.seal()
    found = {
        (span.problem.position, start, span.problem_start + start - span.start)
        for span in index.find(" ".join(text))
        for start in range(
            span.start, span.start + span.length - min(n, len(span.problem.word_ids)) + 1
        )
    }
    expected = set()
    for position, problem in enumerate(problems):
        length = min(n, len(problem))
        if len(problem) >= 2:
            for start in range(len(text) - length + 1):
                for other in range(len(problem) - length + 1):
                    if text[start : start + length] == problem[other : other + length]:
                        expected.add((position, start, other))
    assert found == expected


def test_spans_are_maximal_and_placed() -> None:
    (span,) = index_of(SENTENCE).find("Yesterday, THE QUICK, “brown” fox jumps—over the lazy cat")
    assert (span.start, span.problem_start, span.length) == (1, 0, 8)


def test_unicode_forms_and_case_are_one_word() -> None:
    (span,) = index_of("Ｆｉｎｄ the café's ½ price in straße nine").find(
        "find THE cafe\u0301’s 1⁄2 price in STRASSE nine"
    )
    assert span.length == 10


def test_short_problems_match_whole_or_are_counted() -> None:
    index = index_of("find the value of x", "two words", SENTENCE, n=13, min_words=5)
    assert [problem.id for problem in index.too_short] == ["1"]
    assert [span.problem.id for span in index.find("please find the value of x now")] == ["0"]
    assert index.find("please find the value of y now") == []


def test_near_duplicates_have_the_exact_similarity() -> None:
    finder = NearDuplicates(0.6)
    assert finder.check("a", SENTENCE) is None
    changed = SENTENCE.replace("farmer", "neighbour")
    a, b = shingle_hashes(SENTENCE), shingle_hashes(changed)
    assert jaccard(a, b) == 12 / 14  # 17 words: 13 shingles each, the last one differs
    duplicate = finder.check("b", changed)
    assert duplicate is not None
    assert (duplicate.of, duplicate.similarity) == ("a", 12 / 14)
    assert (
        finder.check("c", "an entirely different question about seven green bottles on a wall")
        is None
    )
    assert finder.check("empty", "?!") is None
    assert finder.check("empty too", "?!") is None


def test_exact_duplicates_ignore_case_form_and_punctuation() -> None:
    finder = ExactDuplicates()
    assert finder.check("a", "What is 1 + 1?") is None
    duplicate = finder.check("b", "what IS 1+1")
    assert duplicate is not None
    assert duplicate.of == "a"
    assert finder.check("c", "What is 1 + 2?") is None


@pytest.mark.parametrize("threshold", [0.0, 1.5])
def test_a_threshold_outside_its_range_is_told(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        NearDuplicates(threshold)
