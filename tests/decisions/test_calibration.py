"""Calibration: against independent fits, on data whose true probabilities are known, and where there is little."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit, softmax

from pneumoscope.decisions import calibration
from pneumoscope.decisions.calibration import Method
from pneumoscope.errors import UsageError
from pneumoscope.evaluation.metrics import measure

Floats = NDArray[np.float64]


def overconfident(n: int, seed: int = 0) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Logits three times too large and shifted, labels, and the true probabilities."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0.5, 1.5, n)
    return 3 * true[:, None] + 1, (rng.random(n) < expit(true)).astype(np.int64), expit(true)


def test_platt_is_a_logistic_regression_where_images_are_many_and_other_shares_are_added() -> None:
    from sklearn.linear_model import LogisticRegression

    z, y, _ = overconfident(20_000)
    trained = np.bincount(y) / len(y)
    fitted = calibration.fit(z, y, method="platt", class_fractions=(0.9, 0.1), trained_for=trained.tolist())
    plain = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(z, y)
    assert (fitted.slope, fitted.intercept) == pytest.approx((plain.coef_[0, 0], plain.intercept_[0]), abs=0.005)
    assert fitted.offset == pytest.approx(np.log([0.9, 0.1] / trained))
    assert fitted.class_fractions == (0.9, 0.1)
    odds = np.exp(calibration.apply(z, fitted)[:, 1] - calibration.apply(z, fitted)[:, 0])
    as_trained = plain.predict_proba(z)
    expected = as_trained[:, 1] / as_trained[:, 0] * (0.1 / trained[1]) / (0.9 / trained[0])
    np.testing.assert_allclose(odds, expected, rtol=0.02)


def test_the_fit_is_the_most_probable_of_a_grid_and_few_images_change_little() -> None:
    for n in (6, 60):
        z, y, _ = overconfident(n, seed=3)
        fitted = calibration.fit(z, y, method="platt")
        slopes, intercepts = np.linspace(-3, 3, 301)[:, None, None], np.linspace(-2, 2, 201)[None, :, None]
        t = np.exp(slopes) * z[:, 0] + intercepts
        posterior = -np.logaddexp(0, np.where(y == 1, -t, t)).sum(2) - 2 * (slopes**2 + intercepts**2)[..., 0]
        i, j = np.unravel_index(posterior.argmax(), posterior.shape)
        best = slopes[i, 0, 0], intercepts[0, j, 0]
        assert (np.log(fitted.slope), fitted.intercept) == pytest.approx(best, abs=0.03)
    few = calibration.fit(*overconfident(6, seed=3)[:2], method="platt")
    many = calibration.fit(*overconfident(2000, seed=3)[:2], method="platt")
    assert abs(np.log(few.slope)) < abs(np.log(many.slope)) == pytest.approx(np.log(3), abs=0.2)


def test_temperature_is_the_best_of_a_grid() -> None:
    rng = np.random.default_rng(1)
    z = rng.normal(0, 4, (200, 3))
    y = np.array([rng.choice(3, p=softmax(row / 2.5)) for row in z])
    fitted = calibration.fit(z, y)
    assert fitted.method == "temperature"

    def loss(slope: float) -> float:
        return float(2 * np.log(slope) ** 2 - np.log(softmax(slope * z, axis=1))[np.arange(200), y].sum())

    assert fitted.slope == pytest.approx(min(np.geomspace(0.1, 2, 4000), key=loss), rel=2e-3)
    assert fitted.slope == pytest.approx(0.4, rel=0.25)


@pytest.mark.parametrize("method", ["platt", "isotonic", "auto"])
def test_probabilities_come_close_to_the_true_ones(method: Method) -> None:
    z, y, _ = overconfident(4000)
    fitted = calibration.fit(z, y, method=method)
    z, y, true = overconfident(4000, seed=1)
    before, after = expit(z[:, 0]), np.exp(calibration.apply(z, fitted))[:, 1]
    assert np.abs(after - true).mean() < 0.02
    assert np.abs(before - true).mean() > 0.1
    assert fitted.after["log_loss"] < fitted.before["log_loss"]
    ece = [measure(y, p)["ece"] for p in (before, after)]
    assert ece[1] < 0.04 < ece[0]
    assert fitted.after["log_loss"] < 0.95 * fitted.before["log_loss"]


@pytest.mark.parametrize("classes", [2, 3])
def test_a_network_of_equal_classes_is_stated_for_unequal_ones(classes: int) -> None:
    rng = np.random.default_rng(5)
    shares = np.array([0.7, 0.2, 0.1][:classes]) / sum([0.7, 0.2, 0.1][:classes])
    y = rng.choice(classes, 6000, p=shares)
    x = rng.normal(0, 1, (6000, classes)) + 1.5 * np.eye(classes)[y]  # log likelihood ratios: 1.5 times differences
    z = 1.5 * (x[:, 1:] - x[:, :1]) if classes == 2 else 1.5 * x
    fitted = calibration.fit(
        z, y, method="temperature", class_fractions=shares.tolist(), trained_for=[1 / classes] * classes
    )
    p = np.exp(calibration.apply(z, fitted))
    assert fitted.slope == pytest.approx(1, abs=0.1)
    assert p.mean(0) == pytest.approx(shares, abs=0.02)
    assert np.exp(calibration.apply(z, calibration.fit(z, y, method="temperature"))).mean(0) != pytest.approx(
        shares, abs=0.05
    )


def test_what_it_changed_is_judged_on_images_it_was_not_fitted_on() -> None:
    rng = np.random.default_rng(0)
    z, y = rng.normal(0, 1, (60, 1)), rng.integers(0, 2, 60)  # noise: isotonic fits it, and gains nothing
    fitted = calibration.fit(z, y, method="isotonic")
    p = np.exp(calibration.apply(z, fitted))
    in_sample = -np.log(p[np.arange(60), y]).mean()
    assert in_sample < np.log(2) < fitted.after["log_loss"]


def test_auto_goes_by_number_and_by_what_helps() -> None:
    z, y, _ = overconfident(30)
    assert calibration.fit(z, y).method == "temperature"
    z, y, _ = overconfident(400)
    assert calibration.fit(z, y).method == "platt"


def with_certain_errors() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Calibrated logits, and a few that are certain, one of them wrong: a temperature cannot help both."""
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2, 88)
    y = rng.random(88) < 1 / (1 + np.exp(-z))
    certain = np.repeat([27.6, -27.6], 6)
    truth = certain > 0
    truth[0] = False
    return np.concatenate([z, certain])[:, None], np.concatenate([y, truth]).astype(np.int64)


def test_auto_leaves_probabilities_alone_where_every_method_does_harm() -> None:
    z, y = with_certain_errors()
    fitted = calibration.fit(z, y)
    assert fitted.method == "none"
    assert fitted.tried["none"] == pytest.approx(fitted.before["log_loss"])
    assert min(fitted.tried["temperature"], fitted.tried["platt"]) > 1.05 * fitted.tried["none"]
    alone = calibration.fit(z, y, method="none")
    np.testing.assert_array_equal(calibration.apply(z, fitted), calibration.apply(z, alone))


@pytest.mark.parametrize("classes", [2, 3])
def test_auto_still_fits_where_none_is_hardly_better(classes: int) -> None:
    rng = np.random.default_rng(8)
    z = rng.normal(0, 2, (60, classes))
    y = np.array([rng.choice(classes, p=softmax(row)) for row in z])  # already calibrated
    z = z[:, 1:] - z[:, :1] if classes == 2 else z
    fractions = (np.bincount(y) / len(y)).tolist()
    for trained_for in (None, [1 / classes] * classes):
        fitted = calibration.fit(z, y, class_fractions=fractions, trained_for=trained_for)
        fits = {name: loss for name, loss in fitted.tried.items() if name != "none"}
        clearly = fitted.tried["none"] < 0.95 * min(fits.values())
        assert fitted.method == ("none" if clearly else min(fits, key=lambda name: fits[name]))
        assert fitted.tried[fitted.method] == fitted.after["log_loss"]
    assert calibration.fit(3 * z, y).method != "none"


def test_a_fit_says_what_it_changed_even_where_it_is_none() -> None:
    z, y = with_certain_errors()
    chosen, given_one = calibration.fit(z, y), calibration.fit(z, y, method="temperature")
    assert (chosen.method, given_one.method) == ("none", "temperature")
    told = calibration.describe_fit(chosen)
    assert f"log loss {chosen.before['log_loss']:.3f}; every method raises it: temperature" in told
    told = calibration.describe_fit(given_one)
    assert f"{given_one.after['log_loss']:.3f} (uncalibrated {given_one.before['log_loss']:.3f})" in told
    assert "no improvement" in told
    assert "improvement" not in calibration.describe_fit(calibration.fit(*overconfident(400)[:2]))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["temperature", "platt", "isotonic"]), st.integers(2, 40), st.integers(0, 10**6), st.booleans())
def test_order_is_kept_and_nothing_is_certain(method: Method, n: int, seed: int, separable: bool) -> None:
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 3, n)
    y = (z > np.median(z)).astype(int) if separable else rng.integers(0, 2, n)
    y[np.argmin(z)], y[np.argmax(z)] = 0, 1
    fitted = calibration.fit(z[:, None], y, method=method, class_fractions=(0.25, 0.75))
    p = np.exp(calibration.apply(np.sort(np.append(z, [-50, 50]))[:, None], fitted))
    assert (np.diff(p[:, 1]) >= -1e-12).all()
    assert np.isfinite([fitted.slope, fitted.intercept, *fitted.after.values()]).all()
    within = np.exp(calibration.apply(z[:, None], fitted))[:, 1]
    assert ((within > 0) & (within < 1)).all()


def test_none_leaves_the_sigmoid_and_is_measured_too() -> None:
    z, y, _ = overconfident(50)
    fitted = calibration.fit(z, y, method="none")
    np.testing.assert_allclose(np.exp(calibration.apply(z, fitted))[:, 1], expit(z[:, 0]))
    assert fitted.before == fitted.after
    assert fitted.before["brier"] == pytest.approx(np.mean((expit(z[:, 0]) - y) ** 2))


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_some_methods_are_for_two_classes(method: Any) -> None:
    with pytest.raises(UsageError, match="two classes only"):
        calibration.fit(np.zeros((6, 3)), [0, 1, 2] * 2, method=method)
