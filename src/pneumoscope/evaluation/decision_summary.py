"""Counts decisions on labelled images, and checks the promises of prediction sets and OOD detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION, Decisions, list_names
from pneumoscope.evaluation.intervals.proportions import CONFIDENCE, wilson_interval


def summarise_decisions(
    labels: Sequence[str], decisions: Sequence[str], prediction_sets: Sequence[Sequence[str]], classes: Sequence[str]
) -> dict[str, Any]:
    """Count decisions, how often prediction sets held the true label, and how often certain decisions were correct.

    Args:
        labels: (N,) true classes.
        decisions: (N,) labels, `uncertain` or `out_of_distribution`.
        prediction_sets: (N,) sets of labels.
        classes: (C,) names.

    Returns:
        `counts` of each decision; `images` of each class, and how many of these are `out_of_distribution`;
        `answered`, the share with a label for a decision, and `accuracy_of_answered`; `coverage` of prediction sets by
        class; the mean `set_size`. Rates have intervals (Wilson 1927; images count as independent).
    """
    truth, decided = np.array(labels), np.array(decisions)
    held = np.array([label in fits for label, fits in zip(labels, prediction_sets, strict=True)])
    answered = np.isin(decided, classes)
    return {
        "counts": {name: int((decided == name).sum()) for name in list_names(classes)},
        "images": {name: int((truth == name).sum()) for name in classes},
        "out_of_distribution": {name: int((decided[truth == name] == OUT_OF_DISTRIBUTION).sum()) for name in classes},
        "answered": measure_rate(answered),
        "accuracy_of_answered": measure_rate((decided == truth)[answered]),
        "coverage": {name: measure_rate(held[truth == name]) for name in classes},
        "set_size": float(np.mean([len(fits) for fits in prediction_sets])),
    }


def find_broken_promises(summary: Mapping[str, Any], decisions: Decisions, detecting: bool = True) -> list[str]:
    """Note where labelled images break the promises of prediction sets and OOD detector.

    The promises hold for images like those of validation. Given n validation images of which the k-th sets the
    threshold, the rate of misses is Beta(k, n + 1 - k) distributed (Vovk 2012), so misses among new images are
    beta-binomial. A number with a chance of at most 2.5% is noted. Images of one patient count as independent.
    `detecting` says whether images out of distribution were detected.
    """
    notes = []
    if (sets := decisions.prediction_sets) is not None:
        for name, rate in summary.get("coverage", {}).items():
            missed = round(rate["n"] * (1 - rate["value"])) if rate["n"] else 0
            if rate["n"] and _too_many(missed, rate["n"], sets.rank(name), len(sets.scores.get(name, ()))):
                notes.append(
                    f"Prediction sets hold the true label for {rate['value']:.0%} of the {rate['n']} {name} images; "
                    f"{1 - sets.alpha:.0%} was promised for images like the validation images. These images differ: do "
                    "not rely on probabilities and threshold until they are calibrated on images of this source."
                )
    if detecting and (detector := decisions.ood) is not None:
        for name, flagged in summary[OUT_OF_DISTRIBUTION].items():
            n = summary["images"][name]
            if _too_many(flagged, n, detector.rank(name), len(detector.distances.get(name, ()))):
                notes.append(
                    f"{flagged} of the {n} {name} images are out of distribution, more than chance allows for images "
                    "like the validation images: many of them are unlike the training images."
                )
    return notes


def _too_many(events: int, images: int, rank: int, count: int) -> bool:
    """Whether so many events have a chance of at most 2.5%; the value of `rank` among `count` is the threshold."""
    from scipy.special import gammaln

    def choose(n: int, k: NDArray[np.int64]) -> NDArray[np.float64]:
        """The logarithm of a binomial coefficient."""
        found: NDArray[np.float64] = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
        return found

    if not count or not rank:
        return events > 0 and rank == 0 and count > 0
    # The number of events is beta-binomial. It is at least `events` exactly if fewer than `rank` of the
    # `events + rank - 1` most extreme of all values belong to the `count` values that set the threshold. That number is
    # hypergeometric.
    first = events + rank - 1
    among = np.arange(max(0, first - images), rank)
    chances = choose(count, among) + choose(images, first - among) - choose(images + count, np.array(first))
    return bool(np.exp(chances).sum() <= 0.025)


def measure_rate(hits: Sequence[bool] | NDArray[np.bool_]) -> dict[str, float | int | None]:
    """The rate of hits with its interval (Wilson 1927; they count as independent), and their number."""
    if not len(hits):
        return {"value": None, "low": None, "high": None, "n": 0}
    value = float(np.mean(hits))
    low, high = wilson_interval(value, len(hits), CONFIDENCE)
    return {"value": value, "low": low, "high": high, "n": len(hits)}
