"""Classes and splits: is there enough of each to learn from, and to claim something?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from pneumoscope.auditing.findings import Finding
from pneumoscope.datasets.samples import SPLITS, Sample

_Z = 1.959963984540054  # 97.5 % of a normal distribution lie below


def find_imbalance(samples: Sequence[Sample]) -> list[Finding]:
    """Look at class sizes, at prevalence by split, and at how wide an interval the test split can give.

    Args:
        samples: the readable images.
    """
    return [*_check_classes(samples), *_check_prevalence(samples), *_check_sizes(samples), *_check_patients(samples)]


def expected_interval(rate: float, n: int) -> tuple[float, float]:
    """The 95 % interval that a rate measured on n independent images would have (Wilson 1927).

    Args:
        rate: 0 to 1.
        n: number of images, at least 1.

    Returns:
        Lower and upper limit.
    """
    centre = (rate + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(rate * (1 - rate) / n + _Z**2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def compare_shares(counts: Sequence[Sequence[int]]) -> float:
    """The p value of Pearson's chi-squared test that all rows have the same shares; no row or column is empty."""
    from scipy.special import gammaincc  # scipy.stats would take a second to import

    observed = np.array(counts, float)
    expected = observed.sum(1, keepdims=True) * observed.sum(0) / observed.sum()
    freedom = (observed.shape[0] - 1) * (observed.shape[1] - 1)
    return float(gammaincc(freedom / 2, ((observed - expected) ** 2 / expected).sum() / 2))


def _check_classes(samples: Sequence[Sample]) -> Iterator[Finding]:
    counts = Counter(str(sample.label) for sample in samples)
    if len(counts) < 2:
        yield Finding(
            "balance", "error", f"All images are of one class, {next(iter(counts))}",
            "Nothing can be learnt from one class. Add images of another, or look at how the folders lie.",
        )  # fmt: skip
        return
    (large, most), (small, least) = counts.most_common()[0], counts.most_common()[-1]
    ratio = most / least
    shown = ", ".join(f"{count} {label}" for label, count in counts.most_common())
    if ratio > 10:
        yield Finding(
            "balance", "warning", f"Few images of {small}: {least} against {most} of {large}",
            f"{shown}. Accuracy will flatter: look at sensitivity and specificity, and train with --balance weights.",
            values={"ratio": ratio},
        )  # fmt: skip
    elif ratio > 3:
        yield Finding(
            "balance", "note", f"Uneven classes: {shown}",
            "Look at sensitivity and specificity rather than accuracy; consider --balance weights.",
            values={"ratio": ratio},
        )  # fmt: skip


def _check_prevalence(samples: Sequence[Sample]) -> Iterator[Finding]:
    """Compare class shares between the given splits by a chi-squared test."""
    table = _count(samples)
    if len(table) < 2:
        return
    labels = sorted({label for counts in table.values() for label in counts})
    missing = [f"{label} in {split}" for split, counts in table.items() for label in labels if not counts[label]]
    if missing:
        yield Finding(
            "balance", "error", f"No image of {', no image of '.join(missing)}",
            "Nothing can be said of a class that is not there. Divide the data again: pneumoscope data split.",
        )  # fmt: skip
    if missing or len(labels) < 2:
        return
    p = compare_shares([[counts[label] for label in labels] for counts in table.values()])
    shares = {split: {label: counts[label] / counts.total() for label in labels} for split, counts in table.items()}
    apart = max(max(s[label] for s in shares.values()) - min(s[label] for s in shares.values()) for label in labels)
    if p < 0.001 and apart > 0.05:
        named = "; ".join(
            f"{split} " + ", ".join(f"{share:.0%} {label}" for label, share in found.items())
            for split, found in shares.items()
        )
        yield Finding(
            "balance", "warning", f"Classes are mixed differently in the splits (by up to {apart:.0%})",
            f"{named} (p = {p:.1g}). Probabilities, PPV and NPV of one mix do not hold for the other, and a threshold "
            "chosen on one is off on the other. Divide anew, or mean it.",
            values={"p": p, "difference": apart},
        )  # fmt: skip


def _check_sizes(samples: Sequence[Sample]) -> Iterator[Finding]:
    """How wide would the intervals be, at a rate of 0.9?"""
    table = _count(samples)
    split, counts = ("test", table["test"]) if "test" in table else ("all", Counter(str(s.label) for s in samples))
    label, n = min(counts.items(), key=lambda item: (item[1], item[0]))
    low, high = expected_interval(0.9, n)
    width = high - low
    if width <= 0.1:
        return
    where = "The test split has" if split == "test" else "The data have"
    yield Finding(
        "balance",
        "warning" if width > 0.3 else "note",
        f"{where} {n} image{'s' * (n > 1)} of {label}: a rate of 0.90 would mean {low:.2f} to {high:.2f}",
        "That is the 95 % interval if images are independent; several images of a patient widen it. For ±0.05 about 140 "
        "images of each class are needed. Claim no more than the interval allows.",
        values={"n": n, "low": low, "high": high},
    )


def _check_patients(samples: Sequence[Sample]) -> Iterator[Finding]:
    (patient, images), *_ = Counter(sample.patient for sample in samples).most_common(1)
    if patient is not None and images > max(20, len(samples) / 2):
        yield Finding(
            "balance", "warning", f"{images} of {len(samples)} images are said to be of one patient, {patient}",
            "More likely the name was removed from all of them. Name patients in a table, or with --patient-pattern: "
            "as it is, no split can be drawn, and intervals are of one patient.",
            values={"images": images},
        )  # fmt: skip
    unknown = sum(sample.patient is None for sample in samples)
    if unknown:
        yield Finding(
            "balance", "note", f"The patient of {unknown} of {len(samples)} images is not known",
            "Each counts as a patient of its own, so leaks cannot be seen and intervals may be too narrow. Name "
            "patients in a table, or with --patient-pattern.",
            values={"images": unknown},
        )  # fmt: skip


def _count(samples: Sequence[Sample]) -> dict[str, Counter[str]]:
    counts = {split: Counter(str(s.label) for s in samples if s.split == split) for split in SPLITS}
    return {split: found for split, found in counts.items() if found}
