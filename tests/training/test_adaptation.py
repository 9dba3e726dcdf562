"""Fitting what a model decides by to another source's images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.special import logit

from pneumoscope.decisions.calibration import Calibration
from pneumoscope.decisions.decisions import Decider, Decisions
from pneumoscope.decisions.groups import Group, align, align_head
from pneumoscope.decisions.ood import OOD, fit_mahalanobis
from pneumoscope.decisions.prediction_sets import PredictionSets
from pneumoscope.decisions.scope import Scope
from pneumoscope.decisions.threshold import Threshold
from pneumoscope.errors import UsageError
from pneumoscope.inference.predictor import compute_logits
from pneumoscope.training.adaptation import Adapted, Local, Parent, Wishes, check_wishes, describe_changes, fit

TWO = ("NORMAL", "PNEUMONIA")
THREE = ("A", "B", "C")


def make_parent(classes: tuple[str, ...] = TWO, **changes: Any) -> Parent:
    """A model whose logits are its first features; it was fitted where these were rightly scaled."""
    rng, count = np.random.default_rng(0), len(classes)
    calibrated = Calibration(class_fractions=(1 / count,) * count)
    two = count == 2
    decisions = Decisions(
        calibrated,
        Threshold(0.5, "likelihood") if two else None,
        PredictionSets(0.1, {name: tuple(np.linspace(0.1, 1, 50)) for name in classes}),
        OOD("mahalanobis", 0.05, {name: tuple(np.linspace(0.5, 1.5, 100)) for name in classes}),
        class_thresholds=() if two else (1 / count,) * count,
    )
    outputs = 1 if two else count
    weight = np.eye(outputs, 4, dtype=np.float32)
    detector = fit_mahalanobis(rng.normal(size=(400, 6)))
    return Parent(classes, weight, np.zeros(outputs, np.float32), replace(decisions, **changes), detector)


def make_local(n: int, *, seed: int = 0, spread: float = 1.0, prevalence: float = 0.5, lost: float = 0.0) -> Local:
    """Images whose first feature is three times too large, and whose second tells what the first does not."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < prevalence).astype(np.int64)
    features = rng.normal(size=(n, 4))
    features[:, 0] = 3 * (1.5 * rng.normal((2 * labels - 1) * 0.75, 1) + logit(prevalence)) + lost
    features[:, 1] += labels
    return Local(
        labels, features.astype(np.float32), (spread * rng.normal(size=(n, 6))).astype(np.float32), np.arange(n)
    )


def decide(parent: Parent, adapted: Adapted, local: Local) -> Any:
    decider = Decider(parent.classes, adapted.decisions, parent.detector)
    return decider.apply(compute_logits(local.features, adapted.weight, adapted.bias), local.intermediate)


def find_loss(parent: Parent, adapted: Adapted, local: Local) -> float:
    probabilities = decide(parent, adapted, local).probabilities
    return float(-np.log(probabilities[np.arange(len(local.labels)), local.labels]).mean())


def test_overconfident_probabilities_are_flattened_and_the_promises_hold_on_new_images() -> None:
    parent, new = make_parent(), make_local(4000, seed=99, spread=1.6)
    adapted = fit(parent, make_local(300, spread=1.6), Wishes())
    alone = Adapted(parent.decisions, parent.weight, parent.bias, adapted.choice)
    assert adapted.choice.chosen.step == "scaling"
    assert adapted.decisions.calibration.slope == pytest.approx(1 / 3, rel=0.35)
    assert find_loss(parent, adapted, new) < find_loss(parent, alone, new) - 0.2
    outcome = decide(parent, adapted, new)
    for label in (0, 1):
        assert outcome.in_set[new.labels == label, label].mean() == pytest.approx(0.9, abs=0.05)
    before, after = ((decide(parent, each, new).ood_scores > 1).mean() for each in (alone, adapted))
    assert before > 0.3
    assert after == pytest.approx(0.05, abs=0.04)
    assert "slope and intercept" in describe_changes(parent, adapted)[0]


def test_what_few_images_cannot_tell_from_the_model_stays() -> None:
    parent = make_parent()
    local = make_local(24, seed=3)
    calm = replace(local, features=(local.features / np.array([3, 1, 1, 1])).astype(np.float32))
    adapted = fit(parent, calm, Wishes(head=True))
    assert adapted.choice.chosen.step == "unchanged"
    assert adapted.weight is parent.weight
    assert adapted.decisions.calibration == parent.decisions.calibration
    assert "left as they were" in describe_changes(parent, adapted)[0]


def test_another_head_uses_what_the_old_one_overlooked() -> None:
    parent, local, new = make_parent(), make_local(400), make_local(4000, seed=99)
    plain, other = fit(parent, local, Wishes()), fit(parent, local, Wishes(head=True))
    assert other.choice.chosen.step == "head"
    assert find_loss(parent, other, new) < find_loss(parent, plain, new) - 0.03
    held_out = -other.choice.held_out[np.arange(400), local.labels].mean()
    assert held_out == pytest.approx(find_loss(parent, other, new), abs=0.06)


def test_prediction_sets_and_limits_are_the_conformal_quantiles_of_these_images() -> None:
    parent, local = make_parent(), make_local(120, spread=1.5)
    adapted = fit(parent, local, Wishes(alpha=0.2, false_alarms=0.04))
    sets, limits = adapted.decisions.prediction_sets, adapted.decisions.ood
    assert sets is not None
    assert limits is not None
    assert parent.detector is not None
    own = np.exp(adapted.choice.held_out[np.arange(120), local.labels])
    distances = parent.detector.measure(local.intermediate)
    quantiles = []
    for label, name in enumerate(TWO):
        n = int((local.labels == label).sum())
        assert sets.scores[name] == pytest.approx(np.sort(own[local.labels == label]))
        assert sets.rank(name) == int(0.2 * (n + 1))
        quantiles.append(np.sort(distances[local.labels == label])[int(np.ceil((n + 1) * 0.96)) - 1])
    assert limits.limit == pytest.approx(max(quantiles))


def test_few_images_never_make_the_detector_stricter() -> None:
    parent = make_parent()
    assert parent.decisions.ood is not None
    for spread, larger in ((0.1, False), (5.0, True)):
        adapted = fit(parent, make_local(16, spread=spread), Wishes())
        assert adapted.decisions.ood is not None
        own = parent.decisions.ood.limit
        assert adapted.decisions.ood.limit > own if larger else adapted.decisions.ood.limit == own


def test_probabilities_hold_for_the_prevalence_that_is_stated() -> None:
    parent, local, new = make_parent(), make_local(400), make_local(6000, seed=99, prevalence=0.1)
    moved = replace(new, features=new.features.copy())
    moved.features[:, 0] -= 3 * logit(0.1)  # each class looks as in `local`, and only its share differs
    adapted = fit(parent, local, Wishes(prevalence=0.1))
    assert adapted.decisions.calibration.class_fractions == pytest.approx((0.9, 0.1))
    assert decide(parent, adapted, moved).probabilities[:, 1].mean() == pytest.approx(0.1, abs=0.03)


def test_a_rule_for_the_threshold_is_met_on_new_images() -> None:
    parent, new = make_parent(), make_local(6000, seed=99)
    adapted = fit(parent, make_local(400), Wishes(threshold="sensitivity>=0.9"))
    assert (decide(parent, adapted, new).predicted[new.labels == 1] == 1).mean() == pytest.approx(0.9, abs=0.05)
    fixed = fit(parent, make_local(400), Wishes(threshold="0.3"))
    assert fixed.decisions.threshold == Threshold(0.3, "0.3")


def test_three_classes_get_a_slope_and_intercepts() -> None:
    parent, rng = make_parent(THREE), np.random.default_rng(5)
    labels = rng.choice(3, p=[0.6, 0.3, 0.1], size=500)
    features = rng.normal(size=(500, 4))
    features[:, :3] = 2.5 * (1.5 * np.eye(3)[labels] + features[:, :3])
    local = Local(labels, features.astype(np.float32), rng.normal(size=(500, 6)).astype(np.float32), np.arange(500))
    adapted = fit(parent, local, Wishes())
    alone = Adapted(parent.decisions, parent.weight, parent.bias, adapted.choice)
    assert adapted.choice.chosen.step == "scaling"
    assert find_loss(parent, adapted, local) < find_loss(parent, alone, local) - 0.1
    assert adapted.decisions.class_thresholds == adapted.decisions.calibration.class_fractions
    adapted.decisions.calibration.check(3)


def test_what_a_model_does_not_allow_is_refused() -> None:
    with pytest.raises(UsageError, match="is for two classes; this model has 3"):
        check_wishes(make_parent(THREE), Wishes(head=True))
    isotonic = Calibration("isotonic", knots=((-1.0, 0.1), (1.0, 0.9)), class_fractions=(0.5, 0.5))
    with pytest.raises(UsageError, match="isotonic"):
        check_wishes(make_parent(calibration=isotonic), Wishes(head=True))
    for wrong in (Wishes(alpha=1.0), Wishes(false_alarms=0.0), Wishes(prevalence=2.0), Wishes(threshold="best")):
        with pytest.raises(UsageError):
            check_wishes(make_parent(), wrong)
    adapted = fit(make_parent(calibration=isotonic), make_local(200), Wishes())
    adapted.decisions.calibration.check(2)


def test_images_of_one_class_as_in_a_fold_leave_the_threshold_and_put_the_other_class_into_every_set() -> None:
    parent, local = make_parent(), make_local(60)
    negatives = local.take(local.labels == 0)
    adapted = fit(parent, negatives, Wishes())
    outcome = decide(parent, adapted, make_local(200, seed=9))
    assert np.isfinite(outcome.probabilities).all()
    assert adapted.decisions.threshold == parent.decisions.threshold
    assert outcome.in_set[:, 1].all()


@pytest.mark.parametrize("head", [False, True])
def test_images_of_a_group_adapt_a_model_as_if_its_slope_and_intercept_were_in_the_head(head: bool) -> None:
    sets = PredictionSets(0.1, dict.fromkeys(TWO, (0.5,) * 50))
    group = Group("adults", Scope((18.0, 120.0)), slope=2.0, intercept=-1.0, prediction_sets=sets)
    parent, local, new = make_parent(groups=(group,)), make_local(300, lost=1.0), make_local(200, seed=5)
    weight, bias = align_head(parent.weight, parent.bias, group)
    plain = replace(make_parent(), weight=weight.astype(np.float32), bias=bias.astype(np.float32))
    wishes = Wishes(head=head)
    adapted, expected = fit(parent, replace(local, groups=(group,) * 300), wishes), fit(plain, local, wishes)
    assert adapted.choice.chosen.step == expected.choice.chosen.step
    assert adapted.decisions.groups == (replace(group, prediction_sets=None),)
    moved = align(compute_logits(new.features, adapted.weight, adapted.bias), group)
    found = Decider(TWO, adapted.decisions).apply(moved, group=adapted.decisions.groups[0])
    wanted = Decider(TWO, expected.decisions).apply(compute_logits(new.features, expected.weight, expected.bias))
    np.testing.assert_allclose(found.probabilities, wanted.probabilities, atol=1e-3)
    assert "Groups (adults): slopes and intercepts stay" in describe_changes(parent, adapted)[-1]
    mixed = replace(local, groups=(group, None) * 150)
    assert mixed.take(np.arange(300) % 2 == 0).groups == (group,) * 150
