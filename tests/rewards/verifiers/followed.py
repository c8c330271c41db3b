"""Responses that follow an IFEval instruction, written from the instruction's text alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from megaladder.rewards.worker import GradeTask

SEED = 8
NOUNS = [
    "river",
    "garden",
    "lantern",
    "bridge",
    "violin",
    "harbor",
    "meadow",
    "window",
    "engine",
    "forest",
]
VERBS = ["shines", "waits", "sings", "drifts", "rests", "grows", "returns", "turns"]
GERMAN = (
    "Der Hund ist nicht im Haus und die Katze ist auch nicht da.",
    "Wir sind mit dem Auto zu den Kindern gefahren, und es war schön.",
)
OTHER_LANGUAGES = {
    "de": GERMAN,
    "fr": ("Le chat est dans la maison et il ne veut pas sortir avec nous.",),
    "es": ("El perro está en la casa y los niños no quieren salir por la lluvia.",),
    "ru": ("Он не был дома, и это было так же странно, как и то, что я на улице.",),
    "hi": ("यह किताब मेरे घर में है और वह स्कूल के लिए है।",),
    "ko": ("오늘은 날씨가 좋아서 공원에 갔습니다.",),
    "ar": ("هذا الكتاب في البيت وهو من الكتب التي كان على الطاولة.",),
    "en": ("The house on the hill is old, and it was not for sale.",),
}


def sentence(draw: random.Random) -> str:
    return f"The {draw.choice(NOUNS)} {draw.choice(VERBS)} and the {draw.choice(NOUNS)} stays."


def text_of(draw: random.Random, count: int) -> str:
    return " ".join(sentence(draw) for _ in range(count))


def instructions(draw: random.Random) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(kind, arguments, a response that follows it), one for each kind."""
    n = draw.randint(2, 6)
    body, noun = text_of(draw, 3), draw.choice(NOUNS)
    at_least, less = {"relation": "at least"}, {"relation": "less than"}
    blocks = [text_of(draw, 2) for _ in range(n)]
    yield "keywords:existence", {"keywords": [noun, "moon"]}, f"{body} A {noun.upper()}, a moon!"
    many = f"Here: {', '.join([noun] * n)}. {sentence(draw)}"
    yield "keywords:frequency", {"keyword": noun, "frequency": n, **at_least}, many
    few = {"keyword": "comet", "frequency": n, **less}
    yield "keywords:frequency", few, f"{body} One comet."
    yield "keywords:forbidden_words", {"forbidden_words": ["comet", "star"]}, f"{body} Starry."
    letters = {"letter": "z", "let_frequency": n, "let_relation": "at least"}
    yield "keywords:letter_frequency", letters, f"{body} {'Zz' * n}"
    language = draw.choice(list(OTHER_LANGUAGES))
    spoken = draw.choice(OTHER_LANGUAGES[language])
    yield "language:response_language", {"language": language}, spoken
    yield (
        "length_constraints:number_sentences",
        {"num_sentences": n, **at_least},
        text_of(draw, n),
    )
    yield (
        "length_constraints:number_sentences",
        {"num_sentences": n + 1, **less},
        f"Dr. {'. '.join(['Aster waits at 3.5 km'] * n)}.",
    )
    yield "length_constraints:number_paragraphs", {"num_paragraphs": n}, "\n***\n".join(blocks)
    yield "length_constraints:number_words", {"num_words": 9, **at_least}, body
    yield "length_constraints:number_words", {"num_words": 9, **less}, sentence(draw)[:20]
    first = {"num_paragraphs": n, "nth_paragraph": n, "first_word": "weather"}
    yield (
        "length_constraints:nth_paragraph_first_word",
        first,
        "\n\n".join([*blocks[:-1], "Weather " + blocks[-1]]),
    )
    fields = " ".join(f"[{draw.choice(NOUNS)} {i}]" for i in range(n))
    yield "detectable_content:number_placeholders", {"num_placeholders": n}, f"Dear {fields},"
    marker = draw.choice(["P.S.", "P.P.S"])
    note = f"{body}\n\n{marker} {sentence(draw)}"
    yield "detectable_content:postscript", {"postscript_marker": marker}, note
    mark = draw.choice("*-")
    bullets = "\n".join(f"{mark} {block}" for block in blocks)
    yield "detectable_format:number_bullet_lists", {"num_bullets": n}, f"List:\n{bullets}\n\nEnd."
    choice = draw.choice(["yes", "no", "maybe"])
    yield "detectable_format:constrained_response", {}, f"My answer is {choice}."
    marks = " ".join(draw.choice(["*%s*", "**%s**"]) % block for block in blocks)
    yield "detectable_format:number_highlighted_sections", {"num_highlights": n}, marks
    word = draw.choice(["Section", "SECTION", "Day"])
    parts = "\n\n".join(f"{word} {i}\n{block}" for i, block in enumerate(blocks, 1))
    sections = {"section_spliter": word, "num_sections": n}
    yield "detectable_format:multiple_sections", sections, parts
    yield "detectable_format:json_format", {}, f'```json\n{{"{noun}": [1, "a, b"]}}\n```'
    yield "detectable_format:title", {}, f"<<Ode to a {noun}>>\n\n{body}"
    yield "combination:two_responses", {}, f"{body}\n\n******\n\n{text_of(draw, 4)}"
    request = f"Write a poem about a {noun}."
    yield "combination:repeat_prompt", {"prompt_to_repeat": request}, f"{request}\n\n{body}"
    end = "Is there anything else I can help with?"
    yield "startend:end_checker", {"end_phrase": end}, f"{body}\n\n{end}"
    capitals = {"capital_frequency": n, "capital_relation": "at least"}
    yield "change_case:capital_word_frequency", capitals, f"{body} {'VERY ' * n}well."
    yield "change_case:english_capital", {}, body.upper()
    yield "change_case:english_lowercase", {}, body.lower()
    yield "punctuation:no_comma", {}, f"{body} It costs 3.50 (or so); fine!"
    yield "startend:quotation", {}, f'"{body}"'


def followed() -> Iterator[GradeTask]:
    draw = random.Random(SEED)
    for _ in range(25):
        for name, given, text in instructions(draw):
            row = {"instruction_id_list": [name], "kwargs": [given]}
            yield GradeTask(name, f"<think>hm</think>\n\n{text}", "", "ifeval", row)
