"""What commands show: tables on standard output, messages and progress on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from pneumoscope.cli.flags import show_flags
from pneumoscope.text import printable

if TYPE_CHECKING:
    from rich.console import Console

    from pneumoscope.auditing.findings import Audit
    from pneumoscope.evaluation.contrasts import Comparison
    from pneumoscope.evaluation.results import Evaluation, Interval
    from pneumoscope.exporting import Export
    from pneumoscope.training.train import Run


def print_run(run: Run) -> None:
    """Say how a run came out and where it lies."""
    print_evaluation(run.evaluation)
    typer.echo(f"\nRun:    {run.folder}\nReport: {run.report}")


def print_export(done: Export) -> None:
    """Say where an export lies and how it stands to its model."""
    from pneumoscope.exporting import describe_check

    typer.echo(f"{done.folder}: {done.size / 1e6:.1f} MB\n{describe_check(done.check)}")


def print_evaluation(evaluation: Evaluation) -> None:
    """Print the metrics with their intervals, with those for another prevalence beside them, and the decisions."""
    from rich.table import Table

    patients = f" of {evaluation.patients} patients" if evaluation.patients else ""
    typer.echo(f"{evaluation.split}: {evaluation.n} images{patients}\n")
    adjusted = evaluation.adjusted
    table = Table(box=None, pad_edge=False)
    columns = ["metric", "value", "95 % interval"]
    if adjusted is not None:
        columns += ["adapted" if adjusted.estimated else "adjusted", "95 % interval"]
    for column in columns:
        table.add_column(column, justify="left" if column == "metric" else "right", no_wrap=True)
    for name, interval in evaluation.metrics.items():
        both = [interval] if adjusted is None else [interval, adjusted.metrics[name]]
        cells = [cell for each in both for cell in (_show_value(each), _show_limits(each))]
        table.add_row(name.replace("_", " "), *cells)
    open_console().print(table)
    if adjusted is not None and adjusted.prevalence is not None:
        share = adjusted.prevalence
        typer.echo(
            f"\nPrevalence {evaluation.prevalence:.3f}, estimated without labels: {share.value:.3f} "
            f"({_show_limits(share)}). Adapted: with probabilities adjusted for that."
            if adjusted.estimated
            else f"\nAdjusted: as if the prevalence were {share.value:g}, not {evaluation.prevalence:.3f}."
        )
    if decisions := evaluation.decisions:
        counts = " · ".join(f"{count} {name}" for name, count in decisions["counts"].items() if count)
        typer.echo(f"\nDecisions: {printable(counts)}")
        right = decisions["accuracy_of_answered"]
        if right["n"]:
            typer.echo(
                f"{decisions['answered']['value']:.0%} answered with a label, {right['value']:.1%} of these rightly "
                f"({right['low']:.3f} to {right['high']:.3f})."
            )


def _show_value(interval: Interval) -> str:
    return "not defined" if interval.value != interval.value else f"{interval.value:.3f}"


def _show_limits(interval: Interval) -> str:
    return f"{interval.low:.3f} to {interval.high:.3f}" if interval.low == interval.low else ""


def print_comparison(comparison: Comparison) -> None:
    """Print by how much each run differs from the first, with intervals and p values."""
    from rich.table import Table

    from pneumoscope.reports.comparison import format_chance

    patients = f" of {comparison.patients} patients" if comparison.patients else ""
    typer.echo(f"{comparison.n} images{patients}, paired by {comparison.paired_by}")
    several = len(comparison.contrasts) > 1
    for contrast in comparison.contrasts:
        typer.echo(f"\n{printable(contrast.run)} (other) against {printable(comparison.runs[0])} (first)\n")
        table = Table(box=None, pad_edge=False)
        for column in ("metric", "first", "other", "difference", "95 % interval", "p", *["p, Holm"] * several):
            table.add_column(column, justify="left" if column == "metric" else "right", no_wrap=True)
        for name, one in contrast.differences.items():
            cells = [f"{value:.3f}" if value == value else "–" for value in (one.first, one.other)]
            cells.append(f"{one.value:+.3f}" if one.value == one.value else "not defined")
            cells.append(f"{one.low:+.3f} to {one.high:+.3f}" if one.low == one.low else "")
            table.add_row(name, *cells, format_chance(one.p), *[format_chance(one.adjusted)] * several)
        open_console().print(table)
        typer.echo(
            f"\nRight were both {contrast.both} times, only the first {contrast.only_first}, only the other "
            f"{contrast.only_other}, neither {contrast.neither}."
        )
    for note in comparison.notes:
        typer.echo(printable(note), err=True)


def print_audit(audit: Audit) -> None:
    """Print the findings, the worst first, and what to do about each."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    patients = f" of {audit.patients} patients" if audit.patients else ""
    typer.echo(f"{audit.images} images{patients}: {audit.summary}")
    if not audit.findings:
        return
    table = Table(box=None, pad_edge=False, show_header=False, padding=(1, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    styles = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
    said: set[str] = set()
    for finding in audit.findings:
        names = [printable(path.name).replace("\n", " ") for path in finding.files[:3]]
        if finding.check == "reading":  # here the reason is what one wants to know
            names = [f"{name}: {printable(why)}" for name, why in zip(names, finding.remarks, strict=False)]
        files = (" " if finding.check == "reading" else ", ").join(names)
        more = f" and {len(finding.files) - 3} more" if len(finding.files) > 3 else ""
        text = Text(printable(finding.title), "bold")
        if finding.advice not in said:
            said.add(finding.advice)
            text.append(f"\n{printable(finding.advice)}", "not bold")
        if files:
            text.append(f"\n{files}{more}", "dim")
        table.add_row(Text(finding.severity, styles[finding.severity]), text)
    Console(highlight=False).print(table)


def open_console(stderr: bool = False) -> Console:
    """Where tables or messages are printed; long lines are left to the terminal."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


@contextmanager
def show_progress(hint: str = "") -> Iterator[Callable[[str, int, int], None]]:
    """Messages and progress on standard error: a bar on a terminal, plain lines elsewhere."""
    import logging
    import time

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = open_console(stderr=True)

    class Screen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.print(printable(show_flags(record.getMessage())), markup=False)

    columns = (TextColumn("{task.description:18}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars = Progress(*columns, console=console, disable=not console.is_terminal)
    tasks: dict[str, Any] = {}
    spoken: dict[str, float] = {}

    def progress(what: str, done: int, total: int) -> None:
        if console.is_terminal:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total or None)
            bars.update(tasks[what], completed=done)
            return
        now = time.monotonic()
        if done == total or now - spoken.setdefault(what, now) >= 10:
            spoken[what] = now
            console.print(f"{what}: {done}{f' of {total}' if total else ''}", markup=False)

    logger = logging.getLogger("pneumoscope")
    handler, level = Screen(logging.INFO), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with bars:
            yield progress
    except KeyboardInterrupt:
        typer.echo(f"Interrupted.{hint}", err=True)
        raise typer.Exit(130) from None
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
