"""Shortcuts: whatever predicts the class without the lungs, and how the test files differ from the others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pneumoscope.auditing.clues import BINS, Clue, Kind, measure_clues
from pneumoscope.auditing.duplicates import Groups, join_clusters
from pneumoscope.auditing.findings import Finding, Severity
from pneumoscope.auditing.intake import FORMATS, MODES, Images
from pneumoscope.auditing.measurements import Measured
from pneumoscope.datasets.samples import SPLITS, Sample
from pneumoscope.evaluation.intervals.proportions import Ints

ENOUGH = 10  # patients of each class
SHOWN = 12  # images listed with a finding
_EDGES = 101  # of the ranges in which classes are compared
NOTED, WARNED = 0.05, 0.01  # family-wise p
# AUROC from which a clue is a warning.
WARNING: dict[Kind, float] = {"file": 0.55, "view": 0.55, "border": 0.58, "surroundings": 0.58, "appearance": 1.0}
# Lower end of its interval from which it is an error. The edges of real images predict their class with up to 0.95
# where nothing was planted.
ERROR: dict[Kind, float] = {"file": 0.9, "border": 0.9, "surroundings": 0.97}
_ADVICE: dict[Kind, str] = {
    "file": (
        "This is a property of the file, not of the patient, and a network can learn it instead of the disease. Make "
        "it the same in all classes: get the images from one source, or convert all of them in the same way."
    ),
    "view": (
        "Patients imaged in bed, from the front, are often sicker, and a network can learn the view instead of the "
        "disease. Train and test on one view, or show that the result holds in each."
    ),
    "border": (
        "What surrounds the patient should not depend on the class, and a network can learn it instead of the disease. "
        "Look at the images listed, crop the borders of all images in the same way, and find out how each class was "
        "collected."
    ),
    "surroundings": (
        "An image without its lungs should not predict the class. Look for markers, text, tubes or collimation in the "
        "corners and edges of the images listed, and mask or crop them in all images in the same way. Find out how "
        "each class was collected: other patients, another machine, another position?"
    ),
    "appearance": (
        "Disease changes how an image looks, so this may be genuine. But the machine changes it too. Unless the "
        "network clearly exceeds this AUROC, it may have learnt nothing else. Test it on images from another "
        "source."
    ),
}


def find_shortcuts(
    images: Images, *, seed: int = 0, quick: bool = False, groups: Groups | None = None
) -> list[Finding]:
    """Find what predicts the class without the lungs, and how the test files differ from the others.

    Unreadable images and those without a label are left out. `quick` checks properties of file and image only, with few
    permutations. `groups` (N,) numbers the groups of near-duplicates, which no fold divides.
    """
    kept = [i for i, sample in enumerate(images.samples) if images.errors[i] is None and sample.label is not None]
    samples = [images.samples[i] for i in kept]
    labels = sorted({str(sample.label) for sample in samples})
    if len(labels) < 2:
        return []
    measured = images.measured if len(kept) == len(images.samples) else images.measured[kept]
    classes = np.array([labels.index(str(sample.label)) for sample in samples])
    clusters = join_clusters(samples, None if groups is None else [groups[i] for i in kept])
    findings = _find_formats_of_some_splits(samples, measured)
    patients = [len(np.unique(clusters[classes == i])) for i in range(len(labels))]
    if min(patients) < ENOUGH:
        few = labels[int(np.argmin(patients))]
        title = f"Too few patients to look for shortcuts: {few} has {min(patients)}, and {ENOUGH} are needed"
        advice = "Add images, or check yourself that formats, sizes and borders are the same in all classes."
        return [*findings, Finding("shortcuts", "note", title, advice)]
    clues = measure_clues(measured, classes, clusters, seed=seed, quick=quick)
    findings += [_report_clue(clue, samples, classes, labels) for clue in clues if clue.p <= NOTED]
    tested = np.array([sample.split == "test" for sample in samples], np.int64)
    if min(len(np.unique(clusters[tested == side])) for side in (0, 1)) >= ENOUGH:
        shifts = measure_clues(measured, tested, clusters, seed=seed, quick=True)
        findings += [_report_shift(clue, tested) for clue in shifts if clue.p <= WARNED and clue.auroc >= 0.6]
    return findings


def _grade(clue: Clue) -> Severity:
    if clue.p > WARNED or (clue.low < 0.85 if clue.kind == "appearance" else clue.auroc < WARNING[clue.kind]):
        return "note"
    return "error" if clue.low >= ERROR.get(clue.kind, math.inf) else "warning"


def _report_clue(clue: Clue, samples: Sequence[Sample], classes: Ints, labels: Sequence[str]) -> Finding:
    subject = f"Without the lungs, {clue.name} predict" if clue.kind == "surroundings" else f"{_alone(clue)} predicts"
    title = f"{subject} the class: AUROC {clue.auroc:.2f}, by chance up to {clue.chance_95:.2f}"
    title += _describe(clue, classes, labels)
    shown = np.argsort(-clue.scores, kind="stable")[:SHOWN].tolist()
    values = [f", {clue.measured.describe(i)}" if clue.measured else "" for i in shown]
    return Finding(
        "shortcuts",
        _grade(clue),
        title,
        _ADVICE[clue.kind],
        files=tuple(samples[i].path for i in shown),
        remarks=tuple(f"{samples[i].label}{value}" for i, value in zip(shown, values, strict=True)),
        values=clue.values,
    )


def _report_shift(clue: Clue, tested: Ints) -> Finding:
    return Finding(
        "shifts",
        "warning" if clue.kind == "file" and clue.auroc >= 0.7 else "note",
        f"{_alone(clue)} tells test images from the others: AUROC {clue.auroc:.2f}, by chance up to "
        f"{clue.chance_95:.2f}{_describe(clue, tested, ('train and val', 'test'))}",
        "The test images come from another source, or were processed differently. Results on them show how the model "
        "performs on that source, not on images like those it was trained on. If that is not intended, convert "
        "all images in the same way.",
        values=clue.values,
    )


def _alone(clue: Clue) -> str:
    return f"The {clue.name} alone"


def _find_formats_of_some_splits(samples: Sequence[Sample], measured: Measured) -> list[Finding]:
    """Find file formats and colour modes that are missing from some splits."""
    findings = []
    splits = np.array([sample.split or "" for sample in samples])
    present = [split for split in SPLITS if np.any(splits == split)]
    for key, names in (("format", FORMATS), ("mode", MODES)):
        for value in np.unique(measured[key]) if len(present) > 1 else ():
            files = np.flatnonzero(measured[key] == value).tolist()
            where = [split for split in present if np.any(splits[files] == split)]
            if len(where) == len(present):
                continue
            counts = Counter(str(samples[i].label) for i in files)
            classes = ", ".join(f"{count} {label}" for label, count in sorted(counts.items()))
            missing = " or ".join(split for split in present if split not in where)
            findings.append(
                Finding(
                    "shifts",
                    "note",
                    f"{len(files)} of {len(samples)} files are {names[value]} ({classes}): all in "
                    f"{' and '.join(where)}, none in {missing}",
                    "The splits differ in something that has nothing to do with medicine, so a result on one may not "
                    "hold on another. Convert all files to one format and colour mode.",
                    tuple(samples[i].path for i in files),
                )
            )
    return findings


def _describe(clue: Clue, classes: Ints, labels: Sequence[str]) -> str:
    """Describe the value that predicts best and the class that it predicts; or how the classes' numbers differ."""
    if (measured := clue.measured) is None:
        return ""
    levels, level = np.unique(measured.values, return_inverse=True)
    if len(levels) > BINS:
        return f" ({measured.label}{_contrast([measured.values[classes == i] for i in range(len(labels))], labels)})"
    counts = np.array([np.bincount(classes[level == i], minlength=len(labels)) for i in range(len(levels))])
    total = counts.sum(axis=1, keepdims=True)
    surplus = (counts - total * counts.sum(axis=0) / len(level)) / np.sqrt(total)
    i, label = divmod(int(surplus.argmax()), len(labels))
    value = measured.describe(int(np.argmax(level == i)))
    share = np.mean(classes == label)
    return f" ({value}: {counts[i, label]} of {total[i, 0]} are {labels[label]}; of all images, {share:.0%})"


def _contrast(values: Sequence[NDArray[np.float32]], labels: Sequence[str]) -> str:
    """Give the classes' medians if these differ clearly, else their shares in the range where these differ most."""
    known = [each[~np.isnan(each)] for each in values]
    quarter, three_quarters = np.quantile(np.concatenate(known), (0.25, 0.75))
    if all(map(len, known)):
        medians = [float(np.median(each)) for each in known]
        if np.ptp(medians) > 0.5 * (three_quarters - quarter):
            listed = (f"{median:.3g} in {label}" for median, label in zip(medians, labels, strict=True))
            return f", median: {', '.join(listed)}"
    edges = np.unique(np.quantile(np.concatenate(known), np.linspace(0, 1, _EDGES), method="inverted_cdf"))
    # The share of each class at or below each edge, nothing before the first.
    shares = np.array([np.searchsorted(np.sort(own), edges, "right") / len(each)
                       for own, each in zip(known, values, strict=True)])  # fmt: skip
    shares = np.hstack([np.zeros((len(values), 1)), shares])
    inside = shares[:, None, :] - shares[:, :, None]  # (class, start, end): after one edge, up to another
    start, end = np.unravel_index(np.triu(np.ptp(inside, axis=0), 1).argmax(), inside.shape[1:])
    after = f" over {edges[start - 1]:.3g}" if start else ""
    upto = f" up to {edges[end - 1]:.3g}" if end < len(edges) else "" if start else " known"
    listed = (f"{share:.0%} of {label}" for share, label in zip(inside[:, start, end], labels, strict=True))
    return f"{after}{upto}: {', '.join(listed)}"
