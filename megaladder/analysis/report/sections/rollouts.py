"""Which generated texts the page holds, and how hostile text is made harmless.

What it says stays readable, what it does is gone.

Escaping is the page's (it sets texts, never HTML); here control characters, bidirectional marks and lone
surrogates become visible symbols, and very long texts are cut in the middle, with the cut marked.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from megaladder.analysis.report.blocks import Excerpt, Rollout, RolloutList, Section
from megaladder.analysis.report.collect import Inputs, rollout_rows
from megaladder.analysis.report.formats import significant
from megaladder.analysis.samples.rows import (
    CORRECT_KEYS,
    problem_id,
    question_of,
    response_texts,
    row_gold,
)
from megaladder.config.verbs.analysis import ReportConfig
from megaladder.errors import DataError
from megaladder.files.shapes import as_number

MAX_ROWS_READ = 2000  # of one file; the report is for reading, not for storage
QUESTION_SHARE = 4  # a question may take a quarter of max_chars
KEPT = "\n\t"
MISSING = "rollouts/step_N.jsonl of a GRPO run, or eval samples with responses"


def visible(text: str, max_chars: int) -> str:
    """`text` for display.

    Cut in the middle to `max_chars`, controls and direction marks as ⟨U+202E⟩, surrogates as �."""
    return shown(Excerpt.of(text, max_chars))


def shown(excerpt: Excerpt) -> str:
    """An excerpt for display, with what is left out of it counted."""
    head, tail = _clean(excerpt.head), _clean(excerpt.tail)
    if not excerpt.left_out:
        return head + tail
    return f"{head}\n… [{excerpt.left_out:,} characters left out] …\n{tail}"


def _clean(text: str) -> str:
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


@dataclass(frozen=True)
class Source:
    """A file of generated answers: a step of a run, or a model on a benchmark."""

    name: str
    path: Path
    step: int | None = None


def sources_of(inputs: Inputs) -> list[Source]:
    """Steps of the runs in order, then the evaluations."""
    steps = [
        Source(run.name, path, step)
        for run in inputs.runs
        for step, path in sorted(run.rollouts.items())
    ]
    evals = inputs.evals
    return steps + [
        Source(f"{e.samples.model} on {e.samples.benchmark}", Path(e.samples.path)) for e in evals
    ]


def rollout_section(inputs: Inputs, limits: ReportConfig) -> Section:
    """Rollouts evenly over sources; within one, wrong and right ones in turn."""
    section = Section("rollouts", "Rollouts to read", missing=MISSING)
    sources, most = sources_of(inputs), limits.max_rollouts
    if not sources or most == 0:
        return section
    share = max(1, most // len(sources))
    if len(sources) > most:  # more steps than rollouts: every so many steps
        sources = [sources[i] for i in np.linspace(0, len(sources) - 1, most).astype(int)]
    chosen: list[Rollout] = []
    total = 0
    for source in sources:
        found = list(islice(read_rollouts(source, limits.max_chars), MAX_ROWS_READ))
        total += len(found)
        chosen += pick(found, share, limits.seed)
    if chosen:
        chosen, cut = fit(chosen, int(limits.rollout_mb * 1e6))
        note = (
            f"{len(chosen):,} of {total:,} answers read, up to {share} from each of {len(sources)}"
            " sources, wrong and right ones in turn."
        )
        note += (
            ""
            if cut is None
            else (
                f" So that they fit into {limits.rollout_mb:g} MB, texts are cut to {cut:,} characters"
                " (--rollout-mb)."
            )
        )
        section.blocks.append(RolloutList(chosen, note))
    return section


def fit(chosen: Sequence[Rollout], max_bytes: int) -> tuple[list[Rollout], int | None]:
    """Cuts the longest texts until all together are about `max_bytes`.

    Also returns the length that they are cut to, None where all fit."""
    lengths = sorted(excerpt.num_bytes for r in chosen for excerpt in r.texts)
    left = max_bytes
    for place, length in enumerate(lengths):
        share = left // (len(lengths) - place)
        if length > share:
            cap = max(100, share)
            return [r.cut(cap) for r in chosen], cap
        left -= length
    return list(chosen), None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and as_number(value) is not None else None


def _finite(value: Any) -> float | None:
    number = as_number(value)
    return number if number is not None and math.isfinite(number) else None


def as_json(rollout: Rollout) -> dict[str, Any]:
    """What the page's script reads: what is known of it, the reward as it is shown."""
    given = {field.name: getattr(rollout, field.name) for field in fields(rollout)}
    given |= {name: shown(given[name]) for name in ("question", "response")}
    if rollout.reward is not None:
        given["reward"] = float(significant(rollout.reward))
    return {name: value for name, value in given.items() if value is not None and value != ""}


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


def read_rollouts(source: Source, max_chars: int) -> Iterator[Rollout]:
    """The answers of a file, a stream."""
    for where, row in rollout_rows(source.path):
        texts = _texts(row)
        correct, rewards = (
            _listed(row, CORRECT_KEYS, len(texts)),
            _listed(row, ("rewards", "reward"), len(texts)),
        )
        answers = _listed(row, ("extracted_answers", "answer", "answers", "prediction"), len(texts))
        lengths = _listed(row, ("num_tokens", "lengths", "tokens", "response_length"), len(texts))
        ends = _listed(row, ("finish_reasons", "finish_reason"), len(texts))
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
                source=source.name,
                step=source.step,
                problem=visible(name, 80),
                question=Excerpt.of(question, max(100, max_chars // QUESTION_SHARE)),
                response=Excerpt.of(text, max_chars),
                gold=visible(gold, 500),
                answer="" if answers[i] is None else visible(str(answers[i]), 500),
                correct=None if correct[i] is None else bool(correct[i]),
                reward=_finite(rewards[i]),
                tokens=_count(lengths[i]),
                truncated=None if ends[i] is None else str(ends[i]) == "length",
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
