"""What is to be predicted: images of folders, tables and buckets, each with an id made from its place and version."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from pneumoscope.cluster.ids import IdSet
from pneumoscope.cluster.storage import Storage, is_url, join
from pneumoscope.datasets import tables
from pneumoscope.datasets.columns import Naming
from pneumoscope.datasets.image_files import DICOM_SUFFIXES, RASTER_SUFFIXES
from pneumoscope.datasets.reading import find_images
from pneumoscope.datasets.samples import Sample
from pneumoscope.datasets.table_samples import read_listed
from pneumoscope.errors import DataError
from pneumoscope.images.dicom import Tags
from pneumoscope.images.read import Reading
from pneumoscope.text import were

_TEXTS = {"id", "label", "patient", "sex", "view"}
_WITNESSES = 1000
_BATCH = 1000  # images that are listed before the first of them is given
_ID = 32  # hex digits: 128 bits, so that no two of 10^8 images share an id
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+(?=[^/])", re.IGNORECASE)
# DICOM files often have a UID for a name, whose last number looks like a suffix.
_NO_SUFFIX = re.compile(r"(\.\d+)?")


@dataclass(frozen=True, slots=True)
class ListedImage:
    """One image to predict, with what its table says.

    Attributes:
        id: the same for the same place, size and version, however often it is listed.
        path: of the file, or its address.
    """

    id: str
    path: str
    label: str | None = None
    patient: str | None = None
    age: float | None = None
    sex: str | None = None
    view: str | None = None
    invert: bool = False
    any_modality: bool = False

    def to_sample(self) -> Sample:
        """The image as a `Sample`, which the pipeline takes."""
        facts = (self.age, self.sex, self.view)
        tags = None if facts == (None, None, None) else Tags(age=self.age, sex=self.sex, view=self.view)
        return Sample(Path(self.path), self.label, self.patient, None, Reading(self.invert, self.any_modality), tags)


def list_images(data: str, reading: Reading = Reading(), naming: Naming = Naming()) -> Iterator[ListedImage]:
    """List the images of a folder, a table or a bucket, each once.

    Folders and tables of this machine are read as `pneumoscope predict` does. A table may name addresses; elsewhere it
    must name addresses, or paths relative to itself.

    Args:
        data: path or address.
        reading: how to read them.
        naming: the columns of a table.

    Raises:
        DataError: there are no images, or it cannot be read.
    """
    seen, repeated = IdSet(), 0
    listed = _list(data, reading, naming)
    while batch := list(islice(listed, _BATCH)):
        for image, is_new in zip(batch, seen.add([each.id for each in batch]), strict=True):
            if is_new:
                yield image
            else:
                repeated += 1
    if repeated:
        logging.getLogger("pneumoscope").warning("%s: repeated images are left out: %d.", data, repeated)
    if not len(seen):
        raise DataError(f"{data}: no images found here. Check the path.")


class Witnesses:
    """Some of the images that are listed now. If these can be reached, and others cannot, the others have gone.

    Attributes:
        paths: at most 1000, evenly spread.
    """

    def __init__(self) -> None:
        self.paths: list[str] = []
        self._step = 1

    def watch(self, images: Iterable[ListedImage]) -> Iterator[ListedImage]:
        """Yield the images, and keep some of them."""
        for number, image in enumerate(images):
            if number % self._step == 0:
                self.paths.append(image.path)
                if len(self.paths) > _WITNESSES:
                    self.paths, self._step = self.paths[::2], 2 * self._step
            yield image


def _list(data: str, reading: Reading, naming: Naming) -> Iterator[ListedImage]:
    is_table = PurePosixPath(data).suffix.lower() in tables.SUFFIXES
    if is_url(data):
        yield from _list_remote_table(data, reading, naming) if is_table else _list_bucket(data, reading)
        return
    path = Path(data)
    if is_table and path.is_file():
        rows = read_listed(path, naming, reading, labelled=False, files=False).samples
        places = [_restore_address(os.path.relpath(each.path, path.parent)) for each in rows]
        if any(map(is_url, places)):
            for sample, place in zip(rows, places, strict=True):
                yield _describe(sample, place) if is_url(place) else _describe_file(sample)
            return
    for sample in find_images([path], reading, naming):
        yield _describe_file(sample)


def _list_bucket(url: str, reading: Reading) -> Iterator[ListedImage]:
    others = 0
    for address, about in Storage(url).list_files():
        suffix = PurePosixPath(address).suffix.lower()
        if suffix in RASTER_SUFFIXES | DICOM_SUFFIXES or _NO_SUFFIX.fullmatch(suffix):
            version = next(
                (about[key] for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified") if key in about), ""
            )
            yield _describe(Sample(Path(address), reading=reading), address, f"{about.get('size')} {version}")
        else:
            others += 1
    if others:
        logging.getLogger("pneumoscope").warning(
            "%s: %s left out, because the suffix is not that of an image.", url, were(others, "file")
        )


def _list_remote_table(url: str, reading: Reading, naming: Naming) -> Iterator[ListedImage]:
    folder, _, name = url.rpartition("/")
    with tempfile.TemporaryDirectory() as kept:
        copy = Path(kept, name)
        copy.write_bytes(Storage(folder).read(name))
        rows = read_listed(copy, naming, reading, labelled=False, files=False).samples
        for sample in rows:
            place = _restore_address(os.path.relpath(sample.path, kept))
            yield _describe(sample, place if is_url(place) else join(folder, place))


def _restore_address(path: str) -> str:
    """Restore an address that was a path, and so has only one slash after the scheme."""
    return _ADDRESS.sub(r"\1://", path, count=1) if _ADDRESS.match(path) else path


def _find_version(path: Path) -> str:
    try:
        status = path.stat()
    except (OSError, ValueError):  # it gets a row with its error
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"


def _describe_file(sample: Sample) -> ListedImage:
    return _describe(sample, str(sample.path.absolute()), _find_version(sample.path))


def _describe(sample: Sample, path: str, version: str = "") -> ListedImage:
    reading, tags = sample.reading, sample.tags or Tags()
    text = "\0".join((path, version, str(reading.invert), str(reading.any_modality)))
    return ListedImage(
        hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_ID],
        path,
        sample.label,
        sample.patient,
        tags.age,
        tags.sex,
        tags.view,
        reading.invert,
        reading.any_modality,
    )


def make_images(rows: Iterable[Mapping[str, Any]]) -> list[ListedImage]:
    """Images of rows with a `path`, and perhaps other fields of a `ListedImage`; missing cells may be NaN.

    Raises:
        DataError: a row has no path.
    """
    images = []
    for row in rows:
        known = {name: row[name] for name in ListedImage.__slots__ if tables.to_text(row.get(name)) is not None}
        known |= {name: tables.to_text(known[name]) for name in known.keys() & _TEXTS}  # patients may be numbers
        if "path" not in known:
            raise DataError("A row has no `path`. Name the column that holds the file `path`.")
        image = _describe(Sample(Path(known["path"])), str(known["path"]))
        images.append(replace(image, **known))
    return images
