"""Features on disk: a frozen backbone always computes the same for a file, so it needs to do so only once."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import UsageError
from pneumoscope.files import cache_folder

Array = NDArray[np.float32]
MEMORY = Path(":memory:")  # a cache that is not on disk


class FeatureCache:
    """Features on disk by content and backbone, in one SQLite file: shared by runs, safe when a process is killed.

    Args:
        path: the file; its folder is made.
        max_bytes: the oldest entries are deleted when the features take more.

    Raises:
        UsageError: the file cannot be opened.
    """

    def __init__(self, path: Path, max_bytes: int = 2 * 1024**3) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=60, check_same_thread=False)
            _write_ahead(self._database)
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS features (key BLOB PRIMARY KEY, width INTEGER, vectors BLOB, sha256 BLOB)"
            )
        except (OSError, sqlite3.Error) as problem:
            raise UsageError(
                f"The feature cache {path} cannot be opened ({problem}). Pass `cache=False`, or delete the file."
            ) from None

    def get(self, digest: str, key: str) -> Array | None:
        """Features (V, D) of a content, or None where they are not known or not intact."""
        row = None
        with self._lock, suppress(sqlite3.Error):  # a cache that fails costs time, never a result
            row = self._database.execute(
                "SELECT width, vectors, sha256 FROM features WHERE key = ?", (_cache_key(digest, key),)
            ).fetchone()
        return None if row is None else _check(*row)

    def put(self, key: str, entries: Iterable[tuple[str, Array]]) -> None:
        """Remember features by their contents' digests."""
        rows = []
        for digest, features in entries:
            vectors, width = np.ascontiguousarray(features, np.float32).tobytes(), features.shape[-1]
            rows.append((_cache_key(digest, key), width, vectors, _checksum(width, vectors)))
        with self._lock, suppress(sqlite3.Error), self._database:
            self._database.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?)", rows)

    def close(self) -> None:
        """Bound the size and close the file."""
        with self._lock, closing(self._database), suppress(sqlite3.Error), self._database:
            total, count = self._database.execute(
                "SELECT coalesce(sum(length(vectors)), 0), count(*) FROM features"
            ).fetchone()
            if total > self._max_bytes:
                surplus = int(count * (1 - self._max_bytes / total)) + 1
                self._database.execute(
                    "DELETE FROM features WHERE rowid IN (SELECT rowid FROM features ORDER BY rowid LIMIT ?)",
                    (surplus,),
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class CollectingCache(FeatureCache):
    """Features in memory: what is looked up in another cache, and what is added to both. Other machines can get them.

    Args:
        source: the other cache, which stays open.
    """

    def __init__(self, source: FeatureCache) -> None:
        super().__init__(MEMORY, source._max_bytes)
        self._source = source

    def get(self, digest: str, key: str) -> Array | None:
        """As for any cache."""
        found = super().get(digest, key)
        if found is None and (found := self._source.get(digest, key)) is not None:
            super().put(key, [(digest, found)])
        return found

    def put(self, key: str, entries: Iterable[tuple[str, Array]]) -> None:
        """As for any cache."""
        entries = list(entries)
        super().put(key, entries)
        self._source.put(key, entries)

    def pack(self) -> NDArray[np.uint8]:
        """All that was collected, for `unpack_cache`."""
        with self._lock:
            return np.frombuffer(self._database.serialize(), np.uint8)


def unpack_cache(content: NDArray[np.uint8]) -> FeatureCache:
    """A cache in memory, with what another one collected."""
    cache = FeatureCache(MEMORY)
    cache._database.deserialize(content.data)
    return cache


def _check(width: object, vectors: object, checksum: object) -> Array | None:
    """The features of a row, or None where any part of it is not as it was written (SQLite stores any type)."""
    if not isinstance(width, int) or not isinstance(vectors, bytes) or width < 1 or len(vectors) % (4 * width):
        return None
    if checksum != _checksum(width, vectors):
        return None
    features: Array = np.frombuffer(vectors, np.float32).reshape(-1, width)
    return features if len(features) else None


def _checksum(width: int, vectors: bytes) -> bytes:
    return hashlib.sha256(width.to_bytes(8, "little") + vectors).digest()


def _write_ahead(database: sqlite3.Connection, patience: float = 60.0) -> None:
    """Let readers and a writer work at the same time; two programs that switch this on at once wait for each other."""
    end = time.monotonic() + patience
    while True:
        try:
            database.execute("PRAGMA journal_mode=WAL")  # SQLite's own timeout does not hold for this
            return
        except sqlite3.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def default_cache_path() -> Path:
    """The file in the cache folder."""
    return cache_folder() / "features.sqlite"


@contextmanager
def open_cache(cache: FeatureCache | bool) -> Iterator[FeatureCache | None]:
    """The user's cache for True, no cache for False, or the given one; without one that cannot be opened, warn."""
    if isinstance(cache, FeatureCache) or not cache:
        yield cache or None
        return
    try:
        opened = FeatureCache(default_cache_path())
    except UsageError as problem:
        logging.getLogger("pneumoscope").warning("%s Continuing without it.", problem)
        yield None
        return
    with opened:
        yield opened


def _cache_key(digest: str, key: str) -> bytes:
    return hashlib.sha256(f"{digest} {key}".encode()).digest()
