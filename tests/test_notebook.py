"""Results in a notebook: short texts, tables of HTML and pandas, figures, and bars of progress."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from matplotlib.figure import Figure

import pneumoscope
from pneumoscope import Tuning, notebook
from pneumoscope.errors import DataError, MissingExtraError, UsageError
from pneumoscope.evaluation.results import Evaluation, Interval
from pneumoscope.inference.prediction import Prediction
from pneumoscope.notebook import NotebookProgress
from pneumoscope.reports.tuning import Search, TrialResult
from pneumoscope.training.settings import DataSettings, Settings
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
    """A pandas whose frames are the rows that they were made of, if their index has a name."""
    module = ModuleType("pandas")
    vars(module)["RangeIndex"] = lambda count, name: (count, name)
    vars(module)["DataFrame"] = lambda rows, index: rows if index == (len(rows), "row") else None
    monkeypatch.setitem(sys.modules, "pandas", module)


def test_results_are_shown_on_one_line() -> None:
    assert repr(PREDICTION) == "Prediction(<b>.png: B, probability 0.877)"
    assert repr(Prediction(path=Path("a\n\x1b.png"), error="a.png: damaged")) == (
        "Prediction(a\ufffd\ufffd.png: error: a.png: damaged)"
    )
    assert repr(Prediction(decision="out_of_distribution")) == "Prediction(image: out_of_distribution)"
    assert repr(evaluation()) == "Evaluation(test: 40 images, AUROC 0.910)"


def test_models_and_arrays_are_shown_on_one_line_too(run: Run, images: Path) -> None:
    predictor = pneumoscope.load(run.model)
    assert repr(predictor) == "Predictor(efficientnet_lite0: NORMAL, PNEUMONIA)"
    evidence = pneumoscope.explain(next(images.rglob("*.png")), predictor).evidence
    assert repr(evidence) == f"Evidence(PNEUMONIA: cam, logit {getattr(evidence, 'logit'):+.2f})"  # noqa: B009
    phantom = pneumoscope.draw_phantom(1, pneumonia=True, size=64)
    assert repr(phantom) == f"Phantom(PNEUMONIA: 64 x {phantom.pixels.shape[1]} pixels)"


def test_results_are_tables_in_a_notebook_with_names_escaped() -> None:
    page = PREDICTION._repr_html_()
    assert "<b>" not in page.replace("&lt;b&gt;", "")
    assert "<th>probability</th>" in page
    assert "<td>0.877</td>" in page
    assert ">accuracy</td><td>0.800</td><td>0.700</td><td>0.900</td>" in evaluation()._repr_html_()
    assert ">auroc</td><td>0.910</td><td></td><td></td>" in evaluation()._repr_html_()


def test_results_are_rows_of_a_frame(pandas: None, run: Run) -> None:
    (row,) = PREDICTION.to_frame()
    assert (row["path"], row["probability"], row["prediction_set"]) == ("scans/<b>.png", 0.87654, "B")
    assert evaluation().to_frame()[0] == {"metric": "accuracy", "value": 0.8, "low": 0.7, "high": 0.9}
    assert evaluation().to_frame()[1]["low"] is None
    assert run.to_frame() == run.evaluation.to_frame()
    assert repr(run).startswith(f"Run({run.folder}; test: 12 images, AUROC ")
    assert ">auroc</td>" in run._repr_html_()
    comparison = pneumoscope.compare([run.folder, run.folder], resamples=20)
    assert comparison.to_frame() == comparison.to_rows()
    assert repr(comparison) == f"Comparison({run.folder}, {run.folder}: 12 images)"
    assert ">sensitivity</td>" in comparison._repr_html_()


def test_a_patient_is_a_pseudonym_in_a_frame_and_absent_from_a_page(pandas: None) -> None:
    known = replace(PREDICTION, patient="0815", accession_number="A7", age=45.0)
    (row,) = known.to_frame()
    assert (row["accession_number"], row["age"], row["sop_uid"]) == ("A7", 45.0, None)
    assert len(row["patient"]) == 16
    assert "0815" not in known._repr_html_() + repr(row)
    assert replace(known, path=None).to_frame()[0]["patient"] == row["patient"]
    (row,) = known.to_frame(patient_ids=True)
    assert row["patient"] == "0815"
    assert PREDICTION.to_frame()[0]["patient"] is None


def test_an_audit_is_a_table_of_its_findings(pandas: None, images: Path, tmp_path: Path) -> None:
    audit = pneumoscope.audit(images, tmp_path / "audit", quick=True)
    assert repr(audit) == f"Audit({images}; 48 images: {audit.summary})"
    assert [row["title"] for row in audit.to_frame()] == [finding.title for finding in audit.findings]
    assert f">{audit.findings[0].check}</td>" in audit._repr_html_()


def test_an_export_and_a_checklist_are_tables_too(pandas: None, run: Run, images: Path, tmp_path: Path) -> None:
    export = pneumoscope.export(tmp_path / "export", run.model, "onnx", images / "test")
    assert repr(export).startswith(f"Export({export.folder}; ")
    assert export.to_frame()[0]["images"] == export.check.images > 0
    assert "<th>difference</th>" in export._repr_html_()
    (checklist,) = pneumoscope.write_checklist(run.folder, out=tmp_path / "paper")
    assert repr(checklist).startswith(f"Checklist({checklist.title}: {checklist.count('run')} filled from the run")
    assert [row["item"] for row in checklist.to_frame()] == [item.number for item in checklist.items]
    assert checklist.items[0].number in checklist._repr_html_()


def test_the_figures_of_results_are_of_matplotlib_and_shown_by_notebooks(
    run: Run, images: Path, tmp_path: Path
) -> None:
    summary = pneumoscope.summarize([run.folder])
    audit = pneumoscope.audit(images, quick=True)
    comparison = pneumoscope.compare([run.folder, run.folder], resamples=20)
    for result in (run, run.evaluation, evaluation(), comparison, summary, audit):
        figure = result.plot()
        assert isinstance(figure, Figure)
        assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    for kind in ("roc", "pr", "calibration", "dca", "metrics", "confusion", "learning"):
        run.plot(kind).savefig(tmp_path / f"{kind}.pdf")
    assert comparison.plot("sensitivity").axes[0].get_xlabel() == f"Sensitivity: difference from {run.folder.name}"
    with pytest.raises(UsageError, match=r"^kind: this result has no figure 'pie'\. Choose from metrics, confusion"):
        evaluation().plot("pie")


def test_a_search_for_settings_draws_its_history_and_what_matters(tmp_path: Path) -> None:
    trials = tuple(TrialResult(i, "complete", 0.8 + i / 50, (0.8,), {"lr": 10.0**-i}, 1.0, None, "") for i in range(4))
    search = Search("auroc", False, 1, 0, trials, best=3, importance={"lr": 0.9, "flip": 0.1})
    result = Tuning(tmp_path, Settings(data=DataSettings(path="images")), search)
    assert result.plot().axes[0].get_xlabel() == "Trial"
    assert [each.get_text() for each in result.plot("importance").axes[0].get_yticklabels()] == ["flip", "lr"]
    with pytest.raises(UsageError, match="Choose from history, importance"):
        result.plot("roc")


def test_a_prediction_is_drawn_with_its_evidence_or_alone(run: Run, images: Path) -> None:
    path = next((images / "test").rglob("*.png"))
    explained = pneumoscope.explain(path, run.model)
    assert len(explained.plot().axes) == 3  # the image, the image under its map, and the scale
    assert len(pneumoscope.load(run.model).predict(path)[0].plot().axes) == 1
    with pytest.raises(UsageError, match="has no file"):
        Prediction(decision="A").plot()
    with pytest.raises(UsageError, match="show\\(\\) needs a notebook"):
        explained.show()


def test_a_notebook_shows_progress_tables_and_figures(run: Run, images: Path) -> None:
    """In a real kernel of Jupyter."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    cells = [
        "import pneumoscope.notebook\npneumoscope.notebook._DELAY = 0  # a bar for short tasks, too",
        f"import pneumoscope\npredictor = pneumoscope.load({str(run.model)!r})",
        f"predictions = predictor.predict({str(images / 'test')!r})",
        "predictions[0]",
        "pneumoscope.explain(predictions[0].path, predictor).show()",
        f"pneumoscope.summarize([{str(run.folder)!r}]).plot()",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=250, kernel_name="python3").execute()
    shown = [[output.get("data", {}) for output in cell.outputs] for cell in notebook.cells]
    (bar,) = shown[2]
    assert bar["text/html"] == '<progress value="12" max="12"></progress> Predicting: 12 of 12'
    assert bar["text/plain"] == "Predicting: 12 of 12"
    assert "<th>probability</th>" in shown[3][0]["text/html"]
    assert ["image/png" in each for cell in shown[4:] for each in cell] == [True, True]


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
    progress("Soon done", 1, 1)
    assert shown == []
    monkeypatch.setattr(notebook, "_DELAY", 0)
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
