"""`data make arithmetic|countdown`: rows → checker → file.

A row that the checker faults stops the command."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from megaladder.config.verbs.data import MakeArithmeticConfig, MakeConfig, MakeCountdownConfig
from megaladder.curate.make.arithmetic import ArithmeticSpec, arithmetic_rows
from megaladder.curate.make.check import check_arithmetic, check_countdown
from megaladder.curate.make.countdown import CountdownSpec, countdown_rows
from megaladder.curate.rows import Row, RowWriter

Rows = Callable[[Any, int, int, bool], Iterator[Row]]
Check = Callable[[Row], list[str]]


def run_make(config: MakeArithmeticConfig | MakeCountdownConfig) -> None:
    """The verb `data make arithmetic|countdown`."""
    if isinstance(config, MakeArithmeticConfig):
        _make(config, _arithmetic(config), (arithmetic_rows, check_arithmetic), "largest")
    else:
        _make(config, _countdown(config), (countdown_rows, check_countdown), "backtracks")


def _arithmetic(config: MakeArithmeticConfig) -> ArithmeticSpec:
    return ArithmeticSpec(
        digits=config.digits,
        factor_digits=config.factor_digits,
        steps=config.steps,
        max_steps=config.max_steps,
        operations=config.operations,
        shuffle=config.shuffle,
        recheck_share=config.recheck_share,
        direct_share=config.direct_share,
        direct_from=config.direct_from,
    )


def _countdown(config: MakeCountdownConfig) -> CountdownSpec:
    return CountdownSpec(
        config.numbers,
        config.largest,
        config.max_target,
        config.breadth,
        config.max_backtracks,
        config.min_backtracks,
        config.bare_share,
        config.bare_from,
    )


def problem_row(row: Row) -> Row:
    """The row as a problem for evaluation and RL.

    `id, question, answer`, its verifier with what that needs, and the measures, without the worked
    answer."""
    verifier = "countdown" if "target" in row else "math"
    rest = {
        name: value
        for name, value in row.items()
        if name not in ("messages", "gold", "id", "question", "worked", "rechecks")
    }
    asked = {"id": row["id"], "question": row["question"], "answer": row["gold"]}
    return {**asked, "verifier": verifier, **rest}


def _make(config: MakeConfig, spec: Any, kind: tuple[Rows, Check], measure: str) -> None:
    started = time.perf_counter()
    values = _write(
        config.out, kind, (spec, config.rows, config.seed, config.split == "test"), config.form
    )
    made = [f"{config.rows:,} {config.split} rows → {config.out}"]
    if config.test_out:
        _write(config.test_out, kind, (spec, config.test_rows, config.seed, True), "problem")
        made.append(f"{config.test_rows:,} test problems → {config.test_out}")
    print(f"{'; '.join(made)}: every trace verified, {time.perf_counter() - started:.1f} s")
    characters = _quantiles([row["characters"] for row in values])
    print(
        f"{measure}: {_quantiles([row[measure] for row in values])}; response characters:"
        f" {characters}"
    )


def _write(
    path: str, kind: tuple[Rows, Check], args: tuple[Any, int, int, bool], form: str
) -> list[Row]:
    make, check = kind
    measures = []
    with RowWriter(path) as writer:
        for row in make(*args):
            faults = check(row)
            assert not faults, f"{row['id']}: {faults}"
            writer.write(problem_row(row) if form == "problem" else row)
            numbers = {name: value for name, value in row.items() if type(value) is int}
            measures.append({**numbers, "characters": len(row["messages"][1]["content"])})
    return measures


def _quantiles(values: list[int]) -> str:
    """`min 0, 25 % 1, median 3, 75 % 5, max 12` of whole numbers, by counting."""
    counts = sorted(Counter(values).items())
    shares = (("min", 0.0), ("25 %", 0.25), ("median", 0.5), ("75 %", 0.75), ("max", 1.0))
    found = []
    for name, share in shares:
        rank, seen = share * (len(values) - 1), 0
        for value, count in counts:
            seen += count
            if seen > rank:
                found.append(f"{name} {value:,}")
                break
    return ", ".join(found)
