"""Turns the parameter names in the library's messages into flags; no other module does."""

from __future__ import annotations

import functools
import re
from typing import Any

from pneumoscope.cli.app import app
from pneumoscope.errors import PneumoscopeError

_NAME = re.compile(r"[\w.]+")
_PARAMETER = re.compile(r"`(?:\w+\.)?(?P<name>[a-z]\w*)(?:=(?P<value>[^`]*))?`")


def describe_error(error: PneumoscopeError) -> str:
    """An error's message, with flags in place of parameters."""
    message = show_flags(error.message)
    if error.parameter is None:
        return message
    # A key of a file, such as `config.yaml: optimisation.lr`, keeps the file's name.
    flag = _to_flag(error.parameter.rpartition(".")[2]) if _NAME.fullmatch(error.parameter) else None
    return f"{flag if flag in _list_flags() else error.parameter}: {message}"


def show_flags(message: str) -> str:
    """Replace parameters in backticks by flags: `out` by --out, `cache=None` by --no-cache, `to='int8'` by --to int8.

    Other words in backticks stay as they are.
    """

    def replace(match: re.Match[str]) -> str:
        flag, value = _to_flag(match["name"]), match["value"]
        if value in ("False", "None"):
            flag = f"--no-{flag[2:]}"
        if flag not in _list_flags():
            return match[0]
        return flag if value in (None, "True", "False", "None") else f"{flag} {value.strip(chr(39) + chr(34))}"

    return _PARAMETER.sub(replace, message)


def _to_flag(parameter: str) -> str:
    return f"--{parameter.replace('_', '-')}"


@functools.cache
def _list_flags() -> frozenset[str]:
    """The flags of all commands."""
    from typer import Context
    from typer.main import get_command

    flags: set[str] = set()
    waiting: list[Any] = [get_command(app)]
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        for parameter in command.get_params(Context(command)):
            flags.update(parameter.opts, parameter.secondary_opts)
    return frozenset(flags)
