"""Duplicates and shared patients are judged by where they lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.auditing import duplicates
from pneumoscope.auditing.audit import find_faults
from pneumoscope.auditing.duplicates import (
    find_crowded,
    find_duplicates,
    find_shared,
    find_unsearched,
    group_similar,
)
from pneumoscope.auditing.findings import Finding
from pneumoscope.auditing.intake import Images
from pneumoscope.auditing.measurements import FIELDS
from pneumoscope.datasets.phantoms import draw_phantom
from pneumoscope.datasets.samples import Sample
from pneumoscope.images.dicom import Tags
from pneumoscope.images.hash import hash_pixels

NOBODY = Tags(None, None, None, None, None, None, None, None)


def images(*places: str, digests: str) -> Images:
    """Images in such places as `train/A`, with one letter for each one's content."""
    samples = [Sample(Path(f"{i}.png"), p.split("/")[-1], None, p.split("/")[0] or None) for i, p in enumerate(places)]
    return Images(samples, list(digests), [None] * len(samples), np.zeros(len(samples), FIELDS))


def described(findings: list[Finding]) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(each.severity, each.title, tuple(path.stem for path in each.files)) for each in findings]


def test_identical_images_are_judged_by_split_and_class() -> None:
    some = images("train/A", "test/A", "train/B", "train/A", "val/A", "val/A", digests="xxyyzz")
    assert described(find_duplicates(some, [0, 0, 1, 1, 2, 2])) == [
        ("error", "2 images in 1 group are identical across splits", ("0", "1")),
        ("error", "2 images in 1 group are identical across classes", ("2", "3")),
        ("note", "2 images in 1 group are identical within a split", ("4", "5")),
    ]


def test_images_that_only_look_alike_are_no_errors() -> None:
    some = images("train/A", "test/A", "train/B", "train/A", digests="abcd")
    assert described(find_duplicates(some, [0, 0, 1, 1])) == [
        ("warning", "2 images in 1 group are nearly identical across splits", ("0", "1")),
        ("warning", "2 images in 1 group are nearly identical across classes", ("2", "3")),
    ]


def test_unreadable_images_are_no_duplicates_of_each_other() -> None:
    some = images("train/A", "test/A", digests="ab")
    some = Images(some.samples, ["", ""], ["bad", "bad"], some.measured)
    assert find_duplicates(some, [None, None]) == []


def test_patients_of_the_test_split_are_worse_than_those_of_train_and_val() -> None:
    samples = [
        Sample(Path(f"{i}.png"), "A", patient, split)
        for i, (patient, split) in enumerate(
            [("p", "train"), ("p", "test"), ("q", "train"), ("q", "val"), ("r", "val"), (None, "train"), (None, "test")]
        )
    ]
    assert described(find_shared(samples)) == [
        ("error", "One patient is in test and train", ("0", "1")),
        ("warning", "One patient is in train and val", ("2", "3")),
    ]
    assert find_shared(samples)[0].remarks == ("train/A, patient p", "test/A, patient p")


def test_a_study_tells_where_the_patient_is_not_known() -> None:
    tags = replace(NOBODY, study="1.2.3")
    samples = [Sample(Path(f"{s}.dcm"), "A", None, s, tags=tags) for s in ("train", "test")]
    assert described(find_shared(samples)) == [("error", "One study is in test and train", ("train", "test"))]
    assert find_shared([replace(sample, patient="p" + str(sample.split)) for sample in samples]) == []


def test_many_copies_of_one_file_are_one_group_in_no_time() -> None:
    some = images(*["train/A"] * 3000, "test/A", digests="x" * 3000 + "y")
    some.measured["hash"][:] = np.random.default_rng(0).random((48, 48))
    groups = group_similar(some)
    assert groups == [0] * 3001
    finding = find_duplicates(some, groups)[-1]
    assert finding.title == "3001 images in 1 group are nearly identical across splits"


def test_the_audit_says_which_images_look_like_so_many_others_that_copies_may_be_missed() -> None:
    rng = np.random.default_rng(0)
    some = images(*["train/A"] * 40, digests="".join(chr(65 + i) for i in range(40)))
    base = hash_pixels(draw_phantom(0, pneumonia=False, size=192).pixels)
    some.measured["hash"][:] = [
        base + 0.03 * np.kron(rng.standard_normal((12, 12)), np.ones((4, 4))) for _ in range(40)
    ]
    crowded: list[int] = []
    groups = group_similar(some, crowded=crowded)
    assert groups == [None] * 40
    assert len(crowded) > 30
    (finding,) = find_crowded(some.samples, crowded)
    assert (finding.check, finding.severity) == ("duplicates", "note")
    assert finding.title == f"{len(crowded)} images look like more than 30 others"
    assert finding.files == tuple(Path(f"{i}.png") for i in crowded)
    assert finding in find_faults(some)
    assert find_crowded(some.samples, []) == []


def test_the_audit_says_that_crops_were_not_looked_for_among_too_many_files(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    some = images(*["train/A"] * 4, "test/A", digests="abcde")
    assert find_unsearched(some.digests) == []
    monkeypatch.setattr(duplicates, "MOST_SEARCHED", 4)
    (finding,) = find_unsearched(some.digests)
    assert (finding.check, finding.severity) == ("duplicates", "warning")
    assert finding.title.startswith("Images cropped out of others were not looked for: 5 different files, and at most")
    group_similar(some)
    assert finding.title in caplog.text
    some = replace(some, features=np.zeros((5, 3), np.float32))
    assert finding in find_faults(some)
    assert finding not in find_faults(replace(some, features=None))  # whose page says that crops are left out
