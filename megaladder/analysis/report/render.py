"""Sections → the page: one file, whether it was written or is being watched.

Styles, scripts, charts and rollouts are inside; a content security policy forbids everything else
(its own script runs by hash), so that text of a model can neither run nor load anything. What a
model wrote reaches the page as JSON whose `<` are escaped, and is set as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from megaladder.analysis.report.blocks import Panels, RolloutList, Section
from megaladder.analysis.report.charts import Encoder, points_a_line
from megaladder.analysis.report.sections.rollouts import as_json
from megaladder.analysis.report.svg import legend_key

if TYPE_CHECKING:
    import jinja2

FOLDER = Path(__file__).parent / "page"
STYLES = ("vendor/uplot.css", "page.css")
SCRIPTS = ("vendor/uplot.js", "page.js", "charts.js", "rollouts.js", "live.js")


@dataclass(frozen=True)
class Part:
    """A section in three pieces: its HTML, the data of its charts, its rollouts (JSON each)."""

    id: str
    title: str
    html: str
    charts: str
    rollouts: str


@dataclass(frozen=True)
class Heading:
    """What stands around the sections."""

    title: str
    subtitle: str
    footer: str


def parts_of(sections: Sequence[Section]) -> list[Part]:
    """All sections, with the points of their charts shared out between the lines of the page."""
    panels = [b for section in sections for b in section.blocks if isinstance(b, Panels)]
    lines = sum(len(chart.series) for panel in panels for chart in panel.charts)
    return [part_of(section, points_a_line(lines)) for section in sections]


def part_of(section: Section, limit: int) -> Part:
    """One section; at most `limit` points a line."""
    encoder = Encoder(limit)
    html = _template("section.html.jinja").render(s=section, key=legend_key, place=encoder.add)
    lists = [block for block in section.blocks if isinstance(block, RolloutList)]
    rows = [as_json(rollout) for block in lists for rollout in block.rollouts]
    texts = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    rollouts = f"[{texts}]" if lists else ""
    return Part(section.id, section.title, html, encoder.text(), rollouts)


def page_of(parts: Sequence[Part], heading: Heading, *, live: bool = False) -> str:
    """The HTML text. live: it asks the address that it came from for what is new."""
    style, script = (_joined(names) for names in (STYLES, SCRIPTS))
    return _template("page.html.jinja").render(
        heading=heading,
        parts=parts,
        data=safe_json(page_data(parts)),
        style=style,
        script=script,
        policy=policy(style, script, live=live),
        live=live,
    )


def page_data(parts: Sequence[Part]) -> str:
    """`{"charts": {section: …}, "rollouts": […]}`."""
    charts = ",\n".join(f"{json.dumps(part.id)}: {part.charts}" for part in parts)
    rollouts = next((part.rollouts for part in parts if part.rollouts), "[]")
    return f'{{"charts": {{{charts}}},\n"rollouts": {rollouts}}}'


def safe_json(text: str) -> str:
    """JSON that no HTML parser takes for anything else."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def policy(style: str, script: str, *, live: bool) -> str:
    """The content security policy: our style and script, nothing else.

    A live page may also ask its own address."""
    asks = "connect-src 'self'; " if live else ""
    return (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src"
        f" '{_hash(script)}'; {asks}base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")


def _joined(names: Sequence[str]) -> str:
    return "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in names)


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _template(name: str) -> jinja2.Template:
    return _environment().get_template(name)
