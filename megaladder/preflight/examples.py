"""`megaladder examples`: the run files, recipes and launch scripts that come along, listed or copied.

They lie in the installed package, or beside it in a checkout.
"""

from __future__ import annotations

import difflib
import json
import shutil
from pathlib import Path

from megaladder.config.base import Positional, StrictModel
from megaladder.errors import ConfigError

SUFFIXES = (".yaml", ".sh", ".sbatch", ".py", ".md", ".ipynb")


class ExamplesConfig(StrictModel):
    """Lists the run files, recipes and launch scripts that come along; with names, copies them."""

    names: Positional[tuple[str, ...]] = ()
    """Files or folders of the list, e.g. configs/sft_gsm8k_cpu.yaml or recipes/limo; a launch
    script's run file comes along. None = the list."""
    out: str = "examples"
    """Folder to copy to; files that are there are left alone."""


def run_examples(config: ExamplesConfig) -> None:
    """The verb. Raises ConfigError for a name that is not in the list."""
    root = examples_folder()
    files = _files(root)
    if not config.names:
        width = max(len(str(path)) for path in files)
        for path in files:
            print(f"{path!s:<{width}}  {_about(root / path)}".rstrip())
        print("next: megaladder examples NAME --out DIR copies a file or a folder of these")
        return
    for name in config.names:
        wanted = Path(name.strip("/"))
        chosen = [path for path in files if path == wanted or wanted in path.parents]
        if not chosen:
            raise ConfigError(f"example {name}: not in the list; fix: {_meant(name, files)}")
        for path in dict.fromkeys(part for one in chosen for part in _with_parts(root, one)):
            _copy(root / path, Path(config.out) / path)


def _meant(name: str, files: list[Path]) -> str:
    """The command for a name without its folder or ending, or nearly right; else the list."""
    by_word = {word: path for path in files for word in (str(path), path.name, path.stem)}
    near = difflib.get_close_matches(Path(name).name, by_word, n=1, cutoff=0.7)
    return f"megaladder examples {by_word[near[0]]}" if near else "megaladder examples lists them"


def examples_folder() -> Path:
    """Where they lie: inside the installed package, else beside it."""
    package = Path(__file__).resolve().parents[1]
    for place in (package / "examples", package.parent / "examples"):
        if (place / "configs").is_dir():
            return place
    raise ConfigError(
        f"no examples in {package}; fix: install the wheel anew, or use a checkout of the project"
    )


def _files(root: Path) -> list[Path]:
    found = (path for path in root.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    return sorted(
        path.relative_to(root)
        for path in found
        if path.name != "__init__.py" and "__pycache__" not in path.parts
    )


def _with_parts(root: Path, path: Path) -> list[Path]:
    """A launch script with the run file of its name and what all of them share; else the file."""
    run_file = Path("configs", path.name).with_suffix(".yaml")
    if path.suffix != ".sh" or not (root / run_file).is_file():
        return [path]
    return [path, run_file, Path("launch.sh"), Path("launch.py")]


def _about(path: Path) -> str:
    """The first line of its comment, its docstring or heading; of a notebook's first cell."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "".join(json.loads(text)["cells"][0]["source"])
    for line in text.splitlines()[:5]:
        words = line.strip("#\"' ")
        if words and not line.startswith("#!"):
            return words[:100]
    return ""


def _copy(source: Path, target: Path) -> None:
    if target.exists():
        print(f"{target}: there already")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
    print(f"{target}: written")
