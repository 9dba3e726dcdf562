"""Compares what two models say of the same images, one the successor of the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.datasets.samples import cluster_by_patient
from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION
from pneumoscope.evaluation.compare import compare_pairing
from pneumoscope.evaluation.intervals.differences import Difference, compare_means, compare_rates
from pneumoscope.evaluation.pairing import Pairing, Predictions
from pneumoscope.evaluation.results import without_nan
from pneumoscope.inference.prediction import Prediction, index_labels, stack_probabilities


@dataclass(frozen=True)
class Candidate:
    """A way to adapt a model, as cross-validation found it."""

    step: str  # what is changed: `unchanged`, `intercept`, `scaling`, `head` or `finetune`
    width: float  # of the prior around no change; the wider, the more it may change
    log_loss: float  # of images that it was not fitted on
    gain: float  # by how much this is lower than that of the candidate taken before it
    standard_error: float  # of this gain, by patient; of `finetune` by fold if that is larger


@dataclass(frozen=True)
class Evidence:
    """How a model was adapted, why so, and what changed."""

    chosen: Candidate  # what was changed about the probabilities
    changes: Sequence[str]  # sentences on each thing that was changed; the first is about the probabilities
    candidates: Sequence[Candidate]  # the simplest first
    # by name of the images: `out-of-fold` are those adapted to, each predicted without its own fold; perhaps `test`
    differences: Mapping[str, Mapping[str, Difference]]

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a row for each group of images and metric; undefined values are None."""
        names = {"first": "before", "other": "after", "value": "difference", "low": "low", "high": "high"}
        return [
            {"images": images, "metric": metric}
            | without_nan({shown: getattr(difference, name) for name, shown in names.items()})
            for images, found in self.differences.items()
            for metric, difference in found.items()
        ]


FLOOR = 1e-6  # a probability of 0 for the truth would make a log loss infinite


def compare_predictions(
    before: Sequence[Prediction],
    after: Sequence[Prediction],
    classes: Sequence[str],
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Difference]:
    """Measure how metrics differ between two series of predictions of the same images, by patient.

    Args:
        before: N predictions with probabilities and labels.
        after: the same images, in the same order.
        classes: their names; if there are two, the second is positive.
        resamples: bootstrap resamples.
        seed: fixes them.

    Returns:
        For each metric the value before and after, the difference and its interval: the metrics of
        `compare_runs`; `log_loss`; for each class how often prediction sets hold it (`coverage CLASS`); the shares of
        images with a label (`answered`) and out of distribution.
    """
    labels = index_labels(before, classes)
    patients = [each.patient for each in before]
    clusters = cluster_by_patient(patients, len(labels))
    both = (before, after)
    predicted = np.array([[classes.index(str(each.predicted_label)) for each in some] for some in both])
    positive = classes[1] if len(classes) == 2 else None
    pairing = Pairing(
        tuple(Predictions(Path(name), tuple(classes), positive, math.nan, ()) for name in ("before", "after")),
        tuple(classes), labels, np.stack([stack_probabilities(some) for some in both]), predicted,
        tuple(str(each.path) for each in before), clusters, len({each for each in patients if each}) or None, "path",
        (0, 0),
    )  # fmt: skip
    comparison = compare_pairing(pairing, ["before", "after"], resamples=resamples, seed=seed)
    found: dict[str, Difference] = dict(comparison.contrasts[0].differences)
    losses = [[-math.log(max(FLOOR, _find_own(each))) for each in some] for some in both]
    found["log_loss"] = compare_means(
        np.array(losses[0]), np.array(losses[1]), clusters, resamples=resamples, seed=seed
    )
    held = np.array([[str(each.label) in each.prediction_set for each in some] for some in both])
    for i, name in enumerate(classes):
        chosen = labels == i
        found[f"coverage {name}"] = compare_rates(
            held[0, chosen], held[1, chosen], clusters[chosen], resamples=resamples, seed=seed
        )
    answered = np.array([[each.decision in classes for each in some] for some in both])
    flagged = np.array([[each.decision == OUT_OF_DISTRIBUTION for each in some] for some in both])
    found["answered"] = compare_rates(answered[0], answered[1], clusters, resamples=resamples, seed=seed)
    found[OUT_OF_DISTRIBUTION] = compare_rates(flagged[0], flagged[1], clusters, resamples=resamples, seed=seed)
    return found


def _find_own(prediction: Prediction) -> float:
    """The probability of the true class."""
    return (prediction.probabilities or {})[str(prediction.label)]
