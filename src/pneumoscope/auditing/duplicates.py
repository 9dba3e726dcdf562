"""Duplicates and shared patients: whatever makes a test easier than it should be."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from typing import TypeAlias

from pneumoscope.auditing.findings import Finding, Severity
from pneumoscope.auditing.intake import Images, measure_images
from pneumoscope.config import Progress, silent
from pneumoscope.datasets.duplicates import MOST, describe_crowded, find_near_duplicates, group_pairs
from pneumoscope.datasets.samples import Sample, cluster_by_patient
from pneumoscope.datasets.splits import REDRAW
from pneumoscope.evaluation.intervals.proportions import Ints
from pneumoscope.images.prepare import InputSpec
from pneumoscope.inference.cache import FeatureCache

Groups: TypeAlias = Sequence[int | None]  # for each image the number of its group, or None where it is alone
MOST_SEARCHED = 150_000  # different files among which cropped copies are looked for; with more it would take hours


def group_images(
    samples: Sequence[Sample], cache: FeatureCache | None = None, progress: Progress = silent
) -> list[int | None]:
    """Read images and number the groups that look the same, for a split that keeps them together.

    Unreadable images are in no group, and the log says how many there are.
    """
    images = measure_images(samples, InputSpec(), cache=cache, progress=progress)
    if unread := len(samples) - int(images.readable.sum()):
        logging.getLogger("pneumoscope").warning(
            "%d images could not be read, so their duplicates cannot be found. To see why: pneumoscope audit", unread
        )
    return group_similar(images, progress=progress)


def group_similar(
    images: Images, crops: bool = True, progress: Progress = silent, crowded: list[int] | None = None
) -> list[int | None]:
    """Number the groups of images that are identical or look the same; None for an image in no group.

    With `crops`, images cropped out of others are found too, unless there are more than 150,000 different files; a
    warning then says so. `crowded` gets the indices of images that look like so many others that copies of them may be
    missed.
    """
    first: dict[str, int] = {}
    identical = [(first.setdefault(digest, i), i) for i, digest in enumerate(images.digests) if digest]
    single = list(first.values())  # a thousand copies of one file are compared once
    for finding in find_unsearched(images.digests) if crops else ():
        logging.getLogger("pneumoscope").warning("%s. %s", finding.title, finding.advice)
    hashes = images.measured[single]["hash"]
    many: list[int] = []
    pairs = find_near_duplicates(hashes, crops=crops and len(single) <= MOST_SEARCHED, progress=progress, crowded=many)
    if crowded is not None:
        crowded += [single[i] for i in many]
    similar = [(single[pair.first], single[pair.second]) for pair in pairs]
    return group_pairs(similar + identical, len(images.samples))


def join_clusters(samples: Sequence[Sample], groups: Groups | None = None) -> Ints:
    """Number the clusters of images that share a patient or a group of near-duplicates, directly or through others.

    Args:
        samples: N images; one without a patient counts as its own patient.
        groups: (N,) each image's group, or None.
    """
    n = len(samples)
    patients = cluster_by_patient([sample.patient for sample in samples], n).tolist()
    members: defaultdict[Hashable, list[int]] = defaultdict(list)
    for i in range(n):
        members["patient", patients[i]].append(i)
        if groups is not None and groups[i] is not None:
            members["group", groups[i]].append(i)
    joined = group_pairs([(each[0], i) for each in members.values() for i in each[1:]], n)
    return cluster_by_patient([None if group is None else str(group) for group in joined], n)


def find_duplicates(images: Images, groups: Groups) -> list[Finding]:
    """Find identical and nearly identical images (`groups` from `group_similar`) across splits, classes, elsewhere."""
    identical = _gather(images.digests)
    similar = _gather([None if group is None else f"group {group}" for group in groups])
    nearly = [group for group in similar if len({images.digests[i] for i in group}) > 1]
    return [*_grade(images.samples, identical, "identical"), *_grade(images.samples, nearly, "nearly identical")]


def find_crowded(samples: Sequence[Sample], crowded: Sequence[int]) -> list[Finding]:
    """Say of which images copies may have been missed (`crowded` from `group_similar`)."""
    if not crowded:
        return []
    return [
        Finding(
            "duplicates",
            "note",
            f"{describe_crowded(len(crowded))} like more than {MOST} others",
            f"Each was compared closely only with the {MOST} most similar ones, so a cropped or changed copy of it may "
            "have been missed. Do the files show different patients, or one image many times?",
            files=tuple(samples[i].path for i in crowded),
        )
    ]


def find_unsearched(digests: Sequence[str]) -> list[Finding]:
    """Report that images cropped out of others were not looked for, if there are too many files (by their digests)."""
    files = len({digest for digest in digests if digest})
    if files <= MOST_SEARCHED:
        return []
    return [
        Finding(
            "duplicates",
            "warning",
            f"Images cropped out of others were not looked for: {files:,} different files, and at most "
            f"{MOST_SEARCHED:,} can be searched",
            "The time for that grows with the square of their number. Identical files and whole images that look the "
            "same were looked for. To find crops too, audit parts of the data, such as each test split with the "
            "training images of one source.",
            values={"files": files},
        )
    ]


def find_shared(samples: Sequence[Sample]) -> list[Finding]:
    """Find patients (or, where unknown, studies) in more than one split, and patients in more than one class."""
    findings: list[Finding] = []
    patients = [sample.patient for sample in samples]
    # A study belongs to one patient, so it serves where the patient is unknown.
    studies = [None if sample.patient or sample.tags is None else sample.tags.study for sample in samples]
    for noun, plural, check, owners in (
        ("patient", "patients", "leaks", patients), ("study", "studies", "studies", studies)
    ):  # fmt: skip
        remarks = [f"{noun} {owner}" for owner in owners]
        groups = [group for group in _gather(owners) if len(_splits(samples, group)) > 1]
        tested = [group for group in groups if "test" in _splits(samples, group)]
        others = sorted({split for group in tested for split in _splits(samples, group)} - {"test"})
        levels: tuple[tuple[list[list[int]], Severity, str], ...] = (
            (tested, "error", f"test and {' or '.join(others)}"),
            ([group for group in groups if "test" not in _splits(samples, group)], "warning", "train and val"),
        )
        for chosen, severity, where in levels:
            if chosen:
                number = f"{len(chosen)} {plural} are" if len(chosen) > 1 else f"One {noun} is"
                advice = f"A model is tested or tuned on people it was trained on. Re-split with {REDRAW}."
                findings.append(_describe(samples, chosen, severity, f"{number} in {where}", advice, check, remarks))
    torn = [group for group in _gather(patients) if len({samples[i].label for i in group if samples[i].label}) > 1]
    if torn:
        title = f"{len(torn)} patient{'s have' if len(torn) > 1 else ' has'} images of several classes"
        advice = "That may be correct: people fall ill and recover. Or file names give several patients the same ID."
        remarks = [f"patient {patient}" for patient in patients]
        findings.append(_describe(samples, torn, "note", title, advice, "patients", remarks))
    return findings


def _grade(samples: Sequence[Sample], groups: Sequence[Sequence[int]], how: str) -> Iterator[Finding]:
    exact = how == "identical"
    severity: Severity = "error" if exact else "warning"
    leaks = [group for group in groups if len(_splits(samples, group)) > 1]
    torn = [group for group in groups if len({samples[i].label for i in group}) > 1]
    graver = {group[0] for group in leaks + torn}
    rest = [group for group in groups if group[0] not in graver]
    caution = "" if exact else " They may also be two images that merely look alike: check them."
    if leaks:
        yield _describe(
            samples, leaks, severity, f"{_count(leaks)} {how} across splits",
            "The model is tested on images it was trained on. Keep one of each, or re-split with "
            f"{REDRAW}, which keeps them together.{caution}",
        )  # fmt: skip
    if torn:
        yield _describe(
            samples, torn, severity, f"{_count(torn)} {how} across classes",
            f"One of the labels is wrong, or the image does not show the class. Ask a radiologist.{caution}",
        )  # fmt: skip
    if rest:
        split = any(sample.split for sample in samples)
        yield _describe(
            samples, rest, "note", f"{_count(rest)} {how}" + (" within a split" if split else ""),
            f"They count twice, and a random split may separate them. Keep one of each.{caution}",
        )  # fmt: skip


def _describe(
    samples: Sequence[Sample],
    groups: Sequence[Sequence[int]],
    severity: Severity,
    title: str,
    advice: str,
    check: str = "duplicates",
    remarks: Sequence[str] | None = None,
) -> Finding:
    numbered = [(number, i) for number, group in enumerate(groups) for i in group]
    places = ["/".join(part for part in (sample.split, sample.label) if part) for sample in samples]
    return Finding(
        check,
        severity,
        title,
        advice,
        files=tuple(samples[i].path for _, i in numbered),
        remarks=tuple(", ".join(filter(None, (places[i], remarks[i] if remarks else ""))) for _, i in numbered),
        groups=tuple(number for number, _ in numbered),
        values={"groups": len(groups), "images": len(numbered)},
    )


def _count(groups: Sequence[Sequence[int]]) -> str:
    """How many images are in how many groups."""
    images = sum(len(group) for group in groups)
    return f"{images} images in {len(groups)} group{'s' * (len(groups) > 1)} are"


def _gather(owners: Sequence[str | None]) -> list[list[int]]:
    """Group indices with the same owner; owners with a single index, and those that are None or empty, are left out."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for i, owner in enumerate(owners):
        if owner:
            groups[owner].append(i)
    return [group for group in groups.values() if len(group) > 1]


def _splits(samples: Sequence[Sample], group: Sequence[int]) -> set[str]:
    return {split for i in group if (split := samples[i].split)}
