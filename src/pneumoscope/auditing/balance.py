"""Balance: are there enough images of each class, in each split, to learn and to measure?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial

from pneumoscope.auditing.findings import Finding
from pneumoscope.datasets.samples import SPLITS, Sample
from pneumoscope.datasets.splits import REDRAW, describe_small_val
from pneumoscope.evaluation.intervals.proportions import CONFIDENCE, wilson_interval


def find_imbalance(samples: Sequence[Sample], drawn: Collection[str] = ()) -> list[Finding]:
    """Check class sizes, class shares by split, the width of intervals, and patients of readable images.

    Splits that were `drawn` here have the class shares that they were meant to have.
    """
    checks = (_check_classes, partial(_check_shares, drawn=drawn), _check_validation, _check_widths, _check_patients)
    return [finding for check in checks for finding in check(samples)]


def _check_classes(samples: Sequence[Sample]) -> Iterator[Finding]:
    counts = Counter(str(sample.label) for sample in samples)
    if len(counts) < 2:
        yield Finding(
            "balance", "error", f"All images are of one class, {next(iter(counts))}",
            "A classifier needs at least two classes. Add images of another class, or check the folders.",
        )  # fmt: skip
        return
    (large, most), (small, least) = counts.most_common()[0], counts.most_common()[-1]
    ratio = most / least
    shown = ", ".join(f"{count} {label}" for label, count in counts.most_common())
    if ratio > 10:
        yield Finding(
            "balance", "warning", f"Few images of {small}: {least} against {most} of {large}",
            f"{shown}. Accuracy will make the model look better than it is: report sensitivity and specificity, "
            "and train with `balance='weights'`.",
            values={"ratio": ratio},
        )  # fmt: skip
    elif ratio > 3:
        yield Finding(
            "balance", "note", f"Uneven classes: {shown}",
            "Report sensitivity and specificity rather than accuracy, and consider `balance='weights'`.",
            values={"ratio": ratio},
        )  # fmt: skip


def _check_shares(samples: Sequence[Sample], drawn: Collection[str]) -> Iterator[Finding]:
    """Compare class shares between the given splits by Pearson's chi-squared test."""
    table = _count(samples)
    if len(table) < 2:
        return
    labels = sorted({label for counts in table.values() for label in counts})
    missing = [f"{label} in {split}" for split, counts in table.items() for label in labels if not counts[label]]
    if missing:
        yield Finding(
            "balance", "error", f"No image of {', no image of '.join(missing)}",
            f"A class cannot be measured where it is missing. Re-split with {REDRAW}.",
        )  # fmt: skip
    table = {split: n for split, n in table.items() if split not in drawn and not (split == "val" and _is_balanced(n))}
    if missing or len(labels) < 2 or len(table) < 2:
        return
    shares = {split: {label: counts[label] / counts.total() for label in labels} for split, counts in table.items()}
    ranges = ([share[label] for share in shares.values()] for label in labels)
    difference = max(max(values) - min(values) for values in ranges)
    if difference <= 0.05:
        return
    from scipy.stats import chi2_contingency  # imported late, because this is slow

    p = float(chi2_contingency([[counts[label] for label in labels] for counts in table.values()], correction=False)[1])
    if p < 0.001:
        listed = "; ".join(
            f"{split} " + ", ".join(f"{share:.0%} {label}" for label, share in by_label.items())
            for split, by_label in shares.items()
        )
        yield Finding(
            "balance", "warning", f"Class shares differ between the splits, by up to {difference:.0%}",
            f"{listed} (p = {p:.1g}). Probabilities, PPV, NPV and the best threshold depend on the class shares. "
            f"Re-split with {REDRAW}, or ignore this if it is intended.",
            values={"p": p, "difference": difference},
        )  # fmt: skip


def _check_validation(samples: Sequence[Sample]) -> Iterator[Finding]:
    """Is a validation split too small, although there are enough images to draw a larger one?"""
    if small := describe_small_val(samples):
        yield Finding("balance", "warning", *small)


def _check_widths(samples: Sequence[Sample]) -> Iterator[Finding]:
    """How wide would the interval of a rate of 0.9 be?"""
    table = _count(samples)
    tested = "test" in table
    counts = table["test"] if tested else Counter(str(sample.label) for sample in samples)
    label, n = min(counts.items(), key=lambda item: (item[1], item[0]))
    low, high = wilson_interval(0.9, n, CONFIDENCE)
    if high - low <= 0.1:
        return
    yield Finding(
        "balance",
        "warning" if high - low > 0.3 else "note",
        f"{'The test split has' if tested else 'There are'} {n} image{'s' * (n > 1)} of {label}: the "
        f"95% interval of a rate of 0.90 would be {low:.2f} to {high:.2f}",
        "It is wider still where patients have several images. An interval of ±0.05 needs about 140 images of each "
        "class.",
        values={"n": n, "low": low, "high": high},
    )


def _check_patients(samples: Sequence[Sample]) -> Iterator[Finding]:
    (patient, images), *_ = Counter(sample.patient for sample in samples).most_common(1)
    if patient is not None and images > max(20, len(samples) / 2):
        yield Finding(
            "balance", "warning", f"{images} of {len(samples)} images have the same patient, {patient}",
            "Most likely the patient's name was removed from all of them. Identify patients in a table, or with "
            "`patient_pattern`. Until then the data cannot be split, and intervals count the images as one patient.",
            values={"images": images},
        )  # fmt: skip
    unknown = sum(sample.patient is None for sample in samples)
    if unknown:
        yield Finding(
            "balance", "note", f"The patient of {unknown} of {len(samples)} images is unknown",
            "Each counts as its own patient, so leaks between splits go unnoticed and intervals may be too narrow. "
            "Identify patients in a table, or with `patient_pattern`.",
            values={"images": unknown},
        )  # fmt: skip


def _is_balanced(counts: Mapping[str, int]) -> bool:
    """Whether classes are about equal, as in a validation split that is meant to be; training allows for it."""
    return min(counts.values()) >= 0.8 * max(counts.values())


def _count(samples: Sequence[Sample]) -> dict[str, Counter[str]]:
    """Images by split and class; splits without images are left out."""
    counts = {split: Counter(str(sample.label) for sample in samples if sample.split == split) for split in SPLITS}
    return {split: by_label for split, by_label in counts.items() if by_label}
