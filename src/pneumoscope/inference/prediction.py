"""What a classifier says about one radiograph: one type from the network to every output."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.pseudonyms import Pseudonyms
from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION
from pneumoscope.errors import DataError
from pneumoscope.notebook import Drawn, to_frame, to_html
from pneumoscope.text import counted, escape, printable_line

if TYPE_CHECKING:
    from pneumoscope.images.prepare import Pixels
    from pneumoscope.inference.evidence import Evidence

# Whose image it is: attributes of a prediction and columns of tables.
IDENTITY = (
    *("patient", "age", "sex", "view", "laterality", "date", "accession_number"),
    *("study_uid", "series_uid", "sop_uid"),
)
OF_HEADERS = IDENTITY[4:]  # what nothing but a DICOM header says
SHORT = 12  # hex digits of a SHA-256 that name a file's content in tables and models


@dataclass(frozen=True, kw_only=True)
class Prediction(Drawn):
    """What a classifier says about one radiograph. Unknown values are None.

    Attributes:
        path: the file, or None where bytes were given.
        sha256: of the file's content, empty where it could not be read.
        patient: from the sample (its table or the name of its file), else PatientID of a DICOM file.
        label: the true class, where the sample has one.
        study_uid: StudyInstanceUID of a DICOM file.
        series_uid: SeriesInstanceUID.
        sop_uid: SOPInstanceUID.
        accession_number: AccessionNumber.
        date: of the study, as `YYYY-MM-DD`.
        age: in years.
        sex: M, F or O.
        view: PA, AP, LL and so on.
        laterality: ImageLaterality or Laterality.
        predicted_label: by the threshold or thresholds; given for images out of
            distribution too.
        probability: of the positive class, or of the predicted label of more than two. None for an image out of
            distribution: the network computes a number for it, but it means nothing.
        probabilities: of every class by name, for images out of distribution too.
        prediction_set: the classes that cannot be ruled out.
        ood_score: above 1 is out of distribution; None if the model has no detector.
        decision: a label, `uncertain` (the prediction set does not hold exactly the predicted label) or
            `out_of_distribution`.
        logits: from the head, (1,) or (C,), before calibration, with the slope and intercept of its group.
        group: the group of the model that decided; None where none did.
        warnings: reasons to trust it less: an image or a patient outside the intended use, a header that contradicts
            the pixels, an image that is probably inverted.
        error: why there is no prediction: the file could not be read, or it is outside the intended use and such images
            are refused. The decision and all numbers are then empty.
        lacks_extra: whether the error is that a package is not installed, not that the file is at fault.
        size: height and width of the image in the file; None where its features came from the cache.
        format: of the file, such as JPEG or DICOM; None where its features came from the cache.
        evidence: where on the image the evidence lies, if requested.
        pixels: float32 (H, W) in [0, 1], if requested; a large JPEG is read at a reduced scale.
    """

    path: Path | None = None
    sha256: str = ""
    patient: str | None = None
    label: str | None = None
    study_uid: str | None = None
    series_uid: str | None = None
    sop_uid: str | None = None
    accession_number: str | None = None
    date: str | None = None
    age: float | None = None
    sex: str | None = None
    view: str | None = None
    laterality: str | None = None
    predicted_label: str | None = None
    probability: float | None = None
    probabilities: dict[str, float] | None = None
    prediction_set: tuple[str, ...] = ()
    ood_score: float | None = None
    decision: str | None = None
    logits: tuple[float, ...] = ()
    group: str | None = None
    warnings: tuple[str, ...] = ()
    error: str | None = None
    lacks_extra: bool = False
    size: tuple[int, int] | None = None
    format: str | None = None
    evidence: Evidence | None = field(default=None, repr=False)
    pixels: Pixels | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        return f"Prediction({self.describe()})"

    def describe(self) -> str:
        """File, decision and probability, or the error, in a line."""
        name = printable_line(self.path.name) if self.path else "image"
        if self.error is not None:
            return f"{name}: error: {printable_line(self.error)}"
        shown = "" if self.probability is None else f", probability {self.probability:.3f}"
        return f"{name}: {self.decision}{shown}"

    @property
    def identity(self) -> dict[str, Any]:
        """Whose image it is, by the names of `IDENTITY`; the patient is named."""
        return {name: getattr(self, name) for name in IDENTITY}

    @property
    def has_header(self) -> bool:
        """Whether anything is known that only a DICOM header says."""
        return any(getattr(self, name) is not None for name in OF_HEADERS)

    def _repr_html_(self) -> str:
        return to_html(self.describe(), [self.to_row(tuple(self.probabilities or ()), grouped=self.group is not None)])

    def to_frame(self, patient_ids: bool = False) -> Any:
        """A pandas DataFrame with one row; `pandas.concat(each.to_frame() for each in predictions)` has all.

        Its columns are those that `pneumoscope predict` writes.

        Args:
            patient_ids: give the patient as it is, not a pseudonym.

        Raises:
            UsageError: the key behind the pseudonyms cannot be read or made.
            MissingExtraError: pandas is not installed.
        """
        row = self.to_row(tuple(self.probabilities or ()), grouped=self.group is not None) | self.identity
        return to_frame([row if patient_ids else row | {"patient": Pseudonyms().get(self.patient)}])

    @property
    def raw_probability(self) -> float | None:
        """The probability even if the image is out of distribution, for evaluation."""
        values = self.probabilities or {}
        if len(values) == 2:
            return list(values.values())[1]
        return values[str(self.predicted_label)] if values else None

    def to_row(self, labels: Sequence[str], raw: bool = False, grouped: bool = False) -> dict[str, Any]:
        """A row of `predictions.csv`; with more than two classes a column for each class's probability follows.

        Args:
            labels: the model's classes.
            raw: keep probability, predicted label and prediction set of images out of distribution, for
                evaluation.
            grouped: whether the model has groups, which then have a column.
        """
        shown = raw or self.decision != OUT_OF_DISTRIBUTION
        row = {
            "path": "" if self.path is None else escape(self.path.as_posix()),
            "label": self.label,
            "probability": self.raw_probability if raw else self.probability,
            "predicted_label": self.predicted_label if shown else None,
            "prediction_set": "|".join(self.prediction_set) if shown else None,
            "ood_score": self.ood_score,
            "decision": self.decision,
            "warnings": "; ".join(self.warnings),
            "error": self.error,
        }
        if len(labels) > 2:
            values = (self.probabilities or {}) if shown else {}
            row |= {f"probability_{name}": values.get(name) for name in labels}
        if grouped:
            row["group"] = self.group
        return row


def index_labels(predictions: Sequence[Prediction], classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the true classes (N,) as indices.

    Raises:
        DataError: a label is not a class.
    """
    places = {name: i for i, name in enumerate(classes)}
    if unknown := next((each for each in predictions if each.label not in places), None):
        raise DataError(f"{unknown.path}: its label {unknown.label!r} is none of the classes ({', '.join(classes)}).")
    return np.array([places[str(each.label)] for each in predictions], np.int64)


def stack_probabilities(predictions: Sequence[Prediction]) -> NDArray[np.float64]:
    """Return probabilities as the metrics need them: (N,) of the second class if there are two, else (N, C)."""
    stacked = np.array([list((each.probabilities or {}).values()) for each in predictions], np.float64)
    return stacked[:, 1] if stacked.ndim == 2 and stacked.shape[1] == 2 else stacked


def count_warnings(warnings: Iterable[Sequence[str]]) -> list[str]:
    """Count the images with each kind of warning, the most frequent first; numbers do not make another kind.

    Args:
        warnings: those of each image.
    """
    kinds: dict[str, list[str]] = {}
    for found in warnings:
        for warning in found:
            kinds.setdefault(re.sub(r"\d+(\.\d+)?", "", warning), []).append(warning)
    lines = []
    for found in sorted(kinds.values(), key=len, reverse=True):
        have = f"{counted(len(found), 'image')} {'has' if len(found) == 1 else 'have'}"
        which = "the warning" if len(set(found)) == 1 else "a warning such as"
        lines.append(f"{have} {which} {found[0]!r}.")
    return lines


def log_warnings(warnings: Iterable[Sequence[str]]) -> None:
    """Log how many images have each kind of warning."""
    for line in count_warnings(warnings):
        logging.getLogger("pneumoscope").warning("%s", line)
