"""The index of examples: every file of examples/ with one line, what it needs and what to expect.

The line is the file's own first comment; the rest stands in `examples.yaml`. A file that no entry
names is listed all the same; one that two name is an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = Path(__file__).with_name("examples.yaml")
OTHERS = {"files": "", "needs": "what its head says"}
HEAD = """# Examples and recipes

Every file of `examples/`; `megaladder examples` lists them too, and copies them from an installed
package. Figures stand here only where somebody measured them, with the page that says how.
"""


def example_files() -> list[str]:
    """Paths in the repository, sorted."""
    found = (path for path in (ROOT / "examples").rglob("*") if path.is_file())
    return sorted(
        str(path.relative_to(ROOT))
        for path in found
        if "__pycache__" not in path.parts and ".ipynb_checkpoints" not in path.parts
    )


def entry_of(path: str, entries: list[dict[str, str]]) -> dict[str, str]:
    """The entry that names a file, or one for all others. Raises ValueError where several do."""
    name = path.removeprefix("examples/")
    found = [entry for entry in entries if fnmatchcase(name, entry["files"])]
    if len(found) > 1:
        raise ValueError(f"{path}: {len(found)} entries of {ENTRIES} name it; fix: one of them")
    return found[0] if found else OTHERS


def about(path: str) -> str:
    """The first line of a file's comment or docstring, or of a notebook's first cell."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".ipynb"):
        text = "".join(json.loads(text)["cells"][0]["source"])
    for line in text.splitlines()[:6]:
        words = line.strip("#\"': ")
        if words and not line.startswith("#!"):
            return words
    return ""


def examples_page(page_of: Callable[[str], str]) -> str:
    """The page; page_of: where the site shows a file."""
    entries = yaml.safe_load(ENTRIES.read_text(encoding="utf-8"))
    lines = [HEAD]
    folder = None
    for path in sorted(example_files(), key=lambda path: (str(Path(path).parent), path)):
        if (parent := str(Path(path).parent)) != folder:
            folder = parent
            lines += [
                "",
                f"## {folder}",
                "",
                "| file | what it is | needs | expect |",
                "|---|---|---|---|",
            ]
        entry = entry_of(path, entries)
        cells = [f"[{Path(path).name}]({page_of(path)})", _cell(about(path))]
        cells += [entry["needs"], entry.get("expect", "not measured")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
