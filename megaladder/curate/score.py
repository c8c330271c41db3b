"""The verb `data score`.

LIMO's rule score, style features and quality levels of reasoning texts.

Score (LIMO, arXiv 2502.03387): 0.30·elaboration (length) + 0.20·verification + 0.25·exploration +
0.25·granularity (connectives), where the last three are keyword counts divided by the text's
length. Published: the four weights and one or two example words each. Not published: the rest of
the word lists and how the four are brought to one scale. Both are configuration here (`LimoRule`);
the default scale is min-max over the pool, so a score only compares rows of one pool. No torch;
rows are streamed, only numbers are kept.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import Field, model_validator

from megaladder.config.base import StrictModel
from megaladder.curate.ngrams import words
from megaladder.curate.rows import Row, RowWriter, iter_rows
from megaladder.errors import DataError
from megaladder.process.signals import die_with_parent

if TYPE_CHECKING:
    from megaladder.config.verbs.data import ScoreConfig

PARTS = ("elaboration", "verification", "exploration", "granularity")
WEIGHTS = (0.30, 0.20, 0.25, 0.25)  # published, in the order of PARTS
FULL: tuple[float, ...] = (8000, 10, 10, 30)  # in the order of PARTS
STYLES = ("verification", "backtracking", "exploration", "connectives")
WORDS = {
    "verification": (
        "check checking checked checks verify verifying verified verifies verification confirm"
        " confirms confirmed validate validated; double check; make sure; plug back in; sanity"
        " check"
    ),
    "exploration": (
        "perhaps might maybe alternatively possibly could suppose consider wonder try trying; what"
        " if; another way"
    ),
    "connectives": (
        "therefore since because thus hence so then thereby consequently implies; it follows; as a"
        " result"
    ),
    "backtracking": (
        "wait hmm oops actually; go back; going back; let me rethink; start over; that is wrong;"
        " that s wrong; not right"
    ),
}
ANSWER_COLUMNS = (
    "solution",
    "response",
    "completion",
    "thinking_trajectories",
    "deepseek_thinking_trajectory",
    "answer",
    "text",
)
CHUNK_ROWS = 256
Item = TypeVar("Item")
Result = TypeVar("Result")


class LimoRule(StrictModel):
    """Weights, word lists and scale of the rule score.

    A list is words separated by blanks, then phrases separated by `;`."""

    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=lambda: dict(zip(PARTS, WEIGHTS, strict=True))
    )
    """Of the four parts; they should sum to 1."""
    verification: str = WORDS["verification"]
    exploration: str = WORDS["exploration"]
    granularity: str = WORDS["connectives"]
    normaliser: Literal["minmax", "rank", "per_1k"] = "minmax"
    """minmax = (x − min) / (max − min) over the pool, 0 where all are equal; rank = mean rank / (n
    − 1); per_1k = x / full, at most 1."""
    full: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=lambda: dict(zip(PARTS, FULL, strict=True))
    )
    """Only for per_1k: words of text, and keywords per 1,000 words, that count as 1."""

    @model_validator(mode="after")
    def _whole(self) -> LimoRule:
        for name, table in (("weights", self.weights), ("full", self.full)):
            if set(table) != set(PARTS):
                raise ValueError(
                    f"{name} has {sorted(table)}, expected {', '.join(PARTS)}; fix: these four"
                )
        if abs(sum(self.weights.values()) - 1) > 1e-9:
            raise ValueError(
                f"weights sum to {sum(self.weights.values()):g}, expected 1; fix: scale them"
            )
        return self


def keyword_counter(keywords: str) -> Callable[[Sequence[str]], int]:
    """Counts a list (`"check verify; double check"`) in a text's words.

    A phrase counts beside the words in it, as keyword lists do.

    >>> keyword_counter("check; make sure")("let me check this to make sure".split())
    2
    """
    head, *phrases = (part.strip() for part in keywords.split(";"))
    single = set(words(head))
    padded = [f" {'  '.join(words(phrase))} " for phrase in phrases if phrase]

    def count(text_words: Sequence[str]) -> int:
        total = sum(number for word, number in Counter(text_words).items() if word in single)
        if padded:
            # two blanks between words: neighbouring phrases do not share one
            joined = f" {'  '.join(text_words)} "
            total += sum(joined.count(phrase) for phrase in padded)
        return total

    return count


def style_features(text: str) -> dict[str, int]:
    """Length in words and characters, and keyword counts per style."""
    found = words(text)
    counts = {f"num_{style}": keyword_counter(WORDS[style])(found) for style in STYLES}
    return {"num_words": len(found), "num_characters": len(text), **counts}


def limo_parts(text: str, rule: LimoRule) -> tuple[float, float, float, float]:
    """The four measures before scaling.

    Words, and keywords per word for the other three (0 for a text without words)."""
    found = words(text)
    verification, exploration, connectives = (
        keyword_counter(getattr(rule, part))(found) / max(1, len(found)) for part in PARTS[1:]
    )
    return float(len(found)), verification, exploration, connectives


def limo_scores(
    parts: Sequence[tuple[float, float, float, float]], rule: LimoRule
) -> list[dict[str, float]]:
    """Scaled parts and the score of every text of a pool.

    `{"score": …, "elaboration": …, …}`, all in [0, 1]."""
    values = np.array(parts, np.float64).reshape(-1, 4)
    scaled = np.stack(
        [_scale(values[:, column], part, rule) for column, part in enumerate(PARTS)], axis=1
    )
    weights = np.array([rule.weights[part] for part in PARTS])
    scores = (scaled * weights).sum(axis=1)
    return [
        {"score": float(score), **dict(zip(PARTS, row.tolist(), strict=True))}
        for score, row in zip(scores, scaled, strict=True)
    ]


def _scale(values: np.ndarray, part: str, rule: LimoRule) -> np.ndarray:
    if rule.normaliser == "per_1k":
        per = 1.0 if part == "elaboration" else 1000.0
        return np.minimum(1.0, values * per / rule.full[part])
    if rule.normaliser == "rank":
        from scipy.stats import rankdata

        return (rankdata(values) - 1) / max(1, len(values) - 1)
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def quality_levels(scores: Sequence[float], num_levels: int) -> list[int]:
    """1 (lowest) … num_levels (highest), bands of equal size by rank.

    Equal scores share a band, the lower one.

    >>> quality_levels([0.1, 0.9, 0.5, 0.5, 0.7], 5)
    [1, 5, 2, 2, 4]
    """
    ordered = sorted(scores)
    first: dict[float, int] = {}
    for rank, score in enumerate(ordered):
        first.setdefault(score, rank)
    return [1 + first[score] * num_levels // len(ordered) for score in scores]


def answer_text(row: Mapping[str, Any], column: str | None, where: str) -> str:
    """The reasoning text of a row.

    The named column, else the first of the usual ones, else the assistant's turns."""
    names = (column,) if column else ANSWER_COLUMNS
    for name in names:
        value = row.get(name)
        if isinstance(value, str):
            return value
        if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
            return "\n".join(value)
    if column is None or column in ("messages", "conversations"):
        turns = row.get("messages", row.get("conversations")) or []
        found = [
            t.get("content", t.get("value"))
            for t in turns
            if isinstance(t, dict) and t.get("role", t.get("from")) in ("assistant", "gpt")
        ]
        texts = [text for text in found if isinstance(text, str)]
        if texts and len(texts) == len(found):
            return "\n".join(texts)
    wanted = (
        f"text in column '{column}'"
        if column
        else f"an answer ({', '.join(ANSWER_COLUMNS)} or messages)"
    )
    raise DataError(
        f"{where}: expected {wanted}, found columns {', '.join(row)}; fix: name the column of the"
        " reasoning text"
    )


def map_ordered(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """`map` over processes, results in order, a bounded number of items in flight.

    The same results for any number of workers."""
    if workers <= 1:
        yield from map(function, items)
        return
    iterator = iter(items)
    # idle workers would wait for ever: each holds the end of the queue that it reads
    with ProcessPoolExecutor(workers, None, die_with_parent, (os.getpid(),)) as executor:
        while batch := list(islice(iterator, CHUNK_ROWS * workers)):
            yield from executor.map(function, batch, chunksize=CHUNK_ROWS // 4)


def measure(text: str, rule: LimoRule) -> tuple[tuple[float, float, float, float], dict[str, int]]:
    """What `data score` keeps of a text."""
    return limo_parts(text, rule), style_features(text)


def run_score(config: ScoreConfig) -> None:
    """The verb `data score`: two passes, measures first, then the rows with their new columns."""
    rule = load_rule(config.rule_file)
    texts = (answer_text(row.data, config.column, row.where) for row in iter_rows(config.path))
    measures = list(map_ordered(partial(measure, rule=rule), texts, config.workers))
    scores = limo_scores([parts for parts, _ in measures], rule)
    levels = (
        quality_levels([entry["score"] for entry in scores], config.levels)
        if config.levels
        else [None] * len(scores)
    )
    with RowWriter(config.out) as writer:
        for row, entry, (_, style), level in zip(
            iter_rows(config.path), scores, measures, levels, strict=True
        ):
            writer.write({**row.data, **_score_columns(row.data, entry, style, level, row.where)})
    _print_score(config, rule, scores, levels)


def _score_columns(
    row: Row, entry: dict[str, float], style: dict[str, int], level: int | None, where: str
) -> Row:
    parts = {name: value for name, value in entry.items() if name != "score"}
    columns: Row = {"score": entry["score"], "score_parts": parts, "style": style}
    if level is not None:
        columns["level"] = level
    taken = sorted(set(columns) & set(row))
    if taken:
        raise DataError(
            f"{where}: column '{taken[0]}' is there already; fix: score the file that has no scores"
            " yet, or rename the column"
        )
    return columns


def load_rule(path: str | None) -> LimoRule:
    """The rule of a YAML file with LimoRule's keys.

    The published weights and our word lists without one."""
    if path is None:
        return LimoRule()
    from megaladder.config.resolve import from_yaml

    return from_yaml(LimoRule, path)


def _print_score(
    config: ScoreConfig,
    rule: LimoRule,
    scores: list[dict[str, float]],
    levels: Sequence[int | None],
) -> None:
    values = np.array([entry["score"] for entry in scores])
    places = (("min", 0), ("25 %", 0.25), ("median", 0.5), ("75 %", 0.75), ("max", 1))
    print(f"{len(scores):,} rows scored ({rule.normaliser}) → {config.out}")
    print(
        "score: " + ", ".join(f"{name} {np.quantile(values, place):.4f}" for name, place in places)
    )
    for part in PARTS:
        print(
            f"  {part}: mean {np.mean([entry[part] for entry in scores]):.4f}, weight"
            f" {rule.weights[part]:g}"
        )
    for level, count in sorted(Counter(level for level in levels if level is not None).items()):
        band = [entry["score"] for entry, of in zip(scores, levels, strict=True) if of == level]
        print(f"  level {level}: {count:,} rows, score {min(band):.4f} to {max(band):.4f}")
