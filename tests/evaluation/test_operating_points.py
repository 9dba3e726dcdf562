"""Other thresholds: counted as metrics count, with limits and predictive values as others compute them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from pneumoscope.evaluation.intervals.proportions import score_limits
from pneumoscope.evaluation.metrics import measure
from pneumoscope.evaluation.operating_points import count_points, predictive_values


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
    assert len(str(count_points(y, rng.random(50_000), 0.3141592).to_json())) < 4000


@given(st.integers(0, 50), st.integers(1, 50))
def test_limits_are_those_of_wilson(count: int, more: int) -> None:
    n = count + more - 1
    if n:
        expected = binomtest(count, n).proportion_ci(0.95, method="wilson")
        assert score_limits(count / n, n, 0.95) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_published_example_of_bayes_theorem() -> None:
    # Altman & Bland, BMJ 1994;309:102, liver scans: 231 of 258 abnormal, 54 of 86 normal, prevalence 0.75 and 0.25
    sensitivity, specificity = 231 / 258, 54 / 86
    assert predictive_values(sensitivity, specificity, 0.75) == pytest.approx((0.88, 0.67), abs=0.005)
    assert predictive_values(sensitivity, specificity, 0.25) == pytest.approx((0.45, 0.95), abs=0.005)
    assert math.isnan(predictive_values(0, 1, 0.5)[0])
    assert math.isnan(score_limits(0, 0, 0.95)[0])
