"""One rule for ages, whether a DICOM header or a table says them."""

from __future__ import annotations

import re

OLDEST = 120  # years; a higher age is a mistake, or stands for an unknown one (999Y)
DAYS = 365.25  # in a year
_UNITS = {"D": 1 / DAYS, "W": 7 / DAYS, "M": 1 / 12, "Y": 1.0}
_AGE = re.compile(
    r"[>≥]?=? *(?P<number>\d{1,5}(?:[.,]\d{1,3})?) *\+? *"
    r"(?:(?P<unit>[DWMY])(?:AYS?|EEKS?|KS?|ONTHS?|OS?|EARS?|RS?|O)?(?: OLD)?)?",
    re.ASCII,
)


def parse_age(text: str) -> float | None:
    """Read an age in years: `045Y`, `006M`, `63 years`, `3.5`, `90+` and the like; a number without unit is in years.

    RSNA's DICOM files of 2018 leave the unit out. `>89`, which hides the age of the very old, is 89.

    Returns:
        Years from 0 to `OLDEST`; None for all else, such as `-5`, `999Y` or `adult`.
    """
    match = _AGE.fullmatch(text.strip().upper())
    if match is None:
        return None
    years = float(match["number"].replace(",", ".")) * _UNITS[match["unit"] or "Y"]
    return years if years <= OLDEST else None
