"""Predictions and their reviews in a database: SQLite or PostgreSQL, through SQLAlchemy."""

from __future__ import annotations

import datetime
import logging
import re
import secrets
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from pneumoscope.datasets.pseudonyms import compute_pseudonym
from pneumoscope.errors import DataError
from pneumoscope.server.storage.databases import breaks_reference, closing_engine, explain, forget_deleted, opening
from pneumoscope.server.storage.pseudonym_keys import find_key, move_key
from pneumoscope.server.storage.records import (
    READINGS,
    AnsweredPrediction,
    AnsweredRequest,
    AuditEntry,
    Base,
    JobRecord,
    PredictionRecord,
    Property,
    Review,
    UnreadableFiles,
    now,
)
from pneumoscope.server.storage.schema import STORE_REVISION, Tables, locking, prepare

__all__ = [
    "READINGS",
    "AnsweredPrediction",
    "AnsweredRequest",
    "AuditEntry",
    "JobRecord",
    "PredictionRecord",
    "Review",
    "Store",
    "UnreadableFiles",
    "now",
]
_AT_ONCE = 500  # rows in one statement
_PAGE = 2000  # rows that are read at once
_DAYS = 31  # that are counted at once
DELETED = "deleted"  # the property that changes with each deletion
_ID = re.compile("(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")  # of a prediction, in an answer
_SOON = 2  # seconds for which checking waits for a lock or for the server
_logger = logging.getLogger("pneumoscope.server")
_FAULTS = {  # messages that everybody may see; others can name hosts, users and tables
    "database is locked": "another process has locked it",
    "database or disk is full": "it is full",
    "disk I/O error": "its disk does not work (I/O error)",
}
_TRIED = 16_384  # bytes that checking stores
TABLES = Tables(
    "the reading room", Base.metadata, Path(__file__).parent / "migrations", STORE_REVISION, Property.__tablename__
)
_OUTCOME = (
    PredictionRecord.number, PredictionRecord.sha256, PredictionRecord.fingerprint, PredictionRecord.decision,
    PredictionRecord.predicted_label, PredictionRecord.probabilities, PredictionRecord.ood_score,
    PredictionRecord.created_at, PredictionRecord.view, PredictionRecord.age, PredictionRecord.sex,
    PredictionRecord.group, PredictionRecord.format,
)  # fmt: skip

_LEFT_OUT = {"probabilities", "prediction_set", "warnings"}
_OF_REVIEWED = tuple(column for column in PredictionRecord.__table__.columns if column.name not in _LEFT_OUT)


class _ReviewRow(NamedTuple):
    """What is read of a review, beside its prediction."""

    prediction_id: str
    answer: str
    agrees: bool | None
    label: str | None
    comment: str
    reviewer: str
    verified: bool
    created_at: datetime.datetime
    number: int


class Store(AbstractContextManager["Store"]):
    """The database of a reading room; its methods may be called from several threads, and raise DataError on failure.

    Args:
        url: SQLAlchemy's URL, or the path of a SQLite file; None for the user's own file.
        create: whether to make a SQLite file that does not exist.
        upgrade: whether to bring the tables of an earlier version up to date.
        patience: seconds to wait for a lock; None for the driver's usual.

    Raises:
        UsageError: it does not exist, cannot be reached, is not a database of pneumoscope, or its key is missing.
        DataError: another version made it.
        MissingExtraError: its driver is not installed.
    """

    def __init__(
        self, url: str | None = None, create: bool = True, *, upgrade: bool = False, patience: float | None = None
    ) -> None:
        with opening(url) as database:
            self.location = database.location
            options: dict[str, Any] = {} if patience is None else {"timeout": patience}
            self._engine = database.connect(create, **options)
            self._impatient = database.connect(create, timeout=min(_SOON, patience or _SOON))
            self._active = self._engine
            try:
                if upgrade:
                    with closing_engine(database.connect(create, patient=True)) as engine:
                        prepare(engine, self.location, TABLES, upgrade=True)
                prepare(self._engine, self.location, TABLES)
                self._secret = find_key(self._engine, self.location)
            except BaseException:
                self.close()
                raise

    def pseudonymise(self, patient: str | None) -> str:
        """Give a patient's pseudonym: always the same for one patient, and of no use without this database."""
        return compute_pseudonym(self._secret, patient) if patient else ""

    def find_fault(self) -> str:
        """Say why nothing can be stored now, after a trial with a record of a prediction's size; empty if it can."""
        row = {"key": f"check-{secrets.token_hex(8)}", "value": "x" * _TRIED}
        try:
            with self._impatient.begin() as connection:
                if connection.dialect.name == "postgresql":
                    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_SOON}s'")
                connection.execute(sql.insert(Property), row)
                connection.execute(sql.delete(Property).where(Property.key == row["key"]))
        except (OSError, SQLAlchemyError) as problem:
            self._impatient.dispose()  # its connection may be cut
            reason = explain(problem)
            if reason in _FAULTS:
                return _FAULTS[reason]
            _logger.error("%s: nothing can be stored: %s", self.location, reason)
            return "the reason is in the service's log"
        return ""

    def pseudonymise_study(self, uid: str | None) -> str | None:
        """Give a study's pseudonym, for the audit log; None where it has no UID."""
        return compute_pseudonym(self._secret, f"study {uid}") if uid else None

    def add(self, records: Sequence[Base]) -> None:
        """Save all records in one transaction, or none; when this returns, they are on disk.

        Raises:
            IntegrityError: of SQLAlchemy; a review's prediction does not exist.
        """
        with self.begin() as session:
            session.add_all(records)

    def find_prediction(self, prediction_id: str) -> PredictionRecord | None:
        """The prediction with an id, without its reviews; None where there is none."""
        with self.begin() as session:
            return session.scalar(sql.select(PredictionRecord).where(PredictionRecord.id == prediction_id))

    def list_predictions(self, limit: int) -> list[PredictionRecord]:
        """The latest predictions with their reviews, the newest first."""
        query = sql.select(PredictionRecord).order_by(PredictionRecord.number.desc()).limit(limit)
        with self.begin() as session:
            return list(session.scalars(query.options(sql.orm.selectinload(PredictionRecord.reviews))))

    def list_outcomes(self, limit: int, since: datetime.datetime) -> Sequence[Any]:
        """Return rows of what monitoring needs of the latest predictions, the newest first; cheaper than records."""
        query: Any = sql.select(*_OUTCOME).where(PredictionRecord.created_at >= since)
        return list(self.iterate(query, PredictionRecord.number, limit))

    def count_by_day(self, since: datetime.datetime) -> dict[str, int]:
        """The number of predictions on each day (UTC) since a moment."""
        created_at = PredictionRecord.created_at
        text = self._engine.dialect.name == "sqlite"  # moments are text there; in PostgreSQL, dates are faster
        day = (sql.func.substr(created_at, 1, 10) if text else sql.cast(created_at, sql.Date)).label("day")
        query = sql.select(day, sql.func.count()).group_by("day").order_by("day")
        counts: dict[str, int] = {}
        start, end = since, max(since, now())
        while start <= end:
            part = [created_at >= start]
            start += datetime.timedelta(days=_DAYS)
            part += [created_at < start] if start <= end else []  # the last has no end: a clock may be ahead
            with self.begin() as session:
                for name, count in session.execute(query.where(*part)):
                    counts[str(name)] = counts.get(str(name), 0) + int(count)
        return counts

    def list_reviews(self, since: datetime.datetime | None = None, limit: int | None = None) -> list[tuple[Any, Any]]:
        """Reviews, each with its prediction, the oldest first: rows with what exports and monitoring need of both.

        Args:
            since: only those of predictions made since a moment.
            limit: only the latest.
        """
        of_review = [getattr(Review, name).label(f"review_{name}") for name in _ReviewRow._fields]
        query = sql.select(*_OF_REVIEWED, *of_review)
        query = query.join_from(Review, PredictionRecord)
        if since is not None:  # a review comes after its prediction, give or take the clocks of two machines
            made = Review.created_at >= since - datetime.timedelta(days=1)
            query = query.where(PredictionRecord.created_at >= since, made)
        rows = self.iterate(query, Review.number, limit)
        return [(row, _ReviewRow._make(row[len(_OF_REVIEWED) : -1])) for row in rows][::-1]

    def iterate(self, query: sql.Select[Any], number: Any, limit: int | None = None) -> Iterator[Any]:
        """Rows of a query, the highest number first, read page by page: one statement might take too long.

        Args:
            query: without an order; rows have one more column than it.
            number: the column by which rows are numbered.
            limit: of rows; None: all.
        """
        last: int | None = None
        left = limit
        labelled = query.add_columns(number.label("iterated"))
        while left is None or left > 0:
            wanted = _PAGE if left is None else min(_PAGE, left)
            page = labelled if last is None else labelled.where(number < last)
            with self.begin() as session:
                rows = session.execute(page.order_by(number.desc()).limit(wanted)).all()
            yield from rows
            if len(rows) < wanted:
                return
            last = rows[-1].iterated
            left = None if left is None else left - len(rows)

    def find_images(
        self,
        *,
        before: datetime.datetime | None = None,
        patients: Iterable[str] = (),
        study: str | None = None,
        sha256s: Iterable[str] = (),
        limit: int | None = None,
    ) -> Sequence[Any]:
        """Return id, SHA-256 and study of predictions to which any of these applies; none if no condition is given.

        Args:
            before: made before this moment.
            patients: of one of these pseudonyms.
            study: with this Study Instance UID.
            sha256s: of one of these images.
            limit: only so many, those that were made first.
        """
        matches: list[sql.ColumnElement[bool]] = []
        if before is not None:
            matches.append(PredictionRecord.created_at < before)
        if pseudonyms := [each for each in patients if each]:
            matches.append(PredictionRecord.patient.in_(pseudonyms))
        if study:
            matches.append(PredictionRecord.study_uid == study)
        if digests := list(sha256s):
            matches.append(PredictionRecord.sha256.in_(digests))
        if not matches:
            return []
        query = sql.select(PredictionRecord.id, PredictionRecord.sha256, PredictionRecord.study_uid)
        with self.begin() as session:
            # By time where there is a limit, as the index of times then ends with it.
            order = PredictionRecord.number if limit is None else PredictionRecord.created_at
            return session.execute(query.where(sql.or_(*matches)).order_by(order).limit(limit)).all()

    def delete(self, ids: Sequence[str], entries: Sequence[AuditEntry] = ()) -> tuple[int, int]:
        """Delete predictions with their reviews; return how many there were of each.

        Args:
            ids: of the predictions.
            entries: for the audit log; stored with the first deletion.
        """
        predictions = reviews = 0
        for start in range(0, len(ids), _AT_ONCE):
            some = ids[start : start + _AT_ONCE]
            with self.begin() as session:
                # PostgreSQL would take a review meanwhile, and then refuse the deletion.
                session.execute(sql.select(PredictionRecord.id).where(PredictionRecord.id.in_(some)).with_for_update())
                _forget_answers(session, some)
                session.execute(sql.delete(READINGS).where(READINGS.c.prediction_id.in_(some)))
                found = session.execute(sql.delete(Review).where(Review.prediction_id.in_(some)))
                reviews += getattr(found, "rowcount", 0)
                found = session.execute(sql.delete(PredictionRecord).where(PredictionRecord.id.in_(some)))
                predictions += getattr(found, "rowcount", 0)
                if not start and predictions:
                    session.add_all(entries)
                _note_deletion(session)
        if predictions:
            with self._reporting():
                forget_deleted(self._engine)
        return predictions, reviews

    def find_used(self, sha256s: Sequence[str]) -> set[str]:
        """Those of these SHA-256 that predictions have."""
        used: set[str] = set()
        for start in range(0, len(sha256s), _AT_ONCE):
            some = sha256s[start : start + _AT_ONCE]
            with self.begin() as session:
                found = session.scalars(sql.select(PredictionRecord.sha256).where(PredictionRecord.sha256.in_(some)))
                used.update(found)
        return used

    def move_key(self, file: Path) -> None:
        """Move the key behind the pseudonyms into a file; see `pseudonym_keys.move_key`."""
        with self._reporting():
            move_key(self._engine, self.location, file)

    @contextmanager
    def read(self) -> Iterator[sql.Connection]:
        """Begin a transaction in which other tables of the same database can be read."""
        with self.begin() as session:
            yield session.connection()

    @contextmanager
    def lock(self) -> Iterator[sql.Connection]:
        """Begin a transaction that no other process begins meanwhile, in which tables can be changed."""
        with self._reporting(), locking(self._engine) as connection:
            yield connection

    def hasten(self) -> None:
        """Wait only briefly for locks from now on, because the service is to end."""
        self._active = self._impatient

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()
        self._impatient.dispose()

    def __exit__(self, *problem: object) -> None:
        self.close()

    def _connect(self) -> sql.Connection:
        engine = self._active
        try:
            return engine.connect()
        except OSError:  # pg8000 raises it where a connection was cut; then the others in the pool are cut, too
            engine.dispose()
            return engine.connect()

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """Begin a transaction; what is read in it stays usable after it."""
        with (
            self._reporting(),
            self._connect() as connection,
            Session(connection, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Raise errors of the database as ours."""
        try:
            yield
        except IntegrityError:
            raise
        except (OSError, SQLAlchemyError) as problem:
            if isinstance(problem, DBAPIError) and breaks_reference(problem):
                raise IntegrityError(None, None, problem.orig or problem) from None
            state = "reports an error" if isinstance(problem, DBAPIError) else "is busy"  # no connection is free
            state = "is out of reach" if isinstance(problem, OSError) else state
            raise DataError(f"{self.location}: the database {state}: {explain(problem)}.") from None


def link_answer(session: Session, content: str, *, key: str | None = None, job: int | None = None) -> None:
    """Note which predictions a kept answer tells of, so that it goes when one of them is deleted.

    Args:
        session: the transaction in which the answer is stored.
        content: the answer.
        key: of the request that it answers.
        job: the number of the job that it belongs to.
    """
    rows = [
        {"prediction_id": each, "request_key": key, "job_number": job} for each in sorted(set(_ID.findall(content)))
    ]
    if rows:
        session.execute(sql.insert(AnsweredPrediction), rows)


def _forget_answers(session: Session, ids: Sequence[str]) -> None:
    """Delete the answers, which are kept for a day, that tell of predictions."""
    link = AnsweredPrediction
    for column, own in ((link.request_key, AnsweredRequest.key), (link.job_number, JobRecord.number)):
        holders = sql.select(column).where(link.prediction_id.in_(ids), column.is_not(None))
        session.execute(sql.delete(own.class_).where(own.in_(holders)))


def _note_deletion(session: Session) -> None:
    """Change the property by which others see that something was deleted."""
    values = {"value": uuid.uuid4().hex}
    found = session.execute(sql.update(Property).where(Property.key == DELETED).values(**values))
    if not getattr(found, "rowcount", 0):
        insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
        statement = insert(Property).values(key=DELETED, **values)
        session.execute(statement.on_conflict_do_update(index_elements=["key"], set_=values))
