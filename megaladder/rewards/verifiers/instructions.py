"""The published instruction kinds of IFEval: name → (answer, arguments) → is it followed.

Counting rules are the published ones: words are runs of letters and digits, paragraphs are
separated by `***` (or blank lines where the kind says so), a bullet is a line that starts with `*`
or `-`. Sentences end at . ! ? before a space; abbreviations and decimals do not end one.

Stricter than the published checks only where those are met by nothing: a paragraph, bullet, title,
placeholder, section, quotation or second response without a letter or digit is none, `My answer is
yes. My answer is no.` is no choice, JSON is an object or array that holds something, and a
repeated prompt is followed by an answer. Look-alike letters and commas of other scripts count where
a text must not hold too many.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from megaladder.rewards.verifiers.formats import strict_json
from megaladder.rewards.verifiers.language import LANGUAGES, language_of
from megaladder.rewards.verifiers.visible import folded, has_comma, says_something

_RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "at least": lambda count, limit: count >= limit,
    "less than": lambda count, limit: count < limit,
}
_WORD = re.compile(r"\w+")
_LETTER = re.compile(r"[^\W\d_]")
_SENTENCE_END = re.compile(r"(?<!\b[A-Z])(?<!\b[A-Z][a-z])[.!?]+[\"')\]]*(?=\s+\S|\s*\Z)")
_ABBREVIATION = re.compile(
    r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|etc|e\.g|i\.e|Inc|Ltd|Co|No|Fig|approx)\.(?=\s)"
)
_CONSTRAINED = ("my answer is yes.", "my answer is no.", "my answer is maybe.")


def compare(count: int, relation: str, limit: int) -> bool:
    return _RELATIONS[relation](count, limit)


def count_words(text: str) -> int:
    return len(_WORD.findall(text))


def count_sentences(text: str) -> int:
    """Sentences of a text; one that lacks its full stop at the end counts too."""
    plain = _ABBREVIATION.sub("abbreviation", text.strip())
    parts = [part for part in _SENTENCE_END.split(plain) if _LETTER.search(part)]
    return len(parts)


def _occurrences(text: str, keyword: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(keyword)}(?!\w)", text, re.IGNORECASE))


def keywords_exist(answer: str, keywords: Sequence[str]) -> bool:
    return all(_occurrences(answer, word) for word in keywords)


def keyword_frequency(answer: str, keyword: str, frequency: int, relation: str) -> bool:
    shown = folded(answer) if relation == "less than" else answer
    return compare(_occurrences(shown, keyword), relation, frequency)


def forbidden_words(answer: str, forbidden_words: Sequence[str]) -> bool:
    return not any(
        _occurrences(shown, word) for shown in {answer, folded(answer)} for word in forbidden_words
    )


def letter_frequency(answer: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    shown = folded(answer) if let_relation == "less than" else answer
    return compare(shown.lower().count(letter.lower()), let_relation, let_frequency)


def response_language(answer: str, language: str) -> bool:
    if language not in LANGUAGES:
        raise ValueError(f"language {language!r}: one of {', '.join(LANGUAGES)}")
    return language_of(answer) == language


def number_of_sentences(answer: str, num_sentences: int, relation: str) -> bool:
    return compare(count_sentences(answer), relation, num_sentences)


def number_of_paragraphs(answer: str, num_paragraphs: int) -> bool:
    """Paragraphs between `***`; an empty one is a fault, except at the ends."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", answer)]
    if not all(map(says_something, parts[1:-1])):
        return False
    return sum(map(says_something, parts)) == num_paragraphs


def number_of_words(answer: str, num_words: int, relation: str) -> bool:
    return compare(count_words(answer), relation, num_words)


def nth_paragraph_first_word(
    answer: str, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    """Paragraphs are separated by blank lines here."""
    parts = [part.strip() for part in re.split(r"\n\n", answer) if says_something(part)]
    if len(parts) != num_paragraphs or not 1 <= nth_paragraph <= len(parts):
        return False
    word = re.match(r"[\"'“‘*_]*([^\s.,?!\"'”’;:*_]+)", parts[nth_paragraph - 1])
    return word is not None and word[1].lower() == first_word.lower()


def placeholders(answer: str, num_placeholders: int) -> bool:
    return sum(map(says_something, re.findall(r"\[[^\[\]]+\]", answer))) >= num_placeholders


def postscript(answer: str, postscript_marker: str) -> bool:
    """A line that starts with the marker and says something."""
    marker = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(
        postscript_marker, re.escape(postscript_marker)
    )
    return re.search(rf"(?im)^\s*{marker}.*\w.*$", answer) is not None


def bullet_lists(answer: str, num_bullets: int) -> bool:
    lines = re.findall(r"(?m)^[^\S\n]*(?:\*[^*\n]|-(?!-)).*$", answer)
    return sum(map(says_something, lines)) == num_bullets


def constrained_response(answer: str) -> bool:
    return sum(option in answer.lower() for option in _CONSTRAINED) == 1


def highlighted_sections(answer: str, num_highlights: int) -> bool:
    """`*text*` and `**text**`, each once, with something between the stars."""
    double = re.findall(r"\*\*([^\n*]+)\*\*", answer)
    rest = re.sub(r"\*\*[^\n*]+\*\*", " ", answer)
    single = re.findall(r"\*([^\n*]+)\*", rest)
    return sum(map(says_something, (*double, *single))) >= num_highlights


def sections(answer: str, section_spliter: str, num_sections: int) -> bool:
    """Headings `Section 1`, `Section 2`, …, with the word that was asked for, and text below."""
    pieces = re.split(rf"\s?{re.escape(section_spliter)}\s?(\d+)", answer)
    texts = zip(pieces[1::2], pieces[2::2], strict=True)
    return len({heading for heading, text in texts if says_something(text)}) >= num_sections


def json_format(answer: str) -> bool:
    text = re.sub(r"\A```(?:json|JSON|Json)?\s*|\s*```\Z", "", answer.strip())
    try:
        value = strict_json(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict | list) and bool(value)


def title(answer: str) -> bool:
    return any(map(says_something, re.findall(r"<<[^\n]+>>", answer)))


def two_responses(answer: str) -> bool:
    """Two different texts with `******` between them and nothing else empty."""
    parts = [part.strip() for part in answer.split("******")]
    if not all(parts[1:-1]):
        return False
    texts = [_WORD.findall(part.casefold()) for part in parts if part]
    return len(texts) == 2 and all(texts) and texts[0] != texts[1]


def repeat_prompt(answer: str, prompt_to_repeat: str) -> bool:
    prompt = prompt_to_repeat.strip().lower()
    text = answer.strip().lower()
    return text.startswith(prompt) and says_something(text[len(prompt) :])


def end_phrase(answer: str, end_phrase: str) -> bool:
    return answer.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def capital_words(answer: str, capital_frequency: int, capital_relation: str) -> bool:
    words = [word for word in re.findall(r"[\w'-]+", answer) if word.isupper()]
    return compare(len(words), capital_relation, capital_frequency)


def all_capitals(answer: str) -> bool:
    return answer.isupper() and language_of(answer) in ("en", None)


def all_lowercase(answer: str) -> bool:
    return answer.islower() and language_of(answer) in ("en", None)


def no_comma(answer: str) -> bool:
    return not has_comma(answer)


def quotation(answer: str) -> bool:
    text = answer.strip()
    return text.startswith('"') and text.endswith('"') and says_something(text[1:-1])


INSTRUCTIONS: dict[str, Callable[..., bool]] = {
    "keywords:existence": keywords_exist,
    "keywords:frequency": keyword_frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_sentences": number_of_sentences,
    "length_constraints:number_paragraphs": number_of_paragraphs,
    "length_constraints:number_words": number_of_words,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": highlighted_sections,
    "detectable_format:multiple_sections": sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_phrase,
    "change_case:capital_word_frequency": capital_words,
    "change_case:english_capital": all_capitals,
    "change_case:english_lowercase": all_lowercase,
    "punctuation:no_comma": no_comma,
    "startend:quotation": quotation,
}
"""The published names, each with its check."""
