"""Net benefit against scikit-learn's counts, and against the expected utility it stands for."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.decision_curve import decision_curve


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


def test_what_is_known_of_every_decision_curve() -> None:
    y = np.array([1] * 30 + [0] * 70)
    perfect = decision_curve(y, y.astype(float))
    assert perfect.model == pytest.approx(0.3)
    assert perfect.everybody[29] == pytest.approx(0)  # at the prevalence
    blind = decision_curve(y, np.full(100, 0.3))
    assert blind.model == pytest.approx(np.where(blind.thresholds <= 0.3, blind.everybody, 0))
    # what is unsure of a perfect model is the prevalence
    reach = 1.96 * np.sqrt(0.3 * 0.7 / 100)
    assert perfect.low[50] == pytest.approx(0.3 - reach, abs=0.02)
    assert perfect.high[50] == pytest.approx(0.3 + reach, abs=0.02)


def test_what_has_no_net_benefit_is_named() -> None:
    with pytest.raises(DataError, match="two classes"):
        decision_curve([0], [[0.2, 0.3, 0.5]])
    with pytest.raises(UsageError, match="between 0 and 1"):
        decision_curve([0, 1], [0.2, 0.3], thresholds=[0.5, 1])
