"""Reviewers' verdicts become labelled samples, which `train` and `evaluate` accept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pneumoscope.datasets.samples import find_images
from pneumoscope.errors import DataError, ImageError, UsageError
from pneumoscope.files import format_rows, write_text
from pneumoscope.images.read import read_bytes
from pneumoscope.server.store import Memory, Read, Verdict


@dataclass(frozen=True)
class Exported:
    """What became of the verdicts.

    Attributes:
        images: that the table names.
        disagreeing: of them, those whose label is not what the model decided.
        missing: images with a label whose file was not found.
        unlabelled: images whose latest verdict names no class.
        conflicting: images to which verdicts give several labels; the latest counts.
        unreadable: files in the folders that could not be opened.
    """

    images: int
    disagreeing: int
    missing: int
    unlabelled: int
    conflicting: int
    unreadable: int


def export_reviews(memory: Memory, out: Path, folders: Iterable[Path], overwrite: bool = False) -> Exported:
    """Write a table of the images that reviewers gave a class, one row an image, the latest verdict counting.

    Files are found by their content, whatever they are called by now.

    Args:
        memory: of the reading room.
        out: the table, with the columns path, label, patient and what else is known.
        folders: where the images are: the folder of kept images, or where they came from.
        overwrite: whether an earlier table may go.

    Raises:
        UsageError: the table exists already or cannot be written.
        DataError: nothing was reviewed, or the folders hold no images.
    """
    if out.exists() and not overwrite:
        raise UsageError(f"{out}: exists already. Choose another --out, or allow it with --overwrite.")
    reviewed = memory.list_reviewed()
    if not reviewed:
        raise DataError(f"{memory.shown}: no verdict in it yet.")
    latest: dict[str, tuple[Read, Verdict]] = {}
    labels: dict[str, set[str]] = {}
    for read, verdict in reviewed:
        latest[read.digest] = (read, verdict)
        if verdict.label is not None:
            labels.setdefault(read.digest, set()).add(verdict.label)
    named = {digest: pair for digest, pair in latest.items() if pair[1].label is not None}
    places: dict[str, Path] = {}
    unreadable = 0
    for sample in find_images(folders):
        try:
            places.setdefault(hashlib.sha256(read_bytes(sample.path)).hexdigest(), sample.path)
        except ImageError:
            unreadable += 1
    rows = [
        {
            "path": places[digest].absolute().as_posix(),
            "label": verdict.label,
            "patient": read.patient or None,
            "invert": str(read.invert).lower(),
            "any_modality": str(read.any_modality).lower(),
            "decision": read.decision,
            "probability": read.probability,
            "reviewer": _defuse(verdict.reviewer),
            "note": _defuse(verdict.note),
            "reviewed": f"{verdict.at.isoformat(timespec='seconds')}Z",
            "digest": digest,
        }
        for digest, (read, verdict) in named.items()
        if digest in places
    ]
    if not rows:
        raise DataError(
            f"None of the {len(named)} images with a label is in {', '.join(map(str, folders))}. Give the folder of "
            "--keep-images, or that which the images came from, with --images."
        )
    write_text(out, "".join(format_rows(rows)))
    return Exported(
        images=len(rows),
        disagreeing=sum(row["label"] != row["decision"] for row in rows),
        missing=len(named) - len(rows),
        unlabelled=len(latest) - len(named),
        conflicting=sum(len(each) > 1 for each in labels.values()),
        unreadable=unreadable,
    )


def _defuse(words: str) -> str:
    """Words that a spreadsheet does not take for a formula."""
    return f"'{words}" if words.startswith(("=", "+", "-", "@", "\t", "\r")) else words
