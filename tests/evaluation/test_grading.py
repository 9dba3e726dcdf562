"""Submissions are ranked against hidden labels; ties are said, bad files named, and no label of one image is shown."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score
from typer.testing import CliRunner

from pneumoscope import DataError, UsageError, grade
from pneumoscope.cli.main import app
from pneumoscope.evaluation.intervals.ranks import find_better, find_places, find_ties

CLASSES = ("NORMAL", "PNEUMONIA")
N = 60
LABELS = np.random.default_rng(0).permutation(np.arange(N) % 2)


def write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def predict(skill: float, seed: int) -> Any:
    return 1 / (1 + np.exp(-np.random.default_rng(seed).normal(size=N) - skill * (LABELS - 0.5)))


def submit(folder: Path, name: str, probabilities: Sequence[Any], prefix: str = "", suffix: str = ".png") -> Path:
    rows = [(f"{prefix}img{i:02}{suffix}", p) for i, p in enumerate(probabilities)]
    return write(folder / f"{name}.csv", ["id", "probability"], rows)


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    rows = [(f"img{i:02}.png", CLASSES[LABELS[i]], f"P{i // 2}") for i in range(N)]
    return write(tmp_path / "truth.csv", ["path", "label", "patient"], rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "submissions"
    folder.mkdir()
    for name, skill, seed in (("ann", 4.0, 1), ("ben", 3.6, 2), ("cid", 0.0, 3)):
        submit(folder, name, predict(skill, seed))
    return folder


def test_submissions_are_ranked_by_the_metric_and_what_cannot_be_told_apart_is_said(folder: Path, truth: Path) -> None:
    found = grade(truth, [folder], resamples=300)
    aurocs = {
        f"{name}.csv": roc_auc_score(LABELS, predict(skill, seed))
        for name, skill, seed in (("ann", 4.0, 1), ("ben", 3.6, 2), ("cid", 0.0, 3))
    }
    assert {each.submission: each.value.value for each in found.ranked} == pytest.approx(aurocs, abs=6e-4)
    assert [each.submission for each in found.ranked] == sorted(aurocs, key=lambda name: -aurocs[name])
    assert (found.n, found.patients, found.metric) == (N, N // 2, "auroc")
    assert found.ties == ((1, 2),)
    assert found.describe_ties() == ["Places 1 to 2 cannot be distinguished."]
    assert [(each.best_place, each.worst_place) for each in found.ranked] == [(1, 2), (1, 2), (3, 3)]
    assert not found.not_ranked


def test_a_lower_brier_score_is_better(folder: Path, truth: Path) -> None:
    found = grade(truth, [folder], metric="brier", resamples=100)
    values = [each.value.value for each in found.ranked]
    assert values == sorted(values)
    assert found.ranked[-1].submission == "cid.csv"
    assert values[-1] == pytest.approx(brier_score_loss(LABELS, predict(0, 3)), abs=6e-4)


def test_a_bad_submission_is_named_with_the_reason_and_stops_no_other(folder: Path, truth: Path) -> None:
    good = predict(3, 9).tolist()
    submit(folder, "missing", good[:-4])
    submit(folder, "unknown", [*good, 0.5])
    submit(folder, "repeated", good)
    with (folder / "repeated.csv").open("a") as file:
        file.write("img03.png,0.5\n")
    submit(folder, "percent", [100 * p for p in good])
    submit(folder, "text", [*good[:5], "maybe", *good[6:]])
    (folder / "empty.csv").write_text("")
    (folder / "binary.csv").write_bytes(bytes(range(256)))
    write(folder / "labels.csv", ["id", "answer"], [(f"img{i:02}.png", "PNEUMONIA") for i in range(N)])
    found = grade(truth, [folder, folder / "absent.csv"], resamples=50)
    reasons = {each.submission: each.reason for each in found.not_ranked}
    assert {each.submission for each in found.ranked} == {"ann.csv", "ben.csv", "cid.csv"}
    assert reasons["missing.csv"].startswith("Missing: 4 images of 60, such as img56.png")
    assert reasons["unknown.csv"].startswith("Unknown: 1 image, such as img60.png")
    assert reasons["repeated.csv"].startswith("Repeated: 2 rows, such as img03.png")
    assert "is not a probability" in reasons["percent.csv"]
    assert reasons["text.csv"] == "Not a number: the probability in 1 row, such as 'maybe' in line 7."
    assert "empty" in reasons["empty.csv"]
    assert "no column" in reasons["labels.csv"]
    assert "No such file" in reasons["absent.csv"]
    assert len(reasons) == 9


def test_the_page_names_flags_of_its_command(folder: Path, truth: Path, tmp_path: Path) -> None:
    write(folder / "labels.csv", ["id", "answer"], [(f"img{i:02}.png", "PNEUMONIA") for i in range(N)])
    (bad,) = grade(truth, [folder], tmp_path / "out", resamples=50).not_ranked
    assert "`probability_column" in bad.reason
    page = (tmp_path / "out" / "grading.html").read_text(encoding="utf-8")
    assert "<code>--probability-column" in page
    assert "probability_column" not in page


def test_a_cell_left_empty_out_of_distribution_is_explained(folder: Path, truth: Path) -> None:
    rows = [(f"img{i:02}.png", f"{p:.6f}", "NORMAL") for i, p in enumerate(predict(3, 9))]
    rows[5] = ("img05.png", "", "out_of_distribution")
    write(folder / "ours.csv", ["path", "probability", "decision"], rows)
    (bad,) = grade(truth, [folder], resamples=50).not_ranked
    assert "an empty cell (out of distribution; `pneumoscope predict --no-ood` gives it a probability)" in bad.reason


def test_all_that_is_wrong_with_one_file_is_said_at_once(folder: Path, truth: Path) -> None:
    submit(folder, "poor", [*predict(3, 9)[:-1], "nan"], prefix="")
    with (folder / "poor.csv").open("a") as file:
        file.write("other.png,0.1\n")
    (bad,) = grade(truth, [folder], resamples=50).not_ranked
    assert "Unknown: 1 image" in bad.reason
    assert "Not a number: the probability in 1 row" in bad.reason


def test_submissions_like_another_are_pointed_out(folder: Path, truth: Path) -> None:
    submit(folder, "copy", predict(4, 1), suffix="")
    submit(folder, "disguise", predict(4, 1) ** 2)
    remarks = {each.submission: each.remarks for each in grade(truth, [folder], resamples=50).ranked}
    assert remarks["ann.csv"][0] == "Identical to copy.csv."
    assert remarks["copy.csv"][0] == "Identical to ann.csv."
    assert "the same order of all images as ann.csv, copy.csv" in remarks["disguise.csv"][0]
    assert remarks["ben.csv"] == ()


def test_equal_values_share_a_place(folder: Path, truth: Path) -> None:
    submit(folder, "copy", predict(4, 1))
    places = {each.submission: each.place for each in grade(truth, [folder], resamples=50).ranked}
    assert places["ann.csv"] == places["copy.csv"]
    assert sorted(places.values()) in ([1, 1, 3, 4], [1, 2, 2, 4])


def test_the_output_does_not_tell_the_class_of_an_image(tmp_path: Path, folder: Path) -> None:
    hidden = tmp_path / "hidden"
    for i in range(N):
        place = hidden / CLASSES[LABELS[i]] / f"img{i:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"\x89PNG\r\n\x1a\n")
    submit(folder, "guess", predict(2, 5), prefix="NORMAL/")
    both = [(f"{name}/img{i:02}.png", 0.5) for i in range(N) for name in CLASSES]
    write(folder / "probe.csv", ["id", "probability"], both)
    submit(folder, "part", predict(2, 5)[:9])
    found = grade(hidden, [folder], tmp_path / "out", resamples=50)
    assert "guess.csv" in {each.submission for each in found.ranked}
    reasons = {each.submission: each.reason for each in found.not_ranked}
    assert reasons["probe.csv"] == "Repeated: 120 rows, such as img00.png, img01.png, img02.png."
    for path in (tmp_path / "out").iterdir():
        text = path.read_text(encoding="utf-8")
        assert not [i for i in range(N) if f"{CLASSES[LABELS[i]]}/img{i:02}" in text]
        assert '<svg class="plot' not in text  # a curve gives the labels away to whoever knows the probabilities
    numbers = json.loads((tmp_path / "out" / "grading.json").read_text())["ranked"][0]["metrics"].values()
    assert all(value is None or value == round(value, 3) for value in numbers)


def test_only_the_test_split_is_graded_and_rows_of_other_splits_are_no_fault(tmp_path: Path, folder: Path) -> None:
    rows = [(f"img{i:02}.png", CLASSES[LABELS[i]], "train" if i < 20 else "test") for i in range(N)]
    truth = write(tmp_path / "truth.csv", ["path", "label", "split"], rows)
    assert grade(truth, [folder], resamples=50).n == N - 20
    assert grade(truth, [folder], split="all", resamples=50).n == N
    with pytest.raises(UsageError, match="no split 'val'"):
        grade(truth, [folder], split="val")


def test_more_than_two_classes_are_ranked(tmp_path: Path) -> None:
    names, labels = ("BACTERIA", "NORMAL", "VIRUS"), np.arange(N) % 3
    truth = write(tmp_path / "truth.csv", ["path", "label"], [(f"{i}.png", names[labels[i]]) for i in range(N)])
    tables = []
    for name, skill in (("one", 3.0), ("two", 0.5)):
        scores = np.exp(np.random.default_rng(1).normal(size=(N, 3)) + skill * np.eye(3)[labels])
        shares = scores / scores.sum(1, keepdims=True)
        rows = [(f"{i}.png", *shares[i]) for i in range(N)]
        tables.append(write(tmp_path / f"{name}.csv", ["id", *(f"prob_{each}" for each in names)], rows))
    found = grade(truth, tables, resamples=50)
    assert [each.submission for each in found.ranked] == ["one.csv", "two.csv"]
    assert "Patients are unknown" in found.notes[0]


def test_the_command_writes_text_csv_json_and_a_page(folder: Path, truth: Path, tmp_path: Path) -> None:
    submit(folder, "a submission with quite a long name of more than forty letters", predict(2, 7))
    submit(folder, "missing", predict(2, 7)[:-1])
    line = ["grade", str(truth), str(folder), "--resamples", "50"]
    done = CliRunner().invoke(app, [*line, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    printed = [each for each in done.stdout.splitlines() if not each.startswith("Page: ")]
    assert max(map(len, printed)) <= 80
    assert re.search(r"^Places 1 to \d cannot be distinguished\.$", done.stdout, re.MULTILINE)
    assert "missing.csv: Missing: 1 image of 60" in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["grading.csv", "grading.html", "grading.json"]
    rows = list(csv.DictReader(CliRunner().invoke(app, [*line, "--format", "csv"]).stdout.splitlines()))
    assert [row["place"] for row in rows] == ["1", "2", "3", "4", ""]
    assert rows[-1]["not_ranked"].startswith("Missing")
    values = json.loads(CliRunner().invoke(app, [*line, "--format", "json"]).stdout)
    assert values["ties"][0][0] == 1
    page = (tmp_path / "out" / "grading.html").read_text(encoding="utf-8")
    assert "Missing: 1 image of 60" in page
    assert "Not ranked" in page


def test_without_any_submission_that_can_be_used_the_command_says_why(truth: Path, tmp_path: Path) -> None:
    bad = submit(tmp_path, "bad", predict(2, 1)[:3])
    with pytest.raises(DataError, match="No submission can be ranked") as found:
        grade(truth, [bad])
    assert found.value.exit_code == 3
    with pytest.raises(UsageError, match="no metric is named"):
        grade(truth, [bad], metric="luck")
    with pytest.raises(UsageError, match="given twice"):
        grade(truth, [bad, bad])
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UsageError, match="no table in this folder"):
        grade(truth, [tmp_path / "nothing"])


def test_equally_good_models_are_seldom_told_apart_and_very_different_ones_always() -> None:
    rng = np.random.default_rng(0)
    alarms, n = 0, 100
    for _ in range(100):
        correct = rng.random((5, n)) < np.array([0.8, 0.8, 0.8, 0.8, 0.3])[:, None]
        weights = rng.multinomial(n, np.full(n, 1 / n), size=300)
        better = find_better(correct.mean(1), correct @ weights.T / n)
        alarms += bool(better[:4, :4].any())
        assert better[:4, 4].all()
    assert alarms <= 11  # of 100 at 5%: more with probability 0.004


def test_places_and_ties_follow_from_what_is_told_apart() -> None:
    better = np.zeros((4, 4), bool)
    better[0, 2] = better[0, 3] = better[1, 3] = True
    best, worst = find_places(better)
    assert (best.tolist(), worst.tolist()) == ([1, 1, 2, 3], [2, 3, 4, 4])
    assert find_ties(better) == [(0, 1), (1, 2), (2, 3)]
