"""Is this like anything seen in training? A distance from the training images' features, and its limit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import ModelError

Floats = NDArray[np.float64]

COMPONENTS = 384  # of 1,280 features, half a megabyte a 200 of them; more change no distance that matters
_TINY = 1e-30  # stands for a variance or a limit of nothing, so that whatever departs from it is far


@dataclass(frozen=True, eq=False)
class OODDetector:
    """A Mahalanobis distance: principal directions with their variances, one variance for all other directions.

    Attributes:
        mean: float32 (D,).
        directions: float64 (K, D), orthonormal rows, rounded to half precision, in which they are stored.
        variances: float32 (K,), along them.
        rest: variance along every other direction.
    """

    mean: NDArray[np.float32]
    directions: Floats
    variances: NDArray[np.float32]
    rest: float

    def distance(self, features: NDArray[np.floating[Any]]) -> Floats:
        """How far features (N, D) are from those it was fitted on: (N,), about 1 for such images, whatever D is."""
        centred = np.asarray(features, np.float64) - self.mean
        along = centred @ self.directions.T
        across = np.maximum((centred**2).sum(1) - (along**2).sum(1), 0)
        squares = (along**2 / self.variances.astype(np.float64)).sum(1) + across / self.rest
        distances: Floats = np.sqrt(squares / len(self.mean))
        return distances

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What it consists of, for a file."""
        return {
            "mean": self.mean,
            "directions": self.directions.astype(np.float16),
            "variances": self.variances,
            "rest": np.array([self.rest]),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Make it again from what `arrays` gave.

        Raises:
            ModelError: an array is missing, of another shape, or holds what no detector can hold.
        """
        try:
            mean, directions, variances, rest = (arrays[n] for n in ("mean", "directions", "variances", "rest"))
        except KeyError as problem:
            raise ModelError(f"The OOD detector has no {problem}. Copy the model again from its source.") from None
        shapes = mean.shape, directions.shape, variances.shape, rest.shape
        positive = all(np.isfinite(a).all() for a in (mean, directions)) and all(
            (np.isfinite(a) & (a > 0)).all() for a in (variances, rest)
        )
        if shapes != (mean.shape[:1], (len(variances), mean.size), (len(variances),), (1,)) or not positive:
            raise ModelError(
                f"The OOD detector's arrays do not fit each other: {shapes}. Copy the model again from its source."
            )
        return cls(mean.astype(np.float32), directions.astype(np.float64), variances.astype(np.float32), float(rest[0]))


def fit_detector(features: NDArray[np.floating[Any]], components: int = COMPONENTS) -> OODDetector:
    """Fit a Gaussian with a shrunk covariance (Ledoit & Wolf 2004; Lee et al. 2018, section 2.1, for features).

    Args:
        features: (N, D) of the training images, N at least 1.
        components: how many principal directions are kept at most.
    """
    x = np.asarray(features, np.float64)
    mean = x.mean(0)
    centred = x - mean
    width = centred.shape[1]
    values, directions = _principal(centred)
    level = values.sum() / width
    shrinkage = _shrinkage(centred, values, level)
    keep = min(components, len(directions))
    kept = np.maximum((1 - shrinkage) * values[:keep] + shrinkage * level, _TINY)
    others = (1 - shrinkage) * values[keep:].sum() / max(1, width - keep) + shrinkage * level
    half = directions[:keep].astype(np.float16).astype(np.float64)
    return OODDetector(mean.astype(np.float32), half, kept.astype(np.float32), max(others, _TINY))


def choose_limit(distances: NDArray[np.floating[Any]], rate: float, labels: NDArray[Any] | None = None) -> float:
    """Distance beyond which an image is ood: images like these exceed it with a probability of at most `rate`.

    The conformal quantile, the ceil((M + 1)(1 - rate))-th smallest (Laxhammar & Falkman 2010; Vovk et al. 2005). With
    fewer than 1 / rate - 1 images there is none: the largest distance is taken, and the promise is 1 / (M + 1). With
    labels it is the largest of the classes' limits, so that the promise holds for each class whatever its share.

    Args:
        distances: (M,) of images that the detector was not fitted on, M at least 1.
        rate: of false alarms, in (0, 1).
        labels: (M,) the images' classes.
    """
    if labels is not None:
        return max(choose_limit(distances[labels == label], rate) for label in np.unique(labels))
    rank = math.ceil((len(distances) + 1) * (1 - rate) - 1e-9)
    return max(float(np.sort(distances)[min(rank, len(distances)) - 1]), _TINY)


def _principal(centred: Floats) -> tuple[Floats, Floats]:
    """Eigenvalues of the covariance, largest first, and those directions (K, D) that have any variance."""
    n, width = centred.shape
    values, vectors = np.linalg.eigh((centred @ centred.T if n < width else centred.T @ centred) / n)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    some = values > 1e-10 * values[0]
    if n >= width:
        return values, vectors.T[some]
    return values, vectors.T[some] @ centred / np.sqrt(n * values[some])[:, None]


def _shrinkage(centred: Floats, values: Floats, level: float) -> float:
    """Ledoit & Wolf's (2004, section 3) share of the identity, 0 to 1, from centred data and its eigenvalues."""
    n, width = centred.shape
    spread = (values**2).sum() / width - level**2  # squared distance of the covariance from a multiple of the identity
    if spread <= 0:
        return 1.0
    noise = (((centred**2).sum(1) ** 2).mean() - (values**2).sum()) / (n * width)
    return float(np.clip(noise / spread, 0, 1))
