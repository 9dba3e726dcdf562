"""What an audit finds: each finding has a severity, the files concerned, and what to do."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pneumoscope import __version__
from pneumoscope.datasets.columns import Naming
from pneumoscope.images.read import Reading
from pneumoscope.notebook import Drawn, to_frame, to_html

Severity: TypeAlias = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
_PARTS = 4  # of a path in a message, as in train/patient00001/study1/view1_frontal.jpg


@dataclass(frozen=True)
class Finding:
    """One problem in a dataset, or one thing worth knowing.

    Attributes:
        check: the check's name, such as `duplicates`.
        severity: `error`: results would be wrong; `warning`: they may be; `note`: worth knowing.
        title: what was found, in one line.
        advice: what it means and what to do about it.
        files: the images concerned, the worst first.
        remarks: a few words on each file, or empty.
        groups: each file's group number if files belong together, such as duplicates; or empty.
        values: the numbers behind the finding, by name.
    """

    check: str
    severity: Severity
    title: str
    advice: str = ""
    files: tuple[Path, ...] = ()
    remarks: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()
    values: Mapping[str, float] = field(default_factory=dict)

    def name_files(self, data: str, most: int = 3) -> list[str]:
        """The first files as a message shows them: below the audited folder or beside the table, else by their ends."""
        root = Path(data) if os.path.isdir(data) else Path(data).parent  # noqa: PTH112 - no error if locked
        names = []
        for path in self.files[:most]:
            inside = path.relative_to(root) if path.is_relative_to(root) else path
            end = Path(*inside.parts[-_PARTS:])
            names.append(end.as_posix() if end == inside else f"…/{end.as_posix()}")
        return names


def sort_findings(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sort findings, the worst first."""
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))


@dataclass(frozen=True)
class Audit(Drawn):
    """What an audit found.

    Attributes:
        data: what was audited.
        findings: the worst first.
        images: number of images.
        counts: images by split and class.
        patients: number of known patients.
        quick: whether the checks that need a network were skipped.
        seed: fixes every random choice.
        fingerprint: hash of images, labels and splits.
        patient_pattern: regular expression that finds the patient in the path of a file, where given.
        reading: how images were read, unless a table says otherwise.
        naming: what columns and classes are called.
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
    naming: Naming = Naming()

    def count(self, severity: Severity) -> int:
        """Count the findings of one severity."""
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def summary(self) -> str:
        """The number of findings of each severity, in words."""
        counts = [(self.count(severity), severity) for severity in SEVERITIES]
        return ", ".join(f"{n} {what}{'s' * (n > 1)}" for n, what in counts if n) or "nothing found"

    def __repr__(self) -> str:
        return f"Audit({self.data}; {self.images} images: {self.summary})"

    def _repr_html_(self) -> str:
        return to_html(f"{self.images} images: {self.summary}", self.to_rows())

    def to_rows(self) -> list[dict[str, Any]]:
        """A row for each finding, the worst first."""
        return [
            {"severity": each.severity, "check": each.check, "title": each.title, "advice": each.advice,
             "files": len(each.files)}
            for each in self.findings
        ]  # fmt: skip

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each finding.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return to_frame(self.to_rows())

    def to_json(self) -> dict[str, Any]:
        """Return the content of audit.json, with paths as given."""
        values = asdict(self)
        for finding in values["findings"]:
            finding["files"] = [path.as_posix() for path in finding["files"]]
        return {"version": __version__, **values}
