"""What a layout is, and which one the rows of a file have: one rule for every verb.

A layout fits a row when the columns it needs are there and not null; further columns are ignored.
It is decided once per file from the columns of all rows; a row of another shape is then a bad row.
Where several fit, one that needs more than another wins over it, as does one that names the other
in `over`. What is left may have one layout for each use (a file may hold conversations and
problems); two for one use are an error naming both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from megaladder.data.layouts.ask import Ask
from megaladder.data.layouts.learn import Learn
from megaladder.data.read import MAX_BAD_SHARE, BadRow, RawRow, describe
from megaladder.errors import DataError


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a row of stored samples keeps them; names with a dot reach inside.

    The first column that a row has counts, after those that `grade` writes (`correct`,
    `extracted_answer`). `verdicts` empty: the rows come without any of another name."""

    responses: tuple[str, ...]
    gold: tuple[str, ...]
    verdicts: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    ids: tuple[str, ...] = ("id",)
    kind: str = "verifier"


@dataclass(frozen=True, slots=True)
class Layout:
    """`published`: data sets that have it. `needs`: columns; `a|b` means one of them.

    What a row of it is good for: `learn` a conversation (SFT), `ask` a question with its answer
    (GRPO, sampling), `stored` samples (grade, analyze); None = not for that.
    """

    name: str
    published: str
    needs: tuple[str, ...]
    learn: Learn | None = None
    ask: Ask | None = None
    stored: Stored | None = None
    over: tuple[str, ...] = ()
    weak: bool = False  # any other layout that fits wins over it

    def fits(self, columns: frozenset[str]) -> bool:
        """Whether a row with these non-null columns can be of this layout."""
        return all(not columns.isdisjoint(need.split("|")) for need in self.needs)

    def is_richer_than(self, other: Layout) -> bool:
        """Whether this layout wins where both fit."""
        if other.weak or other.name in self.over:
            return not self.weak
        needs = [frozenset(need.split("|")) for need in self.needs]
        covered = all(
            any(need <= frozenset(theirs.split("|")) for need in needs) for theirs in other.needs
        )
        return covered and len(self.needs) > len(other.needs)

    def can(self, use: Use) -> bool:
        """Whether rows of it are good for `use`."""
        return getattr(self, use) is not None


class AmbiguousLayoutError(DataError):
    """Rows that several layouts fit, none of which is the richer one."""


Use = Literal["learn", "ask", "stored"]
USES: dict[Use, str] = {
    "learn": "sft",
    "ask": "grpo and data sample",
    "stored": "grade and analyze",
}


def fitting(layouts: Iterable[Layout], columns: frozenset[str]) -> frozenset[str]:
    """Names of the layouts that a row with these columns can be of, poorer ones removed."""
    found = [layout for layout in layouts if layout.fits(columns)]
    return frozenset(
        layout.name
        for layout in found
        if not any(other.is_richer_than(layout) for other in found if other is not layout)
    )


def recognise(
    layouts: Mapping[str, Layout], path: str, key_sets: Counter[frozenset[str]], use: Use
) -> Layout:
    """The one layout of a file for a use.

    Raises DataError naming the candidates when several or none fit."""
    if not key_sets:
        raise DataError(
            f"{path}: expected at least one row, found none; fix: give a file with rows"
        )
    votes: Counter[frozenset[str]] = Counter()
    for columns, count in key_sets.items():
        able = (name for name in fitting(layouts.values(), columns) if layouts[name].can(use))
        votes[frozenset(able)] += count
    named = {names: count for names, count in votes.items() if names}
    common = key_sets.most_common(1)[0][0]
    if not named:
        raise _not_for(layouts, path, common, use)
    best = max(named, key=lambda names: (named[names], sorted(names)))
    if len(best) > 1:
        raise AmbiguousLayoutError(
            f"{path}: expected rows that fit one layout for {USES[use]}, found that"
            f" {' and '.join(sorted(best))} fit (columns: {', '.join(sorted(common))}); fix:"
            f" data.format: {' or '.join(sorted(best))}"
        )
    others = {names: count for names, count in named.items() if names != best}
    if sum(others.values()) > MAX_BAD_SHARE * sum(named.values()):
        counts = ", ".join(
            f"{count} of {' or '.join(sorted(names))}" for names, count in named.items()
        )
        raise DataError(
            f"{path}: expected rows of one layout, found {counts}; fix: split the file by layout,"
            " or force data.format"
        )
    return layouts[next(iter(best))]


def _not_for(
    layouts: Mapping[str, Layout], path: str, columns: frozenset[str], use: Use
) -> DataError:
    """Rows that are good for other uses only, or for none."""
    listed = ", ".join(sorted(columns)) or "none"
    known = sorted(fitting(layouts.values(), columns))
    if not known:
        return DataError(
            f"{path}: expected rows of one of {len(layouts)} known layouts, found rows with the"
            f" columns {listed}; fix: say what they are, e.g. data.fields"
            f" {_suggestion(columns, use)}"
        )
    uses = [name for one, name in USES.items() if any(layouts[name].can(one) for name in known)]
    return DataError(
        f"{path}: expected rows for {USES[use]}, found layout {' or '.join(known)}, which is for"
        f" {' and for '.join(uses)} (columns: {listed}); fix: {_WAYS[use]}"
    )


_WAYS: dict[Use, str] = {
    "learn": (
        "write answers with `megaladder data sample`, or data.fields {question: COLUMN, solution:"
        " COLUMN} where a column has them"
    ),
    "ask": "data.fields {question: COLUMN, answer: COLUMN} where a column has the final answer",
    "stored": "rows with 'gold' and 'response' or 'responses'",
}


QUESTION_WORDS = ("question", "problem", "prompt", "query", "instruction", "input", "task", "text")
ANSWER_WORDS = ("solution", "response", "answer", "output", "completion", "target", "reply", "gold")


def _suggestion(columns: frozenset[str], use: Use) -> str:
    """A mapping that would make the rows fit, guessed by the names of their columns."""

    def guess(words: tuple[str, ...], taken: str) -> str:
        for word in words:
            found = [name for name in sorted(columns) if word in name.lower() and name != taken]
            if found:
                return found[0]
        # of two columns one asks and one answers; more could be anything
        others = [name for name in sorted(columns) if name != taken]
        return others[0] if others and len(columns) <= 2 else "COLUMN"

    question = guess(QUESTION_WORDS, "")
    answer = guess(ANSWER_WORDS, question)
    if use == "stored":
        return f"{{response: {guess(ANSWER_WORDS[1:], '')}, gold: COLUMN}}"
    return f"{{question: {question}, answer: {answer}}}"


def check_fits(layout: Layout, row: RawRow) -> None:
    """Raises BadRow for a row that lacks columns of the file's layout."""
    if not layout.fits(frozenset(row.data)):
        raise BadRow(
            row.where,
            "other fields",
            f"the fields of layout {layout.name} ({', '.join(layout.needs)})",
            describe(row.data),
            "complete the row, remove it, or set data.format",
        )
