"""Predictions and their reviews in a database: SQLite or PostgreSQL, through SQLAlchemy."""

from __future__ import annotations

import datetime
import secrets
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import sqlalchemy as sql
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, Session, mapped_column, relationship

from pneumoscope.datasets.pseudonyms import compute_pseudonym
from pneumoscope.errors import DataError
from pneumoscope.server.databases import explain, forget_deleted, opening
from pneumoscope.server.pseudonym_keys import find_key, move_key
from pneumoscope.server.reading_rows import define_readings
from pneumoscope.server.schema import STORE_REVISION, Tables, prepare


class _Base(MappedAsDataclass, DeclarativeBase, kw_only=True):
    type_annotation_map: ClassVar[dict[Any, Any]] = {list[str]: sql.JSON, dict[str, float]: sql.JSON}


class _Property(_Base):
    """A property of the database itself: the secret behind its pseudonyms, and a version for earlier versions."""

    __tablename__ = "properties"

    key: Mapped[str] = mapped_column(sql.String(40), primary_key=True)
    value: Mapped[str] = mapped_column(sql.Text)


class Review(_Base):
    """What a reviewer says about a prediction.

    Attributes:
        answer: `agree`, `disagree`, `cannot_tell`, `comment` alone, or `withdrawn`: what the reviewer said before does
            not count.
        agrees: None where the answer is neither of the first two.
        label: None where they name no class.
    """

    __tablename__ = "reviews"

    prediction_id: Mapped[str] = mapped_column(sql.ForeignKey("predictions.id"), index=True)
    answer: Mapped[str] = mapped_column(sql.String(16), default="")
    agrees: Mapped[bool | None] = mapped_column(default=None)
    label: Mapped[str | None] = mapped_column(sql.Text, default=None)
    comment: Mapped[str] = mapped_column(sql.Text, default="")
    reviewer: Mapped[str] = mapped_column(sql.Text, default="")
    created_at: Mapped[datetime.datetime] = mapped_column(default_factory=lambda: now())
    number: Mapped[int] = mapped_column(primary_key=True, init=False)

    def __post_init__(self) -> None:
        if not self.answer:
            self.answer = {True: "agree", False: "disagree", None: "comment"}[self.agrees]


class PredictionRecord(_Base):
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
    __table_args__ = (sql.UniqueConstraint("id", name="predictions_id_key"), {"sqlite_autoincrement": True})

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
    created_at: Mapped[datetime.datetime] = mapped_column(default_factory=lambda: now(), index=True)
    number: Mapped[int] = mapped_column(primary_key=True, init=False)
    reviews: Mapped[list[Review]] = relationship(default_factory=list, order_by=Review.number, lazy="raise")


class AnsweredRequest(_Base):
    """A request with an Idempotency-Key, and its answer once there is one.

    Attributes:
        key: a digest of who sent it, where to, and its key.
        request: a digest of what it asks for.
        began_at: in seconds since 1970.
        status: of the answer; None while there is none.
        location: of what it made.
        content: the body of the answer.
    """

    __tablename__ = "answered_requests"

    key: Mapped[str] = mapped_column(sql.String(64), primary_key=True)
    request: Mapped[str] = mapped_column(sql.String(64))
    began_at: Mapped[float] = mapped_column(sql.Double, index=True)
    status: Mapped[int | None] = mapped_column(default=None)
    location: Mapped[str] = mapped_column(sql.Text, default="")
    content: Mapped[str] = mapped_column(sql.Text, default="")


class JobRecord(_Base):
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
    created_at: Mapped[datetime.datetime] = mapped_column(default_factory=lambda: now(), index=True)
    finished_at: Mapped[datetime.datetime | None] = mapped_column(default=None)
    number: Mapped[int] = mapped_column(primary_key=True, init=False)


READINGS = define_readings(_Base.metadata)
_AT_ONCE = 500  # rows in one statement
_SOON = 2  # seconds for which checking waits for a lock or for the server
_TRIED = 16_384  # bytes that checking stores
TABLES = Tables(
    "the reading room", _Base.metadata, Path(__file__).parent / "migrations", STORE_REVISION, _Property.__tablename__
)
_OUTCOME = (
    PredictionRecord.number, PredictionRecord.sha256, PredictionRecord.fingerprint, PredictionRecord.decision,
    PredictionRecord.predicted_label, PredictionRecord.probabilities, PredictionRecord.ood_score,
)  # fmt: skip


class Store(AbstractContextManager["Store"]):
    """The database of a reading room; its methods may be called from several threads, and raise DataError on failure.

    Args:
        url: SQLAlchemy's URL, or the path of a SQLite file; None for the user's own file.
        create: whether to make a SQLite file that does not exist.
        upgrade: whether to bring the tables of an earlier version up to date.

    Raises:
        UsageError: it does not exist, cannot be reached, is not a database of pneumoscope, or its key is missing.
        DataError: another version made it.
        MissingExtraError: its driver is not installed.
    """

    def __init__(self, url: str | None = None, create: bool = True, *, upgrade: bool = False) -> None:
        with opening(url) as database:
            self.location = database.location
            self._engine = database.connect(create)
            self._impatient = database.connect(create, timeout=_SOON)
            try:
                prepare(self._engine, self.location, TABLES, upgrade=upgrade)
                self._secret = find_key(self._engine, self.location)
            except BaseException:
                self.close()
                raise

    def pseudonymise(self, patient: str | None) -> str:
        """Give a patient's pseudonym: always the same for one patient, and of no use without this database."""
        return compute_pseudonym(self._secret, patient) if patient else ""

    def find_fault(self) -> str:
        """Say why nothing can be stored now, by storing and deleting as much as a prediction has; empty if it can."""
        row = {"key": f"check-{secrets.token_hex(8)}", "value": "x" * _TRIED}
        try:
            with self._impatient.begin() as connection:
                if connection.dialect.name == "postgresql":
                    for limit in ("lock_timeout", "statement_timeout"):
                        connection.exec_driver_sql(f"SET LOCAL {limit} = '{_SOON}s'")
                connection.execute(sql.insert(_Property), row)
                connection.execute(sql.delete(_Property).where(_Property.key == row["key"]))
        except (OSError, SQLAlchemyError) as problem:
            self._impatient.dispose()  # its connection may be cut
            reason = explain(problem)
            known = {"database is locked": "another process has locked it", "database or disk is full": "it is full"}
            return known.get(reason, reason)
        return ""

    def add(self, records: Sequence[PredictionRecord] | Sequence[Review]) -> None:
        """Save all records in one transaction, or none; when this returns, they are on disk."""
        with self._begin() as session:
            session.add_all(records)

    def find_prediction(self, prediction_id: str) -> PredictionRecord | None:
        """The prediction with an id, without its reviews; None where there is none."""
        with self._begin() as session:
            return session.scalar(sql.select(PredictionRecord).where(PredictionRecord.id == prediction_id))

    def list_predictions(self, limit: int) -> list[PredictionRecord]:
        """The latest predictions with their reviews, the newest first."""
        query = sql.select(PredictionRecord).order_by(PredictionRecord.number.desc()).limit(limit)
        with self._begin() as session:
            return list(session.scalars(query.options(sql.orm.selectinload(PredictionRecord.reviews))))

    def list_outcomes(self, limit: int, since: datetime.datetime) -> Sequence[Any]:
        """Return rows of what monitoring needs of the latest predictions, the newest first; cheaper than records."""
        query = (
            sql.select(*_OUTCOME)
            .where(PredictionRecord.created_at >= since)
            .order_by(PredictionRecord.number.desc())
            .limit(limit)
        )
        with self._begin() as session:
            return session.execute(query).all()

    def count_by_day(self, since: datetime.datetime) -> dict[str, int]:
        """The number of predictions on each day (UTC) since a moment."""
        created_at = PredictionRecord.created_at
        day = sql.func.substr(sql.cast(created_at, sql.Text), 1, 10).label("day")
        query = sql.select(day, sql.func.count()).where(created_at >= since).group_by("day").order_by("day")
        with self._begin() as session:
            return {str(name): int(count) for name, count in session.execute(query)}

    def list_reviews(self, since: datetime.datetime | None = None) -> list[tuple[PredictionRecord, Review]]:
        """Every review, with its prediction (made since a moment), the oldest first."""
        query = sql.select(PredictionRecord, Review).join_from(Review, PredictionRecord).order_by(Review.number)
        if since is not None:
            query = query.where(PredictionRecord.created_at >= since)
        with self._begin() as session:
            return [(record, review) for record, review in session.execute(query)]

    def find_images(
        self,
        *,
        before: datetime.datetime | None = None,
        patients: Iterable[str] = (),
        study: str | None = None,
        sha256s: Iterable[str] = (),
    ) -> Sequence[Any]:
        """Return id, SHA-256 and study of predictions to which any of these applies; none if nothing is given.

        Args:
            before: made before this moment.
            patients: of one of these pseudonyms.
            study: with this Study Instance UID.
            sha256s: of one of these images.
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
        with self._begin() as session:
            return session.execute(query.where(sql.or_(*matches)).order_by(PredictionRecord.number)).all()

    def delete(self, ids: Sequence[str]) -> tuple[int, int]:
        """Delete predictions with their reviews; return how many there were of each."""
        predictions = reviews = 0
        for start in range(0, len(ids), _AT_ONCE):
            some = ids[start : start + _AT_ONCE]
            with self._begin() as session:
                for table in (AnsweredRequest, JobRecord):  # answers that are kept for a day have predictions in them
                    session.execute(sql.delete(table).where(sql.or_(*(table.content.contains(each) for each in some))))
                session.execute(sql.delete(READINGS).where(READINGS.c.prediction_id.in_(some)))
                found = session.execute(sql.delete(Review).where(Review.prediction_id.in_(some)))
                reviews += getattr(found, "rowcount", 0)
                found = session.execute(sql.delete(PredictionRecord).where(PredictionRecord.id.in_(some)))
                predictions += getattr(found, "rowcount", 0)
        if predictions:
            with self._reporting():
                forget_deleted(self._engine)
        return predictions, reviews

    def find_used(self, sha256s: Sequence[str]) -> set[str]:
        """Those of these SHA-256 that predictions have."""
        used: set[str] = set()
        for start in range(0, len(sha256s), _AT_ONCE):
            some = sha256s[start : start + _AT_ONCE]
            with self._begin() as session:
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
        with self._begin() as session:
            yield session.connection()

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()
        self._impatient.dispose()

    def __exit__(self, *problem: object) -> None:
        self.close()

    def _connect(self) -> sql.Connection:
        try:
            return self._engine.connect()
        except OSError:  # pg8000 raises it where a connection was cut; then the others in the pool are cut, too
            self._engine.dispose()
            return self._engine.connect()

    @contextmanager
    def _begin(self) -> Iterator[Session]:
        """Begin a transaction; what is read in it stays usable after it."""
        with (
            self._reporting(),
            self._connect() as connection,
            connection.begin(),
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
            state = "reports an error" if isinstance(problem, DBAPIError) else "is busy"  # no connection is free
            state = "is out of reach" if isinstance(problem, OSError) else state
            raise DataError(f"{self.location}: the database {state}: {explain(problem)}.") from None


def now() -> datetime.datetime:
    """This moment as the database keeps it: UTC, without a time zone."""
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
