"""What a section of the page is made of: prose, tables, panels of charts, token views, rollouts.

Each block knows its CSV rows.

Cells are plain text (escaped by the template) or `Drawing`s (SVG made by `svg`, which escapes its
own text).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from megaladder.analysis.report.charts import Chart
from megaladder.files.shapes import as_number


@dataclass(frozen=True, slots=True)
class CsvRow:
    """One number of the page. `x` is a step, k, budget …; `low`/`high` bound `y`."""

    section: str
    figure: str
    series: str
    x: str | float | None
    y: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None


def ends(ci95: Sequence[float] | None) -> tuple[float | None, float | None]:
    """(low, high) of an interval for a `CsvRow`; two None where there is none."""
    if not ci95:
        return None, None
    low, high = ci95
    return low, high


@dataclass(frozen=True, slots=True)
class Drawing:
    """SVG that goes into the page as it is."""

    svg: str


@dataclass(frozen=True)
class Prose:
    """Paragraphs; with `as_list`, bullet points.

    `numbers` are the CSV rows of numbers in them that stand nowhere else."""

    lines: Sequence[str]
    as_list: bool = False
    numbers: Sequence[CsvRow] = ()
    kind: str = "prose"

    def csv(self, section: str) -> Iterator[CsvRow]:
        yield from self.numbers


@dataclass(frozen=True)
class Table:
    """`caption` says what the values are, and of what their intervals tell the chance.

    `numbers` are the CSV rows of the table's values."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Drawing]]
    caption: str
    numbers: Sequence[CsvRow] = ()
    numeric: frozenset[int] = frozenset()  # columns set flush right
    kind: str = "table"

    def csv(self, section: str) -> Iterator[CsvRow]:
        yield from self.numbers


@dataclass(frozen=True)
class Panels:
    """Charts in a grid under one legend of (name, style)."""

    charts: Sequence[Chart]
    legend: Sequence[tuple[str, int]] = ()
    folded: str = ""  # title of a fold that hides them until opened
    kind: str = "panels"

    def csv(self, section: str) -> Iterator[CsvRow]:
        for chart in self.charts:
            for series in chart.series:
                for i, (x, y) in enumerate(series.points):
                    low, high = (series.bounds[i] if i < len(series.bounds) else None) or (
                        None,
                        None,
                    )
                    yield CsvRow(
                        section, chart.csv_name or chart.title, series.name, x, y, low, high
                    )


@dataclass(frozen=True, slots=True)
class Token:
    """A token of the shift view. `heat` 0 = not shifted, 1–4 by rank (2–3, 4–10, 11–100, above)."""

    text: str
    heat: int
    tip: str
    rank: int
    kl: float


@dataclass(frozen=True)
class TokenView:
    """Answers with shifted tokens marked in place."""

    rows: Sequence[tuple[str, Sequence[Token]]]  # prompt, tokens
    kind: str = "tokens"

    def csv(self, section: str) -> Iterator[CsvRow]:
        for number, (_, tokens) in enumerate(self.rows, start=1):
            for place, token in enumerate(tokens):
                yield CsvRow(section, "token rank", f"answer {number}", place, float(token.rank))
                yield CsvRow(section, "token KL", f"answer {number}", place, token.kl)


@dataclass(frozen=True, slots=True)
class Excerpt:
    """The beginning and the end of a text, and how many characters between them are left out.

    It can be cut again, and the count stays true."""

    head: str
    tail: str = ""
    left_out: int = 0

    @classmethod
    def of(cls, text: str, max_chars: int) -> Excerpt:
        """Three quarters from the beginning, one from the end."""
        return cls(text).cut(max_chars)

    def cut(self, max_chars: int) -> Excerpt:
        """The same, or what is left at `max_chars`."""
        long = len(self.head) + len(self.tail) - max_chars
        if long <= 0:
            return self
        head, end = self.head[: max_chars * 3 // 4], max_chars // 4
        rest = self.tail or self.head
        return Excerpt(
            head, rest[len(rest) - end :], self.left_out + long + max_chars - len(head) - end
        )

    @property
    def num_bytes(self) -> int:
        return sum(len(text.encode("utf-8", "replace")) for text in (self.head, self.tail))


@dataclass(frozen=True, slots=True)
class Rollout:
    """One generated answer to read.

    source: a run, or a model on a benchmark. None = not known. Short texts are cleaned already;
    question and response are when they are shown."""

    source: str
    step: int | None
    problem: str
    question: Excerpt
    response: Excerpt
    gold: str
    answer: str
    correct: bool | None
    reward: float | None
    tokens: int | None
    truncated: bool | None

    @property
    def texts(self) -> tuple[Excerpt, Excerpt]:
        return self.question, self.response

    def cut(self, max_chars: int) -> Rollout:
        """The same with shorter texts."""
        return replace(
            self, question=self.question.cut(max_chars), response=self.response.cut(max_chars)
        )


@dataclass(frozen=True)
class RolloutList:
    """Rollouts to filter. `note` says how they were chosen; `live`: the page asks for them."""

    rollouts: Sequence[Rollout]
    note: str
    kind: str = "rollouts"
    live: bool = False

    def csv(self, section: str) -> Iterator[CsvRow]:
        for r in self.rollouts:
            if r.reward is not None or r.correct is not None:
                place = r.source if r.step is None else f"{r.source} step {r.step}"
                yield CsvRow(
                    section,
                    "rollout",
                    f"{place} {r.problem}",
                    "reward" if r.reward is not None else "correct",
                    r.reward if r.reward is not None else float(bool(r.correct)),
                    n=r.tokens,
                )


Block = Prose | Table | Panels | TokenView | RolloutList


def refuse_other_kinds(block: Block) -> None:
    """Raises TypeError for a block of a file's values that has others than texts and numbers."""
    for text in _texts(block):
        if not isinstance(text, str | Drawing):
            raise TypeError(f"a text ({str(text)[:80]})")
    for row in block.csv(""):
        place = () if isinstance(row.x, str) and not isinstance(block, Panels) else (row.x,)
        for value in (*place, row.y, row.low, row.high, row.n):
            if value is not None and as_number(value) is None:
                raise TypeError(f"a number of {row.figure} ({str(value)[:80]})")


def _texts(block: Block) -> Iterator[object]:
    if isinstance(block, Prose):
        yield from block.lines
    elif isinstance(block, Table):
        yield from (block.caption, *(cell for row in block.rows for cell in row))
    elif isinstance(block, Panels):
        for chart in block.charts:
            yield from (chart.title, chart.x_label, chart.y_label, chart.note, chart.csv_name)
            yield from (text for one in chart.series for text in (one.name, *one.labels))
    yield from (text for row in block.csv("") for text in (row.figure, row.series))


@dataclass
class Section:
    """A chapter of the page.

    A section without blocks is left out and named under "Not in this report"."""

    id: str
    title: str
    intro: str = ""
    blocks: list[Block] = field(default_factory=list)
    missing: str = ""  # what would bring it

    def csv(self) -> Iterator[CsvRow]:
        for block in self.blocks:
            yield from block.csv(self.id)
