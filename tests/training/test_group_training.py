"""Groups in training, in what is written about a model, and in adaptation."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pneumoscope
from pneumoscope.config import read_mapping
from pneumoscope.datasets.phantom_sets import write_phantoms
from pneumoscope.datasets.samples import Sample
from pneumoscope.decisions import groups
from pneumoscope.decisions.decisions import read_decisions, to_json
from pneumoscope.decisions.groups import Group, Images, find, read_groups
from pneumoscope.decisions.ood import OOD
from pneumoscope.errors import UsageError
from pneumoscope.images.dicom import Tags
from pneumoscope.models.model_folder import load_model
from pneumoscope.reports.model_card import write_model_card
from pneumoscope.training.data import Split
from pneumoscope.training.decisions import find_known, fit_decisions
from pneumoscope.training.run_folder import read_settings
from pneumoscope.training.settings import resolve_settings
from pneumoscope.training.train import Run

OPTIONS: dict[str, Any] = {"recipe": "baseline", "epochs": 2, "size": 64, "audit": False, "resamples": 20}
GROUPS = "children: {ages: [0, 17]}\nadults: {ages: [18, 120]}\n"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated radiographs of as many children as adults, of whom enough are validation images for own sets."""
    folder = write_phantoms(tmp_path_factory.mktemp("ages") / "images", count=180, seed=3, size=64)
    rows = []
    for part in sorted(each for each in folder.glob("*/*") if each.parent.name != "masks"):
        patients = sorted({each.stem[:-2] for each in part.glob("*.png")})
        for each in sorted(part.glob("*.png")):
            age = ("7", "45")[patients.index(each.stem[:-2]) % 2]
            rows.append(f"{each},{part.name},{each.stem[:-2]},{part.parent.name},{age}")
    path = folder.parent / "table.csv"
    path.write_text("\n".join(["path,label,patient,split,age", *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("groups") / "groups.yaml"
    path.write_text(GROUPS)
    return path


@pytest.fixture(scope="module")
def grouped(table: Path, file: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return pneumoscope.train(table, tmp_path_factory.mktemp("runs") / "grouped", groups=str(file), **OPTIONS)


def test_training_fits_groups_and_leaves_all_else_as_it_is(table: Path, grouped: Run, tmp_path: Path) -> None:
    plain = pneumoscope.train(table, tmp_path / "plain", **OPTIONS)
    before, after = (read_decisions(load_model(run.model)) for run in (plain, grouped))
    assert [group.name for group in after.groups] == ["children", "adults"]
    assert all(group.prediction_sets is not None for group in after.groups)
    assert sum(sum(group.images.values()) for group in after.groups) == before.calibration.images
    assert before.groups == ()
    for name in ("calibration", "threshold", "prediction_sets", "ood", "scope"):
        assert getattr(before, name) == getattr(after, name)
    test = table.parent / "images" / "test"
    first, second = (pneumoscope.load(run.model).predict(test) for run in (plain, grouped))
    assert first == second  # files alone tell no age


def test_what_is_written_about_a_model_names_its_groups(grouped: Run, file: Path) -> None:
    card = (grouped.model / "README.md").read_text()
    assert "adults (patients of 18 to 120 years)" in card
    assert "children (patients of 0 to 17 years)" in (grouped.folder / "report.html").read_text()
    assert {each.name for each in grouped.evaluation.subgroups if each.kind == "Group of the model"} == {
        "children", "adults",
    }  # fmt: skip
    config = read_mapping(grouped.folder / "config.yaml")
    assert not Path(config["decisions"]["groups"]).is_absolute() or Path(config["decisions"]["groups"]) == file
    assert Path(read_settings(grouped.folder / "config.yaml")["decisions"]["groups"]).resolve() == file.resolve()
    assert "groups.yaml" not in (grouped.model / "model.json").read_text()


def test_groups_without_a_validation_image_are_said_to_have_no_effect(
    images: Path, file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        run = pneumoscope.train(images, tmp_path / "run", groups=str(file), **OPTIONS)
    assert "`groups` has no effect: no validation image is known to belong to one." in caplog.messages
    assert any("Group adults: 0 validation images of NORMAL are too few" in line for line in run.evaluation.notes)


def test_settings_that_do_not_suit_groups_are_refused_before_anything_is_written(
    table: Path, file: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="isotonic does not follow the logits of `groups`"):
        pneumoscope.train(table, tmp_path / "none", groups=str(file), calibration="isotonic", **OPTIONS)
    with pytest.raises(UsageError, match="cannot be read as YAML"):
        pneumoscope.train(table, tmp_path / "none", groups=str(tmp_path / "missing.yaml"), **OPTIONS)
    assert not (tmp_path / "none").exists()


def test_an_adapted_model_keeps_slope_and_intercept_of_its_groups(table: Path, grouped: Run, tmp_path: Path) -> None:
    local = write_phantoms(tmp_path / "local", count=60, seed=9, size=64)
    files = [each for each in sorted(local.glob("*/*/*.png")) if each.parts[-3] != "masks"]
    rows = [f"{each},{each.parent.name},{each.stem[:-2]},{40 + i % 9}" for i, each in enumerate(files)]
    data = tmp_path / "local.csv"
    data.write_text("\n".join(["path,label,patient,age", *rows]) + "\n")
    adapted = pneumoscope.adapt(data, tmp_path / "adapted", model=grouped.folder, head=True, resamples=20)
    before, after = (read_decisions(load_model(each.model)).groups for each in (grouped, adapted))
    assert [(each.name, each.slope, each.intercept) for each in before] == [
        (each.name, each.slope, each.intercept) for each in after
    ]
    assert all(each.prediction_sets is None and each.ood is None for each in after)
    assert any(
        line.startswith("Groups (children, adults): slopes and intercepts stay") for line in adapted.evidence.changes
    )
    moved = replace(after[0], slope=2.0, images={"NORMAL": 30, "PNEUMONIA": 40})
    assert "probabilities of its own, from 30 NORMAL and 40 PNEUMONIA images" in groups.describe(moved)
    said = (
        "children (patients of 0 to 17 years): probabilities of its own, fitted before the adaptation to 30 NORMAL and"
    )
    assert said in groups.describe(moved, adapted=True)
    model = load_model(adapted.model)
    decisions = replace(read_decisions(model), groups=(moved,))
    write_model_card(tmp_path, replace(model, decisions=to_json(decisions)), adapted.evaluation)
    assert said in (tmp_path / "README.md").read_text()
    predicted = pneumoscope.load(adapted.model).predict(data)
    assert {each.group for each in predicted} == {"adults"}
    assert np.isfinite([each.logits[0] for each in predicted]).all()


def test_the_ensemble_of_a_cross_validation_fits_groups_to_the_logits_of_the_networks(
    table: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Images] = []

    def fit_more(group: Group, images: Images, *rest: Any) -> Group:
        seen.append(images)
        own = OOD("mahalanobis", 0.01, dict.fromkeys(("NORMAL", "PNEUMONIA"), (1.0,)))
        return replace(fit(group, images, *rest), slope=2.0, intercept=1.0, ood=own)

    fit = groups.fit
    monkeypatch.setattr(groups, "fit", fit_more)
    given: dict[str, Any] = {**OPTIONS, "folds": 2, "ensemble": True, "epochs": 1}
    plain = pneumoscope.cross_validate(table, tmp_path / "plain", **given)
    grouped = pneumoscope.cross_validate(table, tmp_path / "grouped", groups=str(file), **given)
    before, after = (read_decisions(load_model(run.folder / "model")) for run in (plain, grouped))
    assert before.calibration.slope == pytest.approx(after.calibration.slope)
    assert before.ood is not None
    assert after.ood is not None
    for name, distances in before.ood.distances.items():
        assert after.ood.distances[name] == pytest.approx(distances)
    assert [group.name for group in after.groups] == ["children", "adults"]
    assert sum(len(each.labels) for each in seen[-2:]) == grouped.evaluation.n  # the ensemble's come last


def test_faulty_groups_are_refused_before_a_cross_validation_writes(table: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read as YAML"):
        pneumoscope.cross_validate(table, tmp_path / "none", groups=str(tmp_path / "missing.yaml"), **OPTIONS)
    assert not (tmp_path / "none").exists()


def make_split(count: int, seed: int, adults: float, copies: int = 1) -> Split:
    """Images of children and adults in turn, whose one feature is the logit; that of adults is lower by a shift."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) // 2 % 2
    ages = np.where(np.arange(count) % 2, 45.0, 7.0)
    logits = 4.0 * labels - 2 + rng.normal(0, 2, count) - adults * (ages > 18)
    features = (logits[:, None, None] + rng.normal(0, 0.1, (count, copies, 1))).astype(np.float32)
    samples = [Sample(Path(f"{i}.png"), patient=f"p{i}", tags=Tags(age=age)) for i, age in enumerate(ages.tolist())]
    return Split(samples, labels, features, rng.normal(size=(count, copies, 4)).astype(np.float32))


@pytest.mark.parametrize("copies", [1, 3])
def test_decisions_of_groups_follow_from_their_images_and_those_of_all_images_stay(file: Path, copies: int) -> None:
    train, val = make_split(200, 1, 2.5), make_split(240, 2, 2.5, copies)
    weight, bias = np.ones((1, 1), np.float32), np.zeros(1, np.float32)
    plain, grouped = (
        fit_decisions(train, val, weight, bias, ("NORMAL", "PNEUMONIA"), resolve_settings({"path": "-", **given}, {}))
        for given in ({"calibration": "platt"}, {"calibration": "platt", "groups": str(file)})
    )
    children, adults = grouped.decisions.groups
    assert replace(grouped.decisions, groups=()) == plain.decisions
    assert set(plain.notes) <= set(grouped.notes)
    fitted = grouped.decisions.calibration
    even = [(-fitted.intercept / fitted.slope - each.intercept) / each.slope for each in (children, adults)]
    np.testing.assert_allclose(even, [0, -2.5], atol=0.5)  # the network's logit where either class is as probable
    assert adults.images == {"NORMAL": 60, "PNEUMONIA": 60}
    assert adults.prediction_sets is not None
    assert adults.ood is None  # 1% of false alarms needs 99 images
    assert any(
        note.startswith("Group adults: 60 validation images of NORMAL are too few for an OOD") for note in grouped.notes
    )


def test_images_of_a_public_dataset_belong_to_the_group_of_its_ages(file: Path) -> None:
    samples = [Sample(Path(f"{i}.png"), "NORMAL", metadata={"source": "kermany"}) for i in range(3)]
    samples.append(Sample(Path("a.png"), "NORMAL", tags=Tags(age=60.0), metadata={"source": "rsna"}))
    samples.append(Sample(Path("b.png"), "NORMAL", metadata={"source": "rsna"}))
    found = [find(read_groups(file), *facts) for facts in find_known(samples)]
    assert [group and group.name for group in found] == ["children", "children", "children", "adults", None]
