"""Turns logits into calibrated probabilities; fitted on validation images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, TypeAlias

import numpy as np
from annotated_types import Ge, Interval
from numpy.typing import ArrayLike, NDArray

from pneumoscope.config import Fraction, Rate
from pneumoscope.datasets.samples import cluster_by_patient
from pneumoscope.errors import UsageError

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Method: TypeAlias = Literal["none", "temperature", "platt", "isotonic"]
Bounded: TypeAlias = Annotated[float, Interval(ge=-1e6, le=1e6)]  # far beyond any logit, and no sum of it overflows

NAMES = {"temperature": "Temperature scaling", "platt": "Platt scaling", "isotonic": "Isotonic regression"}
PLATT_FROM = 20  # images of the rarer class: an intercept costs one parameter more
ISOTONIC_FROM = 500  # Niculescu-Mizil & Caruana (2005) find it better than Platt's from about 1,000 images on
NONE_MARGIN = 0.05  # of the log loss, by which `none` has to be better to be chosen
FOLDS = 5
PRIOR = 0.5  # standard deviation of log slope and intercept


@dataclass(frozen=True)
class Calibration:
    """How the head's logits become probabilities.

    Two classes: sigmoid(slope * logit + intercept), or straight lines between `knots`. More: softmax(slope * logits).
    `offset` is then added to the logarithms of the classes' probabilities (`isotonic` needs none).
    """

    # `none`, `temperature` (Guo et al. 2017), `platt` (after Platt 1999) or `isotonic` (Zadrozny & Elkan 2002).
    method: Method = "none"
    slope: Annotated[float, Interval(gt=0, le=1e6)] = 1.0  # multiplies the logits; 1 / temperature
    intercept: Bounded = 0.0  # added, for `platt` alone
    # for each class the logarithm of its fraction in `class_fractions` divided by that which the network was trained
    # for, and with more than two classes what `adapt` added; empty where nothing is to be added
    offset: tuple[Bounded, ...] = ()
    knots: tuple[tuple[Bounded, Fraction], ...] = ()  # rising (logit, probability) pairs of `isotonic`
    # fractions of the classes that the probabilities hold for, in the order of the labels
    class_fractions: tuple[Rate, ...] = ()
    images: Annotated[int, Ge(0)] = 0  # number of images that it was fitted on
    # log loss and Brier score of these images without it
    before: dict[str, float] = dataclasses.field(default_factory=dict)
    after: dict[str, float] = dataclasses.field(default_factory=dict)  # the same with it, cross-validated by patient
    # cross-validated log loss of each method that was tried; empty where one was given
    tried: dict[str, float] = dataclasses.field(default_factory=dict)

    def without_fit(self) -> Calibration:
        """Return a calibration that leaves the network's own probabilities, for the same class fractions."""
        return Calibration(offset=self.offset, class_fractions=self.class_fractions)

    def check(self, classes: int) -> None:
        """Check that it fits a number of classes.

        Raises:
            ValueError: it does not; the message says why.
        """
        if (self.method == "isotonic") != bool(self.knots) or (self.knots and classes > 2):
            raise ValueError("calibration: knots belong to isotonic calibration, which needs them and two classes")
        rising = np.diff(np.asarray(self.knots, np.float64).reshape(-1, 2), axis=0)
        if not (rising[:, 0] > 0).all() or not (rising[:, 1] >= 0).all():
            raise ValueError("calibration: the knots do not rise")
        if self.intercept and (self.method != "platt" or classes > 2):
            raise ValueError("calibration: an intercept belongs to platt, and to two classes")
        if self.slope != 1 and self.method in ("none", "isotonic"):
            raise ValueError(f"calibration: {self.method} has no slope")
        if len(self.offset) not in (0, classes) or len(self.class_fractions) != classes:
            raise ValueError("calibration: offset or class_fractions are for another number of classes")
        if abs(sum(self.class_fractions) - 1) > 1e-6:
            raise ValueError(f"calibration: the class_fractions add up to {sum(self.class_fractions):g}, not 1")


def apply(logits: ArrayLike, calibration: Calibration) -> Floats:
    """Turn logits into log probabilities.

    A probability of nearly 1 can be adjusted for another prevalence only while it has not been rounded to 1, so
    everything downstream works with logarithms.

    Args:
        logits: (N, 1), of the positive class if there are two, or (N, C).
        calibration: `Calibration()` leaves the sigmoid or softmax alone.

    Returns:
        (N, 2) or (N, C), never above 0.
    """
    z = np.asarray(logits, np.float64)
    if calibration.method == "isotonic":
        positive = np.interp(z[:, 0], *np.transpose(calibration.knots))
        with np.errstate(divide="ignore"):
            log_probabilities: Floats = np.log(np.stack([1 - positive, positive], axis=1))
        return log_probabilities
    if z.shape[1] == 1:
        z = np.hstack([np.zeros_like(z), calibration.slope * z + calibration.intercept])
    else:
        z = calibration.slope * z
    return normalise(z + np.array(calibration.offset) if calibration.offset else z)


def follow(calibration: Calibration, slope: float, shifts: ArrayLike) -> Calibration:
    """Return the calibration whose log probabilities are `slope` times those of another plus `shifts`, normalised.

    Of `isotonic` the knots are moved; between them it stays a straight line.

    Args:
        calibration: the one to follow.
        slope: above 0.
        shifts: (C,), one for each class.
    """
    moved = np.asarray(shifts, np.float64)
    added = float(moved[1] - moved[0])
    if calibration.method == "isotonic":
        from scipy.special import expit, logit

        logits, probabilities = np.transpose(calibration.knots)
        rising = expit(slope * logit(probabilities) + added)
        return replace(calibration, knots=tuple(zip(logits.tolist(), rising.tolist(), strict=True)))
    offset = np.asarray(calibration.offset or np.zeros(len(moved)))
    if len(moved) > 2:
        shifted = slope * offset + moved
        method = "temperature" if calibration.method == "none" else calibration.method
        return replace(calibration, method=method, slope=slope * calibration.slope, offset=tuple(shifted.tolist()))
    intercept = slope * (calibration.intercept + float(offset[1] - offset[0])) + added
    return replace(calibration, method="platt", slope=slope * calibration.slope, intercept=intercept, offset=())


def normalise(log_values: Floats) -> Floats:
    """Subtract from each row what makes its exponentials sum to 1."""
    top = log_values.max(axis=1, keepdims=True)
    shifted = log_values - top
    normal: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normal


def fit(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    method: Method | Literal["auto"] = "auto",
    class_fractions: Sequence[float] | None = None,
    trained_for: Sequence[float] | None = None,
    patients: Sequence[str | None] | None = None,
    seed: int = 0,
    intercept_prior: float = PRIOR,
) -> Calibration:
    """Fit the calibration, and measure by cross-validation what it changes.

    `auto` takes the smallest cross-validated log loss of `temperature` and, for two classes, `platt` (from 20 images of
    the rarer class on) and `isotonic` (from 500 on); and `none` where its loss is more than 5% below that: a closer
    choice does worse on other images (docs/log.md). Log slope and intercept have a normal prior around 0 with a
    standard deviation of 0.5. `isotonic` uses Platt's smoothed targets (1999, section 2.2), (n + 1) / (n + 2), not 1.

    Args:
        logits: (N, 1), of the positive class if there are two, or (N, C), of images that were not trained on.
        labels: (N,) class indices.
        method: `none` fits nothing, but is measured too.
        class_fractions: (C,) for which the probabilities are to hold; those of the labels by default.
        trained_for: (C,) class fractions that the network was trained for, `class_fractions` by default; equal ones
            where the loss balanced the classes. The difference between the two is known and need not be fitted.
        patients: (N,), kept together in cross-validation.
        seed: fixes the folds.
        intercept_prior: standard deviation of the intercept of `platt`.

    Raises:
        UsageError: a method that is for two classes only.
    """
    z, y = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    classes = max(2, z.shape[1])
    if classes > 2 and method in ("platt", "isotonic"):
        raise UsageError(f"{method} is for two classes only. Use temperature.", "calibration")
    counts = np.bincount(y, minlength=classes)
    wanted = counts / counts.sum() if class_fractions is None else np.asarray(class_fractions, np.float64)
    weights = (wanted / np.maximum(counts, 1))[y]
    training_weights = (np.asarray(wanted if trained_for is None else trained_for) / np.maximum(counts, 1))[y]
    start = Calibration()
    if trained_for is not None and not np.allclose(wanted, trained_for):
        start = replace(start, offset=tuple((np.log(wanted) - np.log(trained_for)).tolist()))
    candidates: tuple[Method, ...] = _list_candidates(int(counts.min()), classes) if method == "auto" else (method,)
    clusters = cluster_by_patient(patients, len(y))
    folds = np.random.default_rng(seed).permutation(int(clusters.max()) + 1)[clusters] % FOLDS
    own = {name: weights if name == "isotonic" else training_weights for name in candidates}
    fitted = {name: _cross_fit(replace(start, method=name), z, y, own[name], folds, intercept_prior) for name in own}
    scores = {name: score(each, y, weights) for name, each in fitted.items()}
    losses: dict[Method, float] = {name: each["log_loss"] for name, each in scores.items()}
    chosen = _choose(losses)
    return replace(
        _fit(replace(start, method=chosen), z, y, own[chosen], intercept_prior),
        class_fractions=tuple(wanted.tolist()),
        images=len(y),
        before=score(apply(z, start), y, weights),
        after=scores[chosen],
        tried=dict(losses.items()) if method == "auto" else {},
    )


def _choose(losses: Mapping[Method, float]) -> Method:
    """The method with the lowest loss; `none` has to be lower by a margin."""
    scaled = {name: loss / (1 - NONE_MARGIN) if name == "none" else loss for name, loss in losses.items()}
    return min(scaled, key=lambda name: scaled[name])


def describe_fit(fitted: Calibration) -> str:
    """Say which method was used, and how the cross-validated log loss changed."""
    before, after = (each.get("log_loss", math.nan) for each in (fitted.before, fitted.after))
    if fitted.method == "none":
        others = ", ".join(f"{name} {loss:.3f}" for name, loss in fitted.tried.items() if name != "none")
        worse = f"; every method raises it: {others}, cross-validated" if others else ""
        return f"No calibration: log loss {before:.3f}{worse}."
    if after < before:
        change = ""
    elif fitted.tried:
        change = f" No calibration would have to be {NONE_MARGIN:.0%} better to be chosen."
    else:
        change = " That is no improvement; `calibration` can also be `auto` or `none`."
    return f"{NAMES[fitted.method]}: cross-validated log loss {after:.3f} (uncalibrated {before:.3f}).{change}"


def score(log_probabilities: Floats, labels: Ints, weights: Floats) -> dict[str, float]:
    """Log loss and Brier score (in [0, 1] for two classes, in [0, 2] for more) of weighted images.

    Args:
        log_probabilities: (N, C).
        labels: (N,) class indices.
        weights: (N,).
    """
    losses = -np.maximum(log_probabilities[np.arange(len(labels)), labels], -700)
    errors = ((np.exp(log_probabilities) - np.eye(log_probabilities.shape[1])[labels]) ** 2).sum(1)
    if log_probabilities.shape[1] == 2:
        errors /= 2
    return {
        "log_loss": float(np.average(losses, weights=weights)),
        "brier": float(np.average(errors, weights=weights)),
    }


def _list_candidates(rarest: int, classes: int) -> tuple[Method, ...]:
    if classes > 2 or rarest < PLATT_FROM:
        return ("none", "temperature")
    few: tuple[Method, ...] = ("none", "temperature", "platt")
    return (*few, "isotonic") if rarest >= ISOTONIC_FROM else few


def _fit(start: Calibration, z: Floats, y: Ints, weights: Floats, intercept_prior: float) -> Calibration:
    """Fit the method that `start` names, beginning from it."""
    if start.method == "isotonic":
        return replace(_fit_isotonic(z[:, 0], y, weights), offset=start.offset)
    if start.method == "temperature":
        return _fit_temperature(start, z, y, weights)
    return _fit_platt(start, z, y, weights, intercept_prior) if start.method == "platt" else start


def _fit_temperature(start: Calibration, z: Floats, y: Ints, weights: Floats) -> Calibration:
    from scipy.optimize import minimize_scalar

    def loss(log_slope: float) -> float:  # images are weighted as in training: the offset comes afterwards
        log_probabilities = apply(z, replace(start, slope=float(np.exp(log_slope)), offset=()))
        return _negative_log_likelihood(log_probabilities, y, weights) + float(log_slope) ** 2 / (2 * PRIOR**2)

    best = minimize_scalar(loss, bounds=(-7, 7), method="bounded", options={"xatol": 1e-7})
    return replace(start, slope=float(np.exp(best.x)))


def _fit_platt(start: Calibration, z: Floats, y: Ints, weights: Floats, intercept_prior: float) -> Calibration:
    from scipy.optimize import minimize

    def build(parameters: Floats) -> Calibration:
        return replace(start, slope=float(np.exp(parameters[0])), intercept=float(parameters[1]))

    def loss(parameters: Floats) -> float:
        penalty = float(((parameters / [PRIOR, intercept_prior]) ** 2).sum()) / 2
        return _negative_log_likelihood(apply(z, replace(build(parameters), offset=())), y, weights) + penalty

    return build(minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9}).x)


def _negative_log_likelihood(log_probabilities: Floats, y: Ints, weights: Floats) -> float:
    """Of weighted images, scaled to the number of images."""
    likelihoods = log_probabilities[np.arange(len(y)), y]
    return float(-(weights * likelihoods).sum() * len(y) / weights.sum())


def _fit_isotonic(z: Floats, y: Ints, weights: Floats) -> Calibration:
    from sklearn.isotonic import IsotonicRegression

    smoothed = (np.bincount(y, minlength=2) + 1) / (np.bincount(y, minlength=2) + 2)
    targets = np.where(y == 1, smoothed[1], 1 - smoothed[0])
    fitted = IsotonicRegression(out_of_bounds="clip").fit(z, targets, sample_weight=weights)
    knots = zip(fitted.X_thresholds_.tolist(), np.clip(fitted.y_thresholds_, 0, 1).tolist(), strict=True)
    return Calibration("isotonic", knots=tuple(knots))


def _cross_fit(start: Calibration, z: Floats, y: Ints, weights: Floats, folds: Ints, intercept_prior: float) -> Floats:
    """Log probabilities of each image by a fit on other patients, or on all where a fold would lack a class."""
    log_probabilities = apply(z, _fit(start, z, y, weights, intercept_prior))
    classes = len(np.unique(y))
    for fold in range(FOLDS):
        rest, held_out = folds != fold, folds == fold
        if held_out.any() and len(np.unique(y[rest])) == classes:
            log_probabilities[held_out] = apply(
                z[held_out], _fit(start, z[rest], y[rest], weights[rest], intercept_prior)
            )
    return log_probabilities
