"""The record of a run, `resume.json`: the files that it began with, and the remarks on the model that it made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from pneumoscope.datasets.samples import Sample
from pneumoscope.errors import DataError, ModelError, UsageError
from pneumoscope.files import write_text
from pneumoscope.models.model_folder import load_model
from pneumoscope.training.initial import InitialModel
from pneumoscope.training.remarks import Remarks

RECORD = "resume.json"
_LISTED = 3  # files that an error names


@dataclass(frozen=True)
class Record:
    """What a run needs to be resumed, besides its settings, samples and checkpoints."""

    # size in bytes, time of the last change in nanoseconds, and SHA-256 of each sample's file, in the order of
    # samples.csv. The digest is None until the file was read, and empty where that failed.
    files: tuple[tuple[int, int, str | None], ...]
    remarks: Remarks | None = None  # on the model with these weights
    weights_sha256: str = ""
    initial_sha256: str = ""  # of the weights of the model that the run continues from
    launch: str = ""  # names the call of `torchrun` that began the run; see `Processes`


def begin_record(
    folder: Path, samples: Sequence[Sample], initial: InitialModel | None = None, launch: str = ""
) -> None:
    """Record the sizes and times of the files that a run begins with, and the model that it continues from."""
    files = tuple((*_find_state(sample.path), None) for sample in samples)
    _write(folder, Record(files, initial_sha256=_identify(initial), launch=launch))


def was_begun_by(folder: Path, launch: str) -> bool:
    """Whether this training began the run in this folder, if there is one; then `torchrun` has started it again."""
    if not launch or not (folder / RECORD).exists():
        return False
    with suppress(UsageError):  # damaged: whoever opens the run says so
        return _read(folder).launch == launch
    return False


def record_digests(folder: Path, digests: Sequence[str | None]) -> None:
    """Add what the files contained when they were read, None for those that were not.

    All else that is recorded belongs to an earlier model.
    """
    record = _read(folder)
    files = zip(record.files, digests, strict=True)
    known = tuple((size, changed, digest) for (size, changed, _), digest in files)
    _write(folder, Record(known, initial_sha256=record.initial_sha256, launch=record.launch))


def is_whole(folder: Path) -> bool:
    """Whether all files of a run were read; those of the test split are not without a test."""
    return all(digest is not None for _, _, digest in _read(folder).files)


def check_files(folder: Path, samples: Sequence[Sample]) -> None:
    """Check that the files of a run contain what they did; only those with another size or time are read.

    Raises:
        DataError: some do not.
    """
    files = _read(folder).files
    if len(files) != len(samples):
        raise DataError(
            f"{folder / RECORD} lists {len(files)} images, but the run has {len(samples)}. Start a new run."
        )
    changed = [
        sample.path
        for sample, (size, time, digest) in zip(samples, files, strict=True)
        if digest is not None and _find_state(sample.path) != (size, time) and _digest(sample.path) != digest
    ]
    if changed:
        some = ", ".join(map(str, changed[:_LISTED])) + (", …" if len(changed) > _LISTED else "")
        raise DataError(
            f"{len(changed)} image{'s have' if len(changed) > 1 else ' has'} changed since the run in {folder} began: "
            f"{some}. Restore the files, or start a new run."
        )


def check_initial(folder: Path, initial: InitialModel | None) -> None:
    """Check that the model which a run continues from is the same as when the run began.

    Raises:
        DataError: it is not.
    """
    if initial is not None and _identify(initial) != _read(folder).initial_sha256:
        raise DataError(
            f"{initial.parent.name}: this model has changed since the run in {folder} began. Restore it, or start a "
            "new run."
        )


def _identify(initial: InitialModel | None) -> str:
    return "" if initial is None else initial.parent.weights_sha256


def save_remarks(folder: Path, remarks: Remarks) -> None:
    """Keep the remarks on the model in the run's folder, in case the run ends before its report or is resumed."""
    weights = load_model(folder / "model").weights_sha256
    _write(folder, replace(_read(folder), remarks=remarks, weights_sha256=weights))


def load_remarks(folder: Path) -> Remarks | None:
    """The remarks on the run's model; None if it is still to be trained, or is another one."""
    record = _read(folder)
    with suppress(ModelError, UsageError):  # there may be none yet
        if load_model(folder / "model").weights_sha256 == record.weights_sha256:
            return record.remarks
    return None


def _write(folder: Path, record: Record) -> None:
    write_text(folder / RECORD, json.dumps(asdict(record), default=str))


def _read(folder: Path) -> Record:
    path = folder / RECORD
    try:
        return TypeAdapter(Record).validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise UsageError(f"{path}: missing or damaged. Start the run again with `overwrite=True`.") from None


def _find_state(path: Path) -> tuple[int, int]:
    """Size and time of the last change of a file; 0 where it cannot be found."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _digest(path: Path) -> str:
    """SHA-256 of a file, empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return ""
