"""Turns many files into features: reads, prepares and runs them in batches, with reading ahead and a cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pneumoscope import __version__
from pneumoscope.datasets.samples import Sample
from pneumoscope.errors import ImageError, MissingExtraError
from pneumoscope.images.dicom import Tags, is_dicom, read_tags
from pneumoscope.images.dicom_display import Display
from pneumoscope.images.prefetch import prefetch
from pneumoscope.images.prepare import InputSpec, Pixels, prepare_grey
from pneumoscope.images.read import ImageBytes, Radiograph, Reading, read_bytes, read_radiograph
from pneumoscope.inference.cache import FeatureCache
from pneumoscope.inference.engines import Engine

Array: TypeAlias = NDArray[np.float32]
Source: TypeAlias = str | Path | bytes | ImageBytes | Sample
_PICTURES = 2  # images in a batch whose pixels are kept, each up to 400 MB; one more is read ahead


@dataclass(frozen=True)
class Measurement:
    """Something that is measured of each image while it is decoded, such as what an audit looks at."""

    name: str  # names the function and its version, for the cache
    compute: Callable[[bytes, Radiograph], Array]  # (content, radiograph) -> float32 (K,); called in several threads


@dataclass(frozen=True)
class Wanted:
    """What to return for each image besides its features."""

    mirror: bool = False  # the features of the left-right mirrored image, too
    maps: bool = False  # its feature map and the prepared input
    pixels: bool = False  # the decoded image
    inputs: bool = False  # the prepared input, even if no engine is given
    measurement: Measurement | None = None  # what it measures


@dataclass(eq=False)
class Extract:
    """One image after reading, preparing and running. On error all but `source` and `error` are empty."""

    source: Source  # what was given
    sha256: str = ""  # of its content
    features: Array | None = None  # float32 (V, D), of the image and perhaps of its mirror image
    intermediate: Array | None = None  # float32 (E,), its intermediate features
    measured: Array | None = None  # float32 (K,), where something was measured
    tags: Tags | None = None  # what a DICOM header says
    warnings: tuple[str, ...] = ()  # what is unusual about the file or the image
    # height and width as stored; None if the image was not decoded because its features were in the cache
    size: tuple[int, int] | None = None
    format: str | None = None  # of the file; None in the same case
    read_size: tuple[int, int] | None = None  # height and width as read: of a large JPEG at a reduced scale
    pixels: Pixels | None = None  # float32 (H, W), if wanted
    display: Display | None = None  # how to show a DICOM image at any window, if pixels are wanted
    inputs: Array | None = None  # float32 (3, S, S), if wanted, or if maps are
    map: Array | None = None  # float32 (D, h, w), if maps are wanted
    error: str | None = None  # why it could not be read
    lacks_extra: bool = False  # because a package is not installed
    cache_key: str = ""


def extract_features(
    sources: Iterable[Source | Extract],
    engine: Engine | None,
    spec: InputSpec,
    wanted: Wanted = Wanted(),
    cache: FeatureCache | None = None,
    pool: Executor | None = None,
) -> Iterator[Extract]:
    """Read, prepare and run many files; reading overlaps with computing, and memory stays bounded.

    A file that cannot be read gives an `Extract` with its error and never stops the others. No file is opened twice,
    and none is decoded if the cache holds all that is wanted.

    Args:
        sources: paths, contents, samples, or what `read_source` gave.
        engine: runs the backbone; None where no features are wanted.
        spec: its input.
        wanted: what else.
        cache: looked up and filled.
        pool: threads that read; see `prefetch`.

    Yields:
        One `Extract` per source, in input order.

    Raises:
        MissingExtraError: a package is not installed, and no file can be read without it.
    """
    waiting: list[Extract] | None = []  # files that lack a package; None as soon as there is another one
    for extract in _extract(sources, engine, spec, wanted, cache, pool):
        if waiting is not None and extract.lacks_extra:
            waiting.append(extract)
            continue
        yield from waiting or ()
        waiting = None
        yield extract
    if waiting:
        raise MissingExtraError(str(waiting[0].error))


def read_source(source: Source, spec: InputSpec, pixels: bool = False) -> Extract:
    """Read and prepare one image, for `extract_features` in another process; what it lacks is its features."""
    return _Extraction(None, spec, Wanted(inputs=True, pixels=pixels), None).load(source)


def _extract(
    sources: Iterable[Source | Extract],
    engine: Engine | None,
    spec: InputSpec,
    wanted: Wanted,
    cache: FeatureCache | None,
    pool: Executor | None,
) -> Iterator[Extract]:
    batch_size = engine.batch_size if engine else 8
    ahead, longest = 3 * batch_size, 64 * batch_size
    if wanted.pixels:
        batch_size, longest, ahead = _PICTURES, _PICTURES, 1
    extraction = _Extraction(engine, spec, wanted, cache)
    loaded = prefetch(extraction.load, sources, ahead, pool)
    # A thread of its own computes one batch while what was computed before is used, and the next one is gathered.
    with ThreadPoolExecutor(1, "network") as network:
        running: Future[list[Extract]] | None = None
        for batch in _divide(loaded, batch_size, longest):
            following = network.submit(extraction.run, batch)
            if running is not None:
                yield from running.result()
            running = following
        if running is not None:
            yield from running.result()


def _divide(extracts: Iterable[Extract], size: int, longest: int) -> Iterator[list[Extract]]:
    """Batches with `size` images to compute, or `longest` if most are known from the cache."""
    batch: list[Extract] = []
    decoded = 0
    for extract in extracts:
        batch.append(extract)
        decoded += extract.inputs is not None
        if decoded == size or len(batch) == longest:
            yield batch
            batch, decoded = [], 0
    if batch:
        yield batch


def open_source(source: Source) -> tuple[bytes, str | None, Reading]:
    """The content of a source, its name for messages, and how to read it.

    Raises:
        ImageError: the file cannot be opened.
    """
    if isinstance(source, ImageBytes):
        return source.content, source.name, source.reading
    if isinstance(source, bytes):
        return source, None, Reading()
    path, reading = (source.path, source.reading) if isinstance(source, Sample) else (Path(source), Reading())
    return read_bytes(path), str(path), reading


def read_inputs(
    sample: Sample, spec: InputSpec, changes: Sequence[Callable[[Pixels], Pixels] | None] = (None,)
) -> Array:
    """Read one image and prepare it once for each change: float32 (V, 3, S, S); None changes nothing.

    For training, and for the ranges of 8-bit networks; predictions come from `extract_features`.

    Raises:
        ImageError: it cannot be read.
    """
    image = read_radiograph(sample.path, reading=sample.reading, min_side=spec.min_side)
    return np.stack([prepare_grey(image.grey, spec, change) for change in changes])


def keep_features(
    extracts: Iterable[Extract], engine: Engine, spec: InputSpec, wanted: Wanted, cache: FeatureCache | None
) -> None:
    """Keep in a cache what `extract_features` computed in other processes, so that it holds the features of all."""
    _Extraction(engine, spec, wanted, cache).keep(extracts)


class _Extraction:
    """The two halves of an extraction: `load` runs in reading threads, `run` where the network computes."""

    def __init__(self, engine: Engine | None, spec: InputSpec, wanted: Wanted, cache: FeatureCache | None) -> None:
        self._engine, self._spec, self._wanted, self._cache = engine, spec, wanted, cache
        self._key = _name_key(engine, spec, wanted.mirror) if engine else ""
        # Of both views the first is what is wanted: images that were training images need not be computed again.
        self._keys = [self._key] if wanted.mirror or engine is None else [self._key, _name_key(engine, spec, True)]
        measurement = wanted.measurement
        self._warnings_key = f"warnings {spec.min_side} {__version__}"
        self._measurement_key = f"{measurement.name} {spec.min_side} {__version__}" if measurement else ""

    def load(self, source: Source | Extract) -> Extract:
        """Open a file, and decode and prepare it unless the cache holds all that is wanted."""
        if isinstance(source, Extract):
            return source
        extract = Extract(source)
        try:
            content, name, reading = open_source(source)
            extract.sha256 = hashlib.sha256(content).hexdigest()
            extract.cache_key = extract.sha256 if reading == Reading() else f"{extract.sha256} {reading}"
            self._look_up(extract)
            if self._lacks_nothing(extract):
                extract.tags = read_tags(content, name) if is_dicom(content[:512]) else None
            else:
                self._decode(extract, content, name, reading)
            return extract
        except (ImageError, MissingExtraError) as problem:
            return Extract(source, error=str(problem), lacks_extra=isinstance(problem, MissingExtraError))

    def run(self, batch: list[Extract]) -> list[Extract]:
        """Compute the features that the cache did not have, and keep them there; give the same batch."""
        new = [each for each in batch if each.inputs is not None]
        if self._engine is None or not new:
            return batch
        inputs = np.stack([each.inputs for each in new if each.inputs is not None])
        found = self._engine.run(inputs, maps=self._wanted.maps)
        views = [found.features]
        if self._wanted.mirror:
            views.append(self._engine.run(np.ascontiguousarray(inputs[..., ::-1])).features)
        for i, each in enumerate(new):
            each.features = np.stack([view[i] for view in views])
            each.intermediate = found.intermediate[i]
            if self._wanted.maps and found.maps is not None:
                each.map = found.maps[i]
            else:
                each.inputs = None
        self._put(new)
        return batch

    def keep(self, extracts: Iterable[Extract]) -> None:
        """Keep what the cache lacks."""
        if self._cache is None:
            return
        known = [each for each in extracts if each.features is not None]
        new = [each for each in known if self._cache.get(each.cache_key, self._key) is None]
        self._put(new)
        measured = [(each.cache_key, each.measured[None]) for each in new if each.measured is not None]
        if measured:
            self._cache.put(self._measurement_key, measured)

    def _put(self, new: Sequence[Extract]) -> None:
        if self._cache is None:
            return
        self._cache.put(
            f"{self._key} intermediate",
            [(each.cache_key, each.intermediate[None]) for each in new if each.intermediate is not None],
        )
        self._cache.put(self._warnings_key, [(each.cache_key, _to_letters(each.warnings)) for each in new])
        self._cache.put(self._key, [(each.cache_key, each.features) for each in new if each.features is not None])

    def _look_up(self, extract: Extract) -> None:
        if self._cache is None:
            return
        if self._engine is not None and not self._wanted.maps:
            views = 2 if self._wanted.mirror else 1
            for key in self._keys:
                features = self._cache.get(extract.cache_key, key)
                intermediate = self._cache.get(extract.cache_key, f"{key} intermediate")
                if features is None or intermediate is None or features.shape[1] != self._engine.width:
                    continue
                if len(features) >= views:
                    extract.features, extract.intermediate = features[:views], intermediate[0]
                    break
        if self._wanted.measurement is not None:
            measured = self._cache.get(extract.cache_key, self._measurement_key)
            extract.measured = None if measured is None else measured[0]
        found = self._cache.get(extract.cache_key, self._warnings_key)
        if found is None:  # the image is looked at again
            extract.features = extract.intermediate = extract.measured = None
        else:
            extract.warnings = tuple(json.loads(bytes(found[0].astype(np.uint8))))

    def _lacks_nothing(self, extract: Extract) -> bool:
        return (
            ((self._engine is None and not self._wanted.inputs) or extract.features is not None)
            and (self._wanted.measurement is None or extract.measured is not None)
            and not self._wanted.pixels
        )

    def _decode(self, extract: Extract, content: bytes, name: str | None, reading: Reading) -> None:
        measurement = self._wanted.measurement
        image = read_radiograph(content, name, reading, self._spec.min_side, colour=measurement is not None)
        extract.tags, extract.size, extract.format = image.tags, image.size, image.format
        extract.warnings = image.warnings
        extract.read_size = image.grey.shape
        if self._cache is not None and self._engine is None:  # else `run` keeps them
            self._cache.put(self._warnings_key, [(extract.cache_key, _to_letters(extract.warnings))])
        if measurement is not None and extract.measured is None:
            extract.measured = measurement.compute(content, image)
            if self._cache is not None:
                self._cache.put(self._measurement_key, [(extract.cache_key, extract.measured[None])])
        if (self._engine is not None or self._wanted.inputs) and extract.features is None:
            extract.inputs = prepare_grey(image.grey, self._spec)
        if self._wanted.pixels:
            extract.pixels, extract.display = image.pixels, image.display


def _name_key(engine: Engine, spec: InputSpec, mirror: bool) -> str:
    """What features depend on besides the image, for the cache."""
    return f"{engine.fingerprint} {spec} {'mirror ' if mirror else ''}{__version__}"


def _to_letters(warnings: Sequence[str]) -> Array:
    """Warnings as the cache keeps them: float32 (1, N), one number for each byte of their JSON."""
    return np.frombuffer(json.dumps(warnings).encode(), np.uint8)[None].astype(np.float32)
