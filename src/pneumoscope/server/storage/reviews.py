"""Reviews: which class they name, and their export as labelled samples for `train` and `evaluate`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pneumoscope.datasets.reading import find_images
from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION, UNCERTAIN
from pneumoscope.errors import DataError, ImageError
from pneumoscope.files import check_file, format_rows, write_text
from pneumoscope.images.read import read_bytes
from pneumoscope.inference.prediction import IDENTITY
from pneumoscope.server.access.callers import Caller
from pneumoscope.server.messages.predictions import ReviewRequest
from pneumoscope.server.problems import RequestError
from pneumoscope.server.storage.image_reviews import list_counting
from pneumoscope.server.storage.store import PredictionRecord, Store


def find_label(record: PredictionRecord, request: ReviewRequest, labels: Sequence[str]) -> str | None:
    """The class that a review names or implies, for a prediction that may be another model's.

    Raises:
        RequestError: 422, it names an unknown class, contradicts itself, or lacks a class that it must name.
    """
    decided = None if record.decision in (UNCERTAIN, OUT_OF_DISTRIBUTION) else record.decision
    label = request.label
    if label is not None and label not in (*labels, decided):
        raise _invalid(f"label {label!r}: unknown class. The classes are {', '.join(labels)}.")
    if request.answer in ("comment", "withdrawn"):
        return None
    if request.answer == "cannot_tell":
        if label is not None:
            raise _invalid("A reviewer who cannot tell names no class: omit label.")
        return None
    if request.agrees:
        if decided is not None and label not in (None, decided):
            raise _invalid(f"The decision was {decided}; to review it as {label}, set agrees to false.")
        return label if decided is None else decided
    if decided is not None and label == decided:
        raise _invalid(f"The decision was {decided}; to confirm it, set agrees to true.")
    if label is None and len(labels) == 2 and decided in labels:
        return next(other for other in labels if other != decided)
    if label is None:
        raise _invalid(f"Name the class that you see: set label to one of {', '.join(labels)}.")
    return label


def find_reviewer(request: ReviewRequest, caller: Caller) -> str:
    """The name under which a review is stored: the caller's own, or what is typed where nobody has logged in.

    Raises:
        RequestError: 403, it is not the caller's own.
    """
    if not caller.named:
        return request.reviewer
    if request.reviewer not in ("", caller.name):
        detail = f"You are {caller.name}: nobody reviews under another name. Omit reviewer."
        raise RequestError(403, detail, code="reviewer-differs")
    return caller.name


def _invalid(detail: str) -> RequestError:
    return RequestError(422, detail, code="review-invalid")


@dataclass(frozen=True)
class Export:
    """How many reviews were exported, and how many left out.

    Attributes:
        images: in the table.
        disagreeing: of them, those whose label differs from the model's decision.
        missing: images with a label whose file was not found.
        unlabelled: images whose latest review names no class.
        conflicting: images whose reviews name different classes; the latest counts.
        unreadable: files in the folders that could not be opened.
    """

    images: int
    disagreeing: int
    missing: int
    unlabelled: int
    conflicting: int
    unreadable: int


def export_reviews(
    store: Store, out: Path, folders: Iterable[Path], overwrite: bool = False, *, excel: bool = False
) -> Export:
    """Write a table of the images to which reviewers gave a class: one row per image, by its latest review.

    Files are found by their content, whatever their names are now.

    Args:
        store: of the reading room.
        out: the table, with the columns path, label, patient and others.
        folders: where the images are: the folder of kept images, or where they came from.
        overwrite: whether to replace an earlier table.
        excel: whether the table begins with a byte order mark.

    Raises:
        UsageError: the table exists already or cannot be written.
        DataError: there are no reviews, or the folders contain none of the images.
    """
    check_file(out, overwrite)
    reviews = store.list_reviews()
    if not reviews:
        raise DataError(f"{store.location}: contains no reviews yet.")
    latest = {record.sha256: (record, review) for record, review in list_counting(reviews)}
    named = {(record.sha256, review.label) for record, review in reviews if review.label is not None}
    labelled = {sha256: pair for sha256, pair in latest.items() if pair[1].label is not None}
    paths, unreadable = _find_files(folders)
    rows = [
        {
            "path": paths[sha256].absolute().as_posix(),
            "label": review.label,
            "patient": record.patient or None,
            "invert": str(record.invert).lower(),
            "any_modality": str(record.any_modality).lower(),
            "decision": record.decision,
            "probability": record.probability,
            "reviewer": review.reviewer,
            "comment": review.comment,
            "reviewed_at": f"{review.created_at.isoformat(timespec='seconds')}Z",
            "sha256": sha256,
            **{name: getattr(record, name) for name in IDENTITY if name != "patient"},
        }
        for sha256, (record, review) in labelled.items()
        if sha256 in paths
    ]
    if not rows:
        raise DataError(
            f"none of the {len(labelled)} labelled images is in {', '.join(map(str, folders))}. Give the folder of "
            "kept images, or the one that the images came from.",
            "images",
        )
    write_text(out, "".join(format_rows(rows, excel)), private=True)  # it may say whose images they are
    return Export(
        images=len(rows),
        disagreeing=sum(row["label"] != row["decision"] for row in rows),
        missing=len(labelled) - len(rows),
        unlabelled=len(latest) - len(labelled),
        conflicting=sum(count > 1 for count in Counter(sha256 for sha256, _ in named).values()),
        unreadable=unreadable,
    )


def _find_files(folders: Iterable[Path]) -> tuple[dict[str, Path], int]:
    """The images in folders by the SHA-256 of their content, and how many could not be opened."""
    paths: dict[str, Path] = {}
    unreadable = 0
    for sample in find_images(folders):
        try:
            paths.setdefault(hashlib.sha256(read_bytes(sample.path)).hexdigest(), sample.path)
        except ImageError:
            unreadable += 1
    return paths, unreadable
