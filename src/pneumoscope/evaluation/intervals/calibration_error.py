"""The interval of a binned calibration error, by inverting tests on simulated labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from pneumoscope.evaluation.intervals.many_images import MANY
from pneumoscope.evaluation.intervals.proportions import UNDEFINED, Bools, Bounds, Floats, Ints

FARTHEST = -10.0  # the largest move away from 0; with few images, all frequencies are then 0 or 1
BISECTIONS = 12  # to 1/4096 of the range searched
ROUNDING = 1e-9  # by which equal errors may seem to differ
CELLS = 1 << 24  # simulated labels held at once


Draw: TypeAlias = Callable[[Floats], Floats]  # the images' probabilities (N,) to shares of positives by bin (B, bins)


@dataclass(frozen=True)
class _Simulation:
    """Simulated labels for images that are sorted by bin."""

    stated: Floats  # (N,) probabilities
    bins: Ints  # (N,) their bins, rising
    shares: Floats  # (B, bins) how images spread over the bins in resamples of the patients
    draw: Draw  # labels, always from the same random numbers
    share: Floats  # (bins,) share of the images
    gap: Floats  # (bins,) observed minus stated frequency, times the share
    middle: Floats  # (bins,) mean stated probability, times the share
    unit: Floats  # (bins,) more than any gap

    def run(self, move: float) -> tuple[float, Floats]:
        """The true error, and the observed errors (B,), when the gaps are `move` units nearer to 0."""
        # A gap of 0, as of equal probabilities, may be one by chance: a true one is then as likely on either side, and
        # the side on which it can be larger is taken.
        side = np.where(self.gap == 0, np.where(self.middle <= self.share / 2, 1, -1), np.sign(self.gap))
        gaps = side * np.maximum(np.abs(self.gap) - move * self.unit, 0)
        gaps = np.clip(gaps, -self.middle, self.share - self.middle)  # frequencies are between 0 and 1
        shift = _divide(gaps, self.share)
        labels = self.draw(_move(self.stated, self.bins, gaps, self.share, self.middle))
        observed = shift * (self.shares - self.share) + (labels - self.middle)
        return float(np.abs(gaps).sum()), np.abs(observed).sum(1)


def calibration_error_interval(
    correct: Bools, stated: Floats, bins: Ints, clusters: Ints, shares: Floats, confidence: float, seed: int
) -> Bounds:
    """The interval of a binned calibration error: all true errors that explain the observed one.

    Labels are drawn from the stated probabilities for an error of 0 (consistency resampling, Bröcker & Smith 2007), and
    from shifted ones for others. Each bin's gap is then the observed one, moved towards 0 or away from it by a multiple
    of itself and its standard error; small gaps, mostly noise, vanish first. Labels of one patient's images are
    correlated as the residuals are. No error lies below 0, so near 0 the whole chance of a miss is on the upper side
    (Feldman & Cousins 1998): the lower end is 0 unless a test of that level finds the model miscalibrated.

    Args:
        correct: (N,) whether the stated outcome came true.
        stated: (N,) its probability.
        bins: (N,) the bins of `stated`, from 0.
        clusters: (N,) numbers of the patients, from 0 without a gap.
        shares: (B, bins) how images spread over the bins in B resamples of the patients.
        confidence: in (0, 1).
        seed: fixes the labels drawn.
    """
    n, count = len(stated), shares.shape[1]
    order = np.argsort(bins, kind="stable")
    correct, stated, bins, clusters = correct[order], stated[order], bins[order], clusters[order]

    def mean_by_bin(values: Floats) -> Floats:
        return np.bincount(bins, values, count) / n

    share, gap = mean_by_bin(np.ones(n)), mean_by_bin(correct - stated)
    observed = float(np.abs(gap).sum())
    middle = mean_by_bin(stated)
    fitted = _move(stated, bins, gap, share, middle)
    error = np.sqrt(mean_by_bin(stated * (1 - stated)) / n)
    if not (error.any() or (fitted * (1 - fitted)).any()):
        return UNDEFINED
    residuals, spreads = correct - fitted, np.sqrt(fitted * (1 - fitted))
    if n > MANY:
        draw = _draw_sums(residuals, spreads, clusters, bins, shares.shape, seed)
    else:
        shares = shares[: max(100, CELLS // n)]
        draw = _draw_labels(draw_uniform(residuals, spreads, clusters, len(shares), seed), bins, count)
    return _invert(
        _Simulation(stated, bins, shares, draw, share, gap, middle, error + np.abs(gap)),
        observed,
        1 - confidence,
    )


def _invert(simulation: _Simulation, observed: float, miss: float) -> Bounds:
    """Find the smallest and the largest true error that explains the observed one."""
    calibrated = simulation.run(1.0)[1]

    def upper_miss(true: float) -> float:
        """The share of `miss` for errors that are too large: all of it at 0, half from two standard errors on."""
        return miss * (1 - min(1.0, true / (2 * max(float(calibrated.std()), 1e-12))) / 2)

    def search(inner: float, outer: float, upper: bool) -> float:
        """Find the true error at the border between moves that explain the observed error and moves that do not."""
        for _ in range(BISECTIONS):
            middle = (inner + outer) / 2
            true, errors = simulation.run(middle)
            if upper:
                explained = (errors <= observed + ROUNDING).mean() >= miss - upper_miss(true)
            else:
                explained = (errors >= observed - ROUNDING).mean() >= upper_miss(true)
            inner, outer = (middle, outer) if explained else (inner, middle)
        return simulation.run((inner + outer) / 2)[0]

    low = 0.0 if (calibrated >= observed - ROUNDING).mean() >= miss else search(0.0, 1.0, upper=False)
    high = search(0.0, FARTHEST, upper=True)
    true, errors = simulation.run(FARTHEST)
    # Frequencies of 0 or 1 give the largest error that these images can have. Other images can have a larger one. If
    # even the largest explains the observed error, all simulated errors, which vary as images do, are raised by the
    # same amount, up to the point where they no longer explain it.
    rate = miss - upper_miss(true)
    if (errors <= observed + ROUNDING).mean() >= rate:
        high = true + max(0.0, observed - float(np.quantile(errors, rate)))
    return min(low, observed), min(1.0, max(high, observed))


def draw_uniform(residuals: Floats, spreads: Floats, clusters: Ints, rows: int, seed: int) -> Floats:
    """Draw uniform numbers (rows, N), correlated within patients as the residuals are, by a Gaussian copula."""
    rng = np.random.default_rng([seed, 1])
    n = len(clusters)
    if len(np.unique(clusters)) == n:
        return rng.random((rows, n))
    from scipy.special import ndtr

    correlation = np.sin(np.pi / 2 * _correlate(residuals, spreads, clusters))
    common = rng.standard_normal((rows, int(clusters.max()) + 1))[:, clusters]
    uniform: Floats = ndtr(np.sqrt(correlation) * common + np.sqrt(1 - correlation) * rng.standard_normal((rows, n)))
    return uniform


def _correlate(residuals: Floats, spreads: Floats, clusters: Ints) -> float:
    """The correlation of the residuals of a patient's images, in [0, 1]."""
    pairs = (np.bincount(clusters, part) ** 2 - np.bincount(clusters, part**2) for part in (residuals, spreads))
    products, largest = (float(part.sum()) for part in pairs)
    return float(np.clip(products / largest, 0, 1)) if largest > 0 else 0.0


def _draw_labels(uniform: Floats, bins: Ints, count: int) -> Draw:
    """Draw each image's label by uniform numbers (B, N)."""
    filled, starts = np.unique(bins, return_index=True)

    def draw(probabilities: Floats) -> Floats:
        shares = np.zeros((len(uniform), count))
        labels = uniform < probabilities
        shares[:, filled] = np.add.reduceat(labels, starts, axis=1, dtype=np.int32) / len(bins)
        return shares

    return draw


def _draw_sums(
    residuals: Floats, spreads: Floats, clusters: Ints, bins: Ints, shape: tuple[int, ...], seed: int
) -> Draw:
    """Draw the sums of many labels by bin, which are normally distributed, with the covariance of the labels."""
    count = shape[1]
    correlation = _correlate(residuals, spreads, clusters)
    normal = np.random.default_rng([seed, 1]).standard_normal(shape)
    cells = clusters * count + bins

    def draw(probabilities: Floats) -> Floats:
        variances = np.bincount(bins, probabilities * (1 - probabilities), count)
        covariance = np.diag(variances + 1e-9)
        if correlation > 0:
            spread = np.sqrt(probabilities * (1 - probabilities))
            by_patient = np.bincount(cells, spread, (int(clusters.max()) + 1) * count).reshape(-1, count)
            covariance += correlation * (by_patient.T @ by_patient - np.diag(variances))
        means = np.bincount(bins, probabilities, count)
        return np.asarray((means + normal @ np.linalg.cholesky(covariance).T) / len(bins))

    return draw


def _move(stated: Floats, bins: Ints, gaps: Floats, share: Floats, middle: Floats) -> Floats:
    """Move probabilities (N,) so that their mean in each bin changes by the gap, and none leaves [0, 1].

    They shrink towards 0 or 1 in proportion. Adding the gap and clipping would leave the mean too high, or too low.
    """
    down, up = _divide(middle + gaps, middle), _divide(share - middle - gaps, share - middle)
    moved: Floats = np.where(gaps[bins] < 0, stated * down[bins], 1 - (1 - stated) * up[bins])
    return np.clip(moved, 0, 1)


def _divide(gaps: Floats, share: Floats) -> Floats:
    """Divide by the share of the images; 0 in an empty bin."""
    shift: Floats = np.divide(gaps, share, out=np.zeros(len(share)), where=share > 0)
    return shift
