"""The verb `check` of a data recipe.

What it would do and which columns it needs, without its data."""

from __future__ import annotations

from typing import ClassVar

from megaladder.config.base import Positional, StrictModel
from megaladder.config.strict_yaml import load_yaml

MAX_SHOWN = 6  # selections of a grid


class CheckRecipe(StrictModel):
    """Resolve a data recipe (or a file of scoring rules) and say what it needs; reads no data."""

    file_is_argument: ClassVar[bool] = True  # the file is no configuration of this verb

    recipe: Positional[str]
    """Recipe file (examples/recipes/**.yaml)."""


def is_recipe(path: str) -> bool:
    """Whether the file is for `data select` or `data score`, not for a training run."""
    values = load_yaml(path).values
    return "stages" in values or "weights" in values


def run_check_recipe(config: CheckRecipe) -> list[tuple[str, str]]:
    """(heading, text) of every line to print.

    Raises:
        ConfigError: an unknown key, stage or parameter; file and line.
    """
    from megaladder.curate.score import load_rule
    from megaladder.curate.select.recipe import load_recipes
    from megaladder.curate.select.run import STAGES

    if "stages" not in load_yaml(config.recipe).values:
        rule = load_rule(config.recipe)
        return [
            ("rule", ", ".join(f"{name} {weight:g}" for name, weight in rule.weights.items())),
            ("next", f"megaladder data score FILE --rule-file {config.recipe} --out F"),
        ]
    recipes = load_recipes(config.recipe, (), STAGES)
    names = ", ".join(one.name for one in recipes[:MAX_SHOWN])
    lines = [("selections", f"{len(recipes):,}: {names}{' …' if recipes[MAX_SHOWN:] else ''}")]
    for number, stage in enumerate(recipes[0].stages, start=1):
        settings = ", ".join(
            f"{name} {value}"
            for name, value in stage.model_dump(
                exclude_defaults=True, exclude={"published"}
            ).items()
        )
        published = f" (published: {stage.published:,} rows)" if stage.published is not None else ""
        lines.append((f"stage {number}", f"{stage.name}: {settings}{published}"))
    needed = dict.fromkeys(column for one in recipes for column, _ in one.needed_columns())
    lines.append(
        ("needs", f"a file with the columns {', '.join(needed) or 'of a training schema'}")
    )
    return [*lines, ("next", f"megaladder data select FILE --recipe {config.recipe} --out F")]
