"""The function for Spark's `mapInPandas`, called as Spark calls it: with iterators of data frames."""

from __future__ import annotations

import pickle
from importlib.util import find_spec
from pathlib import Path

import pytest

from pneumoscope.cluster import predict_udf
from pneumoscope.cluster.spark import SCHEMA
from pneumoscope.cluster.worker import Options
from pneumoscope.errors import DataError
from pneumoscope.inference.predictor import load
from pneumoscope.training.train import Run

if any(find_spec(name) is None for name in ("pandas", "cloudpickle")):
    pytest.skip("needs pandas and cloudpickle, with which Spark sends functions", allow_module_level=True)

import cloudpickle
import pandas


def test_frames_of_paths_become_frames_of_predictions(images: Path, run: Run, tmp_path: Path) -> None:
    files = sorted((images / "test" / "NORMAL").iterdir())[:3]
    sent = cloudpickle.dumps(predict_udf(run.model, Options(patient_ids=True)))
    frames = [
        pandas.DataFrame({"path": [str(files[0]), str(tmp_path / "missing.png")], "age": [50.0, None]}),
        pandas.DataFrame({"path": []}),
        pandas.DataFrame({"path": list(map(str, files[1:])), "patient": [7, None]}),
    ]
    rows = pandas.concat(pickle.loads(sent)(iter(frames)))
    assert list(rows.columns) == [column.split()[0] for column in SCHEMA.split(", ")]
    assert list(rows["path"]) == [*frames[0]["path"], *frames[2]["path"]]
    expected = [each.probability for each in load(run.model).predict(files, progress=None)]
    assert list(rows["probability"].dropna()) == pytest.approx(expected, abs=1e-6)
    assert "missing.png" in rows["error"].iloc[1]
    assert (rows["age"].iloc[0], rows["patient"].iloc[2]) == (50, "7")
    assert rows["id"].is_unique


def test_a_frame_without_paths_is_refused(run: Run) -> None:
    with pytest.raises(DataError, match="no `path`"):
        next(predict_udf(run.model)(iter([pandas.DataFrame({"file": ["a.png"]})])))
