"""The uploaded files that the service keeps in a folder, under their SHA-256."""

from __future__ import annotations

from pathlib import Path

from pneumoscope.errors import DataError, UsageError
from pneumoscope.files import write_bytes
from pneumoscope.images.read import SUFFIXES
from pneumoscope.server.store import PredictionRecord

MEDIA_TYPES = {
    "JPEG": "image/jpeg", "PNG": "image/png", "TIFF": "image/tiff", "BMP": "image/bmp", "WEBP": "image/webp",
    "GIF": "image/gif", "JPEG2000": "image/jp2", "DICOM": "application/dicom",
}  # fmt: skip


def locate_image(folder: Path, sha256: str, form: str) -> Path:
    """Where the file of a prediction is kept; `form`: as in `PredictionRecord.format`."""
    return folder / f"{sha256}{SUFFIXES.get(form, ('.dcm',))[0]}"


def keep_image(folder: Path, content: bytes, record: PredictionRecord) -> None:
    """Keep the file of a prediction.

    Raises:
        DataError: the folder cannot be written.
    """
    path = locate_image(folder, record.sha256, record.format)
    try:
        if not path.exists():
            write_bytes(path, content)
            path.chmod(0o600)
    except (OSError, UsageError) as problem:
        raise DataError(str(problem), parameter="keep_images") from None


def is_kept(folder: Path | None, record: PredictionRecord) -> bool:
    """Whether the file of a prediction is kept."""
    return folder is not None and locate_image(folder, record.sha256, record.format).exists()


def read_image(folder: Path | None, record: PredictionRecord) -> bytes | None:
    """The file of a prediction; None where it was not kept, or is gone.

    Raises:
        DataError: it cannot be read.
    """
    if folder is None:
        return None
    try:
        return locate_image(folder, record.sha256, record.format).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise DataError(f"{folder}: {problem.strerror}", parameter="keep_images") from None


def delete_images(folder: Path | None, sha256: str) -> None:
    """Delete a file, whatever its format.

    Raises:
        DataError: the folder cannot be changed.
    """
    if folder is None:
        return
    try:
        for path in folder.glob(f"{sha256}.*"):
            path.unlink(missing_ok=True)
    except OSError as problem:
        raise DataError(f"{folder}: {problem.strerror}", parameter="keep_images") from None
