"""Fits a trained network's decisions to its validation images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.samples import Sample
from pneumoscope.datasets.sources import find_source_name, recognise_sources
from pneumoscope.decisions import calibration, ood, prediction_sets, scope, threshold
from pneumoscope.decisions.decisions import Decisions
from pneumoscope.images.dicom import CHEST
from pneumoscope.inference.predictor import compute_logits
from pneumoscope.training.data import Split
from pneumoscope.training.settings import Settings


@dataclass(frozen=True)
class FittedDecisions:
    """What a model needs to decide, besides its network."""

    decisions: Decisions  # fitted
    arrays: dict[str, NDArray[Any]]  # the OOD detector's, by the names that they have among the weights
    notes: tuple[str, ...]  # promises that cannot be made because there are too few validation images


def fit_decisions(
    train: Split, val: Split, weight: NDArray[np.float32], bias: NDArray[np.float32], classes: Sequence[str],
    settings: Settings,
) -> FittedDecisions:  # fmt: skip
    """Fit calibration, threshold, prediction sets, OOD detector and scope, in this order.

    The detector's distance is fitted on training images, all else on validation images. Where these have augmented
    copies, the threshold is fitted on all copies, and all else on one random copy of each image, which counts once.
    Probabilities hold for the class fractions of the training images, or for `settings.decisions.prevalence`.

    Args:
        train: with the features that the trained backbone computes.
        val: the same for validation images.
        weight: (1, D) or (C, D), the head's.
        bias: (1,) or (C,).
        classes: their names.
        settings: methods, rule and rates.
    """
    wanted = settings.decisions
    images, copies = val.intermediate.shape[:2]
    logits = compute_logits(val.features[:, :copies].reshape(images * copies, -1), weight, bias)
    one_each = np.arange(images) * copies + np.random.default_rng(settings.run.seed).integers(copies, size=images)
    fractions = find_class_fractions(train.targets, len(classes), settings)
    fitted = fit_to_logits(
        logits, val.targets, one_each, [s.patient for s in val.samples], classes, fractions, settings
    )
    seen = train.intermediate.reshape(-1, train.intermediate.shape[-1])
    held_out = val.intermediate.reshape(images * copies, -1)[one_each]
    limits, detector = ood.fit(seen, held_out, val.targets, classes, wanted.false_alarms)
    intended = find_scope([*train.samples, *val.samples], settings.data.intended_use)
    decisions = replace(fitted, ood=limits, scope=intended)
    return FittedDecisions(decisions, detector.to_arrays(), find_weak_promises(decisions, val.targets, classes))


def fit_to_logits(
    logits: NDArray[np.float64], targets: NDArray[np.int64], one_each: NDArray[np.int64],
    patients: Sequence[str | None], classes: Sequence[str], fractions: tuple[list[float], list[float]],
    settings: Settings,
) -> Decisions:  # fmt: skip
    """Fit calibration, threshold and prediction sets.

    Args:
        logits: (N * K, 1) or (N * K, C), of K copies of each of N images, image by image.
        targets: (N,) class indices.
        one_each: (N,) the copy of each image that counts, as a row of `logits`.
        patients: (N,).
        classes: their names.
        fractions: of the classes, as `find_class_fractions` gives them.
        settings: methods, rule and rates.
    """
    wanted, (trained_for, wanted_fractions) = settings.decisions, fractions
    calibrated = calibration.fit(
        logits[one_each], targets, method=wanted.calibration, class_fractions=wanted_fractions,
        trained_for=trained_for, patients=patients, seed=settings.run.seed,
    )  # fmt: skip
    probabilities = np.exp(calibration.apply(logits, calibrated))
    copied = np.repeat(targets, len(logits) // len(targets))
    chosen = _fit_threshold(wanted.threshold, copied, probabilities, wanted_fractions)
    sets = prediction_sets.fit(targets, probabilities[one_each], classes, wanted.alpha)
    by_class = threshold.fit_by_class(wanted.threshold, calibrated.class_fractions) if len(classes) > 2 else ()
    return Decisions(calibrated, chosen, sets, class_thresholds=by_class)


def find_scope(samples: Sequence[Sample], file: str | None) -> scope.Scope:
    """The intended use: what a file states, else what the headers of the images say, and what is known of the data."""
    sources = recognise_sources(samples)
    known = {source.name: scope.Scope(source.ages, source.views, body_parts=(CHEST,)) for source in sources}
    only = known[sources[0].name] if len(sources) == 1 else scope.Scope()
    return scope.state(file, scope.fit((each.tags, known.get(find_source_name(each) or "", only)) for each in samples))


def find_class_fractions(
    targets: NDArray[np.int64], classes: int, settings: Settings
) -> tuple[list[float], list[float]]:
    """The class fractions that the network was trained for, and those for which probabilities are to hold."""
    fractions = np.bincount(targets, minlength=classes) / len(targets)
    trained_for = fractions if settings.optimisation.balance == "none" else np.full(classes, 1 / classes)
    if settings.decisions.prevalence is not None:
        fractions = np.array([1 - settings.decisions.prevalence, settings.decisions.prevalence])
    return trained_for.tolist(), fractions.tolist()


def _fit_threshold(
    rule: str, targets: NDArray[np.int64], probabilities: NDArray[np.float64], fractions: Sequence[float]
) -> threshold.Threshold | None:
    """The threshold of two classes, with images weighted to the class fractions; None for more classes."""
    if len(fractions) > 2:
        return None
    weights = (np.array(fractions) / np.maximum(np.bincount(targets, minlength=2), 1))[targets]
    return threshold.fit(rule, targets, probabilities[:, 1], weights * len(weights))


def find_weak_promises(
    decisions: Decisions, targets: NDArray[np.int64], classes: Sequence[str], kind: str = "validation images"
) -> tuple[str, ...]:
    """Say which promises cannot be made because there are too few images, with class indices (N,), of this kind."""
    notes = []
    counts = np.bincount(targets, minlength=len(classes))
    sets, limits = decisions.prediction_sets, decisions.ood
    for name, count in zip(classes, counts, strict=True):
        if sets is not None and not sets.rank(name):
            notes.append(
                f"{count} {kind} of {name} are too few for alpha {sets.alpha:g}: every prediction set "
                f"includes {name}. Use at least {int(np.ceil(1 / sets.alpha - 1))} images, or a larger alpha."
            )
    if limits is not None and limits.promised_false_alarms > 2.5 * limits.false_alarms:
        fewest = min(len(each) for each in limits.distances.values() if each)
        notes.append(
            f"With {fewest} {kind} of a class, up to {limits.promised_false_alarms:.1%} of ordinary "
            f"images may be flagged as out of distribution, not the {limits.false_alarms:.1%} requested."
        )
    return tuple(notes)
