"""How logits are made into probabilities that mean what they say; fitted on validation images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.datasets.samples import cluster_by_patient
from pneumoscope.decisions.decide import calibrate
from pneumoscope.errors import UsageError
from pneumoscope.evaluation.metrics import measure
from pneumoscope.models.model_folder import Calibration

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Method = Literal["auto", "none", "temperature", "platt", "isotonic"]
Fitted = Literal["none", "temperature", "platt", "isotonic"]

PLATT_FROM = 20  # images of the rarer class: an intercept costs one parameter more
ISOTONIC_FROM = 500  # Niculescu-Mizil & Caruana (2005) find it better than Platt's from about 1,000 images on
FOLDS = 5
PRIOR = 0.5  # standard deviation of log slope and intercept


def fit_calibration(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    method: Method = "auto",
    shares: Sequence[float] | None = None,
    trained: Sequence[float] | None = None,
    patients: Sequence[str | None] | None = None,
    seed: int = 0,
) -> Calibration:
    """Fit how logits become probabilities, and measure what that changes.

    `auto` tries `temperature`, `platt` (from 20 images of the rarer class on) and `isotonic` (from 500 on), and takes
    the one with the smallest log loss where each image is judged by a fit on others; for more than two classes it takes
    `temperature`. Slope and intercept have a prior that leaves logits as they are: the logarithm of the slope and the
    intercept are normal with a standard deviation of 0.5 around 0, so that a few images cannot change much; Platt's
    smoothed targets do worse with up to 100 images (docs/log.md). For `isotonic` targets are his (1999, section 2.2),
    (n + 1) / (n + 2) instead of 1.

    Args:
        logits: (N, 1), the positive class's of two, or (N, C), of images that were not trained on.
        labels: (N,) class indices.
        method: `none` fits nothing, and is measured too.
        shares: (C,) of the classes, which the probabilities are to be stated for; those of the labels by default.
        trained: (C,) shares that the network was trained for, `shares` by default; equal ones where classes of unequal
            size were weighted. What lies between the two is known, and not left to be fitted.
        patients: (N,), kept together where a fit is judged on other images.
        seed: fixes how these are divided.

    Raises:
        UsageError: a method that is for two classes only.
    """
    z, y = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    classes = max(2, z.shape[1])
    if classes > 2 and method in ("platt", "isotonic"):
        raise UsageError(f"--calibration {method}: for two classes only; take temperature.")
    counts = np.bincount(y, minlength=classes)
    wanted = counts / counts.sum() if shares is None else np.asarray(shares, np.float64)
    weights = (wanted / np.maximum(counts, 1))[y]
    as_trained = (np.asarray(wanted if trained is None else trained) / np.maximum(counts, 1))[y]
    start = Calibration()
    if trained is not None and not np.allclose(wanted, trained):
        start = replace(start, offset=tuple((np.log(wanted) - np.log(trained)).tolist()))
    candidates: tuple[Fitted, ...] = _candidates(int(counts.min()), classes) if method == "auto" else (method,)
    clusters = cluster_by_patient(patients, len(y))
    held_out = {}
    for name in candidates:
        begun, counting = replace(start, method=name), weights if name == "isotonic" else as_trained
        held_out[name] = judge(_cross_fit(begun, z, y, counting, clusters, seed), y, weights)
    chosen = min(candidates, key=lambda name: held_out[name]["log_loss"])
    return replace(
        _fit(replace(start, method=chosen), z, y, weights if chosen == "isotonic" else as_trained),
        shares=tuple(wanted.tolist()),
        images=len(y),
        before=judge(calibrate(z, start), y, weights),
        after=held_out[chosen],
    )


def judge(log_shares: Floats, labels: Ints, weights: Floats) -> dict[str, float]:
    """Log loss, Brier score and calibration error of probabilities, images counting by their weights."""
    shares = np.exp(log_shares)
    stated = shares[:, 1] if shares.shape[1] == 2 else shares / shares.sum(1, keepdims=True)
    found = measure(labels, stated, weights=weights[None])
    losses = -np.maximum(log_shares[np.arange(len(labels)), labels], -700)
    return {
        "log_loss": float((losses * weights).sum() / weights.sum()),
        "brier": float(found["brier"][0]),
        "ece": float(found["ece"][0]),
    }


def _candidates(rarest: int, classes: int) -> tuple[Fitted, ...]:
    if classes > 2 or rarest < PLATT_FROM:
        return ("temperature",)
    return ("temperature", "platt", "isotonic") if rarest >= ISOTONIC_FROM else ("temperature", "platt")


def _fit(start: Calibration, z: Floats, y: Ints, weights: Floats) -> Calibration:
    """Fit the method that `start` names, beginning from it."""
    if start.method == "isotonic":
        return replace(_fit_isotonic(z[:, 0], y, weights), offset=start.offset)
    if start.method == "temperature":
        return _fit_temperature(start, z, y, weights)
    return _fit_platt(start, z, y, weights) if start.method == "platt" else start


def _fit_temperature(start: Calibration, z: Floats, y: Ints, weights: Floats) -> Calibration:
    from scipy.optimize import minimize_scalar

    def loss(log_slope: float) -> float:  # images weighted as the network was trained: the offset comes afterwards
        log_shares = calibrate(z, replace(start, slope=float(np.exp(log_slope)), offset=()))
        return _surprise(log_shares, y, weights) + float(log_slope) ** 2 / (2 * PRIOR**2)

    best = minimize_scalar(loss, bounds=(-7, 7), method="bounded", options={"xatol": 1e-7})
    return replace(start, slope=float(np.exp(best.x)))


def _fit_platt(start: Calibration, z: Floats, y: Ints, weights: Floats) -> Calibration:
    from scipy.optimize import minimize

    def step(parameters: Floats) -> Calibration:
        return replace(start, slope=float(np.exp(parameters[0])), intercept=float(parameters[1]))

    def loss(parameters: Floats) -> float:
        away = float((parameters**2).sum()) / (2 * PRIOR**2)
        return _surprise(calibrate(z, replace(step(parameters), offset=())), y, weights) + away

    return step(minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9}).x)


def _surprise(log_shares: Floats, y: Ints, weights: Floats) -> float:
    """Minus log likelihood of as many images as there are, which count by their weights."""
    likelihoods = log_shares[np.arange(len(y)), y]
    return float(-(weights * likelihoods).sum() * len(y) / weights.sum())


def _fit_isotonic(z: Floats, y: Ints, weights: Floats) -> Calibration:
    from sklearn.isotonic import IsotonicRegression

    own = (np.bincount(y, minlength=2) + 1) / (np.bincount(y, minlength=2) + 2)
    targets = np.where(y == 1, own[1], 1 - own[0])
    fitted = IsotonicRegression(out_of_bounds="clip").fit(z, targets, sample_weight=weights)
    knots = zip(fitted.X_thresholds_.tolist(), np.clip(fitted.y_thresholds_, 0, 1).tolist(), strict=True)
    return Calibration("isotonic", knots=tuple(knots))


def _cross_fit(start: Calibration, z: Floats, y: Ints, weights: Floats, clusters: Ints, seed: int) -> Floats:
    """Each image's log shares by a fit on the images of other patients; by the fit on all where that can't be had."""
    folds = np.random.default_rng(seed).permutation(int(clusters.max()) + 1)[clusters] % FOLDS
    log_shares = calibrate(z, _fit(start, z, y, weights))
    classes = len(np.unique(y))
    for fold in range(FOLDS):
        rest, held = folds != fold, folds == fold
        if held.any() and len(np.unique(y[rest])) == classes:
            log_shares[held] = calibrate(z[held], _fit(start, z[rest], y[rest], weights[rest]))
    return log_shares
