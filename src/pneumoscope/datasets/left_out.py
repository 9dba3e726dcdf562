"""What a dataset leaves out, by class: counted, said once, and compared between the classes."""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pneumoscope.datasets.samples import Sample

NOT_IMAGES = "files that are not images of a known format"
SIDECARS = "text files and tables"
MASKS = "masks"
DERIVED = "pictures made from images"
OUTPUT = "images in output of pneumoscope"
SYSTEM = "files of macOS (._*)"
LOCKED = "folders that cannot be read"
BAD_NAMES = "files with a name that is not valid UTF-8"
LINKED_AGAIN = "linked folders that were read already"
NO_CLASS = "images in no class folder"
BESIDE = "images in folders beside the splits"
_HARMLESS = {SIDECARS, MASKS, DERIVED, OUTPUT, SYSTEM}
_LOSSES = {NOT_IMAGES, LOCKED, BAD_NAMES}  # reasons that may lose an image of a class
_SHOWN = 3
_P, _DIFFERENCE = 0.01, 0.01  # unequal losses: p value of the chi-squared test, and difference of the lost shares


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file or folder that is left out.

    Attributes:
        path: where it is.
        reason: what it is, in the plural, such as `masks`.
        label: the class whose folder or row it is in, or None.
    """

    path: Path
    reason: str
    label: str | None = None


@dataclass(frozen=True)
class Dataset:
    """The samples of a folder or table, and what was left out of it."""

    samples: Sequence[Sample]
    left_out: Sequence[LeftOut] = ()


def describe_left_out(files: Sequence[LeftOut], root: Path) -> str:
    """One sentence on files left out for the same reason: how many, of which classes and kinds, and the first few."""
    classes = Counter(file.label for file in files if file.label is not None)
    parts = [f"{count:,} {label}" for label, count in sorted(classes.items())]
    if files[0].reason in (NOT_IMAGES, SIDECARS):
        kinds = Counter(file.path.suffix.lower() or "without suffix" for file in files)
        parts += [f"{count:,} {kind}" for kind, count in kinds.most_common(5)]
    shown = ", ".join(_below(file.path, root) for file in files[:_SHOWN])
    more = ", …" if len(files) > _SHOWN else ""
    counts = f" ({', '.join(parts)})" if parts else ""
    return f"Left out {len(files):,} {files[0].reason}{counts}: {shown}{more}."


def log_left_out(dataset: Dataset, root: Path) -> None:
    """Say what was left out, once for each reason, and whether the classes lose unequal shares."""
    logger = logging.getLogger("pneumoscope")
    reasons: defaultdict[str, list[LeftOut]] = defaultdict(list)
    for file in dataset.left_out:
        reasons[file.reason].append(file)
    for reason, files in reasons.items():
        level = logging.INFO if reason in _HARMLESS else logging.WARNING
        logger.log(level, "%s", describe_left_out(files, root))
    lost = Counter(str(file.label) for file in dataset.left_out if file.label and file.reason in _LOSSES)
    if unequal := compare_losses(Counter(str(sample.label) for sample in dataset.samples), lost):
        logger.warning("%s", unequal)


def compare_losses(kept: Mapping[str, int], lost: Mapping[str, int]) -> str:
    """A sentence if the classes lose unequal shares of their files, by a chi-squared test; else empty.

    Args:
        kept: number of images used, by class.
        lost: number of images that cannot be used, by class.
    """
    totals = {label: kept.get(label, 0) + lost.get(label, 0) for label in sorted({*kept, *lost})}
    totals = {label: total for label, total in totals.items() if total}
    shares = {label: lost.get(label, 0) / total for label, total in totals.items()}
    if len(totals) < 2 or max(shares.values()) - min(shares.values()) <= _DIFFERENCE:
        return ""
    if max(shares.values()) < 1:
        from scipy.stats import chi2_contingency

        table = [[lost.get(label, 0), kept.get(label, 0)] for label in totals]
        if float(chi2_contingency(table, correction=False)[1]) >= _P:
            return ""
    listed = ", ".join(
        f"{lost.get(label, 0):,} of {total:,} {label} ({shares[label]:.0%})" for label, total in totals.items()
    )
    return (
        f"The classes lose unequal shares of their files: {listed}. What is left may not represent them: convert or "
        "copy these files again."
    )


def _below(path: Path, root: Path) -> str:
    text = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
    return os.fsencode(text).decode("utf-8", "backslashreplace")
