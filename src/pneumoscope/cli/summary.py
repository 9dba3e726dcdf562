"""`summarize`: many runs in one table."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pneumoscope.cli.options import OUTPUT, Overwrite, option
from pneumoscope.cli.output import count_images, echo, make_table, open_console
from pneumoscope.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pneumoscope.evaluation.summary import Summary


def summarize(
    runs: Annotated[list[Path], typer.Argument(help="Finished runs, or cross-validations.", metavar="RUN")],
    by: Annotated[
        str | None,
        option("Settings to group by, such as recipe,backbone. [default: all that differ, apart from the seed]"),
    ] = None,
    out: Annotated[Path | None, option("Folder to write: tables and plots.", OUTPUT)] = None,
    form: Annotated[
        Literal["text", "csv", "markdown", "latex", "json"], option("Format of standard output.", OUTPUT, "--format")
    ] = "text",
    metrics: Annotated[str, option("Metrics of the tables and plots.", OUTPUT)] = "auroc,sensitivity,specificity",
    plot_formats: Annotated[str, option("Formats of the plot files, such as svg,pdf,png.", OUTPUT)] = "svg",
    overwrite: Overwrite = False,
) -> None:
    """Summarise runs: mean and standard deviation over seeds, and differences between groups of runs."""
    import json

    from pneumoscope.inference.formats import write_csv
    from pneumoscope.reports import summary as job

    for name, given in (("overwrite", overwrite), ("plot_formats", plot_formats != "svg")):
        if given and out is None:
            raise UsageError("no effect without `out`. Leave it out.", name)
    shown = job.parse_metrics(metrics)
    summary = job.summarize(runs, by, out, metrics=shown, plot_formats=plot_formats, overwrite=overwrite)
    if form == "json":
        echo(json.dumps(summary.to_json(), indent=2, default=str))
    elif form == "csv":
        write_csv(summary.to_rows(), sys.stdout, excel=False)
    elif form == "markdown":
        echo(job.write_markdown(summary, shown), end="")
    elif form == "latex":
        echo(job.write_latex(summary, shown), end="")
    else:
        print_summary(summary, shown)
    if form != "markdown":
        for note in summary.notes:
            echo(note, err=True)
    if out is not None:
        echo(f"{chr(10) if form == 'text' else ''}Tables and plots: {out}", err=form != "text")


def print_summary(summary: "Summary", metrics: "Sequence[str]") -> None:
    """Print the groups of runs, and how they differ from the first."""
    from pneumoscope.reports.summary import tabulate, tabulate_differences

    header, rows = tabulate(summary, metrics)
    table = make_table(header[:1], header[1:])
    for row in rows:
        table.add_row(*row)
    open_console().print(table, markup=False)
    if not summary.contrasts:
        return
    images = count_images(summary.images or 0, summary.patients)
    echo(f"\nDifferences from {summary.groups[0].name}, on the same {images}\n")
    header, rows = tabulate_differences(summary)
    table = make_table(header[:2], header[2:])
    for row in rows:
        table.add_row(*row)
    open_console().print(table, markup=False)
