"""Is this difference real? Two runs on the same problems: paired bootstrap, paired permutation
test, Holm over all comparisons; and the same question at equal compute, from training run folders.

Unit: points (percent). A difference is called real when its Holm-adjusted p-value is below the
level. Pairing is by problem id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megaladder.analysis.samples.files import find_sample_files
from megaladder.analysis.samples.rows import NoVerdictError
from megaladder.analysis.samples.sets import SampleSet, read_samples
from megaladder.analysis.stats import holm, mean_intervals, sign_flip_p_values
from megaladder.analysis.studies.compute import Compute, matched_scores, read_compute
from megaladder.analysis.studies.trajectory import read_curves
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
    """Per-problem accuracies in % of the problems that both have, float64 [P] each; warns of the
    others."""
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
    """Whether a protocol key should be the same for two models: not what names the model, or what
    follows from it or from time."""
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
    bounds = mean_intervals(named, config.draws, config.seed)
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


def load_run(path: str, warnings: Warnings) -> dict[str, SampleSet]:
    """Benchmark → samples. A JSONL file is one nameless benchmark; a folder must belong to one
    model."""
    name = Path(path).resolve().stem if Path(path).is_file() else Path(path).resolve().name
    if not Path(path).is_dir():
        return {"": read_samples(path, name, "", warnings)}
    files = find_sample_files(path, warnings)
    models = list(
        dict.fromkeys(
            f"{file.model}/{file.checkpoint}" if file.checkpoint else file.model for file in files
        )
    )
    if not files:
        raise DataError(
            f"{path}: no samples_*.jsonl in it; fix: a graded file, or a model's eval folder"
        )
    if len(models) > 1:
        raise DataError(
            f"{path}: holds several models ({', '.join(models[:6])}); fix: give the folder of one"
            " of them"
        )
    found = {}
    for file in files:
        try:
            found[file.task] = read_samples(file.path, name, file.task, warnings)
        except NoVerdictError as error:
            warnings.add(f"left out: {error}")
    if not found:
        raise DataError(
            f"{path}: none of its benchmarks has right-or-wrong verdicts; fix: evaluate a graded"
            " benchmark"
        )
    return found


def pair_up(
    base: Mapping[str, SampleSet], run: Mapping[str, SampleSet], warnings: Warnings
) -> list[tuple[SampleSet, SampleSet]]:
    """Pairs by benchmark; benchmarks that one side lacks are named in a warning."""
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


def compute_section(config: CompareConfig, warnings: Warnings) -> dict[str, Any]:
    """What each run cost, and the scores of their checkpoints at equal cost."""
    runs: dict[str, Compute] = {}
    for item in config.compute:
        name, equals, folder = item.partition("=")
        name = name if equals else Path(item).resolve().name
        if name in runs:
            raise DataError(
                f"--compute names {name!r} twice; fix: name=folder with different names"
            )
        runs[name] = read_compute(folder if equals else item, warnings)
    out: dict[str, Any] = {"totals": {name: run.totals() for name, run in runs.items()}}
    if config.curve:
        out["matched"] = matched_scores(read_curves(config.curve), runs, warnings)
    return out


def run_compare(config: CompareConfig) -> None:
    """The verb `analyze compare`."""
    warnings = Warnings()
    base = load_run(config.base, warnings)
    pairs: list[tuple[SampleSet, SampleSet]] = []
    for path in config.runs:
        pairs += pair_up(base, load_run(path, warnings), warnings)
    comparisons = compare(pairs, config, warnings)
    keys = comparison_keys(comparisons, config.runs)
    out: dict[str, Any] = {
        "comparisons": {},
        "sentences": [c.sentence() for c in comparisons],
        "level": config.level,
    }
    for key, c in zip(keys, comparisons, strict=True):
        out["comparisons"][key] = {
            "a": c.score_a,
            "b": c.score_b,
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
        if c.ci95 is None:
            warnings.add(f"{key}: one problem has no interval")
    if config.compute:
        out["compute"] = compute_section(config, warnings)
    out["warnings"] = warnings.list()
    write_result(config.json_path, out)
    rows = [
        [key, c.score_a, c.score_b, c.difference, _bounds(c.ci95), c.p, c.p_holm]
        for key, c in zip(keys, comparisons, strict=True)
    ]
    print(format_columns(("run", "A %", "B %", "B − A", "95 %", "p", "p (Holm)"), rows))
    print("\n".join(printable(text, 300) for text in out["sentences"]))
    for key, c in zip(keys, comparisons, strict=True):
        print(printable(f"graded {key}: {c.graded_by()}", 300))
    for name, total in out.get("compute", {}).get("totals", {}).items():
        print(
            f"{name}: "
            + ", ".join(
                f"{key} {'–' if value is None else format(value, '.4g')}"
                for key, value in total.items()
            )
        )


def comparison_keys(comparisons: Sequence[Comparison], paths: Sequence[str]) -> list[str]:
    """`model/benchmark`, or `model` for plain files; the path where two runs have the same name."""
    names = [c.b for c in comparisons]
    if len({Path(path).resolve().stem for path in paths}) < len(paths) and len(names) == len(paths):
        names = [str(path) for path in paths]
    keys = [
        f"{name}/{c.benchmark}" if c.benchmark else name
        for name, c in zip(names, comparisons, strict=True)
    ]
    if len(set(keys)) < len(keys):
        raise DataError(
            "two runs have the same name"
            f" ({', '.join(sorted({k for k in keys if keys.count(k) > 1}))}); fix: rename a folder"
        )
    return keys
