"""Is this difference real?.

Two runs on the same problems: paired bootstrap, paired permutation test, Holm over all comparisons;
and the same question at equal compute, from training run folders.

Unit: points (percent). A difference is called real when its Holm-adjusted p-value is below the
level. Pairing is by problem id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megaladder.analysis.runs.read import read_runs
from megaladder.analysis.runs.record import RunRecord, Runs
from megaladder.analysis.samples.rows import NoVerdictError
from megaladder.analysis.samples.sets import SampleSet
from megaladder.analysis.stats import holm, mean_intervals, sign_flip_p_values
from megaladder.analysis.studies.compute import Compute, matched_scores, read_compute
from megaladder.analysis.studies.trajectory import curves_by_run, read_curves
from megaladder.analysis.tables import Warnings, format_columns, printable, write_result
from megaladder.config.verbs.analysis import CompareConfig
from megaladder.errors import DataError


@dataclass(frozen=True, slots=True)
class Comparison:
    """B − A on one benchmark, in points; `p_holm` is adjusted over all comparisons of the call."""

    a: str
    b: str
    benchmark: str
    score_a: float
    score_b: float
    difference: float
    ci95: list[float] | None
    p: float
    p_holm: float
    num_problems: int
    real: bool
    grader_a: str
    grader_b: str
    undecided_a: int  # samples without a verdict, in none of the numbers
    undecided_b: int

    def graded_by(self) -> str:
        """Who graded the two, and what that left undecided."""
        a, b = (
            f"{grader}, {undecided:,} undecided"
            for grader, undecided in (
                (self.grader_a, self.undecided_a),
                (self.grader_b, self.undecided_b),
            )
        )
        return f"{a} each" if a == b else f"{self.a}: {a}; {self.b}: {b}"

    def sentence(self) -> str:
        """The verdict in one sentence."""
        place = f" on {self.benchmark}" if self.benchmark else ""
        size = f"{abs(self.difference):.1f} points{_bounds(self.ci95)}"
        if self.difference == 0 and self.p == 1.0:
            return (
                f"{self.b} and {self.a} score the same{place} ({self.score_b:.1f} %,"
                f" {self.num_problems} problems)."
            )
        word = "above" if self.difference > 0 else "below"
        evidence = f"p = {self.p_holm:.2g}, {self.num_problems} problems"
        if self.real:
            return f"Real: {self.b} is {size} {word} {self.a}{place} ({evidence})."
        return (
            f"Not shown: {self.b} is {size} {word} {self.a}{place}, but chance alone could do that"
            f" ({evidence})."
        )


def _bounds(ci95: list[float] | None) -> str:
    return f" [{ci95[0]:+.1f}, {ci95[1]:+.1f}]" if ci95 else ""


def paired_differences(
    a: SampleSet, b: SampleSet, warnings: Warnings
) -> tuple[np.ndarray, np.ndarray]:
    """Per-problem accuracies in % of the problems that both have, float64 [P] each.

    Warns of the others."""
    index = b.by_id()
    pairs = [(i, index[problem.id]) for i, problem in enumerate(a.problems) if problem.id in index]
    if not pairs:
        raise DataError(
            f"{a.path} and {b.path} share no problem id; fix: compare runs on the same benchmark"
        )
    lost = len(a.problems) + len(b.problems) - 2 * len(pairs)
    if lost:
        warnings.add(
            f"{a.model} and {b.model}{' on ' + a.benchmark if a.benchmark else ''}: {lost} problems"
            " are in one of them only, left out"
        )
    gold = next(
        (a.problems[i].id for i, j in pairs if _differ(a.problems[i].gold, b.problems[j].gold)),
        None,
    )
    if gold is not None:
        warnings.add(
            f"{a.path} and {b.path}: problem {gold!r} has another gold answer: not the same"
            " benchmark?"
        )
    different = [
        key
        for key in sorted(a.protocol.keys() & b.protocol.keys())
        if a.protocol[key] != b.protocol[key] and _decides(key)
    ]
    if different:
        changes = ", ".join(
            f"{key} {a.protocol[key]} and {b.protocol[key]}" for key in different[:5]
        )
        warnings.add(
            f"{a.model} and {b.model}{' on ' + a.benchmark if a.benchmark else ''} were not made"
            f" alike: {changes}"
        )
    at_a, at_b = np.array(pairs).T
    return 100 * a.accuracy_p[at_a], 100 * b.accuracy_p[at_b]


def _decides(key: str) -> bool:
    """Whether a protocol key should be the same for two models.

    Not what names the model, or what follows from it or from time."""
    first, last = key.split(".")[0], key.split(".")[-1]
    return (
        first not in ("model", "fingerprint", "megaladder", "n")
        and "sha256" not in last
        and last not in ("model_args", "device", "version")
    )


def _differ(first: str | None, second: str | None) -> bool:
    return first is not None and second is not None and first != second


def compare(
    pairs: Sequence[tuple[SampleSet, SampleSet]], config: CompareConfig, warnings: Warnings
) -> list[Comparison]:
    """All comparisons, Holm-adjusted together."""
    scores = [paired_differences(a, b, warnings) for a, b in pairs]
    differences = [score_b - score_a for score_a, score_b in scores]
    named = {str(i): values for i, values in enumerate(differences)}
    bounds = mean_intervals(named, config.draws, config.seed, (-100.0, 100.0))
    p_values = list(sign_flip_p_values(named, config.draws, config.seed).values())
    adjusted = holm(p_values)
    return [
        Comparison(
            a=a.model,
            b=b.model,
            benchmark=a.benchmark,
            score_a=float(scores[i][0].mean()),
            score_b=float(scores[i][1].mean()),
            difference=float(differences[i].mean()),
            ci95=bounds[str(i)],
            p=p_values[i],
            p_holm=adjusted[i],
            num_problems=len(differences[i]),
            real=adjusted[i] < config.level,
            grader_a=a.grader,
            grader_b=b.grader,
            undecided_a=a.num_undecided,
            undecided_b=b.num_undecided,
        )
        for i, (a, b) in enumerate(pairs)
    ]


Sets = dict[str, SampleSet]  # benchmark → samples


def sets_of(runs: Runs, record: RunRecord) -> Sets:
    """The samples of a record's last step on each benchmark.

    {} without any that have right-or-wrong verdicts."""
    found: Sets = {}
    for name in record.benchmarks:
        score = runs.last(record, name)
        try:
            if score is not None:
                found[name] = runs.samples(record, score)
        except DataError as error:
            if not isinstance(error, NoVerdictError) and score is not None and score.samples:
                raise
            runs.warnings.add(f"left out: {error}")
    return found


def pairs_of(
    config: CompareConfig, warnings: Warnings
) -> tuple[list[tuple[SampleSet, SampleSet]], Runs]:
    """(A, B) by benchmark of everything that is to be compared, and all records.

    `base` is the name of a record, or a path. Without it each run stands against what it began
    with, GRPO runs first, and against SFT from the same model.
    """
    runs = read_runs(config.runs, warnings)
    pairs: list[tuple[SampleSet, SampleSet]] = []
    if config.base is None:
        for a, b in ladder_pairs(runs):
            pairs += pair_up(sets_of(runs, a), sets_of(runs, b), warnings)
        if not pairs:
            raise DataError(
                "expected a run and the model that it started from, both evaluated, found"
                f" {', '.join(runs.names)[:300]}; fix: megaladder eval of both into one folder, and"
                " give that, or --base with the path or name of what to compare with"
            )
        return pairs, runs
    base = _base_sets(config, runs, warnings)
    known = {samples.path for samples in base.values()}
    for record in runs.evaluated:
        sets = sets_of(runs, record)
        same = config.base in runs.names and {s.path for s in sets.values()} == known
        if sets and not same:
            pairs += pair_up(base, sets, warnings)
    if not pairs:
        raise DataError(
            f"{', '.join(config.runs)}: nothing to compare with {config.base} has right-or-wrong"
            " verdicts; fix: evaluate a graded benchmark"
        )
    return pairs, runs


def ladder_pairs(runs: Runs) -> list[tuple[RunRecord, RunRecord]]:
    """Each evaluated run after what it began with.

    GRPO against SFT first, whether it began with that SFT or both with one model."""
    pairs = []
    for record in runs.evaluated:
        before = runs.parent(record)
        if before is None:
            continue
        siblings = [r for r in runs.evaluated if r.parent == record.parent and r.stage == "sft"]
        others = siblings if record.stage == "grpo" and before.stage != "sft" else []
        pairs += [(other, record) for other in (*others, before) if other.scores]
    return sorted(pairs, key=lambda pair: (pair[1].stage != "grpo", pair[0].stage != "sft"))


def _base_sets(config: CompareConfig, runs: Runs, warnings: Warnings) -> Sets:
    """The samples of `base`. Raises DataError where it is several models, or nothing."""
    if config.base in runs.names:
        return sets_of(runs, runs.named(str(config.base)))
    found = read_runs((str(config.base),), warnings)
    named = {record.name: sets for record in found if (sets := sets_of(found, record))}
    if len(named) != 1:
        held = f"holds several models ({', '.join(list(named)[:6])})" if named else "holds none"
        raise DataError(
            f"{config.base}: {held} with right-or-wrong verdicts; fix: give the folder of one"
        )
    return next(iter(named.values()))


def pair_up(
    base: Mapping[str, SampleSet], run: Mapping[str, SampleSet], warnings: Warnings
) -> list[tuple[SampleSet, SampleSet]]:
    """Pairs by benchmark; benchmarks that one side lacks are named in a warning."""
    if not base or not run:
        return []
    a, b = next(iter(base.values())), next(iter(run.values()))
    if len(base) == len(run) == 1:
        return [(a, b)]
    common = [name for name in base if name in run]
    if not common:
        raise DataError(
            f"{a.model} has {', '.join(base)}; {b.model} has {', '.join(run)}: no benchmark in"
            " common; fix: evaluate both on one"
        )
    for name in sorted(base.keys() ^ run.keys()):
        warnings.add(f"{name}: only one of {a.model} and {b.model} has it, left out")
    return [(base[name], run[name]) for name in common]


def compute_section(config: CompareConfig, runs: Runs, warnings: Warnings) -> dict[str, Any]:
    """What each training run cost, and scores at equal cost.

    Of the folders given by hand, else of all run folders that were found; curves by hand, else of
    their evaluations."""
    folders = dict(_named_folders(config))
    if not folders:
        folders = {
            record.name: record.path
            for record in runs
            if record.is_run and (Path(record.path) / "metrics.jsonl").is_file()
        }
    costs = {name: read_compute(folder, warnings) for name, folder in folders.items()}
    out: dict[str, Any] = {
        "totals": {name: cost.totals() for name, cost in costs.items()},
        "ledger": {
            name: {phase: asdict(work) for phase, work in cost.ledger.items()}
            for name, cost in costs.items()
        },
    }
    if config.table:
        out["matched"] = matched_scores(read_curves(config.table), costs, warnings)
    elif not config.compute:
        out["matched"] = _matched_siblings(runs, costs, warnings)
    return out if costs else {}


def _matched_siblings(
    runs: Runs, costs: Mapping[str, Compute], warnings: Warnings
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Scores at equal cost of the runs that began with the same model."""
    starts: dict[Any, list[RunRecord]] = {}
    for record in runs.evaluated:
        if record.parent is not None and record.name in costs:
            starts.setdefault(record.parent, []).append(record)
    out: dict[str, dict[str, dict[str, float | None]]] = {}
    for siblings in (found for found in starts.values() if len(found) > 1):
        curves = curves_by_run(runs, siblings)
        shared = [name for name in curves if sum(other[1] == name[1] for other in curves) > 1]
        chosen = {name: curves[name] for name in shared}
        out |= matched_scores(chosen, {r.name: costs[r.name] for r in siblings}, warnings)
    return out


def _named_folders(config: CompareConfig) -> list[tuple[str, str]]:
    """(name, folder) of --compute."""
    found: list[tuple[str, str]] = []
    for item in config.compute:
        name, equals, folder = item.partition("=")
        name, folder = (name, folder) if equals else (Path(item).resolve().name, item)
        if name in dict(found):
            raise DataError(
                f"--compute names {name!r} twice; fix: name=folder with different names"
            )
        found.append((name, folder))
    return found


def run_compare(config: CompareConfig) -> None:
    """The verb `analyze compare`."""
    warnings = Warnings()
    pairs, runs = pairs_of(config, warnings)
    comparisons = compare(pairs, config, warnings)
    keys = comparison_keys(comparisons)
    out: dict[str, Any] = {
        "comparisons": {key: _as_json(c) for key, c in zip(keys, comparisons, strict=True)},
        "sentences": [c.sentence() for c in comparisons],
        "level": config.level,
    }
    for key, c in zip(keys, comparisons, strict=True):
        if c.ci95 is None:
            warnings.add(f"{key}: one problem has no interval")
    compute = compute_section(config, runs, warnings)
    if compute:
        out["compute"] = compute
    out["warnings"] = warnings.list()
    write_result(config.json_path, out)
    _print(keys, comparisons, compute)


def _as_json(c: Comparison) -> dict[str, Any]:
    return {
        "a": c.score_a,
        "b": c.score_b,
        "a_name": c.a,
        "b_name": c.b,
        "difference": c.difference,
        "ci95": c.ci95,
        "p": c.p,
        "p_holm": c.p_holm,
        "num_problems": c.num_problems,
        "real": c.real,
        "grader_a": c.grader_a,
        "grader_b": c.grader_b,
        "undecided_a": c.undecided_a,
        "undecided_b": c.undecided_b,
    }


def _print(
    keys: Sequence[str], comparisons: Sequence[Comparison], compute: Mapping[str, Any]
) -> None:
    rows = [
        [key, c.score_a, c.score_b, c.difference, _bounds(c.ci95), c.p, c.p_holm]
        for key, c in zip(keys, comparisons, strict=True)
    ]
    print(format_columns(("run", "A %", "B %", "B − A", "95 %", "p", "p (Holm)"), rows))
    print("\n".join(printable(c.sentence(), 300) for c in comparisons))
    for key, c in zip(keys, comparisons, strict=True):
        print(printable(f"graded {key}: {c.graded_by()}", 300))
    for name, total in compute.get("totals", {}).items():
        amounts = (
            f"{key} {'–' if value is None else format(value, '.4g')}"
            for key, value in total.items()
        )
        print(f"{name}: {', '.join(amounts)}")


def comparison_keys(comparisons: Sequence[Comparison]) -> list[str]:
    """`model/benchmark`, or `model` for plain files.

    With "minus A" behind where B stands against several."""
    plain = [f"{c.b}/{c.benchmark}" if c.benchmark else c.b for c in comparisons]
    keys = [
        f"{key} minus {c.a}" if plain.count(key) > 1 else key
        for key, c in zip(plain, comparisons, strict=True)
    ]
    if len(set(keys)) < len(keys):
        raise DataError(
            "two runs have the same name"
            f" ({', '.join(sorted({k for k in keys if keys.count(k) > 1}))}); fix: rename a folder"
        )
    return keys
