"""The JSON messages that the service receives and sends."""

from __future__ import annotations

import datetime
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION

NO_NUL = r"^[^\x00]*$"  # PostgreSQL stores no null characters
Moment = Annotated[
    datetime.datetime,
    PlainSerializer(lambda moment: f"{moment.replace(tzinfo=None).isoformat(timespec='milliseconds')}Z", str),
]  # in UTC: without a time zone from the database, with one from JSON


ReviewAnswer: TypeAlias = Literal["agree", "disagree", "cannot_tell", "comment", "withdrawn"]
_AGREES: dict[ReviewAnswer, bool] = {"agree": True, "disagree": False}


class Query(BaseModel):
    """What a request says; unknown parameters and fields are refused."""

    model_config = ConfigDict(extra="forbid")


class Answer(BaseModel):
    """What the service says; later versions may add fields."""

    model_config = ConfigDict(from_attributes=True)


class PredictionQuery(Query):
    """How to read the images, what to return besides the prediction, and what to keep."""

    heatmap: bool = Field(default=False, description="Add a heatmap of the evidence, as a PNG.")
    picture: bool = Field(default=False, description="Add the image itself, as a PNG of its levels.")
    invert: bool = Field(default=False, description="The images are inverted (air is white): swap black and white.")
    any_modality: bool = Field(default=False, description="Also read DICOM files that are not projection radiographs.")
    store: bool = Field(
        default=True, description="Store the predictions. Otherwise they have no id, and nothing is kept or counted."
    )
    reuse: bool = Field(
        default=False,
        description="Answer with the latest stored prediction of the same file by the same model, read in the same "
        "way, if there is one.",
    )


class UploadQuery(PredictionQuery):
    """What an upload may ask for besides."""

    callback: str = Field(
        default="",
        max_length=2000,
        pattern=NO_NUL,
        description="An address to call when the job is finished. The settings must allow its host.",
    )
    blind: bool = Field(default=False, description="Withhold the model's answers: read the images first.")


class PageQuery(Query):
    """Which page of a list."""

    cursor: str = Field(default="", max_length=100, description="Where the page begins: `next` of the page before.")
    limit: int = Field(default=50, ge=1, le=500, description="How many entries.")


class ListQuery(PageQuery):
    """Which predictions to list."""

    patient: str | None = Field(default=None, max_length=16, pattern=NO_NUL, description="A pseudonym.")
    study: str | None = Field(default=None, max_length=64, pattern=NO_NUL, description="A StudyInstanceUID.")
    decision: str | None = Field(default=None, max_length=200, pattern=NO_NUL)
    model: str | None = Field(
        default=None, max_length=200, pattern=NO_NUL, description="A model's name or fingerprint."
    )
    reviewed: bool | None = Field(default=None, description="Only those with, or without, a review.")
    second_reading: bool = Field(
        default=False,
        description="Only those that one other person has reviewed, or where another could not tell, and you have not.",
    )
    disagreement: bool = Field(
        default=False, description="Only those where a reader disagrees with the model or with another reader."
    )
    reader: str = Field(
        default="", max_length=100, pattern=NO_NUL, description="Your name for `second_reading`, without a login."
    )
    since: datetime.datetime | None = Field(
        default=None, description="Only those made at this moment or later; UTC if it names no time zone."
    )


class ImageQuery(Query):
    """In which form to send an image."""

    original: bool = Field(default=False, description="Send the file itself, not a picture for a browser.")


class ReviewRequest(Query):
    """What a reviewer says about a prediction."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"answer": "agree", "comment": "clear"}]})

    answer: ReviewAnswer | None = Field(
        default=None,
        description="agree, disagree, cannot_tell, comment (only a comment), or withdrawn: what this reviewer said "
        "before does not count. May be omitted where `agrees` is given.",
    )
    agrees: bool | None = Field(
        default=None, description="Whether the decision is right; null for other answers. May be omitted with `answer`."
    )
    label: str | None = Field(
        default=None,
        max_length=200,
        description="The class that the reviewer sees. May be omitted if the decision is one of two classes.",
    )
    comment: str = Field(default="", max_length=2000, pattern=NO_NUL)
    reviewer: str = Field(
        default="",
        max_length=100,
        pattern=NO_NUL,
        description="Their name. Omit it with a login or a token of one's own: those have one.",
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.answer is None and self.agrees is not None:
            self.answer = "agree" if self.agrees else "disagree"
        if self.answer is None:
            raise ValueError("say `answer`, or whether the reviewer `agrees`")
        agrees = _AGREES.get(self.answer)
        if self.agrees not in (None, agrees):
            raise ValueError(f"`agrees` contradicts the answer {self.answer}")
        if self.answer == "comment" and not self.comment.strip():
            raise ValueError("a `comment` alone must not be empty")
        self.agrees = agrees
        return self


class ReviewMessage(Answer):
    """A review as it is stored."""

    number: int = Field(description="Identifies it; later reviews have larger numbers.")
    prediction_id: str
    answer: ReviewAnswer
    agrees: bool | None
    label: str | None = Field(description="The class that the reviewer sees; null if they name none.")
    comment: str
    reviewer: str
    verified: bool = Field(description="Whether that name comes from a login or a token, and was not typed.")
    created_at: Moment = Field(description="UTC.")


class ImageReviewMessage(ReviewMessage):
    """A review of any prediction of a file, with what was reviewed."""

    model: str = Field(description="The name of the model that had predicted.")
    fingerprint: str = Field(description="The fingerprint of that model.")
    decision: str = Field(description="What it had decided.")


class Heatmap(Answer):
    """Where on the image the evidence for a class lies."""

    label: str = Field(description="The class that yellow supports.")
    logit: float = Field(description="Its logit: the mean of the map plus the bias.")
    bias: float = Field(description="The part of the logit that is not tied to a place in the image.")
    limit: float = Field(
        description="The evidence at the ends of the colour scale, in logits: the same for all images."
    )
    cell_height: float = Field(description="Of a cell, which has one value, in pixels of the image.")
    cell_width: float = Field(description="Of a cell, in pixels of the image.")
    png: str = Field(description="A PNG in Base64: colours to lay over the image, in the same proportions.")


class PredictionMessage(Answer):
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
    explanation: str | None = Field(default=None, description="The rule that gave the decision, with its numbers.")
    uncertain_range: tuple[float, float] | None = Field(
        default=None,
        description="The probabilities of the positive class between which the model is uncertain about such images; "
        "null for more than two classes, or without prediction sets.",
    )
    width: int | None = Field(default=None, description="Of the image, in pixels.")
    height: int | None = Field(default=None, description="Of the image, in pixels.")
    format: str | None = Field(default=None, description="Of the file.")
    error: str | None = Field(default=None, description="Why there is no prediction, and what to do about it.")
    code: str | None = Field(default=None, description="The code of that problem, as in problem documents.")
    href: str | None = Field(default=None, description="Its address, relative to /v1/; null if it is not stored.")
    image_kept: bool = Field(default=False, description="Whether its file is kept: see its address and /image.")
    reused: bool = Field(default=False, description="Whether it was stored before this request; see `reuse`.")
    withheld: bool = Field(
        default=False, description="Whether the model's answer is withheld until the caller has committed a reading."
    )
    heatmap: Heatmap | None = Field(
        default=None, description="If requested; null if out of distribution, where it would mean nothing."
    )
    picture: str | None = Field(
        default=None,
        description="Base64: the image, if requested, as a grey PNG of its stored levels without a window. Its text "
        "`pneumoscope` (iTXt) says in JSON how to display them.",
    )
    reviews: list[ReviewMessage] = Field(default=[], description="The latest three, the oldest of them first.")
    review_count: int = Field(default=0, description="How many reviews there are; see its address and /reviews.")
    image_reviews: list[ImageReviewMessage] = Field(
        default=[], description="The latest ten of all predictions of this file, by any model, the oldest first."
    )

    @model_validator(mode="after")
    def _withhold(self) -> Self:
        if self.decision == OUT_OF_DISTRIBUTION:
            self.predicted_label = self.probability = self.heatmap = None
            self.probabilities, self.prediction_set = {}, []
        return self


class PredictionsMessage(Answer):
    """Predictions for a request's files, in their order."""

    predictions: list[PredictionMessage]


class PageMessage(Answer):
    """What the pages of all lists have."""

    next: str | None = Field(
        description="The cursor of the next page; null on the last. It is in `Link`, too. A page may have fewer "
        "entries than `limit`, or none, and still have a next one: some filters search 10,000 predictions a page."
    )


class PredictionPage(PageMessage):
    """Stored predictions, the newest first."""

    predictions: list[PredictionMessage]


class ReviewPage(PageMessage):
    """Reviews of a prediction, the newest first."""

    reviews: list[ReviewMessage]


class StudyMessage(Answer):
    """A study whose images have been predicted; images without a StudyInstanceUID are grouped by patient."""

    study_uid: str | None
    patient: str | None = Field(description="A pseudonym, which holds in this database only.")
    accession_number: str | None
    date: str | None = Field(description="Of the study, as YYYY-MM-DD.")
    predictions: int
    reviewed: int = Field(description="How many of them have a review.")
    decisions: dict[str, int] = Field(description="How many of them have which decision.")
    first_at: Moment = Field(description="When its first prediction was made; UTC.")
    last_at: Moment = Field(description="When its latest prediction was made; UTC.")
    href: str = Field(description="The address of its predictions, relative to /v1/.")


class StudyPage(PageMessage):
    """Studies; those that came last are first. Later images don't change a study's place."""

    studies: list[StudyMessage]


class FileProblem(Answer):
    """Why one file of a request has no prediction."""

    name: str
    code: str
    detail: str


class FieldProblem(Answer):
    """A parameter or field that is not valid."""

    where: str
    what: str


class ProblemMessage(BaseModel):
    """Why a request could not be answered, and what to change (RFC 9457)."""

    type: str = Field(description="Identifies the kind of problem: an address that describes it.")
    title: str = Field(description="The kind of problem in words.")
    status: int
    detail: str = Field(description="What was found, and what to do about it.")
    code: str | None = Field(default=None, description="The kind of problem, for programs; all are on the page /docs.")
    errors: list[FieldProblem] = Field(default=[], description="Parameters and fields that are not valid.")
    files: list[FileProblem] = Field(default=[], description="The files that cannot be predicted, if none can.")


class JobMessage(Answer):
    """Files that are predicted while the caller does not wait."""

    id: str
    href: str = Field(description="Its address, relative to /v1/.")
    state: Literal["waiting", "running", "done", "failed", "lost"] = Field(
        description="Lost: the service ended before; send the files again."
    )
    files: int
    created_at: Moment = Field(description="UTC.")
    finished_at: Moment | None = Field(description="UTC; null if it is not finished.")
    callback_state: Literal["due", "sent", "failed"] | None = Field(
        default=None, description="Whether the callback address was called; null if there is none."
    )
    predictions: list[PredictionMessage] | None = Field(
        default=None, description="In the order of the files, once it is done."
    )
    problem: ProblemMessage | None = Field(default=None, description="Why it has failed or is lost.")


class ModelMessage(Answer):
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
    intended_population: str = Field(description="Ages, views and modalities it is meant for; empty if it says none.")


class ExampleMessage(Answer):
    """A simulated image to try the service with."""

    number: int
    label: str
    simulated: bool


class HealthMessage(Answer):
    """The process is alive."""

    status: Literal["ok"]


class ReadyMessage(Answer):
    """Images can be predicted and the database answers."""

    status: Literal["ready"]
    model: str
