"""Labelled images with their predictions, from which metrics, subgroups and reports are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.samples import Sample
from pneumoscope.decisions import calibration
from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION, UNCERTAIN, Decisions
from pneumoscope.errors import DataError
from pneumoscope.images.dicom import Tags
from pneumoscope.inference.prediction import Prediction


@dataclass(frozen=True, slots=True)
class Case:
    """One labelled image and its prediction.

    Attributes:
        path: the image's name.
        label: its true class.
        probabilities: (C,) calibrated, in the order of the classes.
        predicted_label: the class by the threshold, or the likeliest of more than two.
        decision: a class, `uncertain` or `out_of_distribution`.
        prediction_set: the classes that cannot be ruled out.
        uncalibrated: (C,) probabilities before calibration, where they are known.
        patient: where known.
        ood_score: above 1 is out of distribution; None without a detector.
        tags: from the DICOM header.
    """

    path: str
    label: str
    probabilities: tuple[float, ...]
    predicted_label: str
    decision: str
    prediction_set: tuple[str, ...] = ()
    uncalibrated: tuple[float, ...] | None = None
    patient: str | None = None
    ood_score: float | None = None
    tags: Tags | None = None

    @property
    def answered(self) -> bool:
        """Whether the decision is a class."""
        return self.decision not in (UNCERTAIN, OUT_OF_DISTRIBUTION)


def to_case(prediction: Prediction, sample: Sample, decisions: Decisions) -> Case:
    """Join the prediction of a readable image with its sample."""
    raw = np.exp(calibration.apply([prediction.logits], decisions.calibration.without_fit()))[0]
    return Case(
        path=sample.path.as_posix(),
        label=str(sample.label),
        probabilities=tuple((prediction.probabilities or {}).values()),
        predicted_label=str(prediction.predicted_label),
        decision=str(prediction.decision),
        prediction_set=prediction.prediction_set,
        uncalibrated=None if decisions.calibration.method == "none" else tuple(raw.tolist()),
        patient=sample.patient,
        ood_score=prediction.ood_score,
        tags=sample.tags,
    )


def index_labels(cases: Sequence[Case], classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the true classes (N,) as indices.

    Raises:
        DataError: a label is not a class.
    """
    places = {name: i for i, name in enumerate(classes)}
    if unknown := next((case for case in cases if case.label not in places), None):
        raise DataError(f"{unknown.path}: its label {unknown.label!r} is none of the classes ({', '.join(classes)}).")
    return np.array([places[case.label] for case in cases], dtype=np.int64)


def stack_probabilities(cases: Sequence[Case]) -> NDArray[np.float64]:
    """Return probabilities as the metrics need them: (N,) of the second class if there are two, else (N, C)."""
    return _stack([case.probabilities for case in cases])


def stack_uncalibrated(cases: Sequence[Case]) -> NDArray[np.float64] | None:
    """Return the probabilities before calibration in the same form, or None where not all are known."""
    known = [case.uncalibrated for case in cases if case.uncalibrated is not None]
    return _stack(known) if len(known) == len(cases) else None


def _stack(rows: Sequence[tuple[float, ...]]) -> NDArray[np.float64]:
    stacked = np.array(rows, dtype=np.float64)
    return stacked[:, 1] if stacked.ndim == 2 and stacked.shape[1] == 2 else stacked
