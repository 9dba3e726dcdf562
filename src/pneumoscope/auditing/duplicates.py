"""The same image twice, or the same patient: what makes a test easier than it is."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np

from pneumoscope.auditing.findings import Finding, Severity
from pneumoscope.auditing.intake import Images, measure_images
from pneumoscope.config import Progress, silent
from pneumoscope.datasets.duplicates import find_near_duplicates, group_pairs
from pneumoscope.datasets.samples import Sample
from pneumoscope.images.prepare import InputSpec
from pneumoscope.inference.cache import FeatureCache

Groups = list[list[int]]
_MANY = 20_000


def group_images(
    samples: Sequence[Sample],
    cache: FeatureCache | None = None,
    progress: Progress = silent,
) -> list[int | None]:
    """Read images and number the groups that look the same, for a split that keeps them together.

    Args:
        samples: the images; those that cannot be read are alone, and the log says how many they are.
        cache: keeps measurements between calls.
        progress: called after each image, then during the comparison.
    """
    images = measure_images(samples, InputSpec(), cache=cache, progress=progress)
    if unread := len(samples) - int(images.readable.sum()):
        logging.getLogger("pneumoscope").warning(
            "%d images could not be read; pneumoscope audit says why. They are divided without a look at them.", unread
        )
    return group_similar(images, progress=progress)


def group_similar(images: Images, crops: bool = True, progress: Progress = silent) -> list[int | None]:
    """Number the groups of images that look the same, or are.

    Args:
        images: the measured data set.
        crops: also find images that were cropped out of others; not in more than 20,000, where it would take hours.
        progress: called as the search goes on.

    Returns:
        For each image its group, or None where it is alone.
    """
    first: dict[str, int] = {}
    identical = [(first.setdefault(digest, i), i) for i, digest in enumerate(images.digests) if digest]
    single = list(first.values())  # a thousand copies of one file are compared once
    hashes = images.records["hash"][single].astype(np.float32)
    pairs = find_near_duplicates(hashes, crops=crops and len(hashes) <= _MANY, progress=progress)
    alike = [(single[pair.first], single[pair.second]) for pair in pairs]
    return group_pairs(alike + identical, len(images.samples))


def find_duplicates(images: Images, groups: Sequence[int | None]) -> list[Finding]:
    """Find identical and nearly identical images across splits, across classes, and elsewhere.

    Args:
        images: the measured data set.
        groups: for each image the number of the group of images that it looks the same as, or None.
    """
    everything = range(len(images.samples))
    identical = _group(images.digests.__getitem__, everything)
    similar = _group(lambda i: None if groups[i] is None else ("group", groups[i]), everything)
    nearly = [group for group in similar if len({images.digests[i] for i in group}) > 1]
    return [*_judge(images.samples, identical, "identical"), *_judge(images.samples, nearly, "nearly identical")]


def find_shared(samples: Sequence[Sample]) -> list[Finding]:
    """Find patients (or, where not known, studies) in more than one split, and patients in more than one class."""
    findings = []
    for what, key in (("patient", _patient), ("study", _study)):
        groups = [group for group in _group(key(samples), range(len(samples))) if len(_splits(samples, group)) > 1]
        tested = [group for group in groups if "test" in _splits(samples, group)]
        others = sorted({split for group in tested for split in _splits(samples, group)} - {"test"}, reverse=True)
        for chosen, severity, where in (
            (tested, "error", f"test and {' or '.join(reversed(others))}"),
            ([group for group in groups if "test" not in _splits(samples, group)], "warning", "train and val"),
        ):
            if not chosen:
                continue
            some = "patients are" if what == "patient" else "studies are"
            number = f"{len(chosen)} {some}" if len(chosen) > 1 else f"One {what} is"
            findings.append(
                _describe(
                    samples, chosen, severity, f"{number} in {where}",  # type: ignore[arg-type]
                    "What was learnt of a person is then tested on the same person. Divide the data anew by patient: "
                    "pneumoscope data split.",
                    "leaks" if what == "patient" else "studies", lambda i, what=what: _owner(samples[i], what),  # type: ignore[misc]
                )
            )  # fmt: skip
    torn = [
        group
        for group in _group(_patient(samples), range(len(samples)))
        if len({samples[i].label for i in group if samples[i].label}) > 1
    ]
    if torn:
        findings.append(
            _describe(
                samples, torn, "note",
                f"{len(torn)} patient{'s have' if len(torn) > 1 else ' has'} images of several classes",
                "That may be so: people fall ill and recover. Or patients were read from names that others have, too.",
                "patients", lambda i: _owner(samples[i], "patient"),
            )
        )  # fmt: skip
    return findings


def _judge(samples: Sequence[Sample], groups: Groups, how: str) -> Iterator[Finding]:
    exact = how == "identical"
    leaks = [group for group in groups if len(_splits(samples, group)) > 1]
    torn = [group for group in groups if len({samples[i].label for i in group}) > 1]
    told = {group[0] for group in leaks + torn}
    rest = [group for group in groups if group[0] not in told]
    caution = "" if exact else " They may also be two images that merely look alike: look at them."
    if leaks:
        yield _describe(
            samples, leaks, "error" if exact else "warning", f"{_number(leaks)} {how} across splits",
            "What is tested was learnt by heart. Keep one of each, or divide the data anew with pneumoscope data "
            f"split, which keeps them together.{caution}",
        )  # fmt: skip
    if torn:
        yield _describe(
            samples, torn, "error" if exact else "warning", f"{_number(torn)} {how} across classes",
            f"One of the labels is wrong, or the image says too little. Ask a radiologist.{caution}",
        )  # fmt: skip
    if rest:
        drawn = any(sample.split for sample in samples)
        yield _describe(
            samples, rest, "note", f"{_number(rest)} {how}" + (" within a split" if drawn else ""),
            "They count twice, and a careless split would separate them. Keep one of each." + caution,
        )  # fmt: skip


def _describe(
    samples: Sequence[Sample],
    groups: Groups,
    severity: Severity,
    title: str,
    advice: str,
    check: str = "duplicates",
    remark: Callable[[int], str] | None = None,
) -> Finding:
    numbered = [(number, i) for number, group in enumerate(groups) for i in group]
    return Finding(
        check,
        severity,
        title,
        advice,
        tuple(samples[i].path for _, i in numbered),
        tuple(", ".join(filter(None, (_place(samples[i]), remark(i) if remark else ""))) for _, i in numbered),
        tuple(number for number, _ in numbered),
        {"groups": len(groups), "images": len(numbered)},
    )


def _number(groups: Groups) -> str:
    """How many images, in how many groups."""
    images = sum(len(group) for group in groups)
    return f"{images} images in {len(groups)} group{'s' * (len(groups) > 1)} are"


def _group(key: Callable[[int], Hashable], indices: Sequence[int]) -> Groups:
    groups: defaultdict[Hashable, list[int]] = defaultdict(list)
    for i in indices:
        if value := key(i):
            groups[value].append(i)
    return [group for group in groups.values() if len(group) > 1]


def _splits(samples: Sequence[Sample], group: Sequence[int]) -> set[str]:
    return {split for i in group if (split := samples[i].split)}


def _patient(samples: Sequence[Sample]) -> Callable[[int], Hashable]:
    return lambda i: samples[i].patient


def _study(samples: Sequence[Sample]) -> Callable[[int], Hashable]:
    """A study belongs to one patient: it tells where the patient's name is not known."""
    return lambda i: None if samples[i].patient or samples[i].tags is None else samples[i].tags.study  # type: ignore[union-attr]


def _owner(sample: Sample, what: str) -> str:
    return f"{what} {sample.patient if what == 'patient' else sample.tags.study if sample.tags else ''}"


def _place(sample: Sample) -> str:
    return "/".join(part for part in (sample.split, sample.label) if part)
