"""What a notebook shows: progress, and results as tables of HTML and pandas, and as figures."""

from __future__ import annotations

import html
import importlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pneumoscope.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INTERVAL = 0.2  # seconds between two updates of a bar
_DELAY = 1.0  # seconds that a task may take without a bar


class NotebookProgress:
    """Progress as bars in a notebook, and nothing anywhere else; the default of all functions that take long."""

    def __init__(self) -> None:
        self._bars: dict[str, _Bar] = {}

    def __call__(self, task: str, done: int, total: int) -> None:
        """Show how much of a task is done, of a total that is 0 where it is not known."""
        if not in_notebook():
            return
        if task not in self._bars or done <= self._bars[task].done:  # a new task, or the same once more
            self._bars[task] = _Bar()
        self._bars[task].show(task, done, total)


class _Bar:
    def __init__(self) -> None:
        self.done = -1
        self._handle: Any = None
        self._started = time.monotonic()
        self._shown = 0.0

    def show(self, task: str, done: int, total: int) -> None:
        self.done, now = done, time.monotonic()
        if (done < total and now - self._shown < _INTERVAL) or (self._handle is None and now - self._started < _DELAY):
            return
        self._shown = now
        text = f"{task}: {done}{f' of {total}' if total else ''}"
        bar = f'<progress value="{done}" max="{total}"></progress> ' if total else ""
        content = {"text/plain": text, "text/html": f"{bar}{html.escape(text)}"}
        if self._handle is None:
            from IPython.display import display

            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)


notebook_progress = NotebookProgress()


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})


class Drawn:
    """A result that can be drawn."""

    def plot(self, kind: str | None = None) -> Figure:
        """Draw the result as a matplotlib figure, which a notebook shows and `savefig` writes.

        Args:
            kind: which figure; by default the usual one. The error for a wrong name lists all.

        Raises:
            UsageError: there is no such figure of this result.
        """
        # Results must not import `reports`, so this is loaded by name, as pandas loads its plotting backends.
        figure: Figure = importlib.import_module("pneumoscope.reports.result_figures").draw_result(self, kind)
        return figure

    def show(self, kind: str | None = None) -> None:
        """Show that figure in a notebook.

        Raises:
            UsageError: this is no notebook, or there is no such figure.
        """
        if not in_notebook():
            raise UsageError("show() needs a notebook. Elsewhere write a file: `plot().savefig('figure.png')`.")
        from IPython.display import display

        display(self.plot(kind))


def to_frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows with equal keys as a pandas DataFrame, numbered by an index `row`.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise MissingExtraError("A DataFrame needs pandas: pip install pandas.") from None
    return pandas.DataFrame(list(rows), index=pandas.RangeIndex(len(rows), name="row"))


def to_html(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with equal keys as a table of HTML under a title, all escaped."""
    lines = [f"<table><caption>{html.escape(title)}</caption>"]
    names = ["".join(f"<th>{html.escape(name)}</th>" for name in row) for row in rows[:1]]
    cells = ["".join(map(_to_cell, row.values())) for row in rows]
    return "\n".join([*lines, *(f"<tr>{line}</tr>" for line in names + cells), "</table>"])


def _to_cell(cell: object) -> str:
    """A cell; text is aligned left, because notebooks would align it right, like numbers."""
    left = ' style="text-align: left"' if isinstance(cell, str) else ""
    return f"<td{left}>{html.escape(_show(cell))}</td>"


def _show(cell: object) -> str:
    return "" if cell is None else f"{cell:.3f}" if isinstance(cell, float) else str(cell)
