"""Readings in the database: committed once, never changed, listed by page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import IntegrityError

from pneumoscope.server.messages.readings import ReadingQuery, ReadingRequest
from pneumoscope.server.problems import RequestError
from pneumoscope.server.storage.queries import Page, read_cursor, write_cursor
from pneumoscope.server.storage.store import READINGS, PredictionRecord, Review, Store, now

_OWN = READINGS.c
_COLUMNS = (*READINGS.columns, PredictionRecord.sha256)


@dataclass(frozen=True)
class Committed:
    """A stored reading, and whether it was stored before because its request was sent again."""

    row: Any
    repeated: bool


def commit(
    store: Store, prediction: PredictionRecord, request: ReadingRequest, labels: Sequence[str], truth: str | None = None
) -> Committed:
    """Store a reading; when this returns, it is on disk.

    Args:
        store: the database.
        prediction: of the image that was read.
        request: the reading; `with_ai` says which one it is meant to be.
        labels: the classes that may be named.
        truth: where it is known.

    Raises:
        RequestError: 422, an unknown class, or a confidence without one; 409, the reader has read the image before,
            or not yet.
    """
    if request.label is not None and request.label not in labels:
        detail = f"label {request.label!r}: unknown class. The classes are {', '.join(labels)}; null: cannot tell."
        raise RequestError(422, detail, code="reading-invalid")
    if request.label is None and request.confidence is not None:
        detail = "Confidence belongs to a class. Omit it if you cannot tell."
        raise RequestError(422, detail, code="reading-invalid")
    with _writing(store) as connection:
        earlier = _list_of_file(connection, prediction.sha256, request.reader)
        if not request.with_ai and earlier:
            first = earlier[0]
            if _is_same(first, request):
                return Committed(first, repeated=True)
            raise RequestError(
                409, "You have read this image before; that cannot be changed. Send with_ai=true for a later reading.",
                code="reading-committed",
            )  # fmt: skip
        reviewed = not earlier and _has_reviewed(connection, prediction.sha256, request.reader)
        if not request.with_ai and reviewed:
            detail = "You have reviewed this image with the model's answer, so it cannot be read without it any more."
            raise RequestError(409, detail, code="reading-committed")
        if request.with_ai and not (earlier or reviewed):
            detail = "Commit a reading without the model's answer first: with_ai=false."
            raise RequestError(409, detail, code="reading-missing")
        sequence = 1 + sum(each.prediction_id == prediction.id for each in earlier)
        values = request.model_dump() | {
            "prediction_id": prediction.id, "sequence": sequence, "truth": truth, "created_at": now(),
        }  # fmt: skip
        number = connection.execute(sql.insert(READINGS).values(values).returning(_OWN.number)).scalar_one()
        row = connection.execute(_select().where(_OWN.number == number)).one()
    return Committed(row, repeated=False)


@contextmanager
def _writing(store: Store) -> Iterator[sql.Connection]:
    try:
        with store.read() as connection:
            yield connection
    except IntegrityError:  # another request was first
        detail = "Another request has read or deleted this image at the same time. List your readings."
        raise RequestError(409, detail) from None


def find_read(store: Store, reader: str, digests: Iterable[str]) -> set[str]:
    """Those of these files (SHA-256) that a reader has read, or has reviewed, so that they know the model's answer."""
    wanted = sorted(set(digests))
    if not wanted:
        return set()
    found: set[str] = set()
    with store.read() as connection:
        for start in range(0, len(wanted), 500):  # databases limit the parameters of a query
            some = PredictionRecord.sha256.in_(wanted[start : start + 500])
            reviewed = sql.select(PredictionRecord.sha256).join_from(Review, PredictionRecord)
            found.update(connection.scalars(_select(PredictionRecord.sha256).where(_OWN.reader == reader, some)))
            counting = (Review.reviewer == reader, Review.answer != "comment", some)
            found.update(connection.scalars(reviewed.where(*counting)))
    return found


def list_readings(store: Store, query: ReadingQuery) -> Page[Any]:
    """A page of readings, the newest first."""
    wanted = (
        (_OWN.prediction_id, query.prediction),
        (PredictionRecord.sha256, query.sha256),
        (_OWN.reader, query.reader),
    )
    statement = _select().where(*(column == value for column, value in wanted if value is not None))
    if query.cursor:
        statement = statement.where(_OWN.number < read_cursor(query.cursor))
    with store.read() as connection:
        rows = connection.execute(statement.order_by(_OWN.number.desc()).limit(query.limit + 1)).all()
    page = rows[: query.limit]
    return Page(page, write_cursor(page[-1].number) if len(rows) > query.limit else None)


def list_all(store: Store) -> Sequence[Any]:
    """All readings with what the model said, the oldest first."""
    said = ("patient", "model", "fingerprint", "decision", "predicted_label", "probability", "probabilities")
    query = _select(*_COLUMNS, *(getattr(PredictionRecord, name) for name in said))
    return list(store.iterate(query, _OWN.number))[::-1]


def _select(*columns: Any) -> sql.Select[Any]:
    joined = sql.join(READINGS, PredictionRecord.__table__, _OWN.prediction_id == PredictionRecord.id)
    return sql.select(*(columns or _COLUMNS)).select_from(joined)


def _list_of_file(connection: sql.Connection, sha256: str, reader: str) -> Sequence[Any]:
    query = _select().where(PredictionRecord.sha256 == sha256, _OWN.reader == reader).order_by(_OWN.number)
    return connection.execute(query).all()


def _has_reviewed(connection: sql.Connection, sha256: str, reader: str) -> bool:
    query = (
        sql.select(Review.number)
        .join_from(Review, PredictionRecord)
        .where(PredictionRecord.sha256 == sha256, Review.reviewer == reader, Review.answer != "comment")
    )
    return connection.execute(query.limit(1)).first() is not None


def _is_same(row: Any, request: ReadingRequest) -> bool:
    return (row.label, row.confidence, row.comment) == (request.label, request.confidence, request.comment)
