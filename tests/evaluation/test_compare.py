"""Runs compared: what is paired, what is refused, and what comes out."""

from __future__ import annotations

import csv
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pneumoscope.cli.main import app
from pneumoscope.errors import DataError, PneumoscopeError, UsageError
from pneumoscope.evaluation.compare import Comparison
from pneumoscope.reports.comparison import compare
from pneumoscope.reports.evaluation_report import evaluate
from pneumoscope.training.train import Run

CLASSES = ("NORMAL", "PNEUMONIA")


def make_rows(
    count: int = 40, seed: int = 0, skill: float = 2.0, classes: tuple[str, ...] = CLASSES
) -> list[dict[str, Any]]:
    """Rows of predictions.csv: the same images whatever the seed."""
    labels = np.random.default_rng(99).integers(0, len(classes), count)
    logits = np.random.default_rng(seed).normal(size=(count, len(classes))) + skill * np.eye(len(classes))[labels]
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return [
        {
            "path": f"../images/{i}.png",  # beside the runs: the same images for all
            "label": classes[labels[i]],
            "patient": f"p{i // 2}",
            "probability": share[1] if len(classes) == 2 else share.max(),
            "predicted_label": classes[share.argmax()],
            "decision": "uncertain",
            "sha256": f"{i:012x}",
            "error": "",
            **(
                {f"probability_{name}": part for name, part in zip(classes, share, strict=True)}
                if len(classes) > 2
                else {}
            ),
        }
        for i, share in enumerate(shares)
    ]


def write_run(folder: Path, rows: list[dict[str, Any]], classes: tuple[str, ...] = CLASSES, **metrics: Any) -> Path:
    folder.mkdir(parents=True)
    two = len(classes) == 2
    values = {"classes": classes, "positive": classes[1] if two else None, "threshold": 0.5 if two else None}
    (folder / "metrics.json").write_text(json.dumps({**values, "patients": 20, **metrics}))
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def without(rows: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in names} for row in rows]


def compared(tmp_path: Path, *tables: list[dict[str, Any]], **options: Any) -> Comparison:
    number = len(list(tmp_path.iterdir()))
    runs = [write_run(tmp_path / f"{number}-{i}", rows) for i, rows in enumerate(tables)]
    return compare(runs, resamples=50, **options)


def test_images_are_paired_by_content_whatever_their_order_and_place(tmp_path: Path) -> None:
    first, other = make_rows(), make_rows(seed=1)
    moved = [{**row, "path": f"/elsewhere/{row['path']}"} for row in reversed(other)]
    straight, turned = compared(tmp_path, first, other), compared(tmp_path, first, moved)
    assert turned.paired_by == "content"
    assert turned.contrasts[0].differences == straight.contrasts[0].differences
    assert (turned.n, turned.patients) == (40, 20)


def test_a_run_against_itself_differs_in_nothing(tmp_path: Path) -> None:
    found = compared(tmp_path, make_rows(), make_rows()).contrasts[0]
    assert {one.value for one in found.differences.values()} == {0}
    assert {one.p for one in found.differences.values()} == {1}
    assert (found.only_first, found.only_other) == (0, 0)


def test_copies_of_an_image_are_paired_one_by_one(tmp_path: Path) -> None:
    first, other = make_rows(), make_rows(seed=1)
    for rows in (first, other):
        rows.append({**rows[3], "path": "../images/copy.png"})
        rows.append({**rows[3], "path": "../images/mislabelled.png", "label": "NORMAL"})
        rows[3]["label"] = rows[-2]["label"] = "PNEUMONIA"
    found = compared(tmp_path, first, list(reversed(other)))
    assert found.n == 42
    assert found.patients == 20
    with pytest.raises(DataError, match="it has no predictions for"):
        compared(tmp_path, first, other[:-1])


def test_without_hashes_images_are_paired_by_path(tmp_path: Path) -> None:
    first, other = make_rows(), without(make_rows(seed=1), "sha256", "patient")
    found = compared(tmp_path, first, other)
    assert found.paired_by == "path"
    assert found.contrasts[0].differences == compared(tmp_path, first, make_rows(seed=1)).contrasts[0].differences


def test_patients_of_either_run_are_used(tmp_path: Path) -> None:
    first, other = make_rows(), make_rows(seed=1)
    unknown = [{**row, "patient": ""} for row in first]
    assert compared(tmp_path, unknown, other).patients == 20
    one, both = (compared(tmp_path, rows, other).contrasts[0].differences for rows in (unknown, first))
    assert one == both
    assert compared(tmp_path, unknown, without(other, "patient")).patients is None


def test_images_that_one_run_could_not_read_are_left_out_and_counted(tmp_path: Path) -> None:
    first, other = make_rows(), make_rows(seed=1)
    first[5] |= {"error": "damaged", "probability": "", "predicted_label": "", "sha256": ""}
    other[5]["path"] = "/copied/5.png"
    found = compared(tmp_path, first, other)
    assert (found.n, found.unread) == (39, (1, 0))
    assert "could not read" in found.notes[0]
    nothing = [{**row, "error": "damaged", "probability": "", "predicted_label": ""} for row in first]
    with pytest.raises(DataError, match="no image that all runs could read"):
        compared(tmp_path, nothing, other)


@pytest.mark.parametrize("hashes", [True, False])
def test_other_images_are_refused_by_name(tmp_path: Path, hashes: bool) -> None:
    first, other = make_rows(), make_rows(41, seed=1)[2:]
    if not hashes:
        first, other = without(first, "sha256"), without(other, "sha256")
    with pytest.raises(DataError, match=r"for 1 of the.*images/40.png|for 2 of the.*images/0.png, .*images/1.png"):
        compared(tmp_path, first, other)


def test_another_label_for_the_same_image_is_refused(tmp_path: Path) -> None:
    other = make_rows(seed=1)
    other[7]["label"] = CLASSES[other[7]["label"] == "NORMAL"]
    with pytest.raises(DataError, match=r"images/7.png: .* \(images that differ: 1\)"):
        compared(tmp_path, make_rows(), other)


@pytest.mark.parametrize(
    "metrics", [{"classes": ("NORMAL", "TB"), "positive": "TB"}, {"classes": CLASSES[::-1], "positive": "NORMAL"}]
)
def test_other_classes_are_refused(tmp_path: Path, metrics: Any) -> None:
    rows = make_rows()
    if "TB" in metrics["classes"]:
        rows = json.loads(json.dumps(rows).replace("PNEUMONIA", "TB"))
    runs = [write_run(tmp_path / "a", make_rows()), write_run(tmp_path / "b", rows, **metrics)]
    with pytest.raises(DataError, match="same classes"):
        compare(runs)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda folder: (folder / "predictions.csv").unlink(), "predictions.csv is missing"),
        (lambda folder: (folder / "metrics.json").write_text("{"), "damaged"),
        (lambda folder: (folder / "metrics.json").write_text("[]"), "has no classes, positive, threshold"),
        (lambda folder: (folder / "predictions.csv").write_text("path,label\na,b\n"), "has no column predicted_label"),
        (lambda folder: (folder / "predictions.csv").write_text("path\n"), "no image"),
        (
            lambda folder: (folder / "predictions.csv").write_text(
                "path,label,probability,predicted_label,error\na,NORMAL,7,NORMAL,\n"
            ),
            "between 0 and 1",
        ),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, break_it: Any, words: str) -> None:
    folder = write_run(tmp_path / "a", make_rows())
    break_it(folder)
    with pytest.raises(DataError, match=words):
        compare([folder, folder])


def test_two_runs_are_needed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least two"):
        compare([write_run(tmp_path / "a", make_rows())])


def test_of_three_runs_two_are_held_against_the_first_with_holms_correction(tmp_path: Path) -> None:
    found = compared(tmp_path, make_rows(), make_rows(seed=1), make_rows(seed=2, skill=0.3))
    bad = found.contrasts[1].differences["auroc"]
    assert bad.high < 0
    assert bad.adjusted == pytest.approx(2 * bad.p)
    assert found.contrasts[0].differences["auroc"].adjusted >= bad.adjusted


def test_three_classes_are_compared_by_accuracy_and_macro_auroc(tmp_path: Path) -> None:
    classes = ("A", "B", "C")
    runs = [
        write_run(tmp_path / "a", make_rows(classes=classes), classes),
        write_run(tmp_path / "b", make_rows(seed=1, skill=0.1, classes=classes), classes[::-1]),
    ]
    found = compare(runs, tmp_path / "out", resamples=50)
    differences = found.contrasts[0].differences
    assert list(differences) == ["accuracy", "auroc"]
    assert max(one.high for one in differences.values()) < 0
    assert math.isnan(found.thresholds[0])
    assert "ROC" not in (tmp_path / "out" / "comparison.html").read_text().replace("AUROC", "")


class Outline(HTMLParser):
    """Fails where elements are not nested, and collects tags and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag != "meta":
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_says_what_was_found_and_lets_no_name_do_harm(tmp_path: Path) -> None:
    rows = make_rows(seed=1)
    for row in rows:
        row["path"] = f"<script>alert({row['path']})</script>"
    runs = [write_run(tmp_path / "<b>", make_rows()), write_run(tmp_path / "_\udcff", rows)]
    found = compare(runs, tmp_path / "out", resamples=50)
    page = (tmp_path / "out" / "comparison.html").read_text()
    outline = Outline(page)
    assert "script" not in outline.tags
    assert "b" in outline.tags  # our own
    assert f"{found.contrasts[0].differences['auroc'].other:.3f}" in outline.text
    assert "40 images of 20 patients" in " ".join(outline.text.split())
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    values = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert values["contrasts"][0]["differences"]["accuracy"]["bootstrap"]
    with pytest.raises(UsageError, match="overwrite"):
        compare(runs, tmp_path / "out")
    compare(runs, tmp_path / "out", resamples=50, overwrite=True)
    assert (tmp_path / "out" / "comparison.html").read_text() == page


def test_the_command_line_prints_a_table_that_fits_the_screen(tmp_path: Path) -> None:
    runs = [str(write_run(tmp_path / f"{i}", make_rows(seed=i))) for i in range(3)]
    printed = CliRunner().invoke(app, ["compare", *runs, "--resamples", "20"], env={"COLUMNS": "80"})
    assert printed.exit_code == 0
    table = [line for line in printed.output.splitlines() if str(tmp_path) not in line]
    assert max(map(len, table)) <= 80
    assert sum(line.startswith("auroc ") for line in table) == 2
    rows = CliRunner().invoke(app, ["compare", *runs, "--resamples", "20", "--format", "csv"])
    assert len(list(csv.DictReader(rows.stdout.splitlines()))) == 10
    values = CliRunner().invoke(app, ["compare", *runs, "--resamples", "20", "--format", "json"])
    assert json.loads(values.stdout)["n"] == 40
    alone = CliRunner().invoke(app, ["compare", runs[0]])
    assert isinstance(alone.exception, PneumoscopeError)


def test_a_trained_run_and_its_evaluation_agree(run: Run, images: Path, tmp_path: Path) -> None:
    evaluate(images, run.model, tmp_path / "again", resamples=10)
    found = compare([run.folder, tmp_path / "again"], resamples=10)
    assert found.n == run.evaluation.n
    assert found.contrasts[0].differences["auroc"].value == pytest.approx(0)
