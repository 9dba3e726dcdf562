"""Results in a notebook: short texts, tables of HTML and pandas, and bars of progress."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import pneumoscope
from pneumoscope.errors import DataError, MissingExtraError
from pneumoscope.evaluation.results import Evaluation, Interval
from pneumoscope.inference.prediction import Prediction
from pneumoscope.notebook import NotebookProgress
from pneumoscope.training.train import Run

PREDICTION = Prediction(
    path=Path("scans/<b>.png"), predicted_label="B", probability=0.87654, probabilities={"A": 0.12346, "B": 0.87654},
    prediction_set=("B",), decision="B",
)  # fmt: skip


def evaluation() -> Evaluation:
    nan = float("nan")
    return Evaluation(
        split="test", n=40, patients=None, classes=("A", "B"), positive="B", prevalence=0.5, shares={}, threshold=0.5,
        metrics={"accuracy": Interval(0.8, 0.7, 0.9), "auroc": Interval(0.91, nan, nan)}, confusion={}, resamples=1,
        confidence=0.95, seed=0,
    )  # fmt: skip


@pytest.fixture
def pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pandas whose frames are the rows that they were made of."""
    module = ModuleType("pandas")
    vars(module)["DataFrame"] = list
    monkeypatch.setitem(sys.modules, "pandas", module)


def test_results_are_shown_on_one_line() -> None:
    assert repr(PREDICTION) == "Prediction(<b>.png: B, probability 0.877)"
    assert repr(Prediction(path=Path("a\n\x1b.png"), error="a.png: damaged")) == (
        "Prediction(a\ufffd\ufffd.png: error: a.png: damaged)"
    )
    assert repr(Prediction(decision="out_of_distribution")) == "Prediction(image: out_of_distribution)"
    assert repr(evaluation()) == "Evaluation(test: 40 images, AUROC 0.910)"


def test_results_are_tables_in_a_notebook_with_names_escaped() -> None:
    page = PREDICTION._repr_html_()
    assert "<b>" not in page.replace("&lt;b&gt;", "")
    assert "<th>probability</th>" in page
    assert "<td>0.877</td>" in page
    assert "<td>accuracy</td><td>0.800</td><td>0.700</td><td>0.900</td>" in evaluation()._repr_html_()
    assert "<td>auroc</td><td>0.910</td><td></td><td></td>" in evaluation()._repr_html_()


def test_results_are_rows_of_a_frame(pandas: None, run: Run) -> None:
    (row,) = PREDICTION.to_frame()
    assert (row["path"], row["probability"], row["prediction_set"]) == ("scans/<b>.png", 0.87654, "B")
    assert evaluation().to_frame()[0] == {"metric": "accuracy", "value": 0.8, "low": 0.7, "high": 0.9}
    assert evaluation().to_frame()[1]["low"] is None
    assert run.to_frame() == run.evaluation.to_frame()
    assert repr(run).startswith(f"Run({run.folder}; test: 12 images, AUROC ")
    assert "<td>auroc</td>" in run._repr_html_()
    comparison = pneumoscope.compare([run.folder, run.folder], resamples=20)
    assert comparison.to_frame() == comparison.to_rows()
    assert repr(comparison) == f"Comparison({run.folder}, {run.folder}: 12 images)"
    assert "<td>sensitivity</td>" in comparison._repr_html_()


def test_an_audit_is_a_table_of_its_findings(pandas: None, images: Path, tmp_path: Path) -> None:
    audit = pneumoscope.audit(images, tmp_path / "audit", quick=True)
    assert repr(audit) == f"Audit({images}; 48 images: {audit.summary})"
    assert [row["title"] for row in audit.to_frame()] == [finding.title for finding in audit.findings]
    assert f"<td>{audit.findings[0].check}</td>" in audit._repr_html_()


def test_training_shows_warnings_where_logging_is_not_set_up(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    pneumoscope.train(images, tmp_path / "run", recipe="baseline", epochs=1, size=64, resamples=20)
    said = capsys.readouterr().err
    assert said.count("6 validation images of NORMAL are too few for alpha 0.1") == 1
    assert "Kept epoch" not in said  # no warning


def test_without_pandas_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="pip install pandas"):
        PREDICTION.to_frame()


def test_progress_is_a_bar_in_a_notebook_and_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    def display(content: dict[str, str], raw: bool, display_id: bool) -> Any:
        assert raw
        assert display_id
        shown.append(f"new: {content['text/plain']}")
        return SimpleNamespace(update=lambda content, raw: shown.append(content["text/html"]))

    progress = NotebookProgress()
    progress("Reading", 1, 2)
    assert shown == []
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    modules: dict[str, dict[str, Any]] = {
        "IPython": {"get_ipython": lambda: shell},
        "IPython.display": {"display": display},
    }
    for name, members in modules.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    progress("Reading <i>", 1, 2)
    progress("Reading <i>", 2, 2)
    progress("Reading <i>", 1, 1)
    progress("Waiting", 5, 0)
    assert shown == [
        "new: Reading <i>: 1 of 2",
        '<progress value="2" max="2"></progress> Reading &lt;i&gt;: 2 of 2',
        "new: Reading <i>: 1 of 1",
        "new: Waiting: 5",
    ]
    shell.config.clear()  # a terminal with IPython
    progress("Reading", 1, 2)
    assert len(shown) == 4


def test_predict_takes_folders_and_tables(run: Run, images: Path, tmp_path: Path) -> None:
    predictor = pneumoscope.load(run.model)
    names = sorted(path.name for path in (images / "test").rglob("*.png"))
    assert sorted(each.path.name for each in predictor.predict(str(images / "test")) if each.path) == names
    file = next((images / "val").rglob("*.png"))
    mixed = predictor.predict([file, images / "test", tmp_path / "gone.png", file.read_bytes()])
    assert len(mixed) == len(names) + 3
    assert mixed[0].probabilities == mixed[-1].probabilities
    assert mixed[-2].error is not None
    assert len(predictor.predict(run.folder / "samples.csv")) == 48
    with pytest.raises(DataError, match="no images in this folder"):
        predictor.predict(tmp_path)
