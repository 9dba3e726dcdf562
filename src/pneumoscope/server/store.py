"""What was read and what reviewers thought of it, in a database: SQLite or PostgreSQL, through SQLAlchemy."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import os
import secrets
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from pneumoscope.errors import DataError, MissingExtraError, UsageError

SCHEMA = 1
_TABLES = sql.MetaData()
_FACTS = sql.Table(
    "pneumoscope",
    _TABLES,
    sql.Column("key", sql.String(40), primary_key=True),
    sql.Column("value", sql.Text, nullable=False),
)
_READS = sql.Table(
    "reads",
    _TABLES,
    sql.Column("id", sql.String(32), primary_key=True),
    sql.Column("at", sql.DateTime, nullable=False, index=True),
    sql.Column("digest", sql.String(64), nullable=False, index=True),
    sql.Column("name", sql.Text, nullable=False),
    sql.Column("patient", sql.String(16), nullable=False),
    sql.Column("model", sql.Text, nullable=False),
    sql.Column("fingerprint", sql.String(64), nullable=False),
    sql.Column("decision", sql.Text, nullable=False),
    sql.Column("predicted_label", sql.Text, nullable=False),
    sql.Column("prediction_set", sql.Text, nullable=False),
    sql.Column("probability", sql.Double),
    sql.Column("score", sql.Double, nullable=False),
    sql.Column("ood_score", sql.Double),
    sql.Column("invert", sql.Boolean, nullable=False),
    sql.Column("any_modality", sql.Boolean, nullable=False),
    sql.Column("kept", sql.Text, nullable=False),
)
_VERDICTS = sql.Table(
    "verdicts",
    _TABLES,
    sql.Column("number", sql.Integer, primary_key=True, autoincrement=True),
    sql.Column("read", sql.ForeignKey("reads.id"), nullable=False, index=True),
    sql.Column("at", sql.DateTime, nullable=False),
    sql.Column("reviewer", sql.Text, nullable=False),
    sql.Column("agrees", sql.Boolean, nullable=False),
    sql.Column("label", sql.Text),
    sql.Column("note", sql.Text, nullable=False),
)


@dataclass(frozen=True)
class Read:
    """One image that was read.

    Attributes:
        id: names it.
        at: when, UTC.
        digest: SHA-256 of its file.
        name: of its file, without folders; empty where names are not kept.
        patient: a pseudonym that only this database gives to a patient; empty where none is known.
        model: name of the model.
        fingerprint: of the model.
        decision: as `Prediction` has it.
        predicted_label: likewise.
        prediction_set: likewise.
        probability: likewise; None where the image is ood.
        score: the probability whatever the detector says, for monitoring.
        ood_score: as `Prediction` has it.
        invert: whether black and white were exchanged when it was read.
        any_modality: whether it was read though it is no projection radiograph.
        kept: name of the file in the folder of kept images; empty where it is not kept.
    """

    id: str
    at: datetime.datetime
    digest: str
    name: str
    patient: str
    model: str
    fingerprint: str
    decision: str
    predicted_label: str
    prediction_set: tuple[str, ...]
    probability: float | None
    score: float
    ood_score: float | None
    invert: bool = False
    any_modality: bool = False
    kept: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a reviewer thought of a read.

    Attributes:
        read: its id.
        at: when, UTC.
        reviewer: who, as they call themselves.
        agrees: whether the decision is right.
        label: the class that the reviewer sees; None where they name none.
        note: in their words.
    """

    read: str
    at: datetime.datetime
    reviewer: str
    agrees: bool
    label: str | None
    note: str


class Memory(AbstractContextManager["Memory"]):
    """The database of a reading room; its methods may be called in several threads.

    Args:
        url: SQLAlchemy's URL, or the path of a SQLite file; None for the user's own file.
        create: whether a SQLite file that is not there is made.

    Raises:
        UsageError: it is not there, cannot be reached, or is none of ours.
        DataError: it was written by a newer version.
        MissingExtraError: what talks to it is not installed.
    """

    def __init__(self, url: str | None = None, create: bool = True) -> None:
        address, file = _to_url(url)
        if not create and file is not None and not file.is_file():
            raise UsageError(f"--database {file}: there is no such file.")
        self.shown = str(file) if file else address.render_as_string(hide_password=True)
        try:
            if file is not None and str(file) != ":memory:":
                file.parent.mkdir(parents=True, exist_ok=True)
                if not file.exists():
                    os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))  # names of images are nobody else's business
            self._engine = sql.create_engine(address, pool_pre_ping=True, **_options(address))
            if address.get_backend_name() == "sqlite":
                sql.event.listen(self._engine, "connect", _set_up_sqlite)
            self._make_tables()
            self._secret = self._agree()
        except (ArgumentError, NoSuchModuleError, TypeError) as problem:  # TypeError: a parameter the driver lacks
            raise UsageError(f"--database {self.shown}: {problem}") from None
        except ModuleNotFoundError as problem:
            raise MissingExtraError(
                f'--database {self.shown}: needs {problem.name}: pip install "pneumoscope[serve]".'
            ) from None
        except (OSError, SQLAlchemyError) as problem:
            raise UsageError(f"--database {self.shown}: cannot be opened: {_say(problem)}.") from None

    def _make_tables(self) -> None:
        for tries in reversed(range(5)):
            try:
                with self._begin() as connection:
                    _TABLES.create_all(connection)
                return
            except (DataError, IntegrityError):  # another service may have begun at the same moment, and made them
                if not tries:
                    raise
                time.sleep(0.1)

    def _agree(self) -> bytes:
        """Agree with what the database holds: its schema, and the secret behind pseudonyms."""
        for key, value in (("schema", str(SCHEMA)), ("secret", secrets.token_hex(32))):
            try:
                with self._begin() as connection:
                    if connection.scalar(sql.select(_FACTS.c.value).where(_FACTS.c.key == key)) is None:
                        connection.execute(_FACTS.insert().values(key=key, value=value))
            except IntegrityError:
                pass  # another service began at the same moment
        with self._begin() as connection:
            known = {row.key: row.value for row in connection.execute(sql.select(_FACTS))}
        if int(known["schema"]) > SCHEMA:
            raise DataError(
                f"{self.shown}: written by a newer version (schema {known['schema']}). Upgrade pneumoscope."
            )
        return bytes.fromhex(known["secret"])

    def name_patient(self, patient: str | None) -> str:
        """A pseudonym for a patient: always the same for one, and of no use without this database."""
        if not patient:
            return ""
        return hmac.new(self._secret, patient.encode(), hashlib.sha256).hexdigest()[:16]

    def ping(self) -> None:
        """See whether the database answers.

        Raises:
            DataError: it doesn't.
        """
        with self._begin() as connection:
            connection.execute(sql.select(1))

    def add_reads(self, reads: Sequence[Read]) -> None:
        """Remember images that were read, all or none.

        Raises:
            DataError: the database does not take them.
        """
        with self._begin() as connection:
            connection.execute(
                _READS.insert(), [{**asdict(read), "prediction_set": "|".join(read.prediction_set)} for read in reads]
            )

    def add_verdict(self, verdict: Verdict) -> None:
        """Remember a verdict; when this returns, it is on disk.

        Raises:
            DataError: the database does not take it.
        """
        with self._begin() as connection:
            connection.execute(_VERDICTS.insert().values(**asdict(verdict)))

    def find_read(self, number: str) -> Read | None:
        """The read of an id, if there is one."""
        with self._begin() as connection:
            row = connection.execute(sql.select(_READS).where(_READS.c.id == number)).one_or_none()
        return None if row is None else _to_read(row)

    def list_reads(self, limit: int, since: datetime.datetime | None = None) -> list[Read]:
        """The latest reads, the newest first."""
        query = sql.select(_READS).order_by(_READS.c.at.desc(), _READS.c.id).limit(limit)
        if since is not None:
            query = query.where(_READS.c.at >= since)
        with self._begin() as connection:
            return [_to_read(row) for row in connection.execute(query)]

    def count_days(self, since: datetime.datetime) -> dict[str, int]:
        """How many images were read on each day (UTC) since a moment."""
        day = sql.func.substr(sql.cast(_READS.c.at, sql.Text), 1, 10).label("day")
        each = sql.select(day).where(_READS.c.at >= since).subquery()
        query = sql.select(each.c.day, sql.func.count()).group_by(each.c.day).order_by(each.c.day)
        with self._begin() as connection:
            return {str(name): int(count) for name, count in connection.execute(query)}

    def list_verdicts(self, reads: Sequence[str]) -> dict[str, list[Verdict]]:
        """The verdicts on some reads, by read, the oldest first."""
        found: dict[str, list[Verdict]] = {}
        with self._begin() as connection:
            for start in range(0, len(reads), 500):  # databases bound the number of values in a query
                some = reads[start : start + 500]
                query = sql.select(_VERDICTS).where(_VERDICTS.c.read.in_(some)).order_by(_VERDICTS.c.number)
                for row in connection.execute(query):
                    found.setdefault(row.read, []).append(_to_verdict(row))
        return found

    def list_reviewed(self) -> list[tuple[Read, Verdict]]:
        """Every verdict with its read, the oldest first."""
        query = sql.select(_READS, _VERDICTS).join_from(_VERDICTS, _READS).order_by(_VERDICTS.c.number)
        size = len(_READS.columns)
        with self._begin() as connection:
            return [(_to_read(row[:size]), _to_verdict(row[size:])) for row in connection.execute(query)]

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()

    def __exit__(self, *problem: object) -> None:
        self.close()

    def _connect(self) -> sql.Connection:
        try:
            return self._engine.connect()
        except OSError:  # pg8000 lets it through where a connection was cut; then the others in the pool are cut, too
            self._engine.dispose()
            return self._engine.connect()

    @contextmanager
    def _begin(self) -> Iterator[sql.Connection]:
        try:
            with self._connect() as connection, connection.begin():
                yield connection
        except IntegrityError:
            raise
        except OSError as problem:
            raise DataError(f"{self.shown}: the database is out of reach: {_say(problem)}.") from None
        except DBAPIError as problem:
            raise DataError(f"{self.shown}: the database does not answer as it should: {_say(problem)}.") from None
        except SQLAlchemyError as problem:  # a pool without a free connection, for instance
            raise DataError(f"{self.shown}: the database is busy: {_say(problem)}.") from None


def now() -> datetime.datetime:
    """This moment as the database keeps it: UTC, without saying so."""
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)


def new_id() -> str:
    """A name for a read that nobody can guess."""
    return uuid.uuid4().hex


def _to_url(url: str | None) -> tuple[sql.URL, Path | None]:
    if url is None:
        import platformdirs

        url = os.environ.get("PNEUMOSCOPE_DATABASE") or str(
            Path(platformdirs.user_data_dir("pneumoscope")) / "reads.sqlite"
        )
    if "://" not in url:
        file = Path(url).absolute()
        return sql.URL.create("sqlite", database=str(file)), file
    try:
        address = sql.make_url(url)
    except ArgumentError:
        raise UsageError(
            "--database: no URL that is understood. Give the path of a file, or postgresql://USER@HOST/NAME."
        ) from None
    if address.drivername in ("postgresql", "postgres"):
        address = address.set(drivername="postgresql+pg8000")  # the driver that comes with the extra
    if address.get_backend_name() not in ("sqlite", "postgresql"):
        raise UsageError(f"--database {address.drivername}: SQLite and PostgreSQL are known.")
    return address, Path(address.database) if address.get_backend_name() == "sqlite" and address.database else None


def _options(address: sql.URL) -> dict[str, Any]:
    if address.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": 60}}
    return {"connect_args": {"timeout": 10}} if address.drivername == "postgresql+pg8000" else {}


def _set_up_sqlite(connection: Any, _: Any) -> None:
    """Readers beside a writer, every commit on disk before it is acknowledged, and references that hold."""
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _say(problem: BaseException) -> str:
    """A database's complaint in one line, without the statement and its values, which could be a patient's."""
    origin = problem.orig if isinstance(problem, DBAPIError) and problem.orig is not None else problem
    if isinstance(origin, OSError) and origin.strerror:
        return origin.strerror
    said = origin.args[0] if origin.args else origin
    if isinstance(said, dict):  # as pg8000 gives what the server says
        said = said.get("M", said)
    return str(said).splitlines()[0][:200].rstrip(".") if str(said) else type(origin).__name__


def _to_read(row: Any) -> Read:
    values = dict(zip((field.name for field in fields(Read)), row, strict=True))
    return Read(**{**values, "prediction_set": tuple(filter(None, values["prediction_set"].split("|")))})


def _to_verdict(row: Any) -> Verdict:
    return Verdict(*row[1:])
