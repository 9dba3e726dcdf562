"""The JSON messages that the service receives and sends."""

from __future__ import annotations

import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION

_NO_NUL = r"^[^\x00]*$"  # PostgreSQL stores no null characters
Moment = Annotated[
    datetime.datetime, PlainSerializer(lambda moment: f"{moment.isoformat(timespec='milliseconds')}Z", str)
]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", from_attributes=True)


class PredictionQuery(_Message):
    """How to read the images, and what to return besides the prediction."""

    heatmap: bool = Field(default=False, description="Add a heatmap of the evidence, as a PNG.")
    picture: bool = Field(default=False, description="Add the image itself, as a PNG for a browser.")
    invert: bool = Field(default=False, description="The images are inverted (air is white): swap black and white.")
    any_modality: bool = Field(default=False, description="Also read DICOM files that are not projection radiographs.")
    store: bool = Field(
        default=True, description="Store and count the predictions. One that is not stored has no id and no reviews."
    )


class ListQuery(_Message):
    """How many predictions to list."""

    limit: int = Field(default=200, ge=1, le=1000)


class MonitoringQuery(_Message):
    """How many days to summarise, today included."""

    days: int = Field(default=30, ge=1, le=3650)


class NodeQuery(_Message):
    """How many of the node's images to list."""

    limit: int = Field(default=50, ge=1, le=500)


class ReviewRequest(_Message):
    """What a reviewer says about a prediction."""

    agrees: bool = Field(description="Whether the decision is right.")
    label: str | None = Field(
        default=None,
        max_length=200,
        description="The class that the reviewer sees. May be omitted if the decision is one of two classes.",
    )
    comment: str = Field(default="", max_length=2000, pattern=_NO_NUL)
    reviewer: str = Field(default="", max_length=100, pattern=_NO_NUL)


class ReviewMessage(ReviewRequest):
    """A review as it is stored."""

    prediction_id: str
    created_at: Moment = Field(description="UTC.")


class ImageReviewMessage(ReviewMessage):
    """A review of any prediction of a file, with what was reviewed."""

    model: str = Field(description="The name of the model that had predicted.")
    fingerprint: str = Field(description="The fingerprint of that model.")
    decision: str = Field(description="What it had decided.")


class Heatmap(_Message):
    """Where on the image the evidence for a class lies."""

    label: str = Field(description="The class that yellow supports.")
    logit: float = Field(description="Its logit: the mean of the map plus the bias.")
    bias: float = Field(description="The part of the logit that is not tied to a place in the image.")
    limit: float = Field(description="The evidence at the ends of the colour scale, in logits.")
    png: str = Field(description="A PNG in Base64: colours to lay over the image, in the same proportions.")


class PredictionMessage(_Message):
    """A prediction for one file. For an out-of-distribution image, label, probabilities and heatmap are left out."""

    id: str | None = Field(default=None, description="Identifies this prediction; null if there is none.")
    created_at: Moment | None = Field(default=None, description="UTC.")
    name: str = Field(description="The file's name, without folders.")
    sha256: str | None = Field(default=None, description="SHA-256 of the file.")
    model: str | None = Field(default=None, description="The model's name.")
    fingerprint: str | None = Field(default=None, description="The model's fingerprint.")
    decision: str | None = Field(default=None, description="A label, `uncertain` or `out_of_distribution`.")
    predicted_label: str | None = Field(
        default=None, description="The class that the threshold gives; null if out of distribution."
    )
    probability: float | None = Field(
        default=None, description="The calibrated probability of the positive class; null if out of distribution."
    )
    probabilities: dict[str, float] = Field(
        default={}, description="Those of all classes; empty if out of distribution."
    )
    prediction_set: list[str] = Field(
        default=[], description="The classes that are possible at the model's alpha; empty if out of distribution."
    )
    ood_score: float | None = Field(
        default=None, description="How unlike the training images it is; above 1 is out of distribution."
    )
    group: str | None = Field(default=None, description="The group of the model that decided; null if none did.")
    warnings: list[str] = Field(default=[], description="What to know about the file before using the prediction.")
    patient: Annotated[str | None, BeforeValidator(lambda name: name or None)] = Field(
        default=None, description="A pseudonym of the patient, which holds in this database only; null if unknown."
    )
    age: float | None = Field(default=None, description="Of the patient, in years, by the file's header.")
    sex: str | None = Field(default=None, description="M, F or O.")
    view: str | None = Field(default=None, description="PA, AP, LL and so on.")
    laterality: str | None = Field(default=None, description="ImageLaterality or Laterality of a DICOM file.")
    date: str | None = Field(default=None, description="Of the study, as YYYY-MM-DD.")
    accession_number: str | None = Field(default=None, description="AccessionNumber of a DICOM file.")
    study_uid: str | None = Field(default=None, description="StudyInstanceUID.")
    series_uid: str | None = Field(default=None, description="SeriesInstanceUID.")
    sop_uid: str | None = Field(default=None, description="SOPInstanceUID, of the image.")
    explanation: str | None = Field(default=None, description="The decision in plain words.")
    width: int | None = Field(default=None, description="Of the image, in pixels.")
    height: int | None = Field(default=None, description="Of the image, in pixels.")
    format: str | None = Field(default=None, description="Of the file.")
    error: str | None = Field(default=None, description="Why there is no prediction, and what to do about it.")
    heatmap: Heatmap | None = Field(
        default=None, description="If requested; null if out of distribution, where it would mean nothing."
    )
    picture: str | None = Field(default=None, description="Base64: the image as a PNG, if requested.")
    reviews: list[ReviewMessage] = Field(default=[], description="The oldest first.")
    image_reviews: list[ImageReviewMessage] = Field(
        default=[], description="The latest ten of all predictions of this file, by any model, the oldest first."
    )

    @model_validator(mode="after")
    def _withhold(self) -> Self:
        if self.decision == OUT_OF_DISTRIBUTION:
            self.predicted_label = self.probability = self.heatmap = None
            self.probabilities, self.prediction_set = {}, []
        return self


class PredictionsMessage(_Message):
    """Predictions for a request's files, in their order; or the latest ones, the newest first."""

    predictions: list[PredictionMessage]


class ModelMessage(_Message):
    """The model that is served."""

    name: str
    fingerprint: str = Field(description="Identifies the model; every prediction is stored with it.")
    labels: list[str]
    positive: str | None = Field(description="The positive class if there are two; null if there are more.")
    threshold: float | None = Field(description="The positive class is predicted at or above this probability.")
    threshold_rule: str
    thresholds: dict[str, float] = Field(
        description="Of more than two classes, the one that reaches the largest multiple of its own is predicted. "
        "Empty: the likeliest."
    )
    alpha: float | None = Field(description="How often a prediction set may miss the true class.")
    false_alarms: float | None = Field(description="The share of ordinary images that may be out of distribution.")
    backbone: str
    input_size: int
    training_images: int
    version: str
    heatmaps: bool = Field(description="Whether heatmaps are available; they are not for networks with attention.")
    colours: list[str] = Field(description="Of heatmaps, from the strongest evidence against to the strongest for.")
    intended_use: str
    intended_population: str = Field(description="The patients and images it is meant for; empty if unknown.")


class NodeCounts(_Message):
    """How many images the DICOM node has in which state."""

    waiting: int = Field(description="For more images of their study, or for their turn.")
    answered: int
    skipped: int = Field(description="Not answered: a rule says so, or they are results of the node itself.")
    set_aside: int = Field(description="They cannot be answered.")
    lost: int = Field(description="Their files are gone.")
    answered_today: int = Field(description="Today is that of UTC.")


class DestinationMessage(_Message):
    """How many results are where on their way to a destination of the DICOM node."""

    name: str
    due: int = Field(description="To be sent, for the first time or again.")
    sent: int = Field(description="Accepted, and not yet verified.")
    delivered: int
    failed: int = Field(description="Given up until `pneumoscope dicom node --retry-failed`.")
    held: int = Field(description="Not sent, by a dry run.")
    oldest_due_seconds: float | None = Field(description="For how long the first has been due; null if none is.")
    error: str | None = Field(description="Why the last of the failed has failed.")


class DeliveryMessage(_Message):
    """A result on its way to a destination."""

    destination: str
    state: Literal["due", "sent", "delivered", "failed", "held"]
    attempts: int = Field(description="How often the destination has refused it.")
    error: str | None = Field(description="What went wrong last.")


class ResultMessage(_Message):
    """A result of the DICOM node."""

    kind: str = Field(description="As in `pneumoscope dicom results --as`: sr, sc, map, seg, fhir-r4 or fhir-r5.")
    sop_uid: str = Field(description="Its own SOPInstanceUID, or the identifier of a FHIR report.")
    deliveries: list[DeliveryMessage]


class NodeImageMessage(_Message):
    """An image that the DICOM node has received, without anything about the patient."""

    id: int
    node: str = Field(description="The node that has it.")
    received_at: Moment = Field(description="UTC.")
    calling: str = Field(description="The sender's AE title; STOW over HTTP, WATCH from a folder.")
    study: str = Field(description="The beginning of a hash of its Study Instance UID, as in the node's log.")
    state: Literal["waiting", "answered", "skipped", "set_aside", "lost"]
    reason: str | None = Field(description="Why it is not answered.")
    attempts: int = Field(description="How often answering it has begun.")
    decision: str | None = Field(description="A label, `uncertain` or `out_of_distribution`.")
    predicted_label: str | None = Field(description="Null if out of distribution.")
    probability: float | None = Field(description="Of the positive class; null if out of distribution.")
    warnings: list[str]
    results: list[ResultMessage]

    @model_validator(mode="after")
    def _withhold(self) -> Self:
        if self.decision == OUT_OF_DISTRIBUTION:
            self.predicted_label = self.probability = None
        return self


class NodeMessage(_Message):
    """What DICOM nodes have in the service's database; `present` alone if it has none."""

    present: bool = Field(description="Whether a node has its tables in this database.")
    counts: NodeCounts | None = None
    oldest_waiting_seconds: float | None = Field(default=None, description="Null if no image waits.")
    destinations: list[DestinationMessage] = []
    images: list[NodeImageMessage] = Field(default=[], description="The latest, the newest first.")


class ProblemMessage(BaseModel):
    """Why a request could not be answered, and what to change (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
