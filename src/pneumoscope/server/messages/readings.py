"""The JSON messages about readings, blind or with the model's answer, and about teaching cases."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from pneumoscope.server.messages.predictions import (
    NO_NUL,
    Answer,
    Moment,
    PageMessage,
    PageQuery,
    PredictionMessage,
    Query,
)


class ReadingFields(Query):
    """What a reader sees in an image."""

    label: str | None = Field(
        default=None, max_length=200, pattern=NO_NUL, description="The class that the reader sees; null: cannot tell."
    )
    confidence: int | None = Field(
        default=None,
        ge=0,
        le=100,
        description="How sure of the class the reader is, from 0 (a guess) to 100 (certain).",
    )
    comment: str = Field(default="", max_length=2000, pattern=NO_NUL)
    reader: str = Field(
        default="",
        max_length=100,
        pattern=NO_NUL,
        description="Their name; a caller with a name of their own has that.",
    )
    seconds: float | None = Field(
        default=None, ge=0, le=1e6, allow_inf_nan=False, description="From showing the image to committing."
    )


class ReadingRequest(ReadingFields):
    """A reading to commit; it cannot be changed afterwards."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"label": "PNEUMONIA", "confidence": 75}]})

    with_ai: bool = Field(
        default=False,
        description="False: the reader's first reading of the file, before the model's answer. True: a later one.",
    )


class ReadingMessage(Answer):
    """A reading as it is stored."""

    number: int = Field(description="Identifies it; later readings have larger numbers.")
    prediction_id: str
    sha256: str = Field(description="SHA-256 of the file that was read.")
    sequence: int = Field(description="Counts the readings of this reader and prediction, from 1.")
    reader: str
    with_ai: bool = Field(description="Whether the reader knew the model's answer.")
    label: str | None = Field(description="The class that the reader sees; null: cannot tell.")
    confidence: int | None
    comment: str
    seconds: float | None = Field(description="From showing the image to committing.")
    created_at: Moment = Field(description="UTC.")


class CommittedMessage(Answer):
    """A reading that is stored, and the prediction, which its reader may now see."""

    reading: ReadingMessage
    prediction: PredictionMessage


class ReadingQuery(PageQuery):
    """Which readings to list."""

    prediction: str | None = Field(default=None, max_length=64, pattern=NO_NUL, description="An id.")
    sha256: str | None = Field(default=None, max_length=64, pattern=NO_NUL, description="Of the file.")
    reader: str | None = Field(default=None, max_length=100, pattern=NO_NUL)


class ReadingPage(PageMessage):
    """Readings, the newest first."""

    readings: list[ReadingMessage]


class TeachingCaseMessage(Answer):
    """An image of known truth; its name and its truth are not shown before the answer."""

    number: int


class TeachingMessage(Answer):
    """The cases to learn with."""

    source: Literal["simulated", "own"] = Field(description="Own cases are those of the setting `cases`.")
    labels: list[str]
    positive: str | None
    cases: list[TeachingCaseMessage]


class TeachingRequest(ReadingFields):
    """An answer to a teaching case."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"label": "PNEUMONIA"}]})

    store: bool = Field(
        default=False,
        description="Store it as a reading, and the prediction with it. Simulated cases are never stored.",
    )


class TaughtMessage(Answer):
    """The truth of a teaching case, and what the model says."""

    truth: str
    correct: bool
    stored: bool = Field(description="Whether the answer was stored as a reading; only the first one of a reader is.")
    prediction: PredictionMessage


class PerformanceMessage(Answer):
    """How readers and the model compare."""

    readers: list[dict[str, Any]] = Field(
        description="For each reader: how many images, the agreement with the model, and, with truth, accuracy, "
        "sensitivity, specificity and AUROC without and with AI and of the model, and their differences."
    )
