"""The report: complete in itself, safe with hostile names, and never stopped by thin data."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pneumoscope.errors import DataError
from pneumoscope.evaluation import plots
from pneumoscope.evaluation.intervals import evaluate
from pneumoscope.evaluation.report import mistakes, no_skill, write_report

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = ("NORMAL", "PNEUMONIA")
HISTORY = [
    {"epoch": i, "stage": i // 3, "train_loss": 1 / (i + 1), "val_loss": 1.0 + (i - 2) ** 2, "lr": 1e-3}
    for i in range(6)
]
VOID = {"meta", "line", "circle", "path", "use", "rect", "br"}


def written(folder: Path, labels: Any, probabilities: Any, *, classes: Any = CLASSES, **more: Any) -> str:
    positive = classes[1] if len(classes) == 2 else None
    evaluation = evaluate(labels, probabilities, classes=classes, positive=positive, resamples=50)
    paths = [f"test/{i}.png" for i in range(len(labels))]
    more = {"title": "A run", "paths": paths, **more}
    path = write_report(folder, evaluation, labels=labels, probabilities=probabilities, **more)
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


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
    page = written(
        tmp_path / "run",
        y,
        p,
        history=HISTORY,
        facts={"Backbone": "efficientnet_lite0", "Command": "pneumoscope train DATA"},
        notes=["3 patients are in two splits"],
        errors=[("broken.png", "truncated")] * 60,
    )
    outline = Outline(page)
    for said in (
        "A run", "60 images", "Not a medical device", "AUROC", "95 % interval", "No skill", "truncated",
        "efficientnet_lite0", "3 patients are in two splits", "10 more are in predictions.csv", "wrong decisions",
    ):  # fmt: skip
        assert said in outline.text, said
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert sum(tag == "figure" for tag, _ in outline.tags) == 6
    assert all(attributes["aria-label"] for _, attributes in outline.tags if attributes.get("role") == "img")
    assert len(page) < 300_000
    names = {path.stem for path in (tmp_path / "run" / "plots").iterdir()}
    assert names == {"confusion", "roc", "precision-recall", "reliability", "probabilities", "learning"}
    for path in (tmp_path / "run" / "plots").iterdir():
        assert ET.parse(path).getroot().tag.endswith("svg")


def test_the_page_asks_for_nothing(tmp_path: Path) -> None:
    page = written(tmp_path, *simulated(30, 2), history=HISTORY)
    outline = Outline(page)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in outline.tags}
    assert re.findall(r'(?:href|src)="(?!#)|url\((?!#)|@import', page) == []
    assert {url for url in re.findall(r"https?://[^\"]+", page) if not url.startswith("http://www.w3.org/")} == set()


def test_names_are_text_whatever_they_hold(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>{{ 7 * 7 }}$x$ 肺炎"
    y, p = simulated(20, 2)
    page = written(
        tmp_path, y, 1 - p, classes=("a & {positive}", evil), title=evil, paths=[evil] * 20, facts={evil: evil},
        notes=[evil], errors=[(evil, evil)],
    )  # fmt: skip
    assert "<script" not in page
    assert "{{ 7 * 7 }}" in Outline(page).text


@pytest.mark.parametrize(
    ("labels", "probabilities", "classes"),
    [
        ([1], [0.9], CLASSES),
        ([0], [0.0], CLASSES),
        ([1, 1, 1], [0.2, 0.5, 1.0], CLASSES),
        ([0, 1], [0.5, 0.5], CLASSES),
        ([0, 1] * 40, [0.0, 1.0] * 40, CLASSES),
        ([0], [[1.0, 0.0, 0.0]], ("a", "b", "c")),
        (*simulated(50, 3), ("a", "b", "c")),
        (*simulated(90, 12), tuple(f"a rather long class name {i}" for i in range(12))),
    ],
)
def test_thin_and_wide_data(tmp_path: Path, labels: Any, probabilities: Any, classes: Any) -> None:
    page = written(tmp_path, labels, probabilities, classes=classes, history=HISTORY[:1])
    assert "nan" not in Outline(page).text
    assert "None" not in Outline(page).text.replace("None: every decision was right", "")


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
    assert plots.learning(history).startswith("<svg")


def test_equal_data_give_equal_bytes_and_one_ink(tmp_path: Path) -> None:
    y, p = simulated(40, 2)
    assert written(tmp_path / "a", y, p, history=HISTORY) == written(tmp_path / "b", y, p, history=HISTORY)
    svg = (tmp_path / "a" / "plots" / "roc.svg").read_text()
    assert "currentColor" in svg
    assert plots.INK not in svg
    assert "dc:date" not in svg


def test_a_band_too_narrow_is_not_drawn() -> None:
    y, p = simulated(40, 2)
    patients = [str(i // 2) for i in range(40)]
    evaluation = evaluate(y, p, classes=CLASSES, positive="PNEUMONIA", patients=patients, resamples=20)
    assert "FillBetween" not in plots.roc(evaluation, y, p)
    assert "FillBetween" in plots.roc(evaluation, y, p, patients)


def test_the_surest_mistakes_come_first() -> None:
    labels, p = [0, 1, 1, 0, 1], [0.7, 0.05, 0.9, 0.55, 0.6]
    evaluation = evaluate(labels, p, classes=CLASSES, positive="PNEUMONIA", threshold=0.5, resamples=20)
    found = mistakes(evaluation, labels, p, list("abcde"))
    assert [case.path for case in found] == ["b", "a", "d"]
    assert (found[0].label, found[0].decision, found[0].probability) == ("PNEUMONIA", "NORMAL", 0.05)
    assert len(mistakes(evaluation, labels, p, list("abcde"), limit=1)) == 1


def test_no_skill_is_what_constant_answers_reach() -> None:
    labels = np.array([0, 0, 0, 1])
    constant = evaluate(labels, np.full(4, 0.25), classes=CLASSES, positive="PNEUMONIA", resamples=20)
    everyone = evaluate(labels, np.full(4, 0.9), classes=CLASSES, positive="PNEUMONIA", resamples=20)
    chance = no_skill(constant)
    for name in ("accuracy", "npv", "auroc", "average_precision", "brier"):
        assert chance[name] == pytest.approx(constant.metrics[name].value), name
    for name in ("f1", "ppv"):
        assert chance[name] == pytest.approx(everyone.metrics[name].value), name


def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 labels and 1 paths"):
        written(tmp_path, [0, 1], [0.1, 0.9], paths=["a.png"])


def test_importing_the_report_imports_nothing_heavy() -> None:
    script = "import sys, pneumoscope.evaluation.report; print(*{'torch', 'matplotlib', 'jinja2'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
