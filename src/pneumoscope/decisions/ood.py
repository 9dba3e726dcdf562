"""Detects images unlike those seen in training: a distance in feature space, and the limit that it may not exceed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Protocol, Self, TypeAlias

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from pneumoscope.config import Rate
from pneumoscope.errors import ModelError

Floats: TypeAlias = NDArray[np.float64]
Method: TypeAlias = Literal["mahalanobis"]

PREFIX = "ood."  # of the detector's arrays among a model's weights
COMPONENTS = 384  # of 1,280 features, half a megabyte for 200 of them; more change no distance that matters
_TINY = 1e-30  # stands for a variance or a limit of zero, so that any departure from it is far


@dataclass(frozen=True)
class OOD:
    """When an image counts as out of distribution; the detector's arrays are stored with the weights."""

    method: Method  # how distances are measured
    false_alarms: Rate  # the fraction of ordinary images of each class that may be flagged
    distances: dict[str, tuple[Annotated[float, Ge(0)], ...]]  # of each class's validation images, rising

    def at(self, false_alarms: float | None) -> OOD:
        """Return the same at another rate of false alarms."""
        return self if false_alarms is None else replace(self, false_alarms=false_alarms)

    def rank(self, label: str) -> int:
        """How many of the class's validation images reach the limit, at least 1: floor(false_alarms * (n + 1))."""
        return max(1, math.floor(self.false_alarms * (len(self.distances.get(label, ())) + 1) + 1e-9))

    @property
    def promised_false_alarms(self) -> float:
        """The rate that the number of validation images allows to promise for each class."""
        fewest = min(len(each) for each in self.distances.values() if each)
        return max(self.false_alarms, 1 / (fewest + 1))

    @property
    def limit(self) -> float:
        """Distance beyond which an image is out of distribution.

        For each class it is the conformal quantile, the ceil((n + 1)(1 - rate))-th smallest distance (Laxhammar &
        Falkman 2010; Vovk et al. 2005), so that an ordinary image exceeds it with a probability of at most the rate.
        With fewer than 1 / rate - 1 images there is none; then the largest distance is taken, and the promise is
        1 / (n + 1). The largest of the classes' limits is used, so the promise holds for each class.
        """
        return max(
            max(distances[min(math.ceil((n + 1) * (1 - self.false_alarms) - 1e-9), n) - 1], _TINY)
            for distances in self.distances.values()
            if (n := len(distances))
        )


class Detector(Protocol):
    """Measures how far images are from the training images.

    Another method is a class like `Mahalanobis`, a function that fits it, and a line in `_METHODS`.
    """

    def measure(self, features: NDArray[np.floating[Any]]) -> Floats:
        """Distances (N,) of intermediate features (N, D)."""

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Its arrays by the names that they have among a model's weights, which begin with `PREFIX`."""


@dataclass(frozen=True, eq=False)
class Mahalanobis:
    """A Mahalanobis distance: principal directions with their variances, one variance for all other directions."""

    mean: NDArray[np.float32]  # float32 (D,)
    directions: Floats  # float64 (K, D), orthonormal rows, rounded to half precision, in which they are stored
    variances: NDArray[np.float32]  # float32 (K,), along them
    rest: float  # variance along every other direction

    def measure(self, features: NDArray[np.floating[Any]]) -> Floats:
        """Distances (N,) of features (N, D) from those it was fitted on: about 1 for such images, for any D.

        Raises:
            ModelError: another D.
        """
        if features.shape[1:] != self.mean.shape:
            raise ModelError(
                f"The OOD detector takes {self.mean.size} intermediate features, but the network gives "
                f"{features.shape[1]}. Copy the model again from its source."
            )
        centred = np.asarray(features, np.float64) - self.mean
        along = centred @ self.directions.T
        across = np.maximum((centred**2).sum(1) - (along**2).sum(1), 0)
        squares = (along**2 / self.variances.astype(np.float64)).sum(1) + across / self.rest
        distances: Floats = np.sqrt(squares / len(self.mean))
        return distances

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return its arrays by their names among a model's weights."""
        return {
            f"{PREFIX}mean": self.mean,
            f"{PREFIX}directions": self.directions.astype(np.float16),
            f"{PREFIX}variances": self.variances,
            f"{PREFIX}rest": np.array([self.rest]),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Restore it from what `to_arrays` gave.

        Raises:
            ModelError: an array is missing, has another shape, or holds invalid values.
        """
        try:
            mean, directions, variances, rest = (
                arrays[PREFIX + name] for name in ("mean", "directions", "variances", "rest")
            )
        except KeyError as problem:
            raise ModelError(f"The OOD detector has no {problem}. Copy the model again from its source.") from None
        shapes = mean.shape, directions.shape, variances.shape, rest.shape
        valid = all(np.isfinite(array).all() for array in (mean, directions)) and all(
            (np.isfinite(array) & (array > _TINY / 2)).all() for array in (variances, rest)
        )
        if shapes != (mean.shape[:1], (len(variances), mean.size), (len(variances),), (1,)) or not valid:
            raise ModelError(
                f"The OOD detector's arrays do not fit each other: {shapes}. Copy the model again from its source."
            )
        return cls(mean.astype(np.float32), directions.astype(np.float64), variances.astype(np.float32), float(rest[0]))


def fit(
    train: NDArray[np.floating[Any]],
    val: NDArray[np.floating[Any]],
    val_labels: NDArray[np.integer[Any]],
    classes: Sequence[str],
    false_alarms: float,
    method: Method = "mahalanobis",
) -> tuple[OOD, Detector]:
    """Fit the distance on training images, and keep the distances of validation images.

    Args:
        train: (N, D) intermediate features of training images.
        val: (M, D) of validation images, or (M, K, D) of K copies of each.
        val_labels: (M,) class indices.
        classes: their names.
        false_alarms: the fraction of ordinary images that may be flagged, in (0, 1).
        method: how distances are measured.
    """
    detector = _METHODS[method][0](train)
    distances = measure_copies(detector, val.reshape(len(val), -1, val.shape[-1]))
    by_class = {name: pool_copies(distances[val_labels == i]) for i, name in enumerate(classes)}
    return OOD(method, false_alarms, by_class), detector


def measure_copies(detector: Detector, features: NDArray[np.floating[Any]]) -> Floats:
    """Distances (M, K) of the features (M, K, D) of K copies of each image."""
    return detector.measure(features.reshape(-1, features.shape[-1])).reshape(features.shape[:2])


def pool_copies(distances: Floats) -> tuple[float, ...]:
    """M rising distances for M images with K copies each, (M, K), or (M,): every K-th of all, from the K // 2-th on.

    An image counts once, however many copies it has, and the limit does not depend on which copy is drawn. Pooled
    copies give about the promise of one copy each (Dunn et al. 2023, doi:10.1080/01621459.2022.2060112).
    """
    copies = distances.size // max(len(distances), 1) or 1
    return tuple(np.sort(distances, axis=None)[copies // 2 :: copies].tolist())


def restore(state: OOD, arrays: Mapping[str, NDArray[Any]]) -> Detector:
    """Restore a detector from a model's arrays.

    Raises:
        ModelError: an array is missing, has another shape, or holds invalid values.
    """
    return _METHODS[state.method][1](arrays)


def apply(features: NDArray[np.floating[Any]], detector: Detector, limit: float) -> Floats:
    """OOD scores (N,) of intermediate features (N, D): above 1 is out of distribution."""
    return detector.measure(features) / limit


def fit_mahalanobis(features: NDArray[np.floating[Any]], components: int = COMPONENTS) -> Mahalanobis:
    """Fit a Gaussian with a shrunk covariance (Ledoit & Wolf 2004; Lee et al. 2018, section 2.1, for features).

    Features are (N, D), N at least 1; at most `components` principal directions are kept.
    """
    x = np.asarray(features, np.float64)
    mean = x.mean(0)
    centred = x - mean
    width = centred.shape[1]
    values, directions = _find_principal_directions(centred)
    average = values.sum() / width
    shrinkage = _find_shrinkage(centred, values)
    keep = min(components, len(directions))
    kept = np.maximum((1 - shrinkage) * values[:keep] + shrinkage * average, _TINY)
    others = (1 - shrinkage) * values[keep:].sum() / max(1, width - keep) + shrinkage * average
    rounded = directions[:keep].astype(np.float16).astype(np.float64)
    return Mahalanobis(mean.astype(np.float32), rounded, kept.astype(np.float32), max(others, _TINY))


def _find_shrinkage(centred: Floats, values: Floats) -> float:
    """The weight of the identity in the covariance (Ledoit & Wolf 2004, section 3.3), 0 to 1.

    Scikit-learn computes the same from the whole covariance; the eigenvalues tell its norm, without seconds of imports.
    """
    n, width = centred.shape
    squares = (values**2).sum()
    distance = squares - values.sum() ** 2 / width  # of the covariance from the nearest multiple of the identity
    error = (((centred**2).sum(1) ** 2).sum() / n - squares) / n
    return float(np.clip(error / distance, 0, 1)) if distance > _TINY * squares else 1.0


def _find_principal_directions(centred: Floats) -> tuple[Floats, Floats]:
    """Eigenvalues of the covariance, largest first, and the directions (K, D) that have any variance."""
    n, width = centred.shape
    values, vectors = np.linalg.eigh((centred @ centred.T if n < width else centred.T @ centred) / n)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    nonzero = values > 1e-10 * values[0]
    if n >= width:
        return values, vectors.T[nonzero]
    return values, vectors.T[nonzero] @ centred / np.sqrt(n * values[nonzero])[:, None]


_METHODS: dict[Method, tuple[Callable[..., Detector], Callable[..., Detector]]] = {  # fit, and restore from arrays
    "mahalanobis": (fit_mahalanobis, Mahalanobis.from_arrays),
}
