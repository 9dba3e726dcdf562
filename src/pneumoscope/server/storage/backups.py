"""Backing up a SQLite database while it is in use, and restoring it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from pneumoscope.errors import DataError, UsageError
from pneumoscope.files import check_file
from pneumoscope.server.storage.databases import Database, opening, parse_url
from pneumoscope.server.storage.schema import Tables, find_state

_PATIENCE = 60.0  # seconds that a locked database is waited for


def back_up(url: str | None, out: Path, overwrite: bool = False) -> Path:
    """Copy a consistent state of a SQLite database while others write to it; return its file.

    Raises:
        UsageError: it is PostgreSQL, does not exist, or the copy exists already or cannot be written.
        DataError: it is damaged.
    """
    file = _find_file(url, "Back it up with: pg_dump -Fc -f FILE DATABASE")
    if not file.is_file():
        raise UsageError(f"{file}: there is no such file.", parameter="database")
    check_file(out, overwrite)
    if out.exists() and out.samefile(file):
        raise UsageError(f"{out}: this is the database itself. Choose another path.", parameter="out")
    _copy(file, out, "out")
    return file


def restore(backup: Path, url: str | None, kinds: Sequence[Tables], overwrite: bool = False) -> Path:
    """Put a backup in the place of a SQLite database that nobody uses; return its file.

    Raises:
        UsageError: it is PostgreSQL, exists already, or is in use.
        DataError: the backup is damaged, or is not a database of pneumoscope.
    """
    file = _find_file(url, "Restore it into an empty database with: pg_restore -d DATABASE FILE")
    if not backup.is_file():
        raise UsageError(f"{backup}: there is no such file.")
    _check_backup(backup, kinds)
    check_file(file, overwrite)
    if file.exists():
        if file.samefile(backup):
            raise UsageError(f"{backup}: this is the database itself. Choose another path.", parameter="database")
        _check_unused(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UsageError(f"{file}: cannot be written: {problem.strerror}.", parameter="database") from None
    _copy(backup, file, "database")
    return file


def _find_file(url: str | None, instead: str) -> Path:
    address, file = parse_url(url)
    if file is None:
        location = Database(address, None).location
        raise UsageError(f"{location}: only SQLite is copied. {instead}", parameter="database")
    return file


def _copy(source: Path, target: Path, parameter: str) -> None:
    """Copy a database whole or not at all, readable by its owner alone, and check the copy."""
    part = target.with_name(f".{target.name}.{os.urandom(4).hex()}.part")
    try:
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        try:
            with closing(_connect(source)) as original, closing(_connect(part)) as copy:
                original.backup(copy)  # in one step, so that the copy has each write of others whole or not at all
                copy.execute("PRAGMA journal_mode=DELETE")  # one file
                (found,) = copy.execute("PRAGMA integrity_check").fetchone()
            if found != "ok":
                raise DataError(f"{source}: damaged: {found.splitlines()[0]}. It was not copied.")
            _synchronise(part)
            for suffix in ("-wal", "-shm"):  # of the file that is replaced
                target.with_name(f"{target.name}{suffix}").unlink(missing_ok=True)
            part.replace(target)
            _synchronise(target.parent)
        finally:
            part.unlink(missing_ok=True)
    except OSError as problem:
        raise UsageError(f"{target}: cannot be written: {problem.strerror or problem}.", parameter) from None
    except sqlite3.Error as problem:
        raise DataError(f"{source}: cannot be copied: {problem}.") from None


def _check_backup(backup: Path, kinds: Sequence[Tables]) -> None:
    try:
        with opening(str(backup)) as database:
            engine = database.connect(create=False)
            try:
                with engine.connect() as connection:
                    states = [find_state(connection, tables).kind for tables in kinds]
            finally:
                engine.dispose()
    except UsageError as problem:
        raise DataError(f"{backup}: cannot be restored: {problem.message}") from None
    if "unknown" in states or set(states) == {"empty"}:
        raise DataError(f"{backup}: this is not a backup of a database of pneumoscope.")


def _check_unused(file: Path) -> None:
    """Refuse a database that another process has open. A damaged one may be replaced."""
    try:
        with closing(sqlite3.connect(file, timeout=1)) as connection:
            (mode,) = connection.execute("PRAGMA journal_mode=DELETE").fetchone()  # needs it for itself
            used = mode != "delete"
    except sqlite3.OperationalError as problem:
        used = "locked" in str(problem)
    except sqlite3.DatabaseError:
        used = False
    if used:
        raise UsageError(f"{file}: another process uses it. Stop the services and nodes first.", parameter="database")


def _connect(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(file, timeout=_PATIENCE)


def _synchronise(path: Path) -> None:
    with suppress(PermissionError):  # Windows opens no folders
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
