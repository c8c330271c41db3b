"""A recipe file of `data select`.

`stages:` a stage a line, `params:` that stages may quote as `{name}`, `vary:` a grid of them.

    name: openr1_{category}_{size}
    params: {size: 1000}
    vary: {category: [algebra, geometry]}       # one output per combination
    stages:
      - keep: {where: {column: category, equals: "{category}"}}
      - sample: {n: "{size}"}

`{name}` alone becomes the parameter's value with its type; inside a longer text it is put in as
text. `published: N` beside a stage is the count of the published run, shown next to ours. Not here:
what the stages do (`STAGES`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidationError

from megaladder.config.base import StrictModel
from megaladder.config.strict_yaml import YamlFile, load_yaml
from megaladder.curate.select.plans import equal_budget
from megaladder.curate.select.pool import Context, Outcome, PoolRow
from megaladder.errors import ConfigError

# beside a stage's name: `skip_if: {category: [diverse]}` leaves it out for these parameter values
SKIP_KEY = "skip_if"


class Stage(StrictModel):
    """Base of all stages: parameters are fields.

    `apply` must not depend on the order of the rows it is given beyond their ids."""

    name: ClassVar[str]
    adds: ClassVar[tuple[str, ...]] = ()

    published: int | None = None
    """Rows after this stage in the published run."""

    def needs(self) -> tuple[str, ...]:
        """Columns that must be in the file or added by an earlier stage."""
        return ()

    def produces(self) -> tuple[str, ...]:
        """Columns it adds."""
        return self.adds

    def apply(self, rows: list[PoolRow], context: Context) -> Outcome:
        raise NotImplementedError


class BudgetPlan(StrictModel):
    """Plans that see the same number of samples.

    Unique rows = samples_seen / epochs, for each of `epochs`."""

    samples_seen: int = Field(ge=1)
    epochs: list[int] = Field(min_length=1)
    batch: int = Field(ge=1)

    def points(self) -> list[dict[str, Any]]:
        """The parameters of each plan."""
        plans = equal_budget(self.samples_seen, self.epochs, self.batch)
        return [
            {
                "label": p.label,
                "rows": p.rows,
                "epochs": p.epochs,
                "batch": p.batch,
                "steps": p.steps,
            }
            for p in plans
        ]


class RecipeFile(StrictModel):
    """The keys of a recipe file."""

    name: str
    about: str = ""
    seed: int = 42
    id_column: str | None = None
    params: dict[str, Any] = Field(default_factory=dict)
    vary: dict[str, list[Any]] = Field(default_factory=dict)
    only_if: dict[str, dict[str, Annotated[list[Any], Field(min_length=1)]]] = Field(
        default_factory=dict
    )
    """Thins a grid: `only_if: {seed: {category: [diverse]}}` varies `seed` for these categories
    only; others take its first value."""
    plan: BudgetPlan | None = None
    """Training plans of one budget as a grid: gives the parameters rows, epochs, batch, steps and
    label (25k2ep)."""
    stages: list[dict[str, Any]]


@dataclass(frozen=True)
class Recipe:
    """One selection: stages with all parameters put in.

    `values` are the parameters it stands for."""

    name: str
    seed: int
    id_column: str | None
    stages: tuple[Stage, ...]
    values: Mapping[str, Any]
    file: str

    def label(self, index: int) -> str:
        return f"stage {index + 1} ({self.stages[index].name}) of {self.file}"

    def needed_columns(self) -> list[tuple[str, int]]:
        """(column, index of the first stage that needs it) of what the file must have."""
        produced: set[str] = set()
        needed: dict[str, int] = {}
        for index, stage in enumerate(self.stages):
            for column in stage.needs():
                if column not in produced:
                    needed.setdefault(column, index)
            produced.update(stage.produces())
        return list(needed.items())


def load_recipes(
    path: str, overrides: Sequence[str], stages: Mapping[str, type[Stage]]
) -> list[Recipe]:
    """Every selection of a recipe file, one unless it has a grid.

    `overrides` are `name=value`: they set a parameter, or narrow a grid."""
    file = load_yaml(path)
    try:
        recipe = RecipeFile.model_validate(file.values)
    except ValidationError as error:
        raise ConfigError(_explain(path, "", error)) from None
    values = dict(recipe.params)
    vary = {name: list(options) for name, options in recipe.vary.items()}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or name not in {"seed", *values, *vary}:
            known = ", ".join(["seed", *values, *vary])
            raise ConfigError(
                f"--set {override}: expected NAME=VALUE with one of the recipe's parameters"
                f" ({known}); fix: one of them"
            )
        vary.pop(name, None)
        values[name] = _scalar(text)
    plans = recipe.plan.points() if recipe.plan else [{}]
    built = [
        _build(recipe, file, {**values, **plan, **point}, stages)
        for plan in plans
        for point in _grid(vary, recipe.only_if)
    ]
    names = [recipe.name for recipe in built]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ConfigError(
            f"{path}: the grid gives the name {doubled[0]!r} more than once; fix: name every varied"
            " parameter in `name:`"
        )
    return built


def _grid(
    vary: Mapping[str, list[Any]], only_if: Mapping[str, Mapping[str, list[Any]]]
) -> list[dict[str, Any]]:
    """All combinations, in the file's order, without those that `only_if` thins out."""
    points = []
    for combination in itertools.product(*vary.values()):
        point = dict(zip(vary, combination, strict=True))
        thinned = any(
            name in point
            and point[name] != vary[name][0]
            and any(point.get(other, allowed[0]) not in allowed for other, allowed in rule.items())
            for name, rule in only_if.items()
        )
        if not thinned:
            points.append(point)
    return points


def _build(
    recipe: RecipeFile, file: YamlFile, values: dict[str, Any], known: Mapping[str, type[Stage]]
) -> Recipe:
    stages = []
    for index, entry in enumerate(recipe.stages):
        where = file.where(("stages", str(index), next(iter(entry), "")))
        skip_if = entry.get(SKIP_KEY, {})
        named = {name: params for name, params in entry.items() if name != SKIP_KEY}
        if len(named) != 1 or not isinstance(skip_if, dict):
            raise ConfigError(
                f"{where}: stage {index + 1} has the keys {', '.join(entry)}; fix: one stage per `-"
                f" ` line, and `{SKIP_KEY}:`"
            )
        unknown = sorted(set(skip_if) - set(values))
        if unknown:
            raise ConfigError(
                f"{where}: {SKIP_KEY} names '{unknown[0]}', which is no parameter; fix: one of"
                f" {', '.join(values) or 'none'}"
            )
        wrong = [name for name, options in skip_if.items() if not isinstance(options, list)]
        if wrong:
            raise ConfigError(
                f"{where}: {SKIP_KEY} of '{wrong[0]}': expected a list of values, found"
                f" {skip_if[wrong[0]]!r}; fix: {SKIP_KEY}: {{{wrong[0]}: [{skip_if[wrong[0]]}]}}"
            )
        if all(values[name] in options for name, options in skip_if.items()) and skip_if:
            continue
        name, params = next(iter(named.items()))
        if name not in known:
            raise ConfigError(
                f"{where}: unknown stage '{name}'; fix: one of {', '.join(sorted(known))}"
            )
        try:
            stages.append(known[name].model_validate(_put_in(params or {}, values)))
        except ValidationError as error:
            raise ConfigError(_explain(where, f"stage {index + 1} ({name}), ", error)) from None
    seed = values.get("seed", recipe.seed)
    return Recipe(
        str(_put_in(recipe.name, values)), seed, recipe.id_column, tuple(stages), values, file.path
    )


def _put_in(value: Any, values: Mapping[str, Any]) -> Any:
    """`{name}` → the parameter, in every string of a nested value.

    Unknown names stay as they are (regular expressions have braces)."""
    if isinstance(value, dict):
        return {name: _put_in(item, values) for name, item in value.items()}
    if isinstance(value, list):
        return [_put_in(item, values) for item in value]
    if not isinstance(value, str):
        return value
    whole = re.fullmatch(r"\{([A-Za-z_]\w*)\}", value)
    if whole and whole[1] in values:
        return values[whole[1]]
    return re.sub(r"\{([A-Za-z_]\w*)\}", lambda match: str(values.get(match[1], match[0])), value)


def _scalar(text: str) -> Any:
    """A YAML scalar or list of the command line: `1000`, `0.5`, `algebra`, `[a, b]`."""
    from megaladder.config.strict_yaml import parse_yaml

    return parse_yaml(f"value: {text}", "--set").values["value"]


def _explain(where: str, prefix: str, error: ValidationError) -> str:
    lines = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"])
        lines.append(
            f"{where}: {prefix}{key}: {item['msg'].removeprefix('Value error, ')}; found"
            f" {item['input']!r}; fix: that key"
        )
    return "\n".join(lines)
