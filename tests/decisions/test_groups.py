"""Groups of images with decisions of their own: who belongs to one, what is fitted, what stays as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.decisions import calibration, groups, ood, prediction_sets
from pneumoscope.decisions.calibration import Calibration
from pneumoscope.decisions.decisions import Decider, Decisions
from pneumoscope.decisions.groups import (
    Group,
    Images,
    align,
    align_head,
    describe,
    find,
    find_gaps,
    read_groups,
    restore,
)
from pneumoscope.decisions.ood import OOD, fit_mahalanobis
from pneumoscope.decisions.prediction_sets import PredictionSets
from pneumoscope.decisions.rules import describe_rules, find_uncertain_range
from pneumoscope.decisions.scope import Scope
from pneumoscope.decisions.threshold import Threshold
from pneumoscope.errors import UsageError
from pneumoscope.images.dicom import Tags

CLASSES = ("NORMAL", "PNEUMONIA")
HALVES = (0.5, 0.5)
CHILDREN = Group("children", Scope((0.0, 17.0)))
ADULTS = Group("adults", Scope((18.0, 120.0)))
BEDSIDE = Group("bedside", Scope((18.0, 120.0), ("AP",)))


def draw(count: int, shift: float = 0.0, slope: float = 1.0, seed: int = 0, spread: float = 4.0) -> Images:
    """Images of equally common classes: their logits plus the shift, times the slope, are calibrated log odds."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], count)
    odds = (labels - 0.5) * spread + rng.normal(0, np.sqrt(spread), 2 * count)
    return Images((odds / slope - shift)[:, None], labels, rng.uniform(0.5, 1.5, 2 * count), [None] * (2 * count))


def pool(
    images: Images, fitted: Calibration | None = None, alpha: float = 0.1, false_alarms: float = 0.05
) -> Decisions:
    """Decisions fitted to images of all groups."""
    fitted = fitted or Calibration(class_fractions=HALVES)
    probabilities = np.exp(calibration.apply(images.logits, fitted))
    distances = {name: tuple(np.sort(images.distances[images.labels == i]).tolist()) for i, name in enumerate(CLASSES)}
    sets = prediction_sets.fit(images.labels, probabilities, CLASSES, alpha)
    return Decisions(fitted, Threshold(0.5, "0.5"), sets, OOD("mahalanobis", false_alarms, distances))


def measure_loss(images: Images, group: Group, pooled: Decisions) -> float:
    """Log loss of images decided as a group."""
    log_probabilities = calibration.apply(align(images.logits, group), pooled.calibration)
    return calibration.score(log_probabilities, images.labels, np.ones(len(images.labels)))["log_loss"]


@pytest.mark.parametrize(
    ("tags", "name"),
    [
        (Tags(age=5), "children"), (Tags(age=17.9), "children"), (Tags(age=18), "adults"), (Tags(age=121), None),
        (Tags(view="AP"), None), (Tags(), None), (None, None), (Tags(age=70, view="AP"), "bedside"),
        (Tags(age=70, view="ap"), "bedside"), (Tags(age=70, view="FRONTAL"), "adults"), (Tags(age=70), "adults"),
    ],
)  # fmt: skip
def test_the_first_group_that_an_image_is_known_to_fit_decides(tags: Tags | None, name: str | None) -> None:
    found = find((CHILDREN, BEDSIDE, ADULTS), tags)
    assert (found and found.name) == name


def test_what_a_dataset_is_known_for_counts_where_tags_say_nothing() -> None:
    source = Scope((1.0, 5.0), ("AP",))
    assert find((ADULTS, CHILDREN), None, source) is CHILDREN
    assert find((ADULTS, CHILDREN), Tags(age=40), source) is ADULTS
    assert find((Group("infants", Scope((0.0, 1.0))),), None, source) is None
    assert find((Group("PA", Scope(views=("PA",))),), None, source) is None
    assert find((Group("frontal", Scope(views=("AP", "PA"))),), Tags(view="FRONTAL")) is not None


def test_a_group_that_differs_by_two_logits_is_found_and_calibrated() -> None:
    pooled = pool(draw(300))
    fitted = groups.fit(ADULTS, draw(70, shift=2, seed=1), CLASSES, pooled, HALVES)
    new = draw(3000, shift=2, seed=2)
    assert 1.4 < fitted.intercept / fitted.slope < 2.4
    assert measure_loss(new, ADULTS, pooled) - measure_loss(new, fitted, pooled) > 0.1
    best = measure_loss(new, replace(ADULTS, intercept=2.0), pooled)
    assert measure_loss(new, fitted, pooled) - best < 0.02


def test_a_group_that_does_not_differ_is_not_made_worse_by_more_than_noise() -> None:
    pooled = pool(draw(300))
    new = draw(3000, seed=99)
    losses = [
        measure_loss(new, groups.fit(ADULTS, draw(70, seed=seed), CLASSES, pooled, HALVES), pooled)
        for seed in range(1, 9)
    ]
    assert np.mean(losses) - measure_loss(new, ADULTS, pooled) < 0.01


def test_slope_and_intercept_are_relative_to_the_calibration_of_all_images() -> None:
    images = draw(300, shift=1.5, slope=0.5, seed=3)
    plain, platt = Calibration(class_fractions=HALVES), Calibration("platt", 2.0, 0.7, class_fractions=HALVES)
    first, second = (groups.fit(ADULTS, images, CLASSES, pool(draw(300), each), HALVES) for each in (plain, platt))
    odds = [
        calibration.apply(align(images.logits, each), fitted)[:, 1]
        for each, fitted in ((first, plain), (second, platt))
    ]
    np.testing.assert_allclose(np.exp(odds[0]), np.exp(odds[1]), atol=0.03)


def test_shares_of_classes_other_than_in_training_are_those_of_all_images() -> None:
    rare = Calibration(offset=tuple(np.log([1.9, 0.1]).tolist()), class_fractions=(0.95, 0.05))
    fitted = groups.fit(ADULTS, draw(300, shift=2, seed=4), CLASSES, pool(draw(300), rare), HALVES)
    assert 1.5 < fitted.intercept < 2.5


def test_too_few_images_leave_a_group_what_was_fitted_to_all_and_a_note_says_so() -> None:
    pooled = pool(draw(300))
    fitted = groups.fit(ADULTS, draw(12, shift=3), CLASSES, pooled, HALVES)
    assert not fitted.moves_logits
    assert fitted.prediction_sets is not None
    assert fitted.ood is None
    assert fitted.images == {"NORMAL": 12, "PNEUMONIA": 12}
    assert find_gaps([fitted], pooled) == (
        "Group adults: 12 validation images of NORMAL are too few for probabilities (20 needed) and an OOD limit (19 "
        "needed) of its own; those fitted to all images are used.",
    )
    assert describe(fitted) == (
        "adults (patients of 18 to 120 years): prediction sets of its own, from 12 NORMAL and 12 PNEUMONIA images"
    )
    empty = groups.fit(ADULTS, draw(12).take([]), CLASSES, pooled, HALVES)
    assert (empty.prediction_sets, empty.ood, empty.moves_logits) == (None, None, False)
    assert describe(empty) == "adults (patients of 18 to 120 years): nothing of its own"


def test_isotonic_calibration_leaves_groups_without_probabilities_of_their_own() -> None:
    isotonic = Calibration("isotonic", knots=((-3.0, 0.1), (3.0, 0.9)), class_fractions=HALVES)
    pooled = pool(draw(300), isotonic)
    fitted = groups.fit(ADULTS, draw(100, shift=2), CLASSES, pooled, HALVES)
    assert not fitted.moves_logits
    assert "isotonic calibration" in find_gaps([fitted], pooled)[0]


def test_more_than_two_classes_have_sets_and_limits_of_a_group_but_no_line() -> None:
    classes = ("A", "B", "C")
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 40)
    images = Images(rng.normal(size=(120, 3)) + 2 * np.eye(3)[labels], labels, rng.uniform(size=120), [None] * 120)
    fitted = Calibration(class_fractions=(1 / 3,) * 3)
    sets = prediction_sets.fit(labels, np.exp(calibration.apply(images.logits, fitted)), classes, 0.1)
    pooled = Decisions(fitted, None, sets, OOD("mahalanobis", 0.05, dict.fromkeys(classes, (1.0,) * 40)))
    group = groups.fit(ADULTS, images.take(list(range(120))), classes, pooled, (1 / 3,) * 3)
    assert not group.moves_logits
    assert group.prediction_sets is not None
    assert group.ood is not None
    assert set(group.ood.distances) == set(classes)


def test_a_group_decides_by_its_own_sets_and_limit_and_all_others_as_before() -> None:
    rng = np.random.default_rng(1)
    detector = fit_mahalanobis(rng.normal(size=(200, 8)))
    intermediate = rng.normal(size=(50, 8)) * 1.3
    pooled = replace(pool(draw(300)), ood=OOD("mahalanobis", 0.05, dict.fromkeys(CLASSES, (1.0,) * 99)))
    sets = PredictionSets(0.1, dict.fromkeys(CLASSES, (0.9,) * 99))
    own = replace(
        ADULTS,
        slope=2.0,
        intercept=-1.0,
        prediction_sets=sets,
        ood=OOD("mahalanobis", 0.05, dict.fromkeys(CLASSES, (2.0,) * 99)),
    )
    logits = rng.normal(size=(50, 1)) * 2
    before = Decider(CLASSES, pooled, detector).apply(logits, intermediate)
    decider = Decider(CLASSES, replace(pooled, groups=(own,)), detector)
    after, within = decider.apply(logits, intermediate), decider.apply(align(logits, own), intermediate, own)
    assert before.decisions == after.decisions
    np.testing.assert_array_equal(before.probabilities, after.probabilities)
    assert before.ood_scores is not None
    assert within.ood_scores is not None
    np.testing.assert_array_equal(before.ood_scores, after.ood_scores)
    np.testing.assert_array_equal(within.in_set, within.probabilities >= 0.9)
    np.testing.assert_allclose(within.ood_scores, before.ood_scores / 2)
    np.testing.assert_allclose(within.probabilities[:, 1], 1 / (1 + np.exp(1 - 2 * logits[:, 0])))
    at_other = decider.at_prevalence(0.1).apply(align(logits, own), intermediate, own)
    np.testing.assert_array_equal(at_other.in_set, within.in_set)


def test_a_head_and_logits_are_aligned_alike_and_back() -> None:
    rng = np.random.default_rng(2)
    weight, bias = rng.normal(size=(1, 6)).astype(np.float32), rng.normal(size=1).astype(np.float32)
    features = rng.normal(size=(4, 6))
    own = replace(ADULTS, slope=1.7, intercept=-0.4)
    logits = features @ weight.T.astype(np.float64) + bias
    moved, shifted = align_head(weight, bias, own)
    np.testing.assert_allclose(features @ moved.T + shifted, align(logits, own), rtol=1e-6)
    np.testing.assert_allclose(restore(align(logits, own), own), logits)
    assert align_head(weight, bias, ADULTS)[0] is weight
    assert align(logits, None) is logits


def test_rules_for_other_programs_hold_the_groups() -> None:
    limits = OOD("mahalanobis", 0.05, dict.fromkeys(CLASSES, (1.5,) * 99))
    own = replace(BEDSIDE, slope=2.0, intercept=-1.0, ood=limits)
    pooled = replace(pool(draw(100)), ood=replace(limits, distances=dict.fromkeys(CLASSES, (1.0,) * 99)))
    rules = describe_rules(replace(pooled, groups=(own,)), CLASSES)
    (group,) = rules["groups"]
    assert group.pop("ood_factor") == pytest.approx(1 / 1.5)
    assert group == {
        "name": "bedside", "ages": [18.0, 120.0], "views": ["AP"], "slope": 2.0, "intercept": -1.0,
        "cutoffs": rules["cutoffs"],
    }  # fmt: skip
    assert describe_rules(pooled, CLASSES)["groups"] == []


def test_a_file_names_groups_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "groups.yaml"
    file.write_text("bedside: {ages: [18, 120], views: ap}\nadults: {ages: [18, 120]}\n")
    assert read_groups(file) == (BEDSIDE, ADULTS)
    assert read_groups(None) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "names no group"), ("adults:", "must be a mapping with `ages` or `views`"),
        ("adults: {}", "restricts neither `ages` nor `views`"), ("adults: {ages: [30, 20]}", "youngest"),
        ("adults: {ages: [old, 90]}", "adults.ages.0: must be a number, found 'old'"),
        ("adults: {ages: [18]}", "adults.ages"), ("adults: {ages: [-1, 9]}", "adults.ages.0"),
        ("adults: {age: [18, 90]}", "adults.age: unknown key. Known keys: ages, views"),
        ("adults: {modalities: [CR]}", "unknown key"), ("7: {ages: [0, 9]}", "must be text of 1 to 60 characters"),
        ("' ': {ages: [0, 9]}", "must be text of 1 to 60 characters"), ("a: {views: 3}", "a.views"),
        ("adults: {ages: [18, .nan]}", "must be a finite number"), ("- a", "expected lines of `key: value`"),
        ("a: {ages: [0, 9]}\na: {ages: [1, 9]}", "occurs twice"),
    ],
)  # fmt: skip
def test_a_faulty_file_of_groups_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "groups.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"groups\.yaml") as caught:
        read_groups(file)
    assert message in str(caught.value)


def test_other_rates_reach_the_parts_of_a_group() -> None:
    pooled = pool(draw(300))
    own = groups.fit(ADULTS, draw(100), CLASSES, pooled, HALVES).at(0.3, 0.2)
    assert own.prediction_sets is not None
    assert own.ood is not None
    assert (own.prediction_sets.alpha, own.ood.false_alarms) == (0.3, 0.2)
    assert ADULTS.at(0.3, 0.2) == ADULTS
    assert isinstance(ood.apply(np.zeros((1, 4)), fit_mahalanobis(np.eye(4)), own.ood.limit), np.ndarray)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.4])
def test_images_are_uncertain_exactly_within_the_range_of_their_group(alpha: float) -> None:
    pooled = replace(pool(draw(100), alpha=alpha), threshold=Threshold(0.7, "0.7"))
    adults = groups.fit(ADULTS, draw(70, shift=2, seed=1), CLASSES, pooled, HALVES)
    decisions = replace(pooled, groups=(adults,))
    for group in (None, adults):
        found = find_uncertain_range(decisions, CLASSES, group.name if group else None)
        assert found is not None
        logits = np.linspace(-6, 6, 500)[:, None]
        outcome = Decider(CLASSES, decisions).apply(logits if group is None else align(logits, group), group=group)
        decided = [
            "NORMAL" if each < found[0] else "PNEUMONIA" if each > found[1] else "uncertain"
            for each in outcome.probabilities[:, 1]
        ]
        assert outcome.decisions == decided
    assert find_uncertain_range(replace(pooled, prediction_sets=None), CLASSES) is None
