"""Losses: files that were left out when the dataset was read, and classes that lose unequal shares of their images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pneumoscope.auditing.findings import Finding
from pneumoscope.datasets.left_out import UNEQUAL, Dataset, compare_losses, count_losses, group_left_out


def find_losses(dataset: Dataset, errors: Sequence[str | None]) -> list[Finding]:
    """Find what was left out, for each reason, and unequal losses by class.

    Args:
        dataset: N samples, and what was left out.
        errors: (N,) why each image could not be read, or None.
    """
    findings = [
        Finding(
            "reading",
            "note" if reason.harmless else "warning",
            f"{reason.count(len(files))} left out",
            "They are not part of the dataset. If any of them should be, convert other formats to PNG, move images "
            "into class folders, allow locked folders to be read, give rows a label, and change `map`.",
            files=tuple(file.path for file in files),
            remarks=tuple(file.label or "" for file in files),
        )
        for reason, files in group_left_out(dataset.left_out).items()
    ]
    read = [(str(sample.label), error is None) for sample, error in zip(dataset.samples, errors, strict=True)]
    lost = count_losses(dataset.left_out) + Counter(label for label, readable in read if not readable)
    if unequal := compare_losses(Counter(label for label, readable in read if readable), lost):
        findings.append(Finding("reading", "warning", UNEQUAL, unequal))
    return findings
