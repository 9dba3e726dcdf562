"""Sends DICOM files to a destination once: results that were written to a folder, or any others."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pneumoscope.config import Progress, checked, silent
from pneumoscope.dicomnet.addresses import Destination, Tls, Verify, check_destination, check_title, parse_destination
from pneumoscope.dicomnet.destinations import Item, UnreachableError, make_sender
from pneumoscope.errors import DataError, DownloadError, UsageError
from pneumoscope.images.dicom import is_dicom
from pneumoscope.text import counted, to_line

_PATIENCE = 30.0  # seconds for which the destination is asked whether it has everything
_WANTED = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]


@dataclass(frozen=True)
class Sent:
    """What became of one file.

    Attributes:
        path: the file.
        sop_uid: its SOPInstanceUID; empty where it could not be read.
        error: why the destination does not have it; None where it does.
    """

    path: Path
    sop_uid: str
    error: str | None = None


@checked
def send_files(
    paths: Sequence[str | Path],
    to: str,
    *,
    verify: Verify = "none",
    title: str = "PNEUMOSCOPE",
    token_file: str | Path | None = None,
    authorities: str | Path | None = None,
    progress: Progress = silent,
) -> list[Sent]:
    """Send DICOM files over one association, or one by one over HTTP.

    Args:
        paths: files, or folders of them.
        to: `dicom://TITLE@HOST:PORT`, `dicoms://` for TLS, or the address of a DICOMweb service.
        verify: `find` or `qido` asks the destination afterwards whether it has each file.
        title: our own AE title.
        token_file: holds a token for a DICOMweb service.
        authorities: certificates (PEM) of the authorities to trust for the destination, instead of the system's.
        progress: called with the number of files done.

    Returns:
        One for each file, in the order of the paths.

    Raises:
        DataError: there are no DICOM files.
        DownloadError: the destination cannot be reached, or stops answering.
        UsageError: an address, a title or a path is not valid, or an option does not suit the address.
    """
    check_title(title)
    if verify == "commitment":
        raise UsageError("needs a node that waits for the answer. Use `find`, or `pneumoscope dicom node`.", "verify")
    destination = _read_destination(to, verify, token_file, authorities)
    sender = make_sender(destination, title, lambda *_: None)
    items, unread = _read_items(paths)
    if not items:
        raise DataError("none of these files is a DICOM object. Give files that `pneumoscope dicom results` wrote.")
    outcomes: dict[int, str | None] = {}
    try:
        for done, (item, error) in enumerate(sender.send(items), start=1):
            outcomes[item.number] = error
            progress("Sending", done, len(items))
        if verify != "none":
            missing = [item for item in items if outcomes[item.number] is None]
            end = time.monotonic() + _PATIENCE
            while missing:
                missing = [item for item, found in sender.find(missing) if not found]
                if time.monotonic() > end:
                    break
                time.sleep(0.5 if missing else 0)
            outcomes |= dict.fromkeys(
                (item.number for item in missing), "accepted, but the destination does not have it"
            )
    except UnreachableError as problem:
        raise DownloadError(
            f"{to}: {to_line(str(problem))}. {counted(len(outcomes), 'file')} of {len(items)} had an answer. Send all "
            "again: an archive recognises repeats."
        ) from None
    sent = {item.number: Sent(item.path, item.sop_uid, outcomes[item.number]) for item in items}
    return [(sent | unread)[number] for number in sorted(sent | unread)]


def _read_destination(
    to: str, verify: Verify, token_file: str | Path | None, authorities: str | Path | None
) -> Destination:
    destination = parse_destination(to, verify)
    if authorities is not None and not destination.url and not destination.secure:
        raise UsageError("no effect, unless the address begins with dicoms:// or https://.", "authorities")
    destination = dataclasses.replace(
        destination,
        token_file=None if token_file is None else Path(token_file),
        tls=Tls(authorities=None if authorities is None else Path(authorities)),
    )
    check_destination(destination)
    return destination


def _read_items(paths: Sequence[str | Path]) -> tuple[list[Item], dict[int, Sent]]:
    """The files that can be sent, and the others with their errors, by position."""
    from pydicom import dcmread

    files: list[Path] = []
    for given in map(Path, paths):
        if given.is_dir():
            files += sorted(path for path in given.rglob("*") if path.is_file() and _starts_as_dicom(path))
        elif given.exists():
            files.append(given)
        else:
            raise UsageError(f"{given}: no such file or folder.", "paths")
    items, unread = [], {}
    for number, path in enumerate(files):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                header = dcmread(path, stop_before_pixels=True, specific_tags=list(_WANTED))
                values = [str(header[name].value) for name in _WANTED]
                values.append(str(header.file_meta["TransferSyntaxUID"].value))
        except Exception as problem:  # not DICOM, or damaged: pydicom raises nearly anything
            reason = to_line(str(problem).partition("\n")[0])[:200] or type(problem).__name__
            unread[number] = Sent(path, "", f"{path}: cannot be sent ({reason}).")
            continue
        items.append(Item(number, path, *values))
    return items, unread


def _starts_as_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return is_dicom(file.read(132))
