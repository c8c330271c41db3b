"""Which language a text is in, by its letters and its most frequent words. No model, no randomness.

A script that one language of the list uses decides by itself; where several share one (Latin,
Cyrillic, Arabic, Devanagari), function words do. Texts of under three known words in such a script
have no verdict.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache

MIN_WORDS = 3
_SCRIPTS = {
    "CJK": "zh",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "HANGUL": "ko",
    "THAI": "th",
    "HEBREW": "he",
    "GREEK": "el",
    "BENGALI": "bn",
    "TAMIL": "ta",
    "TELUGU": "te",
    "KANNADA": "kn",
    "MALAYALAM": "ml",
    "GUJARATI": "gu",
    "GURMUKHI": "pa",
}
_WORDS = {
    "LATIN": {
        "en": "the of and to in is that for it as with was on are be this by not have from",
        "de": "der die und das ist nicht ein eine zu den mit sich auf für von dem es auch im wir",
        "fr": "le la les et des est une dans que qui pour pas sur avec sont ce il du nous plus",
        "es": "el los las y que es una por con para se del no su como más está son pero lo",
        "pt": "o os as que é uma por com para não se do da em dos mais como são mas ao",
        "it": "il di che è una per con non sono del della gli nel le come più anche questo si ha",
        "pl": "i w nie na się że jest do to z jak ale od przez po dla są tym tego przy",
        "vi": "là và của có không một những được cho các trong người với này đã để khi cũng",
        "sw": "na ya wa ni kwa katika za kuwa la hii cha kama yake sana watu pia lakini hiyo",
        "fi": "ja on ei se että hän oli ovat joka mutta kun myös niin tai ole jos kuin voi",
        "nl": "de het een van en is dat niet op te zijn voor met die ook aan er maar bij naar",
    },
    "CYRILLIC": {
        "ru": "и в не на что с он как это по но из у к я для так же от был",
        "uk": "і та в не на що з це як до його для від але є є у за про був їх",
        "bg": "и на да се в е за от не с че по като са си ще това но има го",
    },
    "ARABIC": {
        "ar": "في من على إلى أن هذا التي ما لا كان هو عن مع هذه الذي كل بعد قد أو",
        "fa": "در و به از که این را با است برای آن یک های خود می تا بر شود هم کرد",
        "ur": "کے کی میں ہے اور کا سے کو کہ یہ نے پر بھی ہیں ایک نہیں تھا جو اس",
    },
    "DEVANAGARI": {
        "hi": "के का में है और की से को यह पर कि ने हैं नहीं भी एक इस था लिए हो",
        "mr": "आणि आहे या तो ते हे च्या मध्ये होते आहेत नाही एक की हा ही त्या करून पण साठी",
        "ne": "छ र को मा यो हो भएको गर्न एक पनि छन् लागि हुन्छ तर गरेको थियो त्यो नै भने",
    },
}
LANGUAGES = tuple(
    sorted({*_SCRIPTS.values(), *(code for part in _WORDS.values() for code in part)})
)
_WORD = re.compile(r"[^\W\d_]+(?:[\u0300-\u036f\u0900-\u0dff]+[^\W\d_]*)*")
# marks of Devanagari end a \w run in Python, so its words are split at spaces
_SPACED = re.compile(r"[\u0900-\u097f]+")


def language_of(text: str) -> str | None:
    """ISO 639-1 code of the language of most of a text's letters; None where nothing says."""
    scripts = _letters_by_script(text)
    if not scripts:
        return None
    if "HIRAGANA" in scripts or "KATAKANA" in scripts:
        kana = scripts["HIRAGANA"] + scripts["KATAKANA"]
        if 10 * kana >= scripts["CJK"]:
            scripts["HIRAGANA"] += scripts.pop("CJK", 0)
    script = max(scripts, key=lambda name: (scripts[name], name))
    if script in _SCRIPTS:
        return _SCRIPTS[script]
    return _by_words(text, _WORDS[script]) if script in _WORDS else None


def share_in(text: str, language: str) -> float:
    """Share of a text's letters that stand in sentences of a language, in [0, 1].

    1 without letters.

    Lines are judged one by one; a line without a verdict of its own counts like the others.
    """
    lines = [(line, sum(_letters_by_script(line).values())) for line in text.split("\n")]
    judged = [(language_of(line), letters) for line, letters in lines if letters]
    known = [(found, letters) for found, letters in judged if found is not None]
    total = sum(letters for _, letters in known)
    return sum(letters for found, letters in known if found == language) / total if total else 1.0


def _by_words(text: str, languages: dict[str, str]) -> str | None:
    words = [*_WORD.findall(text.lower()), *_SPACED.findall(text)]
    hits = {
        code: sum(word in frequent for word in words) for code, frequent in _sets(languages).items()
    }
    best = max(hits, key=lambda code: (hits[code], code))
    return best if hits[best] >= MIN_WORDS else None


def _sets(languages: dict[str, str]) -> dict[str, frozenset[str]]:
    return {code: frozenset(words.split()) for code, words in languages.items()}


def _letters_by_script(text: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for char, count in Counter(text).items():
        script = _script(char)
        if script:
            found[script] += count
    return found


@cache
def _script(char: str) -> str:
    """The first word of a letter's Unicode name: its script. Empty for what is no letter."""
    return unicodedata.name(char, "").split(" ")[0] if char.isalpha() else ""
