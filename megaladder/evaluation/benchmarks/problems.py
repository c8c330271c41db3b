"""Rows of a benchmark → `Problem`s.

Fields found by name, options lettered, gold brought into the grader's form, stable ids.

Shapes: layout (as GRPO reads the rows) · plain (question, gold) · options (a list; gold is a letter, an index or, HeadQA, a 1-based
number) · gpqa (one right and three wrong answers, shuffled by sha256; rows that already hold
options and a letter are taken as they are) · yes_no (gold yes/no, true/false, 1/0) · code (gold =
test cases as JSON). GPQA's published shuffle used Python's `hash`, which differs between processes;
ours does not.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from megaladder.data.layouts.table import recognise
from megaladder.data.read import RawRow
from megaladder.data.read_problems import ProblemOptions, problem_of
from megaladder.errors import DataError
from megaladder.evaluation.benchmarks.source import BenchmarkRows, Row
from megaladder.evaluation.benchmarks.spec import BenchmarkSpec, prompt_of
from megaladder.rewards.verifiers import VERIFIERS, check_row, parameters_of
from megaladder.types import Kind, Message, Problem

_YES, _NO = ("yes", "true", "1"), ("no", "false", "0")


def build_problems(
    spec: BenchmarkSpec, rows: BenchmarkRows, seed: int, prompt: str | None = None
) -> list[Problem]:
    """All problems in row order.

    `prompt` replaces the registry's template. Two rows with one id are an error that names both."""
    if spec.shape == "layout":
        return _problems_of_layout(spec, rows, prompt or spec.prompt)
    problems: list[Problem] = []
    first_seen: dict[str, str] = {}
    for row in rows.rows:
        problem = _problem(spec, row, seed, prompt or spec.prompt or "{question}")
        if problem.id in first_seen:
            raise _twice(problem.id, row.where, first_seen[problem.id])
        first_seen[problem.id] = row.where
        problems.append(problem)
    return problems


def _as_a_benchmark(message: str, source: str) -> str:
    """What to do about columns with other names: a benchmark says it in a YAML file of its own."""

    def own_file(found: re.Match[str]) -> str:
        fields = f"fields: {{question: {found[1]}, gold: {found[2]}}}"
        return f"--benchmark my_exam.yaml, a file with `data: {source}` and `{fields}`"

    return re.sub(r"data\.fields \{question: ([^,}]+), answer: ([^}]+)\}", own_file, message)


def _problems_of_layout(
    spec: BenchmarkSpec, rows: BenchmarkRows, template: str | None
) -> list[Problem]:
    """Problems as the rows' published layout says, each once.

    Prompts that a row holds whole stay as they are, so a template over such rows is refused."""
    columns = Counter(frozenset(row.values) for row in rows.rows)
    try:
        layout = recognise(rows.source, columns, "ask")
    except DataError as error:
        raise DataError(_as_a_benchmark(str(error), rows.source)) from None
    filled = 0

    def around(question: str, kind: Kind) -> str:
        nonlocal filled
        filled += 1
        return fill(template or prompt_of(kind), {"question": question})

    options = ProblemOptions(kind=spec.kind, around=around)
    first_seen: dict[str, tuple[Problem, str]] = {}
    for row in rows.rows:
        problem = problem_of(RawRow(row.where, row.values), layout, options)
        problem = _named(spec, problem, row)
        known, where = first_seen.setdefault(problem.id, (problem, row.where))
        if replace(known, metadata=problem.metadata) != problem:
            raise _twice(problem.id, row.where, where)
    if template is not None and not filled:
        raise DataError(
            f"{rows.source}: its rows (layout {layout.name}) hold whole prompts, so no template is"
            " put around them; fix: leave prompt.template and prompt out, or name the question's"
            " column: fields: {question: COLUMN, gold: COLUMN}"
        )
    if len(first_seen) < len(rows.rows):
        print(
            f"{spec.name}: {len(rows.rows) - len(first_seen):,} rows repeat an earlier one: left out"
        )
    return [problem for problem, _ in first_seen.values()]


def _named(spec: BenchmarkSpec, problem: Problem, row: Row) -> Problem:
    """The problem with an id, filed under the benchmark, with what a reader wants beside it."""
    parameters = parameters_of(problem.kind, problem.metadata)
    question = problem.prompt[-1].content
    key = json.dumps([question, parameters], sort_keys=True, default=str)
    return replace(
        problem,
        id=problem.id or content_hash(key, problem.gold),
        source=spec.name,
        metadata={"question": question, "where": row.where, **parameters},
    )


def _twice(problem_id: str, where: str, first: str) -> DataError:
    return DataError(
        f"{where}: id {problem_id!r} again, first at {first}; fix: remove one of the rows, or give"
        " them different ids"
    )


def _problem(spec: BenchmarkSpec, row: Row, seed: int, template: str) -> Problem:
    found = {name: _field(row, places) for name, places in spec.fields.items()}
    if found.get("question") in (None, ""):
        raise DataError(
            f"{row.where}: expected a question under {' or '.join(spec.fields['question'])}, found"
            f" {', '.join(row.values)}"
        )
    values = {name: _text(value) for name, value in found.items()}
    gold, parameters = "", {}
    if spec.runner != "judge":
        gold, values["options"] = _gold_and_options(spec, row, found, seed)
        parameters = _parameters(spec, row, gold, found)
    text = fill(template, values)
    return Problem(
        id=values.get("id")
        or content_hash(
            "\0".join(values[name] for name in sorted(spec.fields) if name not in ("id", "gold")),
            gold,
        ),
        prompt=(Message("user", text),),
        gold=gold,
        kind=_kind(spec),
        source=spec.name,
        metadata={"question": values["question"], "where": row.where, **parameters},
    )


def _kind(spec: BenchmarkSpec) -> Kind:
    # every shape but layout has one
    assert spec.kind is not None
    return spec.kind


def fill(template: str, values: Mapping[str, str]) -> str:
    """Puts values where `{name}` stands.

    Braces of the values, and braces with anything else in them (\\boxed{}), stay as they are."""
    out, rest = [], template
    while rest:
        head, brace, tail = rest.partition("{")
        out.append(head)
        name, closed, after = tail.partition("}")
        if brace and closed and name in values:
            out.append(values[name])
            rest = after
        else:
            out.append(brace)
            rest = tail
    return "".join(out)


def content_hash(question: str, gold: str) -> str:
    """16 hex digits of sha256 over question and gold: the id of a row that has none."""
    return hashlib.sha256(f"{question}\0{gold}".encode()).hexdigest()[:16]


def _field(row: Row, places: tuple[str, ...]) -> Any:
    for place in places:
        if row.values.get(place) is not None:
            return row.values[place]
    return None


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # AMC answers are stored as 27.0
    if isinstance(value, list) and len(value) == 1:
        return _text(value[0])  # OlympiadBench's final_answer
    return value.strip() if isinstance(value, str) else str(value)


def _gold_and_options(
    spec: BenchmarkSpec, row: Row, found: Mapping[str, Any], seed: int
) -> tuple[str, str]:
    """Gold in the grader's form, and the options as the prompt shows them.

    "" where there are none."""
    if found.get("gold") in (None, "", []):
        if not VERIFIERS[_kind(spec)].needs_gold:
            return "", ""
        raise DataError(
            f"{row.where}: expected a gold answer under {' or '.join(spec.fields['gold'])}, found"
            f" {', '.join(row.values)}"
        )
    gold, options = _text(found["gold"]), ""
    if spec.shape == "gpqa" and found.get("wrong1") is not None:
        right, wrong = gold, [_text(found[f"wrong{i}"]) for i in (1, 2, 3)]
        ordered = shuffled([right, *wrong], f"{seed}\0{_text(found['question'])}")
        gold, options = string.ascii_uppercase[ordered.index(right)], _lettered(spec, ordered)
    elif spec.shape == "options" and (listed := _options(found.get("options"))):
        texts = [_option_text(option) for option in listed]
        gold, options = _letter(row, found["gold"], listed), _lettered(spec, texts)
    elif spec.shape == "yes_no":
        gold = _yes_no(row, gold)
    elif spec.kind == "gsm8k":
        gold = gold.rsplit("####", 1)[-1].strip()
    elif spec.shape == "code":
        gold = gold if isinstance(found["gold"], str) else json.dumps(found["gold"])
    return gold, options


def _parameters(
    spec: BenchmarkSpec, row: Row, gold: str, found: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields that the benchmark's verifier reads beside the gold answer, checked with it."""
    kind = _kind(spec)
    names = VERIFIERS[kind].parameters
    parameters = {name: found[name] for name in names if found.get(name) is not None}
    try:
        check_row(kind, gold, parameters)
    except DataError as error:
        raise DataError(f"{row.where}: {error}") from None
    return parameters


def shuffled(items: list[str], key: str) -> list[str]:
    """`items` in an order that depends only on `key` and the items.

    Sorted by sha256, the same in every process and on every machine."""
    return sorted(items, key=lambda item: hashlib.sha256(f"{key}\0{item}".encode()).digest())


def _lettered(spec: BenchmarkSpec, texts: list[str]) -> str:
    letters = string.ascii_uppercase
    return spec.option_separator.join(
        fill(spec.option_style, {"letter": letters[i], "text": text})
        for i, text in enumerate(texts)
    )


def _options(found: Any) -> list[Any]:
    """The options of a row; of texts with labels, the texts."""
    listed = found.get("text") if isinstance(found, Mapping) else found
    return list(listed) if isinstance(listed, (list, tuple)) else []


def _option_text(option: Any) -> str:
    return (
        _text(option.get("atext", option.get("text")))
        if isinstance(option, dict)
        else _text(option)
    )


def _letter(row: Row, gold: Any, options: list[Any]) -> str:
    """The letter of an option.

    A letter as it is; a number as HeadQA's `aid` where options have one, else as a 0-based index.
    """
    if isinstance(gold, str) and not gold.strip().isdigit():
        return gold.strip()
    number = int(gold)
    numbered = [option.get("aid") if isinstance(option, dict) else None for option in options]
    index = numbered.index(number) if number in numbered else number
    if not 0 <= index < len(options):
        raise DataError(
            f"{row.where}: gold answer {gold!r} is none of the {len(options)} options; fix: the row"
        )
    return string.ascii_uppercase[index]


def _yes_no(row: Row, gold: str) -> str:
    lowered = gold.strip().casefold()
    if lowered not in _YES + _NO:
        raise DataError(
            f"{row.where}: gold answer {gold!r}: expected yes or no (true/false, 1/0); fix: the row"
        )
    return "yes" if lowered in _YES else "no"
