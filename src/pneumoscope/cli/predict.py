"""`predict` and `explain`: what a model says about images, and why."""

import io
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pneumoscope.cli import options
from pneumoscope.cli.flags import show_flags
from pneumoscope.cli.models import choose_model
from pneumoscope.cli.options import DECISIONS, OUTPUT, option
from pneumoscope.cli.output import check_excel, echo
from pneumoscope.cli.progress import show_progress
from pneumoscope.errors import UsageError

if TYPE_CHECKING:
    from pneumoscope.config import Progress
    from pneumoscope.datasets.samples import Sample
    from pneumoscope.inference.predictor import Predictor

_SHOWN = 5  # reasons of files that could not be read
Form = Annotated[
    Literal["table", "csv", "json", "jsonl", "parquet"] | None,
    option(
        "Format of the rows. [default: by the suffix of --out; else table on a terminal, csv elsewhere]",
        OUTPUT,
        "--format",
    ),
]
PatientIds = Annotated[bool, option("Name patients, instead of writing pseudonyms.", OUTPUT, "--patient-ids")]


def predict(
    paths: options.Paths,
    model: options.Model = None,
    prevalence: options.Prevalence = None,
    adapt_prior: options.AdaptPrior = False,
    estimate: options.Estimate = False,
    threshold: options.Threshold = None,
    alpha: options.Alpha = None,
    false_alarms: options.FalseAlarms = None,
    ood: Annotated[bool, option("Detect out-of-distribution images, and give them no probability.", DECISIONS)] = True,
    refuse_out_of_scope: options.RefuseOutOfScope = False,
    path_column: options.PathColumn = None,
    invert: options.Invert = False,
    any_modality: options.AnyModality = False,
    device: options.Device = "auto",
    out: Annotated[Path | None, option("Write to this file, not standard output.", OUTPUT)] = None,
    form: Form = None,
    heatmaps: Annotated[Path | None, option("Folder to write: each image with its evidence map.", OUTPUT)] = None,
    patient_ids: PatientIds = False,
    excel: options.Excel = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Predict radiographs: a probability and a decision for each."""
    kind = form or _choose_format(out)
    _check_output(out or heatmaps, overwrite)
    _check_form(kind, out, excel, patient_ids)
    _check_table(out, overwrite)
    cut = _check_decisions(adapt_prior, prevalence, threshold)
    from pneumoscope.inference.formats import Style, write_predictions
    from pneumoscope.inference.overlays import OverlayFolder
    from pneumoscope.inference.predictor import load

    samples = _find_samples(paths, path_column, invert, any_modality)
    predictor = load(
        choose_model(model),
        device,
        ood=ood,
        prevalence=prevalence,
        threshold=cut,
        alpha=alpha,
        false_alarms=false_alarms,
        refuse_out_of_scope=refuse_out_of_scope,
    )
    table = io.StringIO() if out is None and kind == "table" else None  # printed when the bars are gone
    with show_progress() as progress:
        if adapt_prior:
            predictor = _adapt_prior(predictor, samples, progress)
        if estimate:
            _estimate(predictor, samples, progress)
        _print_threshold(predictor)
        overlays = None if heatmaps is None else OverlayFolder(heatmaps, len(samples), overwrite, excel)
        shown = None if out is None and table is None and sys.stdout.isatty() else progress
        write = partial(write_predictions, style=Style(excel, patient_ids, show_flags))
        errors = write(predictor, samples, kind, out or table, overlays, shown)
    if table is not None:
        echo(table.getvalue(), end="")
    _report_places(out, heatmaps)
    report_failed(errors, len(samples), out)


def _find_samples(paths: list[Path], path_column: str | None, invert: bool, any_modality: bool) -> "list[Sample]":
    from pneumoscope.datasets.columns import Naming
    from pneumoscope.datasets.reading import find_images
    from pneumoscope.images.read import Reading

    with show_progress():
        return find_images(paths, Reading(invert, any_modality), Naming(path_column))


def _adapt_prior(predictor: "Predictor", samples: "Sequence[Sample]", progress: "Progress") -> "Predictor":
    """Adjust to the prevalence that is estimated from the images, and print it."""
    from pneumoscope.evaluation.prevalence import adapt_prior  # most predictions do without

    adapted, share = adapt_prior(predictor, samples, progress)
    echo(f"Estimated prevalence: {share.value:.3f} ({share.low:.3f} to {share.high:.3f})", err=True)
    return adapted


def _estimate(predictor: "Predictor", samples: "Sequence[Sample]", progress: "Progress") -> None:
    """Print how good the predictions are if the probabilities are calibrated for these images."""
    from pneumoscope.evaluation.expected import estimate_metrics

    predictions = predictor.predict(samples, progress)
    found = estimate_metrics(predictions, predictor.model.labels)
    left_out = sum(each.probability is None for each in predictions)
    typer.echo("Expected, if the probabilities are calibrated for these images (nothing here can tell):", err=True)
    for name, each in found.items():
        title = name.upper() if name == "auroc" else name
        typer.echo(f"  {title:12} {each.value:.3f} ({each.low:.3f} to {each.high:.3f})", err=True)
    if left_out:
        typer.echo(f"  without {left_out} of {len(predictions)} images, which have no probability", err=True)


def explain(
    paths: options.Paths,
    out: options.Out,
    model: options.Model = None,
    label: Annotated[
        str | None,
        option("The class to explain. [default: the positive class; with more than two classes, the predicted label]"),
    ] = None,
    method: Annotated[
        Literal["auto", "cam", "ig"],
        option("cam: class activation map; ig: integrated gradients (needs captum, slow)."),
    ] = "auto",
    path_column: options.PathColumn = None,
    invert: options.Invert = False,
    any_modality: options.AnyModality = False,
    device: options.Device = "auto",
    excel: options.Excel = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Draw where on each radiograph the evidence for a class lies."""
    from pneumoscope.inference.overlays import write_explanations
    from pneumoscope.inference.predictor import load

    samples = _find_samples(paths, path_column, invert, any_modality)
    predictor = load(choose_model(model), device)
    with show_progress() as progress:
        errors = write_explanations(
            predictor, samples, out, label=label, method=method, overwrite=overwrite, excel=excel, progress=progress
        )
    echo(f"Explanations: {out}")
    report_failed(errors, len(samples), out / "explanations.csv")


def _choose_format(out: Path | None) -> str:
    if out is None:
        return "table" if sys.stdout.isatty() else "csv"
    return {".json": "json", ".jsonl": "jsonl", ".parquet": "parquet"}.get(out.suffix.lower(), "csv")


def _check_output(place: Path | None, overwrite: bool) -> None:
    if overwrite and place is None:
        raise UsageError("no effect without `out` or `heatmaps`. Leave it out.", "overwrite")


def _check_form(form: str, out: Path | None, excel: bool, patient_ids: bool) -> None:
    check_excel(excel, form, out)
    if out is None and form == "parquet":
        raise UsageError("--format parquet needs --out FILE.")
    if patient_ids and form == "table":
        raise UsageError("no effect on a table, which has no patients. Choose another --format.", "patient_ids")


def _check_table(out: Path | None, overwrite: bool) -> None:
    if out is None:
        return
    from pneumoscope.files import check_file

    check_file(out, overwrite)
    folder = out.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"{out}: there is no folder {folder}. Create it, or choose another --out.")
    if not os.access(out if out.exists() else folder, os.W_OK):
        raise UsageError(f"{out}: cannot be written. Choose another --out.")


def _check_decisions(adapt_prior: bool, prevalence: float | None, threshold: str | None) -> float | None:
    """Check options before anything is read, and give the threshold as a number."""
    if adapt_prior and prevalence is not None:
        raise UsageError("--adapt-prior estimates the prevalence, and --prevalence sets it. Use one of them.")
    if threshold is None:
        return None
    from pneumoscope.decisions.threshold import require_number

    return require_number(threshold)


def _print_threshold(predictor: "Predictor") -> None:
    if predictor.model.positive is not None:
        echo(f"Threshold for {predictor.model.positive}: {predictor.threshold:.3g}", err=True)


def _report_places(out: Path | None, heatmaps: Path | None) -> None:
    for name, place in (("Predictions", out), ("Heatmaps", heatmaps)):
        if place is not None:
            echo(f"{name}: {place}", err=True)


def report_failed(errors: Sequence[str], files: int, table: Path | None) -> None:
    """Report files without a prediction. The first reasons follow if there is a table; otherwise the screen shows all.

    If none has a prediction, the command has failed.
    """
    if errors:
        echo(f"{len(errors)} of {files} files have no prediction{':' if table else '.'}", err=True)
        for error in errors[:_SHOWN] if table else ():
            echo(show_flags(error), err=True)
        if table and len(errors) > _SHOWN:
            echo(f"The column error in {table} lists them all.", err=True)
    if len(errors) == files:
        raise typer.Exit(3)
