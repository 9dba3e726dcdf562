"""Thresholds by rule: each is the best among all there are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, logit

from pneumoscope.decisions.threshold import Threshold, fit, parse_rule
from pneumoscope.errors import UsageError

IMAGES = st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=2, max_size=30)


def rates(y: np.ndarray, p: np.ndarray, threshold: float) -> tuple[float, float, float]:
    called = p >= threshold
    hits, alarms = (called & (y == 1)).sum(), (called & (y == 0)).sum()
    return hits / (y == 1).sum(), 1 - alarms / (y == 0).sum(), 2 * hits / (hits + alarms + (y == 1).sum())


@given(IMAGES)
def test_no_other_threshold_is_better(images: list[tuple[bool, int]]) -> None:
    y, p = np.array([int(label) for label, _ in images]), np.array([grade / 20 for _, grade in images])
    assume(0 < y.sum() < len(y))
    every = [rates(y, p, cut) for cut in (*p, 0.0, 1.0)]
    sensitivity, specificity, _ = rates(y, p, fit("youden", y, p).value)
    assert sensitivity + specificity == pytest.approx(max(each[0] + each[1] for each in every))
    assert rates(y, p, fit("f1", y, p).value)[2] == pytest.approx(max(each[2] for each in every))
    sensitivity, specificity, _ = rates(y, p, fit("sensitivity>=0.8", y, p).value)
    assert sensitivity >= 0.8
    assert specificity == pytest.approx(max(each[1] for each in every if each[0] >= 0.8))


@given(IMAGES)
def test_specificity_is_reached_unless_the_highest_probability_is_1(images: list[tuple[bool, int]]) -> None:
    y, p = np.array([int(label) for label, _ in images]), np.array([grade / 25 for _, grade in images])
    assume(0 < y.sum() < len(y))
    every = [rates(y, p, cut) for cut in (*p, 1.0)]
    sensitivity, specificity, _ = rates(y, p, fit("specificity>=0.9", y, p).value)
    assert specificity >= 0.9
    assert sensitivity == pytest.approx(max(each[0] for each in every if each[1] >= 0.9))


def test_a_threshold_lies_between_images() -> None:
    y, p = [0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9]
    for rule in ("youden", "f1", "sensitivity>=1", "specificity>=1"):
        assert fit(rule, y, p).value == pytest.approx(0.4)


def test_weights_count_images_several_times() -> None:
    y, p = [0, 1, 0, 1], [0.2, 0.4, 0.6, 0.8]
    assert fit("f1", y, p, [1, 1, 50, 1]).value == pytest.approx(
        fit("f1", [0, 1, *[0] * 50, 1], [0.2, 0.4, *[0.6] * 50, 0.8]).value
    )


@given(st.integers(0, 2**32 - 1), st.floats(0.5, 3), st.floats(-2, 2))
@settings(max_examples=30, deadline=None)
def test_likelihood_is_where_a_logistic_curve_with_equal_classes_passes_one_half(
    seed: int, distance: float, moved: float
) -> None:
    rng = np.random.default_rng(seed)
    y = (np.arange(400) < rng.integers(50, 350)).astype(int)
    z = distance * (y - 0.5) + rng.normal(size=400) + moved
    weights = 1 / np.bincount(y)[y]
    sign = 2 * y - 1
    independent = minimize(lambda a: (weights * np.logaddexp(0, -sign * (a[0] * z + a[1]))).sum(), np.zeros(2)).x
    there = float(-independent[1] / independent[0])
    assert logit(fit("likelihood", y, expit(z)).value) == pytest.approx(there, abs=0.1)


def test_likelihood_lies_between_classes_that_do_not_overlap_and_goes_by_all_images() -> None:
    y, p = np.repeat([0, 1], 20), np.r_[np.linspace(0.01, 0.2, 20), np.linspace(0.6, 0.99, 20)]
    apart = fit("likelihood", y, p).value
    assert 0.2 < apart < 0.6
    stray = p.copy()
    stray[19] = 0.7
    assert apart < fit("likelihood", y, stray).value < 0.6


def test_likelihood_varies_less_than_youden_from_sample_to_sample() -> None:
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 50)
    drawn = [expit(2.5 * (2 * y - 1) + 2 * rng.normal(size=100)) for _ in range(40)]
    spread = {rule: np.std([logit(fit(rule, y, p).value) for p in drawn]) for rule in ("likelihood", "youden")}
    assert spread["likelihood"] < 0.7 * spread["youden"]


def test_likelihood_does_not_depend_on_the_prevalence_that_images_are_weighted_for() -> None:
    y, p = np.array([0, 0, 1, 0, 1, 1]), np.array([0.1, 0.3, 0.35, 0.6, 0.7, 0.9])
    weights = np.where(y == 1, 9.0, 1.0)
    assert fit("likelihood", y, p, weights).value == pytest.approx(fit("likelihood", y, p).value)


def test_costs_and_numbers_need_no_images() -> None:
    assert fit("cost=4", [0, 1], [0.5, 0.5]).value == pytest.approx(0.2)
    assert fit("0.3", [0, 1], [0.5, 0.5]).value == 0.3
    # Elkan (2001): at that probability a miss and a false alarm are expected to cost the same.
    assert pytest.approx(0.8 * 1) == 0.2 * 4


@pytest.mark.parametrize(
    "text", ["", "best", "1.5", "-0.1", "nan", "cost=0", "cost", "sensitivity>=2", "youden=3", "f1>=1"]
)
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a valid rule"):
        parse_rule(text)


@pytest.mark.parametrize(
    ("text", "kind", "moves"),
    [
        ("youden", "youden", True),
        ("Likelihood", "likelihood", True),
        ("F1", "f1", True),
        ("sensitivity>=0.95", "sensitivity", True),
        (" specificity >= 0.9 ", "specificity", True),
        ("cost=2", "cost", False),
        ("0.5", "fixed", False),
        ("1", "fixed", False),
    ],
)
def test_rules_are_read_as_one_writes_them(text: str, kind: str, moves: bool) -> None:
    assert (parse_rule(text).kind, Threshold(0.5, text).follows_prevalence) == (kind, moves)


def test_equal_probabilities_leave_the_threshold_at_one_half() -> None:
    """As after a network that learned nothing: no curve has a slope then, and 0 / 0 was written into the model."""
    assert fit("likelihood", [0, 1, 0, 1], [0.3] * 4).value == 0.5
