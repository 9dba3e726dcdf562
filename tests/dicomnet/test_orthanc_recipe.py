"""The recipe for Orthanc in `deploy/orthanc`: a study that is stable there gets its results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from archives import find_port, run_orthanc
from peers import run_node, to_dicom, wait_until, write_image

RECIPE = Path(__file__).parents[2] / "deploy" / "orthanc"


def read_recipe(port: int) -> dict[str, Any]:
    """The settings of the recipe that are not addresses or folders, and those for a node on this port."""
    settings = json.loads((RECIPE / "orthanc.json").read_text())
    title, _, _ = settings["DicomModalities"]["pneumoscope"]
    scripts = [str(RECIPE / Path(name).name) for name in settings["LuaScripts"]]
    own = {"DicomModalities": {"pneumoscope": [title, "127.0.0.1", port]}, "StableAge": 1}
    return {
        "DicomAet": settings["DicomAet"],
        "JobsHistorySize": settings["JobsHistorySize"],
        "LuaScripts": scripts,
    } | own


def test_a_study_that_came_while_the_node_was_down_is_answered_when_it_is_up(tmp_path: Path) -> None:
    port = find_port()
    with run_orthanc(tmp_path / "orthanc", **read_recipe(port)) as archive:
        archive.store(write_image(tmp_path / "image.dcm", 1, 1).read_bytes())
        wait_until(lambda: any(job["State"] == "Failure" for job in archive.ask("jobs?expand")), 60)
        destination = to_dicom(archive) | {"title": "ARCHIVE"}
        with run_node(tmp_path / "node", port=port, destinations=[destination]):
            command = [sys.executable, str(RECIPE / "resubmit.py"), archive.address]
            assert "1 failed jobs" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
            wait_until(lambda: len(archive.list_instances()) == 3, 60)
            assert not subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_stable_study_is_answered_once_and_results_are_not_answered(tmp_path: Path) -> None:
    port = find_port()
    with run_orthanc(tmp_path / "orthanc", **read_recipe(port)) as archive:
        destination = to_dicom(archive, verify="find") | {"title": "ARCHIVE"}
        with run_node(tmp_path / "node", port=port, destinations=[destination], allowed=["ARCHIVE"]) as node:
            for study, number in ((1, 1), (1, 2), (2, 1)):
                archive.store(write_image(tmp_path / "image.dcm", study, number).read_bytes())
            wait_until(lambda: len(archive.list_instances()) == 9, 60)
            wait_until(lambda: all(study["IsStable"] for study in archive.ask("studies?expand")), 60)
            received = [line for line in node.lines if "set aside" in line or "refused" in line]
            assert not received
            assert node.end() == 0
        modalities: dict[str, list[str]] = {}
        for series in archive.ask("series?expand"):
            modalities.setdefault(series["ParentStudy"], []).append(series["MainDicomTags"]["Modality"])
        assert sorted(map(sorted, modalities.values())) == [["CR", "OT", "SR"], ["CR", "OT", "SR"]]
        assert len(archive.list_instances()) == 9
