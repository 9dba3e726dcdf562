"""Pages of stored predictions, studies and reviews, and the deletion of a prediction."""

from __future__ import annotations

import base64
import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import sqlalchemy as sql
from sqlalchemy.orm import Session

from pneumoscope.images.read import Reading
from pneumoscope.server.access.callers import Caller
from pneumoscope.server.messages.predictions import ListQuery, PageQuery
from pneumoscope.server.problems import RequestError
from pneumoscope.server.storage.audit import Actor
from pneumoscope.server.storage.second_readings import is_disputed, needs_second_reading
from pneumoscope.server.storage.store import PredictionRecord, Review, Store

T = TypeVar("T")
SHOWN_REVIEWS = 3  # of a prediction, in lists


@dataclass(frozen=True)
class Page(Generic[T]):
    """A part of a list, and where the next one begins; None on the last."""

    entries: Sequence[T]
    next: str | None


@dataclass(frozen=True)
class Reviewed:
    """A stored prediction with its latest reviews, the oldest of them first, and the number of all."""

    record: PredictionRecord
    reviews: list[Review] = field(default_factory=list)
    review_count: int = 0


@dataclass(frozen=True)
class Key:
    """What predictions of the same file by the same model, read in the same way, have in common."""

    sha256: str
    fingerprint: str
    reading: Reading


@dataclass(frozen=True)
class Study:
    """What is stored of a study; of images without a StudyInstanceUID, of a patient."""

    study_uid: str | None
    patient: str | None
    accession_number: str | None
    date: str | None
    predictions: int
    reviewed: int
    decisions: dict[str, int]
    first_at: datetime.datetime
    last_at: datetime.datetime


def write_cursor(number: int) -> str:
    """Where a page begins, as a word that callers only pass on."""
    return base64.urlsafe_b64encode(str(number).encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> int:
    """The number that a cursor names.

    Raises:
        RequestError: 422, it is none.
    """
    try:
        plain = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True).decode()
        if not re.fullmatch("[0-9]{1,18}", plain, re.ASCII):
            raise ValueError
    except ValueError:  # of Base64, too
        raise RequestError(
            422, "cursor: not one of this service. Begin without it, and then pass on `next` of each page.",
            code="cursor-invalid",
        ) from None  # fmt: skip
    return int(plain)


def _cut(rows: Sequence[T], limit: int) -> tuple[Sequence[T], T | None]:
    """The entries of a page from one more than its limit, and the last of them if there are more."""
    return rows[:limit], rows[limit - 1] if len(rows) > limit else None


def list_predictions(store: Store, query: ListQuery, caller: Caller | None = None) -> Page[Reviewed]:
    """A page of the predictions that a query asks for, the newest first; second readings are those of the caller."""
    own = PredictionRecord
    conditions: list[sql.ColumnElement[bool]] = []
    for column, value in ((own.patient, query.patient), (own.study_uid, query.study), (own.decision, query.decision)):
        if value is not None:
            conditions.append(column == value)
    if query.model is not None:
        conditions.append(sql.or_(own.model == query.model, own.fingerprint == query.model))
    if query.since is not None:
        conditions.append(own.created_at >= to_utc(query.since))
    if query.reviewed is not None:
        has = sql.exists().where(Review.prediction_id == own.id)
        conditions.append(has if query.reviewed else ~has)
    if query.second_reading:
        named = caller is not None and caller.named
        name = caller.name if caller is not None and named else query.reader
        conditions.append(needs_second_reading(name, named))
    if query.disagreement:
        conditions.append(is_disputed())
    if query.cursor:
        conditions.append(own.number < read_cursor(query.cursor))
    statement = sql.select(own).where(*conditions).order_by(own.number.desc())
    with store.begin() as session:
        records, last = _cut(session.scalars(statement.limit(query.limit + 1)).all(), query.limit)
        found = _add_reviews(session, records)
    return Page(found, None if last is None else write_cursor(last.number))


def find_prediction(store: Store, prediction_id: str) -> Reviewed | None:
    """The prediction with an id, with its latest reviews; None where there is none."""
    with store.begin() as session:
        record = session.scalar(sql.select(PredictionRecord).where(PredictionRecord.id == prediction_id))
        return None if record is None else _add_reviews(session, [record])[0]


def find_same(store: Store, keys: Sequence[Key], since: float = 0) -> dict[Key, Reviewed]:
    """The latest prediction of each key that has one; `since`: of those stored then, in seconds since 1970."""
    earliest = datetime.datetime.fromtimestamp(since, datetime.UTC).replace(tzinfo=None)
    own, found = PredictionRecord, {}
    with store.begin() as session:
        for key in keys:
            same = (
                own.sha256 == key.sha256,
                own.fingerprint == key.fingerprint,
                own.invert == key.reading.invert,
                own.any_modality == key.reading.any_modality,
                own.created_at >= earliest,
            )
            statement = sql.select(own).where(*same).order_by(own.number.desc()).limit(1)
            if (record := session.scalars(statement).first()) is not None:
                found[key] = _add_reviews(session, [record])[0]
    return found


def _add_reviews(session: Session, records: Sequence[PredictionRecord]) -> list[Reviewed]:
    """Add the latest few reviews of each prediction: one may have tens of thousands."""
    ids = [record.id for record in records]
    rank = sql.func.row_number().over(partition_by=Review.prediction_id, order_by=Review.number.desc()).label("rank")
    count = sql.func.count().over(partition_by=Review.prediction_id).label("count")
    ranked = sql.select(Review.number, count, rank).where(Review.prediction_id.in_(ids)).subquery()
    statement = (
        sql.select(Review, ranked.c.count)
        .join(ranked, ranked.c.number == Review.number)
        .where(ranked.c.rank <= SHOWN_REVIEWS)
        .order_by(Review.number)
    )
    reviews: dict[str, list[Review]] = {}
    counts: dict[str, int] = {}
    for review, number in session.execute(statement) if ids else ():
        reviews.setdefault(review.prediction_id, []).append(review)
        counts[review.prediction_id] = number
    return [Reviewed(each, reviews.get(each.id, []), counts.get(each.id, 0)) for each in records]


def list_reviews(store: Store, prediction_id: str, query: PageQuery) -> Page[Review] | None:
    """A page of a prediction's reviews, the newest first; None where there is no such prediction."""
    statement = sql.select(Review).where(Review.prediction_id == prediction_id).order_by(Review.number.desc())
    if query.cursor:
        statement = statement.where(Review.number < read_cursor(query.cursor))
    with store.begin() as session:
        if session.scalar(sql.select(PredictionRecord.id).where(PredictionRecord.id == prediction_id)) is None:
            return None
        reviews, last = _cut(session.scalars(statement.limit(query.limit + 1)).all(), query.limit)
    return Page(reviews, None if last is None else write_cursor(last.number))


def find_review(store: Store, prediction_id: str, number: int) -> Review | None:
    """A review of a prediction; None where there is none."""
    with store.begin() as session:
        review = session.get(Review, number)
        return review if review is not None and review.prediction_id == prediction_id else None


def list_studies(store: Store, query: PageQuery) -> Page[Study]:
    """A page of the studies, and of the patients of images that name none; the newest by its first prediction first."""
    own = PredictionRecord
    # PostgreSQL compares the text of what is grouped by, so it must hold no parameters.
    key = sql.func.coalesce(own.study_uid, sql.literal_column("'patient '") + own.patient).label("key")
    first = sql.func.min(own.number)  # so that later images of a study don't move it
    moments = (sql.func.min(own.created_at).label("first_at"), sql.func.max(own.created_at).label("last_at"))
    known = sql.or_(own.study_uid.is_not(None), own.patient != "")
    statement = sql.select(key, first.label("first"), *moments).where(known).group_by(key).order_by(first.desc())
    if query.cursor:
        statement = statement.having(first < read_cursor(query.cursor))
    with store.begin() as session:
        rows, more = _cut(session.execute(statement.limit(query.limit + 1)).all(), query.limit)
        has = sql.exists().where(Review.prediction_id == own.id)
        columns = (own.study_uid, own.patient, own.accession_number, own.date, own.decision, has.label("reviewed"))
        of_page = sql.select(key, *columns).where(key.in_([row.key for row in rows])).order_by(own.number)
        images: dict[str, list[Any]] = {}
        for image in session.execute(of_page):
            images.setdefault(image.key, []).append(image)
    studies = [_describe_study(images[row.key], row.first_at, row.last_at) for row in rows]
    return Page(studies, None if more is None else write_cursor(more.first))


def _describe_study(images: Sequence[Any], first: datetime.datetime, last: datetime.datetime) -> Study:
    decisions: dict[str, int] = {}
    for image in images:
        decisions[image.decision] = decisions.get(image.decision, 0) + 1

    def find(name: str) -> Any:
        return next((value for image in reversed(images) if (value := getattr(image, name))), None)

    return Study(
        study_uid=images[0].study_uid,
        patient=find("patient"),
        accession_number=find("accession_number"),
        date=find("date") if images[0].study_uid else None,  # a patient's images may be of several
        predictions=len(images),
        reviewed=sum(image.reviewed for image in images),
        decisions=decisions,
        first_at=first,
        last_at=last,
    )


def delete_prediction(store: Store, prediction_id: str, actor: Actor) -> tuple[str, bool] | None:
    """Delete a prediction and its reviews, and log who did.

    Returns:
        The SHA-256 of its file, and whether another prediction has the same file; None where there is no such
        prediction.
    """
    own = PredictionRecord
    with store.begin() as session:
        columns = (own.sha256, own.patient, own.study_uid)
        found = session.execute(sql.select(*columns).where(own.id == prediction_id)).first()
    if found is None:
        return None
    entry = actor.to_entry(
        "delete", status=204, count=1, prediction_id=prediction_id, patient=found.patient or None,
        study=store.pseudonymise_study(found.study_uid),
    )  # fmt: skip
    if store.delete([prediction_id], [entry])[0] == 0:
        return None
    return found.sha256, found.sha256 in store.find_used([found.sha256])


def to_utc(moment: datetime.datetime) -> datetime.datetime:
    """A moment as the database keeps it."""
    try:
        return moment.astimezone(datetime.UTC).replace(tzinfo=None) if moment.tzinfo else moment
    except OverflowError:  # near the years 1 and 9999
        return moment.replace(tzinfo=None)
