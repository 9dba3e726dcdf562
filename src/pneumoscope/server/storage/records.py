"""The tables of the reading room's database, as SQLAlchemy maps them."""

from __future__ import annotations

import datetime
import uuid
from typing import Any, ClassVar

import sqlalchemy as sql
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column, relationship

from pneumoscope.server.storage.reading_rows import define_readings


def now() -> datetime.datetime:
    """This moment as the database keeps it: UTC, without a time zone."""
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)


def find_start(days: int) -> datetime.datetime:
    """When the period of some days, today (UTC) included, begins."""
    return datetime.datetime.combine(now().date(), datetime.time()) - datetime.timedelta(days=days - 1)


class Base(MappedAsDataclass, DeclarativeBase, kw_only=True):
    """What all tables share."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {list[str]: sql.JSON, dict[str, float]: sql.JSON}


class Property(Base):
    """A property of the database itself: the secret behind its pseudonyms, and a version for earlier versions."""

    __tablename__ = "properties"

    key: Mapped[str] = mapped_column(sql.String(40), primary_key=True)
    value: Mapped[str] = mapped_column(sql.Text)


class Review(Base):
    """What a reviewer says about a prediction.

    Attributes:
        answer: `agree`, `disagree`, `cannot_tell`, `comment` alone, or `withdrawn`: what the reviewer said before does
            not count.
        agrees: None where the answer is neither of the first two.
        label: None where they name no class.
        verified: whether the name comes from a login or a token of their own.
    """

    __tablename__ = "reviews"

    prediction_id: Mapped[str] = mapped_column(sql.ForeignKey("predictions.id"), index=True)
    answer: Mapped[str] = mapped_column(sql.String(16), default="")
    agrees: Mapped[bool | None] = mapped_column(default=None)
    label: Mapped[str | None] = mapped_column(sql.Text, default=None)
    comment: Mapped[str] = mapped_column(sql.Text, default="")
    reviewer: Mapped[str] = mapped_column(sql.Text, default="")
    verified: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime.datetime] = mapped_column(default_factory=now, index=True)
    number: Mapped[int] = mapped_column(primary_key=True, init=False)

    def __post_init__(self) -> None:
        if not self.answer:
            self.answer = {True: "agree", False: "disagree", None: "comment"}[self.agrees]


class PredictionRecord(Base):
    """One prediction as the service keeps it; fields not listed are those of `inference.Prediction`.

    Attributes:
        name: of the file, without folders; empty where names are not kept.
        patient: a pseudonym that only this database gives to a patient; empty where none is known.
        fingerprint: of the model.
        probabilities: of every class, even if out of distribution, because monitoring needs them.
        group: None where none decided, and for predictions stored before the database had this column.
        accession_number: None where unknown or not kept, like the UIDs, and for older predictions like age, sex, view,
            laterality and date.
        id: nobody can guess it.
        number: rises with each one stored, whatever the clock says.
        created_at: when, UTC.
        reviews: the oldest first.
    """

    __tablename__ = "predictions"
    __table_args__ = (
        sql.UniqueConstraint("id", name="predictions_id_key"),
        # Each with the number: lists are read backwards from where a page begins, and end with the page.
        sql.Index("ix_predictions_patient_number", "patient", "number"),
        sql.Index("ix_predictions_study_uid_number", "study_uid", "number"),
        sql.Index("ix_predictions_decision_number", "decision", "number"),
        sql.Index("ix_predictions_model_number", "model", "number"),
        sql.Index("ix_predictions_fingerprint_number", "fingerprint", "number"),
        {"sqlite_autoincrement": True},
    )

    sha256: Mapped[str] = mapped_column(sql.String(64), index=True)
    name: Mapped[str] = mapped_column(sql.Text)
    patient: Mapped[str] = mapped_column(sql.String(16))
    model: Mapped[str] = mapped_column(sql.Text)
    fingerprint: Mapped[str] = mapped_column(sql.String(64))
    decision: Mapped[str] = mapped_column(sql.Text)
    predicted_label: Mapped[str] = mapped_column(sql.Text)
    probability: Mapped[float | None] = mapped_column(sql.Double)
    probabilities: Mapped[dict[str, float]]
    prediction_set: Mapped[list[str]]
    ood_score: Mapped[float | None] = mapped_column(sql.Double)
    warnings: Mapped[list[str]]
    width: Mapped[int]
    height: Mapped[int]
    format: Mapped[str] = mapped_column(sql.String(16))
    invert: Mapped[bool] = mapped_column(default=False)
    any_modality: Mapped[bool] = mapped_column(default=False)
    group: Mapped[str | None] = mapped_column(sql.Text, default=None)
    age: Mapped[float | None] = mapped_column(sql.Double, default=None)
    sex: Mapped[str | None] = mapped_column(sql.Text, default=None)
    view: Mapped[str | None] = mapped_column(sql.Text, default=None)
    laterality: Mapped[str | None] = mapped_column(sql.Text, default=None)
    date: Mapped[str | None] = mapped_column(sql.Text, default=None)
    accession_number: Mapped[str | None] = mapped_column(sql.Text, default=None)
    study_uid: Mapped[str | None] = mapped_column(sql.Text, default=None)
    series_uid: Mapped[str | None] = mapped_column(sql.Text, default=None)
    sop_uid: Mapped[str | None] = mapped_column(sql.Text, default=None)
    id: Mapped[str] = mapped_column(sql.String(32), default_factory=lambda: uuid.uuid4().hex)
    created_at: Mapped[datetime.datetime] = mapped_column(default_factory=now, index=True)
    number: Mapped[int] = mapped_column(primary_key=True, init=False)
    reviews: Mapped[list[Review]] = relationship(default_factory=list, order_by=Review.number, lazy="raise")


class AuditEntry(Base):
    """Who did what, and to what; it names no file, and quotes no comment. The database refuses to change or delete it.

    Attributes:
        caller: their name; empty where nobody was let in.
        source: see `callers.Source`; `command` and `service` are commands of this machine, and the service itself.
        prediction_id: None where it is about none, or about several.
        patient: a pseudonym; None where it is unknown.
        study: a pseudonym of the Study Instance UID.
        count: of predictions that were shown or changed.
        status: the answer's, of HTTP.
        request: its id, as in the service's log.
        number: rises with each one stored.
    """

    __tablename__ = "audit"
    __table_args__ = (
        sql.Index("ix_audit_patient_number", "patient", "number"),
        sql.Index("ix_audit_prediction_id_number", "prediction_id", "number"),
        sql.Index("ix_audit_caller_number", "caller", "number"),
        sql.Index("ix_audit_action_number", "action", "number"),
        {"sqlite_autoincrement": True},
    )

    caller: Mapped[str] = mapped_column(sql.Text)
    role: Mapped[str] = mapped_column(sql.String(16))
    source: Mapped[str] = mapped_column(sql.String(16))
    address: Mapped[str] = mapped_column(sql.Text)
    action: Mapped[str] = mapped_column(sql.String(32))
    at: Mapped[datetime.datetime] = mapped_column(default_factory=now, index=True)
    prediction_id: Mapped[str | None] = mapped_column(sql.String(32), default=None)
    patient: Mapped[str | None] = mapped_column(sql.String(16), default=None)
    study: Mapped[str | None] = mapped_column(sql.String(16), default=None)
    count: Mapped[int] = mapped_column(default=0)
    status: Mapped[int] = mapped_column(default=200)
    request: Mapped[str] = mapped_column(sql.String(64), default="")
    number: Mapped[int] = mapped_column(primary_key=True, init=False)


class AnsweredRequest(Base):
    """A request with an Idempotency-Key, and its answer once there is one.

    Attributes:
        key: a digest of who sent it, where to, and its key.
        request: a digest of what it asks for.
        began_at: in seconds since 1970.
        beat_at: when the service that executes it was last known to do so, likewise.
        status: of the answer; None while there is none.
        location: of what it made.
        content: the body of the answer.
    """

    __tablename__ = "answered_requests"

    key: Mapped[str] = mapped_column(sql.String(64), primary_key=True)
    request: Mapped[str] = mapped_column(sql.String(64))
    began_at: Mapped[float] = mapped_column(sql.Double, index=True)
    beat_at: Mapped[float] = mapped_column(sql.Double, default=0.0, server_default="0")
    status: Mapped[int | None] = mapped_column(default=None)
    location: Mapped[str] = mapped_column(sql.Text, default="")
    content: Mapped[str] = mapped_column(sql.Text, default="")


class JobRecord(Base):
    """Files that are predicted while the caller does not wait.

    Attributes:
        id: nobody can guess it.
        state: `waiting`, `running`, `done`, `failed` or `lost`.
        files: how many there are.
        beat_at: when the service that has the files was last known to live, in seconds since 1970.
        created_at: when, UTC.
        finished_at: when, UTC.
        content: the predictions, or the problem document.
        callback: the address that is called when it is finished.
        callback_state: empty where there is no address, else `due`, `sent` or `failed`.
        callback_attempts: how often it has been called.
        callback_due_at: when it is called next, in seconds since 1970.
    """

    __tablename__ = "jobs"
    __table_args__ = (sql.UniqueConstraint("id", name="jobs_id_key"), {"sqlite_autoincrement": True})

    state: Mapped[str] = mapped_column(sql.String(16))
    files: Mapped[int]
    beat_at: Mapped[float] = mapped_column(sql.Double)
    callback: Mapped[str] = mapped_column(sql.Text, default="")
    callback_state: Mapped[str] = mapped_column(sql.String(16), default="")
    callback_attempts: Mapped[int] = mapped_column(default=0)
    callback_due_at: Mapped[float] = mapped_column(sql.Double, default=0.0)
    content: Mapped[str] = mapped_column(sql.Text, default="")
    id: Mapped[str] = mapped_column(sql.String(32), default_factory=lambda: uuid.uuid4().hex)
    created_at: Mapped[datetime.datetime] = mapped_column(default_factory=now, index=True)
    finished_at: Mapped[datetime.datetime | None] = mapped_column(default=None)
    number: Mapped[int] = mapped_column(primary_key=True, init=False)


class AnsweredPrediction(Base):
    """A prediction that the answer to a request, or a job, tells of; it goes with that answer.

    Attributes:
        prediction_id: every word of the answer that may be the id of a prediction, also of one that is gone.
        request_key: of the request; None where it is a job.
        job_number: of the job; None where it is a request.
    """

    __tablename__ = "answered_predictions"
    __table_args__ = ({"sqlite_autoincrement": True},)

    prediction_id: Mapped[str] = mapped_column(sql.String(32), index=True)
    request_key: Mapped[str | None] = mapped_column(
        sql.ForeignKey("answered_requests.key", ondelete="CASCADE"), default=None, index=True
    )
    job_number: Mapped[int | None] = mapped_column(
        sql.ForeignKey("jobs.number", ondelete="CASCADE"), default=None, index=True
    )
    number: Mapped[int] = mapped_column(primary_key=True, init=False)


class UnreadableFiles(Base):
    """How many files could not be read on a day (UTC), by the code of the problem; nothing else is kept of them."""

    __tablename__ = "unreadable_files"

    day: Mapped[str] = mapped_column(sql.String(10), primary_key=True)
    code: Mapped[str] = mapped_column(sql.String(40), primary_key=True)
    files: Mapped[int]


class ShadowPrediction(Base):
    """What a model other than the one that answered says of the same image; deleted with the prediction."""

    __tablename__ = "shadow_predictions"

    prediction_id: Mapped[str] = mapped_column(sql.ForeignKey("predictions.id", ondelete="CASCADE"), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(sql.String(64), primary_key=True)
    model: Mapped[str] = mapped_column(sql.Text)
    decision: Mapped[str] = mapped_column(sql.Text)
    predicted_label: Mapped[str] = mapped_column(sql.Text)
    probabilities: Mapped[dict[str, float]]
    ood_score: Mapped[float | None] = mapped_column(sql.Double)
    created_at: Mapped[datetime.datetime] = mapped_column(index=True)


READINGS = define_readings(Base.metadata)
