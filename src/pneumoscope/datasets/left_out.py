"""What a dataset leaves out, by class: counted, said once, and compared between the classes."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pneumoscope.datasets.samples import Sample
from pneumoscope.text import escape

_SHOWN = 3
UNEQUAL = "The classes lose unequal shares of their files"
_P, _DIFFERENCE = 0.01, 0.01  # unequal losses: p value of the chi-squared test, and difference of the lost shares


@dataclass(frozen=True, slots=True)
class Reason:
    """Why files are left out: what they are, for one and for many of them.

    Attributes:
        one: such as `mask`.
        many: such as `masks`.
        harmless: whether no radiograph of a class is lost by it.
        loses: whether it may lose more images of one class than of another, by accident.
    """

    one: str
    many: str
    harmless: bool = False
    loses: bool = False

    def count(self, n: int) -> str:
        """A number of files left out for this reason, such as `3 masks`."""
        return f"{n:,} {self.one if n == 1 else self.many}"


NOT_IMAGES = Reason("file in an unknown format", "files in an unknown format", loses=True)
SIDECARS = Reason("text or table file", "text or table files", harmless=True)
MASKS = Reason("mask", "masks", harmless=True)
DERIVED = Reason("picture made from an image", "pictures made from images", harmless=True)
OUTPUT = Reason("image in an output folder of pneumoscope", "images in output folders of pneumoscope", harmless=True)
SYSTEM = Reason("file of macOS (._*)", "files of macOS (._*)", harmless=True)
LOCKED = Reason("folder that cannot be read", "folders that cannot be read", loses=True)
BAD_NAMES = Reason("file whose name is not valid UTF-8", "files whose names are not valid UTF-8", loses=True)
LINKED_AGAIN = Reason("linked folder that had already been read", "linked folders that had already been read")
NO_CLASS = Reason("image outside any class folder", "images outside any class folder")
NO_LABEL = Reason("row without a label", "rows without a label")
REPEATED = Reason("row that repeats another", "rows that repeat others", harmless=True)
MAPPED = Reason("image to which the map gives no class", "images to which the map gives no class", harmless=True)
MISSING = Reason("missing file in no folder of a split", "missing files in no folder of a split", loses=True)
BESIDE = Reason("image in a folder beside the splits", "images in folders beside the splits")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file or folder that is left out.

    Attributes:
        path: where it is.
        reason: why.
        label: the class whose folder or row it is in, or None.
    """

    path: Path
    reason: Reason
    label: str | None = None


@dataclass(frozen=True)
class Dataset:
    """The samples of a folder or table, and what was left out of it."""

    samples: Sequence[Sample]
    left_out: Sequence[LeftOut] = ()


def describe_left_out(files: Sequence[LeftOut], root: Path) -> str:
    """A sentence on files left out for the same reason: how many, of which classes and kinds, and the first few."""
    classes = Counter(file.label for file in files if file.label is not None)
    parts = [f"{count:,} {label}" for label, count in sorted(classes.items())]
    if files[0].reason in (NOT_IMAGES, SIDECARS):
        kinds = Counter(file.path.suffix.lower() or "without suffix" for file in files)
        parts += [f"{count:,} {kind}" for kind, count in kinds.most_common(5)] if len(files) > _SHOWN else []
    shown = ", ".join(_below(file.path, root) for file in files[:_SHOWN])
    more = ", …" if len(files) > _SHOWN else ""
    counts = f" ({', '.join(parts)})" if parts else ""
    were = "was" if len(files) == 1 else "were"
    return f"{files[0].reason.count(len(files))} {were} left out{counts}: {shown}{more}."


def log_left_out(dataset: Dataset, root: Path) -> None:
    """Say what was left out, once for each reason, and whether the classes lose unequal shares."""
    logger = logging.getLogger("pneumoscope")
    for reason, files in group_left_out(dataset.left_out).items():
        level = logging.INFO if reason.harmless else logging.WARNING
        logger.log(level, "%s", describe_left_out(files, root))
    kept = Counter(str(sample.label) for sample in dataset.samples)
    if unequal := compare_losses(kept, count_losses(dataset.left_out)):
        logger.warning("%s: %s", UNEQUAL, unequal)


def group_left_out(files: Sequence[LeftOut]) -> dict[Reason, list[LeftOut]]:
    """Group files by the reason why they are left out."""
    reasons: defaultdict[Reason, list[LeftOut]] = defaultdict(list)
    for file in files:
        reasons[file.reason].append(file)
    return dict(reasons)


def count_left_out(files: Sequence[LeftOut]) -> list[dict[str, str | int]]:
    """Count files by the reason why they are left out and by class, which is empty where it is not known."""
    counts = Counter((file.reason.many, file.label or "") for file in files)
    return [{"reason": reason, "label": label, "files": n} for (reason, label), n in sorted(counts.items())]


def count_losses(files: Sequence[LeftOut]) -> Counter[str]:
    """Count what may be lost images, by class."""
    return Counter(file.label for file in files if file.label is not None and file.reason.loses)


def describe_unusable(
    samples: Sequence[Sample], errors: Sequence[str | None], which: str = "that could not be read"
) -> list[str]:
    """Sentences on images that cannot be used: how many of each class, and whether the classes lose unequal shares.

    Args:
        samples: N images.
        errors: (N,) why each cannot be used, or None.
        which: images these are.
    """
    reasons = [error for error in errors if error is not None]
    if not reasons:
        return []
    lost = Counter(str(sample.label) for sample, error in zip(samples, errors, strict=True) if error is not None)
    kept = Counter(str(sample.label) for sample, error in zip(samples, errors, strict=True) if error is None)
    counts = ", ".join(f"{count:,} {label}" for label, count in sorted(lost.items()))
    images, were = ("image", "was") if len(reasons) == 1 else ("images", "were")
    said = f"{len(reasons):,} {images} {which} {were} left out ({counts}): {'; '.join(reasons[:10])}"
    said += f"; and {len(reasons) - 10:,} more" if len(reasons) > 10 else ""
    unequal = compare_losses(kept, lost)
    return [said, *([f"{UNEQUAL}: {unequal}"] if unequal else [])]


def compare_losses(kept: Mapping[str, int], lost: Mapping[str, int]) -> str:
    """Say which share each class loses, if a chi-squared test finds them unequal; else return an empty text.

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
        f"{listed}. What is left may not represent the classes. "
        "Find out why: files that cannot be read can often be converted or copied again."
    )


def _below(path: Path, root: Path) -> str:
    return escape(path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix())
