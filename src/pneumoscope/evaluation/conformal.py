"""Prediction sets with a promise: fitted on validation images, and counted on others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.decisions.decide import NEITHER, OUT_OF_DISTRIBUTION, UNCERTAIN
from pneumoscope.evaluation.intervals.proportions import score_limits
from pneumoscope.models.model_folder import Conformal, Model


def fit_conformal(labels: ArrayLike, shares: ArrayLike, classes: Sequence[str], alpha: float) -> Conformal:
    """Keep what prediction sets are drawn from: the probability that each validation image got for its own class.

    Class by class (Vovk 2012, "label-conditional"): the promise then holds for each class, however many images it has,
    and whatever the prevalence where the model is used.

    Args:
        labels: (N,) class indices.
        shares: (N, C) probabilities.
        classes: (C,) names.
        alpha: how often a set may miss the truth, in (0, 1).
    """
    y, p = np.asarray(labels), np.asarray(shares, np.float64)
    return Conformal(alpha, {name: tuple(np.sort(p[y == i, i]).tolist()) for i, name in enumerate(classes)})


def summarise_decisions(
    labels: Sequence[str],
    decisions: Sequence[str],
    prediction_sets: Sequence[Sequence[str]],
    classes: Sequence[str],
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Count what was decided, how often prediction sets held the truth, and how often the certain were right.

    Args:
        labels: (N,) true classes.
        decisions: (N,) as `inference.decisions.decide` gives them.
        prediction_sets: (N,) classes that each image may belong to.
        classes: (C,) names.
        confidence: of the intervals (Wilson 1927, images one by one).

    Returns:
        `counts` of each decision; how many `images` of each class there are, and how many of these are `ood`;
        `answered` and `accuracy_of_answered` with limits; `coverage` with limits by class; the mean `set_size`.
    """
    truth, decided = np.array(labels), np.array(decisions)
    held = np.array([label in fits for label, fits in zip(labels, prediction_sets, strict=True)])
    answered = np.isin(decided, classes)
    names = [*classes, UNCERTAIN, NEITHER, OUT_OF_DISTRIBUTION]
    return {
        "counts": {name: int((decided == name).sum()) for name in names},
        "images": {name: int((truth == name).sum()) for name in classes},
        "out_of_distribution": {name: int((decided[truth == name] == OUT_OF_DISTRIBUTION).sum()) for name in classes},
        "answered": _rate(answered, confidence),
        "accuracy_of_answered": _rate((decided == truth)[answered], confidence),
        "coverage": {name: _rate(held[truth == name], confidence) for name in classes},
        "set_size": float(np.mean([len(fits) for fits in prediction_sets])),
    }


def find_broken_promises(
    decisions: Mapping[str, Any], model: Model, alpha: float | None, false_alarms: float | None
) -> list[str]:
    """Say where labelled images show that they are not like the validation images, of which the promises were made.

    Given the validation images, the rate of misses is itself random: with n of them, of which k set the limit, it is
    Beta(k, n + 1 - k) distributed (Vovk 2012), so that misses among new images are beta-binomial. So many that they had
    a chance of 2.5 % are said. Images of one patient count as if they were of several.

    Args:
        decisions: from `summarise_decisions`.
        model: what the promises rest on.
        alpha: promised of prediction sets; None where there is no promise.
        false_alarms: promised of the OOD detector, likewise.
    """
    notes = []
    for name, rate in decisions.get("coverage", {}).items():
        if alpha is None or model.conformal is None or not rate["n"]:
            continue
        count = len(model.conformal.scores.get(name, ()))
        missed = round(rate["n"] * (1 - rate["value"]))
        if _too_many(missed, rate["n"], math.floor(alpha * (count + 1) + 1e-9), count):
            notes.append(
                f"Prediction sets hold the truth for {rate['value']:.0%} of the {rate['n']} {name} images; "
                f"{1 - alpha:.0%} was promised for images like those of validation. These are not like them: "
                "neither probabilities nor threshold can be relied upon without images of this source to set them by."
            )
    for name, ood in decisions["out_of_distribution"].items():
        if false_alarms is None or model.ood is None:
            continue
        count, n = len(model.ood.distances.get(name, ())), decisions["images"][name]
        if _too_many(ood, n, max(1, math.floor(false_alarms * (count + 1) + 1e-9)), count):
            notes.append(
                f"{ood} of the {n} {name} images are called ood, more than chance allows for images like those "
                "of validation: many of them are unlike the training radiographs."
            )
    return notes


def _too_many(events: int, images: int, rank: int, count: int) -> bool:
    """Whether so many events among images have a chance of 2.5 % at most, where `rank` of `count` set the limit."""
    from scipy.stats import betabinom

    if not count or not rank:
        return events > 0 and rank == 0 and count > 0
    return bool(betabinom.sf(events - 1, images, rank, count + 1 - rank) <= 0.025)


def _rate(hits: NDArray[np.bool_], confidence: float) -> Mapping[str, float | int | None]:
    if not len(hits):
        return {"value": None, "low": None, "high": None, "n": 0}
    low, high = score_limits(float(hits.mean()), len(hits), confidence)
    return {"value": float(hits.mean()), "low": low, "high": high, "n": len(hits)}
