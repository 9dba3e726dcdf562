"""The files of the node: images received, results to send, and what was set aside. The disk says what was received.

    node.json    the node's id, and the seed of its waits
    incoming/    files that are being written
    images/      received images, named by hashes of their SOP Instance UID and content
    results/     results, named by a hash of their SOP Instance UID
    set-aside/   images that cannot be answered, each with its reason

No file name comes from a header. A file is written elsewhere, put on disk (fsync) and then renamed. So it is either
complete or not there, whenever the process or the machine stops.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pneumoscope.errors import UsageError
from pneumoscope.files import lock_folder, write_text

SCHEMA = 1
_UID = re.compile(r"[0-9.]{1,64}")
_TITLE = re.compile(r"[^\x20-\x5b\x5d-\x7e]")
_KEY = re.compile(r"[0-9a-f]{20}-[0-9a-f]{40}")
_PREAMBLE = bytes(128) + b"DICM"
_LONG = (b"OB", b"OW", b"UN", b"UT", b"SQ")  # types of values whose length has 4 bytes (PS3.5 7.1.2)
_HELD = ".held"  # suffix of the empty file beside a result of a dry run
LARGEST_META = 65_536  # bytes
_FOLDERS = ("incoming", "images", "results", "set-aside")


class FullError(OSError):
    """There is too little space on the disk."""


@dataclass(frozen=True)
class Arrival:
    """What came with an object.

    Attributes:
        sop_class: its SOP Class UID.
        sop_uid: its SOP Instance UID.
        syntax: the transfer syntax of its bytes.
        calling: AE title of the sender; `STOW` if it came over HTTP.
    """

    sop_class: str
    sop_uid: str
    syntax: str
    calling: str


@dataclass(frozen=True)
class Stored:
    """An object on disk.

    Attributes:
        key: its name in the spool.
        repeat: whether the same bytes were there before.
        changed: whether other bytes of the same SOP Instance UID were there before.
    """

    key: str
    repeat: bool
    changed: bool = False


class Spool:
    """The folder of one node.

    Args:
        folder: it is made if there is none.
        free_bytes: free space on the disk below which nothing more is received.
    """

    def __init__(self, folder: Path, free_bytes: int) -> None:
        self.folder = folder
        self._free_bytes = free_bytes
        self._made: set[Path] = set()
        self._lock = threading.Lock()
        self.node, self.seed = "", 0

    @contextmanager
    def open(self, patience: float = 5.0) -> Iterator[Spool]:
        """Make the folder, and keep other processes out; `patience`: seconds to wait for a process that is ending.

        Raises:
            UsageError: another process uses it, or it cannot be written.
        """
        with lock_folder(self.folder, patience):
            try:
                for name in _FOLDERS:
                    (self.folder / name).mkdir(exist_ok=True, mode=0o700)
                for part in (self.folder / "incoming").iterdir():  # of a process that was killed: never acknowledged
                    part.unlink()
                self.node, self.seed = self._identify()
                _sync(self.folder)
            except OSError as problem:
                raise UsageError(f"{self.folder}: cannot be used: {problem.strerror or problem}.", "spool") from None
            yield self

    def _identify(self) -> tuple[str, int]:
        file = self.folder / "node.json"
        if not file.exists():
            text = json.dumps({"schema": SCHEMA, "node": secrets.token_hex(8), "seed": secrets.randbits(32)})
            write_text(file, text)
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            schema, node, seed = int(found["schema"]), str(found["node"]), int(found["seed"])
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{file}: damaged. Choose another folder, or restore this file.", "spool") from None
        if schema != SCHEMA:
            raise UsageError(f"{file}: schema {schema}; this version knows {SCHEMA}. Choose another folder.", "spool")
        return node, seed

    def free(self) -> int:
        """Bytes that are free on its disk."""
        return shutil.disk_usage(self.folder).free

    @property
    def full(self) -> bool:
        """Whether there is too little space to receive anything."""
        return self.free() < self._free_bytes

    def store(self, arrival: Arrival, data: bytes | memoryview) -> Stored:
        """Write an image. When this returns, it is on disk, and its file has the time of its last arrival.

        Args:
            arrival: what came with it.
            data: its data set, as it came.

        Raises:
            FullError: there is too little space.
            ValueError: a UID is not valid.
            OSError: it cannot be written.
        """
        for uid in (arrival.sop_class, arrival.sop_uid, arrival.syntax):
            if not _UID.fullmatch(uid):
                raise ValueError("not a UID")
        path = self.path_of(f"{digest(arrival.sop_uid)[:20]}-{hashlib.sha256(data).hexdigest()[:40]}")
        if path.exists():
            os.utime(path)
            _sync(path)
            _sync(path.parent)  # of another association that may not have got that far
            return Stored(path.stem, repeat=True)
        if self.free() - len(data) < self._free_bytes:
            raise FullError(errno.ENOSPC, "too little space", str(self.folder))
        self._write(path, _PREAMBLE + _encode_meta(arrival), data)
        changed = any(other.name != path.name for other in path.parent.glob(f"{path.stem[:20]}-*"))
        return Stored(path.stem, repeat=False, changed=changed)

    def store_result(self, sop_uid: str, content: bytes, held: bool = False) -> str:
        """Write a result unless it is there, and return its name; what is on disk is what is sent, now and later.

        Args:
            sop_uid: its SOP Instance UID.
            content: the file.
            held: whether a dry run made it. This is noted on disk, so that it also holds with another database.
        """
        name = digest(sop_uid)[:40]
        path = self.result_path(name)
        if not path.exists():
            if held:
                self._write(path.with_suffix(_HELD), b"")
            else:
                path.with_suffix(_HELD).unlink(missing_ok=True)  # of one that was removed
            self._write(path, content)
        return name

    def is_held(self, name: str) -> bool:
        """Whether a dry run made a result, so that it is never sent."""
        return self.result_path(name).with_suffix(_HELD).exists()

    def path_of(self, key: str) -> Path:
        """Where an image is."""
        return self.folder / "images" / key[:2] / f"{key}.dcm"

    def result_path(self, name: str) -> Path:
        """Where a result is."""
        return self.folder / "results" / name[:2] / f"{name}.dcm"

    def list_keys(self) -> Iterator[str]:
        """The names of all images."""
        for folder in sorted((self.folder / "images").iterdir()):
            if folder.is_dir():
                for path in sorted(folder.iterdir()):
                    if _KEY.fullmatch(path.stem):
                        yield path.stem

    def set_aside(self, key: str, reason: str) -> None:
        """Move an image to where a person can look at it, with the reason beside it; repeating this does no harm.

        Raises:
            OSError: it cannot be moved, or the disk is full.
        """
        source, target = self.path_of(key), self.folder / "set-aside" / f"{key}.dcm"
        about = {"reason": reason, "file": target.name, "set_aside": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        if source.exists():
            self._write(target.with_suffix(".json"), (json.dumps(about, indent=2) + "\n").encode())
            source.replace(target)
            _sync(target.parent)

    def take_back(self, key: str) -> None:
        """Remove an image from those set aside, because it has been answered after all."""
        for suffix in (".json", ".dcm"):
            (self.folder / "set-aside" / f"{key}{suffix}").unlink(missing_ok=True)

    def remove(self, key: str) -> None:
        """Remove an image that is not needed any more."""
        self.path_of(key).unlink(missing_ok=True)

    def remove_result(self, name: str) -> None:
        """Remove a result that is not needed any more."""
        self.result_path(name).unlink(missing_ok=True)
        self.result_path(name).with_suffix(_HELD).unlink(missing_ok=True)

    def _write(self, path: Path, *parts: bytes | memoryview) -> None:
        """Write a complete file, and wait until it is on disk."""
        self._make_folder(path.parent)
        part = self.folder / "incoming" / f"{path.stem}.{secrets.token_hex(4)}.part"
        try:
            descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o600)
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                for each in parts:
                    _write_whole(file, each)
                os.fsync(descriptor)
            part.replace(path)
            _sync(path.parent)
        except OSError as problem:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            if problem.errno in (errno.ENOSPC, errno.EDQUOT):
                raise FullError(*problem.args) from None
            raise

    def _make_folder(self, folder: Path) -> None:
        if folder not in self._made:
            with self._lock:
                folder.mkdir(exist_ok=True, mode=0o700)
                _sync(folder.parent)
                self._made.add(folder)


def digest(text: str) -> str:
    """A name for a UID in files and logs: its SHA-256 in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Meta:
    """Meta information of a file, and where its data set begins."""

    arrival: Arrival
    start: int


def read_meta(content: bytes) -> Meta:
    """Read the meta information at the beginning of a file (PS3.10 7.1), without trusting it.

    Raises:
        ValueError: it is missing or damaged.
    """
    if content[128:140] != b"DICM\x02\0\0\0UL\x04\0" or len(content) < 144:
        raise ValueError("no meta information")
    place, end = 144, 144 + int.from_bytes(content[140:144], "little")
    if end > min(len(content), LARGEST_META):
        raise ValueError("damaged meta information")
    values: dict[int, str] = {}
    while place + 8 <= end:
        group, element = struct.unpack_from("<HH", content, place)
        long = content[place + 4 : place + 6] in _LONG
        length = int.from_bytes(content[place + 8 : place + 12] if long else content[place + 6 : place + 8], "little")
        place += 12 if long else 8
        if group != 2 or place + length > end:
            raise ValueError("damaged meta information")
        values[element] = content[place : place + length].decode("latin-1").strip(" \0")
        place += length
    arrival = Arrival(*(values.get(element, "") for element in (0x0002, 0x0003, 0x0010, 0x0016)))
    if place != end or not all(map(_UID.fullmatch, (arrival.sop_class, arrival.sop_uid, arrival.syntax))):
        raise ValueError("damaged meta information")
    return Meta(arrival, end)


def read_arrival(path: Path) -> Arrival:
    """What came with an image, from the meta information that the node wrote.

    Raises:
        ValueError: it is damaged.
    """
    with path.open("rb") as file:
        return read_meta(file.read(LARGEST_META)).arrival


def _encode_meta(arrival: Arrival) -> bytes:
    """The meta information of a file (PS3.10 7.1); its source is the sender."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_file_meta_info
    from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, UID

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(arrival.sop_class)
    meta.MediaStorageSOPInstanceUID = UID(arrival.sop_uid)
    meta.TransferSyntaxUID = UID(arrival.syntax)
    meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    meta.SourceApplicationEntityTitle = _TITLE.sub("_", arrival.calling)[:16]
    stream = DicomBytesIO()
    write_file_meta_info(stream, meta)
    return bytes(stream.getvalue())


def _write_whole(file: io.FileIO, content: bytes | memoryview) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _sync(path: Path) -> None:
    """Put a file, or the names in a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
