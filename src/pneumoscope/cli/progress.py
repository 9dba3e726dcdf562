"""Messages and progress of commands, on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import typer

from pneumoscope.cli.flags import show_flags
from pneumoscope.cli.output import echo, open_console, wrap
from pneumoscope.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from pneumoscope.config import Progress


@contextmanager
def show_progress(hint: str = "") -> Iterator[Progress]:
    """Messages and progress on standard error: a bar on a terminal, plain lines elsewhere."""
    import logging
    import time

    # A command behind `!` in a notebook has a terminal, too, but the notebook would repeat every state of a bar.
    drawn = sys.stderr.isatty() and "JPY_PARENT_PID" not in os.environ
    bars: list[Bars] = []  # one, once something takes more than one step: importing Rich takes a while
    tasks: dict[str, Any] = {}
    last_printed: dict[str, float] = {}

    def show(text: str) -> None:
        if bars:
            bars[0].console.print(wrap(printable(text)), markup=False)
        else:
            echo(text, err=True)

    class Messages(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            show(show_flags(record.getMessage()))

    def progress(task: str, done: int, total: int) -> None:
        now = time.monotonic()
        if not drawn and (done == total or now - last_printed.setdefault(task, now) >= 10):
            last_printed[task] = now
            show(f"{task}: {done}{f' of {total}' if total else ''}")
        elif drawn and (bars or done != total):
            if not bars:
                bars.append(stack.enter_context(_open_bars()))
            if task not in tasks:
                tasks[task] = bars[0].add_task(task, total=total or None)
            bars[0].update(tasks[task], completed=done)

    logger = logging.getLogger("pneumoscope")
    handler, level = Messages(logging.INFO), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with ExitStack() as stack:
            yield progress
    except KeyboardInterrupt:
        echo(f"Interrupted.{hint}", err=True)
        raise typer.Exit(130) from None
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _open_bars() -> Bars:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:18}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=open_console(stderr=True), transient=True)
