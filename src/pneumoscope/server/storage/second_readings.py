"""Which predictions need another reader, and where readers disagree: conditions of queries.

As elsewhere, of each reader the latest review of a decision on a file counts, unless it is withdrawn; comments alone
do not count.
"""

from __future__ import annotations

import sqlalchemy as sql

from pneumoscope.server.storage.store import PredictionRecord, Review

_OWN = PredictionRecord


def needs_second_reading(reader: str, verified: bool, files: sql.Select[tuple[str]]) -> sql.ColumnElement[bool]:
    """Reviewed by one person, or a reader could not tell; and not reviewed by this reader.

    Args:
        reader: their name.
        verified: whether it comes from a login.
        files: selects the SHA-256 of the files among which to look; reviews of others are not read.
    """
    found = _summarise(reader, verified, files)
    return _matches(found, found.c.mine == 0, sql.or_(found.c.readers == 1, found.c.unsure > 0))


def is_disputed(files: sql.Select[tuple[str]]) -> sql.ColumnElement[bool]:
    """A reader disagrees with the model, or with another reader; `files` as for `needs_second_reading`."""
    found = _summarise("", False, files)
    return _matches(found, sql.or_(found.c.disagreeing > 0, found.c.labels > 1))


def _matches(found: sql.Subquery, *conditions: sql.ColumnElement[bool]) -> sql.ColumnElement[bool]:
    same = [found.c[name] == getattr(_OWN, name) for name in ("sha256", "fingerprint", "decision")]
    return sql.exists().where(*same, *conditions)


def _summarise(reader: str, verified: bool, files: sql.Select[tuple[str]]) -> sql.Subquery:
    """The reviews that count, by file, model and decision."""
    image = sql.orm.aliased(PredictionRecord)
    key = (image.sha256, image.fingerprint, image.decision)
    latest = (
        sql.select(*key, sql.func.max(Review.number).label("number"))
        .join_from(Review, image, Review.prediction_id == image.id)
        .where(Review.answer != "comment", image.sha256.in_(files))
        .group_by(*key, Review.reviewer, Review.verified)
        .subquery()
    )

    def count(condition: sql.ColumnElement[bool]) -> sql.ColumnElement[int]:
        return sql.func.sum(sql.case((condition, 1), else_=0))

    mine = sql.and_(Review.reviewer == reader, Review.verified == verified)
    columns = (latest.c.sha256, latest.c.fingerprint, latest.c.decision)
    return (
        sql.select(
            *columns,
            sql.func.count().label("readers"),
            count(mine).label("mine"),
            count(Review.answer == "cannot_tell").label("unsure"),
            count(Review.answer == "disagree").label("disagreeing"),
            sql.func.count(Review.label.distinct()).label("labels"),
        )
        .join_from(latest, Review, Review.number == latest.c.number)
        .where(Review.answer != "withdrawn")
        .group_by(*columns)
        .subquery()
    )
