"""The log of services on standard error: text, or a JSON object on each line."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from pneumoscope.text import printable

_FIELDS = ("request",)  # of a record, beside its message


@contextmanager
def show_log(form: Literal["text", "json"], name: str) -> Iterator[None]:
    """Show what the process logs, without control characters that could come from outside.

    Args:
        form: of the lines.
        name: of the logger that also shows messages below warnings.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if form == "json" else _Text("%(asctime)s %(message)s"))
    logging.getLogger().addHandler(handler)  # of all libraries, whose messages may hold names, too
    logging.getLogger(name).setLevel(logging.INFO)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        # Indented, so that a line break in a message cannot begin what looks like another entry.
        return printable(super().format(record)).replace("\n", "\n    ")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        about = {"time": f"{moment}.{int(record.msecs):03d}Z", "level": record.levelname.lower()}
        fields = {field: getattr(record, field) for field in _FIELDS if hasattr(record, field)}
        return json.dumps({**about, **fields, "message": printable(record.getMessage())})
