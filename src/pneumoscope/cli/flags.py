"""Turns the parameter names in the library's messages into flags of the command that runs; no other module does."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from pneumoscope.errors import PneumoscopeError

_NAME = re.compile(r"[\w.]+")
_PARAMETER = re.compile(r"`(?:\w+\.)?(?P<name>[a-z]\w*)(?:=(?P<value>[^`]*))?`")
_flags: set[str] = set()  # of the command that runs


def set_flags(flags: Iterable[str]) -> None:
    """Set the flags that messages may name: those of the command that runs."""
    _flags.clear()
    _flags.update(flags)


def describe_error(error: PneumoscopeError) -> str:
    """An error's message, with flags in place of parameters."""
    message = show_flags(error.message)
    if error.parameter is None:
        return message
    # A key of a file, such as `config.yaml: optimisation.lr`, keeps the file's name.
    flag = _to_flag(error.parameter.rpartition(".")[2]) if _NAME.fullmatch(error.parameter) else ""
    return f"{flag if flag in _flags else error.parameter}: {message}"


def show_flags(message: str) -> str:
    """Replace parameters in backticks by flags: `out` by --out, `cache=False` by --no-cache, `to='int8'` by --to int8.

    Values are quoted where a shell needs it. Other words in backticks stay as they are, and so do parameters that the
    command has no flag for.
    """

    def replace(match: re.Match[str]) -> str:
        value = match["value"]
        flag = _to_flag(f"no_{match['name']}" if value == "False" else match["name"])
        if flag not in _flags:
            return match[0]
        return flag if value in (None, "True", "False") else f"{flag} {shlex.quote(value.strip(chr(39) + chr(34)))}"

    return _PARAMETER.sub(replace, message)


def _to_flag(parameter: str) -> str:
    return f"--{parameter.replace('_', '-')}"
