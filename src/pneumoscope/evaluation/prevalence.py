"""The same model where disease is rarer or commoner than in training."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.config import Progress
from pneumoscope.datasets.samples import Sample, cluster_by_patient
from pneumoscope.decisions import calibration, prior_shift
from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION, Decisions
from pneumoscope.decisions.threshold import Threshold
from pneumoscope.errors import DataError
from pneumoscope.evaluation.intervals.bootstrap import resample
from pneumoscope.evaluation.intervals.proportions import rate_interval
from pneumoscope.evaluation.metrics import check_predictions, measure
from pneumoscope.evaluation.results import Adjusted, Evaluation, Interval
from pneumoscope.inference.cache import FeatureCache
from pneumoscope.inference.predictor import Predictor

Floats = NDArray[np.float64]
FEWEST = 10  # images; from fewer the estimate is often 0 or 1, and so are its limits


def estimate_prevalence(
    log_shares: ArrayLike,
    stated: Sequence[float],
    *,
    patients: Sequence[str | None] | None = None,
    resamples: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Estimate the positive class's share of two, with percentile limits of a bootstrap by patient.

    The limits know of chance in drawing images, not of a model that is badly calibrated there.
    """
    base = np.asarray(log_shares, np.float64)
    value = float(prior_shift.fit(base, stated)[1])
    drawn = np.concatenate(
        [
            prior_shift.fit(base, stated, weights, steps=200)[:, 1]
            for chunk in resample(cluster_by_patient(patients, len(base)), resamples, seed)
            for weights in np.array_split(chunk, max(1, len(chunk) * len(base) // 200_000))
        ]
    )
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    return Interval(value, min(low, value), max(high, value))


def adapt_prior(
    predictor: Predictor, samples: Sequence[Sample], progress: Progress | None = None
) -> tuple[Predictor, Interval]:
    """Estimate the positive class's share among images without labels, and state probabilities for it.

    Images that cannot be read, or are ood, have no part in it. Features are kept meanwhile, so that predicting the
    same images afterwards takes no second look.

    Args:
        predictor: of two classes, without a prevalence of its own.
        samples: the images.
        progress: called with the number of images done.

    Returns:
        The classifier for that prevalence, and the prevalence with its limits.

    Raises:
        UsageError: more than two classes, or a model that does not know its own prevalence.
        DataError: too few images to estimate it from.
    """
    prior_shift.check_prevalence(0.5, predictor.model.labels)
    fitted = predictor.decisions.calibration
    keeping = copy.copy(predictor)
    keeping.cache = predictor.cache or FeatureCache(Path(":memory:"))
    found = keeping.predict(samples, progress)
    read = [
        (one, image)
        for one, image in zip(found, samples, strict=True)
        if one.error is None and one.decision != OUT_OF_DISTRIBUTION
    ]
    if len(read) < FEWEST:
        raise DataError(
            f"--adapt-prior: {len(read)} of these images can be read and are like the training radiographs; it takes "
            f"{FEWEST} to estimate a prevalence. Give --prevalence instead."
        )
    log_shares = calibration.apply([one.logits for one, _ in read], fitted)
    patients = [image.patient for _, image in read]
    share = estimate_prevalence(log_shares, fitted.class_fractions, patients=patients)
    return keeping.at_prevalence(min(max(share.value, 1e-4), 1 - 1e-4)), share


def adjust_evaluation(
    evaluation: Evaluation,
    decisions: Decisions,
    labels: ArrayLike,
    log_shares: ArrayLike,
    prevalence: float,
    patients: Sequence[str | None] | None = None,
) -> Adjusted:
    """Measure as if the positive class of two had this share: each class's images count by it.

    Sensitivity, specificity and AUROC do not depend on it, and have their limits as elsewhere. Those of accuracy, PPV
    and NPV follow from the limits of the first two (MOVER: Zou & Donner 2008; PPV and NPV by likelihood ratios). The
    other metrics have none.

    Args:
        evaluation: of the same images; its AUROC and confidence are taken.
        decisions: calibration and threshold.
        labels: (N,) of 0 and 1.
        log_shares: (N, 2) logarithms of probabilities, as calibrated.
        prevalence: in (0, 1).
        patients: (N,), whose images count together.

    Raises:
        DataError: images of one class only.
    """
    wanted = (1 - prevalence, prevalence)
    fractions = decisions.calibration.class_fractions
    adjusted = np.exp(prior_shift.apply(np.asarray(log_shares, np.float64), fractions, wanted))[:, 1]
    threshold = prior_shift.adjust_threshold(decisions.threshold or Threshold(), fractions, prevalence).value
    y, p = check_predictions(labels, adjusted)
    if len(np.unique(y)) < 2:
        raise DataError("To measure for another prevalence takes images of both classes; there are images of one.")
    weights = np.where(y == 1, prevalence / (y == 1).sum(), (1 - prevalence) / (y == 0).sum())
    metrics = {
        name: Interval(float(value[0]), np.nan, np.nan)
        for name, value in measure(y, p, threshold=threshold, weights=weights[None] * len(y)).items()
    }
    clusters, called = cluster_by_patient(patients, len(y)), p >= threshold
    sensitivity, specificity = (
        Interval(metrics[name].value, *rate_interval(hit, among, clusters, evaluation.confidence))
        for name, hit, among in (("sensitivity", called, y == 1), ("specificity", ~called, y == 0))
    )
    metrics |= {"sensitivity": sensitivity, "specificity": specificity, "auroc": evaluation.metrics["auroc"]}
    metrics["accuracy"] = _mix(sensitivity, specificity, prevalence)
    metrics["ppv"] = _predict(sensitivity, specificity, prevalence)
    metrics["npv"] = _predict(specificity, sensitivity, 1 - prevalence)
    shares = dict(zip(evaluation.classes, wanted, strict=True))
    certain = Interval(prevalence, np.nan, np.nan)
    return Adjusted(shares, certain, estimated=False, threshold=threshold, metrics=metrics)


def _mix(sensitivity: Interval, specificity: Interval, share: float) -> Interval:
    """Accuracy, share * sensitivity + (1 - share) * specificity, and its limits."""
    parts = (share, sensitivity), (1 - share, specificity)
    value = sum(weight * one.value for weight, one in parts)
    below = np.sqrt(sum((weight * (one.value - one.low)) ** 2 for weight, one in parts))
    above = np.sqrt(sum((weight * (one.high - one.value)) ** 2 for weight, one in parts))
    return Interval(float(value), float(max(0, value - below)), float(min(1, value + above)))


def _predict(own: Interval, other: Interval, share: float) -> Interval:
    """PPV from sensitivity, specificity and prevalence; NPV from specificity, sensitivity and what is left to 1."""
    alarms = Interval(1 - other.value, 1 - other.high, 1 - other.low)
    if own.value == alarms.value == 0:
        return Interval(np.nan, np.nan, np.nan)

    def share_right(log_ratio: float) -> float:
        return float(1 / (1 + (1 - share) / share * np.exp(-log_ratio)))

    with np.errstate(divide="ignore", invalid="ignore"):
        logs = {name: np.log([getattr(one, name) for one in (own, alarms)]) for name in ("low", "value", "high")}
        hit, alarm = logs["value"]
        below = np.hypot(hit - logs["low"][0], logs["high"][1] - alarm)
        above = np.hypot(logs["high"][0] - hit, alarm - logs["low"][1])
        low = logs["low"][0] - logs["high"][1] if not np.isfinite(hit - alarm) else hit - alarm - below
        high = logs["high"][0] - logs["low"][1] if not np.isfinite(hit - alarm) else hit - alarm + above
        value, ends = share_right(hit - alarm), (share_right(low), share_right(high))
    return Interval(value, min(ends[0], value), max(ends[1], value))
