"""Thresholds of more than two classes: no class is forgotten because it is rare."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.metrics import balanced_accuracy_score

from pneumoscope.decisions.calibration import Calibration
from pneumoscope.decisions.decisions import Decider, Decisions
from pneumoscope.decisions.threshold import apply_by_class, fit_by_class
from pneumoscope.errors import UsageError

FRACTIONS = (0.8, 0.15, 0.05)


def draw(n: int, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Labels with these fractions, and the true probabilities of three overlapping classes."""
    rng = np.random.default_rng(seed)
    y = rng.choice(3, n, p=FRACTIONS)
    centres = np.array([[0, 0], [1.5, 0], [0, 1.5]])
    x = centres[y] + rng.standard_normal((n, 2))
    joint = np.stack(
        [share * multivariate_normal(c).pdf(x) for share, c in zip(FRACTIONS, centres, strict=True)], axis=1
    )
    return y, joint / joint.sum(1, keepdims=True)


def test_thresholds_make_sensitivity_best_on_average_over_the_classes() -> None:
    y, p = draw(20_000, 0)
    likeliest, chosen = (
        balanced_accuracy_score(y, apply_by_class(p, cut)) for cut in (0.5, fit_by_class("likelihood", FRACTIONS))
    )
    assert chosen > likeliest + 0.15
    others = np.random.default_rng(1).dirichlet(np.ones(3), 200)
    assert max(balanced_accuracy_score(y, apply_by_class(p, cut)) for cut in others) < chosen + 0.01


def test_labels_do_not_depend_on_the_shares_of_the_classes_in_training() -> None:
    _, p = draw(500, 2)
    for fractions in ((1 / 3, 1 / 3, 1 / 3), (0.1, 0.1, 0.8)):
        moved = p / FRACTIONS * fractions
        moved /= moved.sum(1, keepdims=True)
        labels = apply_by_class(moved, fit_by_class("likelihood", fractions))
        assert (labels == apply_by_class(p, fit_by_class("likelihood", FRACTIONS))).all()


def test_a_half_is_the_likeliest_class() -> None:
    _, p = draw(50, 3)
    assert fit_by_class("0.5", FRACTIONS) == ()
    assert (apply_by_class(p, 0.5) == p.argmax(1)).all()


@pytest.mark.parametrize("rule", ["youden", "f1", "sensitivity>=0.95", "specificity>=0.9", "cost=5", "0.3"])
def test_rules_of_two_classes_are_refused_for_more(rule: str) -> None:
    with pytest.raises(UsageError, match=r"is for two classes; there are 3\. Use likelihood"):
        fit_by_class(rule, FRACTIONS)


def test_decisions_follow_the_thresholds() -> None:
    _, p = draw(40, 4)
    for cuts in ((), FRACTIONS):
        decisions = Decisions(Calibration(class_fractions=FRACTIONS), None, class_thresholds=cuts)
        outcome = Decider(("A", "B", "C"), decisions).apply(np.log(p))
        assert outcome.predicted.tolist() == apply_by_class(p, cuts or 0.5).tolist()
        assert outcome.decisions == ["ABC"[i] for i in outcome.predicted]
        assert outcome.probabilities == pytest.approx(p)
