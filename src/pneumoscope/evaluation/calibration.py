"""How logits are made into probabilities that mean what they say; fitted on validation films."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.errors import UsageError
from pneumoscope.evaluation.intervals import group
from pneumoscope.evaluation.metrics import measure
from pneumoscope.inference.decisions import calibrate
from pneumoscope.models.bundle import Calibration

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Method = Literal["auto", "none", "temperature", "platt", "isotonic"]

PLATT_FROM = 20  # films of the rarer class: an intercept costs one parameter more
ISOTONIC_FROM = 500  # Niculescu-Mizil & Caruana (2005) find it better than Platt's from about 1,000 films on
FOLDS = 5


def fit_calibration(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    method: Method = "auto",
    shares: Sequence[float] | None = None,
    patients: Sequence[str | None] | None = None,
    seed: int = 0,
) -> Calibration:
    """Fit how logits become probabilities, and measure what that changes.

    `auto` tries `temperature`, `platt` (from 20 films of the rarer class on) and `isotonic` (from 500 on), and takes
    the one with the smallest log loss where each film is judged by a fit on others; for more than two classes it takes
    `temperature`. Targets are those of Platt (1999, section 2.2), (n + 1) / (n + 2) instead of 1: films that are told
    apart without a mistake do not make probabilities of 0 and 1.

    Args:
        logits: (N, 1), the positive class's of two, or (N, C), of films that were not trained on.
        labels: (N,) class indices.
        method: `none` changes nothing, but is measured too.
        shares: (C,) of the classes, which the probabilities are to be stated for; those of the labels by default. Films
            are weighted accordingly.
        patients: (N,), kept together where a fit is judged on other films.
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
    candidates = _candidates(int(counts.min()), classes) if method == "auto" else (method,)
    clusters = group(patients, len(y))
    held_out = {name: judge(_cross_fit(name, z, y, weights, clusters, seed), y, weights) for name in candidates}
    chosen = min(candidates, key=lambda name: held_out[name]["log_loss"])
    return replace(
        _fit(chosen, z, y, weights),
        shares=tuple(wanted.tolist()),
        films=len(y),
        before=judge(calibrate(z, Calibration()), y, weights),
        after=held_out[chosen],
    )


def judge(log_shares: Floats, labels: Ints, weights: Floats) -> dict[str, float]:
    """Log loss, Brier score and calibration error of probabilities, films counting by their weights."""
    shares = np.exp(log_shares)
    stated = shares[:, 1] if shares.shape[1] == 2 else shares / shares.sum(1, keepdims=True)
    found = measure(labels, stated, weights=weights[None])
    losses = -np.maximum(log_shares[np.arange(len(labels)), labels], -700)
    return {
        "log_loss": float((losses * weights).sum() / weights.sum()),
        "brier": float(found["brier"][0]),
        "ece": float(found["ece"][0]),
    }


def _candidates(rarest: int, classes: int) -> tuple[Method, ...]:
    if classes > 2 or rarest < PLATT_FROM:
        return ("temperature",)
    return ("temperature", "platt", "isotonic") if rarest >= ISOTONIC_FROM else ("temperature", "platt")


def _fit(method: Method, z: Floats, y: Ints, weights: Floats) -> Calibration:
    if method == "isotonic":
        return _fit_isotonic(z[:, 0], y, weights)
    if method == "temperature":
        return _fit_temperature(z, y, weights)
    return _fit_platt(z[:, 0], y, weights) if method == "platt" else Calibration()


def _targets(y: Ints, classes: int) -> Floats:
    """Platt's targets (N, C): a class of n films gets (n + 1) / (n + C) of its own films."""
    own = (np.bincount(y, minlength=classes) + 1) / (np.bincount(y, minlength=classes) + classes)
    targets = np.repeat(((1 - own) / (classes - 1))[y][:, None], classes, axis=1)
    targets[np.arange(len(y)), y] = own[y]
    return targets


def _loss(log_shares: Floats, targets: Floats, weights: Floats) -> float:
    return float(-(weights[:, None] * targets * log_shares).sum() / weights.sum())


def _fit_temperature(z: Floats, y: Ints, weights: Floats) -> Calibration:
    from scipy.optimize import minimize_scalar

    targets = _targets(y, max(2, z.shape[1]))

    def loss(log_slope: float) -> float:
        return _loss(calibrate(z, Calibration("temperature", float(np.exp(log_slope)))), targets, weights)

    best = minimize_scalar(loss, bounds=(-7, 7), method="bounded", options={"xatol": 1e-7})
    return Calibration("temperature", float(np.exp(best.x)))


def _fit_platt(z: Floats, y: Ints, weights: Floats) -> Calibration:
    from scipy.optimize import minimize
    from scipy.special import expit

    target, centre = _targets(y, 2)[:, 1], float(np.average(z, weights=weights))
    spread = float(np.sqrt(np.average((z - centre) ** 2, weights=weights))) or 1.0
    x = (z - centre) / spread

    def loss(parameters: Floats) -> tuple[float, Floats]:
        t = parameters[0] * x + parameters[1]
        gap = weights * (expit(t) - target) / weights.sum()
        value = (weights * (np.logaddexp(0, t) - target * t)).sum() / weights.sum()
        return float(value), np.array([(gap * x).sum(), gap.sum()])

    slope, intercept = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS", options={"gtol": 1e-9}).x
    if slope <= 0:  # a network worse than chance: turning it round would hide that
        return replace(_fit_temperature(z[:, None], y, weights), method="platt")
    return Calibration("platt", float(slope / spread), float(intercept - slope * centre / spread))


def _fit_isotonic(z: Floats, y: Ints, weights: Floats) -> Calibration:
    from sklearn.isotonic import IsotonicRegression

    targets = _targets(y, 2)[:, 1]
    fitted = IsotonicRegression(out_of_bounds="clip").fit(z, targets, sample_weight=weights)
    knots = zip(fitted.X_thresholds_.tolist(), np.clip(fitted.y_thresholds_, 0, 1).tolist(), strict=True)
    return Calibration("isotonic", knots=tuple(knots))


def _cross_fit(method: Method, z: Floats, y: Ints, weights: Floats, clusters: Ints, seed: int) -> Floats:
    """Each film's log shares by a fit on the films of other patients; by the fit on all where that can't be had."""
    folds = np.random.default_rng(seed).permutation(int(clusters.max()) + 1)[clusters] % FOLDS
    log_shares = calibrate(z, _fit(method, z, y, weights))
    classes = len(np.unique(y))
    for fold in range(FOLDS):
        rest, held = folds != fold, folds == fold
        if held.any() and len(np.unique(y[rest])) == classes:
            log_shares[held] = calibrate(z[held], _fit(method, z[rest], y[rest], weights[rest]))
    return log_shares
