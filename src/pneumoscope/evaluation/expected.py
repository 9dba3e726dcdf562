"""Estimates from probabilities alone, without labels, how good predictions are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import Count, Seed, checked, quote
from pneumoscope.datasets.samples import cluster_by_patient
from pneumoscope.errors import DataError, UsageError, require_extra
from pneumoscope.evaluation.intervals.proportions import CONFIDENCE
from pneumoscope.evaluation.metrics import measure
from pneumoscope.evaluation.results import Interval
from pneumoscope.inference.prediction import Prediction

Floats = NDArray[np.float64]
METRICS = ("accuracy", "sensitivity", "specificity", "auroc", "brier")


@checked
def estimate_metrics(
    predictions: Sequence[Prediction], classes: Sequence[str], *, resamples: Count = 500, seed: Seed = 0
) -> dict[str, Interval]:
    """Estimate metrics of predictions without labels, from their probabilities (confidence-based estimation).

    If the probabilities are calibrated for these images, an image of probability p is positive with probability p:
    counted as so much of a positive and the rest of a negative image, the images give the expected accuracy,
    sensitivity, specificity, AUROC and Brier score (confidence-based estimates; Guillory et al., ICCV 2021). The
    assumption decides: where the probabilities are wrong, so is the estimate, and nothing here can tell. It holds
    after calibration on images of the same source; docs/results/adaptation.md shows how wrong it is elsewhere.

    Args:
        predictions: of any number of images; those without a prediction or out of distribution are left out.
        classes: two, of which the second is positive.
        resamples: bootstrap resamples of patients, each with labels drawn by the probabilities.
        seed: fixes them.

    Returns:
        For each metric the estimate with an interval for labels and images by chance; the assumption is not in it.

    Raises:
        UsageError: an argument is of the wrong type.
        DataError: no image has a probability, or there are more than two classes.
    """
    require_extra("evaluate")
    if not isinstance(predictions, Sequence) or not all(isinstance(each, Prediction) for each in predictions):
        raise UsageError(f"must be a list of predictions, found {quote(predictions)}.", "predictions")
    chosen = [each for each in predictions if each.probability is not None]
    if len(classes) > 2:
        raise DataError(f"Performance can be estimated without labels for two classes only; there are {len(classes)}.")
    if not chosen:
        raise DataError("No image has a probability, so nothing can be estimated.")
    p = np.array([(each.probabilities or {})[classes[1]] for each in chosen])
    positive = np.array([each.predicted_label == classes[1] for each in chosen])
    found = measure_expected(p, positive)
    clusters = cluster_by_patient([each.patient for each in chosen], len(chosen))
    rng, count, drawn = np.random.default_rng(seed), int(clusters.max()) + 1, []
    for _ in range(resamples):
        times = np.bincount(rng.integers(count, size=count), minlength=count)[clusters].astype(np.float64)
        truth = rng.random(len(p)) < p
        drawn.append(np.concatenate([times * ~truth, times * truth]))
    spread = measure_expected(p, positive, np.array(drawn))
    return {name: Interval(float(found[name][0]), *_find_ends(spread[name])) for name in METRICS}


def _find_ends(drawn: Floats) -> tuple[float, float]:
    """The ends of the interval of resampled values; nan where none is defined."""
    defined = drawn[~np.isnan(drawn)]
    if not len(defined):
        return math.nan, math.nan
    low, high = np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def measure_expected(
    probabilities: Floats, predicted: NDArray[np.bool_], weights: Floats | None = None
) -> dict[str, Floats]:
    """Metrics (B,) of N images each of which counts as either class.

    Args:
        probabilities: (N,) of the positive class.
        predicted: (N,) whether it is predicted; the labels count, not a threshold, which may have been adjusted.
        weights: (B, 2N), how much each image counts as negative, then as positive; by default by its probability.
    """
    p = np.asarray(probabilities, np.float64)
    shares = np.concatenate([1 - p, p])[None] if weights is None else weights
    cuts = np.where(np.tile(predicted, 2), 0.0, 2.0)
    return measure(np.repeat([0, 1], len(p)), np.tile(p, 2), threshold=cuts, weights=shares)
