"""Pages of the studies of stored predictions."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql
from sqlalchemy.orm import Session, aliased

from pneumoscope.server.messages.predictions import PageQuery
from pneumoscope.server.storage.queries import Page, cut, read_cursor, walk_back, write_cursor
from pneumoscope.server.storage.store import PredictionRecord, Review, Store

_OWN = PredictionRecord
_LATEST = ("patient", "accession_number", "date")  # of which the latest that is known counts


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


def list_studies(store: Store, query: PageQuery) -> Page[Study]:
    """A page of the studies, and of the patients of images that name none; the newest by its first prediction first.

    Studies are found by their first predictions, so that later images do not move them. `queries.LOOKED_AT`
    predictions are looked at, at most: a page may have fewer studies than its limit although there is a next one.
    """
    start = read_cursor(query.cursor) if query.cursor else None

    with store.begin() as session:

        def select(part: Sequence[sql.ColumnElement[bool]], count: int) -> Sequence[Any]:
            columns = sql.select(_OWN.number, _OWN.study_uid, _OWN.patient)
            found = columns.where(*part, _is_first()).order_by(_OWN.number.desc()).limit(count)
            return session.execute(found).all()

        rows, rest = walk_back(session, _OWN.number, start, query.limit + 1, select)
        firsts, last = cut(rows, query.limit)
        studies = _describe(session, firsts)
    following = rest if last is None else last.number
    return Page(studies, None if following is None else write_cursor(following))


def _is_first() -> sql.ColumnElement[bool]:
    """A prediction is the first of its study or, without one, of its patient."""
    other = aliased(PredictionRecord)
    earlier = sql.exists().where(other.number < _OWN.number)
    of_study = sql.and_(_OWN.study_uid.is_not(None), ~earlier.where(other.study_uid == _OWN.study_uid))
    same = (other.patient == _OWN.patient, other.study_uid.is_(None))
    of_patient = sql.and_(_OWN.study_uid.is_(None), _OWN.patient != "", ~earlier.where(*same))
    return sql.or_(of_study, of_patient)


def _describe(session: Session, firsts: Sequence[Any]) -> list[Study]:
    found: dict[tuple[str | None, str | None], list[Any]] = {}
    uids = [row.study_uid for row in firsts if row.study_uid is not None]
    patients = [row.patient for row in firsts if row.study_uid is None]
    for key, condition in (
        (_OWN.study_uid, _OWN.study_uid.in_(uids)),
        (_OWN.patient, sql.and_(_OWN.patient.in_(patients), _OWN.study_uid.is_(None))),
    ):
        for row in session.execute(_summarise(key, condition)) if (uids if key is _OWN.study_uid else patients) else ():
            place = (row.key, None) if key is _OWN.study_uid else (None, row.key)
            found.setdefault(place, []).append(row)
    numbers = {getattr(row, name) for rows in found.values() for row in rows for name in _LATEST} - {None}
    columns = (_OWN.number, *(getattr(_OWN, name) for name in _LATEST))
    latest = {row.number: row for row in session.execute(sql.select(*columns).where(_OWN.number.in_(numbers)))}
    keys = [(row.study_uid, None) if row.study_uid is not None else (None, row.patient) for row in firsts]
    return [_to_study(key[0], found[key], latest) for key in keys if key in found]


def _summarise(key: sql.orm.InstrumentedAttribute[Any], condition: sql.ColumnElement[bool]) -> sql.Select[Any]:
    """By study and decision: how many predictions, how many with a review, and the latest that knows each fact."""
    has = sql.exists().where(Review.prediction_id == _OWN.id)
    known = [
        sql.func.max(sql.case((sql.and_(column.is_not(None), column != ""), _OWN.number))).label(name)
        for name in _LATEST
        for column in [getattr(_OWN, name)]
    ]
    return (
        sql.select(
            key.label("key"), _OWN.decision, sql.func.count().label("predictions"),
            sql.func.sum(sql.case((has, 1), else_=0)).label("reviewed"),
            sql.func.min(_OWN.created_at).label("first_at"),
            sql.func.max(_OWN.created_at).label("last_at"), sql.func.min(_OWN.number).label("first"), *known,
        )
        .where(condition)
        .group_by(key, _OWN.decision)
    )  # fmt: skip


def _to_study(uid: str | None, rows: Sequence[Any], latest: dict[int, Any]) -> Study:
    def find(name: str) -> Any:
        number = max((value for row in rows if (value := getattr(row, name)) is not None), default=None)
        known = None if number is None else latest.get(number)  # None also if it has been deleted meanwhile
        return None if known is None else getattr(known, name)

    return Study(
        study_uid=uid,
        patient=find("patient"),
        accession_number=find("accession_number"),
        date=find("date") if uid else None,  # a patient's images may be of several
        predictions=sum(row.predictions for row in rows),
        reviewed=sum(row.reviewed for row in rows),
        decisions={row.decision: row.predictions for row in sorted(rows, key=lambda row: row.first)},
        first_at=min(row.first_at for row in rows),
        last_at=max(row.last_at for row in rows),
    )
