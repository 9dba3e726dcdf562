"""Swapped labels are found and counted, hard images are not cried over, and nothing is ever removed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pneumoscope.auditing.intake import Images
from pneumoscope.auditing.labels import find_label_errors, suspect_labels
from pneumoscope.auditing.measurements import FIELDS
from pneumoscope.datasets.samples import Sample

N = 600
Features = NDArray[np.float32]


def make_features(classes: NDArray[np.int64], distance: float = 6, seed: int = 0) -> Features:
    """Normal clouds, each class's centre on an axis of its own."""
    rng = np.random.default_rng(seed)
    centres = np.eye(24)[: classes.max() + 1] * distance / np.sqrt(2)
    features: Features = (rng.standard_normal((len(classes), 24)) + centres[classes]).astype(np.float32)
    return features


def make_images(features: Features | None, classes: NDArray[np.int64], patients: int = 10**6) -> Images:
    samples = [Sample(Path(f"{i}.png"), "ABC"[one], f"p{i % patients}") for i, one in enumerate(classes)]
    n = len(samples)
    return Images(samples, [""] * n, [None] * n, np.zeros(n, FIELDS), features)


def swap(classes: NDArray[np.int64], share: float, seed: int = 0) -> tuple[NDArray[np.int64], set[int]]:
    """Move some images to the next class; also say which."""
    moved = np.random.default_rng(seed).permutation(len(classes))[: round(share * len(classes))]
    swapped = classes.copy()
    swapped[moved] = (swapped[moved] + 1) % (classes.max() + 1)
    return swapped, set(moved.tolist())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [2, 3])
def test_a_clean_set_raises_no_warning_and_swaps_do(count: int, seed: int) -> None:
    truth = np.arange(N) % count
    features = make_features(truth, seed=seed)
    assert all(finding.severity == "note" for finding in find_label_errors(make_images(features, truth), seed=seed))
    for share in (0.05, 0.1):
        classes, moved = swap(truth, share, seed)
        (finding,) = find_label_errors(make_images(features, classes), seed=seed)
        listed = [int(path.stem) for path in finding.files]
        assert finding.severity == "warning" or share < 0.1 or count == 3  # fewer may pass for hard images
        assert len(moved & set(listed)) >= 0.6 * len(moved)  # recall: of those that are as typical as most
        assert len(moved & set(listed)) >= 0.8 * len(listed)  # precision
        assert set(listed[:10]) <= moved  # the clearest first
        assert finding.values["swapped"] == pytest.approx(share, abs=0.03)


def test_a_suspect_is_shown_with_what_it_looks_like() -> None:
    truth = np.arange(N) % 2
    classes = truth.copy()
    classes[6] = 1
    (finding,) = find_label_errors(make_images(make_features(truth, distance=8), classes))
    assert (finding.check, finding.severity, finding.files) == ("labels", "note", (Path("6.png"),))
    assert finding.title == "1 of 600 images are likely mislabelled or hard (1 labelled B)"
    assert finding.remarks[0].startswith("labelled B, looks like A (")


def test_a_clean_set_has_no_finding() -> None:
    truth = np.arange(N) % 2
    assert find_label_errors(make_images(make_features(truth, distance=12), truth)) == []


def test_a_rare_class_is_not_suspected_for_being_rare() -> None:
    truth = (np.arange(N) % 8 == 0).astype(np.int64)
    found = suspect_labels(make_features(truth, distance=5), truth, np.arange(N))
    assert found.auroc > 0.98
    assert not found.alarming
    assert found.swapped < 0.02


def test_features_that_predict_nothing_accuse_nobody() -> None:
    truth = np.arange(N) % 2
    (finding,) = find_label_errors(make_images(make_features(truth, distance=0), truth))
    assert finding.severity == "note"
    assert finding.title.startswith("Cannot look for label errors")
    assert not finding.files


def test_a_wrong_label_that_all_images_of_a_patient_share_is_found() -> None:
    # 80 patients with 5 nearly identical images: were they divided, each would vouch for the others' label.
    owner = np.arange(N) % 80
    truth = (np.arange(80) % 2)[owner]
    rng = np.random.default_rng(0)
    features = (make_features(np.arange(80) % 2, distance=6)[owner] + rng.normal(0, 0.01, (N, 24))).astype(np.float32)
    classes = np.where(owner < 4, 1 - truth, truth)
    (finding,) = find_label_errors(make_images(features, classes, patients=80))
    assert {int(path.stem) % 80 for path in finding.files} >= {0, 1, 2, 3}
    grouped = find_label_errors(
        Images([Sample(Path(f"{i}.png"), "AB"[one]) for i, one in enumerate(classes)], [""] * N, [None] * N,
              np.zeros(N, FIELDS), features), groups=owner.tolist(),
    )  # fmt: skip
    assert grouped == [finding]


def test_too_few_patients_are_reported() -> None:
    truth = np.arange(N) % 2
    (finding,) = find_label_errors(make_images(make_features(truth), truth, patients=30))
    assert finding.severity == "note"
    assert finding.title == "Too few images to look for label errors: A has 15 patients, and 20 are needed"


def test_unreadable_and_unlabelled_images_are_left_out() -> None:
    truth = np.arange(N) % 2
    features = make_features(truth, distance=12)
    features[:50] = 0  # as where a file cannot be read
    images = make_images(features, truth)
    errors = ["damaged" if i < 50 else None for i in range(N)]
    assert find_label_errors(Images(images.samples, images.digests, errors, images.measured, features)) == []
    samples = [Sample(one.path, None if i < 50 else one.label) for i, one in enumerate(images.samples)]
    assert find_label_errors(Images(samples, images.digests, images.errors, images.measured, features)) == []


def test_without_features_or_a_second_class_there_is_no_finding() -> None:
    truth = np.arange(N) % 2
    assert find_label_errors(make_images(None, truth)) == []
    assert find_label_errors(make_images(make_features(truth), np.zeros(N, np.int64))) == []


@pytest.mark.parametrize("towards", [1, -1])
def test_an_image_far_from_all_others_does_not_hide_swapped_labels(towards: int) -> None:
    """Its probability is 1, or 0, to the last digit."""
    truth = np.arange(2000) % 2
    classes, moved = swap(truth, 0.1)
    features = make_features(truth)
    odd = next(i for i in range(2000) if i not in moved and truth[i])
    features[odd, 1] += towards * 300
    with np.errstate(all="raise", under="ignore"):
        (finding,) = find_label_errors(make_images(features, classes))
    assert finding.values["swapped"] == pytest.approx(0.1, abs=0.03)
    assert finding.severity == "warning"
