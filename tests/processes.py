"""Processes that start at once: forks of an interpreter that has imported everything and run nothing.

A fresh interpreter takes longer to import PyTorch and the rest than the commands of a test take to run. Tests of what
an interpreter does with its own start, such as encodings, closed streams and imports, start a fresh one instead.
"""

from __future__ import annotations

import atexit
import io
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from unittest import mock

_CONTEXT = get_context("forkserver")


@dataclass(frozen=True)
class Started:
    """A process, and the file that it writes its output and messages to."""

    process: ForkServerProcess
    log: Path

    @property
    def runs(self) -> bool:
        return self.process.is_alive()

    @property
    def shown(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait(self, seconds: float) -> int:
        """Its exit code."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"it still runs after {seconds} s: {self.shown}"
        return self.process.exitcode

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def end(self, how: int = signal.SIGKILL) -> None:
        """Send a signal, unless it has ended already."""
        if self.runs:  # its number may belong to another process by now
            with suppress(ProcessLookupError):
                os.kill(self.pid, how)


def start_command(words: Sequence[object], log: Path) -> Started:
    """Start `pneumoscope` with these words; it writes to `log`."""
    return start(_run_command, [str(word) for word in words], log=log)


def run_encoded(
    words: Sequence[object], encoding: str, folder: Path, seconds: float = 120
) -> subprocess.CompletedProcess[bytes]:
    """Run `pneumoscope` in a folder, with streams of an encoding as `PYTHONIOENCODING` gives them."""
    with tempfile.TemporaryDirectory() as kept:
        out = Path(kept) / "out"
        started = start(_run_encoded, [str(word) for word in words], encoding, folder, out, log=Path(kept) / "err")
        code = started.wait(seconds)
        return subprocess.CompletedProcess(list(map(str, words)), code, out.read_bytes(), started.log.read_bytes())


def start(function: Callable[..., object], *arguments: object, log: Path) -> Started:
    """Call a function of a test module in a process of its own, in this folder and environment."""
    _prepare()
    log.touch()
    process = _CONTEXT.Process(target=_run, args=(function, arguments, dict(os.environ), Path.cwd(), log))
    process.start()
    atexit.register(process.kill)  # before the interpreter waits for it
    return Started(process, log)


def _prepare() -> None:
    """Start the interpreter that is forked, if it does not run yet; it finds modules where this one does."""
    _CONTEXT.set_forkserver_preload(["prepared"])
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        forkserver.ensure_running()


def _run_command(words: Sequence[str]) -> None:
    from pneumoscope.cli import main as cli

    sys.argv = ["pneumoscope", *words]
    cli.main()


def _run_encoded(words: Sequence[str], encoding: str, folder: Path, out: Path) -> None:
    os.chdir(folder)
    with out.open("wb") as file:
        os.dup2(file.fileno(), 1)
    for stream, errors in ((sys.stdout, "strict"), (sys.stderr, "backslashreplace")):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(encoding=encoding, errors=errors)
    _run_command(words)


def _run(
    function: Callable[..., object],
    arguments: Sequence[object],
    environment: Mapping[str, str],
    folder: Path,
    log: Path,
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    with log.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    function(*arguments)
