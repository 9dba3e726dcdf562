"""Periods of time as people write them, such as 30d."""

from __future__ import annotations

import datetime
import re

from pneumoscope.errors import UsageError

_PERIOD = re.compile(r"(?P<number>[1-9]\d{0,4})(?P<unit>[hdw])", re.ASCII)
_HOURS = {"h": 1, "d": 24, "w": 7 * 24}


def read_period(text: str, parameter: str) -> datetime.timedelta:
    """A period such as `30d`: a number of hours (h), days (d) or weeks (w).

    Raises:
        UsageError: it is something else.
    """
    found = _PERIOD.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{text!r}: give a number of hours, days or weeks, such as 12h, 30d or 52w.", parameter)
    return datetime.timedelta(hours=int(found["number"]) * _HOURS[found["unit"]])
