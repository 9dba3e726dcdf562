"""The calibration error of images that all have the same probability."""

from __future__ import annotations

import numpy as np
import pytest

from pneumoscope.evaluation.intervals.all_metrics import evaluate_predictions
from pneumoscope.evaluation.results import Interval


def measure_error(positives: int, n: int, stated: float, seed: int = 0) -> Interval:
    labels = np.arange(n) < positives
    found = evaluate_predictions(labels, np.full(n, stated), classes=["A", "B"], resamples=400, seed=seed)
    return found.metrics["ece"]


@pytest.mark.parametrize("prevalence", [0.02, 0.98])
def test_where_probabilities_are_far_off_the_interval_lies_near_the_error(prevalence: float) -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(1000) < prevalence).astype(np.int64)
    p = 1 / (1 + np.exp(-rng.normal(3 * (y - 0.5), 1.1) - 0.3))
    found = evaluate_predictions(y, p, classes=["NORMAL", "PNEUMONIA"], resamples=200).metrics["ece"]
    assert found.value - 0.03 < found.low < found.value < found.high < found.value + 0.03


@pytest.mark.parametrize("stated", [0.5, 0.25, 0.75, 0.3])
def test_an_error_of_0_by_chance_has_an_interval_with_a_width(stated: float) -> None:
    """How often the class is truly there is known to about 1.5 standard errors, by the test that is inverted."""
    n = 40
    found = measure_error(round(stated * n), n, stated)
    assert found.value == pytest.approx(0, abs=1e-12)
    assert found.low == pytest.approx(0, abs=1e-12)
    standard_error = np.sqrt(stated * (1 - stated) / n)
    assert standard_error < found.high < 2.5 * standard_error


@pytest.mark.parametrize(("stated", "true"), [(0.5, 0.5), (0.5, 0.6), (0.5, 0.68), (0.25, 0.35), (0.25, 0.15)])
def test_intervals_of_equal_probabilities_cover_the_true_error(stated: float, true: float) -> None:
    """Exactly: over every number of positives that there can be, each with its probability."""
    from scipy.stats import binom

    n = 24
    covered = 0.0
    for positives in range(n + 1):
        if (chance := float(binom.pmf(positives, n, true))) > 1e-3 and 0 < positives < n:
            found = measure_error(positives, n, stated)
            covered += chance * (found.low - 1e-9 <= abs(true - stated) <= found.high + 1e-9)
    assert covered > 0.93
