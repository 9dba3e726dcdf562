"""The intended use of a trained model: from a file, headers or names, through to warnings and refusals."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from dicom_files import dicom

import pneumoscope
from pneumoscope.datasets.phantoms import draw_phantom
from pneumoscope.decisions.decisions import read_decisions
from pneumoscope.decisions.scope import Scope
from pneumoscope.errors import DataError, UsageError
from pneumoscope.models.model_folder import load_model
from pneumoscope.models.pretrained import find_pretrained
from pneumoscope.training.train import Run


def write_dicom(path: Path, seed: int, pneumonia: bool, **elements: Any) -> Path:
    pixels = draw_phantom(seed, pneumonia=pneumonia, size=64).pixels
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dicom((pixels * 4095).astype("u2"), 12, **elements))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 DICOM images of children of two to eleven years, AP."""
    folder = tmp_path_factory.mktemp("children")
    for seed in range(20):
        label = ("NORMAL", "PNEUMONIA")[seed % 2]
        age = f"{2 + seed // 2:03d}Y"
        header = {"PatientID": f"p{seed}", "PatientAge": age, "ViewPosition": "AP", "BodyPartExamined": "CHEST"}
        write_dicom(folder / label / f"{seed}.dcm", seed, bool(seed % 2), **header)
    return folder


def test_a_model_is_meant_for_the_patients_that_it_was_trained_on_unless_a_file_says_otherwise(
    data: Path, tmp_path: Path
) -> None:
    use = tmp_path / "use.yaml"
    use.write_text("ages: [0, 15]\nviews: [AP, PA]\n")
    options: dict[str, Any] = {"recipe": "baseline", "epochs": 1, "size": 64, "audit": False}
    trained = {
        name: pneumoscope.train(data, tmp_path / name, intended_use=file, **options)
        for name, file in (("own", None), ("stated", str(use)))
    }
    scopes = {name: read_decisions(load_model(run.model)).scope for name, run in trained.items()}
    assert scopes["own"].ages is not None
    assert 2 <= scopes["own"].ages[0] < scopes["own"].ages[1] <= 11
    assert scopes["own"].views == ("AP",)
    assert scopes["stated"] == Scope((0.0, 15.0), ("AP", "PA"), ("CR",), ("CHEST",))
    card = (trained["stated"].model / "README.md").read_text()
    assert "patients of 0 to 15 years; view AP or PA; modality CR; body part CHEST." in card
    assert "use.yaml" not in (trained["stated"].model / "model.json").read_text()
    use.write_text("ages: [9, 1]\n")
    with pytest.raises(UsageError, match="the youngest patient comes before the oldest"):
        pneumoscope.train(data, tmp_path / "none", intended_use=str(use), **options)
    assert not (tmp_path / "none").exists()


def test_an_evaluation_counts_warnings_and_leaves_out_what_is_refused(
    run: Run, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "data"
    for label in ("NORMAL", "PNEUMONIA"):
        for seed in range(4):
            view = "LL" if seed == 0 else "PA"
            write_dicom(folder / label / f"{seed}.dcm", seed, label == "PNEUMONIA", ViewPosition=view)
    with caplog.at_level(logging.WARNING):
        evaluation = pneumoscope.evaluate(folder, run.folder, tmp_path / "all", resamples=20)
    line = "2 images have the warning 'outside the intended use: view LL (meant for frontal views)'."
    assert line in evaluation.notes
    assert [record.getMessage() for record in caplog.records].count(line) == 1
    kept = pneumoscope.evaluate(folder, run.folder, tmp_path / "kept", resamples=20, refuse_out_of_scope=True)
    assert (evaluation.n, kept.n) == (8, 6)
    with (tmp_path / "kept" / "predictions.csv").open(newline="") as file:
        rows = {Path(row["path"]).parent.name + Path(row["path"]).stem: row for row in csv.DictReader(file)}
    refused = rows["NORMAL0"]
    assert (refused["probability"], refused["decision"]) == ("", "")
    assert "view LL" in refused["error"]
    assert "view LL" in refused["warnings"]
    assert rows["NORMAL1"]["probability"]
    for path in folder.rglob("[123].dcm"):
        path.unlink()
    with pytest.raises(DataError, match=r"None of the 2 images has a prediction.*outside the intended use: view LL"):
        pneumoscope.evaluate(folder, run.folder, refuse_out_of_scope=True, resamples=20)


@pytest.mark.parametrize(
    ("name", "oldest", "views"), [("pneumonia-lite0", 5.0, ("AP",)), ("all-ages-lite0", 87.0, ("AP", "PA"))]
)
def test_a_pretrained_model_says_whom_it_is_meant_for_in_its_card_too(
    name: str, oldest: float, views: tuple[str, ...]
) -> None:
    folder = find_pretrained(name)
    assert read_decisions(load_model(folder)).scope == Scope((1.0, oldest), views, (), ("CHEST",))
    words = f"patients of 1 to {oldest:g} years; view {' or '.join(views)}; body part CHEST"
    assert words in (folder / "README.md").read_text(encoding="utf-8")
    assert json.loads((folder / "model.json").read_text())["decisions"]["scope"]["body_parts"] == ["CHEST"]
