"""Computes every metric of an evaluation with its interval, by the method whose coverage is right, by patient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from pneumoscope.datasets.samples import cluster_by_patient
from pneumoscope.errors import UsageError
from pneumoscope.evaluation.intervals.bootstrap import bootstrap_t_interval, jackknife_errors, loss_moments, resample
from pneumoscope.evaluation.intervals.calibration_error import calibration_error_interval
from pneumoscope.evaluation.intervals.delong import auroc_covariance
from pneumoscope.evaluation.intervals.many_images import MANY, join_patients
from pneumoscope.evaluation.intervals.proportions import (
    CONFIDENCE,
    UNDEFINED,
    Bools,
    Bounds,
    Floats,
    Ints,
    effective_count,
    logit_interval,
    perfect_auroc_interval,
    rate_interval,
    wilson_interval_from_error,
)
from pneumoscope.evaluation.metrics import (
    BINS,
    METRICS,
    check_predictions,
    confusion,
    find_bins,
    measure,
    predict_classes,
)
from pneumoscope.evaluation.results import ClassMetrics, Evaluation, Interval

Found = tuple[Bounds, str]  # an interval and the method behind it


def evaluate_predictions(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    classes: Sequence[str],
    split: str = "test",
    threshold: ArrayLike = 0.5,
    patients: Sequence[str | None] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Evaluation:
    """Measure every metric with its interval, by patient where patients are known.

    docs/results.md shows how often the intervals cover the truth in simulations. Where nothing varies, there is none.

    Args:
        labels: (N,) indices into `classes`.
        probabilities: (N,) of the positive class, or (N, C) with C > 2.
        classes: their names; if there are two, the second is positive.
        split: name of the split.
        threshold: two classes: positive from this probability on, or (N,) with one for each image, whose mean is then
            that of the result; more: (C,) or (N, C), as for `predict_classes`.
        patients: (N,); an image whose patient is None or "" counts as its own patient.
        resamples: bootstrap resamples and simulated sets of labels, for `brier` and `ece`.
        seed: the same seed gives the same intervals.

    Raises:
        DataError: unusable labels, probabilities or patients.
        UsageError: invalid classes or resamples.
    """
    y, p = check_predictions(labels, probabilities)
    two = p.ndim == 1
    if len(set(classes)) != len(classes) or len(classes) != (2 if two else p.shape[1]):
        raise UsageError(
            f"{', '.join(classes)}: there must be one for each column of the probabilities {p.shape}.", "classes"
        )
    if resamples < 1:
        raise UsageError(f"at least 1 is needed, found {resamples}.", "resamples")
    clusters = cluster_by_patient(patients, len(y))
    metrics, methods = _measure_with_intervals(y, p, threshold, clusters, resamples, seed)
    shares = (np.bincount(y, minlength=len(classes)) / len(y)).tolist()
    return Evaluation(
        split=split,
        n=len(y),
        patients=len({patient for patient in patients or () if patient}) or None,
        classes=tuple(classes),
        positive=classes[1] if two else None,
        prevalence=shares[1] if two else math.nan,
        shares=dict(zip(classes, shares, strict=True)),
        threshold=float(np.asarray(threshold, np.float64).mean()) if two else math.nan,
        thresholds=_name_thresholds(threshold, classes),
        metrics=metrics,
        per_class=_measure_classes(y, predict_classes(p, threshold), classes, clusters),
        confusion=confusion(y, p, threshold=threshold),
        resamples=resamples,
        confidence=CONFIDENCE,
        seed=seed,
        methods=methods,
    )


def _name_thresholds(threshold: ArrayLike, classes: Sequence[str]) -> dict[str, float]:
    """The thresholds of more than two classes, by class; none where there is one for all."""
    if len(classes) == 2 or np.ndim(threshold) == 0:
        return {}
    return dict(zip(classes, np.atleast_2d(threshold).mean(0).tolist(), strict=True))


def measure_some(
    labels: ArrayLike,
    probabilities: ArrayLike,
    names: Sequence[str],
    *,
    threshold: ArrayLike = 0.5,
    patients: Sequence[str | None] | None = None,
) -> dict[str, Interval]:
    """Measure some metrics only, as `evaluate_predictions` does, but in a fraction of the time.

    Args:
        labels: (N,) indices of classes.
        probabilities: (N,) of the positive class, or (N, C) with C > 2.
        names: of rates and `auroc`, whose intervals need no resampling.
        threshold: as for `evaluate_predictions`.
        patients: (N,), as for `evaluate_predictions`.

    Raises:
        DataError: unusable labels, probabilities or patients.
    """
    y, p = check_predictions(labels, probabilities)
    clusters = cluster_by_patient(patients, len(y))
    values = {name: float(value[0]) for name, value in measure(y, p, threshold=threshold).items()}
    predicted = predict_classes(p, threshold)
    if p.ndim == 1:
        intervals = _find_rate_intervals(y == 1, predicted == 1, clusters)
        if "auroc" in names:
            intervals["auroc"] = find_auroc_interval(y, p, values["auroc"], clusters)
    else:
        intervals = _find_macro_intervals(y, p, values, threshold, clusters)
        intervals["accuracy"] = _find_accuracy_interval(predicted == y, clusters)
    return {name: _bound(values[name], intervals[name][0]) for name in names}


def _bound(value: float, bounds: Bounds) -> Interval:
    """A value with its interval: rounding, or a bias that the interval corrects, must not exclude the value itself."""
    low, high = bounds
    known = not math.isnan(value) and not math.isnan(low)
    return Interval(value, *((min(low, value), max(high, value)) if known else UNDEFINED))


def _find_accuracy_interval(hits: Bools, clusters: Ints) -> Found:
    return rate_interval(hits, np.ones(len(hits), bool), clusters, CONFIDENCE), "score (Wilson)"


def _measure_with_intervals(
    y: Ints, p: Floats, threshold: ArrayLike, clusters: Ints, resamples: int, seed: int
) -> tuple[dict[str, Interval], dict[str, str]]:
    """Measure metrics, and name the method behind each interval."""
    values = {name: float(value[0]) for name, value in measure(y, p, threshold=threshold).items()}
    intervals = _find_loss_intervals(y, p, clusters, resamples, seed)
    predicted = predict_classes(p, threshold)
    if p.ndim == 1:
        intervals |= _find_rate_intervals(y == 1, predicted == 1, clusters)
        intervals |= _find_ranking_intervals(y, p, values, threshold, clusters)
    else:
        intervals |= _find_macro_intervals(y, p, values, threshold, clusters)
        intervals["accuracy"] = _find_accuracy_interval(predicted == y, clusters)
    metrics, methods = {}, {}
    for name in METRICS:
        bounds, method = intervals[name]
        metrics[name] = _bound(values[name], bounds)
        methods[name] = "none" if math.isnan(metrics[name].low) else method
    return metrics, methods


def _find_loss_intervals(y: Ints, p: Floats, clusters: Ints, resamples: int, seed: int) -> dict[str, Found]:
    """Find the intervals of `brier` and `ece`."""
    if p.ndim == 1:
        losses, stated, correct = (y - p) ** 2, p, y == 1
    else:
        losses, stated, correct = ((np.eye(p.shape[1])[y] - p) ** 2).sum(1), p.max(1), p.argmax(1) == y
    bins = find_bins(stated)
    moments, columns, drawable = _gather_losses(losses, bins, clusters, seed)
    drawn = np.concatenate([weights @ columns for weights in resample(drawable, resamples, seed)])
    shares = drawn[:, :BINS] / drawn[:, :BINS].sum(1, keepdims=True)
    low, high = bootstrap_t_interval(moments.sum(0), drawn[:, BINS:], len(moments), CONFIDENCE)
    brier = low, min(high, 1.0 if p.ndim == 1 else 2.0)
    ece = calibration_error_interval(correct, stated, bins, clusters, shares, CONFIDENCE, seed)
    return {
        "brier": (brier, "bootstrap-t"),
        "ece": (ece, "test inversion with simulated labels"),
    }


def _gather_losses(losses: Floats, bins: Ints, clusters: Ints, seed: int) -> tuple[Floats, Floats, Ints]:
    """Moments of losses by patient, columns (N, K) of bins and moments that resamples sum, and what these draw (N,).

    For many images, patients are joined into groups, and each group has one row.
    """
    if len(losses) > MANY:
        groups = join_patients(clusters, seed)
        moments = loss_moments(losses, groups)
        counts = np.bincount(groups * BINS + bins, minlength=len(moments) * BINS).reshape(-1, BINS)
        return moments, np.hstack([counts, moments]), np.arange(len(moments))
    moments = loss_moments(losses, clusters)
    columns = np.zeros((len(losses), BINS + moments.shape[1]))
    columns[np.arange(len(losses)), bins] = 1
    columns[np.unique(clusters, return_index=True)[1], BINS:] = moments  # once a patient
    return moments, columns, clusters


def _find_rate_intervals(truth: Bools, predicted: Bools, clusters: Ints) -> dict[str, Found]:
    """Find the intervals of all rates of two classes."""
    rates = {
        "accuracy": (truth == predicted, np.ones_like(truth)),
        "sensitivity": (predicted, truth),
        "specificity": (~predicted, ~truth),
        "ppv": (truth, predicted),
        "npv": (~truth, ~predicted),
    }
    intervals = {name: rate_interval(hits, among, clusters, CONFIDENCE) for name, (hits, among) in rates.items()}
    intervals["f1"] = _find_f1_interval(truth, predicted, clusters)
    return {name: (interval, "score (Wilson)") for name, interval in intervals.items()}


def _find_f1_interval(truth: Bools, predicted: Bools, clusters: Ints) -> Bounds:
    """F1 is 2J / (1 + J), where J, the share of true positives among all images positive or predicted so, is a rate."""
    low, high = rate_interval(truth & predicted, truth | predicted, clusters, CONFIDENCE)
    return 2 * low / (1 + low), 2 * high / (1 + high)


def _measure_classes(y: Ints, predicted: Ints, classes: Sequence[str], clusters: Ints) -> dict[str, ClassMetrics]:
    """Measure how each class is recognised, against all others; intervals as for two classes."""

    def find_rate(hits: Bools, among: Bools) -> Interval:
        value = float(hits[among].mean()) if among.any() else math.nan
        return Interval(value, *rate_interval(hits, among, clusters, CONFIDENCE))

    found = {}
    for i, name in enumerate(classes):
        truth, chosen = y == i, predicted == i
        either = int((truth | chosen).sum())
        f1 = 2 * int((truth & chosen).sum()) / (int(truth.sum()) + int(chosen.sum())) if either else math.nan
        found[name] = ClassMetrics(
            find_rate(truth, chosen),
            find_rate(chosen, truth),
            Interval(f1, *_find_f1_interval(truth, chosen, clusters)),
            int(truth.sum()),
        )
    return found


def find_auroc_interval(y: Ints, p: Floats, auroc: float, clusters: Ints) -> Found:
    """Find the interval of AUROC, for two classes, and name its method.

    Args:
        y: labels (N,), 0 or 1.
        p: probabilities (N,) of label 1.
        auroc: their AUROC.
        clusters: patients (N,), numbered from 0.
    """
    truth = y == 1
    if auroc in (0.0, 1.0):
        pairs = min(len(np.unique(clusters[side])) for side in (truth, ~truth))
        low, high = perfect_auroc_interval(min(pairs, (int(clusters.max()) + 1) // 2), CONFIDENCE)
        return (low, high) if auroc else (1 - high, 1 - low), "exact, from disjoint pairs"
    error = float(np.sqrt(auroc_covariance(y, p[None], clusters)[1][0, 0]))
    return logit_interval(auroc, error, CONFIDENCE, _count_degrees(truth, clusters)), "logit, DeLong and Obuchowski"


def _count_degrees(truth: Bools, clusters: Ints) -> float:
    return min(effective_count(clusters, side) for side in (truth, ~truth)) - 1


def _find_ranking_intervals(
    y: Ints, p: Floats, values: Mapping[str, float], threshold: ArrayLike, clusters: Ints
) -> dict[str, Found]:
    """Find the intervals of AUROC, average precision and Matthews' coefficient, for two classes."""
    truth = y == 1
    degrees = _count_degrees(truth, clusters)
    patients = int(clusters.max()) + 1
    errors = jackknife_errors(y, p, clusters, threshold=threshold)
    auroc, matthews = values["auroc"], values["mcc"]
    (low, _), method = found = find_auroc_interval(y, p, auroc, clusters)
    intervals: dict[str, Found] = {"auroc": found}
    if auroc in (0.0, 1.0):
        # False over true positives, where errors are spread evenly.
        ratio = (1 - low) * (len(y) - truth.sum()) / truth.sum()
        lowest = 1 - ratio * math.log1p(1 / ratio)
        intervals["average_precision"] = (lowest, 1.0) if auroc else UNDEFINED, method
    else:
        precision = logit_interval(values["average_precision"], errors["average_precision"], CONFIDENCE, degrees)
        intervals["average_precision"] = precision, "logit, jackknife"
    # 1 - MCC is about the share of mistakes over 2 * prevalence * (1 - prevalence): as many trials at either end.
    trials = 4 * truth.mean() * (1 - truth.mean()) * patients
    low, high = wilson_interval_from_error((1 + matthews) / 2, errors["mcc"] / 2, CONFIDENCE, degrees, trials)
    intervals["mcc"] = (2 * low - 1, 2 * high - 1), "score, jackknife"
    return intervals


def _find_macro_intervals(
    y: Ints, p: Floats, values: Mapping[str, float], threshold: ArrayLike, clusters: Ints
) -> dict[str, Found]:
    """Find the intervals of all metrics of more than two classes, other than accuracy and losses."""
    errors = jackknife_errors(y, p, clusters, threshold=threshold)
    intervals: dict[str, Found] = {}
    for name in ("f1", "sensitivity", "specificity", "ppv", "npv"):
        intervals[name] = wilson_interval_from_error(values[name], errors[name], CONFIDENCE), "score, jackknife"
    for name in ("auroc", "average_precision"):
        intervals[name] = logit_interval(values[name], errors[name], CONFIDENCE), "logit, jackknife"
    low, high = wilson_interval_from_error((1 + values["mcc"]) / 2, errors["mcc"] / 2, CONFIDENCE)
    intervals["mcc"] = (2 * low - 1, 2 * high - 1), "score, jackknife"
    return intervals
