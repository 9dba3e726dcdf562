"""A folder answered once, as mercure calls its modules."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_files import dicom

from pneumoscope.cli import main as cli
from pneumoscope.datasets.phantoms import draw_phantom
from pneumoscope.dicomnet.mercure import answer_folder
from pneumoscope.errors import DataError, UsageError
from pneumoscope.training.train import Run


@pytest.fixture
def folders(tmp_path: Path, run: Run) -> tuple[Path, Path]:
    """What mercure prepares: two images of a series, the task with its settings, and an empty folder."""
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    target.mkdir()
    for number in (1, 2):
        pixels = draw_phantom(number, pneumonia=number == 2, size=128).pixels
        image = dicom(
            np.rint(pixels * 4095).astype(np.uint16), SOPInstanceUID=f"1.2.3.{number}", SeriesInstanceUID="1.2.3",
            StudyInstanceUID="1.2",
        )  # fmt: skip
        (source / f"1.2.3#1.2.3.{number}.dcm").write_bytes(image)
    write_task(source, {"model": str(run.model), "kinds": ["sr", "sc"]})
    return source, target


def write_task(folder: Path, settings: dict[str, Any]) -> None:
    step = {"module_name": "pneumoscope", "module_config": {}, "settings": settings}
    (folder / "task.json").write_text(json.dumps({"id": "7", "info": {"action": "both"}, "process": step}))


def test_results_and_a_summary_are_where_mercure_looks_for_them(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = folders
    monkeypatch.setenv("MERCURE_IN_DIR", str(source))
    monkeypatch.setenv("MERCURE_OUT_DIR", str(target))
    monkeypatch.setattr("sys.argv", ["pneumoscope", "dicom", "mercure"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert capsys.readouterr().out == "4 results of 2 files\n"
    summary = json.loads((target / "result.json").read_text())
    assert [each["sop_uid"] for each in summary["images"]] == ["1.2.3.1", "1.2.3.2"]
    assert sum(summary["decisions"].values()) == 2
    files = {path.name for path in target.glob("*.dcm")}
    assert len(files) == 4
    for name in files:
        found = pydicom.dcmread(target / name)
        assert name == f"{found.SeriesInstanceUID}#{found.SOPInstanceUID}.dcm"
        assert found.StudyInstanceUID == "1.2"
    assert "p1" not in (target / "result.json").read_text()  # the patient


def test_settings_of_the_task_are_applied_and_only_if_asked_does_it_notify(
    folders: tuple[Path, Path], run: Run
) -> None:
    source, target = folders
    for threshold, expected in ((1e-9, True), (1 - 1e-9, False)):
        settings = {"model": str(run.model), "kinds": ["sr"], "threshold": threshold, "notify": True}
        write_task(source, settings)
        answers = answer_folder(source, target)
        assert {answer.prediction.predicted_label for answer in answers} == {"PNEUMONIA" if expected else "NORMAL"}
        notification = json.loads((target / "result.json").read_text())["__mercure_notification"]
        decided = {answer.prediction.decision for answer in answers}
        assert notification["requested"] == ("PNEUMONIA" in decided)
    write_task(source, settings | {"threshold": 1e-9, "notify": False})
    answer_folder(source, target)
    assert not json.loads((target / "result.json").read_text())["__mercure_notification"]["requested"]


def test_a_task_of_several_steps_uses_its_own(folders: tuple[Path, Path], run: Run) -> None:
    source, target = folders
    steps = [
        {"module_name": "other", "settings": {"sigma": 7}},
        {"module_name": "Pneumoscope-2", "settings": {"model": str(run.model), "kinds": ["sr"]}},
    ]
    (source / "task.json").write_text(json.dumps({"process": steps}))
    assert [len(answer.results) for answer in answer_folder(source, target)] == [1, 1]


def test_a_file_at_fault_is_named_and_does_not_stop_the_others(folders: tuple[Path, Path]) -> None:
    source, target = folders
    (source / "1.2.3#0.dcm").write_bytes(b"rubbish")
    answers = answer_folder(source, target)
    assert [bool(answer.prediction.error) for answer in answers] == [True, False, False]
    summary = json.loads((target / "result.json").read_text())
    assert summary["decisions"]["error"] == 1
    assert "not a" in summary["images"][0]["error"] or "unknown" in summary["images"][0]["error"]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("{", "cannot be read as JSON"),
        (json.dumps({"process": {"settings": {"treshold": 0.5}}}), "treshold"),
        (json.dumps({"process": {"settings": {"kinds": ["pdf"]}}}), "kinds"),
    ],
)
def test_a_wrong_task_is_refused(folders: tuple[Path, Path], task: str, message: str) -> None:
    source, target = folders
    (source / "task.json").write_text(task)
    with pytest.raises((DataError, UsageError)) as refused:
        answer_folder(source, target)
    assert message in f"{refused.value.parameter}: {refused.value}"


def test_nothing_to_answer_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MERCURE_IN_DIR", raising=False)
    with pytest.raises(UsageError, match=re.escape("$MERCURE_IN_DIR")):
        answer_folder(None, tmp_path)
    with pytest.raises(DataError, match="no files"):
        answer_folder(tmp_path, tmp_path)
    (tmp_path / "a.dcm").write_bytes(b"rubbish")
    with pytest.raises(DataError, match="none of 1 file has a prediction"):
        answer_folder(tmp_path, tmp_path)
