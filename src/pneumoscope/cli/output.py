"""What commands show: tables on standard output, messages on standard error."""

from __future__ import annotations

import codecs
import io
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer

from pneumoscope.cli.flags import show_flags
from pneumoscope.errors import UsageError
from pneumoscope.text import printable, printable_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pneumoscope.auditing.findings import Audit
    from pneumoscope.evaluation.compare import Comparison
    from pneumoscope.evaluation.out_of_fold import MeanOverFolds
    from pneumoscope.evaluation.results import Evaluation, GroupDifference, Interval
    from pneumoscope.training.adapt import Adaptation
    from pneumoscope.training.train import Run


_SUBGROUPS = 12  # shown on the terminal
_escaped: set[str] = set()  # characters that the encoding of standard output lacks


class _Stream(io.TextIOWrapper):
    """A standard stream whose file stays open, as it belongs to the stream that this one replaces."""

    def close(self) -> None:
        self.flush()


class _Results(_Stream):
    """Standard output, which errors call by its name."""

    def write(self, text: str) -> int:
        with _named():
            return super().write(text)

    def flush(self) -> None:
        with _named():
            super().flush()


class _Messages(_Stream):
    """Standard error. A message that cannot be written, as on a full disk, does not end a command."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


@contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        problem.filename = "standard output"
        raise


def open_streams() -> None:
    """Let file names and labels reach a terminal or pipe of any encoding, and replace streams that are closed."""
    codecs.register_error("pneumoscope", _escape)
    sys.stdout = _open(_Results, sys.stdout, "pneumoscope")
    sys.stderr = _open(_Messages, sys.stderr, "backslashreplace")


def _open(kind: type[_Stream], stream: TextIO | None, errors: str) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 - for the whole process
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    return kind(stream.buffer, stream.encoding, errors, line_buffering=stream.line_buffering)


def _escape(problem: UnicodeError) -> tuple[str | bytes, int]:
    if isinstance(problem, UnicodeEncodeError):
        _escaped.add(problem.object[problem.start])
    return codecs.backslashreplace_errors(problem)


def report_escapes() -> None:
    """Say that standard output has escapes in place of characters that its encoding lacks."""
    if _escaped:
        echo(
            f"The encoding of standard output, {sys.stdout.encoding}, lacks some characters. They were written as "
            "escapes. Files are always UTF-8; for standard output, set PYTHONIOENCODING=utf-8.",
            err=True,
        )
    _escaped.clear()


def echo(text: object = "", *, err: bool = False, end: str = "\n") -> None:
    """Print text on standard output or standard error, without characters that would control a terminal.

    `typer.echo` writes UTF-8 where the encoding is ASCII, which then differs from what else is written there.
    """
    shown = printable(f"{text}")
    stream = sys.stderr if err else sys.stdout
    stream.write((wrap(shown) if err else shown) + end)
    stream.flush()


def print_run(run: Run) -> None:
    """Print the metrics of a run and where it is."""
    print_evaluation(run.evaluation)
    echo(f"\nRun:    {run.folder}\nReport: {run.report}")


def print_adaptation(adaptation: Adaptation) -> None:
    """Print what was changed and why, each metric before and after, and where the model is."""
    for change in adaptation.evidence.changes:
        typer.echo(printable(change))
    for images, differences in adaptation.evidence.differences.items():
        table = make_table(["metric"], ["before", "after", "difference", "95% interval"])
        for name, each in differences.items():
            values = ["–" if math.isnan(value) else f"{value:.3f}" for value in (each.first, each.other)]
            values.append("" if math.isnan(each.value) else f"{each.value:+.3f}")
            values.append("" if math.isnan(each.low) else f"{each.low:+.3f} to {each.high:+.3f}")
            table.add_row(printable_line(name.replace("_", " ")), *values)
        typer.echo(f"\n{images}:\n")
        open_console().print(table, markup=False)
    typer.echo(f"\nModel:  {adaptation.model}\nReport: {adaptation.report}")


def print_evaluation(evaluation: Evaluation) -> None:
    """Print metrics with their intervals, next to them the adjusted ones if there are any, and the decisions."""
    echo(f"{evaluation.split}: {count_images(evaluation.n, evaluation.patients)}\n")
    adjusted = evaluation.adjusted
    more = ("adjusted", "95% interval") if adjusted is not None else ()
    table = make_table(["metric"], ["value", "95% interval", *more])
    for name, interval in evaluation.metrics.items():
        intervals = [interval] if adjusted is None else [interval, adjusted.metrics[name]]
        table.add_row(name.replace("_", " "), *(cell for each in intervals for cell in show_interval(each)))
    open_console().print(table)
    if evaluation.uncalibrated:
        before = ", ".join(f"{name} {each.value:.3f}" for name, each in evaluation.uncalibrated.items())
        echo(f"\nWithout calibration: {before}.")
    _print_classes(evaluation)
    _print_subgroups(evaluation)
    if adjusted is not None and adjusted.prevalence is not None:
        value, bounds = show_interval(adjusted.prevalence)
        source = f", estimated without labels ({bounds})" if adjusted.estimated else ""
        echo(f"\nPrevalence of these images: {evaluation.prevalence:.3f}. Adjusted to {value}{source}.")
    print_decisions(evaluation)


def print_decisions(evaluation: Evaluation) -> None:
    """Print how often each decision was made, and how often labels were right."""
    if decisions := evaluation.decisions:
        from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION

        counts = " · ".join(
            f"{count} {name.replace('_', ' ') if name == OUT_OF_DISTRIBUTION else name}"
            for name, count in decisions["counts"].items()
            if count
        )
        echo(f"\nDecisions: {counts}")
        accuracy = decisions["accuracy_of_answered"]
        if accuracy["n"]:
            echo(
                f"{decisions['answered']['value']:.0%} of images got a label; accuracy among them "
                f"{accuracy['value']:.3f} ({accuracy['low']:.3f} to {accuracy['high']:.3f})."
            )
        else:
            echo("No image got a label.")


def _print_classes(evaluation: Evaluation) -> None:
    """Print how each class is recognised."""
    table = make_table(["class", "metric"], ["value", "95% interval"])
    for name, part in evaluation.per_class.items():
        table.add_row(name, "images", str(part.support))
        for metric, interval in (("precision", part.precision), ("recall", part.recall), ("f1", part.f1)):
            table.add_row("", metric, *show_interval(interval))
    echo()
    open_console().print(table, markup=False)


def _print_subgroups(evaluation: Evaluation) -> None:
    """Print one metric of the first subgroups: the first that each has, as one class alone has no AUROC."""
    if not evaluation.subgroups:
        return
    from pneumoscope.evaluation.subgroups import choose_metrics, count_differences

    wanted = choose_metrics(evaluation)
    table = make_table(["subgroup"], ["images", "metric", "value", "95% interval", "vs rest", "p"])
    table.columns[0].no_wrap = False  # on a narrow terminal names take two lines, so that all numbers are whole
    for part in evaluation.subgroups[:_SUBGROUPS]:
        metric = next((name for name in wanted if name in part.metrics), None)
        value = ("not defined", "") if metric is None else show_interval(part.metrics[metric])
        differs = _show_difference(part.differences.get(metric or ""))
        table.add_row(f"{part.kind}: {part.name}", str(part.n), metric, *value, *differs)
    echo()
    open_console().print(table, markup=False)
    looked_at = count_differences(evaluation.subgroups, evaluation.n)
    if looked_at:
        echo(f"vs rest: difference from all other images; p after Holm's correction for all {looked_at} differences.")
    if (more := len(evaluation.subgroups) - _SUBGROUPS) > 0:
        echo(f"{more} more, and other metrics, are in metrics.json and the report.")


def _show_difference(difference: GroupDifference | None) -> tuple[str, str]:
    from pneumoscope.reports.pages import format_p

    return ("", "") if difference is None else (f"{difference.value:+.3f}", format_p(difference.adjusted))


def count_images(images: int, patients: int | None) -> str:
    """How many images of how many patients, where these are known."""
    return f"{images} images" + (f" of {patients} patients" if patients else "")


def show_interval(interval: Interval | MeanOverFolds) -> tuple[str, str]:
    """A value and its interval as cells of a table."""
    value = "not defined" if math.isnan(interval.value) else f"{interval.value:.3f}"
    return value, "" if math.isnan(interval.low) else f"{interval.low:.3f} to {interval.high:.3f}"


def print_comparison(comparison: Comparison) -> None:
    """Print how each run differs from the first one, with intervals and p values."""
    from pneumoscope.reports.pages import format_p

    echo(f"{count_images(comparison.n, comparison.patients)}, paired by {comparison.paired_by}")
    several = len(comparison.contrasts) > 1
    first = comparison.runs[0]
    for contrast in comparison.contrasts:
        other = contrast.run
        echo(f"\n{other} (other) against {first} (first)\n")
        columns = ["first", "other", "difference", "95% interval", "p", *["p, Holm"] * several]
        table = make_table(["metric"], columns)
        for name, difference in contrast.differences.items():
            cells = ["–" if math.isnan(value) else f"{value:.3f}" for value in (difference.first, difference.other)]
            cells.append("not defined" if math.isnan(difference.value) else f"{difference.value:+.3f}")
            cells.append("" if math.isnan(difference.low) else f"{difference.low:+.3f} to {difference.high:+.3f}")
            adjusted = [format_p(difference.adjusted)] * several
            table.add_row(name, *cells, format_p(difference.p), *adjusted)
        open_console().print(table)
        echo(
            f"\nBoth correct: {contrast.both_correct}; only {first}: {contrast.only_first}; only {other}: "
            f"{contrast.only_other}; both wrong: {contrast.both_wrong}"
        )
    for note in comparison.notes:
        echo(note, err=True)


def print_audit(audit: Audit) -> None:
    """Print the findings, the worst first, with what to do about each."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    echo(f"{count_images(audit.images, audit.patients)}: {audit.summary}")
    if not audit.findings:
        return
    table = Table(box=None, pad_edge=False, show_header=False, padding=(1, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # the end of a long path tells most
    styles = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
    printed: set[str] = set()
    for finding in audit.findings:
        names = [printable_line(name) for name in finding.name_files(audit.data)]
        if finding.check == "reading":  # the reason matters here
            reasons = [printable(why) for why in finding.remarks[: len(names)]] or [""] * len(names)
            names = [f"{name}: {why}" if why else name for name, why in zip(names, reasons, strict=True)]
        files = (" " if any(finding.remarks) and finding.check == "reading" else ", ").join(names)
        more = f" and {len(finding.files) - 3} more" if len(finding.files) > 3 else ""
        text = Text(printable(finding.title), "bold")
        if finding.advice not in printed:
            printed.add(finding.advice)
            text.append(f"\n{printable(show_flags(finding.advice))}", "not bold")
        if files:
            text.append(f"\n{files}{more}", "dim")
        table.add_row(Text(finding.severity, styles[finding.severity]), text)
    Console(highlight=False).print(table)


def check_excel(excel: bool, form: str, out: Path | None = None) -> None:
    """Check that --excel has an effect; rows for Excel on standard output are in UTF-8, whatever its encoding.

    Raises:
        UsageError: the format is not CSV.
    """
    if excel and form != "csv":
        raise UsageError(f"is only for CSV, but the format is {form}. Leave out one of the two.", "excel")
    if excel and out is None and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")


def make_table(words: Sequence[str], numbers: Sequence[str] = ()) -> Table:
    """An empty table with these columns; those of numbers are flush right."""
    from rich.table import Table

    class Fitted(Table):
        def add_row(self, *cells: Any, **how: Any) -> None:
            super().add_row(*map(_fit, cells), **how)

    table = Fitted(box=None, pad_edge=False)
    for column in (*words, *numbers):
        table.add_column(column, justify="right" if column in numbers else "left", no_wrap=True)
    return table


def _fit(cell: str | None) -> str:
    """A cell on one line, with the escapes that the encoding needs: they are wider than what they stand for."""
    encoding = sys.stdout.encoding or "utf-8"
    return printable_line(cell or "").encode(encoding, "pneumoscope").decode(encoding)


def open_console(stderr: bool = False) -> Console:
    """A console for tables or messages; it leaves the wrapping of long lines to the terminal."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def wrap(text: str) -> str:
    """A message with its lines broken between words, if standard error is a terminal."""
    if not sys.stderr.isatty():
        return text
    import shutil
    import textwrap

    width = shutil.get_terminal_size().columns
    lines = (textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) for line in text.split("\n"))
    return "\n".join("\n".join(line) for line in lines)
