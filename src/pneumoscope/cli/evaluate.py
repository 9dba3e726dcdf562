"""`evaluate`, `compare` and `audit`: how good a model is, how two differ, and whether the data can be trusted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from pneumoscope.cli import options
from pneumoscope.cli.models import choose_model
from pneumoscope.cli.options import IMAGES, OUTPUT, option
from pneumoscope.cli.output import check_excel, echo, print_audit, print_comparison, print_evaluation, show_progress
from pneumoscope.errors import UsageError


def evaluate(
    context: typer.Context,
    data: options.Data,
    out: options.Out,
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
    resamples: options.Resamples = 2000,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    plot_formats: Annotated[str, option("Formats of the plot files, such as svg,pdf,png.", OUTPUT)] = "svg",
    patient_ids: options.PatientIds = False,
    excel: options.Excel = False,
    cache: options.Cache = True,
    overwrite: options.Overwrite = False,
) -> None:
    """Evaluate a model on labelled radiographs."""
    from pneumoscope.images.read import Reading
    from pneumoscope.reports import evaluation_report as job

    with show_progress() as progress:
        evaluation = job.evaluate(
            data,
            choose_model(model),
            out,
            split=split,
            patient_pattern=patient_pattern,
            reading=Reading(invert, any_modality),
            naming=context.obj,
            device=device,
            prevalence=prevalence,
            adapt_prior=adapt_prior,
            threshold=threshold,
            alpha=alpha,
            false_alarms=false_alarms,
            refuse_out_of_scope=refuse_out_of_scope,
            resamples=resamples,
            seed=seed,
            cache=cache,
            overwrite=overwrite,
            plot_formats=plot_formats,
            patient_ids=patient_ids,
            excel=excel,
            progress=progress,
        )
    print_evaluation(evaluation)
    echo(f"\nReport: {out / 'report.html'}")


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Two or more runs or evaluations of the same images.", metavar="RUN")
    ],
    out: Annotated[Path | None, option("Folder to write: a page and comparison.json.", OUTPUT)] = None,
    form: Annotated[
        Literal["table", "csv", "json"], option("Format of standard output.", OUTPUT, "--format")
    ] = "table",
    resamples: options.Resamples = 2000,
    seed: options.Seed = 0,
    excel: options.Excel = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Compare runs with the first one, on the same images.

    For groups of runs, such as several seeds of each model, use summarize.
    """
    import json

    from pneumoscope.inference.formats import write_csv
    from pneumoscope.reports.comparison import compare as job

    check_excel(excel, form)
    if overwrite and out is None:
        raise UsageError("no effect without `out`. Leave it out.", "overwrite")
    comparison = job(runs, out, resamples=resamples, seed=seed, overwrite=overwrite)
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
