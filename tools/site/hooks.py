"""What mkdocs asks while it builds the site: pages that are made, and links that leave docs/.

README, CHANGELOG, CONTRIBUTING and SECURITY become pages as they are. A link from a page to a file
or folder of the repository leads to a page with its text, so the site needs no other address; one
that leads nowhere stays as it is, and `mkdocs build --strict` fails on it. The index of examples is
made from the files (`examples`).
"""

from __future__ import annotations

import os.path
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))  # mkdocs loads this file by its path

from examples import ROOT, example_files, examples_page

# page of the site -> file of the repository
ROOT_PAGES = {
    "readme.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
}
EXAMPLES_PAGE = "examples.md"
# file or folder of the repository -> the page that is made of it
MADE = {**{name: page for page, name in ROOT_PAGES.items()}, "examples": EXAMPLES_PAGE}
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
LANGUAGES = {".py": "python", ".sh": "bash", ".sbatch": "bash", ".yaml": "yaml", ".json": "json"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Pages that the navigation does not name stand at its end, so that none is lost."""
    docs = Path(config.docs_dir)
    pages = sorted(str(path.relative_to(docs)) for path in docs.rglob("*.md"))
    if config.nav is not None:
        named = set(_named(config.nav))
        if more := [page for page in pages if page not in named]:
            config.nav.append({"More": more})
    return config


def _named(nav: object) -> Iterator[str]:
    """The pages in a navigation, at any depth."""
    if isinstance(nav, str):
        yield nav
    for part in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from _named(part)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made."""
    texts = {page: (ROOT / name).read_text(encoding="utf-8") for page, name in ROOT_PAGES.items()}
    texts[EXAMPLES_PAGE] = examples_page(source_page)
    written = {file.src_uri: file.content_string for file in files.documentation_pages()}
    wanted = set(example_files())
    for page, text in {**written, **texts}.items():
        wanted |= {path for target in targets(text) if (path := outside(page, target))}
    texts |= {source_page(path): source_text(path) for path in sorted(wanted)}
    for page, text in texts.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links that leave docs/ to the pages that stand for their files."""
    here = page.file.src_uri
    if here.startswith("source/") or here == EXAMPLES_PAGE:
        return markdown
    parts = CODE.split(markdown)
    parts[::2] = [LINK.sub(lambda found: _turned(here, found), text) for text in parts[::2]]
    return "".join(parts)


def _turned(here: str, found: re.Match[str]) -> str:
    target, anchor = found[1], found[2] or ""
    path = repository_path(here, target)
    if path is None:
        return found[0]
    if path.startswith("docs/"):
        page = path.removeprefix("docs/")
    else:
        page = MADE.get(path) or source_page(path)
    return os.path.relpath(page, os.path.dirname(here) or ".") + anchor


def targets(markdown: str) -> Iterator[str]:
    """Every relative target of a link outside code, without its anchor."""
    for text in CODE.split(markdown)[::2]:
        yield from (found[1] for found in LINK.finditer(text))


def repository_path(page: str, target: str) -> str | None:
    """The file or folder of the repository that a page's link means; None for no such thing."""
    if "://" in target or target.startswith(("mailto:", "/")):
        return None
    home = (
        os.path.dirname(ROOT_PAGES[page]) if page in ROOT_PAGES else f"docs/{os.path.dirname(page)}"
    )
    path = os.path.normpath(os.path.join(home, target))
    return path if not path.startswith("..") and (ROOT / path).exists() else None


def outside(page: str, target: str) -> str | None:
    """The same where it is no page of the site yet."""
    path = repository_path(page, target)
    known = path is None or path.startswith("docs/") or path in MADE
    return None if known else path


def source_page(path: str) -> str:
    """The page that shows a file or lists a folder."""
    return f"source/{path}.md"


def source_text(path: str) -> str:
    """A file as it is, or the names in a folder, with nothing for the search."""
    head = f"---\nsearch: {{exclude: true}}\n---\n\n# {path}\n\n"
    place = ROOT / path
    if place.is_dir():
        names = sorted(child.name + "/" * child.is_dir() for child in place.iterdir())
        return head + "\n".join(f"- `{name}`" for name in names if not name.startswith((".", "__")))
    language = LANGUAGES.get(place.suffix, "text")
    return f"{head}~~~~~{language}\n{place.read_text(encoding='utf-8').rstrip()}\n~~~~~\n"
