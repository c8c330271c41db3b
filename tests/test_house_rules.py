"""The rules of size and shape that the code keeps, read from its syntax trees and its text.

Not covered: whether a name says its unit, whether a docstring tells the truth.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import quantiles

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE = ("megaladder", "kernels", "checkpoints_conv", "tools")
MAX_FUNCTION, MAX_KERNEL = 100, 150
# nine functions in ten are this short; tools are scripts
P90_FUNCTION = {"megaladder": 25, "kernels": 30, "checkpoints_conv": 30, "tools": 35}
MAX_FILE, MAX_KERNEL_FILE, MAX_TEST_FILE = 500, 600, 600
MAX_SHARE_OF_LONG_LINES = 0.03
MAX_PARAMETERS, MAX_FILES_PER_FOLDER = 7, 10
MAX_LOOP_FILE = {"megaladder/train/sft.py": 150, "megaladder/train/grpo.py": 200}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def files(*folders: str) -> tuple[Path, ...]:
    return tuple(sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, Function))


def num_lines(function: Function) -> int:
    """From `def` to the end; decorators and comments above not counted."""
    return function.end_lineno - function.lineno + 1


def is_triton_kernel(function: Function) -> bool:
    return any("jit" in ast.unparse(decorator) for decorator in function.decorator_list)


def where(path: Path, node: ast.AST | None = None) -> str:
    return str(path.relative_to(ROOT)) + (f":{node.lineno}" if node is not None else "")


def test_no_function_is_too_long() -> None:
    too_long = [
        f"{where(path, function)} {function.name}: {num_lines(function)} lines"
        for path in files(*CODE)
        for function in functions(path)
        if num_lines(function) > (MAX_KERNEL if is_triton_kernel(function) else MAX_FUNCTION)
    ]
    assert too_long == []


@pytest.mark.parametrize("folder", CODE)
def test_nine_functions_in_ten_are_short(folder: str) -> None:
    lengths = [
        num_lines(function)
        for path in files(folder)
        for function in functions(path)
        if not is_triton_kernel(function)
    ]
    if len(lengths) < 2:
        pytest.skip(f"{folder} has no functions yet")
    assert quantiles(lengths, n=10)[-1] <= P90_FUNCTION[folder]


def test_no_file_is_too_long() -> None:
    too_long = []
    for path in files(*CODE, "tests"):
        name = where(path)
        limit = (
            MAX_TEST_FILE
            if name.startswith("tests/")
            else MAX_KERNEL_FILE
            if name.startswith("kernels/")
            else MAX_FILE
        )
        count = len(path.read_text(encoding="utf-8").splitlines())
        if count > MAX_LOOP_FILE.get(name, limit):
            too_long.append(f"{name}: {count} lines")
    assert too_long == []


def test_lines_of_code_and_text_fit_into_100_columns() -> None:
    """A few cannot be broken (tables of formulas, templates); they stay few."""
    lines = [
        line
        for path in files(*CODE, "tests")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]
    assert sum(len(line) > 100 for line in lines) <= MAX_SHARE_OF_LONG_LINES * len(lines)


def test_no_test_sleeps() -> None:
    """A test waits for a condition (`waiting.wait_until`), not for a time."""
    sleeping = [
        where(path, node)
        for path in files("tests")
        if path.name != "waiting.py"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "sleep")
    ]
    assert sleeping == []


def test_parameter_lists_are_short() -> None:
    """More than seven want a dataclass. A Triton kernel and an autograd Function's forward take
    what they are given."""
    too_many = []
    for path in files(*CODE):
        for function in functions(path):
            names = [
                arg.arg
                for arg in (
                    *function.args.posonlyargs,
                    *function.args.args,
                    *function.args.kwonlyargs,
                )
            ]
            count = len([name for name in names if name not in ("self", "cls")])
            exempt = is_triton_kernel(function) or names[:1] == ["ctx"]
            if count > MAX_PARAMETERS and not exempt:
                too_many.append(f"{where(path, function)} {function.name}: {count} parameters")
    assert too_many == []


def test_what_travels_has_a_type() -> None:
    """A configuration, a section, a model's shape and a tokenizer are never `Any`, nor without an
    annotation: their keys would be read unchecked."""
    untyped = []
    for path in files(*CODE):
        for function in functions(path):
            arguments = function.args
            for arg in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
                bare = arg.annotation is None or ast.unparse(arg.annotation) == "Any"
                if arg.arg in ("config", "optim", "section", "shape", "tokenizer") and bare:
                    untyped.append(f"{where(path, function)} {function.name}: {arg.arg}")
    assert untyped == [], "\n".join(untyped)


def test_folders_are_small() -> None:
    """Python files with content, `__init__.py` apart."""
    crowded = []
    for folder in {path.parent for path in files(*CODE)}:
        count = len([path for path in folder.glob("*.py") if path.name != "__init__.py"])
        if count > MAX_FILES_PER_FOLDER:
            crowded.append(f"{folder.relative_to(ROOT)}: {count} files")
    assert crowded == []


def test_no_bare_except_and_nothing_swallowed() -> None:
    bad = []
    for path in files(*CODE, "tests"):
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            broad = node.type is None or any(
                name in ast.unparse(node.type) for name in ("BaseException", "Exception")
            )
            empty = all(isinstance(line, ast.Pass) for line in node.body)
            named = node.type is not None and not any(
                ast.unparse(part).split(".")[-1] in ("Exception", "BaseException")
                for part in (node.type.elts if isinstance(node.type, ast.Tuple) else [node.type])
            )
            if node.type is None or (broad and empty and not named):
                bad.append(where(path, node))
    assert bad == []


def test_no_init_in_folders_that_must_not_be_importable_by_their_own_name() -> None:
    """A regular top-level package `kernels` would shadow the hub package of that name, which
    transformers imports."""
    folders = ("kernels", "tools", "checkpoints_conv", "tests", "examples")
    assert [folder for folder in folders if (ROOT / folder / "__init__.py").exists()] == []


def test_every_module_and_public_function_says_what_it_is() -> None:
    """A module docstring everywhere; a docstring on public functions of more than a few lines
    (kernels and `main`: the module's)."""
    silent = [
        where(path)
        for path in files(*CODE)
        if not ast.get_docstring(tree(path)) and path.read_text(encoding="utf-8").strip()
    ]
    for path in files(*CODE):
        for node in tree(path).body:
            if (
                not isinstance(node, Function)
                or node.name.startswith("_")
                or node.name == "main"
                or is_triton_kernel(node)
            ):
                continue
            if num_lines(node) > 12 and not ast.get_docstring(node):
                silent.append(f"{where(path, node)} {node.name}")
    assert silent == []


def test_top_level_holds_what_is_listed_here() -> None:
    allowed = {
        "megaladder",
        "kernels",
        "tools",
        "examples",
        "checkpoints_conv",
        "tests",
        "setup.py",
        "README.md",
        "SECURITY.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "mkdocs.yml",
        "containers",
        "pyproject.toml",
        "Makefile",
        "LICENSE",
        ".gitignore",
        ".git-blame-ignore-revs",
        ".ci",
        "docs",
    }
    listed = _tracked()
    if listed is None:
        pytest.skip("not a git checkout")
    assert {Path(name).parts[0] for name in listed} - allowed == set()


def _tracked() -> list[str] | None:
    import subprocess

    if not (ROOT / ".git").exists():
        return None
    return subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
