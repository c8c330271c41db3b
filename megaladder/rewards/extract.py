r"""From a model's response to the string it gives as its answer.

Pure string work, linear in the response, nothing is evaluated.

Rules, in order; the first that applies decides (reasoning_ladder, LIMO and Rethinking SFT graders,
lm-eval's GSM8K):

0. only what follows the last `</think>` (or `<|im_start|>answer`) is an answer; a `<think>` that
   never ends, or that opens again after it, has none
1. the last `\boxed{…}` or `\fbox{…}`; its braces must close, or there is no answer; of boxes in a
   box the outermost counts, with all that stands in it; prose around it never counts
2. the last `<answer>…</answer>`; the tag must close
3. the last line `#### N`
4. the last "Final Answer: …", "Answer: …", "the answer is …"
5. the last line (kind gsm8k: the last number of the text that does not number a list)
Other studies have other rules 1 to 5: `dialects`.

In prose (4 and 5) a number that is denied or offered beside another one ("not 18", "18 or 19",
"between 18 and 20") is not taken out of its line: the line as it stands is then the answer.

Not here: whether an answer is right (`grade`), and what two strings mean (`normalize`, `equal`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from megaladder.rewards.dialects import DIALECTS, OWN_DIALECT, Mark
from megaladder.rewards.letters import letter_in_text, option
from megaladder.types import DialectName

# only the end of a longer response is read: 32k tokens are about 130k characters
MAX_RESPONSE_CHARS = 1_000_000
MAX_ANSWER_CHARS = 4_096  # a longer candidate is no answer
# where phrases and last lines are looked for; boxes and tags are looked for everywhere
_TAIL_CHARS = 20_000

_THINK_STARTS = ("<think>", "<|think|>", "<|im_start|>think")
THINK_ENDS = ("</think>", "<|/think|>", "<|im_start|>answer")
_SPECIAL_TOKEN = re.compile(r"<\|[a-z_A-Z]{1,40}\|>|</s>|<eos>|<end_of_turn>")
_ANSWER_PHRASE = re.compile(r"(?i)\banswer(?:\*\*|__)?\s{0,3}(?::|=|\bis\b)(?:\*\*|__|:)*")
_ANSWER_IS = re.compile(r"(?i)\banswer(?:\*\*|__)?\s{1,3}is(?![A-Za-z])(?:\*\*|__|:)*")
_ANSWER_COLON = re.compile(r"(?i)answer\s{0,8}:")
_FINAL_SENTENCE = ("Final Answer: The final answer is", "I hope it is correct")
_ANSWER_HEADING = re.compile(r"(?im)^[#*_ \t]{0,12}final answer[*_: \t]{0,12}$")
_MATH_SPAN = re.compile(
    r"(?<!\\)\$\$((?:[^$\\]|\\.){1,4096})\$\$|(?<!\\)\$((?:[^$\n\\]|\\.){1,4096})\$|\\\(((?:(?!\\\()[^\n]){1,4096}?)\\\)|\\\[((?:(?!\\\[).){1,4096}?)\\\]",
    re.DOTALL,
)
_NUMBER = re.compile(
    r"(?<![\w.])[-−+]?\s?\\?\$?\s?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s?/\s?\d+)?(?:\s?\\?%)?"
    r"(?:\s(?:hundred|thousand|million|billion|trillion|dozen)\b)?"
)
_WORD = re.compile(
    r"(?<![\\A-Za-z])(?!(?:sin|cos|tan|cot|sec|csc|log|exp|arcsin|arccos|arctan|sqrt|inf|abs|min|max|mod|gcd|lcm)(?![A-Za-z]))"
    r"(?:[A-Za-z]{3,}|(?i:is|it|so|we|of|to|in|at|by|be|he|an|as|or|if|no)(?![A-Za-z]))"
)
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_BOX_COMMAND = re.compile(r"\\[bf](?:oxed|box)\s*(?=\{)")
_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
# right before a number: it is denied, or an end of a range
_DENIES = re.compile(
    r"(?i)\b(?:not|isn't|either|neither|between|between\s+\S{1,40}\s+and|\d[\s,]*or|at\s+least"
    r"|at\s+most|(?:less|more|greater|fewer|larger|smaller|bigger|higher|lower)\s+than)"
    r"\s+(?:(?:a|an|the|equal\s+to|exactly|maybe|perhaps|possibly)\s+)*[-$\\\s]*$"
)
# right behind it: another number
_OFFERS = re.compile(
    r"(?i)\s*(?:,?\s*(?:or|and|to)\s+(?:(?:maybe|perhaps|possibly)\s+)?|[-–—~]\s?)[$\\]*\d"
)
# what may stand beside a number without changing it, and what may not
_WORDING = re.compile(r"\\(?:text|mbox|mathrm|textbf|mathbf|dollar|quad)(?![a-zA-Z])|\\[$%,;:! ]")
_SAYS_MORE = re.compile(
    r"[\\^_!|<>±√∓~]|\b(?:January|February|March|April|May|June|July|August|September|October"
    r"|November|December|plus|minus|squared|cubed|half|not|or|wrong|incorrect)\b"
)
_ENUMERATES = re.compile(r"[.)]\s+\S")
_TEXT_COMMAND = re.compile(
    r"\\(?:begin|end|text|mbox|mathrm|textbf|textit|mathbf|operatorname|frac|sqrt|left|right)\b"
)


class Candidate(NamedTuple):
    """What was found in an answer.

    The string (None = no answer) and which rule found it, or why there is none."""

    text: str | None
    rule: str


def answer_part(response: str) -> str | None:
    """The response without its reasoning and without special tokens at its end.

    None if the reasoning never ended."""
    text = response[-MAX_RESPONSE_CHARS:]
    if "<" not in text:
        return text.rstrip()
    ends = [(text.rfind(mark), mark) for mark in THINK_ENDS]
    position, mark = max(ends)
    if position >= 0:
        text = text[position + len(mark) :]
    if any(mark in text for mark in _THINK_STARTS):
        return None
    return _without_special_tokens(text)


def _without_special_tokens(text: str) -> str:
    """Linear in their number: an answer may be nothing but special tokens."""
    end = len(text.rstrip())
    while text.endswith(">", 0, end):
        start = text.rfind("<", max(0, end - 48), end)
        if start < 0 or not _SPECIAL_TOKEN.fullmatch(text, start, end):
            break
        end = start
        while end and text[end - 1].isspace():
            end -= 1
    return text[:end]


def extract(response: str, kind: str, dialect: DialectName = OWN_DIALECT) -> Candidate:
    """The candidate answer of a response by the rules above, or by those of another dialect.

    `kind` decides what a last line gives."""
    text = answer_part(response)
    if text is None:
        return Candidate(None, "the reasoning never ended")
    if not text.strip():
        return Candidate(
            None, "nothing after the reasoning" if len(response) > len(text) else "empty response"
        )
    marks = DIALECTS[dialect].marks
    own_choice = dialect == OWN_DIALECT and kind == "choice"
    found = _choice(text) if own_choice else _first(text, kind, marks)
    if found is None:
        return Candidate(None, f"no {', no '.join(marks)}")
    if found.text is None or not found.text.strip():
        return Candidate(None, found.rule if found.text is None else f"{found.rule}: empty")
    if len(found.text) > MAX_ANSWER_CHARS:
        return Candidate(
            None, f"{found.rule}: {len(found.text)} characters, more than {MAX_ANSWER_CHARS}"
        )
    return Candidate(found.text.strip(), found.rule)


def _first(text: str, kind: str, marks: tuple[Mark, ...]) -> Candidate | None:
    """What the first mark that is there says; None without any."""
    found = (_MARKS[mark](text, kind) for mark in marks)
    return next((one for one in found if one is not None), None)


def _choice(text: str) -> Candidate:
    """A box or tag that holds a letter.

    One without a letter (`\\boxed{42}`) does not hide a phrase that names one."""
    found = _first(text, "choice", ("last box", "answer tag"))
    if found is not None and (found.text is None or option(found.text) is not None):
        return found
    named = letter_in_text(text[-_TAIL_CHARS:])
    if found is None:
        return Candidate(named, "last line")
    return found if named is None else Candidate(named, "answer phrase")


def _tag(text: str, kind: str) -> Candidate | None:
    start = text.rfind("<answer>")
    if start < 0:
        return None
    end = text.find("</answer>", start)
    return (
        Candidate(None, "<answer> never closed")
        if end < 0
        else Candidate(text[start + 8 : end], "<answer>")
    )


def _hashes(text: str, kind: str) -> Candidate | None:
    hashed = _hash_line(text)
    return None if hashed is None else Candidate(hashed, "####")


def _any_phrase(text: str, kind: str) -> Candidate | None:
    phrase = _phrase(text)
    return None if phrase is None else _said(phrase, kind, "answer phrase")


def _said(phrase: str, kind: str, rule: str) -> Candidate | None:
    """The answer inside a phrase; None where there is none, or for gsm8k no number."""
    reduced = phrase if kind in ("exact", "choice") else from_prose(phrase, first=True)
    if kind == "gsm8k" and not any(char.isdigit() for char in reduced):
        return None
    return Candidate(reduced, rule) if reduced.strip() else None


def _answer_is(text: str, kind: str) -> Candidate | None:
    """The last "answer is …", to the end of its sentence."""
    places = [match.end() for match in _ANSWER_IS.finditer(text[-_TAIL_CHARS:])]
    if not places:
        return None
    line = text[-_TAIL_CHARS:][places[-1] :].lstrip().split("\n", 1)[0]
    return _said(re.split(r"[.!?](?:\s|$)", line, maxsplit=1)[0].strip(), kind, "the answer is")


def _final_sentence(text: str, kind: str) -> Candidate | None:
    opening, closing = _FINAL_SENTENCE
    start = text.find(opening)
    if start < 0:
        return None
    said = text[start + len(opening) :].split(closing, 1)[0].strip().removesuffix(".")
    return _said(said[: MAX_ANSWER_CHARS + 1], kind, "final answer sentence")


def _answer_line(text: str, kind: str) -> Candidate | None:
    """The rest of the line after the last "Answer:"."""
    places = [match.end() for match in _ANSWER_COLON.finditer(text[-_TAIL_CHARS:])]
    if not places:
        return None
    return _said(text[-_TAIL_CHARS:][places[-1] :].strip().split("\n", 1)[0], kind, "Answer:")


def _rest_after_answer(text: str, kind: str) -> Candidate | None:
    """All that follows the first "Answer:"."""
    match = _ANSWER_COLON.search(text)
    return _said(text[match.end() :][:_TAIL_CHARS].strip(), kind, "Answer: …") if match else None


def _last_line(text: str, kind: str) -> Candidate:
    return Candidate(_last_resort(text, kind), "last line")


def _last_number(text: str, kind: str) -> Candidate:
    return Candidate(_last_resort(text, "gsm8k"), "last number")


def last_box(text: str) -> Candidate | None:
    r"""Content of the last `\boxed{}` or `\fbox{}`, braces matched, escaped braces skipped.

    `\boxed 5` gives `5`. None = no box."""
    end = len(text)
    while True:
        position = max(text.rfind("\\boxed", 0, end), text.rfind("\\fbox", 0, end))
        if position < 0:
            return None
        match = _BOX.match(text, position)
        if match is not None:
            return _box_content(text, _outermost(text, _opening(text, match.end())))[0]
        end = position


def _first_box(text: str) -> Candidate | None:
    match = _BOX.search(text)
    return None if match is None else _box_content(text, _opening(text, match.end()))[0]


def _all_boxes(text: str) -> Candidate | None:
    """All boxes, joined by commas; one that never closes spoils them all."""
    contents: list[str] = []
    match = _BOX.search(text)
    while match is not None:
        found, end = _box_content(text, _opening(text, match.end()))
        if found.text is None:
            return found
        contents.append(found.text.strip())
        match = _BOX.search(text, end)
    return Candidate(", ".join(contents), "all boxes") if contents else None


def _opening(text: str, after: int) -> int:
    """Where the content of a box starts whose command ends at `after`."""
    while after < len(text) and text[after] in " \t\n":
        after += 1
    return after


def _box_content(text: str, start: int) -> tuple[Candidate, int]:
    """What a box holds whose brace, or bare content, stands at `start`, and where it ends."""
    if text[start : start + 1] != "{":
        bare = re.match(r"[^\s$]{1,256}", text[start : start + 256])
        if bare is None:
            return Candidate(None, "\\boxed without content"), start
        return Candidate(bare.group().rstrip(".,;"), "\\boxed"), start + bare.end()
    content = _braced(text, start)
    if content is None:
        return Candidate(None, "\\boxed{ never closed"), len(text)
    inside = _BOX_COMMAND.sub("", content)
    if inside != content:  # a box around nothing but a box
        while _braced(inside, 0) == inside[1:-1] and inside.startswith("{"):
            inside = inside[1:-1]
    return Candidate(inside, "\\boxed{}"), start + len(content) + 2


def _outermost(text: str, start: int) -> int:
    """The brace of the box that encloses the one at `start`, and closes; else `start` itself."""
    begin = max(0, start - MAX_ANSWER_CHARS)
    if text[start : start + 1] != "{" or not _BOX_COMMAND.search(text, begin, start - 1):
        return start
    is_box: list[tuple[int, bool]] = []
    for match in _BRACE.finditer(text, begin, start + MAX_ANSWER_CHARS):
        if match.end() > start + 1 and not any(box for _, box in is_box):
            break
        if match.group().endswith("{"):
            is_box.append((match.end() - 1, match.group() != "{"))
        elif match.group() == "}" and is_box:
            opened, box = is_box.pop()
            if box and opened < start < match.start():
                start = opened
    return start


def _braced(text: str, start: int) -> str | None:
    """What stands between the brace at `start` and its partner; None if that is missing.

    Reads little more than MAX_ANSWER_CHARS."""
    depth, position = 0, start
    while position < len(text):
        char = text[position]
        if char == "\\":
            position += 1
        elif char == "{":
            depth += 1
        elif char == "}":
            depth -= 1
            if depth == 0:
                return text[start + 1 : position]
        position += 1
    return None


def _hash_line(text: str) -> str | None:
    """What follows the last `####` if it is an answer.

    It may be a Markdown heading (`#### 3. Simplify`), which is none."""
    end = len(text)
    for _ in range(8):
        position = text.rfind("####", 0, end)
        if position < 0:
            return None
        line = text[position + 4 : position + 400].split("\n", 1)[0].strip().strip("*").strip()
        if (
            line
            and not line.startswith("#")
            and (
                not _has_words(line)
                or re.match(r"^[-−+$\\]*\s?\d[\d,]*(?:[./]\d+)?\s+[A-Za-z]+\.?$", line)
            )
        ):
            return line
        end = position
    return None


def _phrase(text: str) -> str | None:
    """The answer that a phrase announces.

    The rest of the line after the last "Answer:" / "answer is", or the first line under a "Final
    Answer" heading."""
    tail = text[-_TAIL_CHARS:]
    places = [match.end() for match in _ANSWER_PHRASE.finditer(tail)] + [
        match.end() for match in _ANSWER_HEADING.finditer(tail)
    ]
    if not places:
        return None
    lines = [line.strip() for line in tail[max(places) :].split("\n")]
    for line in lines[:4]:
        line = re.split(r"(?i)\.?\s*I hope it is correct", line)[0].strip()
        if line.strip("*_: $\\[]"):
            return line.strip("*_: \t")
        if line in ("$$", "\\["):  # display math over several lines
            return (
                " ".join(lines[lines.index(line) + 1 :][:4]).split("$$")[0].split("\\]")[0].strip()
            )
    return None


def _last_resort(text: str, kind: str) -> str | None:
    if kind == "choice":
        return letter_in_text(text[-_TAIL_CHARS:])
    if kind == "gsm8k":
        return _last_number_of_text(text[-_TAIL_CHARS:])
    lines = [line for line in text[-_TAIL_CHARS:].split("\n") if line.strip()]
    return lines[-1].strip() if kind == "exact" else from_prose(lines[-1], first=False)


def _last_number_of_text(text: str) -> str | None:
    """The last number, those that number a list or a heading aside; its line if that hedges."""
    for match in reversed(list(_NUMBER.finditer(text))):
        start, end = text.rfind("\n", 0, match.start()) + 1, text.find("\n", match.end())
        line = text[start : end if end >= 0 else len(text)]
        head = text[start : match.start()].strip("#*_ \t>(")
        if head or not _ENUMERATES.match(text, match.end()):
            number = _NUMBER.search(line, match.start() - start)
            return line if number and is_hedged(line, number) else match.group()
    return None


def from_prose(line: str, first: bool) -> str:
    r"""The answer inside a line.

    A formula in `$…$`, else the whole line if it holds no words, else a number, else the line.

    `first`: of several formulas or numbers take the first (after "the answer is"), otherwise the
    last (of a last line).
    """
    line = line[-_TAIL_CHARS:].strip().strip("*_`").strip()
    line = re.sub(r"(?<=[^.\s])[.。]+$", "", line).strip().strip("*_`")
    spans = list(_MATH_SPAN.finditer(line))
    if spans:
        return _joined_spans(line, spans, first)
    if not _has_words(line):
        return line
    numbers = list(_NUMBER.finditer(line))
    if not numbers:
        return line
    # "18 dollars": leave the unit to the comparison
    if first and re.match(r"\W*[\d.,]+(?:\s[A-Za-z]+){0,3}$", line):
        return line
    chosen = numbers[0] if first and "=" not in line else numbers[-1]
    return line if is_hedged(line, chosen) else chosen.group().strip()


def is_hedged(line: str, number: re.Match[str]) -> bool:
    """Whether a line denies its number, or offers another one beside it."""
    before = line[max(0, number.start() - 80) : number.start()]
    return bool(_DENIES.search(before) or _OFFERS.match(line, number.end()))


def _joined_spans(line: str, spans: list[re.Match[str]], first: bool) -> str:
    """The first or last formula with those that "and", "or" or a comma joins to it.

    `the roots are $1$ and $-2$` gives `1, -2`."""
    groups = [[spans[0]]]
    for before, after in pairwise(spans):
        if re.fullmatch(r"(?i)[\s,]*(?:and|or)?[\s,]*", line[before.end() : after.start()]):
            groups[-1].append(after)
        else:
            groups.append([after])
    chosen = groups[0] if first else groups[-1]
    return ", ".join(
        next(group for group in span.groups() if group is not None).strip() for span in chosen
    )


def _has_words(line: str) -> bool:
    """Whether there are plain words, of three letters or more, or common short ones.

    Functions, LaTeX commands and `\text{}` units apart."""
    if _TEXT_COMMAND.search(line):
        line = re.sub(
            r"\\(?:begin|end|text|mbox|mathrm|textbf|textit|mathbf|operatorname)\s*\{[^{}]*\}",
            " ",
            line,
        )
    return bool(_WORD.search(line))


def yes_or_no(response: str) -> str | None:
    """The last whole word Yes or No after the reasoning (HaluEval's published rule)."""
    text = answer_part(response) or ""
    words = re.findall(r"(?i)\b(yes|no)\b", text[-_TAIL_CHARS:])
    return words[-1].lower() if words else None


def last_number(text: str) -> str | None:
    """The only number of a short text of words such as `18 dollars`.

    None if it has none or several, denies it, or says more about it than words do (`\\pm 18`,
    `18!`, `18 May`)."""
    numbers = list(_NUMBER.finditer(text))
    if len(numbers) != 1 or is_hedged(text, numbers[0]):
        return None
    rest = _WORDING.sub(" ", text[: numbers[0].start()] + " " + text[numbers[0].end() :])
    return None if _SAYS_MORE.search(rest) else numbers[0].group().strip()


_MARKS: dict[Mark, Callable[[str, str], Candidate | None]] = {
    "last box": lambda text, kind: last_box(text),
    "first box": lambda text, kind: _first_box(text),
    "all boxes": lambda text, kind: _all_boxes(text),
    "answer tag": _tag,
    "#### line": _hashes,
    "answer phrase": _any_phrase,
    "the answer is": _answer_is,
    "final answer sentence": _final_sentence,
    "answer line": _answer_line,
    "rest after answer:": _rest_after_answer,
    "last line": _last_line,
    "last number": _last_number,
}
