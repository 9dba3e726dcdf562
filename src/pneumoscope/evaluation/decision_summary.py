"""Decisions on labelled images, counted, and held against what prediction sets and OOD detector promise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.decisions.decide import NEITHER, OUT_OF_DISTRIBUTION, UNCERTAIN
from pneumoscope.evaluation.intervals.proportions import wilson_interval
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
    """Count decisions, how often prediction sets held the true label, and how often certain decisions were correct.

    Args:
        labels: (N,) true classes.
        decisions: (N,) labels, `uncertain` or `out_of_distribution`.
        prediction_sets: (N,) sets of labels.
        classes: (C,) names.
        confidence: of the intervals (Wilson 1927; images count as independent).

    Returns:
        `counts` of each decision; `images` of each class, and how many of these are `out_of_distribution`;
        `answered`, the share with a label for a decision, and `accuracy_of_answered`; `coverage` of prediction sets by
        class; the mean `set_size`. Rates have intervals.
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
    """Note where labelled images break the promises of prediction sets and OOD detector.

    The promises hold for images like those of validation. Given n validation images of which the k-th sets the
    threshold, the rate of misses is Beta(k, n + 1 - k) distributed (Vovk 2012), so misses among new images are
    beta-binomial. A number that had a chance of 2.5 % at most is noted. Images of one patient count as independent.

    Args:
        decisions: from `summarise_decisions`.
        model: whose promises they are.
        alpha: of the prediction sets; None without a promise.
        false_alarms: of the OOD detector; None without a promise.
    """
    notes = []
    for name, rate in decisions.get("coverage", {}).items():
        if alpha is None or model.conformal is None or not rate["n"]:
            continue
        count = len(model.conformal.scores.get(name, ()))
        missed = round(rate["n"] * (1 - rate["value"]))
        if _too_many(missed, rate["n"], math.floor(alpha * (count + 1) + 1e-9), count):
            notes.append(
                f"Prediction sets hold the true label for {rate['value']:.0%} of the {rate['n']} {name} images, but "
                f"{1 - alpha:.0%} was promised for images like the validation images. These images differ: do not rely "
                "on probabilities and threshold until they are calibrated on images of this source."
            )
    for name, ood in decisions["out_of_distribution"].items():
        if false_alarms is None or model.ood is None:
            continue
        count, n = len(model.ood.distances.get(name, ())), decisions["images"][name]
        if _too_many(ood, n, max(1, math.floor(false_alarms * (count + 1) + 1e-9)), count):
            notes.append(
                f"{ood} of the {n} {name} images are out of distribution, more than chance allows for images like the "
                "validation images: many of them are unlike the training images."
            )
    return notes


def _too_many(events: int, images: int, rank: int, count: int) -> bool:
    """Whether so many events have a chance of 2.5 % at most; the value of `rank` among `count` is the threshold."""
    from scipy.stats import betabinom

    if not count or not rank:
        return events > 0 and rank == 0 and count > 0
    return bool(betabinom.sf(events - 1, images, rank, count + 1 - rank) <= 0.025)


def _rate(hits: NDArray[np.bool_], confidence: float) -> Mapping[str, float | int | None]:
    if not len(hits):
        return {"value": None, "low": None, "high": None, "n": 0}
    low, high = wilson_interval(float(hits.mean()), len(hits), confidence)
    return {"value": float(hits.mean()), "low": low, "high": high, "n": len(hits)}
