"""The site of docs/: no file of examples/ is missing in its index, links that leave docs/ lead to
pages, and every link and anchor of the built pages leads somewhere."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "site"))

import examples  # noqa: E402


def test_the_index_has_every_example_once_with_needs_and_expectation() -> None:
    page = examples.examples_page(lambda path: path)
    files = examples.example_files()
    assert len(files) > 80
    lines = [line for line in page.splitlines() if line.startswith("| [")]
    assert len(lines) == len(files)
    for path in files:
        line = next(line for line in lines if f"]({path})" in line)
        _, what, needs, expect = [cell.strip() for cell in line.strip("|").split(" | ")]
        assert what and needs and expect, line


def test_no_entry_of_the_index_is_left_over_or_doubled() -> None:
    entries = yaml.safe_load(examples.ENTRIES.read_text(encoding="utf-8"))
    used = [examples.entry_of(path, entries)["files"] for path in examples.example_files()]
    assert {entry["files"] for entry in entries} == set(used) - {""}
    assert examples.entry_of("examples/new.yaml", entries) is examples.OTHERS
    with pytest.raises(ValueError, match="2 entries"):
        examples.entry_of("examples/slurm/new.sh", [{"files": "slurm/*"}, {"files": "*.sh"}])


class Links(HTMLParser):
    """What a page links to, what it loads, and the places in it that can be linked to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = {""}
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {value for key in ("id", "name") if (value := given.get(key))}
        if tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))
        if tag in ("img", "script", "iframe") and given.get("src"):
            self.loads.append(str(given["src"]))
        if tag == "link" and given.get("rel") != "canonical" and given.get("href"):
            self.loads.append(str(given["href"]))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_every_link_of_the_site_leads_somewhere_and_nothing_is_loaded_from_elsewhere(site) -> None:
    pages = {page: Links(page) for page in site.rglob("*.html")}
    broken, elsewhere, checked = [], [], 0
    for page, found in pages.items():
        for target in [*found.links, *found.loads]:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                elsewhere += [f"{page.name}: {target}"] * (target in found.loads)
                continue
            if page.name == "404.html":  # its links begin at the root of whoever serves it
                continue
            file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            file = file / "index.html" if file.is_dir() else file
            checked += 1
            anchors = pages[file].anchors if file in pages else {parts.fragment}
            if not file.is_file() or unquote(parts.fragment) not in anchors:
                broken.append(f"{page.relative_to(site)}: {target}")
    assert broken == []
    assert elsewhere == []
    assert checked > 1000
    print(f"{checked} links on {len(pages)} pages, 0 broken")


@pytest.mark.slow
def test_the_site_shows_every_page_and_every_picture(site) -> None:
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    assert [str(page) for page in pages if not (site / page.with_suffix(".html")).is_file()] == []
    pictures = list((ROOT / "docs" / "pictures").glob("*.svg"))
    assert len(pictures) >= 4
    shown = "".join(page.read_text(encoding="utf-8") for page in site.rglob("*.html"))
    assert [path.name for path in pictures if f"pictures/{path.name}" not in shown] == []
    api = (site / "api.html").read_text(encoding="utf-8")
    for name in ("sft", "grpo", "evaluate", "report", "load", "Callback", "Run", "Score"):
        assert f">{name}</span>" in api or f'.{name}"' in api


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", ["[x](nowhere.md)", "[x](data.md#nowhere)", "[x](../megaladder/nowhere.py)"]
)
def test_a_broken_link_fails_the_build(line: str, tmp_path) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("data.md", "index.md"):
        (tmp_path / "docs" / name).write_text("# A page\n\n" + line * (name == "index.md"))
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    kept = {key: settings[key] for key in ("site_name", "validation", "use_directory_urls")}
    hook = str(ROOT / "tools" / "site" / "hooks.py")
    written = {**kept, "hooks": [hook], "plugins": [], "docs_dir": str(tmp_path / "docs")}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(written))
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "nowhere" in done.stdout + done.stderr
