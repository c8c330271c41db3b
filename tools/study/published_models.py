"""Which shipped recipes open their published model: what `check` says of each, as a table.

    python tools/study/published_models.py

Every run under examples/recipes/ is resolved as a start would resolve it, and its model is the
published config.json (tests/model/published_configs.yaml, where the source of each is named): the
family, its layout and its length are then those of the real model. Weights are not needed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaladder.config.grpo import GrpoConfig
from megaladder.config.resolve import checked_values, validate
from megaladder.config.resolve.overlay import load_layered
from megaladder.config.sft import SftConfig
from megaladder.config.strict_yaml import load_yaml
from megaladder.errors import MegaladderError
from megaladder.model.hf_config import model_shape
from megaladder.preflight.fit import check_model

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "examples" / "recipes"
CONFIGS = ROOT / "tests" / "model" / "published_configs.yaml"
# runs that start from another run's export
AFTER_TRAINING = {"runs/quagmires/25k2ep/hf/step_400": "Qwen3-4B-Base"}
STUDIES = {
    "rethinking/runs": "Rethinking SFT",
    "rethinking": "Rethinking SFT, bases of its runs",
    "quagmires": "Quagmires",
    "s1": "s1",
    "limo": "LIMO",
    "ladder": "reasoning_ladder",
    "transferability": "Transferability",
}


@dataclass(frozen=True)
class Checked:
    """One recipe: where it lies, its published model, and why it does not pass (None: it does)."""

    study: str
    file: str
    model: str
    problem: str | None


def run_files() -> list[Path]:
    """The recipes that train; the others select or score."""
    return [
        file for file in sorted(RECIPES.rglob("*.yaml")) if "model" in load_layered(file).values
    ]


def published_configs() -> dict[str, dict[str, Any]]:
    """Model → its published config.json."""
    configs: dict[str, dict[str, Any]] = load_yaml(CONFIGS).values
    return configs


def config_of(file: Path) -> SftConfig | GrpoConfig:
    """A recipe as a start resolves it."""
    layered = load_layered(file)
    if "grpo" in layered.values:
        return validate(GrpoConfig, checked_values(GrpoConfig, layered), layered)
    return validate(SftConfig, checked_values(SftConfig, layered), layered)


def model_of(config: SftConfig | GrpoConfig) -> str:
    """The published model that a recipe starts from."""
    return AFTER_TRAINING.get(config.model.path, Path(config.model.path).name)


def check_recipe(file: Path, configs: dict[str, dict[str, Any]], folder: Path) -> Checked:
    """Resolves `file` and checks it with its model's published configuration, put into `folder`."""
    study = STUDIES[str(file.parent.relative_to(RECIPES))]
    name, problem = "", None
    try:
        config = config_of(file)
        name = model_of(config)
        (folder / "config.json").write_text(json.dumps(configs[name]))
        (folder / "tokenizer.json").touch()  # there must be one; nothing reads it here
        here = config.model.model_copy(update={"path": str(folder)})
        check_model(config.model_copy(update={"model": here}))
    except MegaladderError as error:
        problem = str(error)
    return Checked(study, str(file.relative_to(RECIPES)), name, problem)


def check_all() -> list[Checked]:
    """Every recipe that trains."""
    configs = published_configs()
    with tempfile.TemporaryDirectory() as folder:
        return [check_recipe(file, configs, Path(folder)) for file in run_files()]


def table(found: list[Checked]) -> str:
    """A line a study, then a line a published configuration (Markdown)."""
    by_study: dict[str, list[Checked]] = defaultdict(list)
    for one in found:
        by_study[one.study].append(one)
    lines = ["| study | recipes that pass | models (recipes) |", "|---|---|---|"]
    for study, ones in by_study.items():
        models = Counter(one.model for one in ones)
        named = ", ".join(f"{model} ({count})" for model, count in sorted(models.items()))
        passed = sum(one.problem is None for one in ones)
        lines.append(f"| {study} | {passed} of {len(ones)} | {named} |")
    recipes = Counter(one.model for one in found)
    lines += ["", "| model | `model_type` | recipes | parameters |", "|---|---|---|---|"]
    for model, config in published_configs().items():
        row = f"| {model} | `{config['model_type']}` | {recipes[model] or ''} | {_opened(config)} |"
        lines.append(row)
    return "\n".join(lines)


def _opened(config: dict[str, Any]) -> str:
    try:
        return f"{model_shape(config).num_parameters / 1e9:.2f} billion"
    except MegaladderError as error:
        return f"refused: {str(error).partition(';')[0]}"


def main() -> int:
    """Prints the table; the status says whether all pass."""
    found = check_all()
    print(table(found))
    failed = [one for one in found if one.problem is not None]
    for one in failed:
        print(f"{one.file} with {one.model}: {one.problem}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
