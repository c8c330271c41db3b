"""Raw row → the question and its gold answer (`table` says which columns).

Verifiers, unless given: the row's column `verifier`; rows whose ground truth has numbers and a
target are countdown; those whose data_source contains gsm8k, and those that answer with `#### N`,
are gsm8k; what a layout says; else math.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from megaladder.data.chat.turns import ROLES, read_turn
from megaladder.data.read import BadRow, RawRow, describe
from megaladder.rewards.extract import last_box
from megaladder.types import Kind, Message, Role

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, as a text or as turns, with its gold answer as the row has it.

    `kind`: what the layout knows; `parameters`: further ones of the verifier; `used`: the columns
    that went in; `complete`: the prompt is final, nothing is put before or after it.
    """

    prompt: str | tuple[Message, ...]
    gold: Any
    used: tuple[str, ...]
    kind: Kind | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    complete: bool = False


Ask = Callable[[RawRow], Asked]


def asks(
    question: str, gold: tuple[str, ...] = (), boxed: str | None = None, complete: bool = False
) -> Ask:
    """The question in one column.

    The gold answer in the first of `gold` that the row has, else in the last box of the worked
    solution in column `boxed`."""

    def ask(row: RawRow) -> Asked:
        used = next((name for name in gold if row.data.get(name) is not None), None)
        value = row.data.get(used) if used else None
        if used is None and boxed is not None:
            used, value = boxed, _boxed(row, boxed)
        return Asked(
            _question(row, question),
            value,
            (question, used) if used else (question,),
            complete=complete or isinstance(row.data[question], list),
        )

    return ask


def ask_verl(row: RawRow) -> Asked:
    """`prompt` and `reward_model.ground_truth`; the prompt is complete."""
    reward_model = row.data["reward_model"]
    gold = reward_model.get("ground_truth") if isinstance(reward_model, dict) else None
    used = ("prompt", "reward_model", "data_source")
    if isinstance(gold, dict) and {"numbers", "target"} <= set(gold):
        return Asked(
            _question(row, "prompt"), str(gold["target"]), used, "countdown", gold, complete=True
        )
    return Asked(_question(row, "prompt"), gold, used, complete=True)


def ask_two_names(row: RawRow) -> Asked:
    """`problem` and `question`, which some files have both with the same text."""
    problem, question = row.data["problem"], row.data["question"]
    if problem != question:
        fix = "data.fields, to say which one it is"
        found = "two texts that differ"
        raise BadRow(row.where, "two questions", "one question", found, fix)
    return Asked(
        _question(row, "problem"), row.data.get("answer"), ("problem", "question", "answer")
    )


def ask_orz(row: RawRow) -> Asked:
    """Open-Reasoner-Zero: a list of two turns, the second with the ground truth."""
    question, answer = row.data["0"], row.data["1"]
    truth: Any = answer.get("ground_truth") if isinstance(answer, dict) else None
    text = question.get("value") if isinstance(question, dict) else None
    if not isinstance(text, str) or not isinstance(truth, dict):
        expected = "a turn with 'value', then one with 'ground_truth.value'"
        raise BadRow(row.where, "malformed row", expected, describe(row.data), "repair the row")
    return Asked(text, truth.get("value"), ("0", "1"))


def ask_countdown(row: RawRow) -> Asked:
    """`nums` and `target` without a text (TinyZero): the question is written here."""
    numbers, target = row.data["nums"], row.data["target"]
    text = (
        f"Using each of the numbers {numbers} exactly once, with + - * / and parentheses, write an"
        f" expression that equals {target}. Put it in \\boxed{{}}."
    )
    parameters = {"numbers": numbers, "target": target}
    return Asked(text, str(target), ("nums", "target"), "countdown", parameters)


def ask_choice(row: RawRow) -> Asked:
    """Options as a list (`choices` or `options`), or as texts with labels.

    The answer as an index, a letter, a label or the option's own text."""
    name = "choices" if "choices" in row.data else "options"
    answer_key = next(key for key in ("answerKey", "answer_index", "answer") if key in row.data)
    options: Any = row.data[name]
    answer, labels = row.data[answer_key], None
    if isinstance(options, dict):
        options, labels = options.get("text"), options.get("label")
    if not isinstance(options, list) or not 1 < len(options) <= len(LETTERS):
        fix, expected = "repair the row", f"a list of 2 to 26 options in {name!r}"
        raise BadRow(row.where, "malformed options", expected, describe(options), fix)
    place = _chosen(answer, options, labels or list(LETTERS))
    if place is None:
        expected = f"an index, a letter or an option's text in {answer_key!r}"
        raise BadRow(row.where, "malformed answer", expected, describe(answer), "repair the row")
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))
    text = f"{_question(row, 'question')}\n\n{listed}"
    return Asked(text, LETTERS[place], ("question", name, "answer", answer_key), "choice")


def _chosen(answer: Any, options: list[Any], labels: list[Any]) -> int | None:
    if isinstance(answer, int) and not isinstance(answer, bool):
        return answer if 0 <= answer < len(options) else None
    for known in (labels, options, [str(index) for index in range(len(options))]):
        if answer in known[: len(options)]:
            return known.index(answer)
    return None


def ask_gpqa(row: RawRow) -> Asked:
    """`Correct Answer` among the incorrect ones, in alphabetical order: the same for everybody."""
    names = ("Correct Answer", *(f"Incorrect Answer {number}" for number in (1, 2, 3)))
    texts = [str(row.data.get(name, "")).strip() for name in names]
    options = sorted(texts)
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))
    text = f"{_question(row, 'Question')}\n\n{listed}"
    return Asked(text, LETTERS[options.index(texts[0])], ("Question", *names), "choice")


def ask_ifeval(row: RawRow) -> Asked:
    """A prompt with its verifiable instructions; there is no gold answer."""
    return Asked(_question(row, "prompt"), "", ("prompt",), "ifeval")


def ask_livecodebench(row: RawRow) -> Asked:
    """A problem with starter code, public and hidden tests."""
    text, starter = _question(row, "question_content"), row.data.get("starter_code")
    if isinstance(starter, str) and starter.strip():
        text = f"{text}\n\nStart from this code:\n```python\n{starter}\n```"
    used = ("question_content", "starter_code", "public_test_cases", "private_test_cases")
    hidden = {"hidden_tests": row.data.get("private_test_cases")}
    return Asked(text, row.data["public_test_cases"], used, "code", hidden)


def asks_code(question: str, tests: str) -> Ask:
    """A programming task with its tests in one column."""

    def ask(row: RawRow) -> Asked:
        return Asked(_question(row, question), row.data[tests], (question, tests), "code")

    return ask


def _question(row: RawRow, key: str) -> str | tuple[Message, ...]:
    value = row.data.get(key)
    if isinstance(value, str) and value.strip():
        return value
    if not isinstance(value, list):
        fix = "fill it, or remove the row"
        raise BadRow(row.where, "no question", f"text in {key!r}", describe(value), fix)
    roles: dict[str, Role] = {role: role for role in ROLES}
    turns = tuple(
        read_turn(row, f"{key}[{place}]", turn, ("role", "content"), roles)
        for place, turn in enumerate(value)
    )
    if not turns or turns[-1].role != "user" or not turns[-1].content.strip():
        raise BadRow(
            row.where,
            "malformed prompt",
            "a list of {role, content} that ends with the user",
            describe(value),
            "repair the row",
        )
    return turns


def _boxed(row: RawRow, key: str) -> str:
    """What stands in the last box of a worked solution."""
    text = row.data.get(key)
    found = last_box(text) if isinstance(text, str) else None
    if found is None or not found.text:
        expected = f"a final answer in \\boxed{{}} in {key!r}"
        fix = "data.fields {answer: COLUMN} where another column has it, or remove the row"
        raise BadRow(row.where, "no boxed answer", expected, describe(text), fix)
    return found.text


def plain_gold(gold: Any, kind: Kind | None) -> Any:
    """A gold answer without its wrapping: a list of one (also as JSON text), a whole float."""
    if isinstance(gold, str) and gold.startswith("[") and kind != "code":
        try:
            listed = json.loads(gold)
        except (ValueError, RecursionError):
            listed = None
        if isinstance(listed, list) and len(listed) == 1 and isinstance(listed[0], str):
            gold = listed[0]
    if isinstance(gold, list) and len(gold) == 1:
        gold = gold[0]
    if isinstance(gold, float) and gold.is_integer():
        gold = int(gold)
    return json.dumps(gold) if isinstance(gold, (list, dict)) and kind == "code" else gold
