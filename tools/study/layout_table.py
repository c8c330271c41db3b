"""The table of known layouts in docs/data.md.

python tools/study/layout_table.py
"""

from __future__ import annotations

from megaladder.data.layouts.layout import USES, Layout
from megaladder.data.layouts.table import LAYOUTS


def _columns(layout: Layout) -> str:
    return ", ".join(f"`{need.replace('|', '` or `')}`" for need in layout.needs)


def table() -> str:
    """A line a layout: where it is published, the columns that make it, and who takes it."""
    lines = [f"| layout | as published by | columns | {' | '.join(USES.values())} |"]
    lines.append("|---|---|---|" + "---|" * len(USES))
    for name, layout in LAYOUTS.items():
        taken = " | ".join("yes" if layout.can(use) else "" for use in USES)
        lines.append(f"| `{name}` | {layout.published} | {_columns(layout)} | {taken} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
