"""s1's diversity stage (arXiv 2501.19393, filter.ipynb).

Draw a domain, then a long trace inside it, until there are n rows."""

from __future__ import annotations

import random
from collections import Counter
from typing import Annotated, ClassVar

from pydantic import Field

from megaladder.config.base import StrictModel
from megaladder.curate.rows import iter_rows
from megaladder.curate.select.filters import Condition
from megaladder.curate.select.pool import Context, Outcome, PoolRow
from megaladder.curate.select.recipe import Stage
from megaladder.errors import DataError


class DomainCounts(StrictModel):
    """How many problems of a benchmark each domain has.

    Given (`counts`), in a file (`file`, `column`), or rows of the pool (`where`)."""

    counts: dict[str, int] = Field(default_factory=dict)
    file: str | None = None
    column: str = "domain"
    where: Condition | None = None

    def of(self, context: Context, domain: str) -> Counter[str]:
        if self.file is not None:
            return Counter(
                str(row.data[self.column])
                for row in iter_rows(self.file)
                if self.column in row.data
            )
        if self.where is not None:
            rows = (row for row in context.all_rows if self.where.holds(row, context))
            return Counter(
                str(row.values[domain]) for row in rows if row.values.get(domain) is not None
            )
        return Counter(self.counts)


class Diverse(Stage):
    """Rows marked in `preselected` first.

    Then, while fewer than `uniform_until` rows are chosen, a domain drawn uniformly, afterwards by
    benchmark weight; in the domain a row drawn with weight 2^(−rank), rank 0 = longest. A chosen
    row leaves its domain, an empty domain leaves the draw. Without `weights` the draw stays
    uniform."""

    name: ClassVar[str] = "diverse"
    n: Annotated[int, Field(ge=1)]
    domain: str = "domain"
    length: str = "length"
    preselected: str | None = None
    uniform_until: Annotated[int, Field(ge=0)] = 700
    gpqa: DomainCounts | None = None
    """Benchmark whose domain counts are scaled: int(count × 0.5 · Σaime / Σgpqa)."""
    aime: DomainCounts | None = None
    """Benchmark whose domain counts are added as they are."""
    inside: str = "longest"
    """longest = 2^(−rank); uniform = any row of the domain (the 1K-diverse ablation)."""
    allow_fewer: bool = False

    def needs(self) -> tuple[str, ...]:
        columns = [
            self.domain,
            *([self.length] if self.inside == "longest" else []),
            *([self.preselected] if self.preselected else []),
        ]
        for benchmark in (self.gpqa, self.aime):
            if benchmark and benchmark.where:
                columns += benchmark.where.columns
        return tuple(columns)

    def apply(self, rows: list[PoolRow], context: Context) -> Outcome:
        context.enough(len(rows), self.n, self.allow_fewer)
        first = [row for row in rows if self.preselected and row.values.get(self.preselected)]
        if len(first) > self.n:
            raise DataError(
                f"{context.label}: {len(first):,} rows are pre-selected, n is {self.n:,}; fix: a"
                " larger n or a stricter rule"
            )
        ids = {row.id for row in first}
        domains = self._by_domain([row for row in rows if row.id not in ids], context)
        weights = benchmark_weights(self.gpqa, self.aime, context, self.domain)
        chosen, rng = list(first), context.rng()
        notes = {
            "preselected": len(first),
            "domains": len(domains),
            "uniform": 0,
            "weighted": 0,
            "weighted_exhausted": 0,
        }
        while len(chosen) < self.n and domains:
            by_weight = len(chosen) >= self.uniform_until and bool(weights)
            domain = self._draw_domain(domains, weights if by_weight else {}, rng)
            if domain is None:  # all domains with weight are used up
                by_weight, domain = False, rng.choice(list(domains))
                notes["weighted_exhausted"] += 1
            notes["weighted" if by_weight else "uniform"] += 1
            chosen.append(self._draw_row(domains[domain], rng))
            if not domains[domain]:
                del domains[domain]
        keep = {row.id for row in chosen}
        dropped = [(row, "not drawn") for row in rows if row.id not in keep]
        return Outcome([row for row in rows if row.id in keep], dropped, notes)

    def _by_domain(self, rows: list[PoolRow], context: Context) -> dict[str, list[PoolRow]]:
        """Domain → rows, longest first; domains in alphabetical order, equal lengths by id."""
        domains: dict[str, list[PoolRow]] = {}
        for row in rows:
            value = row.values.get(self.domain)
            if value is None:
                raise DataError(
                    f"{row.where}: no column '{self.domain}', which {context.label} needs; fix:"
                    " drop_missing before it"
                )
            domains.setdefault(str(value), []).append(row)
        for members in domains.values():
            if self.inside == "longest":
                members.sort(key=lambda row: (-context.number(row, self.length), row.id))
        return dict(sorted(domains.items()))

    def _draw_domain(
        self, domains: dict[str, list[PoolRow]], weights: dict[str, int], rng: random.Random
    ) -> str | None:
        names = list(domains)
        if not weights:
            return rng.choice(names)
        table = [weights.get(name, 0) for name in names]
        return rng.choices(names, table)[0] if any(table) else None

    def _draw_row(self, members: list[PoolRow], rng: random.Random) -> PoolRow:
        """Removes and returns one row.

        2^(−rank): stop at each rank with chance 1/2, start again past the end (the same
        distribution)."""
        if self.inside != "longest":
            return members.pop(rng.randrange(len(members)))
        while True:
            for rank in range(len(members)):
                if rng.random() < 0.5:
                    return members.pop(rank)


def benchmark_weights(
    gpqa: DomainCounts | None, aime: DomainCounts | None, context: Context, domain: str
) -> dict[str, int]:
    """Domain → weight: int(gpqa count × 0.5 · Σaime / Σgpqa) + aime count.

    Empty without benchmarks."""
    scaled, plain = (Counter() if b is None else b.of(context, domain) for b in (gpqa, aime))
    factor = 0.5 * plain.total() / scaled.total() if scaled else 0.0
    weights = {name: int(count * factor) for name, count in scaled.items()}
    for name, count in plain.items():
        weights[name] = weights.get(name, 0) + count
    return {name: weight for name, weight in sorted(weights.items()) if weight > 0}
