"""Prior shift: probabilities for another fraction of the positive class than in training.

The adjustment is correct if images of a class look the same wherever they come from and only their shares differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.decisions.calibration import normalise
from pneumoscope.decisions.threshold import Threshold
from pneumoscope.errors import UsageError

Floats = NDArray[np.float64]


def check_prevalence(prevalence: float | None, labels: Sequence[str]) -> None:
    """Refuse a prevalence that is not valid for these classes.

    Raises:
        UsageError: not between 0 and 1, or more than two classes.
    """
    if prevalence is None:
        return
    if not 0 < prevalence < 1:
        raise UsageError(f"{prevalence} is not between 0 and 1.", "prevalence")
    if len(labels) > 2:
        raise UsageError(f"There are {len(labels)} classes; a prevalence can be set only for two.", "prevalence")


def _check_fractions(fractions: Sequence[float]) -> None:
    if not all(0 < each <= 1 for each in fractions):
        found = ", ".join(f"{each:g}" for each in fractions)
        raise UsageError(f"Fractions of classes must be above 0 and at most 1; found {found}.")


def apply(log_probabilities: Floats, fractions: Sequence[float], wanted: Sequence[float]) -> Floats:
    """Adjust log probabilities (N, C) to other fractions (Elkan 2001, theorem 2; Saerens et al. 2002, eq. 2.4).

    Raises:
        UsageError: a fraction of 0, for which no probability can be adjusted.
    """
    _check_fractions(fractions)
    _check_fractions(wanted)
    with np.errstate(divide="ignore"):
        return normalise(log_probabilities + np.log(wanted) - np.log(fractions))


def adjust_threshold(threshold: Threshold, fractions: Sequence[float], prevalence: float) -> Threshold:
    """Return the threshold for probabilities adjusted to a prevalence; `fractions` are those that it was chosen for.

    An operating point (`youden`, `sensitivity>=0.95` and so on) moves along, so that predicted labels stay the same.

    Raises:
        UsageError: a fraction of 0, or a prevalence that is not between 0 and 1.
    """
    _check_fractions((*fractions, prevalence, 1 - prevalence))
    if not threshold.follows_prevalence:
        return threshold
    negative, positive = fractions
    hit = threshold.value * prevalence / positive
    miss = (1 - threshold.value) * (1 - prevalence) / negative
    return Threshold(hit / (hit + miss), threshold.rule)


def fit(
    log_probabilities: ArrayLike, fractions: Sequence[float], weights: ArrayLike | None = None, steps: int = 1000
) -> Floats:
    """Estimate the class fractions among images without labels, by expectation and maximisation.

    Saerens, Latinne & Decaestecker, Neural Computation 14 (2002), eq. 2.9. The estimate relies on calibrated
    probabilities, and on images of a class looking the same as those that calibrated the model.

    Args:
        log_probabilities: (N, C), which hold for `fractions`.
        fractions: (C,).
        weights: (N,) or (B, N), how often each image counts.
        steps: at most.

    Returns:
        (C,), or (B, C) with B rows of weights.

    Raises:
        UsageError: a fraction of 0.
    """
    _check_fractions(fractions)
    base, start = np.asarray(log_probabilities, np.float64), np.asarray(fractions, np.float64)
    rows = np.ones((1, len(base))) if weights is None else np.atleast_2d(np.asarray(weights, np.float64))
    rows = rows / rows.sum(1, keepdims=True)
    ratio = np.exp(base - base.max(1, keepdims=True)) / start  # likelihoods, up to a factor for each image
    estimates = np.tile(start, (len(rows), 1))
    for _ in range(steps):
        posterior = ratio[None] * estimates[:, None]
        posterior /= posterior.sum(2, keepdims=True)
        update = np.einsum("bn,bnc->bc", rows, posterior)
        converged = np.abs(update - estimates).max() < 1e-9
        estimates = update
        if converged:
            break
    return estimates if weights is not None and np.ndim(weights) == 2 else estimates[0]
