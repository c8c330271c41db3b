"""The page in a real browser, where there is one: drawn without an error, and all of it by keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("websockets")

from watch.chromium import BINARY, Tab, browser
from watch.test_watch import row, served, write_run

from megaladder.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BINARY is None, reason="no Chromium here")]
STEPS = 30
# what Tab has to reach: all that is in sight and takes keys, in the order of the page
TABBABLE = """[...document.querySelectorAll("a, button, input, select, summary, [tabindex='0']")]
    .filter((element) => element.tabIndex >= 0 && element.checkVisibility())
    .map((element) => [...document.all].indexOf(element))"""
FOCUSED = """(() => {
    const style = getComputedStyle(document.activeElement);
    const seen = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 1;
    return [[...document.all].indexOf(document.activeElement), seen,
        document.activeElement === document.body];
})()"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a report of two runs."""
    folder = tmp_path_factory.mktemp("report")
    write_run(folder / "a", steps=STEPS)
    write_run(folder / "b", steps=STEPS)
    page = folder / "r.html"
    assert main(["report", str(folder / "a"), str(folder / "b"), "--out", str(page)]) == 0
    return page.as_uri()


def opened(tab: Tab, address: str, width: int = 1280, height: int = 8000) -> Tab:
    """The page, so high that all of it is in sight and drawn."""
    tab.said.clear()
    tab.media(prefers_color_scheme="light")
    tab.open(address, width, height)
    # loss, reward, mismatch; the seconds of each step are folded
    tab.wait("document.querySelectorAll('canvas').length === 3")
    return tab


def focus(tab: Tab, selector: str) -> None:
    tab.value(f"document.querySelector({json.dumps(selector)}).focus()")


def attribute(tab: Tab, selector: str, name: str) -> str | None:
    return tab.value(f"document.querySelector({json.dumps(selector)}).getAttribute('{name}')")


def test_charts_are_drawn_and_rollouts_listed(tab: Tab, report: str) -> None:
    opened(tab, report)
    tab.wait("document.querySelector('.count').textContent === '8 of 8'")
    assert tab.value("document.querySelectorAll('.rollout').length") == 8
    assert tab.value("document.querySelectorAll('img').length") == 0, "a model's words stay text"
    assert tab.said == []


@pytest.mark.parametrize("width", [1280, 390])
def test_tab_reaches_everything_once_in_order_and_shows_where_it_is(
    tab: Tab, report: str, width: int
) -> None:
    opened(tab, report, width)
    assert tab.value("document.documentElement.scrollWidth") <= width, "nothing scrolls sideways"
    expected, reached = tab.value(TABBABLE), []
    while len(reached) <= len(expected):
        tab.press("Tab")
        place, seen, at_the_end = tab.value(FOCUSED)
        if at_the_end:
            break
        assert seen, tab.value("document.activeElement.outerHTML.slice(0, 200)")
        reached.append(place)
    assert reached == expected and len(reached) > 25
    tab.press("Tab", shift=True)
    assert tab.value(FOCUSED)[0] == expected[-1], "and back again"
    assert tab.said == []


def test_charts_by_keys(tab: Tab, report: str) -> None:
    opened(tab, report)
    focus(tab, ".chart")
    said = "document.getElementById('said').textContent"
    tab.press("ArrowRight")
    tab.wait(f"{said} === 'step 1; a: 1; b: 1'")
    tab.press("End")
    tab.wait(f"{said} === 'step 30; a: 0.033333; b: 0.033333'")
    tab.press("+")
    zoomed = "plots.get(document.querySelector('.chart')).zoomed()"
    tab.wait(zoomed)
    # what is not in sight comes into it
    tab.press("Home")
    tab.wait(f"{said} === 'step 1; a: 1; b: 1'")
    assert tab.value("plots.get(document.querySelector('.chart')).plot.scales.x.min") <= 1
    tab.press("Escape")
    tab.wait(f"!{zoomed}")
    focus(tab, ".values > summary")
    tab.press("Enter")
    tab.wait("document.querySelector('.values table')")
    rows = tab.value(
        "[...document.querySelectorAll('.values tbody tr')].map((row) => row.innerText.split('\\t'))"
    )
    assert len(rows) == STEPS and rows[1] == ["2", "0.5", "0.5"]
    assert tab.value("document.activeElement.matches('.values > summary')")
    tab.press("Tab")
    assert attribute(tab, ":focus", "role") == "group"
    tab.press("Escape")
    assert attribute(tab, ".values", "open") is None
    assert tab.value("document.activeElement.tagName") == "SUMMARY"
    assert tab.said == []


def test_switches_by_keys(tab: Tab, report: str) -> None:
    opened(tab, report)
    focus(tab, "[data-run]")
    for key, pressed in ((" ", "false"), ("Enter", "true")):
        tab.press(key)
        assert attribute(tab, "[data-run]", "aria-pressed") == pressed
    focus(tab, "[data-view=log]")
    tab.press(" ")
    assert tab.value("document.querySelector('[data-view=log]').checked")
    focus(tab, "[data-view=smooth]")
    tab.press("ArrowRight")
    assert tab.value("document.querySelector('[data-view=smooth]').value") == "0.05"
    focus(tab, "#theme")
    tab.press("Enter")
    assert attribute(tab, "html", "data-theme") == "dark"
    assert tab.said == []


def test_rollouts_by_keys(tab: Tab, report: str) -> None:
    opened(tab, report)
    count = "document.querySelector('.count').textContent"
    focus(tab, "[name=verdict]")
    tab.press("ArrowDown")
    tab.wait(f"{count} === '4 of 8'")
    focus(tab, "[name=text]")
    tab.type("answer 2")
    tab.wait(f"{count} === '2 of 8'")
    tab.press("Escape")
    tab.wait(f"{count} === '4 of 8'")
    focus(tab, "[type=reset]")
    tab.press("Enter")
    tab.wait(f"{count} === '8 of 8'")
    focus(tab, ".rollout > summary")
    tab.press("ArrowDown")
    tab.press("Enter")
    tab.wait("document.querySelectorAll('.rollout[open] pre').length === 2")
    tab.press("Tab")
    assert attribute(tab, ":focus", "aria-label") == "Question"
    tab.press("Escape")
    assert tab.value("document.querySelectorAll('.rollout[open]').length") == 0
    assert tab.value("document.activeElement.matches('.rollout:nth-child(2) > summary')")
    assert tab.said == []


def test_colours_follow_the_system(tab: Tab, report: str) -> None:
    opened(tab, report)
    ground = "getComputedStyle(document.body).backgroundColor"
    assert tab.value(ground) == "rgb(252, 252, 251)"
    tab.media(prefers_color_scheme="dark", prefers_reduced_motion="reduce")
    assert tab.value(ground) == "rgb(20, 23, 26)"
    assert tab.value("document.getAnimations().length") == 0
    assert tab.said == []


def test_a_watched_page_leaves_focus_and_folds_where_they_are(tab: Tab, tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", steps=3, reason="running")
    with served(tmp_path) as (server, _):
        opened(tab, server.address)
        focus(tab, "#learning .values > summary")
        tab.press("Enter")
        rows = "document.querySelectorAll('#learning .values tbody tr').length"
        tab.wait(f"{rows} === 3")
        with (run / "metrics.jsonl").open("a") as file:
            # a number that no row before has: the charts of the section are other ones
            file.write(json.dumps(row(4) | {"entropy": 1.0, "grad_norm": 1.0}) + "\n")
        tab.wait(f"{rows} === 4")
        assert tab.value("document.activeElement.matches('#learning .values > summary')")
        assert not tab.value("document.getElementById('said').textContent")
        focus(tab, "#pause")
        tab.press(" ")
        assert attribute(tab, "#pause", "aria-pressed") == "true" and tab.value("paused")
        tab.press(" ")
        assert tab.said == []
        said = "document.getElementById('said').textContent"
        for offline, word in ((True, "has ended"), (False, "1 run")):
            rates = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
            tab.call("Network.emulateNetworkConditions", offline=offline, **rates)
            tab.wait(f"{said}.includes('{word}')")
        assert all("ERR_INTERNET_DISCONNECTED" in one for one in tab.said)
