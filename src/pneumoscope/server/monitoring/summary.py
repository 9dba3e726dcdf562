"""Whether a model in use still works as intended: volume, decisions, drift, and agreement with reviewers."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION, UNCERTAIN, read_decisions
from pneumoscope.decisions.prediction_sets import PredictionSets
from pneumoscope.evaluation.decision_summary import measure_rate
from pneumoscope.models.lineage import find_adaptations
from pneumoscope.models.model_folder import Model
from pneumoscope.server.monitoring.groups import MIN_POOLED, Outcome, list_groups, list_series, measure_shares
from pneumoscope.server.storage.image_reviews import list_counting
from pneumoscope.server.storage.store import Review

BINS = 10
MIN_IMAGES = 200  # with fewer, chance alone moves the index by more than a tenth
_EMPTY_BIN = 0.5  # images, so that a logarithm can be taken


def summarise(
    outcomes: Sequence[Outcome],
    reviews: Sequence[tuple[Outcome, Review]],
    model: Model,
    fingerprint: str,
    period: tuple[datetime.date, int],
) -> dict[str, Any]:
    """Summarise predictions for the monitoring page; of each image, only the latest prediction and review count.

    Drift is the population stability index (PSI) of the probabilities against the validation images' (above 0.25 counts
    as a change; Siddiqi 2006, Credit Risk Scorecards, ch. 9), next to what it reaches by chance alone, and the largest
    distance of the two distributions (Kolmogorov-Smirnov). Another prevalence than among the validation images shows as
    drift, too. The distances behind the OOD scores are compared in the same way.

    Args:
        outcomes: predictions of the period.
        reviews: of these, each with its prediction.
        model: the model that is served.
        fingerprint: its fingerprint; other models' predictions are left out.
        period: its first day (UTC), and how many days it has.
    """
    of_model = [each for each in outcomes if each.fingerprint == fingerprint]
    images = list({each.sha256: each for each in sorted(of_model, key=lambda each: each.number)}.values())
    latest = {
        prediction.sha256: (prediction, review.agrees)
        for prediction, review in list_counting(reviews)
        if prediction.fingerprint == fingerprint and review.agrees is not None
    }
    reviewed = list(latest.values())
    return {
        "of_this_model": len(of_model),
        "images": len(images),
        "shares": measure_shares(images, model),
        "ood_score": _find_quantiles([each.ood_score for each in images if each.ood_score is not None]),
        "ood_drift": _find_ood_drift(images, model),
        "drift": _find_drift([each for each in images if each.decision != OUT_OF_DISTRIBUTION], model),
        "agreement": {
            "all": measure_rate([agrees for _, agrees in reviewed]),
            **{
                decision: measure_rate([agrees for other, agrees in reviewed if other.decision == decision])
                for decision in (*model.labels, UNCERTAIN, OUT_OF_DISTRIBUTION)
                if any(other.decision == decision for other, _ in reviewed)
            },
        },
        "series": list_series(images, model, *period),
        "min_pooled": MIN_POOLED,
        "groups": list_groups(images, reviewed, model),
    }


def measure_drift(probabilities: NDArray[np.float64], reference: NDArray[np.float64]) -> tuple[float, float]:
    """Population stability index over tenths of `reference` (M,), and Kolmogorov-Smirnov distance."""
    edges = np.quantile(reference, np.linspace(0, 1, BINS + 1)[1:-1])
    counts = [
        np.maximum(np.bincount(np.searchsorted(edges, each), minlength=BINS), _EMPTY_BIN)
        for each in (probabilities, reference)
    ]
    new, old = (each / each.sum() for each in counts)
    points = np.concatenate([probabilities, reference])
    below = [np.searchsorted(np.sort(each), points, side="right") / len(each) for each in (probabilities, reference)]
    return float(np.sum((new - old) * np.log(new / old))), float(np.abs(below[0] - below[1]).max())


def bound_by_chance(images: int, reference: int) -> float:
    """Return what the index stays below 95 times in 100 if nothing has changed and each image is of another patient.

    Its distribution is about (1 / n + 1 / m) chi-squared with one degree of freedom less than there are bins (Yurdakul
    & Naranjo 2020, "Statistical properties of the population stability index", J Risk Model Valid 14).
    """
    from scipy.stats import chi2

    return float(chi2.ppf(0.95, BINS - 1) * (1 / images + 1 / reference))


def find_reference(model: Model) -> NDArray[np.float64]:
    """For two classes, the validation images' probabilities of the positive one; empty where a model has none.

    Where groups change the probabilities, those of the groups' images count, and none if they are not all known.
    """
    decisions = read_decisions(model)
    if decisions.prediction_sets is None or model.positive is None:
        return np.zeros(0)
    found = [decisions.prediction_sets]
    moved = any(group.moves_logits for group in decisions.groups)
    if moved and not find_adaptations(model.lineage):  # adapted sets hold for all
        found = [group.prediction_sets for group in decisions.groups if group.prediction_sets]
        if sum(map(_count, found)) < _count(decisions.prediction_sets):
            return np.zeros(0)
    negative, positive = (np.concatenate([sets.scores[label] for sets in found]) for label in model.labels)
    return np.concatenate([1 - negative, positive])


def _find_ood_drift(images: Sequence[Outcome], model: Model) -> dict[str, Any] | None:
    """Compare distances, because a score is a distance over a limit, and groups have limits of their own."""
    decisions = read_decisions(model)
    if decisions.ood is None:
        return None
    limits: dict[Any, float] = {group.name: (group.ood or decisions.ood).limit for group in decisions.groups}
    distances = [
        each.ood_score * limits.get(each.group, decisions.ood.limit) for each in images if each.ood_score is not None
    ]
    return _compare(np.array(distances), np.concatenate([*map(np.array, decisions.ood.distances.values())]))


def _count(sets: PredictionSets) -> int:
    return sum(map(len, sets.scores.values()))


def _find_drift(outcomes: Sequence[Outcome], model: Model) -> dict[str, Any] | None:
    reference = find_reference(model)
    if model.positive is None or not len(reference):
        return None
    probabilities = np.array([each.probabilities[model.positive] for each in outcomes])
    bins = np.linspace(0, 1, BINS + 1)
    return {
        "current": np.histogram(probabilities, bins)[0].tolist(),
        "validation": np.histogram(reference, bins)[0].tolist(),
        **(_compare(probabilities, reference) or {}),
    }


def _compare(values: NDArray[np.float64], reference: NDArray[np.float64]) -> dict[str, Any] | None:
    if not len(reference):
        return None
    enough = len(values) >= MIN_IMAGES
    index, distance = measure_drift(values, reference) if enough else (None, None)
    return {
        "images": len(values),
        "min_images": MIN_IMAGES,
        "psi": index,
        "psi_by_chance": bound_by_chance(len(values), len(reference)) if enough else None,
        "ks_distance": distance,
    }


def _find_quantiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95]).tolist()
    return {"p05": low, "median": middle, "p95": high}
