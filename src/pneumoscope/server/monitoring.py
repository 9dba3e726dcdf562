"""Whether a model in use still sees what it was made for: volume, decisions, drift, and what reviewers say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION, UNCERTAIN, read_decisions
from pneumoscope.evaluation.intervals.proportions import wilson_interval

if TYPE_CHECKING:
    from pneumoscope.models.model_folder import Model
    from pneumoscope.server.store import Read, Verdict

BINS = 10
ENOUGH = 200  # images; with fewer, chance alone moves the index by more than a tenth
_FLOOR = 0.5  # of an image in an empty bin, so that a logarithm can be taken


def summarise(
    reads: Sequence[Read], verdicts: Mapping[str, Sequence[Verdict]], model: Model, fingerprint: str
) -> dict[str, Any]:
    """Figures for the monitoring page; an image that was read several times counts once, as it was read last.

    Drift is told by the population stability index of the scores against the validation images' (above 0.25 is called a
    change; Siddiqi 2006, Credit Risk Scorecards, ch. 9), by what it would reach by chance alone, and by the largest
    distance of the two distributions (Kolmogorov-Smirnov). Another prevalence than the validation images' shows as
    drift, too.

    Args:
        reads: of the time looked at.
        verdicts: on them, by read.
        model: the model that is served.
        fingerprint: its own.
    """
    of_model = [read for read in reads if read.fingerprint == fingerprint]
    own = list({read.digest: read for read in sorted(of_model, key=lambda read: read.at)}.values())  # each image once
    given = [(verdict, read) for read in of_model for verdict in verdicts.get(read.id, ())]
    last = {read.digest: (read, verdict) for verdict, read in sorted(given, key=lambda pair: pair[0].at)}
    latest = list(last.values())
    return {
        "of_this_model": len(of_model),
        "images": len(own),
        "shares": {
            "positive": _share(
                [
                    read.predicted_label == model.positive
                    for read in own
                    if model.positive and read.decision != OUT_OF_DISTRIBUTION
                ]
            ),
            "uncertain": _share([read.decision == UNCERTAIN for read in own]),
            "out_of_distribution": _share([read.decision == OUT_OF_DISTRIBUTION for read in own]),
        },
        "ood_score": _ood([read.ood_score for read in own if read.ood_score is not None]),
        "scores": _compare_scores(own, model),
        "agreement": {
            "all": _share([verdict.agrees for _, verdict in latest]),
            **{
                call: _share([verdict.agrees for read, verdict in latest if read.decision == call])
                for call in (*model.labels, UNCERTAIN, OUT_OF_DISTRIBUTION)
                if any(read.decision == call for read, _ in latest)
            },
        },
    }


def measure_drift(scores: NDArray[np.float64], reference: NDArray[np.float64]) -> tuple[float, float]:
    """Population stability index over tenths of the reference, and the Kolmogorov-Smirnov distance.

    Args:
        scores: (N,) in [0, 1].
        reference: (M,) in [0, 1].
    """
    edges = np.quantile(reference, np.linspace(0, 1, BINS + 1)[1:-1])
    parts = [
        np.maximum(np.bincount(np.searchsorted(edges, each), minlength=BINS), _FLOOR) for each in (scores, reference)
    ]
    new, old = (part / part.sum() for part in parts)
    places = np.concatenate([scores, reference])
    reached = [np.searchsorted(np.sort(each), places, side="right") / len(each) for each in (scores, reference)]
    return float(np.sum((new - old) * np.log(new / old))), float(np.abs(reached[0] - reached[1]).max())


def bound_by_chance(images: int, others: int) -> float:
    """What the index stays below 95 times in 100 where nothing has changed and each image is another patient's.

    It is distributed about as (1 / n + 1 / m) chi-squared with one degree of freedom less than there are bins (Yurdakul
    & Naranjo 2020, "Statistical properties of the population stability index", J Risk Model Valid 14).
    """
    from scipy.stats import chi2

    return float(chi2.ppf(0.95, BINS - 1) * (1 / images + 1 / others))


def find_reference(model: Model) -> NDArray[np.float64]:
    """The positive class's probabilities of the validation images, of two classes; empty where a model has none."""
    sets = read_decisions(model).prediction_sets
    if sets is None or model.positive is None:
        return np.zeros(0)
    scores = sets.scores
    negative = next(label for label in model.labels if label != model.positive)
    return np.concatenate([1 - np.array(scores.get(negative, ())), np.array(scores.get(model.positive, ()))])


def _compare_scores(reads: Sequence[Read], model: Model) -> dict[str, Any] | None:
    reference = find_reference(model)
    if not len(reference):
        return None
    scores = np.array([read.score for read in reads if read.decision != OUT_OF_DISTRIBUTION])
    bins = np.linspace(0, 1, BINS + 1)
    stability, distance = measure_drift(scores, reference) if len(scores) >= ENOUGH else (None, None)
    return {
        "now": np.histogram(scores, bins)[0].tolist(),
        "validation": np.histogram(reference, bins)[0].tolist(),
        "images": len(scores),
        "enough": ENOUGH,
        "stability_index": stability,
        "stability_by_chance": None if stability is None else bound_by_chance(len(scores), len(reference)),
        "largest_distance": distance,
    }


def _ood(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95]).tolist()
    return {"p05": low, "median": middle, "p95": high}


def _share(hits: Sequence[bool]) -> dict[str, float | int | None]:
    if not hits:
        return {"value": None, "low": None, "high": None, "n": 0}
    value = sum(hits) / len(hits)
    low, high = wilson_interval(value, len(hits), 0.95)
    return {"value": value, "low": low, "high": high, "n": len(hits)}
