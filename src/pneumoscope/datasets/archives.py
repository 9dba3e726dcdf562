"""The images in a data set's zip archive, wherever in it they lie. An archive is never trusted."""

from __future__ import annotations

import hashlib
import re
import stat
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from pneumoscope.datasets.samples import SPLITS
from pneumoscope.errors import DataError, UsageError

_MAX_MEMBERS = 250_000  # version 3 of the Kermany data, with its OCT images, has about 115,000
_MAX_BYTES = 16 << 30
_MAX_IMAGE_BYTES = 64 << 20
_MAX_RATIO = 100  # JPEG hardly shrinks; a member of zeros shrinks a thousandfold
_BLOCK = 1 << 20
# No file of any system: a dot in front, a device of Windows, another alphabet, a stream behind a colon.
_IMAGE_NAME = re.compile(
    r"(?!(?:con|prn|aux|nul|com\d|lpt\d)\.)[a-z0-9][a-z0-9._-]{0,99}\.(?:jpe?g|png)", re.IGNORECASE | re.ASCII
)
_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png"}


def hash_archive(path: Path) -> str:
    """SHA-256 of an archive, in hexadecimal.

    Raises:
        DataError: it cannot be read, or lists more members than any data set known here.
    """
    digest, members = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                members += block.count(b"PK\1\2")  # APPNOTE 4.3.12: one for each; zipfile would load them all
    except OSError as problem:
        raise DataError(f"{path}: cannot be read: {problem.strerror or problem}.") from None
    if members > _MAX_MEMBERS:
        raise DataError(f"{path}: lists more than {_MAX_MEMBERS:,} files; this is no archive of the data set.")
    return digest.hexdigest()


class ImageArchive:
    """The files `…/{train,val,test}/{LABEL}/NAME.jpeg` of a zip archive, found by this structure alone.

    Everything else is left out: other folders (`OCT2017`), a copy within the copy (`chest_xray/chest_xray`), litter of
    macOS. Nothing is unpacked from an archive with a name that points outside, a link, or unbounded contents.

    Args:
        path: the archive.
        labels: the class folders; a set of images has all of them.

    Raises:
        DataError: it is no zip archive, is damaged, encrypted or unsafe, or holds no such images, or two sets of them.
    """

    def __init__(self, path: Path, labels: Sequence[str]) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except Exception as problem:  # zipfile raises nearly anything on a damaged file
            raise DataError(f"{path}: cannot be read as a zip archive ({problem}).{self._hint()}") from None
        try:
            self._entries = self._find(labels)
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of each image, by its place `split/LABEL/name`, in order."""
        return {place: entry.file_size for place, entry in self._entries.items()}

    def unpack(self, folder: Path, places: Iterable[str]) -> None:
        """Write the images of these places into a folder, each checked against its CRC.

        Raises:
            DataError: the archive is damaged.
            UsageError: the folder cannot be written.
        """
        made: set[Path] = set()
        for place in places:
            target = folder / place
            try:
                if target.parent not in made:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    made.add(target.parent)
                with target.open("xb") as file:
                    file.write(self._read(place))
            except OSError as problem:
                raise UsageError(
                    f"{target}: cannot be written: {problem.strerror or problem}. Make room, or choose another --out."
                ) from None

    def _read(self, place: str) -> bytes:
        entry = self._entries[place]
        try:
            with self._zip.open(entry) as member:
                content = member.read(entry.file_size)  # asked for all, zipfile would inflate beyond what is declared
        except Exception as problem:  # as above
            raise DataError(f"{self.path}: {place} is damaged in it ({problem}). Get the archive again.") from None
        if len(content) != entry.file_size:
            raise DataError(f"{self.path}: {place} is cut short in it. Get the archive again.")
        return content

    def _hint(self) -> str:
        """What a file that is no archive probably is."""
        try:
            with self.path.open("rb") as file:
                start = file.read(512).lstrip().lower()
        except OSError:
            return ""
        if start.startswith((b"<!doctype", b"<html", b"<?xml", b"{")):
            return " It is a web page: the download had failed. Download the archive again."
        if start.startswith(b"pk"):
            return " It seems cut short: download it again."
        return " Give the .zip as published."

    def _find(self, labels: Sequence[str]) -> dict[str, zipfile.ZipInfo]:
        """The images' entries by place, below the outermost folder that has all labels."""
        entries = self._zip.infolist()
        self._check(entries)
        layout = re.compile(
            rf"((?:.*/)?)((?:{'|'.join(SPLITS)})/(?:{'|'.join(map(re.escape, labels))})/([^/]+))", re.DOTALL
        )
        roots: dict[str, dict[str, tuple[str, zipfile.ZipInfo]]] = {}
        for entry in entries:
            found = layout.fullmatch(entry.filename)
            if not found or _is_litter(PurePosixPath(entry.filename)):
                continue
            root, place, name = found.groups()
            if not _IMAGE_NAME.fullmatch(name):
                raise DataError(f"{self.path}: {entry.filename!r} is no name of an image in this data set.")
            if entry.flag_bits & 1:
                raise DataError(f"{self.path}: is encrypted. Give the archive as published, without a password.")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(f"{self.path}: is compressed in an unusual way. Give the .zip as published.")
            # Many file systems hold `a.jpeg` and `A.jpeg` to be one.
            if roots.setdefault(root, {}).setdefault(place.casefold(), (place, entry)) != (place, entry):
                raise DataError(f"{self.path}: names {entry.filename!r} twice, letter case aside.")
        whole = sorted(
            (
                root
                for root, found in roots.items()
                if {place.split("/")[1] for place, _ in found.values()} == set(labels)
            ),
            key=len,
        )
        if not whole:
            inner = [
                entry.filename for entry in entries if entry.filename.lower().endswith((".zip", ".tar.gz", ".tgz"))
            ]
            raise DataError(
                f"{self.path}: no folders {{train,test}}/{{{','.join(labels)}}} with images in it."
                + (f" It holds another archive, {inner[0]}: unpack that one and give it." if inner else "")
            )
        if others := [root for root in whole if not root.startswith(whole[0])]:
            raise DataError(f"{self.path}: holds two sets of images, {whole[0]} and {others[0]}; give one.")
        return dict(sorted(roots[whole[0]].values()))

    def _check(self, entries: Sequence[zipfile.ZipInfo]) -> None:
        """Refuse what could write outside a folder, differ between systems, or fill memory or disk."""
        for entry in entries:
            name = entry.orig_filename  # as it is in the archive: zipfile cuts and replaces
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if re.match(r"/|[a-z]:", name, re.IGNORECASE) or "\\" in name or "\0" in name or ".." in name.split("/"):
                raise DataError(f"{self.path}: unsafe: {name!r} points outside its folder. Nothing was unpacked.")
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DataError(f"{self.path}: unsafe: {name!r} is a link or a device. Nothing was unpacked.")
            if entry.file_size > _MAX_IMAGE_BYTES and PurePosixPath(name).suffix.lower() in _IMAGE_SUFFIXES:
                raise DataError(f"{self.path}: {name!r} has {entry.file_size:,} bytes, too much for an image.")
        total, packed = sum(entry.file_size for entry in entries), self.path.stat().st_size
        if total > min(_MAX_BYTES, _MAX_RATIO * packed):
            raise DataError(
                f"{self.path}: {packed:,} bytes would unpack to {total:,}; this is no archive of the data set."
            )


def _is_litter(path: PurePosixPath) -> bool:
    return "__MACOSX" in path.parts or path.name.startswith(".") or path.suffix.lower() not in _IMAGE_SUFFIXES
