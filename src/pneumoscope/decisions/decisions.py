"""Applies a model's decision rules in order: logits become probabilities, then labels, then decisions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.config import Rate, build, quote
from pneumoscope.decisions import calibration, groups, ood, prediction_sets, prior_shift, threshold
from pneumoscope.decisions.calibration import Calibration
from pneumoscope.decisions.groups import Group
from pneumoscope.decisions.ood import OOD, Detector
from pneumoscope.decisions.prediction_sets import PredictionSets
from pneumoscope.decisions.scope import Scope
from pneumoscope.decisions.threshold import Threshold
from pneumoscope.errors import ModelError, UsageError
from pneumoscope.images.dicom import Tags
from pneumoscope.models.model_folder import Model

UNCERTAIN, OUT_OF_DISTRIBUTION = "uncertain", "out_of_distribution"  # decisions besides the labels


@dataclass(frozen=True)
class Decisions:
    """What a model learned from its validation images: stored in `model.json` under `decisions`."""

    calibration: Calibration  # logits to probabilities
    threshold: Threshold | None  # for two classes; None for more
    # None where the model has none; every predicted label is then its own set
    prediction_sets: PredictionSets | None = None
    ood: OOD | None = None  # None where the model has no detector
    scope: Scope = field(default_factory=Scope)  # the intended use
    # for more than two classes, in the order of the labels: the one whose probability is the largest multiple of its
    # own is predicted; empty where that is the likeliest
    class_thresholds: tuple[Rate, ...] = ()
    groups: tuple[Group, ...] = ()  # the first that an image fits decides on it; all else decides on the others

    def find_group(self, tags: Tags | None) -> Group | None:
        """The group that decides on an image of which this is known; None where none does."""
        return groups.find(self.groups, tags)

    def for_group(self, group: Group | None) -> Decisions:
        """Return what decides on the aligned logits of a group's images, or of images without a group."""
        if group is None:
            return self
        sets, limits = group.prediction_sets or self.prediction_sets, group.ood or self.ood
        return replace(self, prediction_sets=sets, ood=limits, groups=())


def to_json(decisions: Decisions) -> dict[str, Any]:
    """Plain values for `model.json`."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(decisions)))
    return values


def read_decisions(model: Model) -> Decisions:
    """Read and check what a model decides by.

    Raises:
        ModelError: something is missing, or does not fit the model's classes.
    """
    decisions = build(Decisions, model.decisions, "model.json: decisions", ModelError)
    try:
        _check(decisions, model.labels)
    except (ValueError, UsageError) as problem:
        raise ModelError(f"model.json: decisions: {problem}. Copy the model again from its source.") from None
    return decisions


def _check(decisions: Decisions, labels: Sequence[str]) -> None:
    """Check what a model decides by, as far as types do not.

    Raises:
        ValueError: it contradicts itself or the labels; the message says how.
        UsageError: the threshold's rule is not one.
    """
    if reserved := {UNCERTAIN, OUT_OF_DISTRIBUTION} & set(labels):
        raise ValueError(f"the class {min(reserved)} has the name of a decision")
    decisions.calibration.check(len(labels))
    if (decisions.threshold is None) != (len(labels) > 2):
        raise ValueError("two classes need a threshold; more than two must not have one")
    if decisions.threshold is not None:
        decisions.threshold.check()
    if decisions.class_thresholds and (len(decisions.class_thresholds) != len(labels) or len(labels) == 2):
        raise ValueError("class_thresholds: there must be one for each of more than two classes, or none")
    _check_conformal(decisions.prediction_sets, decisions.ood, labels)
    groups.check_names(decisions.groups)
    for group in decisions.groups:
        try:
            _check_group(group, decisions, labels)
        except ValueError as problem:
            raise ValueError(f"group {quote(group.name)}: {problem}") from None


def _check_group(group: Group, pooled: Decisions, labels: Sequence[str]) -> None:
    """Check that a group's own parts fit the labels and those of all images; ValueError says what does not."""
    if group.moves_logits and (len(labels) > 2 or pooled.calibration.method == "isotonic"):
        raise ValueError("slope and intercept need two classes, and no isotonic calibration")
    if not set(group.images) <= set(labels):
        raise ValueError(f"the images: their classes are {quote(sorted(group.images))}, not {quote(list(labels))}")
    if (group.prediction_sets and not pooled.prediction_sets) or (group.ood and not pooled.ood):
        raise ValueError("prediction sets and OOD limits of its own need those of all images")
    _check_conformal(group.prediction_sets, group.ood, labels)


def _check_conformal(sets: PredictionSets | None, limits: OOD | None, labels: Sequence[str]) -> None:
    """Check scores and distances of validation images; ValueError says what is wrong with them."""
    lists = [("prediction sets", sets.scores)] if sets else []
    if limits is not None:
        lists.append(("OOD detector", limits.distances))
        if not any(limits.distances.values()):
            raise ValueError("the OOD detector has no distances")
    for name, values in lists:
        if set(values) != set(labels):
            raise ValueError(f"the {name}: its classes are {quote(sorted(values))}, not {quote(list(labels))}")
        if any(not np.all(np.diff(each) >= 0) for each in values.values()):
            raise ValueError(f"the {name}: its numbers must be sorted from low to high")


@dataclass(frozen=True, eq=False)
class Outcome:
    """Decisions on N images with C classes."""

    probabilities: NDArray[np.float64]  # (N, C), adjusted where a prevalence was given
    predicted: NDArray[np.intp]  # (N,) class indices by the threshold or thresholds
    in_set: NDArray[np.bool_]  # (N, C), whether each class is in the prediction set
    ood_scores: NDArray[np.float64] | None  # (N,), above 1 is out of distribution; None without a detector
    decisions: list[str]  # (N,) a label, `uncertain` or `out_of_distribution`


@dataclass(frozen=True, eq=False)
class Decider:
    """Applies decisions, perhaps for a prevalence other than that of training."""

    classes: tuple[str, ...]  # names in the order of the outputs; if there are two, the second is positive
    decisions: Decisions  # what to decide by
    detector: Detector | None = None  # measures the distance from the training images; None switches detection off
    # of the positive class, for which probabilities are to hold; None leaves that of training
    prevalence: float | None = None
    refuse_out_of_scope: bool = False  # whether images outside the intended use get no probability

    def __post_init__(self) -> None:
        prior_shift.check_prevalence(self.prevalence, self.classes)

    def at_prevalence(self, prevalence: float | None) -> Decider:
        """Return the same decider for probabilities at another prevalence.

        Raises:
            UsageError: not between 0 and 1, or more than two classes.
        """
        return replace(self, prevalence=prevalence)

    @cached_property
    def threshold(self) -> Threshold | None:
        """The threshold for the probabilities as adjusted."""
        own = self.decisions.threshold
        if own is None or self.prevalence is None:
            return own
        return prior_shift.adjust_threshold(own, self.decisions.calibration.class_fractions, self.prevalence)

    @cached_property
    def _ood_limits(self) -> dict[str | None, float]:
        """Of each group by its name, and of all other images; empty where the model has no detector."""
        return {
            None if group is None else group.name: limits.limit
            for group in (None, *self.decisions.groups)
            if self.detector is not None and (limits := self.decisions.for_group(group).ood) is not None
        }

    def apply(
        self, logits: ArrayLike, intermediate: NDArray[np.floating[Any]] | None = None, group: Group | None = None
    ) -> Outcome:
        """Decide on N images.

        Args:
            logits: (N, 1), of the positive class if there are two, or (N, C); those of a group are aligned.
            intermediate: (N, E) intermediate features, for the detector.
            group: that all of them belong to.
        """
        fitted = self.decisions.calibration
        reference = adjusted = calibration.apply(logits, fitted)
        if self.prevalence is not None:
            wanted = (1 - self.prevalence, self.prevalence)
            adjusted = prior_shift.apply(reference, fitted.class_fractions, wanted)
        probabilities = np.exp(adjusted)
        if self.threshold is None:
            predicted = threshold.apply_by_class(probabilities, self.decisions.class_thresholds or 0.5)
        else:
            predicted = threshold.apply(probabilities[:, 1], self.threshold).astype(np.intp)
        in_set = np.eye(len(self.classes), dtype=bool)[predicted]
        sets = self.decisions.for_group(group).prediction_sets
        if sets is not None:  # they are drawn by class: the prevalence does not touch them
            in_set = prediction_sets.apply(np.exp(reference), sets, self.classes)
        scores = None
        if self.detector is not None and self._ood_limits and intermediate is not None:
            scores = ood.apply(intermediate, self.detector, self._ood_limits[None if group is None else group.name])
        return Outcome(probabilities, predicted, in_set, scores, self._decide(predicted, in_set, scores))

    def _decide(
        self, predicted: NDArray[np.intp], in_set: NDArray[np.bool_], scores: NDArray[np.float64] | None
    ) -> list[str]:
        certain = in_set[np.arange(len(predicted)), predicted] & (in_set.sum(1) == 1)
        return [
            OUT_OF_DISTRIBUTION
            if scores is not None and not scores[i] <= 1  # NaN, too, is unlike the training images
            else self.classes[predicted[i]]
            if certain[i]
            else UNCERTAIN
            for i in range(len(predicted))
        ]


def list_names(classes: Sequence[str]) -> list[str]:
    """All decisions that there can be, in a fixed order."""
    return [*classes, UNCERTAIN, OUT_OF_DISTRIBUTION]
