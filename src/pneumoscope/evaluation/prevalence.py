"""Estimates the prevalence, and measures a model as if disease were rarer or more common than in training."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from pneumoscope.config import Progress
from pneumoscope.datasets.samples import Sample, cluster_by_patient
from pneumoscope.decisions import calibration, prior_shift
from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION, Decisions
from pneumoscope.decisions.threshold import Threshold
from pneumoscope.errors import DataError
from pneumoscope.evaluation.intervals.bootstrap import resample
from pneumoscope.evaluation.intervals.proportions import CONFIDENCE, rate_interval
from pneumoscope.evaluation.metrics import check_predictions, measure
from pneumoscope.evaluation.results import Adjusted, Evaluation, Interval
from pneumoscope.inference.cache import MEMORY, FeatureCache
from pneumoscope.inference.predictor import Predictor

ENOUGH = 10  # images; an estimate from fewer is often 0 or 1, and so are the ends of its interval


def estimate_prevalence(
    log_probabilities: ArrayLike,
    fractions: Sequence[float],
    *,
    patients: Sequence[str | None] | None = None,
    resamples: int = 500,
    seed: int = 0,
) -> Interval:
    """Estimate the positive class's share without labels, for two classes, with the percentile interval of a bootstrap.

    The interval accounts for the choice of images, by patient, not for a model that is badly calibrated on them. The
    log probabilities (N, 2) hold for `fractions` of the negative and the positive class.
    """
    base = np.asarray(log_probabilities, np.float64)
    value = float(prior_shift.fit(base, fractions)[1])
    drawn = np.concatenate(
        [
            prior_shift.fit(base, fractions, weights, steps=200)[:, 1]
            for chunk in resample(cluster_by_patient(patients, len(base)), resamples, seed)
            for weights in np.array_split(chunk, max(1, len(chunk) * len(base) // 200_000))
        ]
    )
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
    return Interval(value, min(low, value), max(high, value))


def adapt_prior(
    predictor: Predictor, samples: Sequence[Sample], progress: Progress | None = None
) -> tuple[Predictor, Interval]:
    """Estimate the prevalence among images without labels, and adjust the predictor to it.

    Images that are unreadable or out of distribution do not count. Features are cached, so the same images can then be
    predicted without reading them again.

    Args:
        predictor: for two classes, not yet adjusted to a prevalence.
        samples: the images.
        progress: called as images are done.

    Returns:
        The adjusted predictor, and the prevalence with its interval.

    Raises:
        UsageError: the model has more than two classes.
        DataError: too few images.
    """
    prior_shift.check_prevalence(0.5, predictor.model.labels)
    fitted = predictor.decisions.calibration
    caching = copy.copy(predictor)
    caching.cache = predictor.cache or FeatureCache(MEMORY)
    usable = [
        (prediction.logits, sample.patient)
        for prediction, sample in zip(caching.predict(samples, progress), samples, strict=True)
        if prediction.error is None and prediction.decision != OUT_OF_DISTRIBUTION
    ]
    if len(usable) < ENOUGH:
        raise DataError(
            f"{len(usable)} images can be read and are like the training images, but an estimate of the prevalence "
            f"needs at least {ENOUGH}. Set `prevalence` instead.",
            "adapt_prior",
        )
    log_probabilities = calibration.apply([logits for logits, _ in usable], fitted)
    patients = [patient for _, patient in usable]
    prevalence = estimate_prevalence(log_probabilities, fitted.class_fractions, patients=patients)
    return caching.at_prevalence(min(max(prevalence.value, 1e-4), 1 - 1e-4)), prevalence


def adjust_evaluation(
    evaluation: Evaluation,
    decisions: Decisions,
    labels: ArrayLike,
    log_probabilities: ArrayLike,
    prevalence: float,
    patients: Sequence[str | None] | None = None,
) -> Adjusted:
    """Measure as if the positive class had another prevalence, by weighting the images of each class; for two classes.

    Sensitivity, specificity and AUROC do not depend on the prevalence. The intervals of accuracy, PPV and NPV follow
    from those of sensitivity and specificity (MOVER: Zou & Donner 2008; PPV and NPV by likelihood ratios). Other
    metrics have no interval.

    Args:
        evaluation: of the same images; gives AUROC and confidence.
        decisions: calibration and threshold.
        labels: (N,) of 0 and 1.
        log_probabilities: (N, 2), calibrated.
        prevalence: in (0, 1).
        patients: (N,), whose images count together.

    Raises:
        DataError: images of only one class.
    """
    fractions, wanted = decisions.calibration.class_fractions, (1 - prevalence, prevalence)
    adjusted = np.exp(prior_shift.apply(np.asarray(log_probabilities, np.float64), fractions, wanted))[:, 1]
    threshold = prior_shift.adjust_threshold(decisions.threshold or Threshold(), fractions, prevalence).value
    y, p = check_predictions(labels, adjusted)
    if len(np.unique(y)) < 2:
        raise DataError("measuring at another prevalence needs images of both classes, found one.", "prevalence")
    weights = np.where(y == 1, prevalence / (y == 1).sum(), (1 - prevalence) / (y == 0).sum())
    metrics = {
        name: Interval(float(value[0]), np.nan, np.nan)
        for name, value in measure(y, p, threshold=threshold, weights=weights[None] * len(y)).items()
    }
    clusters, predicted = cluster_by_patient(patients, len(y)), p >= threshold
    sensitivity, specificity = (
        Interval(metrics[name].value, *rate_interval(hits, among, clusters, evaluation.confidence))
        for name, hits, among in (("sensitivity", predicted, y == 1), ("specificity", ~predicted, y == 0))
    )
    metrics |= {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "auroc": evaluation.metrics["auroc"],
        "accuracy": _find_accuracy(sensitivity, specificity, prevalence),
        "ppv": _find_predictive_value(sensitivity, specificity, prevalence),
        "npv": _find_predictive_value(specificity, sensitivity, 1 - prevalence),
    }
    shares = dict(zip(evaluation.classes, wanted, strict=True))
    return Adjusted(shares, Interval(prevalence, np.nan, np.nan), False, threshold, metrics)


def _find_accuracy(sensitivity: Interval, specificity: Interval, prevalence: float) -> Interval:
    parts = (prevalence, sensitivity), (1 - prevalence, specificity)
    value = sum(weight * rate.value for weight, rate in parts)
    below = np.sqrt(sum((weight * (rate.value - rate.low)) ** 2 for weight, rate in parts))
    above = np.sqrt(sum((weight * (rate.high - rate.value)) ** 2 for weight, rate in parts))
    return Interval(float(value), float(max(0, value - below)), float(min(1, value + above)))


def _find_predictive_value(right: Interval, other: Interval, share: float) -> Interval:
    """PPV from sensitivity, specificity and prevalence; NPV from specificity, sensitivity and 1 - prevalence."""
    if right.value == 0 and other.value == 1:
        return Interval(np.nan, np.nan, np.nan)

    def to_value(log_ratio: float) -> float:
        return float(1 / (1 + (1 - share) / share * np.exp(-log_ratio)))

    with np.errstate(divide="ignore", invalid="ignore"):
        hit_low, hit, hit_high = np.log([right.low, right.value, right.high])
        alarm_low, alarm, alarm_high = np.log([1 - other.high, 1 - other.value, 1 - other.low])
        ratio = hit - alarm
        low, high = hit_low - alarm_high, hit_high - alarm_low
        if np.isfinite(ratio):
            low = ratio - np.hypot(hit - hit_low, alarm_high - alarm)
            high = ratio + np.hypot(hit_high - hit, alarm - alarm_low)
        value = to_value(ratio)
        return Interval(value, min(to_value(low), value), max(to_value(high), value))
