"""The recipe for Orthanc in `deploy/orthanc`: a study that is stable there gets its results."""

from __future__ import annotations

import json
from pathlib import Path

from archives import find_port, run_orthanc
from peers import run_node, to_dicom, wait_until, write_image

RECIPE = Path(__file__).parents[2] / "deploy" / "orthanc"


def test_a_stable_study_is_answered_once_and_results_are_not_answered(tmp_path: Path) -> None:
    settings = json.loads((RECIPE / "orthanc.json").read_text())
    title, _, _ = settings["DicomModalities"]["pneumoscope"]
    port = find_port()
    own = {"DicomModalities": {"pneumoscope": [title, "127.0.0.1", port]}, "StableAge": 1, "DicomAet": "ARCHIVE"}
    scripts = [str(RECIPE / Path(name).name) for name in settings["LuaScripts"]]
    with run_orthanc(tmp_path / "orthanc", LuaScripts=scripts, **own) as archive:
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
