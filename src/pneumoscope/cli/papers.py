"""`report` and `plot`: what a run gives to a paper."""

from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cli import options
from pneumoscope.cli.options import OUTPUT, option
from pneumoscope.cli.output import echo


def report(
    run: Annotated[Path, typer.Argument(help="A finished run of train.", metavar="RUN")],
    checklist: Annotated[str, option("claim, tripod-ai or stard, or several, such as claim,stard.")] = "claim",
    out: Annotated[Path | None, option("Folder to write. [default: RUN/paper]", OUTPUT)] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Fill a reporting checklist from a run, for a paper.

    It also writes the methods in words, a flow diagram, Table 1 and BibTeX. What the run does not show stays open for
    the author.
    """
    from pneumoscope.reports import checklist as job

    for each in job.write_checklist(run, checklist, out, overwrite=overwrite):
        echo(
            f"{each.title}: of {len(each.items)} rows, {each.count('run')} filled from the run, "
            f"{each.count('partly')} partly, {each.count('author')} open for the author"
        )
    echo(f"\nPage: {(run / job.FOLDER if out is None else out) / 'checklist.html'}")


def plot(
    runs: Annotated[list[Path], typer.Argument(help="Runs or evaluations of two classes.", metavar="RUN")],
    out: options.Out,
    kind: Annotated[str, option("roc, pr, calibration or dca, or several, such as roc,dca.")] = "roc",
    form: Annotated[str, option("pdf, svg or png, or several.", OUTPUT, "--format")] = "pdf",
    names: Annotated[str | None, option("Names of the runs in the legend, separated by commas.", OUTPUT)] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Draw figures for print, with the curves of one run or of several."""
    from pneumoscope.reports.print_figures import plot as job

    for path in job(runs, out, kind=kind, format=form, names=names, overwrite=overwrite):
        echo(str(path))
