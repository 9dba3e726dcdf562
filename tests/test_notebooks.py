"""The notebooks run in a kernel, on a few simulated images, and are committed without output."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
COUNT = 80  # images, of which tests need fewer than a reader
SAYS: Mapping[str, tuple[str, ...]] = {  # what the output of each must hold, as regular expressions
    "1_published_project.ipynb": (
        "Instead of ResNet-50, this run uses efficientnet_lite0",
        r"accuracy +published 0\.810 +here 0\.\d{3} \(",
        "The images are simulated",
        "report.html",
    ),
    "2_your_own_images.ipynb": (r"drawing\.png: out_of_distribution", "Prediction", r"train +NORMAL"),
    "3_is_the_result_real.ipynb": (
        "Without the lungs, small marks in corners and edges predict the class",
        r"3 patients are in test and train \(error\)",
        r"1\d .*across splits",
        "no shortcut",
        "no leak",
    ),
    "4_thresholds_calibration_prevalence.ipynb": (
        r"sensitivity>=0\.95 +0\.\d\d +\d",
        r"0\.05 +0\.\d{3} +0\.\d{3} +0\.\d{3}",
        r"true 0\.\d\d, estimated without labels 0\.\d\d",
        r"alpha 0\.20: share of sets that miss",
    ),
    "5_adapt_to_a_hospital.ipynb": (r"There: \d\d images", "Probabilities: ", ">log_loss</td>", "report.html"),
}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_and_shows_what_it_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PNEUMOSCOPE_DATA", raising=False)
    notebook = nbformat.read(FOLDER / name, as_version=4)
    setup = next(cell for cell in notebook.cells if cell.cell_type == "code")
    setup.source, changed = re.subn(r"^COUNT = \d+", f"COUNT = {COUNT}", setup.source, flags=re.MULTILINE)
    assert changed == 1
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": tmp_path}}).execute()
    shown = "\n".join(list_texts(notebook))
    assert not re.search("━|IProgress", shown), "bars of a terminal, or advice of their library"
    for expected in SAYS[name]:
        assert re.search(expected, shown), (expected, shown)


def list_texts(notebook: Any) -> Iterator[str]:
    """What the cells of a notebook show, as text."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            yield output.get("text", "") or "\n".join(map(str, output.get("data", {}).values()))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_committed_without_output(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert not [cell for cell in code if cell.outputs or cell.execution_count]
    assert text == nbformat.writes(notebook, indent=1, ensure_ascii=False).rstrip("\n") + "\n"
    last = notebook.cells[-1].source
    assert "## What to try next" in last


def test_there_are_five_notebooks() -> None:
    assert list(SAYS) == NOTEBOOKS
