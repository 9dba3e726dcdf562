"""Pages of stored predictions and reviews, and the deletion of a prediction."""

from __future__ import annotations

import base64
import datetime
import re
from collections.abc import Callable, Sequence
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
LOOKED_AT = 10_000  # predictions for one page, where no index finds those that are wanted
_PART = 400  # of them at a time: for many more, PostgreSQL would read whole tables
_BEYOND = 2**31 - 1  # the largest number that the database can store


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
    return min(int(plain), _BEYOND)


def cut(rows: Sequence[T], limit: int) -> tuple[Sequence[T], T | None]:
    """The entries of a page from one more than its limit, and the last of them if there are more."""
    return rows[:limit], rows[limit - 1] if len(rows) > limit else None


def list_predictions(store: Store, query: ListQuery, caller: Caller | None = None) -> Page[Reviewed]:
    """A page of the predictions that a query asks for, the newest first; second readings are those of the caller.

    What no index finds (reviews, or a moment with a model or decision) is looked for among `LOOKED_AT` predictions at
    most, so that a page takes a bounded time. It may then have fewer predictions than the limit, or none, although
    there is a next one.
    """
    conditions = _list_conditions(query)
    start = read_cursor(query.cursor) if query.cursor else None
    with store.begin() as session:
        of_reviews = query.reviewed is not None or query.second_reading or query.disagreement
        mixed = query.since is not None and not (query.model is None and query.decision is None)
        if not of_reviews and not mixed:
            found, rest = _select(session, query, conditions, start), None
        elif query.patient or query.study:  # which have few
            own = PredictionRecord.number
            everything = (own >= 0, own < (_BEYOND if start is None else start))
            found, rest = _select_reviewed(session, query, caller, conditions, everything, query.limit + 1), None
        else:
            found, rest = walk_back(
                session, PredictionRecord.number, start, query.limit + 1,
                lambda part, wanted: _select_reviewed(session, query, caller, conditions, part, wanted),
                _find_lowest(session, query.since),
            )  # fmt: skip
        records, last = cut(found, query.limit)
        entries = _add_reviews(session, records)
    following = rest if last is None else last.number
    return Page(entries, None if following is None else write_cursor(following))


def _find_lowest(session: Session, since: datetime.datetime | None) -> int:
    """A number below which no prediction was made since a moment; clocks of two machines may differ by a day."""
    if since is None:
        return 0
    own = PredictionRecord
    early = own.created_at >= to_utc(since) - datetime.timedelta(days=1)
    number = session.scalar(sql.select(own.number).where(early).order_by(own.created_at).limit(1))
    return _BEYOND if number is None else number


def _list_conditions(query: ListQuery) -> list[sql.ColumnElement[bool]]:
    own = PredictionRecord
    wanted = ((own.patient, query.patient), (own.study_uid, query.study))
    conditions: list[sql.ColumnElement[bool]] = [column == value for column, value in wanted if value is not None]
    if query.decision is not None:
        # With a model, the index of decisions would be the wrong one: PostgreSQL does not know that the predictions of
        # one model lie together, so that those of the others would be read first.
        column = own.decision if query.model is None else sql.func.coalesce(own.decision, "")
        conditions.append(column == query.decision)
    if query.since is not None:
        conditions.append(own.created_at >= to_utc(query.since))
    return conditions


def _select(
    session: Session, query: ListQuery, conditions: Sequence[sql.ColumnElement[bool]], start: int | None
) -> Sequence[PredictionRecord]:
    """The rows of a page and one more, for filters that do not depend on reviews; each has an index for this order."""
    own, count = PredictionRecord, query.limit + 1
    if start is not None:
        conditions = [*conditions, own.number < start]
    if query.model is not None:  # a name or a fingerprint: of each as many as needed, by its own index
        parts = [
            sql.select(own.number).where(*conditions, column == query.model).order_by(own.number.desc()).limit(count)
            for column in (own.model, own.fingerprint)
        ]
        numbers = sql.union(*(sql.select(part.subquery().c.number) for part in parts))
        conditions = [own.number.in_(numbers)]
    return session.scalars(sql.select(own).where(*conditions).order_by(own.number.desc()).limit(count)).all()


def _select_reviewed(
    session: Session,
    query: ListQuery,
    caller: Caller | None,
    conditions: Sequence[sql.ColumnElement[bool]],
    part: Sequence[sql.ColumnElement[bool]],
    count: int,
) -> Sequence[PredictionRecord]:
    """Predictions of a part that a query asks for, by their reviews, too."""
    own = PredictionRecord
    conditions = [*conditions, *part]
    if query.model is not None:
        conditions.append(sql.or_(own.model == query.model, own.fingerprint == query.model))
    files: Any = sql.select(own.sha256).where(*conditions).correlate(None)
    if query.reviewed is not None:
        has = sql.exists().where(Review.prediction_id == own.id)
        conditions.append(has if query.reviewed else ~has)
    if query.second_reading:
        named = caller is not None and caller.named
        name = caller.name if caller is not None and named else query.reader
        conditions.append(needs_second_reading(name, named, files))
    if query.disagreement:
        conditions.append(is_disputed(files))
    return session.scalars(sql.select(own).where(*conditions).order_by(own.number.desc()).limit(count)).all()


def walk_back(
    session: Session,
    column: sql.orm.InstrumentedAttribute[int],
    start: int | None,
    count: int,
    select: Callable[[Sequence[sql.ColumnElement[bool]], int], Sequence[T]],
    lowest: int = 0,
) -> tuple[list[T], int | None]:
    """Look for rows from the newest to the oldest, part by part, until there are enough or `LOOKED_AT` were looked at.

    Args:
        session: of the database.
        column: the number of the rows.
        start: only those with a lower number.
        count: of rows that are wanted.
        select: gives rows of a part, the newest first: from the conditions of the part, and how many at most.
        lowest: no row below this number is wanted.

    Returns:
        What was found, and below which number others may be; None: nowhere.
    """
    ends: Any = session.execute(sql.select(sql.func.min(column), sql.func.max(column))).one()
    first, last = ends
    found: list[T] = []
    if first is None:
        return found, None
    first = max(first, lowest)
    top = min(last + 1, _BEYOND if start is None else start)
    end = max(first, top - LOOKED_AT)
    while top > end and len(found) < count:
        low = max(end, top - _PART)
        found += select((column >= low, column < top), count - len(found))
        top = low
    return found, top if top > first else None


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
        reviews, last = cut(session.scalars(statement.limit(query.limit + 1)).all(), query.limit)
    return Page(reviews, None if last is None else write_cursor(last.number))


def find_review(store: Store, prediction_id: str, number: int) -> Review | None:
    """A review of a prediction; None where there is none."""
    with store.begin() as session:
        review = session.get(Review, number)
        return review if review is not None and review.prediction_id == prediction_id else None


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
