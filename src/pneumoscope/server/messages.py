"""What the service says and is told, as JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

_TEXT = r"^[^\x00]*$"  # PostgreSQL has no place for a null


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Wanted(_Message):
    """What is asked about images."""

    heatmap: bool = Field(default=False, description="Add where the evidence lies, as a PNG.")
    view: bool = Field(default=False, description="Add the image as a PNG for a browser.")
    invert: bool = Field(default=False, description="The images show air bright: exchange black and white.")
    any_modality: bool = Field(default=False, description="Read DICOM that is no projection radiograph, too.")


class Lately(_Message):
    """How far back to look."""

    days: int = Field(default=30, ge=1, le=3650)


class Latest(_Message):
    """How many to list."""

    limit: int = Field(default=200, ge=1, le=1000)


class Heatmap(_Message):
    """Where the evidence for a class lies."""

    label: str = Field(description="The class that yellow speaks for.")
    logit: float = Field(description="Its logit: the mean of the map plus the bias.")
    bias: float = Field(description="What of the logit belongs to no place.")
    limit: float = Field(description="The strength of the strongest colours, in logits.")
    png: str = Field(description="Base64: colours to be laid over the image, of its proportions.")


class PredictionMessage(_Message):
    """What the classifier says of one file."""

    id: str | None = Field(description="Names this read, for verdicts; null where the file could not be read.")
    name: str = Field(description="The file's name, without folders.")
    digest: str | None = Field(description="SHA-256 of the file.")
    decision: str | None = Field(description="A label, `uncertain`, `neither` or `ood`.")
    predicted_label: str | None = Field(
        description="The label that the threshold alone gives; null for a out-of-distribution image."
    )
    probability: float | None = Field(
        description="Of the positive class, calibrated; null for a out-of-distribution image."
    )
    probabilities: dict[str, float] = Field(description="Of every class; empty for a out-of-distribution image.")
    prediction_set: list[str] = Field(
        description="The classes it may belong to, at the model's alpha; empty for a out-of-distribution image."
    )
    ood_score: float | None = Field(description="How unlike the training images it is; above 1 is ood.")
    words: str | None = Field(description="The decision in plain words.")
    width: int | None = Field(description="Of the image, in pixels.")
    height: int | None = Field(description="Of the image, in pixels.")
    format: str | None = Field(description="Of the file.")
    error: str | None = Field(description="Why the file could not be read, and what to do about it.")
    heatmap: Heatmap | None = Field(
        default=None, description="Where it was asked for, and the image is not ood: then it would mean nothing."
    )
    view: str | None = Field(default=None, description="Base64: the image as a PNG, where it was asked for.")


class Predictions(_Message):
    """The answer to one request."""

    model: str
    fingerprint: str
    predictions: list[PredictionMessage]


class ModelMessage(_Message):
    """The model that is served."""

    name: str
    fingerprint: str = Field(description="Names what it computes; every read is kept with it.")
    labels: list[str]
    positive: str | None
    threshold: float | None = Field(description="The positive class is called from this probability on.")
    threshold_rule: str
    alpha: float | None = Field(description="How often a prediction set may miss the truth.")
    false_alarms: float | None = Field(description="Share of ordinary images that may be called ood.")
    backbone: str
    input_size: int
    training_images: int
    version: str
    heatmaps: bool = Field(description="Whether its maps explain; those of networks with attention don't.")
    colours: list[str] = Field(description="Of heatmaps, from the strongest against to the strongest for.")
    intended_use: str


class VerdictMessage(_Message):
    """What a reviewer thinks of a read."""

    verdict: Literal["agree", "disagree"]
    label: str | None = Field(
        default=None, max_length=200, description="The class that the reviewer sees; of two it may be left out."
    )
    note: str = Field(default="", max_length=2000, pattern=_TEXT)
    reviewer: str = Field(default="", max_length=100, pattern=_TEXT)


class KeptVerdict(_Message):
    """A verdict as it is kept."""

    read: str
    at: str
    verdict: Literal["agree", "disagree"]
    label: str | None
    note: str
    reviewer: str


class ReadMessage(_Message):
    """An image that was read before."""

    id: str
    at: str = Field(description="UTC.")
    name: str
    digest: str
    model: str
    fingerprint: str
    decision: str
    predicted_label: str | None
    prediction_set: list[str]
    probability: float | None
    ood_score: float | None
    verdicts: list[KeptVerdict]


class Reads(_Message):
    """Images that were read before, the newest first."""

    reads: list[ReadMessage]


class ProblemMessage(BaseModel):
    """Why a request could not be answered, and what to change (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
