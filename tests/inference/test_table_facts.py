"""What a table says about an image reaches its prediction, and a label that the model does not know has a way out."""

from __future__ import annotations

from pathlib import Path

import pytest

import pneumoscope
from pneumoscope.datasets.reading import find_images
from pneumoscope.errors import DataError


@pytest.fixture
def table(images: Path, tmp_path: Path) -> Path:
    rows = [f"{path};{path.parent.name.title()};7;female;Lateral" for path in sorted(images.glob("test/*/*"))[::8]]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["Image Path;Label;Patient Age;Gender;View Position", *rows]), encoding="utf-8")
    return path


def test_age_sex_and_view_of_a_table_reach_the_prediction_and_its_warnings(table: Path) -> None:
    for prediction in pneumoscope.load("pneumonia-lite0").predict(find_images([table])):
        assert (prediction.age, prediction.sex, prediction.view) == (7, "F", "LATERAL")
        assert any("age 7 (meant for" in warning for warning in prediction.warnings)


def test_a_label_that_the_model_does_not_know_comes_with_the_map_that_would_help(table: Path) -> None:
    with pytest.raises(DataError, match=r"its label 'Normal' is not a class of the model.*`map='Normal=NORMAL'`"):
        pneumoscope.evaluate(table)
    naming = pneumoscope.Naming(map={"Normal": "NORMAL", "Pneumonia": "PNEUMONIA"})
    evaluation = pneumoscope.evaluate(table, naming=naming, resamples=20, cache=False)
    assert set(evaluation.classes) == {"NORMAL", "PNEUMONIA"}


def test_age_sex_and_view_of_a_table_are_subgroups_once(table: Path) -> None:
    lines = table.read_text(encoding="utf-8").splitlines()
    sexes = ["female", "male"]
    rows = [line.replace("female", sexes[i % 2]) for i, line in enumerate(lines[1:])]
    table.write_text("\n".join([lines[0], *rows]).replace("Normal;", "NORMAL;").replace("Pneumonia;", "PNEUMONIA;"))
    evaluation = pneumoscope.evaluate(table, resamples=20, cache=False)
    assert {subgroup.kind for subgroup in evaluation.subgroups} == {"Sex"}
