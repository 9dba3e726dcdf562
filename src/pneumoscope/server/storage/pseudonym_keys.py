"""The key behind the pseudonyms of a database: in the database, or in a file outside it.

A database that has a key keeps it. A new one takes that of `$PNEUMOSCOPE_PSEUDONYM_KEY_FILE` where it is set, and then
holds a checksum of it alone, by which another key is refused: with it, known patients would get new pseudonyms.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

import sqlalchemy as sql

from pneumoscope.datasets.pseudonyms import KEY_FILE, open_key, read_key
from pneumoscope.errors import DataError, UsageError
from pneumoscope.server.storage.databases import forget_deleted
from pneumoscope.server.storage.schema import locking

_SECRET, _CHECK = "secret", "key_check"
_PROPERTIES = sql.table("properties", sql.column("key", sql.String), sql.column("value", sql.Text))


def find_key(engine: sql.Engine, location: str) -> bytes:
    """The key of a database; a new one gets one.

    Raises:
        UsageError: it is in a file that is missing, cannot be read, or holds another key.
    """
    file = os.environ.get(KEY_FILE)
    with engine.begin() as connection:
        found = _read(connection)
    if not found:
        with locking(engine) as connection:  # another service may be first
            found = _read(connection)
            if not found:
                found = {_CHECK: _check(open_key(Path(file)))} if file else {_SECRET: secrets.token_hex(32)}
                rows = [{"key": key, "value": value} for key, value in found.items()]
                connection.execute(sql.insert(_PROPERTIES), rows)
    if _SECRET in found:
        return bytes.fromhex(found[_SECRET])
    key = read_key(Path(file)) if file else None
    if key is None or _check(key) != found[_CHECK]:
        state = (
            f"names {file}, which {'does not exist' if key is None else 'holds another key'}" if file else "is not set"
        )
        raise UsageError(
            f"{location}: the key behind its pseudonyms is in a file outside it, but ${KEY_FILE} {state}. Set it to "
            "the file with the key of this database. If that file is lost, restore it from a backup.",
            parameter="database",
        )
    return key


def move_key(engine: sql.Engine, location: str, file: Path) -> None:
    """Move the key of a database into a file. Pseudonyms stay the same.

    Raises:
        UsageError: the file holds another key, or cannot be written.
        DataError: the key is not in the database.
    """
    with locking(engine) as connection:
        found = _read(connection)
        if _SECRET not in found:
            raise DataError(f"{location}: the key is not in this database; it is in a file already.")
        key = bytes.fromhex(found[_SECRET])
        if open_key(file, key) != key:
            raise UsageError(f"{file}: holds another key. Choose a file that does not exist.", parameter="out")
        connection.execute(sql.delete(_PROPERTIES).where(_PROPERTIES.c.key == _SECRET))
        connection.execute(sql.insert(_PROPERTIES).values(key=_CHECK, value=_check(key)))
    forget_deleted(engine)


def _read(connection: sql.Connection) -> dict[str, str]:
    query = sql.select(_PROPERTIES).where(_PROPERTIES.c.key.in_((_SECRET, _CHECK)))
    return {row.key: row.value for row in connection.execute(query)}


def _check(key: bytes) -> str:
    return hmac.new(key, b"pneumoscope key check", hashlib.sha256).hexdigest()
