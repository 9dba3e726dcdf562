"""Prediction sets: the classes that cannot be ruled out, with a promise of how often the truth is among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.config import Fraction, Rate


@dataclass(frozen=True)
class PredictionSets:
    """Split-conformal prediction sets by class (Vovk 2012, "label-conditional").

    The promise then holds for each class, however many images it has, and at any prevalence.
    """

    alpha: Rate  # how often, in each class, the set may miss the truth
    # for each class the probabilities that its validation images got for it, rising
    scores: dict[str, tuple[Fraction, ...]]

    def at(self, alpha: float | None) -> PredictionSets:
        """Return the same at another alpha."""
        return self if alpha is None else replace(self, alpha=alpha)

    def rank(self, label: str) -> int:
        """Which of the class's validation images sets its cutoff: floor(alpha * (n + 1)); 0 where there are too few."""
        return math.floor(self.alpha * (len(self.scores.get(label, ())) + 1) + 1e-9)


def fit(labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str], alpha: float) -> PredictionSets:
    """Keep the probability that each validation image got for its own class: labels (N,), probabilities (N, C)."""
    y, p = np.asarray(labels), np.asarray(probabilities, np.float64)
    return PredictionSets(alpha, {name: tuple(np.sort(p[y == i, i]).tolist()) for i, name in enumerate(classes)})


def find_cutoffs(state: PredictionSets, classes: Sequence[str]) -> NDArray[np.float64]:
    """For each class the probability that it needs to be in a set, (C,).

    It is the score of rank `PredictionSets.rank`. Where there are too few images for that alpha, the class is always in
    the set. An image drawn like the validation images then has its class missed with a probability of at most alpha,
    whatever the model (Vovk 2012).
    """
    ranks = [state.rank(name) for name in classes]
    return np.array([state.scores[name][rank - 1] if rank else 0.0 for name, rank in zip(classes, ranks, strict=True)])


def apply(probabilities: ArrayLike, state: PredictionSets, classes: Sequence[str]) -> NDArray[np.bool_]:
    """Which classes are in each image's set, (N, C), by probabilities (N, C) that are not adjusted for a prevalence."""
    return np.asarray(probabilities, np.float64) >= find_cutoffs(state, classes)
