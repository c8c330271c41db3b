"""Which configuration keys the program reads, from its syntax trees.

A key is read where an attribute of a value whose type is a configuration or a section is taken. The
types come from annotations of parameters and fields, and follow assignments: `config: SftConfig`,
`section = config.train`, `self._config = config`. A name handed to `getattr`, `section_values` or
`model_dump(include=…)` as a literal counts as a read of that name.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from megaladder.cli import VERBS
from megaladder.config.base import StrictModel, section_of

ROOT = Path(__file__).resolve().parent.parent
Type = type[StrictModel]


@dataclass(frozen=True)
class Read:
    """`owner.key` is read in `file`. owner: the class of the expression's root."""

    owner: Type
    key: str
    file: Path


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def model_classes() -> dict[str, Type]:
    """Name → class of every configuration and section."""
    import megaladder.config

    found: dict[str, Type] = {}
    packaged = pkgutil.walk_packages(megaladder.config.__path__, "megaladder.config.")
    # a verb's settings may also lie with the verb
    modules = {*(module.name for module in packaged), *(v.config.partition(":")[0] for v in VERBS)}
    for module in sorted(modules):
        for name, value in vars(importlib.import_module(module)).items():
            if isinstance(value, type) and issubclass(value, StrictModel):
                found[name] = value
    return found


@cache
def source_files() -> tuple[Path, ...]:
    """The program's files but the configuration itself; a verb that lives there reads its own."""
    tops = ("megaladder", "kernels", "checkpoints_conv", "tools")
    config = ROOT / "megaladder" / "config"
    runs = {ROOT / (verb.run.partition(":")[0].replace(".", "/") + ".py") for verb in VERBS}
    return tuple(
        path
        for top in tops
        for path in sorted((ROOT / top).rglob("*.py"))
        if config not in path.parents or path in runs
    )


@cache
def holders() -> dict[str, dict[str, str]]:
    """Classes with a section among their fields: name → field → the section's class."""
    found: dict[str, dict[str, str]] = {}
    for path in source_files():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                fields = {
                    ast.unparse(item.target): ast.unparse(item.annotation)
                    for item in node.body
                    if isinstance(item, ast.AnnAssign)
                }
                held = {name: kind for name, kind in fields.items() if kind in model_classes()}
                if held:
                    found[node.name] = held
    return found


@dataclass
class _Reader(ast.NodeVisitor):
    """Collects reads of one file."""

    file: Path
    reads: set[Read] = field(default_factory=set)
    scopes: list[dict[str, tuple[Type, str]]] = field(default_factory=lambda: [{}])
    own: dict[str, Type] = field(default_factory=dict)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        known = {**model_classes(), **self.own}
        bases = [known[b.id] for b in node.bases if isinstance(b, ast.Name) and b.id in known]
        if bases:
            module = ".".join(self.file.relative_to(ROOT).with_suffix("").parts)
            module = module if module.startswith("megaladder") else f"megaladder.{module}"
            self.own[node.name] = getattr(importlib.import_module(module), node.name)
        fields = {
            f"self.{item.target.id}": found
            for item in node.body
            if isinstance(item, ast.AnnAssign)
            and isinstance(item.target, ast.Name)
            and (found := self._annotated(item.annotation))
        }
        self.scopes.append(fields)
        # the constructor first: it says what `self.…` holds
        methods = sorted(node.body, key=lambda item: getattr(item, "name", "") != "__init__")
        for item in methods:
            self.visit(item)
        self.scopes.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        scope: dict[str, tuple[Type, str]] = {}
        for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            if arg.annotation is None:
                continue
            if found := self._annotated(arg.annotation):
                scope[arg.arg] = found
            for name, held in holders().get(ast.unparse(arg.annotation), {}).items():
                scope[f"{arg.arg}.{name}"] = (model_classes()[held], "")
        self.scopes.append(scope)
        # twice: a closure may stand above the assignment that it uses
        for _ in range(2):
            for item in node.body:
                self.visit(item)
        self.scopes.pop()

    visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self._bind(target, node.value)

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, part in zip(target.elts, value.elts, strict=False):
                self._bind(one, part)
            return
        name, found = ast.unparse(target), self._typed(value)
        if found is not None and isinstance(target, (ast.Name, ast.Attribute)):
            place = self.scopes[-2] if name.startswith("self.") else self.scopes[-1]
            place[name] = found

    def visit_Attribute(self, node: ast.Attribute) -> None:
        found = self._typed(node.value)
        if found is not None:
            owner, prefix = found
            key = f"{prefix}.{node.attr}" if prefix else node.attr
            self._note(owner, key)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Literal names in a call that also takes, or is a method of, a section."""
        name = ast.unparse(node.func)
        if name in ("getattr", "section_values") or name.endswith((".model_dump", "model_fields")):
            roots = [
                *node.args[:1],
                *([node.func.value] if isinstance(node.func, ast.Attribute) else []),
            ]
            for found in filter(None, map(self._typed, roots)):
                for text in self._names_near(node):
                    self._note(found[0], f"{found[1]}.{text}" if found[1] else text)
        self.generic_visit(node)

    def _names_near(self, node: ast.AST) -> Iterator[str]:
        """String literals of the call, and of the loop that feeds it."""
        for near in (node, *self.loops):
            for inner in ast.walk(near):
                if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                    yield inner.value

    loops: list[ast.AST] = field(default_factory=list)

    def _loop(self, node: ast.AST) -> None:
        self.loops.append(node)
        self.generic_visit(node)
        self.loops.pop()

    visit_DictComp = visit_GeneratorExp = visit_ListComp = visit_For = _loop

    def _note(self, owner: Type, key: str) -> None:
        *sections, leaf = key.split(".")
        at: Type | None = owner
        for section in sections:
            info = at.model_fields.get(section)
            at = section_of(info.annotation) if info else None
            if at is None:
                return
        if leaf in at.model_fields:
            self.reads.add(Read(owner, key, self.file))
            return
        source = inspect.getattr_static(at, leaf, None)
        for name in _reads_of_property(source):
            self._note(owner, ".".join((*sections, name)))

    def _typed(self, node: ast.expr) -> tuple[Type, str] | None:
        """(root class, dotted key of the section below it) where the expression is one."""
        text = ast.unparse(node) if isinstance(node, (ast.Name, ast.Attribute)) else ""
        for scope in reversed(self.scopes):
            if text in scope:
                return scope[text]
        if not isinstance(node, ast.Attribute):
            return None
        found = self._typed(node.value)
        if found is None:
            return None
        owner, prefix = found
        at = owner
        for section in filter(None, prefix.split(".")):
            at = section_of(at.model_fields[section].annotation)
        info = at.model_fields.get(node.attr)
        if info is None or section_of(info.annotation) is None:
            return None
        return owner, f"{prefix}.{node.attr}" if prefix else node.attr

    def _annotated(self, annotation: ast.expr) -> tuple[Type, str] | None:
        names = {inner.id for inner in ast.walk(annotation) if isinstance(inner, ast.Name)}
        known = {**model_classes(), **self.own}
        found = [known[name] for name in sorted(names) if name in known]
        return (_common(found), "") if found else None


def _common(classes: list[Type]) -> Type:
    """Of a union: the nearest class that all of them are."""
    return next(
        base for base in classes[0].__mro__ if all(issubclass(one, base) for one in classes)
    )


def _reads_of_property(source: object) -> list[str]:
    """Keys that a property of a section or configuration reads, as paths below its class."""
    function = getattr(source, "fget", None) or (source if inspect.isfunction(source) else None)
    if function is None:
        return []
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return [
        ast.unparse(node).removeprefix("self.")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("self.")
    ]


@cache
def all_reads() -> frozenset[Read]:
    found: set[Read] = set()
    for path in source_files():
        reader = _Reader(path)
        reader.visit(parsed(path))
        found |= reader.reads
    return frozenset(found)


def _path_of(module: str) -> Path | None:
    parts = module.split(".")[1:]
    for base in (ROOT / "megaladder", ROOT):
        for path in (
            base.joinpath(*parts).with_suffix(".py"),
            base.joinpath(*parts, "__init__.py"),
        ):
            if parts and path.is_file():
                return path
    return None


@cache
def reachable(module: str) -> frozenset[Path]:
    """Files that a verb's module imports, directly or not, lazily or not."""
    found: set[Path] = set()
    waiting = [module, "megaladder.cli"]  # which counts the ranks
    while waiting:
        path = _path_of(waiting.pop())
        if path is None or path in found:
            continue
        found.add(path)
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("megaladder"):
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                waiting += [a.name for a in node.names if a.name.startswith("megaladder.")]
    return frozenset(found)


def readers(config_class: Type, key: str, module: str) -> set[Path]:
    """Files within a verb's reach that read the key of its configuration."""
    files = reachable(module)
    *sections, leaf = key.split(".")
    at = config_class
    for section in sections:
        at = section_of(at.model_fields[section].annotation)
    return {
        read.file
        for read in all_reads()
        if read.file in files
        and (
            (read.key == key and issubclass(config_class, read.owner))
            or (read.key == leaf and issubclass(at, read.owner) and sections)
        )
    }
