"""Many files become features, once per content and backbone: what a frozen backbone says never changes."""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
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
from pneumoscope.datasets.samples import Sample
from pneumoscope.errors import ImageError, UsageError
from pneumoscope.images.prepare import InputSpec, prepare
from pneumoscope.images.read import Radiograph, Reading, read_bytes, read_radiograph
from pneumoscope.inference.engines import Array, Engine

Source = Path | bytes | Sample


@dataclass(frozen=True)
class Gauge:
    """Something that is measured of each image while it is decoded, such as what an audit looks at.

    Attributes:
        name: names the function and its version, for the cache.
        measure: (content, radiograph) -> float32 (K,); called in several threads.
    """

    name: str
    measure: Callable[[bytes, Radiograph], Array]


@dataclass(frozen=True)
class Extract:
    """What became of one source.

    Attributes:
        index: its place in the input.
        digest: SHA-256 of its content, empty where it could not be read.
        features: float32 (V, D): the image, and its mirror image where views were asked for; None on error.
        error: why it could not be read.
        stages: float32 (E,), the image's `Activations.stages`, its features where the engine gives none; None on error.
        gauged: float32 (K,), what a `Gauge` measured; None on error, or where there is none.
    """

    index: int
    digest: str = ""
    features: Array | None = None
    error: str | None = None
    gauged: Array | None = None
    stages: Array | None = None


@dataclass
class _Load:
    index: int
    digest: str = ""
    key: str = ""
    inputs: Array | None = None
    features: Array | None = None
    stages: Array | None = None
    gauged: Array | None = None
    error: str | None = None


def extract_features(
    sources: Iterable[Source],
    engine: Engine | None,
    spec: InputSpec,
    *,
    mirror: bool = False,
    gauge: Gauge | None = None,
    cache: FeatureCache | None = None,
) -> Iterator[Extract]:
    """Read, prepare and run many files; decoding overlaps with computing, memory stays bounded.

    A file that cannot be read gives an `Extract` with its error; it never stops the others. No file is decoded twice,
    and none of which the cache knows all that is asked.

    Args:
        sources: paths, contents or samples.
        engine: runs the backbone; None where no features are wanted.
        spec: its input.
        mirror: also give the features of the left-right mirrored image, as a second view.
        gauge: measures each image while it is decoded.
        cache: looked up and filled.

    Yields:
        One `Extract` per source, in input order.
    """
    key = f"{engine.fingerprint} {spec} {'mirror ' if mirror else ''}{__version__}" if engine else ""
    gauge_key = f"{gauge.name} {spec.min_side} {__version__}" if gauge else ""
    batch_size = engine.batch_size if engine else 8

    def load(index: int, source: Source) -> _Load:
        reading = source.reading if isinstance(source, Sample) else Reading()
        path = source.path if isinstance(source, Sample) else source
        try:
            content, name = (path, None) if isinstance(path, bytes) else (read_bytes(path), str(path))
            one = _Load(index, hashlib.sha256(content).hexdigest())
            one.key = f"{one.digest} {reading}" if reading != Reading() else one.digest
            if cache is not None:
                one.features = cache.get(one.key, key) if engine else None
                one.stages = cache.get(one.key, f"{key} stages") if engine else None
                one.gauged = cache.get(one.key, gauge_key) if gauge else None
            if one.features is None or one.stages is None:
                one.features = one.stages = None
            if (engine and one.features is None) or (gauge and one.gauged is None):
                image = read_radiograph(content, name, reading, spec.min_side)
                if image.tags and image.tags.frames > 1:
                    logging.getLogger("pneumoscope").warning(
                        "%s: %d frames, of which the first is read.", name, image.tags.frames
                    )
                if gauge and one.gauged is None:
                    one.gauged = gauge.measure(content, image)[None]
                    if cache is not None:
                        cache.put(gauge_key, [(one.key, one.gauged)])
                if engine and one.features is None:
                    one.inputs = prepare(image.pixels, spec)
            return one
        except ImageError as problem:
            return _Load(index, error=str(problem))

    with ThreadPoolExecutor(max_workers=max(2, (os.cpu_count() or 2) // 2)) as pool:
        numbered = iter(enumerate(sources))
        ahead: deque[Future[_Load]] = deque(pool.submit(load, *item) for item in islice(numbered, 3 * batch_size))
        waiting: list[_Load] = []
        try:
            while ahead:
                waiting.append(ahead.popleft().result())
                ahead.extend(pool.submit(load, *item) for item in islice(numbered, 1))
                full = sum(one.inputs is not None for one in waiting) == batch_size
                if full or not ahead or len(waiting) == 64 * batch_size:
                    if engine is not None:
                        _run(waiting, engine, mirror, cache, key)
                    for one in waiting:
                        gauged = None if one.gauged is None else one.gauged[0]
                        stages = None if one.stages is None else one.stages[0]
                        yield Extract(one.index, one.digest, one.features, one.error, gauged, stages)
                    waiting = []
        finally:
            for future in ahead:
                future.cancel()


def read_input(sample: Sample, spec: InputSpec, view: Callable[[Array], Array] | None = None) -> Array:
    """Read and prepare one image as training and prediction do, float32 (3, S, S).

    Raises:
        ImageError: it cannot be read.
    """
    image = read_radiograph(sample.path, reading=sample.reading, min_side=spec.min_side)
    return prepare(image.pixels, spec, view)


def _run(waiting: list[_Load], engine: Engine, mirror: bool, cache: FeatureCache | None, key: str) -> None:
    """Compute the features that the cache did not have, and remember them."""
    new = [one for one in waiting if one.inputs is not None]
    if not new:
        return
    inputs = np.stack([one.inputs for one in new if one.inputs is not None])
    first = engine.run(inputs)
    views, described = [first.features], first.features if first.stages is None else first.stages
    if mirror:
        views.append(engine.run(np.ascontiguousarray(inputs[..., ::-1])).features)
    computed = np.stack(views, axis=1)
    for one, features, stages in zip(new, computed, described, strict=True):
        one.features, one.stages, one.inputs = features, stages[None], None
    if cache is not None:
        cache.put(f"{key} stages", [(one.key, stages[None]) for one, stages in zip(new, described, strict=True)])
        cache.put(key, [(one.key, features) for one, features in zip(new, computed, strict=True)])


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
            _write_ahead(self._database)
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


def _write_ahead(database: sqlite3.Connection, patience: float = 60.0) -> None:
    """Let readers and a writer go on side by side; two programs that ask for it at once wait for each other."""
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
    """`$PNEUMOSCOPE_CACHE`, else the user's cache folder."""
    import platformdirs

    folder = os.environ.get("PNEUMOSCOPE_CACHE")
    return Path(folder or platformdirs.user_cache_dir("pneumoscope")) / "features.sqlite"


def _cache_key(digest: str, key: str) -> bytes:
    return hashlib.sha256(f"{digest} {key}".encode()).digest()
