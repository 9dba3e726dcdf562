"""`grade`: submissions ranked against hidden labels, printed within 80 columns."""

import json
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pneumoscope.cli import options
from pneumoscope.cli.flags import show_flags
from pneumoscope.cli.options import IMAGES, OUTPUT, option
from pneumoscope.cli.output import check_excel, echo, make_table, open_console
from pneumoscope.errors import UsageError
from pneumoscope.text import counted, printable, shorten

if TYPE_CHECKING:
    from pneumoscope.evaluation.grading import Grading

_WIDTH, _LONGEST = 80, 34  # of lines, and of the names of submissions in the table


def grade(
    context: typer.Context,
    truth: Annotated[Path, typer.Argument(help="Hidden labels: a table or a folder of classes.", metavar="TRUTH")],
    submissions: Annotated[
        list[Path], typer.Argument(help="Tables of predictions, or folders of them.", metavar="SUBMISSION")
    ],
    out: Annotated[Path | None, option("Folder to write: a page, grading.csv and grading.json.", OUTPUT)] = None,
    form: Annotated[
        Literal["table", "csv", "json"], option("Format of standard output.", OUTPUT, "--format")
    ] = "table",
    metric: Annotated[str, option("Metric to rank by, such as auroc, accuracy, f1, mcc or brier.")] = "auroc",
    split: Annotated[str | None, option("train, val, test or all. [default: test if there is one]", IMAGES)] = None,
    id_column: options.IdColumn = None,
    probability_column: options.ProbabilityColumn = None,
    scale: options.ScaleOfNumbers = "probability",
    positive: options.Positive = None,
    patient_pattern: options.PatientPattern = None,
    resamples: options.Resamples = 2000,
    seed: options.Seed = 0,
    excel: options.Excel = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Rank many tables of predictions against hidden labels.

    Tables that cannot be used are named with the reason, and do not stop the others.
    """
    given = {name: value for name, value in locals().items() if name not in ("context", "form")}
    from pneumoscope.inference.formats import write_csv
    from pneumoscope.reports.grading import grade as job

    if out is None:
        check_excel(excel, form)
        if overwrite:
            raise UsageError("no effect without `out`. Leave it out.", "overwrite")
    grading = job(**given, naming=context.obj)
    if form == "json":
        echo(json.dumps(grading.to_json(), indent=2))
    elif form == "csv":
        write_csv(grading.to_rows(), sys.stdout, excel)
    else:
        _print(grading)
    if out is not None:
        echo(f"{chr(10) if form == 'table' else ''}Page: {out / 'grading.html'}", err=form != "table")


def _print(grading: "Grading") -> None:
    """Print the submissions in order, which cannot be distinguished, and which are not ranked."""
    from pneumoscope.evaluation.metrics import NAMES
    from pneumoscope.reports.pages import format_interval, format_number

    patients = f" of {counted(grading.patients, 'patient')}" if grading.patients else ""
    _write(f"{grading.split}: {counted(grading.n, 'image')}{patients}, ranked by {NAMES[grading.metric]}\n")
    table = make_table(["place", "may be", "submission"], [grading.metric.replace("_", " "), "95% interval"])
    for each in grading.ranked:
        best, worst = each.best_place, each.worst_place
        places = f"{best}" if best == worst else f"{best} to {worst}"
        name = shorten(each.submission, _LONGEST, middle=True)
        table.add_row(f"{each.place}", places, name, format_number(each.value.value), format_interval(each.value))
    open_console().print(table, markup=False)
    echo()
    for line in (*grading.describe_ties(), *grading.notes):
        _write(line)
    for each in grading.ranked:
        for remark in each.remarks:
            _write(f"{each.submission}: {remark[0].lower()}{remark[1:]}")
    if grading.not_ranked:
        echo("\nNot ranked:")
    for bad in grading.not_ranked:
        _write(f"{bad.submission}: {show_flags(bad.reason)}")


def _write(text: str) -> None:
    """Print a text with its lines broken, and continued with an indent."""
    for line in printable(text).split("\n"):
        echo(textwrap.fill(line, _WIDTH, subsequent_indent="  ", break_on_hyphens=False))
