"""The reviews of a file from all its predictions, so that a file that comes again has its earlier reviews."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import sqlalchemy as sql

from pneumoscope.server.messages.predictions import ImageReviewMessage, PredictionMessage
from pneumoscope.server.storage.store import PredictionRecord, Review, Store

_MOST = 10  # of each file
_AT_ONCE = 500  # digests; databases limit the parameters of a query


def add_image_reviews(store: Store, predictions: Sequence[PredictionMessage]) -> None:
    """Give each prediction the reviews of its file, by its SHA-256.

    Raises:
        DataError: the database does not answer.
    """
    found = find_reviews(store, {each.sha256 for each in predictions if each.sha256})
    for each in predictions:
        each.image_reviews = found.get(each.sha256 or "", [])


def list_counting(reviews: Iterable[tuple[PredictionRecord, Review]]) -> list[tuple[PredictionRecord, Review]]:
    """The reviews that count, the oldest first: of each reviewer the latest of a decision on a file, unless withdrawn.

    A comment alone changes nothing.

    Args:
        reviews: with their predictions, in any order.
    """
    latest: dict[tuple[str | bool, ...], tuple[PredictionRecord, Review]] = {}
    for record, review in sorted(reviews, key=lambda pair: pair[1].number):
        if review.answer != "comment":
            key = (record.sha256, record.fingerprint, record.decision, review.reviewer, review.verified)
            latest.pop(key, None)
            latest[key] = (record, review)
    return [(record, review) for record, review in latest.values() if review.answer != "withdrawn"]


def find_reviews(store: Store, digests: Iterable[str]) -> dict[str, list[ImageReviewMessage]]:
    """The latest reviews of files, the oldest of them first, by the files' SHA-256.

    Raises:
        DataError: the database does not answer.
    """
    wanted = sorted(digests)
    found: dict[str, list[ImageReviewMessage]] = {}
    for start in range(0, len(wanted), _AT_ONCE):
        with store.read() as connection:
            for row in connection.execute(_make_query(), {"wanted": wanted[start : start + _AT_ONCE]}):
                found.setdefault(row.sha256, []).append(ImageReviewMessage.model_validate(row))
    return found


@cache
def _make_query() -> sql.Select[Any]:
    """The query is made once, because every upload needs it."""
    place = sql.func.row_number().over(partition_by=PredictionRecord.sha256, order_by=Review.number.desc())
    ranked = (
        sql.select(
            *(column for column in Review.__table__.columns),
            PredictionRecord.sha256,
            PredictionRecord.model,
            PredictionRecord.fingerprint,
            PredictionRecord.decision,
            place.label("place"),
        )
        .join_from(Review, PredictionRecord)
        .where(PredictionRecord.sha256.in_(sql.bindparam("wanted", expanding=True)))
        .subquery()
    )
    return sql.select(ranked).where(ranked.c.place <= _MOST).order_by(ranked.c.number)
