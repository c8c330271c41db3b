"""The page for who has no pointer, sees little or hears it: names, roles, order, contrast. What needs
a browser is in tests/watch/test_browser.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from megaladder.analysis.report.blocks import (
    Drawing,
    Panels,
    Prose,
    RolloutList,
    Section,
    Table,
    Token,
    TokenView,
)
from megaladder.analysis.report.charts import Chart, Series
from megaladder.analysis.report.render import FOLDER, STYLES, Heading, page_of, parts_of
from megaladder.analysis.report.svg import strip

VOID = {"meta", "link", "input", "line", "circle", "rect", "br", "img"}
CONTROLS = {"button", "input", "select", "summary"}
ROLES = {"application", "group", "img", "search", "status"}
# elements whose own meaning may have a name
NAMED = CONTROLS | {"nav", "form", "section"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    parent: Element | None = None
    children: list[Element | str] = field(default_factory=list)

    def all(self) -> Iterator[Element]:
        yield self
        for child in self.elements:
            yield from child.all()

    @property
    def elements(self) -> list[Element]:
        return [child for child in self.children if isinstance(child, Element)]

    @property
    def text(self) -> str:
        """What is read out."""
        if self.attributes.get("aria-hidden") == "true":
            return ""
        parts = [child if isinstance(child, str) else child.text for child in self.children]
        return "".join(parts).strip()

    @property
    def around(self) -> list[str]:
        return [] if self.parent is None else [self.parent.tag, *self.parent.around]

    @property
    def name(self) -> str:
        """The accessible name: its label, its text, or the label around it."""
        own = self.attributes.get("aria-label") or self.text
        return own or (self.parent.text if self.parent and self.parent.tag == "label" else "")

    @property
    def is_reached(self) -> bool:
        """Whether Tab stops at it."""
        asked = self.attributes.get("tabindex")
        return asked == "0" or self.tag in CONTROLS or (self.tag == "a" and asked is None)


class Tree(HTMLParser):
    """A page as elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = self._at = Element("page", {})
        self.feed(text)
        assert self._at is self.root, f"<{self._at.tag}> is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {key: value or "" for key, value in attrs}, self._at)
        self._at.children.append(element)
        if tag not in VOID:
            self._at = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._at.children.append(Element(tag, {key: value or "" for key, value in attrs}, self._at))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._at.tag == tag and self._at.parent is not None
            self._at = self._at.parent

    def handle_data(self, data: str) -> None:
        self._at.children.append(data)


def sections() -> list[Section]:
    """A block of every kind."""
    series = Series("run", [(1, 2.0), (2, 1.0)], bounds=[(1, 3), (0, 2)])
    charts = [Chart("loss", "step", "loss", [series], note="a note")]
    drawn = Drawing(strip(1.0, (0.5, 2.0), 0, label="run: 1"))
    rows = [["a", drawn]] * 31
    token = Token("no", 2, "rank 5 under the base, KL 0.300", 5, 0.3)
    legend = [(f"run {i}", i) for i in range(4)]
    return [
        Section("one", "One", "Intro.", [Prose(["text"]), Prose(["text"], as_list=True)]),
        Section("two", "Two", blocks=[Table(("x", "y"), rows[:2], "short"),
                                      Table(("x", "y"), rows, "long")]),
        Section("three", "Three", blocks=[Panels(charts, legend), Panels(charts, legend, "more")]),
        Section("four", "Four", blocks=[TokenView([("prompt", [token])])]),
        Section("five", "Five", blocks=[RolloutList([], "a note")]),
    ]  # fmt: skip


@pytest.fixture(scope="module", params=["written", "watched"])
def page(request: pytest.FixtureRequest) -> list[Element]:
    """Its elements, in the order of the page, which is that of Tab."""
    live = request.param == "watched"
    text = page_of(parts_of(sections()), Heading("title", "subtitle", "footer"), live=live)
    return list(Tree(text).root.all())[1:]


def test_every_control_has_a_name_and_no_order_of_its_own(page: list[Element]) -> None:
    reached = [element for element in page if element.is_reached]
    assert len(reached) > 40
    assert [element for element in reached if not element.name] == []
    assert {element.attributes.get("tabindex", "0") for element in page} <= {"0", "-1"}
    buttons = [element for element in page if element.tag == "button"]
    assert {element.attributes["type"] for element in buttons} <= {"button", "reset"}


def test_roles_names_and_references_are_right(page: list[Element]) -> None:
    assert {e.attributes["role"] for e in page if "role" in e.attributes} <= ROLES
    named = [element for element in page if "aria-label" in element.attributes]
    assert [e.tag for e in named if "role" not in e.attributes and e.tag not in NAMED] == []
    needed = [e for e in page if e.attributes.get("role") in ROLES - {"status"}]
    assert [e.attributes for e in needed if not e.attributes.get("aria-label")] == []
    ids = [element.attributes["id"] for element in page if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    links = [e.attributes["href"][1:] for e in page if e.attributes.get("href", "").startswith("#")]
    aria = ("aria-labelledby", "aria-describedby")
    links += [e.attributes[name] for e in page for name in aria if name in e.attributes]
    assert set(links) <= set(ids)


def test_what_opens_has_a_line_to_open_it_and_what_scrolls_is_reached(page: list[Element]) -> None:
    folds = [element for element in page if element.tag == "details"]
    assert folds and all(fold.elements[0].tag == "summary" for fold in folds)
    long = [e for e in page if {"long", "tokens"} & set(e.attributes.get("class", "").split())]
    assert len(long) == 2 and all(e.is_reached and e.attributes["role"] == "group" for e in long)


def test_tables_say_what_they_hold_and_charts_have_one(page: list[Element]) -> None:
    tables = [element for element in page if element.tag == "table"]
    assert [table.elements[0].tag for table in tables] == ["caption"] * 2
    assert all(table.elements[0].text for table in tables)
    assert {e.attributes.get("scope") for e in page if e.tag == "th"} == {"col"}
    charts = [element for element in page if element.attributes.get("class") == "chart"]
    after = [c.parent.elements[c.parent.elements.index(c) + 1] for c in charts if c.parent]
    assert len(after) == 2 and {e.attributes["class"] for e in after} == {"values"}


def test_headings_and_language(page: list[Element]) -> None:
    levels = [int(e.tag[1]) for e in page if re.fullmatch("h[1-6]", e.tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert page[0].attributes == {"lang": "en"}
    views = [e.attributes["content"] for e in page if e.attributes.get("name") == "viewport"]
    assert views == ["width=device-width, initial-scale=1"], "zoom is left to the reader"


def style() -> str:
    return "".join((FOLDER / name).read_text(encoding="utf-8") for name in STYLES)


def luminance(colour: str) -> float:
    """Relative luminance of #rgb or #rrggbb (WCAG 2.2)."""
    digits = "".join(2 * c for c in colour[1:]) if len(colour) == 4 else colour[1:]
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_text_lines_and_edges() -> None:
    assert contrast("#000", "#fff") == pytest.approx(21)
    themes = [
        dict(re.findall(r"--(\w+): (#\w+);", block))
        for block in re.findall(r"\{\s*color-scheme[^}]*", style())
    ]
    light, dark, asked_dark, printed = themes
    assert dark == asked_dark and light != dark
    for theme in (light, dark, printed):
        for ground in (theme["paper"], theme["raised"]):
            for name in ("ink", "soft", "accent", "good", "bad"):
                assert contrast(theme[name], ground) >= 4.5, (name, ground)
            for name in ("edge", *(f"c{i}" for i in range(8))):
                assert contrast(theme[name], ground) >= 3, (name, ground)
        for mark in range(1, 5):
            assert contrast(theme["ink"], theme[f"h{mark}"]) >= 4.5, mark


def test_nothing_moves_by_itself() -> None:
    assert not re.search(r"transition|animation|@keyframes|scroll-behavior", style())
