"""The mapped folders (`kernels/` is `megaladder.kernels` and so on) in every form of installation,
and nobody's `kernels` is shadowed."""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    "megaladder",
    "kernels",
    "tools",
    "checkpoints_conv",
    "examples",
    "setup.py",
    "pyproject.toml",
)
PROBE = """
import importlib.util
import megaladder.checkpoints_conv.mapping as mapping
import megaladder.config.sections.grpo, megaladder.kernels, megaladder.tools
print(mapping.__file__)
print(importlib.util.find_spec("kernels").origin)
print(len(megaladder.config.sections.grpo.presets()))
"""


def run(command: list[str], cwd: Path, **environment: str) -> str:
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**variables, **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def hub_kernels(tmp_path_factory) -> Path:
    """A stand-in for the hub package `kernels`, which transformers imports."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "kernels").mkdir()
    (folder / "kernels" / "__init__.py").write_text("")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(
            ROOT / name,
            folder / name,
            **(
                {"ignore": shutil.ignore_patterns("__pycache__")} if copy is shutil.copytree else {}
            ),
        )
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--disable-pip-version-check",
    ]
    run([*pip, "-w", str(out), "."], source)
    return next(out.glob("*.whl"))


def test_every_python_file_is_packaged_and_nothing_else_is_top_level(wheel) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in names} == {"megaladder"}
    wanted = set()
    for top in ("megaladder", "kernels", "tools", "checkpoints_conv", "examples"):
        prefix = "" if top == "megaladder" else "megaladder/"
        wanted |= {
            prefix + str(path.relative_to(ROOT))
            for path in (ROOT / top).rglob("*.py")
            if "__pycache__" not in path.parts
        }
    assert wanted - set(names) == set()
    data = {"config/presets.yaml", "py.typed", "examples/notebooks/first_run.ipynb"}
    assert {f"megaladder/{name}" for name in data} <= set(names)


def test_a_wheel_works_from_elsewhere(wheel, hub_kernels, tmp_path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "lib")
    path = os.pathsep.join([str(tmp_path / "lib"), str(hub_kernels)])
    found, kernels, presets = run(
        [sys.executable, "-c", PROBE], tmp_path, PYTHONPATH=path
    ).splitlines()
    assert found == str(tmp_path / "lib" / "megaladder" / "checkpoints_conv" / "mapping.py")
    assert kernels == str(hub_kernels / "kernels" / "__init__.py")
    assert presets == "5"
    # examples come along
    command = [sys.executable, "-m", "megaladder", "examples"]
    listed = run(command, tmp_path, PYTHONPATH=path)
    assert "recipes/limo/train_limo.yaml" in listed and "quickstart.sh" in listed
    assert "notebooks/first_run.ipynb" in listed and "A first run from Python" in listed
    run([*command, "recipes/limo"], tmp_path, PYTHONPATH=path)
    assert (tmp_path / "examples/recipes/limo/train_limo.yaml").is_file()


def test_a_wheel_makes_counts_and_analyses_data_from_elsewhere(wheel, tmp_path) -> None:
    """Without the repository: what needs a file of ours finds it in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "lib")

    def megaladder(*words: str) -> str:
        command = [sys.executable, "-m", "megaladder", *words]
        return run(command, tmp_path, PYTHONPATH=str(tmp_path / "lib"))

    assert "analyze compare" in megaladder("--help")
    megaladder("data", "make", "arithmetic", "--rows", "40", "--out", "rows.jsonl")
    assert "40" in megaladder("data", "stats", "rows.jsonl")
    answers = [{"problem_id": i // 4, "correct": i % 3 == 0} for i in range(32)]
    lines = "".join(json.dumps(row) + "\n" for row in answers)
    (tmp_path / "answers.jsonl").write_text(lines)
    assert "pass@1" in megaladder("analyze", "pass-at-k", "answers.jsonl")
    assert "gsm8k" in megaladder("eval", "--benchmark", "list")
    assert "s1" in megaladder("study", "list")


# package that is imported → the one that is asked for, where they have other names or come along
DECLARED_AS = {
    "flint": "python-flint",
    "jinja2": "Jinja2",
    "latex2sympy2_extended": "math-verify",
    "math_verify": "math-verify",
    "megatron": "megatron-core",
    "mlflow": "mlflow-skinny",
    "pandas": "trackio",
    "referencing": "jsonschema",
    "sympy": "math-verify",
    "transformer_engine": "transformer-engine",
    "yaml": "PyYAML",
}
# asked for by a message with the command that adds it
NAMED_WHEN_MISSING = {"lm_eval"}


def test_every_package_that_is_imported_is_declared() -> None:
    text = (ROOT / "setup.py").read_text(encoding="utf-8") + "".join(
        f'"{need}"'
        for need in runpy.run_path(str(ROOT / "megaladder/process/gpu_stack.py"))["GPU_EXTRA"]
    )
    declared = set(re.findall(r'"([A-Za-z][\w-]*)(?:\[[\w,]+\])?(?:[<>=]=?[\d.,<>=]+)?"', text))
    imported = {
        name.partition(".")[0]
        for top in ("megaladder", "kernels", "checkpoints_conv", "examples")
        for path in (ROOT / top).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in imported_by(node)
    }
    others = imported - sys.stdlib_module_names - {"megaladder", "examples"} - NAMED_WHEN_MISSING
    assert [name for name in sorted(others) if DECLARED_AS.get(name, name) not in declared] == []


def imported_by(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [str(node.module)] if isinstance(node, ast.ImportFrom) and not node.level else []


def test_a_checkout_works_without_installation_and_leaves_the_hub_package_alone(
    source, hub_kernels
) -> None:
    """Also with the checkout itself on the path: a regular package beats our namespace folder of
    the same name."""
    path = os.pathsep.join([str(source), str(hub_kernels)])
    found, kernels, _ = run([sys.executable, "-c", PROBE], source, PYTHONPATH=path).splitlines()
    assert found == str(source / "checkpoints_conv" / "mapping.py")
    assert kernels == str(hub_kernels / "kernels" / "__init__.py")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lenient", "strict", "compat"])
def test_editable_installations(source, hub_kernels, tmp_path, mode: str) -> None:
    target = tmp_path / "venv"
    # pip, setuptools and our needs: through outer.pth
    run([sys.executable, "-m", "venv", "--without-pip", str(target)], tmp_path)
    python = str(target / "bin" / "python")
    own = Path(
        run([python, "-c", "import site; print(site.getsitepackages()[0])"], tmp_path).strip()
    )
    (own / "outer.pth").write_text(
        next(path for path in sys.path if path.endswith("site-packages")) + "\n"
    )
    pip = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--disable-pip-version-check",
    ]
    run([*pip, "--config-settings", f"editable_mode={mode}", "-e", str(source)], tmp_path)
    for cwd in (tmp_path, source):
        found, kernels, _ = run(
            [python, "-c", PROBE], cwd, PYTHONPATH=str(hub_kernels)
        ).splitlines()
        assert Path(found).name == "mapping.py"
        assert kernels == str(hub_kernels / "kernels" / "__init__.py")
    assert "usage: megaladder" in run([str(target / "bin" / "megaladder"), "--help"], tmp_path)
