"""Curves: against counting by hand, scikit-learn, published examples, and what their values stand for."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import beta
from sklearn.metrics import confusion_matrix

from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.curves import (
    confidence_of,
    count_points,
    decision_curve,
    precision_recall_band,
    predictive_values,
    roc_band,
    selective_curve,
)
from pneumoscope.evaluation.metrics import measure


def simulated(n: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    return y, 1 / (1 + np.exp(-rng.normal(2.1 * (y - 0.5), 1)))


def test_roc_band_holds_the_curve() -> None:
    y, p = simulated(150)
    grid, low, high = roc_band(y, p)
    assert grid.shape == low.shape == high.shape
    assert (low <= high).all()
    sensitivity = np.array([(p[y == 1] >= np.quantile(p[y == 0], 1 - rate)).mean() for rate in grid])
    assert ((low <= sensitivity + 0.03) & (sensitivity <= high + 0.03)).all()
    assert np.isnan(roc_band([1, 1], [0.2, 0.3])[1]).all()


def test_precision_recall_band_holds_the_curve() -> None:
    y, p = simulated(150)
    grid, low, high = precision_recall_band(y, p)
    assert grid.shape == low.shape == high.shape == (101,)
    assert (low <= high).all()
    cuts = [np.sort(p[y == 1])[::-1][max(0, math.ceil(recall * y.sum() - 1e-9) - 1)] for recall in grid]
    precision = np.array([y[p >= cut].mean() for cut in cuts])
    assert ((low <= precision) & (precision <= high)).all()
    assert np.isnan(precision_recall_band([0, 0], [0.2, 0.3])[1]).all()
    assert precision_recall_band([1, 1], [0.2, 0.3])[2].tolist() == [1] * 101


def test_net_benefit_is_that_of_the_formula_on_scikit_learns_counts() -> None:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 200)
    p = np.round(np.clip(0.5 * y + 0.5 * rng.random(200), 0, 1), 2)  # some lie on a threshold
    curve = decision_curve(y, p)
    assert curve.thresholds == pytest.approx(np.arange(1, 100) / 100)
    for i in (0, 9, 24, 49, 80, 98):
        t = curve.thresholds[i]
        tn, fp, fn, tp = confusion_matrix(y, p >= t, labels=[0, 1]).ravel()
        assert curve.model[i] == pytest.approx(tp / 200 - fp / 200 * t / (1 - t))
        assert curve.everybody[i] == pytest.approx((tp + fn) / 200 - (tn + fp) / 200 * t / (1 - t))
        # Vickers & Elkin 2006: from sensitivity, specificity and prevalence it is the same
        prevalence = y.mean()
        utility = tp / (tp + fn) * prevalence - (1 - tn / (tn + fp)) * (1 - prevalence) * t / (1 - t)
        assert curve.model[i] == pytest.approx(utility)


def test_the_decision_curves_of_a_perfect_and_a_blind_model() -> None:
    y = np.array([1] * 30 + [0] * 70)
    perfect = decision_curve(y, y.astype(float))
    assert perfect.model == pytest.approx(0.3)
    assert perfect.everybody[29] == pytest.approx(0)  # at the prevalence
    blind = decision_curve(y, np.full(100, 0.3))
    assert blind.model == pytest.approx(np.where(blind.thresholds <= 0.3, blind.everybody, 0))
    # a perfect model is uncertain by its prevalence alone
    reach = 1.96 * np.sqrt(0.3 * 0.7 / 100)
    assert perfect.low[50] == pytest.approx(0.3 - reach, abs=0.02)
    assert perfect.high[50] == pytest.approx(0.3 + reach, abs=0.02)


def test_invalid_input_of_a_decision_curve_is_refused() -> None:
    with pytest.raises(DataError, match="one class"):
        decision_curve([0], [[0.2, 0.3, 0.5]])
    with pytest.raises(UsageError, match="between 0 and 1"):
        decision_curve([0, 1], [0.2, 0.3], thresholds=[0.5, 1])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=1, max_size=7))
def test_the_curve_and_its_area_are_those_of_counting(labels: list[tuple[bool, int]]) -> None:
    right, sure = [hit for hit, _ in labels], [level / 4 for _, level in labels]
    curve = selective_curve(right, sure, resamples=2)
    expected = {}
    for level in set(sure):
        answered = [hit for hit, own in zip(right, sure, strict=True) if own >= level]
        expected[len(answered) / len(labels)] = sum(answered) / len(answered)
    assert dict(zip(curve.coverage, curve.accuracy, strict=True)) == pytest.approx(expected)
    # the mean over every order that the confidences allow
    areas = []
    for order in itertools.permutations(range(len(labels))):
        if all(sure[a] >= sure[b] for a, b in itertools.pairwise(order)):
            wrong = np.cumsum([not right[i] for i in order])
            areas.append(sum(Fraction(int(k), n) for n, k in enumerate(wrong, start=1)) / len(labels))
    assert curve.area == pytest.approx(float(sum(areas) / len(areas)))


def test_the_band_holds_the_curve_and_knows_of_patients() -> None:
    rng = np.random.default_rng(0)
    sure = rng.random(300)
    right = rng.random(300) < 0.6 + 0.4 * sure
    alone = selective_curve(right, sure)
    inside = (alone.low <= np.interp(alone.grid, alone.coverage, alone.accuracy)) & (
        np.interp(alone.grid, alone.coverage, alone.accuracy) <= alone.high
    )
    assert inside[10:].all()
    assert alone.accuracy[-1] == pytest.approx(right.mean())
    copies = np.tile(np.arange(300), 4)
    patients = [str(i) for i in copies]
    by_patient = selective_curve(right[copies], sure[copies], patients=patients)
    by_image = selective_curve(right[copies], sure[copies])
    assert (by_patient.high - by_patient.low)[-1] == pytest.approx((alone.high - alone.low)[-1], rel=0.2)
    assert (by_image.high - by_image.low)[-1] < 0.7 * (by_patient.high - by_patient.low)[-1]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=20), st.floats(0.02, 0.98))
def test_the_image_refused_first_has_the_highest_expected_cost(shares: list[float], threshold: float) -> None:
    p = np.array(shares)
    sure = confidence_of(p, threshold)
    assert ((sure >= 0) & (sure <= 1)).all()
    # a miss costs 1 - t, a false alarm t: the costs for which t is the best threshold
    cost = np.where(p >= threshold, (1 - p) * threshold, p * (1 - threshold))
    assert sure == pytest.approx(1 - cost / (threshold * (1 - threshold)))


def test_confidence_at_a_half_orders_as_the_highest_probability() -> None:
    p = np.linspace(0, 1, 11)
    assert confidence_of(p, 0.5) == pytest.approx(2 * np.maximum(p, 1 - p) - 1)
    assert confidence_of([[0.2, 0.3, 0.5]]).tolist() == [0.5]
    assert confidence_of([0.0, 0.5, 1.0], 0.0).tolist() == [0.0, 0.5, 1.0]
    assert confidence_of([0.0, 0.5, 1.0], 1.0).tolist() == [1.0, 0.5, 1.0]


@pytest.mark.parametrize(("right", "sure"), [([], []), ([True], [0.1, 0.2])])
def test_labels_and_confidences_must_match(right: Any, sure: Any) -> None:
    with pytest.raises(DataError, match="as many as the labels"):
        selective_curve(right, sure)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_counts_are_those_of_the_metrics_at_every_threshold(seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    y = np.append(rng.integers(0, 2, 40), [0, 1])
    p = rng.random(42).round(2)
    points = count_points(y, p, threshold)
    assert points.thresholds[points.start] == threshold
    assert len(points.thresholds) < 130
    for i in {*range(0, len(points.thresholds), 25), points.start}:
        values = measure(y, p, threshold=points.thresholds[i])
        assert points.tp[i] / points.positives == pytest.approx(values["sensitivity"][0])
        assert 1 - points.fp[i] / points.negatives == pytest.approx(values["specificity"][0])
        ppv, npv = predictive_values(values["sensitivity"][0], values["specificity"][0], y.mean())
        assert ppv == pytest.approx(values["ppv"][0], nan_ok=True)
        assert npv == pytest.approx(values["npv"][0], nan_ok=True)


def test_the_page_does_not_grow_with_the_images() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 50_000)
    assert len(str(asdict(count_points(y, rng.random(50_000), 0.3141592)))) < 4000


def test_a_published_example_of_bayes_theorem() -> None:
    # Altman & Bland, BMJ 1994;309:102, liver scans: 231 of 258 abnormal, 54 of 86 normal, prevalence 0.75 and 0.25
    sensitivity, specificity = 231 / 258, 54 / 86
    assert predictive_values(sensitivity, specificity, 0.75) == pytest.approx((0.88, 0.67), abs=0.005)
    assert predictive_values(sensitivity, specificity, 0.25) == pytest.approx((0.45, 0.95), abs=0.005)
    assert math.isnan(predictive_values(0, 1, 0.5)[0])


@pytest.mark.parametrize("images", [60, 137, 300, 301, 1000])
@pytest.mark.parametrize("share", [0.05, 0.21, 0.7])
def test_one_error_leaves_the_band_where_independent_images_have_it(images: int, share: float) -> None:
    """Clopper & Pearson's limits are for a share of whole images; between two images the curve is interpolated."""
    first = round(images * share)
    curve = selective_curve(np.arange(images) != first, np.linspace(1, 0, images))
    wrong = np.clip(curve.grid * images - first, 0, 1)
    answered = np.maximum(1, curve.grid * images)
    lower = beta.ppf(0.025, answered - wrong, wrong + 1)
    upper = np.where(wrong > 0, beta.ppf(0.975, answered - wrong + 1, np.maximum(wrong, 1e-9)), 1)
    assert (curve.low > lower - 0.03).all()
    assert (curve.low < lower + np.where(answered < 20, 0.45, 0.1)).all()
    assert (curve.high <= 1).all()
    assert (curve.high > upper - np.where(answered < 20, 0.2, 0.03)).all()
