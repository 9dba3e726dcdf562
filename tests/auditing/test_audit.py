"""The audit as a whole: planted faults are found, clean images raise no alarm, and what it writes can be used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from dicom_files import dicom
from dicom_files import image as draw_levels
from typer.testing import CliRunner

from audit_detection import FAULTS, Fault, find, find_images, plant, score
from pneumoscope.cli.main import app
from pneumoscope.datasets.phantom_sets import write_phantoms
from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.samples import write_samples
from pneumoscope.errors import MissingExtraError, UsageError
from pneumoscope.images.read import Reading
from pneumoscope.inference.cache import FeatureCache
from pneumoscope.reports.audit_page import audit


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("images") / "clean", count=200, seed=31, size=128)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureCache]:
    with FeatureCache(tmp_path_factory.mktemp("cache") / "features.sqlite") as opened:
        yield opened


def test_clean_images_raise_nothing_above_a_note(clean: Path, cache: FeatureCache) -> None:
    found = audit(clean, cache=cache)
    assert [finding.title for finding in found.findings if finding.severity != "note"] == []
    assert found.images == 200


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_planted_fault_is_found_and_its_images_are_named(
    fault: Fault, clean: Path, cache: FeatureCache, tmp_path: Path
) -> None:
    touched = plant(fault, fault.strengths[-1], clean, tmp_path / "images", seed=5)
    findings = find(fault, tmp_path / "images", 0, cache)
    serious, named = score(fault, touched, findings)
    assert serious, [f"{finding.severity}: {finding.title}" for finding in findings]
    if touched:
        hard = {  # a share of them is enough
            "smaller, brighter, compressed copies": 0.6,
            "swapped labels": 0.33,
            "images upside down": 0.6,
            "photographs among the images": 0.6,
        }
        assert named >= hard.get(fault.name, 1)


def test_what_is_written_says_what_was_found(clean: Path, cache: FeatureCache, tmp_path: Path) -> None:
    shutil.copytree(clean, tmp_path / "images")
    leaked, *_ = find_images(tmp_path / "images", "train")
    copy = tmp_path / "images" / "test" / leaked.parent.name / leaked.name
    shutil.copy(leaked, copy)
    found = audit(tmp_path / "images", tmp_path / "out", quick=True, cache=cache)
    written = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    assert written["findings"][0]["severity"] == "error"
    named = {path for finding in written["findings"] for path in finding["files"]}
    assert {leaked.as_posix(), copy.as_posix()} <= named
    page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    assert all(finding.title.split(":")[0][:20] in page for finding in found.findings)
    with pytest.raises(UsageError, match="overwrite"):
        audit(tmp_path / "images", tmp_path / "out", quick=True)
    audit(tmp_path / "images", tmp_path / "out", quick=True, overwrite=True, cache=cache)


def test_the_same_images_and_seed_give_the_same_words(images: Path, cache: FeatureCache, tmp_path: Path) -> None:
    audit(images, seed=3, cache=cache)
    for name, kept in (("first", cache), ("second", False)):
        audit(images, tmp_path / name, seed=3, cache=kept)
    first, second = ((tmp_path / name / "audit.json").read_bytes() for name in ("first", "second"))
    assert first == second


def test_an_inverted_image_that_is_read_inverted_is_no_fault(clean: Path, tmp_path: Path) -> None:
    fault = next(fault for fault in FAULTS if fault.name == "inverted images")
    inverted = plant(fault, 0.1, clean, tmp_path / "images", seed=1)
    samples = read_samples(tmp_path / "images")
    table = tmp_path / "images.csv"
    marked = [
        type(sample)(sample.path, sample.label, sample.patient, sample.split, Reading(invert=sample.path in inverted))
        for sample in samples
    ]
    write_samples(table, marked)
    assert read_samples(table)[0].split is not None
    assert not [finding for finding in audit(table, quick=True).findings if "inverted" in finding.title]
    assert [finding for finding in audit(tmp_path / "images", quick=True).findings if "inverted" in finding.title]


def test_images_without_splits_are_audited_too(clean: Path, tmp_path: Path) -> None:
    for image in find_images(clean):
        place = tmp_path / "images" / image.parent.name / image.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, place)
    found = audit(tmp_path / "images", quick=True)
    assert {finding.severity for finding in found.findings} <= {"note"}


def test_warnings_of_headers_are_counted_whether_cached_or_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for label in ("NORMAL", "PNEUMONIA"):
        for number in range(2):
            file = tmp_path / "data" / label / f"{number}.dcm"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(dicom(draw_levels(), frames=2, PatientID=f"{label}{number}"))
    for _ in range(2):
        caplog.clear()
        with FeatureCache(tmp_path / "features.sqlite") as cache:
            audit(tmp_path / "data", quick=True, cache=cache)
        assert "4 images have the warning 'the file has 2 frames (the first was read)'." in caplog.messages


def test_nothing_is_changed(clean: Path, cache: FeatureCache) -> None:
    before = {
        path: (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns) for path in clean.rglob("*")
    }
    audit(clean, cache=cache)
    assert before == {
        path: (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns) for path in clean.rglob("*")
    }


def test_an_image_none_of_whose_neighbours_can_be_read_does_not_stop_it(tmp_path: Path) -> None:
    for number in range(6):
        place = tmp_path / "images" / ("NORMAL", "PNEUMONIA")[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(np.random.default_rng(number).bytes(200))
    found = audit(tmp_path / "images")
    assert found.findings[0].check == "reading"
    assert len(found.findings[0].files) == 6


def test_images_that_a_map_leaves_out_are_a_finding_everywhere(clean: Path, tmp_path: Path) -> None:
    copied: list[tuple[str, str]] = []
    for number, path in enumerate(find_images(clean, "train")[:12]):
        label = ("NORMAL", "PNEUMONIA", "Effusion")[number % 3]
        (tmp_path / "images" / label).mkdir(parents=True, exist_ok=True)
        copied.append((Path(shutil.copy(path, tmp_path / "images" / label)).as_posix(), label))
    left = sorted(path for path, label in copied if label == "Effusion")
    command = ["audit", str(tmp_path / "images"), "--map", "Effusion=", "--quick", "--out", str(tmp_path / "out")]
    printed = CliRunner().invoke(app, command)
    assert printed.exit_code == 0
    written = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    assert written["images"] == 8
    (finding,) = [each for each in written["findings"] if each["files"] == left]
    assert (finding["severity"], finding["title"]) == ("note", "4 images to which the map gives no class left out")
    assert finding["remarks"] == ["Effusion"] * 4
    assert "allow locked folders to be read" in finding["advice"]
    assert "4 images to which the map gives no class left out" in printed.stdout
    assert "--map" in printed.stdout
    page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    assert "4 images to which the map gives no class left out" in page
    assert all(Path(path).name in page for path in left)


def test_a_full_audit_without_pytorch_names_the_quick_one(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pneumoscope.reports.audit_page.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pneumoscope\[train\].* `quick=True`"):
        audit(images, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    audit(images, tmp_path / "out", quick=True, cache=False)
