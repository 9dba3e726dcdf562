"""Predictions of other programs: tables read, joined with labels, calibrated and measured."""

from __future__ import annotations

import csv
import json
import logging
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, recall_score, roc_auc_score
from typer.testing import CliRunner

from pneumoscope import DataError, UsageError, compare, evaluate_predictions
from pneumoscope.cli.main import app
from pneumoscope.datasets.joining import join_names

CLASSES = ("NORMAL", "PNEUMONIA")
N = 80


def simulate(seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(N) % 2)
    return y, 1 / (1 + np.exp(-(rng.normal(size=N) * 1.5 + 3 * y - 1)))


def write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def name(i: int) -> str:
    return f"{CLASSES[simulate()[0][i]]}/img{i:03}.jpeg"


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    y, _ = simulate()
    rows = [(f"test/{name(i)}", CLASSES[y[i]], f"P{i // 2}", "FM"[i % 3 > 0], 20 + i) for i in range(N)]
    return write(tmp_path / "truth.csv", ["path", "label", "patient", "sex", "age"], rows)


@pytest.fixture
def keras(tmp_path: Path) -> Path:
    return write(
        tmp_path / "keras.csv", ["Filename", "Prediction"], [(name(i), p) for i, p in enumerate(simulate()[1])]
    )


def test_a_table_of_predictions_is_measured_against_labels_of_another(keras: Path, truth: Path, tmp_path: Path) -> None:
    y, p = simulate()
    found = evaluate_predictions(keras, truth, tmp_path / "out", resamples=50)
    assert (found.n, found.patients, found.positive, found.threshold) == (N, N // 2, "PNEUMONIA", 0.5)
    assert found.metrics["auroc"].value == pytest.approx(roc_auc_score(y, p))
    assert found.metrics["brier"].value == pytest.approx(brier_score_loss(y, p))
    assert found.metrics["sensitivity"].value == pytest.approx(recall_score(y, p >= 0.5))
    assert found.notes == ()
    assert [part.name for part in found.subgroups if part.kind == "Sex"] == ["female", "male"]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["n"] == N
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["probability"]) for row in rows] == pytest.approx(p.tolist())
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "keras.csv (SHA-256" in page
    assert "--truth" in page


def test_no_network_and_no_torch_is_loaded(keras: Path, truth: Path, tmp_path: Path) -> None:
    code = (
        "import sys, pneumoscope; from pathlib import Path\n"
        f"pneumoscope.evaluate_predictions({str(keras)!r}, {str(truth)!r}, {str(tmp_path / 'out')!r}, resamples=5)\n"
        "print(sorted({'torch', 'onnxruntime', 'timm', 'openvino'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_labels_may_stand_in_the_same_table_as_from_scikit_learn(tmp_path: Path) -> None:
    y, p = simulate()
    rows = [(f"/home/me/{name(i)}", y[i], int(p[i] >= 0.3), p[i], f"P{i // 2}", "ab"[i % 2]) for i in range(N)]
    table = write(tmp_path / "sklearn.csv", ["path", "y_true", "y_pred", "y_prob", "patient_id", "site"], rows)
    found = evaluate_predictions(table, resamples=20)
    assert (found.classes, found.positive, found.patients) == (("0", "1"), "1", N // 2)
    below, above = max(p[p < 0.3]), min(p[p >= 0.3])
    assert below < found.threshold <= above  # the one that the predicted labels follow
    assert {part.kind for part in found.subgroups} == {"site"}  # columns of predictions are no subgroups


@pytest.mark.parametrize("form", ["german", "percent", "logit", "both", "array", "stem", "folders"])
def test_tables_of_many_tools_say_the_same(form: str, truth: Path, tmp_path: Path) -> None:
    p = simulate()[1]
    columns, delimiter = ["id", "score"], ","
    options: dict[str, Any] = {}
    names = [name(i) for i in range(N)]
    cells: list[list[Any]] = [[value] for value in p]
    if form == "german":
        columns, delimiter = ["Dateiname", "Wahrscheinlichkeit"], ";"
        cells = [[f"{value:.9f}".replace(".", ",")] for value in p]
    elif form == "percent":
        cells, options = [[100 * value] for value in p], {"scale": "percent"}
    elif form == "logit":
        cells, options = [[np.log(value / (1 - value))] for value in p], {"scale": "logit"}
    elif form == "both":
        columns, cells = ["image", "prob_normal", "prob_pneumonia"], [[1 - value, value] for value in p]
    elif form == "array":
        cells = [[f"[[{value}]]"] for value in p]
    elif form == "stem":
        names = [Path(each).stem for each in names]
    else:
        names = [f"C:\\data\\chest\\{each}".replace("/", "\\") for each in names]
    table = write(tmp_path / "table.csv", columns, [(a, *b) for a, b in zip(names, cells, strict=True)], delimiter)
    found = evaluate_predictions(table, truth, resamples=5, **options)
    with (tmp_path / "truth.csv").open() as file:
        y = [row["label"] == "PNEUMONIA" for row in csv.DictReader(file)]
    assert found.n == N
    assert found.metrics["brier"].value == pytest.approx(brier_score_loss(y, p), abs=1e-6)


def test_a_folder_of_classes_gives_the_labels(images: Path, tmp_path: Path) -> None:
    files = sorted((images / "test").rglob("*.png"))
    rows = [(file.name, 0.9 if file.parent.name == "PNEUMONIA" else 0.2) for file in files]
    table = write(tmp_path / "p.csv", ["file", "prob"], rows)
    found = evaluate_predictions(table, images, tmp_path / "out", resamples=5)
    assert (found.split, found.n, found.metrics["auroc"].value) == ("test", len(files), 1.0)
    assert "data:image/webp" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_what_is_missing_doubled_or_not_a_number_is_counted(
    truth: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[tuple[str, Any]] = [(name(i), p) for i, p in enumerate(simulate()[1])][3:]
    rows[4] = rows[4][0], "nan"
    rows[5] = rows[5][0], "n. a."
    table = write(tmp_path / "p.csv", ["file", "prob"], [*rows, rows[0], ("strange.png", 0.5)])
    found = evaluate_predictions(table, truth, tmp_path / "out", resamples=5)
    assert found.n == N - 5
    said = "\n".join(found.notes)
    assert "rows that repeat others are left out: 1" in said
    assert "1 prediction was left out, without a label: strange.png" in said
    assert "5 images without a usable prediction were left out" in said
    assert "the probability is 'n. a.', not a number" in said
    assert all(note in caplog.text for note in found.notes)
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8") as file:
        assert sum(bool(row["error"]) for row in csv.DictReader(file)) == 5


@pytest.mark.parametrize(
    ("columns", "rows", "options", "message"),
    [
        (["file", "prob"], [("x.png", 0.5)], {}, "none of its 1 images has a label"),
        (["file", "prob"], [(name(0), 0.5), (name(0), 0.6)], {}, "different predictions for one image"),
        (["file", "prob"], [(name(0), 1.5)], {}, "1.5 is not a probability"),
        (["file", "prob", "proba"], [(name(0), 0.5, 0.5)], {}, "may both hold the probability"),
        (["file", "predicted"], [(name(0), "NORMAL")], {}, "Predicted labels alone are not enough"),
        (["file", "a"], [(name(0), 0.5)], {"probability_column": "b"}, "no column 'b'"),
        (["file", "NORMAL", "PNEUMONIA"], [(name(0), 0.9, 0.9)], {}, "add up to 1.8"),
        (["file", "prob"], [(name(0), 0.5)], {"threshold": "youden"}, "other images than those that are measured"),
        (["file", "prob", "predicted_label"], [(name(0), 0.1, "PNEUMONIA"), (name(1), 0.9, "NORMAL")], {},
         "do not follow from one threshold"),
        (["file", "prob", "predicted_label"], [(name(0), 0.1, "COVID")], {}, "'COVID' is none of the classes"),
        (["file", "prob"], [(name(0), "")], {}, "none of the 80 images has a usable prediction"),
    ],
)  # fmt: skip
def test_unclear_tables_are_refused(
    columns: list[str], rows: list[Any], options: dict[str, Any], message: str, truth: Path, tmp_path: Path
) -> None:
    table = write(tmp_path / "p.csv", columns, rows)
    with pytest.raises((DataError, UsageError), match=message):
        evaluate_predictions(table, truth, **options)


def test_a_table_without_labels_asks_for_the_truth(keras: Path) -> None:
    with pytest.raises(UsageError, match="no column with the true labels") as caught:
        evaluate_predictions(keras)
    assert caught.value.parameter == "truth"


def test_three_classes_have_a_column_each(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    names, y = ["bacteria", "normal", "virus"], np.arange(60) % 3
    p = rng.dirichlet([1, 1, 1], 60) / 2 + np.eye(3)[y] / 2
    rows = [(f"{i}.png", names[y[i]], *p[i]) for i in range(60)]
    table = write(tmp_path / "p.csv", ["file", "label", *(f"prob_{each}" for each in names)], rows)
    found = evaluate_predictions(table, resamples=5)
    assert found.metrics["accuracy"].value == pytest.approx(np.mean(p.argmax(1) == y))
    renamed = write(tmp_path / "q.csv", ["file", "label", "a", "b", "c"], rows)
    with pytest.raises(DataError, match="the probability of bacteria or normal or virus"):
        evaluate_predictions(renamed)
    again = evaluate_predictions(renamed, resamples=5, probability_column="bacteria=a,normal=b,virus=c")
    assert again.metrics == found.metrics


def test_calibrated_probabilities_come_from_other_patients(truth: Path, tmp_path: Path) -> None:
    p = simulate()[1]
    odds = (p / (1 - p)) ** 4  # far too sure
    table = write(tmp_path / "p.csv", ["file", "prob"], [(name(i), each / (1 + each)) for i, each in enumerate(odds)])
    raw = evaluate_predictions(table, truth, resamples=5)
    found = evaluate_predictions(table, truth, tmp_path / "out", calibrate=True, resamples=5)
    assert found.metrics["brier"].value < raw.metrics["brier"].value == found.uncalibrated["brier"].value
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["uncalibrated_probability"]) for row in rows] == pytest.approx((odds / (1 + odds)).tolist())
    assert json.loads((tmp_path / "out" / "calibration.json").read_text())["images"] == N
    # Other labels of one patient change everybody else's probabilities, but not this patient's own.
    with truth.open() as file:
        labelled = list(csv.DictReader(file))
    for row in labelled:
        if row["patient"] == "P7":
            row["label"] = CLASSES[row["label"] == "NORMAL"]
    other = write(tmp_path / "other.csv", list(labelled[0]), [list(row.values()) for row in labelled])
    evaluate_predictions(table, other, tmp_path / "again", calibrate=True, resamples=5)
    with (tmp_path / "again" / "predictions.csv").open(encoding="utf-8") as file:
        changed = [a["patient"] for a, b in zip(rows, csv.DictReader(file), strict=True)
                   if a["probability"] != b["probability"]]  # fmt: skip
    assert "P7" not in changed
    assert len(changed) > N / 2


def test_calibration_that_would_harm_is_left_out_and_certain_errors_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    y, p = simulate()
    p = np.clip(np.round(p, 3), 0.02, 0.98)
    p[:4], p[int(np.argmin(y == 1))] = y[:4], 1.0
    rows = [(f"{i}.png", label, share) for i, (label, share) in enumerate(zip(y, p, strict=True))]
    table = write(tmp_path / "p.csv", ["file", "label", "prob"], rows)
    with caplog.at_level(logging.INFO, "pneumoscope"):
        found = evaluate_predictions(table, out=tmp_path / "out", calibrate=True, resamples=5)
    fitted = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert fitted["after"]["log_loss"] <= fitted["before"]["log_loss"] == fitted["tried"]["none"]
    certain = int(np.isin(p, (0, 1)).sum())
    wrong = int((np.abs(p - y) == 1).sum())
    assert any(
        f"{certain} of {N} images have a probability of exactly 0 or 1, {wrong} of them for the wrong class" in note
        for note in found.notes
    )
    assert f"log loss {fitted['before']['log_loss']:.3f}" in caplog.text
    assert wrong >= 1


def test_calibration_on_other_images_that_harms_is_pointed_out(tmp_path: Path) -> None:
    y, p = simulate()
    val = np.arange(N) < N // 2
    p = np.where(val, 1 - p, p)  # of the images that it is fitted on, the probabilities are upside down
    rows = [(f"{i}.png", y[i], p[i], "val" if val[i] else "test") for i in range(N)]
    found = evaluate_predictions(
        write(tmp_path / "p.csv", ["file", "label", "prob", "split"], rows), calibrate=True, resamples=5
    )
    assert any("Calibration raised the log loss of these images from" in note for note in found.notes)
    assert found.metrics["brier"].value > found.uncalibrated["brier"].value


def test_calibrated_predictions_are_measured_at_another_prevalence(keras: Path, truth: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"calibrate": True, "resamples": 5}
    found = evaluate_predictions(keras, truth, tmp_path / "out", prevalence=0.1, **options)
    adjusted = found.adjusted
    assert adjusted is not None
    assert adjusted.shares == {"NORMAL": 0.9, "PNEUMONIA": 0.1}
    assert adjusted.threshold == found.threshold == 0.5
    hit, right, ppv = (adjusted.metrics[name].value for name in ("sensitivity", "specificity", "ppv"))
    assert ppv == pytest.approx(0.1 * hit / (0.1 * hit + 0.9 * (1 - right)))
    assert adjusted.metrics["auroc"] == found.metrics["auroc"]
    assert hit < found.metrics["sensitivity"].value
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "--prevalence 0.1" in page
    assert "As if 10% of images were PNEUMONIA" in page
    assert found.metrics == evaluate_predictions(keras, truth, **options).metrics
    with pytest.raises(UsageError, match=r"prevalence: .*needs `calibrate`"):
        evaluate_predictions(keras, truth, prevalence=0.1)
    with pytest.raises(UsageError, match=r"not between 0 and 1"):
        evaluate_predictions(keras, truth, prevalence=1.0, **options)


def test_a_column_is_metadata_or_used_but_not_both(
    keras: Path, truth: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    y, p = simulate()
    rows = [(f"{i}.png", CLASSES[y[i]], p[i], "A") for i in range(N)]
    table = write(tmp_path / "p.csv", ["path", "label", "probability", "site"], rows)
    caplog.set_level(logging.INFO, "pneumoscope")
    evaluate_predictions(table, out=tmp_path / "first", resamples=5)
    assert "columns kept as metadata: site." in caplog.text
    assert "PNEUMONIA from probability" in caplog.text
    assert caplog.text.count("kept as metadata") == 1
    other = write(tmp_path / "q.csv", ["path", "probability"], [(f"{i}.png", p[i]) for i in range(N)])
    found = compare([tmp_path / "first", other], resamples=20)
    assert found.paired_by == "name"  # the table says nothing of the images' content


def test_a_rule_and_a_calibration_use_the_validation_split(tmp_path: Path) -> None:
    y, p = simulate()
    rows = [(f"{i}.png", y[i], p[i], "val" if i < N // 2 else "test") for i in range(N)]
    table = write(tmp_path / "p.csv", ["file", "label", "prob", "split"], rows)
    found = evaluate_predictions(table, threshold="sensitivity>=0.9", calibrate=True, resamples=5)
    assert (found.split, found.n) == ("test", N // 2)
    values = np.sort(p[: N // 2][y[: N // 2] == 1])
    plain = evaluate_predictions(table, threshold="sensitivity>=0.9", resamples=5)
    assert (values >= plain.threshold).mean() >= 0.9


def test_a_table_is_compared_with_an_evaluation_and_another_table(keras: Path, truth: Path, tmp_path: Path) -> None:
    evaluate_predictions(keras, truth, tmp_path / "first", resamples=5)
    y = simulate()[0]
    worse = write(tmp_path / "worse.csv", ["id", "prob"], [(Path(name(i)).stem, 0.5 + 0.1 * (i % 3)) for i in range(N)])
    found = compare([tmp_path / "first", worse], tmp_path / "out", resamples=20)
    difference = found.contrasts[0].differences["auroc"]
    scores = [0.5 + 0.1 * (i % 3) for i in range(N)]
    assert difference.other == pytest.approx(roc_auc_score(y, scores))
    assert compare([keras, worse], truth=truth, resamples=20).contrasts[0].differences["auroc"] == difference
    with pytest.raises(UsageError, match="need the true labels"):
        compare([keras, worse])
    with pytest.raises(UsageError, match="no effect"):
        compare([tmp_path / "first", tmp_path / "first"], truth=truth)


def test_the_command_refuses_options_that_have_no_effect(keras: Path, truth: Path, tmp_path: Path) -> None:
    def run(*words: object) -> Any:
        return CliRunner().invoke(app, ["evaluate", *map(str, words), "--out", str(tmp_path / "out")])

    assert "Report:" in run("--predictions", keras, "--truth", truth, "--resamples", 5).output
    for words in (
        ("--predictions", keras, "--alpha", "0.1"),
        (truth, "--calibrate"),
        (truth, "--predictions", keras),
        (),
    ):
        assert isinstance(run(*words).exception, UsageError)


@pytest.mark.parametrize(
    ("names", "others", "partners"),
    [
        (["a.png", "b"], ["b.jpg", "x/a.png"], (1, 0)),
        (["NORMAL/1.png", "PNEUMONIA/1.png"], ["d/PNEUMONIA/1.png", "d/NORMAL/1.png"], (1, 0)),
        (["NORMAL/1.png", "PNEUMONIA/1.png"], ["PNEUMONIA/1.png"], (None, 0)),
        (["1.2.840.5"], ["1.2.840.5.dcm", "1.2.840"], (0,)),
        (["a.png", "a"], ["a.png", "a.jpg"], (0, 1)),
        (["c"], ["a", "b"], (None,)),
    ],
)
def test_names_are_joined_from_their_end(names: list[str], others: list[str], partners: tuple[int | None, ...]) -> None:
    if names == ["a.png", "a"]:
        with pytest.raises(DataError, match="'a' fits 2 images"):
            join_names(names, others, "p.csv")
    else:
        assert join_names(names, others, "p.csv").partners == partners


def test_names_that_fit_the_same_image_are_refused() -> None:
    with pytest.raises(DataError, match="fit the same image"):
        join_names(["x/1.png", "y/1.png"], ["1.png"], "p.csv")


def test_images_are_not_divided_by_what_our_own_predictions_say_of_them(tmp_path: Path) -> None:
    y, p = simulate()
    columns = "path,label,probability,predicted_label,prediction_set,ood_score,decision,warnings,error,group,sex"
    rows = [
        (f"{i}.png", CLASSES[y[i]], p[i], CLASSES[int(p[i] >= 0.5)], CLASSES[y[i]], i / N,
         ("uncertain", CLASSES[y[i]])[i % 2], "", "", ("children", "adults")[i % 3 > 0], "FM"[i % 2])
        for i in range(N)
    ]  # fmt: skip
    found = evaluate_predictions(write(tmp_path / "predictions.csv", columns.split(","), rows), resamples=5)
    assert {part.kind for part in found.subgroups} == {"group", "Sex"}


def test_the_folds_of_a_cross_validation_are_neither_splits_nor_subgroups(tmp_path: Path) -> None:
    y, p = simulate()
    columns = "path,label,probability,predicted_label,prediction_set,ood_score,decision,warnings,error,repeat,fold,sex"
    rows = [
        (f"{i}.png", CLASSES[y[i]], p[i], CLASSES[int(p[i] >= 0.5)], "", "", CLASSES[y[i]], "", "", 1, i % 5 + 1,
         "FM"[i % 2])
        for i in range(N)
    ]  # fmt: skip
    found = evaluate_predictions(write(tmp_path / "predictions.csv", columns.split(","), rows), resamples=5)
    assert found.n == N
    assert {part.kind for part in found.subgroups} == {"Sex"}
    theirs = write(
        tmp_path / "theirs.csv", ["path", "label", "probability", "fold"], [("1", "a", 0, 1), ("2", "b", 1, 2)]
    )
    with pytest.raises(DataError, match="does the column 'fold' hold the split"):
        evaluate_predictions(theirs, positive="b")
