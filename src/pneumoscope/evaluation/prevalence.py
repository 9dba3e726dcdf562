"""The same model where disease is rarer or commoner than in training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.errors import DataError
from pneumoscope.evaluation.intervals import Evaluation, Interval, Restated, group, resample
from pneumoscope.evaluation.metrics import METRICS, checked, measure
from pneumoscope.inference.decisions import move_threshold, restate
from pneumoscope.models.bundle import Bundle

Floats = NDArray[np.float64]


def estimate_shares(
    log_shares: ArrayLike, stated: Sequence[float], weights: ArrayLike | None = None, steps: int = 1000
) -> Floats:
    """Estimate the classes' shares among films without labels, by expectation and maximisation.

    Saerens, Latinne & Decaestecker, Neural Computation 14 (2002), eq. 2.9. It rests on calibrated probabilities, and on
    films of a class looking the same as where the model was calibrated; where they don't, so does its answer.

    Args:
        log_shares: (N, C) logarithms of probabilities, as stated for `stated`.
        stated: (C,) shares.
        weights: (N,) or (B, N), how often each film counts.
        steps: at most so many.

    Returns:
        (C,), or (B, C) with B rows of weights.
    """
    base, begun = np.asarray(log_shares, np.float64), np.asarray(stated, np.float64)
    rows = np.ones((1, len(base))) if weights is None else np.atleast_2d(np.asarray(weights, np.float64))
    rows = rows / rows.sum(1, keepdims=True)
    ratio = np.exp(base - base.max(1, keepdims=True)) / begun  # likelihoods, up to a factor for each film
    shares = np.tile(begun, (len(rows), 1))
    for _ in range(steps):
        posterior = ratio[None] * shares[:, None]
        posterior /= posterior.sum(2, keepdims=True)
        moved = np.einsum("bn,bnc->bc", rows, posterior)
        if np.abs(moved - shares).max() < 1e-9:
            shares = moved
            break
        shares = moved
    return shares if weights is not None and np.ndim(weights) == 2 else shares[0]


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

    The limits know of chance in drawing films, not of a model that is badly calibrated there.
    """
    base = np.asarray(log_shares, np.float64)
    value = float(estimate_shares(base, stated)[1])
    drawn = np.concatenate(
        [
            estimate_shares(base, stated, weights, steps=200)[:, 1]
            for chunk in resample(group(patients, len(base)), resamples, seed)
            for weights in np.array_split(chunk, max(1, len(chunk) * len(base) // 200_000))
        ]
    )
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    return Interval(value, min(low, value), max(high, value))


def restate_evaluation(
    evaluation: Evaluation,
    bundle: Bundle,
    labels: ArrayLike,
    log_shares: ArrayLike,
    prevalence: float,
    patients: Sequence[str | None] | None = None,
) -> Restated:
    """Measure as if the positive class of two had this share: each class's films count by it.

    Args:
        evaluation: of the same films; its resamples, confidence and seed are taken.
        bundle: what the probabilities are stated for, and how the threshold came about.
        labels: (N,) of 0 and 1.
        log_shares: (N, 2) logarithms of probabilities, as calibrated.
        prevalence: in (0, 1).
        patients: (N,), drawn whole; limits are percentiles of the bootstrap.

    Raises:
        DataError: films of one class only.
    """
    wanted = (1 - prevalence, prevalence)
    restated = np.exp(restate(np.asarray(log_shares, np.float64), bundle.calibration.shares, wanted))[:, 1]
    threshold = move_threshold(bundle, prevalence)
    y, p = checked(labels, restated)
    if len(np.unique(y)) < 2:
        raise DataError("To measure for another prevalence takes films of both classes; there are films of one.")
    edges = [(1 - evaluation.confidence) / 2, (1 + evaluation.confidence) / 2]

    def reweighted(weights: Floats) -> Floats:
        positive, negative = weights[:, y == 1].sum(1), weights[:, y == 0].sum(1)
        usable = (positive > 0) & (negative > 0)
        w = weights[usable]
        factors = np.where(
            y == 1, (prevalence / positive[usable])[:, None], ((1 - prevalence) / negative[usable])[:, None]
        )
        balanced: Floats = w * factors * len(y)
        return balanced

    once = measure(y, p, threshold=threshold, weights=reweighted(np.ones((1, len(y)))))
    draws = [
        measure(y, p, threshold=threshold, weights=reweighted(weights))
        for weights in resample(group(patients, len(y)), evaluation.resamples, evaluation.seed)
    ]
    metrics = {}
    for name in METRICS:
        value = float(once[name][0])
        drawn = np.concatenate([draw[name] for draw in draws])
        drawn = drawn[np.isfinite(drawn)]
        low = high = np.nan
        if not np.isnan(value) and len(drawn) and np.ptp(drawn) > 1e-12:
            low, high = np.quantile(drawn, edges).tolist()
        metrics[name] = Interval(value, min(low, value), max(high, value))
    shares = dict(zip(evaluation.classes, wanted, strict=True))
    certain = Interval(prevalence, np.nan, np.nan)
    return Restated(shares, certain, estimated=False, threshold=threshold, metrics=metrics)
