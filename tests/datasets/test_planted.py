"""Shortcuts that are planted into phantoms are recorded, and the audit finds each without reading the record."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumoscope.auditing.findings import Finding
from pneumoscope.auditing.intake import measure_images
from pneumoscope.auditing.shortcuts import find_shortcuts
from pneumoscope.datasets.phantom_sets import write_phantoms
from pneumoscope.datasets.reading import read_samples
from pneumoscope.errors import UsageError
from pneumoscope.images.prepare import InputSpec

COUNT = 160


def draw(folder: Path, plant: str | None, count: int = COUNT, seed: int = 5) -> list[dict[str, str]]:
    write_phantoms(folder, count=count, seed=seed, size=96, plant=plant)
    with (folder / "truth.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def find_serious(folder: Path) -> list[Finding]:
    found = find_shortcuts(measure_images(read_samples(folder), InputSpec()))
    return [finding for finding in found if finding.severity != "note"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("marker", ("small marks",)),
        ("border", ("border", "edges")),
        ("exposure", ("brightness",)),
        ("noise", ("small marks", "sharpness")),
    ],
)
def test_the_audit_finds_each_shortcut_and_names_images_that_carry_it(
    kind: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    draw(tmp_path / "images", f"{kind}:0.8")
    (tmp_path / "images" / "truth.csv").unlink()  # what a class gets
    found = find_serious(tmp_path / "images")
    assert any(word in finding.title for finding in found for word in words), [each.title for each in found]


def test_without_a_share_there_is_nothing_to_find(tmp_path: Path) -> None:
    alarms = 0
    for seed in range(4):
        rows = draw(tmp_path / f"{seed}", "marker:0,border:0,exposure:0,noise:0", seed=seed)
        assert {row["planted"] for row in rows} == {""}
        alarms += bool(find_serious(tmp_path / f"{seed}"))
    assert alarms <= 1  # of 4 at 1%, which the audit promises: more with probability 0.0006


def test_the_table_says_which_images_carry_what_and_no_other_image_differs(tmp_path: Path) -> None:
    plain = draw(tmp_path / "plain", None, 40)
    rows = draw(tmp_path / "planted", "marker:0.5,noise:0.25:NORMAL", 40)
    assert "planted" not in plain[0]
    assert Counter((row["label"], row["planted"]) for row in rows) == {
        ("PNEUMONIA", "marker"): 10, ("PNEUMONIA", ""): 10, ("NORMAL", "noise"): 5, ("NORMAL", ""): 15,
    }  # fmt: skip
    for row in rows:
        first, other = ((tmp_path / where / row["path"]).read_bytes() for where in ("plain", "planted"))
        assert (first == other) is (row["planted"] == "")


def test_one_image_may_carry_several(tmp_path: Path) -> None:
    rows = draw(tmp_path / "images", "marker:1,border:1,exposure:1,noise:1", 12)
    assert {row["planted"] for row in rows if row["label"] == "PNEUMONIA"} == {"marker border exposure noise"}


def test_a_marker_is_bright_and_small_and_lies_near_a_corner(tmp_path: Path) -> None:
    rows = draw(tmp_path / "planted", "marker:1", 16)
    draw(tmp_path / "plain", None, 16)
    for row in rows:
        if not row["planted"]:
            continue
        first, other = (np.asarray(Image.open(tmp_path / where / row["path"]), float) for where in ("plain", "planted"))
        ys, xs = np.nonzero(first != other)
        height, width = first.shape
        assert 0 < len(ys) < 0.01 * first.size
        assert max(ys) < 0.3 * height or min(ys) > 0.7 * height
        assert max(xs) < 0.3 * width or min(xs) > 0.7 * width
        assert set(other[ys, xs]) == {240.0}


@pytest.mark.parametrize(
    "plant", ["marker", "tattoo:0.5", "marker:2", "marker:-1", "marker:x", "marker:0.5:CAT", "", "noise:0.1,noise:0.2"]
)
def test_a_plant_that_does_not_exist_is_refused(plant: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="plant: "):
        write_phantoms(tmp_path / "images", count=8, size=64, plant=plant)
    assert not (tmp_path / "images").exists()
