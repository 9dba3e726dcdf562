"""The report: complete in itself, safe with hostile names, and never stopped by thin data."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pneumoscope.auditing.findings import Finding
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.curves import selective_curve
from pneumoscope.evaluation.decision_summary import summarise_decisions
from pneumoscope.evaluation.evaluate import Measured
from pneumoscope.evaluation.intervals.all_metrics import evaluate_predictions
from pneumoscope.evaluation.metrics import NAMES
from pneumoscope.evaluation.results import Adjusted, Evaluation, Interval
from pneumoscope.inference.prediction import Prediction
from pneumoscope.models.model_folder import load_model
from pneumoscope.reports import plots
from pneumoscope.reports.figures import render_svg
from pneumoscope.reports.gallery import LARGEST
from pneumoscope.reports.pictures import to_uri
from pneumoscope.reports.report import GROUPS, Policy, Provenance, find_chance_level, write_report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pneumoscope.training.train import Run

CLASSES = ("NORMAL", "PNEUMONIA")
HISTORY = [
    {"epoch": i, "phase": i // 3, "train_loss": 1 / (i + 1), "val_loss": 1.0 + (i - 2) ** 2, "lr": 1e-3}
    for i in range(6)
]
VOID = {"meta", "line", "circle", "path", "use", "rect", "br", "input", "img", "wbr"}


def predictions_of(labels: Any, probabilities: Any, classes: Any = CLASSES, **more: Any) -> list[Prediction]:
    """Predictions without prediction sets or a detector; `more` holds columns."""
    predictions = []
    for i, (label, p) in enumerate(zip(labels, probabilities, strict=True)):
        shares = (1 - p, p) if np.ndim(p) == 0 else tuple(p)
        predicted = classes[int(p >= 0.5)] if np.ndim(p) == 0 else classes[int(np.argmax(p))]
        values = {"path": f"test/{i}.png", "decision": predicted, **{name: column[i] for name, column in more.items()}}
        values |= {"path": Path(values["path"]), "probabilities": dict(zip(classes, shares, strict=True))}
        predictions.append(Prediction(label=classes[label], predicted_label=predicted, **values))
    return predictions


def written(folder: Path, labels: Any, probabilities: Any, *, classes: Any = CLASSES, **more: Any) -> str:
    evaluation = evaluate_predictions(labels, probabilities, classes=classes, resamples=50)
    predictions = more.pop("predictions", None) or predictions_of(labels, probabilities, classes)
    measured = summarised(evaluation, predictions, more.pop("errors", ()), more.pop("uncalibrated", None))
    write_report(folder, measured, **{"title": "A run", **more})
    return (folder / "report.html").read_text(encoding="utf-8")


def summarised(
    evaluation: Evaluation,
    predictions: Sequence[Prediction],
    errors: Sequence[tuple[str, str]] = (),
    uncalibrated: Any = None,
) -> Measured:
    """An evaluation with its decisions counted."""
    decisions = summarise_decisions(
        [str(each.label) for each in predictions],
        [str(each.decision) for each in predictions],
        [each.prediction_set for each in predictions],
        evaluation.classes,
    )
    evaluation = replace(evaluation, decisions=decisions)
    return Measured(evaluation, predictions, errors=errors, uncalibrated=uncalibrated)


class Outline(HTMLParser):
    """Collects tags, ids and text, and fails where elements are not nested."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def simulated(n: int, classes: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(2)
    y = rng.integers(0, classes, n)
    p = rng.dirichlet(np.ones(classes), n)
    p[np.arange(n), y] += 1
    p /= 2
    return y, p if classes > 2 else p[:, 1]


def test_a_full_report(tmp_path: Path) -> None:
    y, p = simulated(60, 2)
    p[:3] = 1 - p[:3]
    decisions = [CLASSES[int(share >= 0.5)] for share in p]
    decisions[0], decisions[1] = "out_of_distribution", "uncertain"
    predictions = predictions_of(
        y, p, decision=decisions, prediction_set=[CLASSES] * 60, ood_score=[0.5] * 60,
        path=[f"person{i}_{'bacteria' if i % 3 else 'virus'}_1.jpeg" for i in range(60)],
    )  # fmt: skip
    page = written(
        tmp_path / "run",
        y,
        p,
        predictions=predictions,
        uncalibrated=p**2,
        policy=Policy("sensitivity>=0.9", "platt", 90, 0.1),
        errors=[("broken.png", "truncated")] * 60,
        provenance=Provenance(
            history=HISTORY,
            findings=[
                Finding("balance", "note", "few images"),
                Finding("reading", "note", "of one name", "", (Path("p1/front.jpg"), Path("p2/front.jpg"))),
                Finding("leaks", "error", "images in two splits", "Move them.", tuple(map(Path, "abcd"))),
            ],
            notes=["3 patients are in two splits"],
            facts={"Backbone": "efficientnet_lite0", "Command": "pneumoscope train DATA"},
            environment={"Processor": "an abacus"},
        ),
    )  # fmt: skip
    outline = Outline(page)
    for words in (
        "A run", "60 images", "Not a medical device", "AUROC", "95% interval", "Tick: chance level", "truncated",
        "efficientnet_lite0", "3 patients are in two splits", "10 more are in predictions.csv", "Most confident errors",
        "reaches a sensitivity of 0.9 on validation data", "Platt scaling, fitted on 90 validation images", "an abacus",
        "found 1 error", "For example: p1/front.jpg, p2/front.jpg",
        "Move them. For example: a, b, c…", "Target: 90% of each class", "bacteria", "virus",
        "Net benefit", "Platt scaling changed the calibration error", "Out of distribution (predicted label: ",
    ):  # fmt: skip
        assert words in outline.text, words
    assert outline.text.index("images in two splits") < outline.text.index("few images")
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [str(attributes["href"]) for tag, attributes in outline.tags if tag == "a"]
    assert links
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert all(attributes["aria-label"] for _, attributes in outline.tags if attributes.get("role") == "img")
    assert len(page) < 400_000
    names = {path.stem for path in (tmp_path / "run" / "plots").iterdir()}
    assert names == {
        "confusion", "roc", "precision-recall", "reliability", "probabilities", "risk-coverage", "decision-curve",
        "learning",
    }  # fmt: skip
    for path in (tmp_path / "run" / "plots").iterdir():
        assert ET.parse(path).getroot().tag.endswith("svg")


def test_the_page_asks_for_nothing_and_runs_one_script(tmp_path: Path) -> None:
    page = written(tmp_path, *simulated(30, 2), provenance=Provenance(history=HISTORY))
    outline = Outline(page)
    assert not {"link", "img", "iframe", "object"} & {tag for tag, _ in outline.tags}
    assert re.findall(r'(?:href|src)="(?!#)|url\((?!#)|@import', page) == []
    assert {url for url in re.findall(r"https?://[^\"]+", page) if not url.startswith("http://www.w3.org/")} == set()
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}';" in page


def test_names_are_text_whatever_they_hold(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'{{ 7 * 7 }}$x$ 肺炎"
    y, p = simulated(20, 2)
    classes = ("a & {positive}", evil)
    page = written(
        tmp_path, y, 1 - p, classes=classes, title=evil,
        predictions=predictions_of(y, 1 - p, classes, path=[evil] * 20, patient=[evil] * 20),
        errors=[(evil, evil)],
        provenance=Provenance(HISTORY, [Finding("x", "note", evil, evil)], [evil], {evil: evil}, {evil: evil}),
    )  # fmt: skip
    assert page.count("<script") == 1
    assert "{{ 7 * 7 }}" in Outline(page).text
    (data,) = (str(attributes["data-points"]) for _, attributes in Outline(page).tags if "data-points" in attributes)
    assert json.loads(data)["positive"] == evil


def test_the_page_stays_light_with_many_images(tmp_path: Path) -> None:
    y, p = simulated(5000, 2)
    p[:40] = 1 - p[:40]
    ood = [2.0 if i % 9 == 0 else 0.5 for i in range(5000)]
    decisions = [
        "out_of_distribution" if far > 1 else CLASSES[int(share >= 0.5)] for far, share in zip(ood, p, strict=True)
    ]
    predictions = predictions_of(y, p, decision=decisions, ood_score=ood)
    page = written(tmp_path / "run", y, p, predictions=predictions, draw=lambda _: to_uri(bytes(LARGEST), "jpeg"))
    assert page.count("data:image/jpeg") == 18
    assert len(page) < 2_500_000


@pytest.mark.parametrize(
    ("labels", "probabilities", "classes", "decision"),
    [
        ([1], [0.9], CLASSES, None),
        ([0], [0.0], CLASSES, "out_of_distribution"),
        (
            [1, 1, 1],
            [0.2, 0.5, 1.0],
            ("a_rather_long_name_of_a_class_for_a_plot", "and_another_that_is_longer_still"),
            "uncertain",
        ),
        ([0, 1], [0.5, 0.5], CLASSES, None),
        ([0, 1] * 40, [0.0, 1.0] * 40, CLASSES, "out_of_distribution"),
        ([0], [[1.0, 0.0, 0.0]], ("a", "b", "c"), "uncertain"),
        (*simulated(90, 12), tuple(f"a rather long class name {i}" for i in range(12)), None),
    ],
)
def test_thin_and_wide_data(tmp_path: Path, labels: Any, probabilities: Any, classes: Any, decision: Any) -> None:
    predictions = predictions_of(labels, probabilities, classes)
    if decision:  # of all images
        predictions = [replace(each, decision=decision, ood_score=3.0, prediction_set=()) for each in predictions]
    more = {"policy": Policy("0.5", "none", 0, 0.1), "provenance": Provenance(history=HISTORY[:1])} if decision else {}
    page = written(tmp_path, labels, probabilities, classes=classes, predictions=predictions, **more)
    text = Outline(page).text.replace("Provenance", "")
    assert "nan" not in text
    assert "None" not in text


@pytest.mark.parametrize("estimated", [True, False])
def test_adjusted_metrics_stand_beside_the_others(tmp_path: Path, estimated: bool) -> None:
    y, p = simulated(60, 2)
    evaluation = evaluate_predictions(y, p, classes=CLASSES, resamples=50)
    other = evaluate_predictions(y, p**2, classes=CLASSES, resamples=50)
    prevalence = Interval(0.2, 0.125, 0.275) if estimated else None
    adjusted = Adjusted({"NORMAL": 0.8, "PNEUMONIA": 0.2}, prevalence, estimated, 0.25, other.metrics)
    write_report(tmp_path, Measured(replace(evaluation, adjusted=adjusted), predictions_of(y, p)), title="A run")
    section = (tmp_path / "report.html").read_text(encoding="utf-8").partition('id="adjusted"')[2]
    text = section.partition("</section>")[0]
    assert f"{other.metrics['specificity'].value:.3f}" in text
    assert ("Saerens" in text) == estimated
    assert ("12.5% to 27.5%" in text) == estimated


@pytest.mark.parametrize(
    "history",
    [
        [{"epoch": 1}],
        [{"train_loss": 0.5}, {"train_loss": 0.4}],
        [{"train_loss": "0.5", "val_loss": ""}, {"train_loss": 0, "val_loss": None}],
        [{"train_loss": float("nan"), "val_loss": float("nan")}],
    ],
)
def test_histories_with_gaps(history: Any) -> None:
    assert render_svg("learning", plots.plot_learning(history)).startswith("<svg")


def test_equal_data_give_equal_bytes_and_one_ink(tmp_path: Path) -> None:
    y, p = simulated(40, 2)
    pages = [written(tmp_path / name, y, p) for name in "ab"]
    assert pages[0] == pages[1]
    svg = (tmp_path / "a" / "plots" / "roc.svg").read_text()
    assert "currentColor" in svg
    assert svg.count(plots.INK) == 1  # where `currentColor` is set
    assert "dc:date" not in svg


def test_a_band_too_narrow_is_not_drawn() -> None:
    y, p = simulated(40, 2)
    patients = [str(i // 2) for i in range(40)]
    evaluation = evaluate_predictions(y, p, classes=CLASSES, patients=patients, resamples=20)
    assert "FillBetween" not in render_svg("roc", plots.plot_roc(evaluation, y, p))
    assert "FillBetween" in render_svg("roc", plots.plot_roc(evaluation, y, p, patients))


def test_the_chance_level_is_what_constant_predictions_reach() -> None:
    labels = np.array([0, 0, 0, 1])
    constant = evaluate_predictions(labels, np.full(4, 0.25), classes=CLASSES, resamples=20)
    everyone = evaluate_predictions(labels, np.full(4, 0.9), classes=CLASSES, resamples=20)
    chance = find_chance_level(constant)
    for name in ("accuracy", "npv", "auroc", "average_precision", "brier"):
        assert chance[name] == pytest.approx(constant.metrics[name].value), name
    for name in ("f1", "ppv"):
        assert chance[name] == pytest.approx(everyone.metrics[name].value), name


def test_predictions_that_do_not_fit_the_evaluation_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="of 2 images came with 1 predictions"):
        written(tmp_path, [0, 1], [0.1, 0.9], predictions=predictions_of([0], [0.1]))
    with pytest.raises(DataError, match=r"none of the classes \(NORMAL, PNEUMONIA\)"):
        written(tmp_path, [0], [0.1], predictions=predictions_of([0], [0.1], ("a", "b")))


def test_a_run_fills_its_report(run: Run) -> None:
    page = run.report.read_text(encoding="utf-8")
    text = Outline(page).text
    fingerprint = load_model(run.model).data["fingerprint"]
    for words in (
        fingerprint, "Test fingerprint", "pneumoscope train --config", "Processor", "Threads", "torch ",
        "fitted on 12 validation images", "Target: 90% of each class", "Learning curve", "Least certain",
        "Yellow and orange: evidence for PNEUMONIA", "out of distribution", "Decision curve",
        "score (Wilson)",
    ):  # fmt: skip
        assert words in text, words
    assert "data:image/jpeg;base64," in page
    assert "no picture" not in text


def test_plots_are_saved_in_every_format_that_is_asked_for(tmp_path: Path) -> None:
    y, p = simulated(40, 2)
    for name in "ab":
        written(tmp_path / name, y, p, plot_formats="pdf,png")
    files = sorted(path.name for path in (tmp_path / "a" / "plots").iterdir())
    assert {path.partition(".")[2] for path in files} == {"pdf", "png"}
    assert len(files) == 14
    assert b"FontFile2" in (tmp_path / "a" / "plots" / "roc.pdf").read_bytes()  # the fonts are inside
    assert (tmp_path / "a" / "plots" / "roc.png").read_bytes().startswith(b"\x89PNG")
    for name in files:
        assert (tmp_path / "a" / "plots" / name).read_bytes() == (tmp_path / "b" / "plots" / name).read_bytes()
    with pytest.raises(UsageError, match="plot_formats: no such format: gif"):
        written(tmp_path / "c", y, p, plot_formats="gif")


def test_importing_the_report_imports_nothing_heavy() -> None:
    script = "import sys, pneumoscope.reports.report; print(*{'torch', 'matplotlib', 'jinja2'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_the_report_shows_every_metric() -> None:
    assert {name for names in GROUPS.values() for name in names} == set(NAMES)


@pytest.mark.parametrize("wrong", [(0,), (0, 1, 2), (), (39,), tuple(range(30))])
def test_the_risk_coverage_plot_stays_in_its_axes(wrong: Sequence[int]) -> None:
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

    correct = np.ones(40, bool)
    correct[list(wrong)] = False  # 0 is the most confident
    curve = selective_curve(correct, np.linspace(1, 0, 40), resamples=50)
    axes = Figure().add_subplot()
    plots.plot_risk_coverage(curve, (0.5, float(correct[:20].mean())))(axes)
    bottom, top = axes.get_ylim()
    assert 0 <= bottom < 1 < top < 1.02
    for line in axes.lines:
        values = np.asarray(line.get_ydata(), float)
        assert line.get_clip_on() or (values.min() >= bottom and values.max() <= top)
    note = axes.texts[0]
    assert isinstance(note, Annotation)
    assert bottom < note.xy[1] + (0.05 if note.xyann[1] > 0 else -0.05) * (top - bottom) < top
