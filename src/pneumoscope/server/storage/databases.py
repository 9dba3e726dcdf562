"""Opening a database of pneumoscope: SQLite or PostgreSQL, through SQLAlchemy."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from pneumoscope.errors import MissingExtraError, UsageError
from pneumoscope.files import read_regular

PASSWORD_FILE = "PNEUMOSCOPE_DATABASE_PASSWORD_FILE"  # noqa: S105 - a variable; it names a file
PATIENCE = 5.0  # seconds for which setting up is tried again
TEMPORARY = re.compile(r"locked")  # an error of SQLite that passes
_FOREIGN_KEY_VIOLATION = "23503"  # of PostgreSQL's error codes
_LONGEST_PASSWORD = 10_000  # bytes
_SOONER = 900  # milliseconds of PostgreSQL's own limit, for each second that the driver waits
OPTIONS = {"pysqlite": {"timeout": 60}, "pg8000": {"timeout": 10}}  # by driver; seconds


@dataclass(frozen=True)
class Database:
    """Where a database is.

    Attributes:
        address: SQLAlchemy's URL.
        file: where it is SQLite.
    """

    address: sql.URL
    file: Path | None

    @property
    def location(self) -> str:
        """The file or the URL without its password, for messages."""
        return str(self.file) if self.file else self.address.render_as_string(hide_password=True)

    def connect(self, create: bool = True, *, patient: bool = False, **options: Any) -> sql.Engine:
        """Get ready to connect.

        Args:
            create: whether to make a SQLite file that does not exist.
            patient: whether to wait for PostgreSQL as long as it takes: an index of a large table takes minutes.
            options: of the driver, instead of `OPTIONS`.

        Raises:
            UsageError: the file does not exist.
        """
        if not create and self.file is not None and not self.file.is_file():
            raise UsageError(f"{self.file}: there is no such file.", parameter="database")
        if self.file is not None and str(self.file) != ":memory:":
            self.file.parent.mkdir(parents=True, exist_ok=True)
            if not self.file.exists():
                os.close(os.open(self.file, os.O_CREAT | os.O_RDWR, 0o600))  # file names may name patients
        options = OPTIONS.get(self.address.get_driver_name(), {}) | options
        if patient and self.address.get_driver_name() == "pg8000":
            options["timeout"] = None
        sqlite = self.address.get_backend_name() == "sqlite"
        # A server may have closed a connection meanwhile; a file does not.
        engine = sql.create_engine(self.address, pool_pre_ping=not sqlite, connect_args=options)
        if sqlite:
            sql.event.listen(engine, "connect", _set_up_sqlite)
        elif options.get("timeout"):
            limit = f"SET statement_timeout = {int(options['timeout'] * _SOONER)}"
            sql.event.listen(engine, "connect", lambda connection, _: _set_up_postgresql(connection, limit))
        return engine


@contextmanager
def opening(url: str | None) -> Iterator[Database]:
    """Open a database: SQLAlchemy's URL, the path of a SQLite file, or None for the user's own file.

    Raises:
        UsageError: it cannot be reached, or is not a database.
        MissingExtraError: its driver is not installed.
    """
    database = Database(*parse_url(url))
    try:
        yield database
    except AttributeError:  # pg8000, where the server asks for a password and there is none
        if database.address.password is not None or database.file is not None:
            raise
        raise UsageError(
            f"{database.location}: the server asks for a password. Put it into a file, and set "
            f"{PASSWORD_FILE} to the path of that file. Or put the password into the URL.",
            parameter="database",
        ) from None
    except (ArgumentError, NoSuchModuleError, TypeError) as problem:  # TypeError: a parameter the driver lacks
        raise UsageError(f"{database.location}: {problem}", parameter="database") from None
    except ModuleNotFoundError as problem:
        raise MissingExtraError(
            f'{database.location}: {problem.name} is not installed: pip install "pneumoscope[serve]".',
            parameter="database",
        ) from None
    except (OSError, SQLAlchemyError) as problem:
        raise UsageError(f"{database.location} cannot be opened: {explain(problem)}.", parameter="database") from None


def parse_url(url: str | None) -> tuple[sql.URL, Path | None]:
    """The database's URL, and its file where it is SQLite."""
    if url is None:
        import platformdirs

        own_file = platformdirs.user_data_path("pneumoscope") / "predictions.sqlite"
        url = os.environ.get("PNEUMOSCOPE_DATABASE") or str(own_file)
    if "://" not in url:
        file = Path(url).absolute()
        return sql.URL.create("sqlite", database=str(file)), file
    try:
        address = sql.make_url(url)
    except ArgumentError:
        raise UsageError(
            "Not a valid URL. Give the path of a file, or postgresql://USER@HOST/NAME.", parameter="database"
        ) from None
    if address.drivername in ("postgresql", "postgres"):
        address = address.set(drivername="postgresql+pg8000")  # the driver that comes with the extra
    if address.get_backend_name() not in ("sqlite", "postgresql"):
        raise UsageError(f"{address.drivername}: only SQLite and PostgreSQL are supported.", parameter="database")
    if address.get_backend_name() == "postgresql" and address.password is None:
        address = address.set(password=_read_password())
    return address, Path(address.database) if address.get_backend_name() == "sqlite" and address.database else None


def _read_password() -> str | None:
    """The password of PostgreSQL, from a file that a variable names: so it stays out of commands and settings."""
    name = os.environ.get(PASSWORD_FILE)
    if not name:
        return None
    try:
        password = read_regular(Path(name), _LONGEST_PASSWORD).decode().rstrip("\r\n")
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or "not a text of UTF-8"
        raise UsageError(f"{name}: cannot be read: {reason}.", parameter=PASSWORD_FILE) from None
    if not password or "\n" in password:
        raise UsageError(f"{name}: it must contain only the password, on one line.", parameter=PASSWORD_FILE)
    return password


def _set_up_sqlite(connection: Any, _: Any) -> None:
    """Write commits to disk before acknowledging them, enforce foreign keys, and overwrite deleted data."""
    for pragma in ("synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}")


@contextmanager
def closing_engine(engine: sql.Engine) -> Iterator[sql.Engine]:
    """Close all connections at the end."""
    try:
        yield engine
    finally:
        engine.dispose()


def _set_up_postgresql(connection: Any, limit: str) -> None:
    """Let the server give up before the driver does: what the driver no longer waits for would go on for ever."""
    cursor = connection.cursor()
    cursor.execute(limit)
    cursor.close()
    connection.commit()


def forget_deleted(engine: sql.Engine) -> None:
    """Let SQLite move its write-ahead log into the file and empty it, because the log still has deleted data."""
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")


def breaks_reference(problem: DBAPIError) -> bool:
    """Whether a row refers to one that does not exist; the driver of PostgreSQL has no class of its own for it."""
    detail = problem.orig.args[0] if problem.orig is not None and problem.orig.args else None
    return isinstance(detail, dict) and detail.get("C") == _FOREIGN_KEY_VIOLATION


def explain(problem: BaseException) -> str:
    """Describe a database's error in one line, without the statement and its values, which could be a patient's."""
    origin = problem.orig if isinstance(problem, DBAPIError) and problem.orig is not None else problem
    if isinstance(origin, OSError) and origin.strerror:
        return origin.strerror
    detail = origin.args[0] if origin.args else origin
    if isinstance(detail, dict):  # as pg8000 passes on the server's message
        detail = detail.get("M", detail)
    return str(detail).splitlines()[0][:200].rstrip(".") if str(detail) else type(origin).__name__
