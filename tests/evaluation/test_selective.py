"""Accuracy among the answered: against counting by hand, and what a refusal is worth."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumoscope.errors import DataError
from pneumoscope.evaluation.selective import confidence_of, selective_curve


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=1, max_size=7))
def test_the_curve_and_its_area_are_those_of_counting(calls: list[tuple[bool, int]]) -> None:
    right, sure = [hit for hit, _ in calls], [level / 4 for _, level in calls]
    curve = selective_curve(right, sure, resamples=2)
    expected = {}
    for level in set(sure):
        answered = [hit for hit, own in zip(right, sure, strict=True) if own >= level]
        expected[len(answered) / len(calls)] = sum(answered) / len(answered)
    assert dict(zip(curve.coverage, curve.accuracy, strict=True)) == pytest.approx(expected)
    # the mean over every order that the confidences allow
    areas = []
    for order in itertools.permutations(range(len(calls))):
        if all(sure[a] >= sure[b] for a, b in itertools.pairwise(order)):
            wrong = np.cumsum([not right[i] for i in order])
            areas.append(sum(Fraction(int(k), n) for n, k in enumerate(wrong, start=1)) / len(calls))
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
def test_what_is_refused_first_has_the_highest_expected_cost(shares: list[float], threshold: float) -> None:
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
def test_what_cannot_be_measured_is_named(right: Any, sure: Any) -> None:
    with pytest.raises(DataError, match="as many confidences"):
        selective_curve(right, sure)
