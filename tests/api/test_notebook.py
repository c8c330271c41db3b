"""The notebooks run from top to bottom in a kernel of this environment, and carry no outputs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_committed_without_outputs(path: Path) -> None:
    """What it prints depends on the machine; whoever runs it sees their own."""
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert [cell["outputs"] for cell in cells] == [[]] * len(cells)
    assert {cell["execution_count"] for cell in cells} == {None}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs(path: Path, tmp_path, monkeypatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("print(sys.executable)"))
    client = NotebookClient(
        notebook, timeout=1500, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    said = [
        "".join(out.get("text", "") for out in cell.get("outputs", [])) for cell in notebook.cells
    ]
    assert said[-1].strip() == sys.executable
    assert any(
        text.startswith("arithmetic avg@1 ") or "\narithmetic avg@1 " in text for text in said
    )
    page = tmp_path / "runs" / "notebook" / "report.html"
    assert "arithmetic" in page.read_text(encoding="utf-8")
