"""Coefficients of agreement between readers are those of others, and their intervals cover the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from pneumoscope.errors import UsageError
from pneumoscope.evaluation.agreement import measure_cohen_kappa, measure_fleiss_kappa, measure_krippendorff_alpha

# The worked example of Wikipedia's article on Fleiss' kappa: 14 readers, 10 subjects, 5 classes.
FLEISS = [
    (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1), (7, 7, 0, 0, 0),
    (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
]  # fmt: skip
# The worked example of Wikipedia's article on Krippendorff's alpha: three readers, who have not read all.
KRIPPENDORFF = ["*****34121133*3", "1*213343*******", "**21344*2113 3*4".replace(" ", "")]


def draw_readings(seed: int, images: int, same: float) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(seed)
    first, other = rng.integers(3, size=images), rng.integers(3, size=images)
    second = np.where(rng.random(images) < same, first, other)
    return [f"class {i}" for i in first], [f"class {i}" for i in second]


@pytest.mark.parametrize("seed", range(5))
def test_cohens_kappa_is_that_of_scikit_learn(seed: int) -> None:
    first, second = draw_readings(seed, 80, 0.5)
    found = measure_cohen_kappa(first, second, resamples=50)
    assert found.value == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)


def test_fleiss_kappa_is_that_of_the_worked_example() -> None:
    ratings = [[str(i) for i, count in enumerate(row) for _ in range(count)] for row in FLEISS]
    assert measure_fleiss_kappa(ratings, resamples=10).value == pytest.approx(0.210, abs=5e-4)


def test_krippendorffs_alpha_is_that_of_the_worked_example() -> None:
    ratings = [[None if x == "*" else x for x in row] for row in zip(*KRIPPENDORFF, strict=True)]
    found = measure_krippendorff_alpha(ratings, resamples=10)
    assert found.value == pytest.approx(0.691, abs=5e-4)
    assert found.images == 12


def test_images_that_one_of_two_has_not_read_do_not_count() -> None:
    first, second = draw_readings(1, 40, 0.6)
    whole = measure_cohen_kappa(first, second, resamples=20)
    assert measure_cohen_kappa([*first, "class 0", None], [*second, None, "class 1"], resamples=20) == whole


def test_more_images_of_the_same_patients_widen_the_interval() -> None:
    first, second = draw_readings(2, 60, 0.6)
    alone = measure_cohen_kappa(first, second)
    copied = measure_cohen_kappa(first * 4, second * 4, list(range(60)) * 4)
    independent = measure_cohen_kappa(first * 4, second * 4)
    assert copied.value == pytest.approx(alone.value or 0)

    def width(found: Any) -> float:
        return float(found.high - found.low)

    assert width(copied) == pytest.approx(width(alone), rel=0.2)
    assert width(independent) < 0.7 * width(copied)


def test_perfect_agreement_on_few_images_does_not_claim_certainty() -> None:
    found = measure_cohen_kappa(["A", "B"] * 5, ["A", "B"] * 5)
    assert (found.value, found.high) == (1, 1)
    assert found.low is not None
    assert found.low < 0.6


@pytest.mark.parametrize("measure", [measure_fleiss_kappa, measure_krippendorff_alpha])
def test_one_class_alone_or_nothing_to_compare_has_no_value(measure: Any) -> None:
    assert measure([["A", "A"]] * 5).value is None
    assert measure([["A", None]] * 5).images == 0
    assert measure([]).value is None


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    true = 0.6  # of three equally frequent classes, of which a share of 0.6 is copied
    covered = []
    for seed in range(200):
        found = measure_cohen_kappa(*draw_readings(seed, 100, true), resamples=200)
        assert found.low is not None
        assert found.high is not None
        covered.append(found.low <= true <= found.high)
    assert 0.88 <= np.mean(covered) <= 0.99


def test_ratings_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(UsageError):
        measure_krippendorff_alpha([["A", "B"], ["A"]])
    with pytest.raises(UsageError):
        measure_krippendorff_alpha([["A", "B"]], ["p1", "p2"])
    with pytest.raises(UsageError):
        measure_cohen_kappa(["A"], ["A"], resamples=0)
    with pytest.raises(UsageError):
        measure_cohen_kappa(["A"], ["A", "B"])
