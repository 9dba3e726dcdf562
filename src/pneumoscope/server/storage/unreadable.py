"""Counts files that could not be read, in the database, so that all services that share it know how many there are."""

from __future__ import annotations

import datetime
import threading
from collections import Counter

import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite

from pneumoscope.server.storage.records import UnreadableFiles
from pneumoscope.server.storage.store import Store, now


class UnreadableCounts:
    """Gathers counts in memory, and adds them to those in the database now and then."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._new: Counter[tuple[str, str]] = Counter()  # of day and code

    def count(self, code: str) -> None:
        """Count a file, by the code of the problem with it."""
        with self._lock:
            self._new[now().date().isoformat(), code] += 1

    def save(self) -> None:
        """Add what was counted since the last time to the database.

        Raises:
            DataError: it does not answer; the counts are kept for the next time.
        """
        with self._lock:
            new, self._new = self._new, Counter()
        try:
            if new:
                self._add(new)
        except BaseException:
            with self._lock:
                self._new += new
            raise

    def _add(self, new: Counter[tuple[str, str]]) -> None:
        rows = [{"day": day, "code": code, "files": files} for (day, code), files in sorted(new.items())]
        with self._store.read() as connection:
            table = UnreadableFiles.__table__
            insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
            for row in rows:
                statement = insert(UnreadableFiles).values(row)
                more = table.c.files + statement.excluded.files
                connection.execute(
                    statement.on_conflict_do_update(index_elements=["day", "code"], set_={"files": more})
                )

    def read(self, since: datetime.date) -> dict[str, int]:
        """How many files could not be read since a day (UTC), by code."""
        own = UnreadableFiles
        query = sql.select(own.code, sql.func.sum(own.files)).where(own.day >= since.isoformat()).group_by(own.code)
        with self._store.read() as connection:
            return {code: int(files) for code, files in connection.execute(query.order_by(own.code))}
