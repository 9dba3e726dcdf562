"""Images of a group get its logits, sets and limit wherever they are predicted, explained, measured or exported."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import dicom, image

import pneumoscope
from pneumoscope.datasets.reading import find_images
from pneumoscope.decisions.groups import Group
from pneumoscope.decisions.ood import OOD
from pneumoscope.decisions.prediction_sets import PredictionSets
from pneumoscope.decisions.scope import Scope
from pneumoscope.errors import ModelError, UsageError
from pneumoscope.exporting import export
from pneumoscope.inference.features import Source
from pneumoscope.training.train import Run

LABELS = ("NORMAL", "PNEUMONIA")
ADULTS = Group(
    "adults", Scope((18.0, 120.0)), 2.0, -1.5,
    PredictionSets(0.1, dict.fromkeys(LABELS, tuple(np.linspace(0.3, 0.99, 30).tolist()))),
    OOD("mahalanobis", 0.05, dict.fromkeys(LABELS, tuple(np.linspace(1, 40, 30).tolist()))),
    dict.fromkeys(LABELS, 30),
)  # fmt: skip


@pytest.fixture
def model(run: Run, tmp_path: Path) -> Path:
    """The model of `run` with a group."""
    folder = Path(shutil.copytree(run.model, tmp_path / "grouped"))
    change(folder, lambda decisions: decisions.update(groups=[json.loads(json.dumps(asdict(ADULTS)))]))
    return folder


@pytest.fixture
def table(images: Path, tmp_path: Path) -> Path:
    """Test images of patients whose ages are 5, 50 and unknown in turn."""
    path = tmp_path / "table.csv"
    files = sorted(images.glob("test/*/*"))
    rows = [f"{each},{each.parent.name},{('5', '50', '')[i % 3]}" for i, each in enumerate(files)]
    path.write_text("\n".join(["path,label,age", *rows]) + "\n")
    return path


def read(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "model.json").read_text())
    return values


def rewrite(folder: Path, values: dict[str, Any]) -> None:
    """Write a model's description with the right checksum."""
    values.pop("checksum", None)
    values["checksum"] = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    (folder / "model.json").write_text(json.dumps(values))


def change(folder: Path, how: Callable[[dict[str, Any]], object]) -> None:
    values = read(folder)
    how(values["decisions"])
    rewrite(folder, values)


def test_a_table_and_a_header_say_who_belongs_to_a_group_and_all_others_are_decided_as_before(
    run: Run, model: Path, table: Path
) -> None:
    sources: list[Source] = [*find_images([table]), *(dicom(image(), PatientAge=age) for age in ("045Y", "004Y"))]
    plain, grouped = (pneumoscope.load(each).predict(sources) for each in (run.model, model))
    ages = [each.age for each in grouped]
    assert {5.0, 50.0, None, 45.0, 4.0} == set(ages)
    for before, after in zip(plain, grouped, strict=True):
        assert before.group is None
        if before.age is None or before.age < 18:
            assert (after.group, after) == (None, before)
            continue
        assert after.group == "adults"
        np.testing.assert_allclose(after.logits, 2 * np.array(before.logits) - 1.5)
        assert after.ood_score is not None
        assert before.ood_score is not None
        assert after.ood_score < before.ood_score


def test_the_evidence_adds_up_to_the_logit_of_the_group(model: Path, table: Path) -> None:
    predictor = pneumoscope.load(model)
    for label, sign in (("PNEUMONIA", 1), ("NORMAL", -1)):
        for prediction in predictor.run(find_images([table]), maps=True, label=label):
            evidence = prediction.evidence
            assert evidence is not None
            assert evidence.logit == pytest.approx(sign * prediction.logits[0])
            assert evidence.cells.mean() + evidence.bias == pytest.approx(evidence.logit, abs=1e-3)


def test_options_reach_the_group(model: Path) -> None:
    adult = dicom(image(), PatientAge="045Y")
    given: tuple[dict[str, Any], ...] = ({}, {"alpha": 0.9, "false_alarms": 0.6}, {"ood": False})
    usual, strict, off = (pneumoscope.load(model, **options).predict(adult)[0] for options in given)
    assert usual.ood_score is not None
    assert strict.ood_score is not None
    assert strict.ood_score > usual.ood_score
    assert len(strict.prediction_set) <= len(usual.prediction_set)
    assert off.ood_score is None
    adjusted = pneumoscope.load(model, prevalence=0.01).predict(adult)[0]
    assert adjusted.prediction_set == usual.prediction_set
    assert adjusted.raw_probability is not None
    assert usual.raw_probability is not None
    assert 0 < adjusted.raw_probability < usual.raw_probability


def test_an_evaluation_measures_the_group_and_its_uncalibrated_figures_are_the_networks(
    run: Run, model: Path, table: Path, tmp_path: Path
) -> None:
    before, after = (
        pneumoscope.evaluate(table, folder, tmp_path / name, resamples=20, cache=False)
        for name, folder in (("before", run.model), ("after", model))
    )
    kinds = {(each.kind, each.name) for each in after.subgroups}
    assert ("Group of the model", "adults") in kinds
    assert not any(each.kind == "Group of the model" for each in before.subgroups)
    raw = before.uncalibrated or {name: before.metrics[name] for name in ("brier", "ece")}
    assert after.uncalibrated["brier"].value == pytest.approx(raw["brier"].value)
    with (tmp_path / "after" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["group"] for row in rows} == {"adults", ""}
    assert "group" not in (tmp_path / "before" / "predictions.csv").read_text().splitlines()[0].split(",")
    assert "adults (patients of 18 to 120 years)" in (tmp_path / "after" / "report.html").read_text()


def test_an_export_keeps_the_groups_and_says_how_to_apply_them(model: Path, table: Path, tmp_path: Path) -> None:
    import onnx

    export(tmp_path / "onnx", model, "onnx", table)
    card = (tmp_path / "onnx" / "README.md").read_text()
    assert "The groups of the model (adults) are applied by pneumoscope" in card
    metadata = {each.key: each.value for each in onnx.load(tmp_path / "onnx" / "model.onnx").metadata_props}
    (group,) = json.loads(metadata["pneumoscope.rules"])["groups"]
    assert (group["name"], group["slope"], group["intercept"]) == ("adults", 2.0, -1.5)
    adult = dicom(image(), PatientAge="045Y")
    first, second = (pneumoscope.load(each).predict(adult)[0] for each in (model, tmp_path / "onnx"))
    np.testing.assert_allclose(first.logits, second.logits, atol=1e-3)
    limits = pneumoscope.load(model)
    assert limits.decisions.ood is not None
    assert ADULTS.ood is not None
    assert group["ood_factor"] == pytest.approx(limits.decisions.ood.limit / ADULTS.ood.limit)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda group: group.update(name=""), "must be text of 1 to 60 characters"),
        (lambda group: group.update(scope={}), "restricts neither `ages` nor `views`"),
        (lambda group: group["scope"].update(modalities=["CR"]), "something other than ages and views"),
        (lambda group: group.update(slope=0), "slope"),
        (lambda group: group.update(intercept=float("nan")), "finite"),
        (lambda group: group.update(images={"CAT": 3}), "the images: their classes are"),
        (lambda group: group["prediction_sets"].update(scores={"NORMAL": [0.5]}), "the prediction sets: its classes"),
        (lambda group: group["prediction_sets"]["scores"]["NORMAL"].reverse(), "must be sorted"),
        (lambda group: group["ood"].update(distances={"CAT": [1.0], "DOG": [1.0]}), "the OOD detector: its classes"),
        (lambda group: group["ood"].update(distances={"NORMAL": [], "PNEUMONIA": []}), "OOD detector has no distances"),
    ],
)  # fmt: skip
def test_a_damaged_group_is_refused(how: Callable[[dict[str, Any]], object], message: str, model: Path) -> None:
    change(model, lambda decisions: how(decisions["groups"][0]))
    with pytest.raises(ModelError) as caught:
        pneumoscope.load(model)
    assert message in str(caught.value)


def test_groups_that_contradict_the_rest_are_refused(model: Path) -> None:
    values = read(model)

    def refuse(**changes: Any) -> str:
        rewrite(model, {**values, "decisions": {**values["decisions"], **changes}})
        with pytest.raises(ModelError) as caught:
            pneumoscope.load(model)
        return str(caught.value)

    assert "two groups have the name 'adults'" in refuse(groups=values["decisions"]["groups"] * 2)
    assert "need those of all images" in refuse(prediction_sets=None)
    assert "need those of all images" in refuse(ood=None)
    fitted = {"method": "isotonic", "knots": [[-1, 0.1], [1, 0.9]], "class_fractions": [0.5, 0.5]}
    assert "no isotonic calibration" in refuse(calibration=fitted)


def test_a_model_without_sets_refuses_another_alpha_for_its_groups_too(model: Path) -> None:
    own = json.loads(json.dumps(asdict(replace(ADULTS, prediction_sets=None))))
    change(model, lambda decisions: decisions.update(groups=[own], prediction_sets=None))
    with pytest.raises(UsageError, match="no prediction sets"):
        pneumoscope.load(model, alpha=0.2)
