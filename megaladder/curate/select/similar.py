"""reasoning_ladder's similarity stage.

For each benchmark problem the most (or least) similar questions, by cosine.

Vectors are an embedding column of both files when the recipe names one, else TF-IDF of the
questions' words (smooth idf, L2 norm, as scikit-learn's defaults); which was used is stored with
the stage. Published: OpenAI text-embedding-3-small, about 90 per problem.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from megaladder.curate.ngrams import words
from megaladder.curate.rows import ID_COLUMNS, iter_rows, prompt_text
from megaladder.curate.select.pool import Context, Outcome, PoolRow
from megaladder.curate.select.recipe import Stage
from megaladder.data.read import RawRow
from megaladder.errors import DataError


class Similar(Stage):
    """Keeps the rows most like the problems of `to`.

    For each problem the `per_problem` rows with the highest (`least`: lowest) cosine; `total` caps
    the union, taking every problem's best first. Equal similarities go by id."""

    name: ClassVar[str] = "similar"
    to: str
    """Benchmark file."""
    ids: list[Any] = Field(default_factory=list)
    """Ids of the problems to use; empty = all."""
    per_problem: Annotated[int, Field(ge=1)] = 90
    total: Annotated[int, Field(ge=1)] | None = None
    least: bool = False
    embedding: str | None = None
    """Column with a vector in both files; null = TF-IDF."""

    def needs(self) -> tuple[str, ...]:
        return (self.embedding,) if self.embedding else ()

    def apply(self, rows: list[PoolRow], context: Context) -> Outcome:
        problems = self._problems(context)
        if self.embedding:
            cosine = _embedding_cosine(rows, problems, self.embedding, context)
        else:
            texts: dict[str, str] = {}
            for row, content in context.stream(rows):
                texts[row.id] = prompt_text(content) or ""
            cosine = tfidf_cosine(
                [prompt_text(problem.data) or "" for problem in problems],
                [texts[row.id] for row in rows],
            )
        ranked = np.argsort(cosine if self.least else -cosine, axis=1, kind="stable")[
            :, : self.per_problem
        ]  # stable: ties by id
        chosen: dict[int, None] = {}
        for rank in range(ranked.shape[1]):
            for index in ranked[:, rank].tolist():
                if self.total is None or len(chosen) < self.total:
                    chosen.setdefault(index, None)
        for index in chosen:
            rows[index].add(
                similarity=float(cosine[:, index].min() if self.least else cosine[:, index].max())
            )
        notes = {"vectors": self.embedding or "tf-idf", "problems": len(problems)}
        kept = [row for index, row in enumerate(rows) if index in chosen]
        return Outcome(
            kept,
            [
                (row, "not similar" if not self.least else "too similar")
                for i, row in enumerate(rows)
                if i not in chosen
            ],
            notes,
        )

    def produces(self) -> tuple[str, ...]:
        return ("similarity",)

    def _problems(self, context: Context) -> list[RawRow]:
        wanted = {str(i) for i in self.ids}
        found: dict[str, RawRow] = {}
        for position, row in enumerate(iter_rows(self.to)):
            name = str(
                next(
                    (row.data[column] for column in ID_COLUMNS if column in row.data), position + 1
                )
            )
            if not wanted or name in wanted:
                found[name] = row
        missing = sorted(wanted - found.keys())
        if missing:
            raise DataError(
                f"{self.to}: no problem with id {missing[0]}, which {context.label} asks for; fix:"
                " ids of that file"
            )
        return list(found.values())


def _embedding_cosine(
    rows: list[PoolRow], problems: list[RawRow], column: str, context: Context
) -> np.ndarray:
    """Cosine [problems, rows] of the vectors in a column of both files."""
    ours = [_vector(row.values.get(column), row.where, column, context) for row in rows]
    theirs = [_vector(row.data.get(column), row.where, column, context) for row in problems]
    sizes = {len(vector) for vector in [*ours, *theirs]}
    if len(sizes) != 1:
        raise DataError(
            f"{context.label}: vectors in '{column}' have lengths {sorted(sizes)}; fix: one"
            " embedding model for both files"
        )
    return np.stack(theirs) @ np.stack(ours).T


def _vector(value: Any, where: str, column: str, context: Context) -> np.ndarray:
    """A unit vector; a zero vector stays zero."""
    try:
        vector = np.array(value, np.float64)
    except (TypeError, ValueError):
        vector = np.zeros(0)
    if vector.ndim != 1 or not len(vector) or not np.isfinite(vector).all():
        raise DataError(
            f"{where}: no vector of finite numbers in '{column}', which {context.label} needs; fix:"
            " that value, or TF-IDF (embedding: null)"
        )
    norm = float(np.linalg.norm(vector))
    return vector / norm if norm else vector


def tfidf_cosine(queries: list[str], documents: list[str]) -> np.ndarray:
    """Cosine [queries, documents] of TF-IDF vectors.

    Idf = ln((1 + n) / (1 + df)) + 1 over the documents, words none has are left out."""
    from scipy.sparse import csr_matrix

    counts = [Counter(words(text)) for text in documents]
    frequency = Counter(word for count in counts for word in count)
    column = {word: index for index, word in enumerate(sorted(frequency))}
    idf = {word: math.log((1 + len(documents)) / (1 + df)) + 1 for word, df in frequency.items()}

    def matrix(bags: list[Counter[str]]) -> csr_matrix:
        data, columns, bounds = [], [], [0]
        for bag in bags:
            known = sorted(word for word in bag if word in column)
            weights = [bag[word] * idf[word] for word in known]
            norm = math.sqrt(math.fsum(weight * weight for weight in weights)) or 1.0
            data += [weight / norm for weight in weights]
            columns += [column[word] for word in known]
            bounds.append(len(columns))
        return csr_matrix((data, columns, bounds), shape=(len(bags), max(1, len(column))))

    return np.asarray(
        (matrix([Counter(words(text)) for text in queries]) @ matrix(counts).T).todense()
    )
