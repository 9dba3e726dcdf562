"""Fits what a model decides by to the images of another source, with as much change as these images justify."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pneumoscope.decisions import calibration, prediction_sets, prior_shift, threshold
from pneumoscope.decisions.calibration import Calibration
from pneumoscope.decisions.decisions import Decisions
from pneumoscope.decisions.groups import Group
from pneumoscope.decisions.ood import OOD, Detector
from pneumoscope.decisions.threshold import Threshold
from pneumoscope.errors import UsageError
from pneumoscope.inference.predictor import compute_logits
from pneumoscope.training.adaptation_choice import Change, Choice, Images, choose

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

STEPS = {  # what they change
    "unchanged": "nothing",
    "intercept": "an intercept for each class",
    "scaling": "slope and intercept",
    "head": "the head, with slope and intercept",
    "finetune": "the whole network at a low learning rate, with slope and intercept",
}


@dataclass(frozen=True)
class Wishes:
    """What is to be changed; None leaves it to the model that is adapted."""

    head: bool = False  # whether another direction in feature space is tried
    finetune: bool = False  # whether the whole network is fine-tuned to see whether that is better
    threshold: str | None = None  # rule for the threshold
    alpha: float | None = None  # how often prediction sets may miss the truth
    false_alarms: float | None = None  # share of ordinary images that the OOD detector may flag
    prevalence: float | None = None  # of the positive class where the model will be used
    seed: int = 0  # fixes the folds of cross-validation, and fine-tuning


@dataclass(frozen=True, eq=False)
class Tuned:
    """What fine-tuned networks compute of N images whose patients they did not learn from."""

    logits: Floats  # (N, 1) or (N, C)
    distances: Floats  # (N,), by OOD detectors that were fitted to features of these networks
    folds: Ints  # (N,), images with the same network
    calibration: Calibration  # what their logits mean before they are recalibrated

    def take(self, chosen: NDArray[np.bool_]) -> Tuned:
        """Return those of some of the images."""
        return replace(self, logits=self.logits[chosen], distances=self.distances[chosen], folds=self.folds[chosen])


@dataclass(frozen=True, eq=False)
class Local:
    """The images that a model is adapted to, as its network sees them."""

    labels: Ints  # (N,) class indices
    features: NDArray[np.float32]  # (N, D), that the head takes
    intermediate: NDArray[np.float32]  # (N, E), that the OOD detector takes
    clusters: Ints  # (N,), images that belong together, such as a patient's
    tuned: Tuned | None = None  # the same by fine-tuned networks, if there are any
    groups: tuple[Group | None, ...] = ()  # (N,), that decide on them; empty where none does

    def take(self, chosen: NDArray[np.bool_]) -> Local:
        """Return some of the images."""
        tuned = None if self.tuned is None else self.tuned.take(chosen)
        parts = (self.labels[chosen], self.features[chosen], self.intermediate[chosen], self.clusters[chosen])
        return Local(*parts, tuned, tuple(itertools.compress(self.groups, chosen)))

    def find_lines(self) -> tuple[Floats, Floats]:
        """Slopes and intercepts (N, 1) of the logits, by the images' groups."""
        groups = self.groups or (None,) * len(self.labels)
        lines = [(1.0, 0.0) if group is None else (group.slope, group.intercept) for group in groups]
        slopes, intercepts = np.array(lines, np.float64).reshape(-1, 2).T
        return slopes[:, None], intercepts[:, None]


@dataclass(frozen=True, eq=False)
class Parent:
    """The model that is adapted."""

    classes: tuple[str, ...]  # in the order of the outputs
    weight: NDArray[np.float32]  # (1, D) or (C, D), the head's
    bias: NDArray[np.float32]  # (1,) or (C,)
    decisions: Decisions  # what it decides by
    detector: Detector | None  # its OOD detector


@dataclass(frozen=True, eq=False)
class Adapted:
    """What an adapted model decides by, and its head; a fine-tuned network has one of its own."""

    decisions: Decisions
    weight: NDArray[np.float32]  # as the parent's
    bias: NDArray[np.float32]
    choice: Choice  # what was changed about the probabilities, and why


def check_wishes(parent: Parent, wishes: Wishes) -> None:
    """Refuse what cannot be done with a model.

    Raises:
        UsageError: a value out of range, or something that the model's classes or calibration do not allow.
    """
    prior_shift.check_prevalence(wishes.prevalence, parent.classes)
    for name in ("alpha", "false_alarms"):
        value = getattr(wishes, name)
        if value is not None and not 0 < value < 1:
            raise UsageError(f"{value} is not between 0 and 1.", name)
    if wishes.threshold is not None:
        threshold.parse_rule(wishes.threshold)
        if len(parent.classes) > 2:
            threshold.fit_by_class(wishes.threshold, [1 / len(parent.classes)] * len(parent.classes))
    if wishes.head and len(parent.classes) > 2:
        raise UsageError(f"is for two classes; this model has {len(parent.classes)}. Leave it out.", "head")
    for name in ("head", "finetune"):
        if getattr(wishes, name) and parent.decisions.calibration.method == "isotonic":
            raise UsageError("does not follow isotonic calibration, which this model has. Leave it out.", name)


def fit(parent: Parent, local: Local, wishes: Wishes) -> Adapted:
    """Fit calibration, threshold, prediction sets and OOD limits to local images, and the head if requested.

    What the images cannot tell from the model as it is stays: `adaptation_choice.choose` decides. Prediction sets and
    threshold are fitted on probabilities that each image got from fits on other patients. Probabilities hold for the
    class fractions of the images, or for the prevalence that is requested.
    """
    classes = len(parent.classes)
    fractions = np.bincount(local.labels, minlength=classes) / len(local.labels)
    start, weights = parent.decisions.calibration, np.ones(len(local.labels))
    neutral = None if local.tuned is None else local.tuned.calibration
    if wishes.prevalence is not None:
        wanted = np.array([1 - wishes.prevalence, wishes.prevalence])
        start, neutral = shift(start, wanted), None if neutral is None else shift(neutral, wanted)
        weights, fractions = (wanted / np.maximum(fractions, 1e-12))[local.labels], wanted
    slopes, intercepts = local.find_lines()
    logits = slopes * compute_logits(local.features, parent.weight, parent.bias) + intercepts
    # The head's direction is multiplied by the slope of an image's group, like the rest of the head.
    features = slopes * local.features.astype(np.float64) if wishes.head else np.zeros((len(logits), 0))
    base = np.maximum(calibration.apply(logits, start), -50)  # isotonic knots may be 0
    images = Images(local.labels, base, features, weights, local.clusters)
    tuned, folds = None, None
    if local.tuned is not None and neutral is not None:
        tuned, folds = calibration.apply(local.tuned.logits, neutral), local.tuned.folds
    choice = choose(images, head=wishes.head, tuned=tuned, folds=folds, seed=wishes.seed)
    own = parent.decisions.ood
    distances = None if parent.detector is None else parent.detector.measure(local.intermediate)
    if choice.chosen.step == "finetune" and local.tuned is not None and neutral is not None:
        start, distances = neutral, local.tuned.distances
        own = None if own is None else replace(own, distances={})  # those are by another detector
    calibrated, weight = _apply(choice.change, start, parent.weight)
    if choice.change is not None:
        calibrated = replace(
            calibrated,
            class_fractions=tuple(fractions.tolist()),
            images=len(logits),
            before=_score(images, base),
            after=_score(images, choice.held_out),
        )
    probabilities = np.exp(choice.held_out)
    cut, by_class = _fit_thresholds(parent, wishes, calibrated, local.labels, probabilities, weights)
    decisions = replace(
        parent.decisions,
        calibration=calibrated,
        threshold=cut,
        class_thresholds=by_class,
        prediction_sets=_fit_sets(parent, local, wishes, probabilities),
        ood=_fit_limits(parent.classes, own, local.labels, distances, wishes.false_alarms),
        groups=_keep_lines(parent.decisions.groups) if choice.chosen.step != "finetune" else (),
    )
    return Adapted(decisions, weight, parent.bias, choice)


def _keep_lines(groups: Sequence[Group]) -> tuple[Group, ...]:
    """The same groups with their slopes and intercepts alone: sets and limits are fitted to the local images."""
    return tuple(replace(group, prediction_sets=None, ood=None) for group in groups)


def shift(calibrated: Calibration, wanted: Floats) -> Calibration:
    """The calibration for other class fractions."""
    shifts = np.log(wanted) - np.log(np.maximum(calibrated.class_fractions, 1e-12))
    return replace(calibration.follow(calibrated, 1.0, shifts), class_fractions=tuple(wanted.tolist()))


def _apply(
    change: Change | None, start: Calibration, weight: NDArray[np.float32]
) -> tuple[Calibration, NDArray[np.float32]]:
    """The calibration and the head's weights after a change."""
    if change is None:
        return start, weight
    shifts = (1 - change.slope) * change.centre + change.intercepts
    shifts[-1] -= change.origin
    calibrated = calibration.follow(start, change.slope, shifts)
    if change.direction is not None:
        weight = weight + (change.direction / calibrated.slope).astype(np.float32)
    return calibrated, weight


def _score(images: Images, log_probabilities: Floats) -> dict[str, float]:
    return calibration.score(log_probabilities, images.labels, images.weights)


def _fit_thresholds(
    parent: Parent, wishes: Wishes, calibrated: Calibration, labels: Ints, probabilities: Floats, weights: Floats
) -> tuple[Threshold | None, tuple[float, ...]]:
    """The threshold of two classes, or those of more, by the rule that is requested or by the parent's."""
    decisions = parent.decisions
    if decisions.threshold is None:
        rule = wishes.threshold or ("likelihood" if decisions.class_thresholds else "0.5")
        return None, threshold.fit_by_class(rule, calibrated.class_fractions)
    if len(np.unique(labels)) < 2:  # among the images of some folds
        return decisions.threshold, ()
    return threshold.fit(wishes.threshold or decisions.threshold.rule, labels, probabilities[:, 1], weights), ()


def _fit_sets(
    parent: Parent, local: Local, wishes: Wishes, probabilities: Floats
) -> prediction_sets.PredictionSets | None:
    own = parent.decisions.prediction_sets
    if own is None and wishes.alpha is None:
        return None
    alpha = wishes.alpha if wishes.alpha is not None or own is None else own.alpha
    return prediction_sets.fit(local.labels, probabilities, parent.classes, float(alpha or 0.1))


def _fit_limits(
    classes: Sequence[str], own: OOD | None, labels: Ints, distances: Floats | None, false_alarms: float | None
) -> OOD | None:
    """The OOD detector's limit for local images.

    A class with enough of them for the rate of false alarms has their distances alone. With fewer, it has theirs or
    those that the detector was given before, whichever allow more: the few must not make the detector stricter.
    """
    if own is None or distances is None:
        return own
    own = own.at(false_alarms)
    chosen = {}
    for i, name in enumerate(classes):
        found = tuple(np.sort(distances[labels == i]).tolist())
        enough = len(found) >= 1 / own.false_alarms - 1 - 1e-9
        alternatives = [found] if enough else [each for each in (own.distances.get(name, ()), found) if each]
        limits = [replace(own, distances={name: each}).limit for each in alternatives]
        chosen[name] = alternatives[int(np.argmax(limits))] if alternatives else ()
    return replace(own, distances=chosen)


def describe_changes(parent: Parent, adapted: Adapted) -> list[str]:
    """Say in sentences what was changed and why; the first is about the probabilities."""
    choice, old, new = adapted.choice, parent.decisions, adapted.decisions
    chosen, unchanged, fine = choice.chosen, choice.candidates[0], choice.chosen.step == "finetune"
    if choice.change is not None:
        why = f"{unchanged.log_loss:.3f} without"
    else:
        best = max(choice.candidates[1:], key=lambda each: each.gain)
        why = (
            f"the best change, {STEPS[best.step]}, gains {best.gain:.3f} with a standard error of "
            f"{best.standard_error:.3f}"
        )
    what = "left as they were" if choice.change is None else f"refitted, {STEPS[chosen.step]}"
    first = f"Probabilities: {what} (cross-validated log loss {chosen.log_loss:.3f}; {why})."
    changes = [first, *_describe_finetuning(choice)]
    if old.threshold is not None and new.threshold is not None:
        changes.append(
            f"Threshold: {new.threshold.value:.3g} (was {old.threshold.value:.3g}), rule {new.threshold.rule}."
        )
    if new.prediction_sets is not None:
        counts = ", ".join(f"{len(each)} {name}" for name, each in new.prediction_sets.scores.items())
        changes.append(f"Prediction sets: fitted to these images ({counts}), alpha {new.prediction_sets.alpha:g}.")
    if old.ood is not None and new.ood is not None:
        anew = " The detector was fitted anew, to features of the fine-tuned network." if fine else ""
        changes.append(
            f"OOD detector: images are out of distribution beyond a distance of {new.ood.limit:.3g} (was "
            f"{old.ood.limit:.3g}).{anew}"
        )
    if old.groups:
        names = ", ".join(group.name for group in old.groups)
        changes.append(
            f"Groups ({names}): "
            + (
                "slopes and intercepts stay; prediction sets and OOD limit are those fitted to these images."
                if new.groups
                else "left out, as they were fitted to the network before it was fine-tuned."
            )
        )
    return changes


def _describe_finetuning(choice: Choice) -> list[str]:
    """Say what fine-tuning was found to gain over the best of the others, if it was tried."""
    found = choice.candidates[-1]
    if found.step != "finetune":
        return []
    figures = f"{abs(found.gain):.3f}, with a standard error of {found.standard_error:.3f}"
    if choice.chosen is found:
        return [f"Fine-tuning: taken. Out of fold it lowers the log loss of the best other candidate by {figures}."]
    verb = "lowers" if found.gain > 0 else "raises"
    return [
        f"Fine-tuning: not taken. Out of fold it {verb} the log loss of the best other candidate by {figures}; it is "
        "taken only if the gain exceeds two standard errors."
    ]
