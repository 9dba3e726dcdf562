"""The command line run in the process of a test: the same `main` and exit codes, and no start of an interpreter."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import pytest

from pneumoscope.cli import main as cli


@dataclass(frozen=True)
class Result:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


Command: TypeAlias = Callable[..., Result]


def make_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """What runs `pneumoscope` with the words that it is called with."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["pneumoscope", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Result(int(ended.value.code or 0), captured.out, captured.err)

    return run
