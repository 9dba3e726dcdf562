"""Fits a trained network's decisions to its validation images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.samples import Sample
from pneumoscope.datasets.sources import find_source_name, recognise_sources
from pneumoscope.decisions import calibration, groups, ood, prediction_sets, scope, threshold
from pneumoscope.decisions.decisions import Decisions
from pneumoscope.images.dicom import CHEST, Tags
from pneumoscope.inference.predictor import compute_logits
from pneumoscope.training.data import Split
from pneumoscope.training.settings import Settings

Known: TypeAlias = tuple[Tags | None, scope.Scope]


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
    """Fit calibration, threshold, prediction sets, OOD detector, scope and groups, in this order.

    The detector's distance is fitted on training images, all else on validation images. Where these have augmented
    copies, threshold and OOD limit are fitted on all copies, and all else on one random copy of each image.
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
    patients = [sample.patient for sample in val.samples]
    fitted = fit_to_logits(logits, val.targets, one_each, patients, classes, fractions, settings)
    seen = train.intermediate.reshape(-1, train.intermediate.shape[-1])
    limits, detector = ood.fit(seen, val.intermediate, val.targets, classes, wanted.false_alarms)
    known = find_known([*train.samples, *val.samples])
    intended = scope.state(settings.data.intended_use, scope.fit(known))
    decisions = replace(fitted, ood=limits, scope=intended)
    if wanted.groups is not None:
        distances = ood.measure_copies(detector, val.intermediate)
        whole = groups.Images(logits[one_each], val.targets, distances, patients)
        own = fit_groups(known[-images:], whole, decisions, classes, fractions[0], settings)
        decisions = replace(decisions, groups=own)
    notes = find_weak_promises(decisions, val.targets, classes) + groups.find_gaps(decisions.groups, decisions)
    return FittedDecisions(decisions, detector.to_arrays(), notes)


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


def fit_groups(
    known: Sequence[Known], images: groups.Images, pooled: Decisions, classes: Sequence[str],
    trained_for: Sequence[float], settings: Settings,
) -> tuple[groups.Group, ...]:  # fmt: skip
    """Fit each group that the settings state to those of the images that are its own.

    Args:
        known: (N,) of the images, as `find_known` gives it.
        images: N images, which the pooled decisions were fitted to.
        pooled: the decisions for all images.
        classes: their names.
        trained_for: (C,) class fractions that the network was trained for.
        settings: which groups.
    """
    stated = groups.read_groups(settings.decisions.groups)
    found = [groups.find(stated, tags, source) for tags, source in known]
    members = [images.take([i for i, its in enumerate(found) if its is group]) for group in stated]
    return tuple(
        groups.fit(group, own, classes, pooled, trained_for) for group, own in zip(stated, members, strict=True)
    )


def find_known(samples: Sequence[Sample]) -> list[Known]:
    """For each image what its header or table says, and what is known of its public dataset."""
    sources = recognise_sources(samples)
    known = {source.name: scope.Scope(source.ages, source.views, body_parts=(CHEST,)) for source in sources}
    only = known[sources[0].name] if len(sources) == 1 else scope.Scope()
    return [(each.tags, known.get(find_source_name(each) or "", only)) for each in samples]


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
