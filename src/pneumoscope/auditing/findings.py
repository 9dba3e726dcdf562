"""What an audit says: a finding has a severity, the files it is about, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pneumoscope import __version__
from pneumoscope.images.read import Reading

Severity: TypeAlias = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One fault of a data set, or one thing worth knowing.

    Attributes:
        check: the check's name, such as `duplicates`.
        severity: `error`: results would be wrong; `warning`: they may be; `note`: worth knowing.
        title: what was found, in one line.
        advice: what it means and what to do about it.
        files: whom it concerns, the worst first.
        remarks: a few words on each file, or nothing at all.
        groups: for files that belong together, such as duplicates: the number of each one's group.
        figures: what was measured, by name.
    """

    check: str
    severity: Severity
    title: str
    advice: str
    files: tuple[Path, ...] = ()
    remarks: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        data: what was audited.
        findings: the worst first.
        images: how many there are.
        counts: images by split and class.
        patients: how many are known.
        quick: whether the checks that need a network were left out.
        seed: fixes every random choice.
        fingerprint: names the content, labels and splits.
        patient_pattern: what found the patients in file names, where it was given.
        reading: how images were read of which a table says nothing.
    """

    data: str
    findings: tuple[Finding, ...]
    images: int
    counts: Mapping[str, Mapping[str, int]]
    patients: int
    quick: bool
    seed: int
    fingerprint: str
    patient_pattern: str | None = None
    reading: Reading = Reading()

    def count(self, severity: Severity) -> int:
        """How many findings are of this severity."""
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def verdict(self) -> str:
        """The findings counted in words."""
        counts = [(self.count(severity), severity) for severity in SEVERITIES]
        return ", ".join(f"{n} {what}{'s' * (n > 1)}" for n, what in counts if n) or "nothing found"

    def to_json(self) -> dict[str, Any]:
        """Plain values for `audit.json`; paths as they were found."""
        values = asdict(self)
        for finding in values["findings"]:
            finding["files"] = [path.as_posix() for path in finding["files"]]
        return {"version": __version__, **values}
