"""Models from elsewhere, in the cache folder: unpacked from a zip archive, or downloaded. None of them is trusted."""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from pneumoscope.datasets.archives import download, hash_archive, hide_secrets, open_archive
from pneumoscope.errors import DataError, ModelError, PneumoscopeError, UsageError
from pneumoscope.files import cache_folder, lock_folder, write_text
from pneumoscope.models.model_folder import (
    FILES,
    MAX_FILE,
    PROGRAM,
    WEIGHTS,
    Model,
    find_file,
    load_arrays,
    load_model,
)
from pneumoscope.models.pretrained import DESCRIPTION

CARD = "README.md"
SHARED = (DESCRIPTION, WEIGHTS, CARD, "export.json", *(name for name in FILES if name != PROGRAM))
MAX_ARCHIVE = 2 * MAX_FILE  # bytes of a zip archive with a model


def verify_model(folder: Path) -> Model:
    """Check every file of a model that comes from elsewhere.

    Raises:
        ModelError: one is missing or damaged, or could run code.
    """
    model = load_model(folder)
    if PROGRAM in model.files:
        raise ModelError(
            f"{folder}: holds {PROGRAM}, which can run code, and so is not shared. Export the model in another format."
        )
    load_arrays(folder, model)
    for name in model.files:
        find_file(folder, model, name)
    return model


def keep(key: str, name: str, fill: Callable[[Path], None]) -> Path:
    """Keep a model in the cache folder, and return its folder there.

    Args:
        key: identifies the content, as a checksum does; if an intact copy is there, it is used again.
        name: of the model, and of its folder.
        fill: called with a folder; writes the model's files into it.

    Raises:
        ModelError: the files that were written are not an intact model.
        UsageError: the cache folder cannot be written.
    """
    if (kept := find_kept(key)) is not None:
        return kept
    target = _cache() / key
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".", suffix=".part", dir=target.parent))
    except OSError as problem:
        raise _refuse(target, problem) from None
    try:
        folder = draft / _clean(name)
        folder.mkdir()
        fill(folder)
        verify_model(folder)
        shutil.rmtree(target, ignore_errors=True)  # damaged
        with suppress(FileExistsError):  # of another process, with the same content
            draft.rename(target)
        return target / folder.name
    except ModelError as problem:  # the draft is removed, so its place tells nothing
        raise ModelError(str(problem).replace(f"{draft}/", "")) from None
    except OSError as problem:
        raise _refuse(target, problem) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _clean(name: str) -> str:
    """A safe folder name, but not `model`, for which the name of the folder above would be shown."""
    cleaned = re.sub(r"[^\w.-]+", "-", name).strip(".-")[:80]
    return cleaned if cleaned not in ("", "model") else "shared-model"


def find_kept(key: str) -> Path | None:
    """The folder of a model in the cache folder, if there is one and it is intact."""
    try:
        (folder,) = (_cache() / key).iterdir()
        verify_model(folder)
    except (OSError, ValueError, PneumoscopeError):
        return None
    return folder


def unpack_model(path: Path) -> Path:
    """Unpack a zip archive of a model folder, or of a folder that holds one, such as a run, into the cache folder.

    Nothing but the files of the model is unpacked.

    Raises:
        ModelError: the archive is damaged or unsafe, or holds no model or several.
        UsageError: the cache folder cannot be written.
    """
    try:
        digest = hash_archive(path)
        with open_archive(path) as archive:
            root = _find_root(archive)
            inner = [name for name in PurePosixPath(root).parts if name != "model"]
            name = inner[-1] if inner else path.stem
            return keep(digest, name, lambda folder: _unpack(archive, root, folder))
    except DataError as problem:
        raise ModelError(str(problem)) from None


def fetch_model(address: str) -> Path:
    """Download a zip archive of a model once; log a message whenever the copy in the cache folder is used.

    Args:
        address: one that begins with https://. It may end in `#sha256=` and the SHA-256 that the archive must have.

    Raises:
        DownloadError: it cannot be downloaded.
        ModelError: the archive has another checksum, or holds no model.
        UsageError: the address is not valid, or the cache folder cannot be written.
    """
    url, wanted = _split_address(address)
    shown, note = hide_secrets(url), _cache() / "addresses" / f"{hashlib.sha256(url.encode()).hexdigest()}.json"
    known = _read_note(note)
    if known and wanted in (None, known["sha256"]) and (kept := find_kept(known["sha256"])) is not None:
        _log(
            f"{shown}: using the copy of {known['date']} in the cache folder (SHA-256 {known['sha256']}). There may be "
            f"a newer one. To download it again, delete {note}."
        )
        return kept
    _log(f"{shown}: downloading")
    workshop = note.with_suffix("")
    with lock_folder(workshop):
        path = workshop / f"{_clean(PurePosixPath(shown).stem)}.zip"  # an address may end in .. or be very long
        download(url, path, most=MAX_ARCHIVE)
        digest = hash_archive(path)
        if wanted not in (None, digest):
            shutil.rmtree(workshop)
            raise ModelError(
                f"{shown}: its SHA-256 is {digest}, not {wanted}: this is a different file. Ask whoever published it."
            )
        try:
            folder = unpack_model(path)
        except ModelError as problem:
            raise ModelError(str(problem).replace(str(path), shown)) from None
        finally:
            shutil.rmtree(workshop)
        write_text(note, json.dumps({"address": shown, "sha256": digest, "date": f"{datetime.date.today()}"}))
    if wanted is None:
        _log(f"{shown}: SHA-256 {digest}. To accept only this file from now on: {shown}#sha256={digest}")
    return folder


def _split_address(address: str) -> tuple[str, str | None]:
    url, _, pin = address.partition("#")
    if pin and not re.fullmatch(r"sha256=[0-9a-fA-F]{64}", pin):
        raise UsageError(f"{hide_secrets(url)}: after # comes sha256= and 64 hexadecimal digits, not {pin!r}.", "model")
    if not url.startswith("https://"):
        raise UsageError(f"{hide_secrets(url)}: a model is fetched only from an https:// address.", "model")
    return url, pin.removeprefix("sha256=").lower() or None


def _read_note(path: Path) -> dict[str, Any] | None:
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        if re.fullmatch("[0-9a-f]{64}", note["sha256"]) and re.fullmatch("[0-9-]{10}", note["date"]):
            return dict(note)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _find_root(archive: zipfile.ZipFile) -> str:
    """The folder of an archive that holds the model: "", or a path that ends in a slash."""
    names = [each.filename for each in archive.infolist() if "__MACOSX" not in each.filename]
    roots = [name.removesuffix(DESCRIPTION) for name in names if PurePosixPath(name).name == DESCRIPTION]
    if not roots:
        raise ModelError(
            f"{archive.filename}: holds no model ({DESCRIPTION} is missing). Pack a model folder or a run."
        )
    fewest = min(map(_depth, roots))
    if len(top := [root for root in roots if _depth(root) == fewest]) > 1:
        raise ModelError(f"{archive.filename}: holds several models: {', '.join(sorted(top)[:3])}. Pack one of them.")
    return top[0]


def _depth(root: str) -> int:
    return root.count("/") - root.endswith("model/")  # the model of a run counts as deep as the run


def _unpack(archive: zipfile.ZipFile, root: str, folder: Path) -> None:
    for member in archive.infolist():
        name = member.filename.removeprefix(root)
        if not member.filename.startswith(root) or name not in (*SHARED, PROGRAM):
            continue
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ModelError(f"{archive.filename}: is encrypted, or compressed in an unusual way. Pack it again.")
        if member.file_size > MAX_FILE:
            raise ModelError(f"{archive.filename}: {name} has {member.file_size:,} bytes; the limit is {MAX_FILE:,}.")
        _copy(archive, member, folder / name)


def _copy(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    left = member.file_size  # zipfile would inflate whatever there is
    try:
        with archive.open(member) as source, path.open("xb") as file:
            while left and (block := source.read(min(left, 1 << 20))):
                file.write(block)
                left -= len(block)
            if left or source.read(1):  # at the end zipfile compares the CRC
                raise EOFError("its size is wrong")
    except FileExistsError:
        raise ModelError(f"{archive.filename}: contains {member.filename!r} twice. Pack it again.") from None
    except OSError:
        raise
    except Exception as problem:  # zipfile raises nearly anything on a damaged file
        raise ModelError(
            f"{archive.filename}: contains a damaged file, {member.filename} ({problem}). Get it again."
        ) from None


def _refuse(path: Path, problem: OSError) -> UsageError:
    return UsageError(
        f"{path}: cannot be written: {problem.strerror or problem}. Set PNEUMOSCOPE_CACHE to a folder that "
        "can be written."
    )


def _cache() -> Path:
    return cache_folder() / "models"


def _log(message: str) -> None:
    logging.getLogger("pneumoscope").warning("%s", message)
