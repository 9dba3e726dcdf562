"""`cross_validate`: folds by patient, each a run of its own; predictions of unseen images only; one model of all."""

from __future__ import annotations

import csv
import json
import logging
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pneumoscope
from pneumoscope import CrossValidation, DataError, UsageError, cross_validate
from pneumoscope.cli import main as cli
from pneumoscope.datasets.reading import read_samples
from pneumoscope.inference.predictor import load
from pneumoscope.models.lineage import LocalImages, Parent, Step
from pneumoscope.models.model_folder import load_model
from pneumoscope.reports.model_card import write_model_card

FAST: dict[str, Any] = {"recipe": "head", "size": 128, "epochs": 20, "resamples": 50}


@pytest.fixture(scope="session")
def crossed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> CrossValidation:
    """Three folds, twice, with one model of all; tests read it and change nothing."""
    out = tmp_path_factory.mktemp("runs") / "crossval"
    return cross_validate(images, out, folds=3, repeats=2, ensemble=True, **FAST)


def read_table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def find_file(row: dict[str, str], folder: Path) -> Path:
    return (folder / row["path"]).resolve()


def test_each_image_is_predicted_once_a_repeat_by_a_model_that_did_not_learn_from_its_patient(
    crossed: CrossValidation, images: Path
) -> None:
    rows = read_table(crossed.folder / "predictions.csv")
    expected = {each.path.resolve() for each in read_samples(images) if each.split != "test"}
    for repeat in "12":
        own = [row for row in rows if row["repeat"] == repeat]
        assert Counter(find_file(row, crossed.folder) for row in own) == Counter(dict.fromkeys(expected, 1))
    for row in rows:
        run = crossed.folder / "folds" / f"repeat-{row['repeat']}-fold-{row['fold']}"
        learned = {each.patient for each in read_samples(run / "samples.csv") if each.split != "test"}
        assert row["patient"]
        assert row["patient"] not in learned


def test_a_split_test_is_not_even_read(crossed: CrossValidation, images: Path) -> None:
    apart = {each.path.name for each in read_samples(images) if each.split == "test"}
    for run in crossed.runs:
        assert apart.isdisjoint(Path(row["path"]).name for row in read_table(run / "samples.csv"))
    assert any("images of the split test stayed out of all folds" in note for note in crossed.evaluation.notes)


def test_thresholds_are_those_of_the_folds(crossed: CrossValidation) -> None:
    rows = read_table(crossed.folder / "predictions.csv")
    for run, fold in zip(crossed.runs, crossed.folds.folds, strict=True):
        metrics = json.loads((run / "metrics.json").read_text())
        assert metrics["threshold"] == fold.threshold
        assert metrics["metrics"]["auroc"]["value"] == pytest.approx(fold.metrics["auroc"])
        assert (metrics["split"], metrics["validation"]["split"]) == ("test", "val")
        assert metrics["validation"]["n"] == sum(row["split"] == "val" for row in read_table(run / "samples.csv"))
        for row in rows:
            if (row["repeat"], row["fold"]) == (str(fold.repeat), str(fold.fold)):
                assert (row["predicted_label"] == "PNEUMONIA") == (float(row["probability"]) >= fold.threshold)


def test_repeats_are_divided_differently(crossed: CrossValidation) -> None:
    parts = [
        {frozenset(row["path"] for row in read_table(run / "predictions.csv")) for run in runs}
        for runs in (crossed.runs[:3], crossed.runs[3:])
    ]
    assert parts[0] != parts[1]
    seeds = [load_model(run / "model").training["settings"]["seed"] for run in crossed.runs]
    assert seeds == [0, 0, 0, 1, 1, 1]


def test_the_ensemble_gives_the_mean_of_the_logits_of_the_folds(crossed: CrossValidation, images: Path) -> None:
    assert crossed.model is not None
    samples = [each for each in read_samples(images) if each.split == "test"]
    mean = np.mean([[each.logits for each in load(run).predict(samples)] for run in crossed.runs], axis=0)
    found = load(crossed.folder).predict(samples)
    assert np.allclose([each.logits for each in found], mean, atol=1e-4)
    evaluation = pneumoscope.evaluate(images, crossed.folder, resamples=20)
    assert (evaluation.split, evaluation.seen) == ("test", 0)


def test_the_ensemble_decides_by_predictions_of_unseen_images(crossed: CrossValidation) -> None:
    assert crossed.model is not None
    model = load_model(crossed.model)
    n = crossed.evaluation.n // 2
    assert sum(map(len, model.decisions["prediction_sets"]["scores"].values())) == n
    assert sum(map(len, model.decisions["ood"]["distances"].values())) == n
    assert sum(model.data["counts"]["train"].values()) == len(model.data["seen"]) == n
    assert model.training["ensemble"] == {"models": 6, "folds": 3, "repeats": 2}
    card = (crossed.model / "README.md").read_text(encoding="utf-8")
    assert "the mean of 6 heads" in card
    assert "seed 0 (the next one for each repeat)" in card
    settings = model.training["settings"]  # not those of a fold, whose data are a table with a split column
    assert settings["split_column"] is None
    assert settings["positive"] == "PNEUMONIA"
    assert "The ensemble itself was not measured" in card


def test_the_card_of_the_ensemble_says_what_decides(crossed: CrossValidation, tmp_path: Path) -> None:
    assert crossed.model
    card = (crossed.model / "README.md").read_text()
    assert "Out-of-fold predictions set the limit of the OOD detector" in card
    model = load_model(crossed.model)
    step = Step(Parent("ensemble", "a" * 64), "shift", data=LocalImages("f" * 64, {"NORMAL": 9, "PNEUMONIA": 9}, 18))
    write_model_card(tmp_path, replace(model, lineage=(step,)), crossed.evaluation)
    card = (tmp_path / "README.md").read_text()
    assert "The model was adapted to these images; each was predicted by a model that was adapted to other" in card


def test_models_show_tells_an_ensemble_from_a_single_network(
    crossed: CrossValidation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["pneumoscope", "models", "show", str(crossed.model)])
    with pytest.raises(SystemExit):
        cli.main()
    lines = capsys.readouterr().out.splitlines()
    assert "ensemble: its head is the mean of 6 heads (cross-validation with 3 folds, 2 times)" in lines
    assert not any("0 images to validate" in line for line in lines)


def test_the_report_shows_the_folds_and_their_means(crossed: CrossValidation) -> None:
    page = crossed.report.read_text(encoding="utf-8")
    assert '<h2 id="folds">' in page
    assert "Mean over the folds" in page
    assert "pneumoscope crossval --config" in page
    mean = json.loads((crossed.folder / "metrics.json").read_text())["threshold"]
    assert f"{mean:.4g} (mean)" in page
    assert "(model)" not in page
    assert "each image was judged by the threshold of its own fold" in page
    values = json.loads((crossed.folder / "crossval.json").read_text())
    assert len(values["folds"]) == len(read_table(crossed.folder / "folds.csv")) == 6
    assert values["means"]["auroc"]["low"] <= values["means"]["auroc"]["value"] <= values["means"]["auroc"]["high"]


def test_the_result_shows_in_a_notebook(crossed: CrossValidation) -> None:
    assert len(crossed.to_rows()) == 6
    assert "<table>" in crossed._repr_html_()
    assert repr(crossed).startswith("CrossValidation(")


def test_the_audit_is_said_too_and_names_the_data_of_the_user(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(images, tmp_path / "data", ignore=shutil.ignore_patterns("masks", "truth.csv"))
    for path in (tmp_path / "data").glob("*/PNEUMONIA/*.png"):
        Image.open(path).convert("L").resize((150, 150)).save(path)  # the size tells the class
    result = cross_validate(tmp_path / "data", tmp_path / "out", folds=2, **FAST)
    page = result.report.read_text(encoding="utf-8")
    assert "alone predicts the class: AUROC" in caplog.text
    assert "alone predicts the class: AUROC" in page
    for text in (caplog.text, page):
        assert f"pneumoscope audit {tmp_path / 'data'}" in text
        assert "repeat-1-fold-1.csv" not in text


def test_workers_change_nothing(crossed: CrossValidation, images: Path, tmp_path: Path) -> None:
    other = cross_validate(images, tmp_path / "out", folds=3, repeats=2, workers=2, cache=False, **FAST)
    assert other.folds == crossed.folds
    assert other.evaluation.metrics == crossed.evaluation.metrics
    assert not (tmp_path / "out" / "cache").exists()


def test_a_finished_fold_is_kept_and_a_killed_one_is_taken_up(
    crossed: CrossValidation, tmp_path: Path, images: Path
) -> None:
    out = tmp_path / "out"
    first = cross_validate(images, out, folds=2, **FAST)
    kept, killed = first.runs
    weights = (kept / "model" / "weights.safetensors").stat().st_mtime_ns
    shutil.rmtree(killed / "model")
    for path in (killed / "metrics.json", out / "metrics.json", out / "report.html"):
        path.unlink()
    with pytest.raises(UsageError, match=r"holds an unfinished run. Pass `resume=True` to continue it"):
        cross_validate(images, out, folds=2, **FAST)
    again = cross_validate(out=out, resume=True)
    assert (kept / "model" / "weights.safetensors").stat().st_mtime_ns == weights
    assert again.folds == first.folds
    assert again.report.exists()


def test_changed_data_and_settings_are_refused(tmp_path: Path, images: Path) -> None:
    data = tmp_path / "images"
    shutil.copytree(images, data)
    out = tmp_path / "out"
    cross_validate(data, out, folds=2, **FAST)
    with pytest.raises(UsageError, match=r"folds: the cross-validation in .* began with 2, not 3"):
        cross_validate(out=out, folds=3, resume=True)
    with pytest.raises(UsageError, match=r"lr: the run in .* began with"):
        cross_validate(out=out, lr=0.5, resume=True)
    changed = next(path for path in sorted((data / "train").rglob("*.png")))
    with Image.open(changed) as image:
        turned = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    turned.save(changed)
    with pytest.raises(DataError, match="1 image has changed since the run"):
        cross_validate(out=out, resume=True)
    changed.unlink()
    with pytest.raises(DataError, match="the data have changed since the cross-validation"):
        cross_validate(out=out, resume=True)


def test_an_unreadable_image_gets_a_row_with_its_error(tmp_path: Path, images: Path) -> None:
    data = tmp_path / "images"
    shutil.copytree(images, data)
    broken = min((data / "train").rglob("*.png"))
    broken.write_bytes(broken.read_bytes()[:200])
    found = cross_validate(data, tmp_path / "out", folds=2, include_test=True, **FAST)
    rows = read_table(tmp_path / "out" / "predictions.csv")
    assert len(rows) == 48
    assert [Path(row["path"]).name for row in rows if row["error"]] == [broken.name]
    assert found.evaluation.n == 47


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ensemble": True, "recipe": "finetune"}, "ensemble: fine-tuned networks differ from fold to fold"),
        ({"test_fraction": 0.2}, "test_fraction: no effect: the folds are the test splits"),
        ({"folds": 1}, "folds: must be greater than or equal to 2, found 1"),
        ({"repeats": 0}, "repeats: must be greater than or equal to 1"),
        ({"resume": True}, "no run to resume"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(
    options: dict[str, Any], message: str, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        cross_validate(images, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_what_happens_to_given_splits_is_said(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["crossval", str(images), "--folds", "2", "--out", str(tmp_path / "out"), "--size", "128", "--epochs", "5"]
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["pneumoscope", *line, "--resamples", "20"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr()
    assert not ended.value.code
    assert "The images of train and val are divided into folds, whatever split they are in." in shown.err
    assert "stay out: no fold sees them" in shown.err
    assert "--include-test" in shown.err
    assert "2 folds: " in shown.out
    assert max(map(len, shown.out.splitlines()[:14])) <= 80


def test_a_dataset_that_is_all_test_is_explained(tmp_path: Path, images: Path) -> None:
    table = tmp_path / "images.csv"
    rows = [f"{path},{path.parent.name},test" for path in sorted((images / "test").rglob("*.png"))]
    table.write_text("\n".join(["path,label,split", *rows]))
    with pytest.raises(DataError, match=r"all .* images are in the split test, which stays out"):
        cross_validate(table, tmp_path / "out")


def test_a_patient_who_is_in_test_too_is_a_leak(tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = sorted(read_samples(images), key=lambda each: str(each.split))
    first = samples[0]
    assert first.split == "test"
    shared = next(each.patient for each in samples if each.split == "train" and each.label == first.label)
    table = tmp_path / "images.csv"
    moved = [replace(first, patient=shared), *samples[1:]]
    rows = [f"{each.path},{each.label},{each.patient},{each.split}" for each in moved]
    table.write_text("\n".join(["path,label,patient,split", *rows]))
    caplog.set_level(logging.WARNING, "pneumoscope")
    cross_validate(table, tmp_path / "out", folds=2, **FAST)
    assert any("1 patient of the split test" in message for message in caplog.messages)
