"""Differences between models: against scipy, brute force and published tables."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, false_discovery_control, norm, ttest_rel

from pneumoscope.evaluation.intervals.differences import (
    adjust_holm,
    compare_aurocs,
    compare_macro_auroc,
    compare_means,
    compare_rates,
    mcnemar,
    tango_interval,
)


@given(st.integers(0, 25), st.integers(0, 25), st.integers(0, 10))
def test_with_one_image_a_patient_the_test_is_mcnemars_exact_one(wins: int, losses: int, ties: int) -> None:
    gain = [1] * wins + [-1] * losses + [0] * (ties + 1)
    expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    p, exact = mcnemar(gain, np.arange(len(gain)))
    assert exact
    assert p == pytest.approx(expected, abs=1e-12)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from([-1, 0, 1])), min_size=1, max_size=20))
def test_patients_are_exchanged_as_a_whole(images: list[tuple[int, int]]) -> None:
    clusters, gain = np.array(images).T
    sums = [int(gain[clusters == cluster].sum()) for cluster in set(clusters.tolist())]
    totals = [sum(sign * part for sign, part in zip(signs, sums, strict=True))
              for signs in product((-1, 1), repeat=len(sums))]  # fmt: skip
    expected = np.mean([abs(total) >= abs(sum(sums)) for total in totals])
    p, exact = mcnemar(gain, clusters)
    assert exact
    assert p == pytest.approx(expected)


@pytest.mark.parametrize(("wins", "losses", "n"), [(12, 2, 50), (0, 0, 30), (1, 0, 44), (5, 5, 20), (3, 40, 43)])
def test_tangos_interval_ends_where_the_restricted_likelihood_puts_them(wins: int, losses: int, n: int) -> None:
    def score(difference: float) -> float:
        """The score statistic, from a likelihood that is maximised numerically."""

        def deviance(share: float) -> float:
            cells = (share + difference, share, 1 - 2 * share - difference)
            counts = (wins, losses, n - wins - losses)
            return -sum(k * math.log(max(cell, 1e-300)) for k, cell in zip(counts, cells, strict=True) if k)

        bounds = (max(0.0, -difference), (1 - difference) / 2)
        share = minimize_scalar(deviance, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        return float((wins - losses - n * difference) / math.sqrt(n * (2 * share + difference * (1 - difference))))

    low, high = tango_interval(wins, losses, n)
    assert low < (wins - losses) / n < high
    assert score(low) == pytest.approx(1.96, abs=2e-3)
    assert score(high) == pytest.approx(-1.96, abs=2e-3)


def test_all_images_won_leaves_an_interval_that_ends_at_one() -> None:
    low, high = tango_interval(20, 0, 20)
    assert 0.5 < low < 1
    assert high == 1


def test_delongs_p_value_is_that_of_a_brute_force_covariance() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [23, 31])
    scores = (rng.normal(size=(2, 54)) + labels).round(1)
    probabilities = 1 / (1 + np.exp(-scores))
    pairs = [[[(x > z) + (x == z) / 2 for z in row[labels == 0]] for x in row[labels == 1]] for row in scores]
    wins = np.array(pairs)  # (2, positives, negatives)
    spread = sum(np.cov(wins.mean(axis)) / wins.shape[3 - axis] for axis in (1, 2))
    difference = wins[1].mean() - wins[0].mean()
    error = math.sqrt(spread[0, 0] + spread[1, 1] - 2 * spread[0, 1])
    found = compare_aurocs(labels, probabilities, np.arange(54))
    assert found.value == pytest.approx(difference)
    assert found.p == pytest.approx(2 * norm.sf(abs(difference) / error))
    assert found.low < difference < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_a_perfect_model_does_not_make_the_difference_certain() -> None:
    labels = np.repeat([0, 1], 20)
    perfect, other = labels * 0.8 + 0.1, np.random.default_rng(1).random(40) / 4 + labels / 2
    both = compare_aurocs(labels, np.array([perfect, other]), np.arange(40))
    assert (both.first, both.other, both.p) == (1, 1, 1)
    assert both.low < -0.1
    assert both.high > 0.1
    other[:3] = 0.9
    one = compare_aurocs(labels, np.array([perfect, other]), np.arange(40))
    assert one.low < one.value < one.high <= 0.2


def test_a_single_class_leaves_auroc_undefined() -> None:
    found = compare_aurocs(np.ones(5, int), np.full((2, 5), 0.3), np.arange(5))
    assert math.isnan(found.value)
    assert math.isnan(found.p)


def test_means_of_independent_images_are_compared_by_the_paired_t_test() -> None:
    first, other = np.random.default_rng(3).random((2, 40))
    found = compare_means(first, other, np.arange(40), resamples=400)
    expected = ttest_rel(other, first)
    limits = expected.confidence_interval()
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((limits.low, limits.high))
    assert found.bootstrap == pytest.approx((limits.low, limits.high), abs=0.03)


@pytest.mark.parametrize("metric", ["rates", "means", "areas", "macro"])
def test_images_seen_twice_do_not_count_twice(metric: str) -> None:
    rng = np.random.default_rng(4)
    labels, p = rng.integers(0, 3 if metric == "macro" else 2, 60), rng.random((2, 60))
    three = rng.dirichlet(np.ones(3), (2, 60))

    def found(copies: int) -> tuple[float, ...]:
        clusters = np.tile(np.arange(60), copies)
        y, q = np.tile(labels, copies), np.tile(p, copies)
        one = {
            "rates": lambda: compare_rates(q[0] > 0.5, q[1] > 0.3, clusters),
            "means": lambda: compare_means(q[0], q[1], clusters),
            "areas": lambda: compare_aurocs(y, q, clusters),
            "macro": lambda: compare_macro_auroc(y, np.tile(three, (1, copies, 1)), clusters, resamples=100),
        }[metric]()
        return one.value, one.low, one.high, one.p

    assert found(2) == pytest.approx(found(1), abs=2e-3)


def test_macro_auroc_tells_a_good_model_from_a_bad_one() -> None:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, 150)
    logits = rng.normal(size=(2, 150, 3))
    logits[1] += 2 * np.eye(3)[labels]
    shares = np.exp(logits)
    shares /= shares.sum(2, keepdims=True)
    found = compare_macro_auroc(labels, shares, np.arange(150), resamples=200)
    assert found.low > 0.2
    assert found.p < 1e-6
    assert found.bootstrap == pytest.approx((found.low, found.high), abs=0.05)
    same = compare_macro_auroc(labels, shares[[0, 0]], np.arange(150), resamples=20)
    assert (same.value, same.p) == (0, 1)
    assert math.isnan(same.low)


def test_holms_worked_example() -> None:
    # Four hypotheses with p = 0.01, 0.04, 0.03, 0.005: the textbook example of the step-down procedure.
    assert adjust_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust_holm([math.nan, 0.7, 0.9])[1:] == [1, 1]
    assert math.isnan(adjust_holm([math.nan, 0.7])[0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holms_correction_lies_between_none_and_bonferronis(p: list[float]) -> None:
    adjusted = np.array(adjust_holm(p))
    assert (adjusted >= false_discovery_control(p) - 1e-12).all()
    assert (adjusted <= np.minimum(1, np.array(p) * len(p)) + 1e-12).all()
    assert adjusted.min() == pytest.approx(min(1, min(p) * len(p)))
