"""`evaluate`, `compare` and `audit`: how good a model is, how two differ, and whether the data can be trusted."""

import sys
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pneumoscope.cli import options
from pneumoscope.cli.models import choose_model
from pneumoscope.cli.options import IMAGES, OUTPUT, option
from pneumoscope.cli.output import check_excel, echo, print_audit, print_comparison, print_evaluation
from pneumoscope.cli.progress import show_progress
from pneumoscope.cli.summary import summarize
from pneumoscope.datasets.columns import Naming
from pneumoscope.errors import UsageError

if TYPE_CHECKING:
    from pneumoscope.evaluation.results import Evaluation

_COLUMNS = ("id_column", "probability_column", "predicted_column", "scale", "positive")
# Options of `evaluate` for the predictions of another program alone, and those that it shares with a model's.
_EXTERNAL = {"predictions", "truth", "calibrate", *_COLUMNS}
_SHARED = {
    "out", "split", "patient_pattern", "prevalence", "threshold", "subgroups", "resamples", "seed", "plot_formats",
    "patient_ids", "excel", "overwrite",
}  # fmt: skip


def evaluate(
    context: typer.Context,
    out: options.Out,
    data: Annotated[
        Path | None, typer.Argument(help="Folder with a subfolder per class, or a table.", metavar="[DATA]")
    ] = None,
    model: options.Model = None,
    split: Annotated[str | None, option("train, val, test or all. [default: test if there is one]", IMAGES)] = None,
    patient_pattern: options.PatientPattern = None,
    invert: options.Invert = False,
    any_modality: options.AnyModality = False,
    prevalence: options.Prevalence = None,
    adapt_prior: options.AdaptPrior = False,
    threshold: options.ThresholdOrRule = None,
    alpha: options.Alpha = None,
    false_alarms: options.FalseAlarms = None,
    refuse_out_of_scope: options.RefuseOutOfScope = False,
    predictions: options.Predictions = None,
    truth: options.Truth = None,
    id_column: options.IdColumn = None,
    probability_column: options.ProbabilityColumn = None,
    predicted_column: options.PredictedColumn = None,
    scale: options.ScaleOfNumbers = "probability",
    positive: options.Positive = None,
    calibrate: options.Calibrate = False,
    subgroups: options.Subgroups = None,
    resamples: options.Resamples = 2000,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    plot_formats: Annotated[str, option("Formats of the plot files, such as svg,pdf,png.", OUTPUT)] = "svg",
    patient_ids: options.PatientIds = False,
    excel: options.Excel = False,
    cache: options.Cache = True,
    overwrite: options.Overwrite = False,
) -> None:
    """Evaluate a model on labelled radiographs, or what another program predicted."""
    values = {name: value for name, value in locals().items() if name != "context"}
    if predictions is None:
        evaluation = _evaluate_model(context, values)
    else:
        from pneumoscope.reports.predictions_report import evaluate_predictions

        _refuse(context, set(values) - _SHARED - _EXTERNAL, "no effect with `predictions`. Leave it out")
        chosen = {name: value for name, value in values.items() if name in _SHARED | _EXTERNAL}
        with show_progress():
            evaluation = evaluate_predictions(**chosen, naming=context.obj)
    print_evaluation(evaluation)
    echo(f"\nReport: {out / 'report.html'}")


def _evaluate_model(context: typer.Context, values: dict[str, Any]) -> "Evaluation":
    from pneumoscope.images.read import Reading
    from pneumoscope.reports import evaluation_report as job

    _refuse(context, _EXTERNAL, "no effect without `predictions`. Leave it out")
    if values["data"] is None:
        raise UsageError("DATA is missing: a folder of classes or a table. Or give `predictions`.")
    own = {name: value for name, value in values.items() if name not in _EXTERNAL}
    reading = Reading(own.pop("invert"), own.pop("any_modality"))
    with show_progress() as progress:
        own["model"] = choose_model(own["model"])
        return job.evaluate(**own, reading=reading, naming=context.obj, progress=progress)


def _refuse(context: typer.Context, names: Iterable[str], why: str) -> None:
    """Refuse options that were given on the command line."""
    for name in sorted(names):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"{why}.", "DATA" if name == "data" else name)


def compare(
    context: typer.Context,
    runs: Annotated[
        list[Path],
        typer.Argument(help="Runs, evaluations or tables of predictions for the same images.", metavar="RUN"),
    ],
    out: Annotated[Path | None, option("Folder to write: a page and comparison.json.", OUTPUT)] = None,
    form: Annotated[
        Literal["table", "csv", "json"], option("Format of standard output.", OUTPUT, "--format")
    ] = "table",
    truth: options.Truth = None,
    id_column: options.IdColumn = None,
    probability_column: options.ProbabilityColumn = None,
    predicted_column: options.PredictedColumn = None,
    scale: options.ScaleOfNumbers = "probability",
    positive: options.Positive = None,
    by: Annotated[
        str | None,
        option(
            "Group runs by these settings, such as recipe,backbone, and compare the means of groups over seeds, as "
            "summarize does."
        ),
    ] = None,
    resamples: options.Resamples = 2000,
    seed: options.Seed = 0,
    excel: options.Excel = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Compare runs with the first one, on the same images; with --by, groups of runs with the first group."""
    if by is not None:
        idle = {"truth", *_COLUMNS, "resamples", "seed", "excel", *(each.name for each in fields(Naming))}
        _refuse(context, idle, "no effect with `by`. Leave it out")
        summarize(runs, by, out, "text" if form == "table" else form, overwrite=overwrite)
        return
    import json

    from pneumoscope.inference.formats import write_csv
    from pneumoscope.reports.comparison import compare as job

    check_excel(excel, form)
    if overwrite and out is None:
        raise UsageError("no effect without `out`. Leave it out.", "overwrite")
    comparison = job(
        runs, out, truth=truth, id_column=id_column, probability_column=probability_column,
        predicted_column=predicted_column, scale=scale, positive=positive, naming=context.obj, resamples=resamples,
        seed=seed, overwrite=overwrite,
    )  # fmt: skip
    if form == "json":
        echo(json.dumps(comparison.to_json(), indent=2))
    elif form == "csv":
        write_csv(comparison.to_rows(), sys.stdout, excel)
    else:
        print_comparison(comparison)
    if out is not None:
        echo(f"{chr(10) if form == 'table' else ''}Page: {out / 'comparison.html'}", err=form != "table")


def audit(
    context: typer.Context,
    data: options.Data,
    out: options.Out = Path("runs/audit"),
    quick: Annotated[
        bool, option("Skip wrong labels, outliers, markers in corners and cropped copies.", None, "--quick")
    ] = False,
    fail_on: Annotated[
        Literal["error", "warning"] | None, option("Exit with code 3 if a finding is at least this serious.")
    ] = None,
    patient_pattern: options.PatientPattern = None,
    invert: options.Invert = False,
    any_modality: options.AnyModality = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    cache: options.Cache = True,
    patient_ids: options.PatientIds = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Find leaks, duplicates, shortcuts and wrong labels in data.

    It also finds bad images and imbalance. Nothing is changed.
    """
    from pneumoscope.images.read import Reading
    from pneumoscope.reports.audit_page import audit as job

    with show_progress() as progress:
        result = job(
            data,
            out,
            quick=quick,
            seed=seed,
            patient_pattern=patient_pattern,
            reading=Reading(invert, any_modality),
            naming=context.obj,
            device=device,
            cache=cache,
            patient_ids=patient_ids,
            overwrite=overwrite,
            progress=progress,
        )
    print_audit(result)
    echo(f"\nPage: {out / 'audit.html'}")
    if result.count("error") or (fail_on == "warning" and result.count("warning")):
        raise typer.Exit(3 if fail_on else 0)
