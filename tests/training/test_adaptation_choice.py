"""How much of a model is changed: fits against independent ones, and what adapting costs where nothing is wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from pneumoscope.decisions import calibration
from pneumoscope.decisions.calibration import Calibration
from pneumoscope.training.adaptation_choice import INTERCEPT_PRIOR, SLOPE_PRIOR, Images, choose, fit

Floats = NDArray[np.float64]


def make_images(labels: NDArray[np.int64], scores: Floats, features: Floats | None = None) -> Images:
    n = len(labels)
    if scores.ndim == 1:
        scores = np.stack([np.zeros(n), scores], axis=1)
    found = np.zeros((n, 0)) if features is None else features
    return Images(labels, log_softmax(scores, axis=1), found, np.ones(n), np.arange(n))


def test_without_a_prior_slope_and_intercept_are_those_of_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=300)
    scores = rng.normal(3 * labels + 1, 2)
    change = fit(make_images(labels, scores), "scaling", width=1e4)
    known = LogisticRegression(C=np.inf, tol=1e-10).fit(scores[:, None], labels)
    moved = change.apply(make_images(labels, scores).log_probabilities, np.zeros((300, 0)))
    assert change.slope == pytest.approx(known.coef_[0, 0], rel=1e-4)
    np.testing.assert_allclose(moved, known.predict_log_proba(scores[:, None]), atol=1e-4)


def test_intercepts_alone_adjust_to_the_classes_shares_as_maximum_likelihood_does() -> None:
    rng = np.random.default_rng(1)
    labels = rng.choice(3, p=[0.7, 0.2, 0.1], size=400)
    images = make_images(labels, rng.normal(2 * np.eye(3)[labels], 1))
    change = fit(images, "intercept", width=1e4)
    mean = np.exp(change.apply(images.log_probabilities, images.features)).mean(0)
    np.testing.assert_allclose(mean, np.bincount(labels) / 400, atol=1e-6)  # the score equations of intercepts


def test_a_penalised_fit_is_the_maximum_of_likelihood_and_priors() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(2, size=60)
    features = rng.normal(labels[:, None] * 0.7, 1, (60, 3))
    images = make_images(labels, rng.normal(labels + 1.0, 1), features)
    change = fit(images, "head", width=2.0)
    base = images.log_probabilities
    centre, centred = base.mean(0), features - features.mean(0)
    widths = 2 * np.array([INTERCEPT_PRIOR, SLOPE_PRIOR, 1, 1, 1])

    def loss(theta: Floats) -> float:
        scores = base + theta[1] * (base - centre)
        scores[:, 1] += theta[0] + centred @ theta[2:]
        return float(-log_softmax(scores, axis=1)[np.arange(60), labels].sum() + ((theta / widths) ** 2).sum() / 2)

    best = minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-8}).x
    assert change.intercepts[1] == pytest.approx(best[0], abs=1e-4)
    assert change.slope == pytest.approx(1 + best[1], abs=1e-4)
    assert change.direction is not None
    np.testing.assert_allclose(change.direction, best[2:], atol=1e-4)
    assert np.abs(best).max() < np.abs(minimize(lambda t: loss(t) - ((t / widths) ** 2).sum() / 2, best).x).max()


@pytest.mark.parametrize(
    "parent",
    [
        Calibration(),
        Calibration("platt", 1.4, -0.3, offset=(-0.5, 0.2)),
        Calibration("isotonic", knots=((-2.0, 0.1), (0.0, 0.4), (3.0, 0.9))),
    ],
)
def test_a_calibration_that_follows_another_gives_the_moved_log_odds(parent: Calibration) -> None:
    logits = np.array([[-2.0], [0.0], [3.0]])
    before = calibration.apply(logits, parent)
    after = calibration.apply(logits, calibration.follow(parent, 0.7, [0.2, -0.4]))
    np.testing.assert_allclose(np.diff(after), 0.7 * np.diff(before) - 0.6, atol=1e-9)


def test_a_calibration_of_three_classes_that_follows_another_gives_the_moved_log_probabilities() -> None:
    logits = np.random.default_rng(3).normal(size=(5, 3))
    parent = Calibration("temperature", 0.8, offset=(0.1, 0.0, -0.2))
    shifts = np.array([0.3, -0.1, 0.0])
    after = calibration.apply(logits, calibration.follow(parent, 1.5, shifts))
    np.testing.assert_allclose(after, log_softmax(1.5 * calibration.apply(logits, parent) + shifts, axis=1), atol=1e-9)


def simulate_change(n: int, sites: int, draw_site: Callable[[np.random.Generator], tuple[float, float]]) -> float:
    """The mean change of the log loss on new images, over sites with another slope and intercept."""
    changes = []
    for seed in range(sites):
        rng = np.random.default_rng(seed)
        slope, intercept = draw_site(rng)
        labels = np.concatenate([[0, 1], rng.integers(2, size=n + 1998)])
        truth = 2.2 * rng.normal((2 * labels - 1) * 1.1, 1)
        stated = (truth - intercept) / slope
        here, there = make_images(labels[:n], stated[:n]), make_images(labels[n:], stated[n:])
        change = choose(here, seed=seed).change
        before = there.log_probabilities
        after = before if change is None else change.apply(before, there.features)
        rows = np.arange(len(before)), there.labels
        changes.append(float((before[rows] - after[rows]).mean()))
    return float(np.mean(changes))


def test_adapting_lowers_the_log_loss_in_expectation_and_costs_little_where_nothing_is_wrong() -> None:
    def draw_site(rng: np.random.Generator) -> tuple[float, float]:
        return float(np.exp(rng.normal(0, 0.4))), float(rng.normal(0, 1))

    assert simulate_change(30, 30, draw_site) < -0.005
    assert simulate_change(30, 30, lambda _: (1.0, 0.0)) < 0.006


def test_a_patient_with_many_images_does_not_pass_for_evidence() -> None:
    # Every image of one patient out of five is twenty times there: five patients decide nothing.
    rng = np.random.default_rng(4)
    labels = np.repeat([0, 1, 0, 1, 1], 20)
    scores = np.repeat(rng.normal(0, 1, 5), 20)
    plain = make_images(labels, scores)
    grouped = Images(labels, plain.log_probabilities, plain.features, plain.weights, np.repeat(np.arange(5), 20))
    assert choose(plain).change is not None
    assert choose(grouped).change is None
