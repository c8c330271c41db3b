"""The model card: what the run folder recorded, and scores with their intervals.

Only facts that stand in files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from megaladder import __version__
from megaladder.analysis.runs.folder import read_config
from megaladder.errors import ConfigError
from megaladder.files.models import ModelFolder
from megaladder.files.shapes import expected
from megaladder.ledger.book import describe
from megaladder.ledger.folder import run_ledger
from megaladder.run_dir import read_jsonl, read_object

TOLD = (
    "data.path",
    "data.mixture",
    "data.seq_length",
    "train.loss",
    "train.epochs",
    "train.max_steps",
    "train.global_batch_size",
    "train.precision",
    "train.seed",
    "optim.lr",
    "optim.schedule",
    "grpo.preset",
    "grpo.prompts_per_step",
    "rollout.n",
    "rollout.max_tokens",
    "reward.terms",
)


def model_card(folder: ModelFolder, evals: Sequence[str], license_tag: str | None) -> str:
    """Markdown with YAML on top, as the hub reads it."""
    settings = _settings(folder.run)
    head = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["megaladder"],
    }
    if license_tag:
        head["license"] = license_tag
    base = settings.get("model.path")
    if isinstance(base, str) and base.count("/") == 1 and not Path(base).exists():
        head["base_model"] = base
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {folder.name}\n",
        _training(folder, settings),
        _made_of(folder.run),
        _work(folder.run),
        _scores(evals),
        _use(),
    ]
    return "\n".join(part for part in parts if part)


def _settings(run: Path | None) -> dict[str, Any]:
    """The run's configuration as dotted keys."""
    path = run / "config.yaml" if run else None
    if path is None or not path.is_file():
        return {}
    values = read_config(path.parent)
    sections = {name: part for name, part in values.items() if isinstance(part, dict)}
    return {
        f"{name}.{key}": value for name, part in sections.items() for key, value in part.items()
    }


def _training(folder: ModelFolder, settings: Mapping[str, Any]) -> str:
    if not settings:
        return ""
    verb = "GRPO" if "grpo.preset" in settings else "Supervised fine-tuning"
    start = settings.get("model.path")
    rows = [(key, settings[key]) for key in TOLD if settings.get(key) not in (None, [], {}, ())]
    return (
        f"## Training\n\n{verb} of `{start}`, {folder.hf.name}, with megaladder {__version__}.\n\n"
        + _table(("setting", "value"), [(f"`{key}`", f"`{value}`") for key, value in rows])
    )


def _made_of(run: Path | None) -> str:
    """The fingerprint's single values, those of sections with their name in front."""
    path = run / "fingerprint.json" if run else None
    if path is None or not path.is_file():
        return ""
    rows = list(_flat(_read_json(path)))
    return "## Fingerprint\n\n" + _table(
        ("what", "value"), [(key, f"`{value}`") for key, value in rows]
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, (str, int, float)) and key != "argv":
            yield f"{prefix}{key}", value


def _work(run: Path | None) -> str:
    """Tokens and FLOPs by phase, where the run kept a ledger."""
    metrics = run / "metrics.jsonl" if run else None
    if metrics is None or not metrics.is_file():
        return ""
    ledger = run_ledger(metrics.parent, read_jsonl(metrics))
    rows = [(phase.replace("_", " "), describe(work)) for phase, work in ledger.items()]
    return "## Work\n\n" + _table(("phase", "tokens and FLOPs"), rows) if rows else ""


def _scores(evals: Sequence[str]) -> str:
    rows = [row for folder in evals for row in _rows_of(Path(folder))]
    if not rows:
        return ""
    columns = (
        "benchmark",
        "score",
        "95 % interval over problems",
        "problems × samples",
        "decoding",
    )
    return "## Evaluation\n\n" + _table(columns, rows)


def _rows_of(folder: Path) -> Iterator[tuple[str, ...]]:
    path = folder / "summary.json"
    if not path.is_file():
        raise ConfigError(
            f"evals {folder}: no summary.json; fix: the folder of one model that eval wrote, e.g."
            " runs/eval/step_640"
        )
    entries = _read_json(path).get("benchmarks", {})
    with expected(path, "a summary of `eval`", "evaluate again, or leave --evals out"):
        rows = [_row_of(name, entry) for name, entry in sorted(entries.items())]
    yield from rows


def _row_of(name: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    """The cells of a benchmark."""
    headline = entry["headline"]
    interval = entry.get("ci95", {}).get(headline)
    score = entry["metrics"].get(headline)
    decoding = entry.get("protocol", {}).get("decoding", {})
    drawn = f"T {decoding.get('temperature')}, top-p {decoding.get('top_p')}, {decoding.get('max_tokens')} tokens"
    return (
        name,
        "–" if score is None else f"{headline} {100 * score:.1f} %",
        f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %" if interval else "–",
        f"{entry.get('num_problems')} × {entry.get('n')}",
        drawn,
    )


def _use() -> str:
    return (
        "## Use\n\nThe chat template and the ends of answers are those of the training; they stand in"
        " this folder.\n\n```bash\nmegaladder chat THIS_FOLDER\nmegaladder serve THIS_FOLDER\n```\n"
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _read_json(path: Path) -> dict[str, Any]:
    return read_object(path, "copy the file again")
