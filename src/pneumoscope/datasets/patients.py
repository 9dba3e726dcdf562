"""Reads the patient from the name of an image file."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pneumoscope.errors import UsageError

# Kermany: `person23_bacteria_78`, `IM-0115-0001`, `NORMAL2-IM-0588-0001`. The numbers of bacteria and virus, and of IM
# and NORMAL2-IM, are separate series. Phantoms: `phantom0012_1`.
_PATIENT_PATTERNS = (
    r"(?P<number>person\d+)_(?P<series>bacteria|virus)_\d+",
    r"(?P<number>(?:NORMAL2-)?IM-\d+)-\d+",
    r"(?P<number>phantom\d+)_\d+",
)


def compile_patterns(patient_pattern: str | None) -> list[re.Pattern[str]]:
    """The patterns that find a patient: the given one, or those of known data sets.

    Raises:
        UsageError: it is not a regular expression.
    """
    try:
        return [re.compile(p) for p in ([patient_pattern] if patient_pattern else _PATIENT_PATTERNS)]
    except re.error as problem:
        raise UsageError(f"{patient_pattern!r} is not a regular expression: {problem}.", "patient_pattern") from None


def find_patient(stem: str, patterns: Sequence[re.Pattern[str]] | None = None) -> str | None:
    """Read the patient from a file name, by default one of the Kermany data; None if no pattern matches."""
    for pattern in compile_patterns(None) if patterns is None else patterns:
        if match := pattern.search(stem):
            groups = match.groupdict()
            if "number" in groups:
                return "-".join(part for part in (groups.get("series"), groups["number"]) if part)
            return (match.group(1) if pattern.groups else match.group(0)) or None
    return None
