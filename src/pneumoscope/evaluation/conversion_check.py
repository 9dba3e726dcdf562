"""How a converted model differs from its original, by their predictions of the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pneumoscope.datasets.samples import Sample
from pneumoscope.errors import DataError
from pneumoscope.evaluation.metrics import measure
from pneumoscope.inference.prediction import Prediction

ROUNDING = 1e-5  # differences of probabilities and OOD scores that other arithmetic makes


@dataclass(frozen=True)
class Check:
    """How an exported model differs from its original, both run from their files on the same readable images."""

    images: int
    difference: float  # the largest of a probability
    changed: int  # decisions that differ
    auroc: tuple[float, float] | None  # of the original and of the export; None unless both classes are labelled


def compare(
    before: Sequence[Prediction], after: Sequence[Prediction], samples: Sequence[Sample], labels: Sequence[str]
) -> Check:
    """Compare two classifiers' predictions of the same images.

    A decision that differs although all numbers agree to `ROUNDING` is not counted: they lie exactly on a limit.

    Raises:
        DataError: none of the images could be read, or the second has no prediction of one.
    """
    readable = [i for i, prediction in enumerate(before) if prediction.error is None]
    if not readable:
        raise DataError(f"None of the {len(samples)} images can be read, so the export cannot be checked.")
    if lost := next((after[i].error for i in readable if after[i].error is not None), None):
        raise DataError(f"the export does not predict an image that the model predicts: {lost}")
    first, second = (
        np.array([list((predictions[i].probabilities or {}).values()) for i in readable], np.float64)
        for predictions in (before, after)
    )
    truth = np.array([labels.index(samples[i].label or "") if samples[i].label in labels else -1 for i in readable])
    auroc = None
    if len(labels) == 2 and (truth >= 0).all() and 0 < truth.mean() < 1:
        of_first, of_second = (float(measure(truth, shares[:, 1])["auroc"][0]) for shares in (first, second))
        auroc = (of_first, of_second)
    distances = np.abs(first - second).max(axis=1)
    scores = np.array([[each[i].ood_score or 0.0 for i in readable] for each in (before, after)])
    distances = np.maximum(distances, np.abs(scores[0] - scores[1]) / np.maximum(1, scores[0]))
    differ = np.array([before[i].decision != after[i].decision for i in readable])
    changed = int((differ & (distances > ROUNDING)).sum())
    return Check(len(readable), float(np.abs(first - second).max()), changed, auroc)


def describe_check(check: Check) -> str:
    """Describe a check in a sentence."""
    decisions = f"{check.changed} decision{'' if check.changed == 1 else 's'} changed"
    auroc = "" if check.auroc is None else f"; AUROC {check.auroc[0]:.4f} before and {check.auroc[1]:.4f} after"
    return (
        f"Checked on {check.images:,} images: probabilities differ by at most {check.difference:.2g}; "
        f"{decisions}{auroc}."
    )
