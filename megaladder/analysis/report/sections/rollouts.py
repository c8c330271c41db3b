"""Which generated texts the page holds, and how hostile text is made harmless.

What it says stays readable, what it does is gone.

Escaping is the template's (autoescape); here control characters, bidirectional marks and lone
surrogates become visible symbols, and very long texts are cut in the middle, with the cut marked.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from megaladder.analysis.report.blocks import Rollout, RolloutList, Section
from megaladder.analysis.report.collect import Inputs, rollout_rows
from megaladder.analysis.samples.rows import (
    CORRECT_KEYS,
    problem_id,
    question_of,
    response_texts,
    row_gold,
)
from megaladder.errors import DataError

MAX_ROWS_READ = 2000  # of one file; the report is for reading, not for storage
QUESTION_SHARE = 4  # a question may take a quarter of max_chars
KEPT = "\n\t"


def visible(text: str, max_chars: int) -> str:
    """`text` for display.

    Cut in the middle to `max_chars`, controls and direction marks as ⟨U+202E⟩, surrogates as �."""
    if len(text) > max_chars:
        head, tail = max_chars * 3 // 4, max_chars // 4
        text = (
            f"{text[:head]}\n… [{len(text) - head - tail:,} characters left out] …\n{text[-tail:]}"
        )
    text = text.replace("\r\n", "\n")
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(char) for char in text)


def _shown(char: str) -> str:
    if char in KEPT or char.isprintable():
        return char
    category = unicodedata.category(char)
    if category == "Cs":
        return "�"
    return (
        char
        if category in ("Zs", "Zl", "Zp") and char not in "\u2028\u2029"
        else f"⟨U+{ord(char):04X}⟩"
    )


def rollout_section(inputs: Inputs, max_rollouts: int, max_chars: int, seed: int) -> Section:
    """Rollouts evenly over sources (a step of a run, a model on a benchmark).

    Within one, wrong and right ones in turn."""
    section = Section(
        "rollouts",
        "Rollouts to read",
        missing="rollouts/step_N.jsonl of a GRPO run, or eval samples with responses",
    )
    sources = [
        (f"{run.name} step {step}", path)
        for run in inputs.runs
        for step, path in sorted(run.rollouts.items())
    ]
    sources += [
        (f"{e.samples.model} {e.samples.benchmark}", Path(e.samples.path)) for e in inputs.evals
    ]
    if not sources or max_rollouts == 0:
        return section
    share = max(1, max_rollouts // len(sources))
    if len(sources) > max_rollouts:  # more steps than rollouts: every so many steps
        sources = [sources[i] for i in np.linspace(0, len(sources) - 1, max_rollouts).astype(int)]
    chosen: list[Rollout] = []
    total = 0
    for source, path in sources:
        found = list(islice(_rollouts(source, path, max_chars), MAX_ROWS_READ))
        total += len(found)
        chosen += pick(found, share, seed)
    if chosen:
        note = (
            f"{len(chosen):,} of {total:,} answers read, up to {share} from each of {len(sources)}"
            " sources, wrong and right ones in turn."
        )
        section.blocks.append(RolloutList(chosen, note))
    return section


def pick(found: Sequence[Rollout], count: int, seed: int) -> list[Rollout]:
    """A seeded choice that alternates wrong, right (and ungraded), kept in file order."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(found))
    piles = [[i for i in order if found[i].correct is verdict] for verdict in (False, True, None)]
    taken: list[int] = []
    while len(taken) < min(count, len(found)):
        for pile in piles:
            if pile and len(taken) < count:
                taken.append(pile.pop())
    return [found[i] for i in sorted(taken)]


def _rollouts(source: str, path: Path, max_chars: int) -> Iterator[Rollout]:
    for where, row in rollout_rows(path):
        texts = _texts(row)
        correct, rewards = (
            _listed(row, CORRECT_KEYS, len(texts)),
            _listed(row, ("rewards", "reward"), len(texts)),
        )
        answers = _listed(row, ("extracted_answers", "answer", "answers", "prediction"), len(texts))
        lengths = _listed(row, ("num_tokens", "lengths", "tokens", "response_length"), len(texts))
        question, gold = (
            question_of(row) or _nested(row, "problem", "prompt"),
            row_gold(row) or _nested(row, "problem", "gold"),
        )
        try:
            name = problem_id(row, where)
        except DataError:
            name = where.rsplit(":", 1)[-1]
        for i, text in enumerate(texts):
            yield Rollout(
                source=source,
                problem=visible(name, 80),
                question=visible(question, max(100, max_chars // QUESTION_SHARE)),
                response=visible(text, max_chars),
                gold=visible(gold, 500),
                answer="" if answers[i] is None else visible(str(answers[i]), 500),
                correct=None if correct[i] is None else bool(correct[i]),
                reward=float(rewards[i]) if isinstance(rewards[i], (int, float)) else None,
                tokens=lengths[i] if isinstance(lengths[i], int) else None,
            )


def _texts(row: dict[str, Any]) -> list[str]:
    texts = response_texts(row)
    if texts:
        return texts
    for name in ("text", "completion", "output"):
        if isinstance(row.get(name), str):
            return [row[name]]
    completions = row.get("completions")
    if isinstance(completions, list):
        return [
            str(item.get("text", "")) if isinstance(item, dict) else str(item)
            for item in completions
        ]
    return []


def _listed(row: dict[str, Any], names: Sequence[str], count: int) -> list[Any]:
    for name in names:
        value = row.get(name)
        if isinstance(value, list) and len(value) == count:
            return value
        if value is not None and not isinstance(value, (list, dict)) and count == 1:
            return [value]
    return [None] * count


def _nested(row: dict[str, Any], outer: str, inner: str) -> str:
    value = row.get(outer)
    found = value.get(inner) if isinstance(value, dict) else None
    if isinstance(found, list) and found and isinstance(found[-1], dict):
        found = found[-1].get("content")
    return found if isinstance(found, str) else ""
