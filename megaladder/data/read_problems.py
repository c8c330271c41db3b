"""Questions with a checkable answer (`Problem`) from RL data, question/answer files and benchmark
files, for GRPO and for trials.

Recognised per row: verl (`prompt`, `reward_model.ground_truth`), and a question (`problem` or
`question`) with a final answer (`answer`, `golden_answer` or `ground_truth`; none where the verifier
needs none). The verifier, unless given: the row's column `verifier`; verl rows whose ground truth
has numbers and a target are countdown; those whose data_source contains gsm8k and answers with
`#### N` are gsm8k, everything else is math. A row that its verifier cannot grade is a bad row.
Published benchmarks with their own field names are `evaluation`'s business.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from megaladder.config.sections.data import Duplicates
from megaladder.data.read import BadRow, BadRowLog, RawRow, describe
from megaladder.data.repeats import Repeats, numbered, repeats_line
from megaladder.data.sources.find import SourceSpec
from megaladder.data.sources.source import open_source
from megaladder.errors import DataError
from megaladder.rewards.verifiers import VERIFIERS, check_row
from megaladder.rewards.verifiers.base import parameter
from megaladder.types import Kind, Message, Problem

QUESTION_KEYS = ("problem", "question")
GOLD_KEYS = ("answer", "golden_answer", "ground_truth")
ID_KEYS = ("id", "unique_id")
VERIFIER_KEY = "verifier"
GSM8K_MARK = "####"


@dataclass(frozen=True, slots=True)
class ProblemOptions:
    """`kind`: grade all rows this way, None = by the row. `prompt_suffix` is appended to the
    question, `system_prompt` put before it (both not for verl rows, whose prompt is complete)."""

    kind: Kind | None = None
    prompt_suffix: str = ""
    system_prompt: str | None = None
    on_bad_row: Literal["error", "skip"] = "error"
    duplicates: Duplicates = "drop"


class ProblemReader:
    """Iterates a source as problems, in order. Ids are the rows' own, else content hashes; after
    the iteration `rows`, `repeats.count` and `bad_rows` say what happened."""

    def __init__(
        self,
        spec: SourceSpec | str | Path,
        options: ProblemOptions | None = None,
        bad_rows: BadRowLog | None = None,
    ) -> None:
        self.options = options or ProblemOptions()
        self.source = open_source(spec)
        self.bad_rows = bad_rows or BadRowLog(self.options.on_bad_row)
        self.repeats = Repeats(self.source, self.options.duplicates)
        self.rows = 0

    def __iter__(self) -> Iterator[Problem]:
        for row in self.source.rows():
            self.rows += 1
            try:
                if isinstance(row, BadRow):
                    raise row
                problem = self._new(row)
            except BadRow as bad:
                self.bad_rows.handle(bad)
                continue
            if problem is not None:
                yield problem
        if self.rows == 0:
            raise DataError(
                f"{self.source.path}: expected at least one problem, found no row; fix: give a file"
                " with rows"
            )
        self.bad_rows.check(self.source.path, self.rows)

    def _new(self, row: RawRow) -> Problem | None:
        """The row as a problem; None for a repeat that is left out."""
        problem = _problem(row, self.options)
        asked = {
            name: parameter(problem.metadata, name) for name in VERIFIERS[problem.kind].parameters
        }
        content = repr((problem.prompt, problem.gold, problem.kind, asked))
        copy = self.repeats.take(self.rows, row.where, problem.id or None, content)
        if copy == 0:
            return None
        name = problem.id or hashlib.sha256(content.encode("utf-8")).hexdigest()[:16]
        return replace(problem, id=numbered(name, copy))

    def lines(self) -> list[str]:
        """What was left out or repeats, for a person."""
        found = [f"{count:,} left out: {reason}" for reason, count in self.bad_rows.counts.items()]
        if self.repeats.count:
            found.append(repeats_line(self.repeats.count, self.options.duplicates))
        return found


def read_problems(
    path: SourceSpec | str | Path, options: ProblemOptions | None = None
) -> list[Problem]:
    """All problems of a source in order. Raises DataError."""
    return list(ProblemReader(path, options))


def _problem(row: RawRow, options: ProblemOptions) -> Problem:
    named = _named_verifier(row)
    is_verl = {"prompt", "reward_model"} <= set(row.data)
    if is_verl:
        prompt, gold = _verl_prompt(row), _verl_gold(row)
        used: tuple[str, ...] = ("prompt", "reward_model", "data_source", VERIFIER_KEY)
    else:
        question_key = _key(row, QUESTION_KEYS, "a question")
        prompt = _asked(row, row.data[question_key], question_key, options)
        kind = options.kind or named
        if kind is not None and not VERIFIERS[kind].needs_gold and not _has_gold(row):
            gold, used = "", (question_key, VERIFIER_KEY)
        else:
            gold_key = _key(row, GOLD_KEYS, "a final answer")
            gold, used = row.data[gold_key], (question_key, gold_key, VERIFIER_KEY)
    metadata = {
        key: value for key, value in row.data.items() if key not in used and key not in ID_KEYS
    }
    source = str(row.data.get("data_source", ""))
    if isinstance(gold, dict) and {"numbers", "target"} <= set(gold):
        named, metadata, gold = named or "countdown", {**metadata, **gold}, str(gold["target"])
    kind, text = _kind_and_gold(row, gold, source, options.kind or named)
    _check(row, kind, text, metadata)
    return Problem(
        id=_given_id(row),
        prompt=prompt,
        gold=text,
        kind=kind,
        source=source,
        metadata=metadata,
        conversational=is_verl and isinstance(row.data["prompt"], list),
    )


def _asked(row: RawRow, question: Any, key: str, options: ProblemOptions) -> tuple[Message, ...]:
    if not isinstance(question, str) or not question.strip():
        raise BadRow(
            row.where,
            "no question",
            f"text in {key!r}",
            describe(question),
            "fill it, or remove the row",
        )
    system = (Message("system", options.system_prompt),) if options.system_prompt else ()
    return (*system, Message("user", question + options.prompt_suffix))


def _has_gold(row: RawRow) -> bool:
    return any(row.data.get(key) is not None for key in GOLD_KEYS)


def _named_verifier(row: RawRow) -> Kind | None:
    name = row.data.get(VERIFIER_KEY)
    if name is None or name in get_args(Kind):
        return name
    raise BadRow(
        row.where,
        "unknown verifier",
        f"one of {', '.join(get_args(Kind))} in {VERIFIER_KEY!r}",
        describe(name),
        "name one of them, or remove the column",
    )


def _check(row: RawRow, kind: Kind, gold: str, metadata: dict[str, Any]) -> None:
    """Refuses a row that no answer could satisfy, before anything is generated for it."""
    try:
        check_row(kind, gold, metadata)
    except DataError as error:
        raise BadRow(
            row.where,
            f"not gradable as {kind}",
            f"what the verifier {kind} needs",
            str(error),
            "repair the row",
        ) from None


def _key(row: RawRow, keys: tuple[str, ...], what: str) -> str:
    found = [key for key in keys if key in row.data]
    # some files hold the same text under two names
    if not found or any(row.data[key] != row.data[found[0]] for key in found):
        raise BadRow(
            row.where,
            f"not {what}",
            f"{what} in one of the fields {', '.join(keys)} (or a verl row: prompt, reward_model)",
            f"{found or describe(row.data)}",
            "rename the fields",
        )
    return found[0]


def _verl_prompt(row: RawRow) -> tuple[Message, ...]:
    prompt = row.data["prompt"]
    if isinstance(prompt, str) and prompt.strip():
        return (Message("user", prompt),)
    turns = prompt if isinstance(prompt, list) else []
    valid = [
        t
        for t in turns
        if isinstance(t, dict)
        and t.get("role") in ("system", "user", "assistant")
        and isinstance(t.get("content"), str)
    ]
    if (
        not valid
        or len(valid) != len(turns)
        or not valid[-1]["content"].strip()
        or valid[-1]["role"] != "user"
    ):
        raise BadRow(
            row.where,
            "malformed prompt",
            "a list of {role, content} that ends with the user",
            describe(prompt),
            "repair the row",
        )
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)


def _verl_gold(row: RawRow) -> Any:
    reward_model = row.data["reward_model"]
    return reward_model.get("ground_truth") if isinstance(reward_model, dict) else None


def _kind_and_gold(row: RawRow, gold: Any, source: str, kind: Kind | None) -> tuple[Kind, str]:
    if isinstance(gold, list) and len(gold) == 1:
        gold = gold[0]
    if isinstance(gold, float) and gold.is_integer():
        gold = int(gold)
    if isinstance(gold, (list, dict)) and kind == "code":
        gold = json.dumps(gold)
    text = (
        str(gold).strip()
        if isinstance(gold, (str, int, float)) and not isinstance(gold, bool)
        else ""
    )
    if GSM8K_MARK in text and kind in (None, "gsm8k"):
        kind, text = kind or "gsm8k", text.rsplit(GSM8K_MARK, 1)[1].strip().replace(",", "")
    if not text and (kind is None or VERIFIERS[kind].needs_gold):
        raise BadRow(
            row.where,
            "empty gold answer",
            "a final answer to compare with",
            describe(gold),
            "fill it, or remove the row",
        )
    return kind or ("gsm8k" if "gsm8k" in source.lower() else "math"), text


def _given_id(row: RawRow) -> str:
    """The row's own id; empty where it has none."""
    for key in ID_KEYS:
        value = row.data.get(key)
        if isinstance(value, (str, int)) and not isinstance(value, bool):
            return str(value)
    return ""
