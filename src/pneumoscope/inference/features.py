"""Many files become features, once per content and backbone: what a frozen backbone says never changes."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pneumoscope import __version__
from pneumoscope.errors import ImageError, UsageError
from pneumoscope.images.preparing import InputSpec, prepare
from pneumoscope.images.reading import read_bytes, read_pixels
from pneumoscope.inference.engines import Array, Engine

Source = Path | bytes


@dataclass(frozen=True)
class Extract:
    """What became of one source.

    Attributes:
        index: its place in the input.
        digest: SHA-256 of its content, empty where it could not be read.
        features: float32 (V, D): the film, and its mirror image where views were asked for; None on error.
        error: why it could not be read.
    """

    index: int
    digest: str = ""
    features: Array | None = None
    error: str | None = None


@dataclass
class _Load:
    index: int
    digest: str = ""
    inputs: Array | None = None
    cached: Array | None = None
    error: str | None = None


def extract_features(
    sources: Iterable[Source],
    engine: Engine,
    spec: InputSpec,
    *,
    mirror: bool = False,
    cache: FeatureCache | None = None,
) -> Iterator[Extract]:
    """Read, prepare and run many files; decoding overlaps with computing, memory stays bounded.

    A file that cannot be read gives an `Extract` with its error; it never stops the others.

    Args:
        sources: paths or contents.
        engine: runs the backbone.
        spec: its input.
        mirror: also give the features of the left-right mirrored film, as a second view.
        cache: looked up and filled.

    Yields:
        One `Extract` per source, in input order.
    """
    key = f"{engine.fingerprint} {spec} {'mirror ' if mirror else ''}{__version__}"

    def load(index: int, source: Source) -> _Load:
        try:
            content = read_bytes(source) if isinstance(source, Path) else source
            digest = hashlib.sha256(content).hexdigest()
            if cache is not None and (cached := cache.get(digest, key)) is not None:
                return _Load(index, digest, cached=cached)
            return _Load(index, digest, inputs=prepare(read_pixels(content, _name(source)), spec))
        except ImageError as problem:
            return _Load(index, error=str(problem))

    with ThreadPoolExecutor(max_workers=max(2, (os.cpu_count() or 2) // 2)) as pool:
        numbered = iter(enumerate(sources))
        ahead: deque[Future[_Load]] = deque(
            pool.submit(load, *item) for item in islice(numbered, 3 * engine.batch_size)
        )
        waiting: list[_Load] = []
        try:
            while ahead:
                waiting.append(ahead.popleft().result())
                ahead.extend(pool.submit(load, *item) for item in islice(numbered, 1))
                full = sum(one.inputs is not None for one in waiting) == engine.batch_size
                if full or not ahead or len(waiting) == 64 * engine.batch_size:
                    yield from _run(waiting, engine, mirror, cache, key)
                    waiting = []
        finally:
            for future in ahead:
                future.cancel()


def _run(waiting: list[_Load], engine: Engine, mirror: bool, cache: FeatureCache | None, key: str) -> Iterator[Extract]:
    """Compute what the cache did not have, remember it, and give all in order."""
    new = [one for one in waiting if one.inputs is not None]
    computed: dict[int, Array] = {}
    if new:
        inputs = np.stack([one.inputs for one in new if one.inputs is not None])
        views = [engine.run(inputs).features]
        if mirror:
            views.append(engine.run(np.ascontiguousarray(inputs[..., ::-1])).features)
        for one, features in zip(new, np.stack(views, axis=1), strict=True):
            computed[one.index] = features
        if cache is not None:
            cache.put(key, [(one.digest, computed[one.index]) for one in new])
    for one in waiting:
        yield Extract(one.index, one.digest, computed.get(one.index, one.cached), one.error)


def _name(source: Source) -> str | None:
    return str(source) if isinstance(source, Path) else None


class FeatureCache:
    """Features on disk by content and backbone, in one SQLite file: shared by runs, safe when a process is killed.

    Args:
        path: the file; its folder is made.
        max_bytes: the oldest entries go when the features take more.

    Raises:
        UsageError: the file cannot be opened.
    """

    def __init__(self, path: Path, max_bytes: int = 2 * 1024**3) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=60, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS features (key BLOB PRIMARY KEY, width INTEGER, vectors BLOB, sha256 BLOB)"
            )
        except (OSError, sqlite3.Error) as problem:
            raise UsageError(
                f"{path}: the feature cache cannot be opened ({problem}). Give --no-cache, or delete the file."
            ) from None

    def get(self, digest: str, key: str) -> Array | None:
        """Features (V, D) of a content, or None where they are not known or not intact."""
        row = None
        with self._lock, suppress(sqlite3.Error):  # a cache that fails costs time, never a result
            row = self._database.execute(
                "SELECT width, vectors, sha256 FROM features WHERE key = ?", (_cache_key(digest, key),)
            ).fetchone()
        if row is None or hashlib.sha256(row[1]).digest() != row[2]:
            return None
        vectors: NDArray[np.float32] = np.frombuffer(row[1], np.float32).reshape(-1, row[0])
        return vectors

    def put(self, key: str, entries: Iterable[tuple[str, Array]]) -> None:
        """Remember features by their contents' digests."""
        rows = []
        for digest, features in entries:
            vectors = np.ascontiguousarray(features, np.float32).tobytes()
            rows.append((_cache_key(digest, key), features.shape[-1], vectors, hashlib.sha256(vectors).digest()))
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


def default_cache_path() -> Path:
    """`$PNEUMOSCOPE_CACHE`, else the user's cache folder."""
    import platformdirs

    folder = os.environ.get("PNEUMOSCOPE_CACHE")
    return Path(folder or platformdirs.user_cache_dir("pneumoscope")) / "features.sqlite"


def _cache_key(digest: str, key: str) -> bytes:
    return hashlib.sha256(f"{digest} {key}".encode()).digest()
