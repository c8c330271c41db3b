"""Records → scores with intervals, counts of what went wrong, and the lines that are printed.

Pure: no files, no engine.

A score is never printed without its protocol, the number of problems and samples, and a 95 %
interval over problems.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megaladder.config.verbs.evaluation import BudgetSection
from megaladder.errors import DataError
from megaladder.evaluation import metrics
from megaladder.evaluation.metrics import Interval
from megaladder.evaluation.run import Timing
from megaladder.evaluation.store import Sample
from megaladder.types import UNDECIDED_REASONS, GradeReason, Problem

LENGTHS = ("response_length", "thinking_tokens")
PLAIN_NUMBERS = ("reward", "harm_score")  # not shares: printed as they are
PASS_AT = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Scores:
    """One benchmark.

    `values_p`: metric → value per problem, in the problems' order ([P]; shares in [0, 1],
    `response_length` in tokens).

    `headline` names the metric that comes first: avg@n, or the judge's.
    """

    benchmark: str
    num_problems: int
    num_samples: int  # per problem
    headline: str
    values_p: dict[str, np.ndarray]
    intervals: dict[str, Interval | None]
    counts: dict[str, int]
    # tier → (mean of the headline, problems)
    groups: dict[str, tuple[float, int]] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()  # problems without any verdict; not in `values_p`

    def mean(self, metric: str) -> float:
        return float(self.values_p[metric].mean())


def score(
    problems: Sequence[Problem],
    records: Mapping[tuple[str, int], Sample],
    n: int,
    seed: int,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> Scores:
    """Scores of a finished benchmark. Every (problem, sample) below n must be there and graded.

    Undecided samples are left out (and counted): avg@n and pass@k take a problem's decided samples,
    what needs the same number of each takes the first m, the fewest that any problem has.

    Raises:
        DataError: every sample is undecided.
    """
    all_rows = [[records[problem.id, sample] for sample in range(n)] for problem in problems]
    asked = {problem.id for problem in problems}
    problems, rows = decided_rows(problems, all_rows)
    m = min(map(len, rows))
    correct_pn = np.array([[record.correct for record in row[:m]] for row in rows], dtype=bool)
    answers_pn = [[record.answer for record in row[:m]] for row in rows]
    num_samples_p = np.array([len(row) for row in rows])
    num_correct_p = np.array([sum(record.correct is True for record in row) for row in rows])
    headline = f"avg@{n}"
    values = {
        headline: (
            metrics.avg_at_n(correct_pn)
            if m == n
            else metrics.pass_at_k(num_samples_p, num_correct_p, 1)
        ),
        "exact_match": correct_pn[:, 0].astype(np.float64),
    }
    for k in (k for k in PASS_AT if k <= m):
        values[f"pass@{k}"] = metrics.pass_at_k(num_samples_p, num_correct_p, k)
    for k in (k for k in PASS_AT if 1 < k <= m):
        values[f"cov@{k}"] = metrics.cov_at_n(correct_pn, k)
        values[f"maj@{k}"] = metrics.maj_at_n(answers_pn, correct_pn, k)
    shares = dict.fromkeys(values, metrics.SHARE)
    values |= length_values(rows)
    return Scores(
        problems[0].source,
        len(problems),
        n,
        headline,
        values,
        metrics.bootstrap_intervals(values, seed=seed, bounds=shares),
        count(all_rows),
        group_means(problems, values[headline], groups or {}),
        frozenset(asked - {problem.id for problem in problems}),
    )


def decided_rows(
    problems: Sequence[Problem], rows: Sequence[Sequence[Sample]]
) -> tuple[list[Problem], list[list[Sample]]]:
    """The problems that have a verdict, with their decided samples. Raises DataError without any."""
    decided = [[record for record in row if record.correct is not None] for row in rows]
    kept = [(problem, row) for problem, row in zip(problems, decided, strict=True) if row]
    if not kept:
        raise DataError(
            f"{problems[0].source}: none of {len(problems)} problems has a decided sample; fix: a"
            " larger --grade-timeout-s, another --out"
        )
    return [problem for problem, _ in kept], [row for _, row in kept]


def length_values(rows: Sequence[Sequence[Sample]]) -> dict[str, np.ndarray]:
    """Mean tokens per problem, and mean thinking tokens where budgets counted them."""
    values = {
        "response_length": np.array(
            [np.mean([record.num_tokens for record in row]) for row in rows]
        )
    }
    if all(record.num_thinking_tokens is not None for row in rows for record in row):
        values["thinking_tokens"] = np.array(
            [np.mean([record.num_thinking_tokens for record in row]) for row in rows]
        )
    return values


def count(rows: Sequence[Sequence[Sample]]) -> dict[str, int]:
    """What did not go as it should, over all samples; zeros stay, so that nobody wonders."""
    flat = [record for row in rows for record in row]
    reasons = Counter(record.reason for record in flat)
    return {
        "samples": len(flat),
        "truncated": sum(record.finish_reason == "length" for record in flat),
        "aborted": sum(record.finish_reason == "abort" for record in flat),
        "no_answer": reasons[GradeReason.NO_ANSWER.value],
        "undecided": sum(reasons[reason.value] for reason in UNDECIDED_REASONS),
    }


def group_means(
    problems: Sequence[Problem], value_p: np.ndarray, groups: Mapping[str, Sequence[str]]
) -> dict[str, tuple[float, int]]:
    """Mean of a metric over each named group of problem ids.

    Groups that have no problem here (--limit) are left out."""
    index = {problem.id: i for i, problem in enumerate(problems)}
    found = {name: [index[key] for key in ids if key in index] for name, ids in groups.items()}
    return {
        name: (float(value_p[places].mean()), len(places))
        for name, places in found.items()
        if places
    }


def summary_entry(
    scores: Scores, protocol: Mapping[str, Any], timing: Timing | None
) -> dict[str, Any]:
    """A benchmark's part of summary.json. Shares in [0, 1]; lengths in tokens; seconds."""
    entry: dict[str, Any] = {
        "headline": scores.headline,
        "metrics": {name: scores.mean(name) for name in scores.values_p},
        "ci95": {
            name: None if interval is None else [interval.low, interval.high]
            for name, interval in scores.intervals.items()
        },
        "num_problems": scores.num_problems,
        "n": scores.num_samples,
        "counts": scores.counts,
        "protocol": dict(protocol),
    }
    if scores.groups:
        entry["groups"] = {
            name: {scores.headline: mean, "num_problems": count}
            for name, (mean, count) in scores.groups.items()
        }
    if timing is not None:
        entry["timing"] = {
            "wall_s": timing.wall_s,
            "generate_s": timing.generate_s,
            "grade_s": timing.grade_s,
            "new_samples": timing.num_new,
            "tokens": timing.num_tokens,
            "tokens_per_s": timing.tokens_per_s,
            "share_outside_generation": timing.share_outside,
            "engine_restarts": timing.restarts,
        }
    return entry


def lines(scores: Scores, protocol: Mapping[str, Any], timing: Timing | None) -> list[str]:
    """The lines that are printed of a benchmark.

    The headline with interval and n, further metrics, tiers, counts, protocol, speed."""
    others = [
        name
        for name in scores.values_p
        if name != scores.headline and name not in (*LENGTHS, "exact_match")
    ]
    widest = {name.split("@")[0]: name for name in others}  # of each family the largest k
    out = [
        f"{scores.benchmark}  {with_interval(scores, scores.headline)}  ({scores.num_problems}"
        f" problems × {scores.num_samples})"
    ]
    if widest:
        out.append("  " + "   ".join(with_interval(scores, name) for name in widest.values()))
    if scores.groups:
        out.append(
            "  "
            + "   ".join(
                f"{name} {100 * mean:.1f} ({count})"
                for name, (mean, count) in scores.groups.items()
            )
        )
    lengths = [
        f"mean {name.replace('_', ' ')} {scores.mean(name):,.0f}"
        for name in LENGTHS
        if name in scores.values_p
    ]
    bad = ", ".join(
        f"{scores.counts[name]} {name.replace('_', ' ')}"
        for name in scores.counts
        if name != "samples"
    )
    out.append(f"  of {scores.counts['samples']} samples: {bad}; {', '.join(lengths)} tokens")
    out.append(f"  protocol {protocol_line(protocol)}")
    if timing is not None and timing.num_new:
        out.append(
            f"  {timing.num_new} new samples, {timing.tokens_per_s or 0:,.0f} tokens/s,"
            f" {timing.wall_s:.1f} s, {timing.share_outside or 0:.1%} of it outside generation,"
            f" {timing.restarts} engine restarts"
        )
    return out


def with_interval(scores: Scores, metric: str) -> str:
    """`avg@16 = 41.3 % [34.4, 48.1]`: the mean and its 95 % interval over problems."""
    interval = scores.intervals[metric]
    scale, digits, unit = (1, 3, "") if metric in PLAIN_NUMBERS else (100, 1, " %")
    around = (
        "no interval: one problem"
        if interval is None
        else f"{scale * interval.low:.{digits}f}, {scale * interval.high:.{digits}f}"
    )
    return f"{metric} = {scale * scores.mean(metric):.{digits}f}{unit} [{around}]"


def protocol_line(protocol: Mapping[str, Any]) -> str:
    """The protocol on one line.

    Decoding, prompt, engine, data, and the fingerprint that stands for all of it."""
    decoding, engine = protocol["decoding"], protocol["engine"]
    drawn = (
        "T {temperature:g} top-p {top_p:g} top-k {top_k}".format(**decoding)
        if decoding["temperature"]
        else "greedy"
    )
    parts = [
        f"{drawn}, max {decoding['max_tokens']} tokens, seed {decoding['seed']}",
        f"{protocol['prompt']['style']} prompt",
        f"{engine['engine']} {engine['version']} {engine['dtype']}",
        f"data {protocol['data']['revision'][:19]}",
        f"grader {protocol['grader']}",
    ]
    if protocol.get("limit"):
        parts.append(f"first {protocol['limit']} problems only")
    if protocol.get("budget"):
        usual = BudgetSection().model_dump(mode="json")
        parts.append(
            "budget "
            + " ".join(
                f"{key}={value!r}"
                for key, value in protocol["budget"].items()
                if value != usual[key]
            )
        )
    return " · ".join([*parts, f"fingerprint {protocol['fingerprint']}"])
