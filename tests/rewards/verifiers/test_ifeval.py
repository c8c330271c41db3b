"""IFEval: each published kind has answers that follow it and near misses that do not."""

from __future__ import annotations

from typing import Any

import pytest

from megaladder.errors import DataError
from megaladder.rewards.verifiers import check_row, verify
from megaladder.rewards.verifiers.instructions import INSTRUCTIONS, count_sentences

LOREM = "the cat is on the mat and it is not happy"
CASES: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "keywords:existence": (
        {"keywords": ["cat", "dog"]},
        ["A cat and a dog.", "CAT, Dog!"],
        ["cat only", "category dogma", "cat do g", "concatenated dogs"],
    ),
    "keywords:frequency": (
        {"keyword": "cat", "frequency": 2, "relation": "at least"},
        ["cat cat", "Cat. The CAT, a cat"],
        ["cat", "catcat", "cats cats", "concat cat"],
    ),
    "keywords:forbidden_words": (
        {"forbidden_words": ["cat"]},
        ["a dog", "category"],
        ["a cat", "CAT!", "the (cat)"],
    ),
    "keywords:letter_frequency": (
        {"letter": "z", "let_frequency": 2, "let_relation": "less than"},
        ["a z", "none"],
        ["zz", "Z and z"],
    ),
    "language:response_language": (
        {"language": "de"},
        ["Das ist nicht ein Hund und die Katze ist da."],
        [LOREM, "Das", "le chat est dans la maison et il est content", "12345"],
    ),
    "length_constraints:number_sentences": (
        {"num_sentences": 3, "relation": "at least"},
        ["One. Two! Three?", "A is 1.5. B is so. C ends"],
        ["One. Two.", "Dr. Smith has 1.5 of it.", "...", "1.2.3.4."],
    ),
    "length_constraints:number_paragraphs": (
        {"num_paragraphs": 2},
        ["one\n***\ntwo"],
        ["one", "one\n\ntwo", "one\n***\ntwo\n***\nthree", "one\n***\n***\ntwo", "***"],
    ),
    "length_constraints:number_words": (
        {"num_words": 3, "relation": "at least"},
        ["a b c", "one, two; three"],
        ["a b", "one-word", "!!! ??? ..."],
    ),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "cats"},
        ["one\n\nCats sleep.", 'one\n\n"Cats" sleep'],
        ["Cats\n\ntwo", "one\n\ncatsuit", "one\n\ntwo\n\ncats", "one\ncats"],
    ),
    "detectable_content:number_placeholders": (
        {"num_placeholders": 2},
        ["[name] and [age]"],
        ["[name]", "[]", "[[]]", "(name) (age)"],
    ),
    "detectable_content:postscript": (
        {"postscript_marker": "P.S."},
        ["text\nP.S. more", "text\np. s. more"],
        ["text", "text P.S. more", "P.S.", "PS more", "text\nP.P.S. x"],
    ),
    "detectable_format:number_bullet_lists": (
        {"num_bullets": 2},
        ["* a\n* b", "- a\n- b", "x:\n* a\n- b"],
        ["* a", "* a\n* b\n* c", "** a\n** b", "a * b\nc * d"],
    ),
    "detectable_format:constrained_response": (
        {},
        ["My answer is yes.", "well: my answer is maybe."],
        ["yes", "My answer is yes", "My answer is perhaps."],
    ),
    "detectable_format:number_highlighted_sections": (
        {"num_highlights": 2},
        ["*a* and *b*", "**a** and **b**"],
        ["*a*", "**a**", "* *  * *", "a * b * c"[:5]],
    ),
    "detectable_format:multiple_sections": (
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1\na\nSection 2\nb"],
        ["Section 1\na", "Section one\nSection two", "Part 1 Part 2"],
    ),
    "detectable_format:json_format": (
        {},
        ['{"a": 1}', "```json\n[1]\n```"],
        ["{a: 1}", '{"a": 1', 'JSON: {"a": 1}', '{"a": NaN}', '{"a": 1, "a": 2}'],
    ),
    "detectable_format:title": (
        {},
        ["<<a poem>>\ntext"],
        ["<a poem>", "<<>>", "<< >>", "title: a poem", "<<a\npoem>>"],
    ),
    "combination:two_responses": (
        {},
        ["one\n******\ntwo"],
        ["one", "one\n******\none", "one\n******", "a\n******\nb\n******\nc", "one***two"],
    ),
    "combination:repeat_prompt": (
        {"prompt_to_repeat": "Write a poem."},
        ["Write a poem. Roses", "write a poem.\nx"],
        ["Roses", "Sure! Write a poem.", "Write a  poem. x"],
    ),
    "startend:end_checker": (
        {"end_phrase": "Is that all?"},
        ["text. Is that all?", '"text is that all?"'],
        ["Is that all? text", "Is that all", "Is that all?!"],
    ),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["BIG and LOUD"],
        ["Big And Loud", "BIG and loud", "12 34"],
    ),
    "change_case:english_capital": ({}, [LOREM.upper()], [LOREM, "A b", "123"]),
    "change_case:english_lowercase": ({}, [LOREM], [LOREM.upper(), "the Cat", "123"]),
    "punctuation:no_comma": ({}, ["a; b"], ["a, b", ","]),
    "startend:quotation": ({}, ['"quoted"'], ["quoted", '"', '"half', "'quoted'"]),
}


def verdict(name: str, given: dict[str, Any], text: str) -> bool | None:
    row = {"instruction_id_list": [name], "kwargs": [{**given, "unused": None}]}
    return verify("ifeval", text, "", row).correct


def test_all_published_kinds_are_here():
    assert len(INSTRUCTIONS) == 25 and set(CASES) == set(INSTRUCTIONS)


@pytest.mark.parametrize("name", CASES)
def test_what_follows_and_what_does_not(name):
    given, good, bad = CASES[name]
    assert [verdict(name, given, f"<think>x</think>{text}") for text in good] == [True] * len(good)
    assert [verdict(name, given, text) for text in bad] == [False] * len(bad)


def test_an_empty_answer_follows_nothing():
    for name, (given, good, _) in CASES.items():
        for empty in ("", "   ", f"<think>{good[0]}", f"<think>{good[0]}</think>"):
            assert verdict(name, given, empty) is False, name


def test_every_instruction_has_to_be_followed():
    names = ["punctuation:no_comma", "startend:quotation"]
    row = {"instruction_id_list": names, "kwargs": [{}, {}]}
    assert verify("ifeval", '"a b"', "", row).correct is True
    found = verify("ifeval", '"a, b"', "", row)
    assert found.correct is False and found.detail == "not followed: punctuation:no_comma"


def test_sentences():
    counts = {"One. Two.": 2, "Dr. No came.": 1, "It costs 1.50.": 1, "Yes!!! No?": 2, "no stop": 1}
    assert {text: count_sentences(text) for text in counts} == counts


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"instruction_id_list": []},
        {"instruction_id_list": ["no:such"]},
        {"instruction_id_list": ["keywords:existence"], "kwargs": [{}]},
        {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}, {}]},
        {"instruction_id_list": ["language:response_language"], "kwargs": [{"language": "tlh"}]},
    ],
)
def test_a_row_that_cannot_be_followed_is_refused(row):
    with pytest.raises(DataError, match="fix:"):
        check_row("ifeval", "", row)
