"""Intervals of single metrics, against published ones and against the same thing done slowly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from pneumoscope.evaluation.intervals.bootstrap import bootstrap_t_interval, loss_moments
from pneumoscope.evaluation.intervals.calibration_error import calibration_error_interval, draw_uniform
from pneumoscope.evaluation.intervals.proportions import (
    effective_count,
    logit_interval,
    perfect_auroc_interval,
    rate_interval,
    wilson_interval,
    wilson_interval_from_error,
)


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_that_of_newcombe(hits: int, trials: int, low: float, high: float) -> None:
    """Newcombe (Statistics in Medicine 1998;17:857-72), table I, method 3."""
    assert np.isnan(wilson_interval(0, 0, 0.95)).all()
    assert wilson_interval(hits / trials, trials, 0.95) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 300), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_independent_images_have_scipys_wilson_interval(trials: int, share: float, confidence: float) -> None:
    hit = np.arange(trials + 5) < round(share * trials)
    among = np.arange(trials + 5) < trials
    wilson = binomtest(int(hit.sum()), trials).proportion_ci(confidence, method="wilson")
    interval = rate_interval(hit, among, np.arange(trials + 5), confidence)
    assert interval == pytest.approx((wilson.low, wilson.high), abs=1e-12)


@given(st.integers(1, 200), st.sampled_from([0.8, 0.95]))
def test_an_area_of_one_has_the_interval_of_clopper_and_pearson(pairs: int, confidence: float) -> None:
    exact = binomtest(pairs, pairs).proportion_ci(confidence, method="exact")
    assert perfect_auroc_interval(pairs, confidence) == pytest.approx((exact.low, 1))


def test_a_share_is_its_own_number_of_trials() -> None:
    assert wilson_interval_from_error(0.3, np.sqrt(0.3 * 0.7 / 50), 0.95) == pytest.approx(
        wilson_interval(0.3, 50, 0.95)
    )
    assert wilson_interval_from_error(1.0, 0.0, 0.95, trials=40) == pytest.approx(wilson_interval(1.0, 40, 0.95))
    for interval in (
        wilson_interval_from_error(1.0, 0.0, 0.95),
        wilson_interval_from_error(0.3, 0.0, 0.95),
        wilson_interval_from_error(np.nan, np.nan, 0.95),
    ):
        assert np.isnan(interval).all()


def test_a_logit_interval_is_symmetric_on_that_scale() -> None:
    low, high = logit_interval(0.9, 0.05, 0.9)
    odds = np.log(np.array([low, 0.9, high]) / (1 - np.array([low, 0.9, high])))
    assert np.diff(odds) == pytest.approx(norm.ppf(0.95) * 0.05 / 0.09)
    assert logit_interval(0.9, 0.05, 0.9, degrees=5)[0] < low
    assert np.isnan(logit_interval(1.0, 0.0, 0.9)).all()


def test_patients_count_by_their_sizes() -> None:
    clusters = np.array([0, 0, 1, 1, 2, 3, 3, 3])
    assert effective_count(clusters, clusters < 2) == 2
    assert effective_count(clusters, clusters > 1) == pytest.approx(16 / 10)
    assert effective_count(clusters, clusters > 9) == 0


def test_images_alike_within_patients_widen_a_rate() -> None:
    hit = np.repeat(np.arange(50) < 30, 4)
    every = np.ones(200, dtype=bool)
    by_patient = rate_interval(hit, every, np.arange(200) // 4, 0.95)
    assert by_patient == pytest.approx(wilson_interval(0.6, 50, 0.95), abs=0.005)
    mixed = rate_interval(
        hit, every, np.arange(200) % 50, 0.95
    )  # as many hits with each: no wider than independent ones
    assert mixed == pytest.approx(wilson_interval(0.6, 200, 0.95), abs=0.005)


def test_bootstrap_t_is_that_of_a_loop_over_resamples() -> None:
    rng = np.random.default_rng(3)
    clusters = np.sort(rng.integers(0, 25, 60))
    clusters = np.unique(clusters, return_inverse=True)[1]
    losses = rng.exponential(0.1, 60)
    count = int(clusters.max()) + 1

    def logarithm(patients: list[int]) -> tuple[float, float]:
        parts = [losses[clusters == patient] for patient in patients]
        mean = np.concatenate(parts).mean()
        residuals = [(part - mean).sum() for part in parts]
        error = np.sqrt(count / (count - 1) * np.square(residuals).sum()) / sum(map(len, parts))
        return float(np.log(mean)), float(error / mean)

    centre, error = logarithm(list(range(count)))
    draws = rng.integers(0, count, (300, count))
    t = [(value - centre) / spread for value, spread in (logarithm(draw.tolist()) for draw in draws)]
    expected = np.exp(centre - np.quantile(t, [0.95, 0.05]) * error)

    weights = np.array([np.bincount(draw, minlength=count) for draw in draws])
    known = loss_moments(losses, clusters)
    assert bootstrap_t_interval(known.sum(0), weights @ known, count, 0.9) == pytest.approx(tuple(expected))
    assert np.isnan(bootstrap_t_interval(known[:1].sum(0), known[:1], 1, 0.9)).all()


def test_drawn_labels_are_alike_as_far_as_residuals_are() -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(100), 3)
    common, own = np.repeat(rng.normal(0, 0.3, 100), 3), rng.normal(0, 0.3, 300)
    spreads = np.full(300, 0.3)
    for residuals, low, high in ((common, 0.8, 1.01), (own, -0.1, 0.3), ((common + own) / np.sqrt(2), 0.3, 0.8)):
        drawn = draw_uniform(residuals, spreads, clusters, 400, seed=1)
        assert drawn.mean() == pytest.approx(0.5, abs=0.01)
        assert low <= np.corrcoef(drawn[:, ::3].ravel(), drawn[:, 1::3].ravel())[0, 1] <= high
        assert abs(np.corrcoef(drawn[:, 0], drawn[:, 3])[0, 1]) < 0.15


def test_the_lower_end_of_a_calibration_error_is_a_test_of_calibration() -> None:
    """It is above 0 just where the error seen is larger than 95% of those of labels drawn from what was stated."""
    rejected = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        p = rng.random(150)
        right = rng.random(150) < p ** (1 + 0.5 * (seed % 2))
        bins = np.minimum((p * 10).astype(int), 9)
        shares = np.tile(np.bincount(bins, minlength=10) / 150, (1000, 1))
        low, high = calibration_error_interval(right, p, bins, np.arange(150), shares, 0.95, seed)

        def error(labels: np.ndarray, p: np.ndarray = p, bins: np.ndarray = bins) -> float:
            return float(np.abs(np.bincount(bins, labels - p, 10)).sum() / 150)

        share = np.mean([error(rng.random(150) < p) >= error(right) for _ in range(1000)])
        assert low <= error(right) <= high
        if abs(share - 0.05) > 0.02:  # two simulations of 1000 may differ by that
            assert (low > 0) == (share < 0.05)
            rejected.append(low > 0)
    assert 3 < sum(rejected) < len(rejected) - 3


@pytest.mark.parametrize("turned", [False, True])
def test_a_calibration_error_of_images_that_are_all_negative_may_be_larger_than_the_one_seen(turned: bool) -> None:
    """It is then the mean of what was stated, so its upper end is that of this mean."""
    rng = np.random.default_rng(0)
    for n in (40, 400):
        p = rng.beta(1, 3, n)
        right, stated = np.full(n, turned), 1 - p if turned else p
        bins = np.minimum((stated * 10).astype(int), 9)
        shares = rng.multinomial(n, np.bincount(bins, minlength=10) / n, 4000) / n
        low, high = calibration_error_interval(right, stated, bins, np.arange(n), shares, 0.95, seed=1)
        end = p.mean() + norm.ppf(0.975) * p.std() / np.sqrt(n)
        assert low < p.mean() < high
        assert high - p.mean() == pytest.approx(end - p.mean(), rel=0.15)
