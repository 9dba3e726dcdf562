"""Chooses how much of a model to change for the images of another source, by cross-validation on these images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pneumoscope.decisions.calibration import normalise
from pneumoscope.evaluation.before_after import Candidate

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Step: TypeAlias = Literal["unchanged", "intercept", "scaling", "head", "finetune"]

SLOPE_PRIOR = 0.25  # standard deviation of the slope around 1
MIN_SLOPE = 0.05  # the order of images stays as it is
NEWTON_STEPS = 50
INTERCEPT_PRIOR = 0.5  # of an intercept around 0; wider ones gain more where much differs, and lose more elsewhere
FOLDS, REPEATS = 5, 4
DIRECTIONS = 64  # principal directions of the features along which a head may change
HEAD_PRIOR = 1.0  # of how far another head moves the log odds of an average image
WIDTHS = (1.0, 4.0)  # multiples of these standard deviations; the wide ones matter where a source is very different
WEAK = 2.0  # standard errors by which wide ones, another head, and a fine-tuned network must be better
WEAK_FROM = 40  # patients; with fewer, cross-validation too often finds them better by chance
HEAD_WIDTHS = (1.0, 3.0, 10.0)  # the same for another head


@dataclass(frozen=True, eq=False)
class Images:
    """What a model computes for N images of C classes, and their labels."""

    labels: Ints  # (N,) class indices
    log_probabilities: Floats  # (N, C), by the model as it is
    features: Floats  # (N, D), that its head takes, or their coordinates along some directions
    weights: Floats  # (N,), how much each image counts
    clusters: Ints  # (N,), images that belong together, such as a patient's

    def take(self, chosen: NDArray[np.bool_] | Ints) -> Images:
        """Return some of the images."""
        return Images(
            self.labels[chosen],
            self.log_probabilities[chosen],
            self.features[chosen],
            self.weights[chosen],
            self.clusters[chosen],
        )


@dataclass(frozen=True, eq=False)
class Change:
    """A change of log probabilities L (N, C): slope * (L - centre) + centre + intercepts, then normalised.

    A changed head adds features @ direction to the last class.
    """

    slope: float
    centre: Floats  # (C,)
    intercepts: Floats  # (C,), 0 for the first class
    direction: Floats | None = None  # (D,)
    origin: float = 0.0  # subtracted from features @ direction

    def apply(self, log_probabilities: Floats, features: Floats) -> Floats:
        """Log probabilities (N, C) after the change."""
        scores = self.slope * (log_probabilities - self.centre) + self.centre + self.intercepts
        if self.direction is not None:
            scores[:, -1] += features @ self.direction - self.origin
        return normalise(scores)


@dataclass(frozen=True, eq=False)
class Choice:
    """What was chosen, and why."""

    candidates: tuple[Candidate, ...]  # the simplest first
    place: int  # of the one chosen
    change: Change | None  # fitted on all images; None for `unchanged`
    held_out: Floats  # (N, C), log probabilities of each image by fits on other patients

    @property
    def chosen(self) -> Candidate:
        """The candidate that was chosen."""
        return self.candidates[self.place]


def choose(
    images: Images, *, head: bool = False, tuned: Floats | None = None, folds: Ints | None = None, seed: int = 0
) -> Choice:
    """Choose how to adapt by cross-validation, in doubt the simpler way, and fit it.

    The candidates, the simplest first: nothing; an intercept for each class (a prior shift); a slope, too (Platt
    scaling for two classes, bias-corrected temperature scaling for more); with `head` also another direction in feature
    space. All are penalised towards no change: intercept and slope first strongly, then, with 40 patients or more,
    weakly, and only then is another head tried. With `tuned`, log probabilities (N, C) by fine-tuned networks that did
    not learn from the image's patient, these with a slope and intercepts are the last candidate; images of the same of
    `folds` (N,) have the same network, and are calibrated by those of the others, as the network that learns from all
    images will be. One after the other replaces the one taken before it if its log loss is lower by more than a
    standard error of this difference (after Breiman et al. 1984), with weak priors, another head or a fine-tuned
    network by more than two. The standard error is by cluster; for fine-tuned networks it is by fold if that is larger,
    since the images of a fold share what chance made of their network.
    """
    basis = _find_basis(images.features) if head else np.zeros((images.features.shape[1], 0))
    mean = images.features.mean(0)
    # Directions need no labels, so all folds share them.
    images = replace(images, features=(images.features - mean) @ basis)
    rows = np.arange(len(images.labels))

    fine = images if tuned is None else replace(images, log_probabilities=tuned)
    divisions = _draw_divisions(images.clusters, seed)
    own = divisions if folds is None else [folds]

    def validate(step: Step, width: float) -> tuple[Step, float, Floats, Floats]:
        if step == "finetune":
            found = _cross_validate(fine, step, width, own)
        else:
            found = _cross_validate(images, step, width, divisions)
        return step, width, found, -found[rows, images.labels] * images.weights

    tried = [validate("unchanged", 1.0)]
    many = len(np.unique(images.clusters)) >= WEAK_FROM
    tried += [validate(step, width) for width in WIDTHS[: 1 + many] for step in ("intercept", "scaling")]
    if head and many:  # of heads, that with the best width alone is a candidate
        tried.append(min((validate("head", width) for width in HEAD_WIDTHS), key=lambda each: float(each[3].sum())))
    if tuned is not None and many:
        tried.append(min((validate("finetune", width) for width in WIDTHS), key=lambda each: float(each[3].sum())))
    total, candidates, place = images.weights.sum(), [], 0
    for i, (step, width, _, losses) in enumerate(tried):
        gains = tried[place][3] - losses
        gain, error = _compare(gains, images.weights, images.clusters)
        if step == "finetune" and folds is not None:
            error = max(error, _compare(gains, images.weights, folds)[1])
        candidates.append(Candidate(step, width, float(losses.sum() / total), gain, error))
        if gain > error * (WEAK if step in ("head", "finetune") or width > 1 else 1):
            place = i
    chosen, width, held_out, _ = tried[place]
    change = None if chosen == "unchanged" else fit(fine if chosen == "finetune" else images, chosen, width)
    if change is not None and change.direction is not None:
        direction = basis @ change.direction
        change = replace(change, direction=direction, origin=change.origin + float(mean @ direction))
    return Choice(tuple(candidates), place, change, held_out)


def fit(images: Images, step: Step, width: float = 1.0) -> Change:
    """Fit a change to images by penalised maximum likelihood; `width` multiplies the priors' standard deviations.

    A head may change along all features.
    """
    base, classes = images.log_probabilities, images.log_probabilities.shape[1]
    weights = images.weights * len(base) / images.weights.sum()
    centre = np.average(base, axis=0, weights=weights)
    mean = images.features.mean(0)
    moved = images.features - mean if step == "head" else np.zeros((len(base), 0))
    columns = [np.tile(each, (len(base), 1)) for each in np.eye(classes)[1:]]
    widths = [INTERCEPT_PRIOR] * (classes - 1)
    if step != "intercept":
        columns, widths = [*columns, base - centre], [*widths, SLOPE_PRIOR]
    columns += [np.outer(each, np.eye(classes)[-1]) for each in moved.T]
    widths += [HEAD_PRIOR] * moved.shape[1]
    found = _maximise(base, np.stack(columns, axis=2), images.labels, weights, width * np.array(widths))
    intercepts = np.concatenate([[0.0], found[: classes - 1]])
    slope = 1.0 if step == "intercept" else max(MIN_SLOPE, 1 + float(found[classes - 1]))
    if step != "head":
        return Change(slope, centre, intercepts)
    return Change(slope, centre, intercepts, found[classes:], float(mean @ found[classes:]))


def _maximise(base: Floats, design: Floats, labels: Ints, weights: Floats, widths: Floats) -> Floats:
    """Coefficients (K,) of a logistic regression with offsets: scores (N, C) are base + design (N, C, K) @ them.

    Each has a normal prior around 0 with its width for a standard deviation. Newton's method; the function is concave.
    """
    truth = np.eye(base.shape[1])[labels]
    found = np.zeros(len(widths))

    def measure(coefficients: Floats) -> tuple[float, Floats]:
        log_probabilities = normalise(base + design @ coefficients)
        value = (weights * log_probabilities[np.arange(len(labels)), labels]).sum()
        return float(value - ((coefficients / widths) ** 2).sum() / 2), np.exp(log_probabilities)

    value, p = measure(found)
    for _ in range(NEWTON_STEPS):
        gradient = np.einsum("nck,nc->k", design, weights[:, None] * (truth - p)) - found / widths**2
        mean = np.einsum("nck,nc->nk", design, p)
        centred = (design - mean[:, None]) * np.sqrt(weights[:, None] * p)[:, :, None]
        flat = centred.reshape(-1, len(widths))
        step = np.linalg.solve(flat.T @ flat + np.diag(widths**-2.0), gradient)
        length = 1.0
        while (tried := measure(found + length * step))[0] < value and length > 1e-6:
            length /= 2
        found, gain, (value, p) = found + length * step, tried[0] - value, tried
        if gain < 1e-9:
            break
    return found


def _find_basis(features: Floats) -> Floats:
    """Principal directions (D, K), scaled so that the coordinates of an average image have a length of 1."""
    centred = features - features.mean(0)
    values, vectors = np.linalg.eigh(centred @ centred.T)
    keep = np.argsort(-values)[: min(DIRECTIONS, len(features) - 1)]
    keep = keep[values[keep] > 1e-9 * values.max()]
    spread = np.sqrt(values[values > 0].sum() / len(features))
    basis: Floats = centred.T @ vectors[:, keep] / np.sqrt(values[keep]) / spread
    return basis


def _draw_divisions(clusters: Ints, seed: int) -> list[Ints]:
    """The fold of each image (N,), for several divisions of the clusters into folds."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(int(clusters.max()) + 1)[clusters] % FOLDS for _ in range(REPEATS)]


def _cross_validate(images: Images, step: Step, width: float, divisions: Sequence[Ints]) -> Floats:
    """Log probabilities (N, C) of each image by fits on other folds, averaged over several divisions into folds."""
    if step == "unchanged":
        return images.log_probabilities
    total = np.zeros_like(images.log_probabilities)
    for folds in divisions:
        for fold in np.unique(folds):
            held_out = folds == fold
            if held_out.all():
                total[held_out] += images.log_probabilities[held_out]
                continue
            change = fit(images.take(~held_out), step, width)
            total[held_out] += change.apply(images.log_probabilities[held_out], images.features[held_out])
    return normalise(total / len(divisions))


def _compare(differences: Floats, weights: Floats, clusters: Ints) -> tuple[float, float]:
    """Weighted mean of differences that are weighted already, and its standard error by cluster."""
    mean = differences.sum() / weights.sum()
    residuals = np.bincount(clusters, differences - mean * weights)
    count = len(np.unique(clusters))
    factor = count / max(1, count - 1)
    return float(mean), float(np.sqrt((residuals**2).sum() * factor) / weights.sum())
