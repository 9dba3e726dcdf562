"""The command line: reads options, calls one job, prints what it gives. Standard output carries results alone."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from pneumoscope import __version__
from pneumoscope.cli.data import data_app
from pneumoscope.cli.flags import describe_error
from pneumoscope.cli.models import ModelOption, backbones, introduce, models
from pneumoscope.cli.options import (
    AllowModality,
    Device,
    ErrorRate,
    FalseAlarms,
    Invert,
    NoCache,
    Out,
    Overwrite,
    PatientPattern,
    Prevalence,
    Threshold,
    open_cache,
)
from pneumoscope.cli.output import (
    print_audit,
    print_comparison,
    print_evaluation,
    print_export,
    print_run,
    show_progress,
)
from pneumoscope.cli.serve import reviews_app, serve
from pneumoscope.errors import MissingExtraError, PneumoscopeError, UsageError
from pneumoscope.models.pretrained import find_pretrained
from pneumoscope.text import printable

_TRAINING = {"captum", "huggingface_hub", "onnx", "pyarrow", "sklearn", "timm", "torch"}  # what [train] brings

app = typer.Typer(
    name="pneumoscope",
    help="Chest radiographs in, a measured classifier out. For research; not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")
app.add_typer(reviews_app, name="reviews")


def main() -> None:
    """Run the command line; every error of ours ends in its exit code and a message, never in a stack trace."""
    import os

    # Waiting threads soon sleep instead of spinning: on a busy machine the spinning costs several times the work.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        app()
    except PneumoscopeError as problem:
        typer.echo(f"error: {printable(describe_error(problem))}", err=True)
        sys.exit(problem.exit_code)
    except OSError as problem:
        typer.echo(f"error: {problem.filename or 'file'}: {problem.strerror or problem}.", err=True)
        sys.exit(2)
    except Exception as problem:
        missing = (problem.name or "") if isinstance(problem, ModuleNotFoundError) else ""
        if missing.partition(".")[0] in _TRAINING:
            said = f'this needs {missing}, which is not installed: pip install "pneumoscope[train]".'
            typer.echo(f"error: {said}", err=True)
            sys.exit(MissingExtraError.exit_code)
        if os.environ.get("PNEUMOSCOPE_DEBUG"):
            raise
        name = type(problem).__name__
        typer.echo(f"error: internal error, or out of memory: {name}: {problem}", err=True)
        typer.echo("PNEUMOSCOPE_DEBUG=1 shows where it happened; please report it.", err=True)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def start(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """What every command shares."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


def _plain(hint: Any) -> Any:
    """The bare type of an annotated field, without None."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    options = [each for each in get_args(hint) if each is not type(None)]
    return _plain(options[0]) if type(None) in get_args(hint) else hint


def settings_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for every field of `Settings` in place of its `**options`."""
    from pneumoscope.training.settings import DEFAULT, Settings, find_recipe

    usual = {"recipe": DEFAULT, **find_recipe(DEFAULT)}
    hints = get_type_hints(Settings, include_extras=True)
    parameters = [
        parameter
        for parameter in inspect.signature(function, eval_str=True).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    for name, hint in hints.items():
        if name == "data":
            continue
        kind = _plain(hint)
        default = usual.get(name, Settings.__dataclass_fields__[name].default)
        shown = "" if default in (None, "") else f" [default: {f'{default:.3g}' if kind is float else default}]"
        flag = f"--{name.replace('_', '-')}"
        option = typer.Option(
            f"{flag}/--no-{flag[2:]}" if kind is bool else flag, help=hint.__metadata__[-1].documentation + shown
        )
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
            )
        )

    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return function


@app.command()
@settings_options
def train(
    data: Annotated[Path | None, typer.Argument(help="Folder of classes, or a table (.csv, .parquet).")] = None,
    out: Out = Path("runs/latest"),
    config: Annotated[Path | None, typer.Option(help="YAML file of settings, such as a run's config.yaml.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Take up an interrupted run.")] = False,
    overwrite: Overwrite = False,
    no_cache: NoCache = False,
    **options: Any,
) -> None:
    """Train a classifier on labelled radiographs and measure it on their test split."""
    hint = f" The run goes on with: pneumoscope train --out {out} --resume"
    with show_progress(hint) as progress, open_cache(no_cache) as cache:
        from pneumoscope.training import train as job

        run = job.train(
            data, out, config=config, resume=resume, overwrite=overwrite, cache=cache, progress=progress, **options
        )
    print_run(run)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A model, a run that holds one, or the name of a model that ships.")],
    data: Annotated[Path, typer.Argument(help="Folder of classes, or a table.")],
    out: Out,
    split: Annotated[
        str | None, typer.Option(help="train, val, test or all; by default test where there is one.")
    ] = None,
    patient_pattern: PatientPattern = None,
    invert: Invert = False,
    any_modality: AllowModality = False,
    device: Device = "auto",
    prevalence: Annotated[
        float | None,
        typer.Option(help="Measure besides as if the positive class had this share, with probabilities adjusted."),
    ] = None,
    adapt_prior: Annotated[
        bool,
        typer.Option("--adapt-prior", help="Estimate the prevalence without labels, and measure with and without it."),
    ] = False,
    threshold: Threshold = None,
    alpha: ErrorRate = None,
    false_alarms: FalseAlarms = None,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples behind each interval.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Fixes them.")] = 0,
    overwrite: Overwrite = False,
    no_cache: NoCache = False,
) -> None:
    """Measure a trained model on labelled radiographs."""
    from pneumoscope.evaluation import evaluate as job
    from pneumoscope.images.read import Reading

    with show_progress() as progress, open_cache(no_cache) as cache:
        evaluation = job.evaluate(
            model,
            data,
            out,
            split=split,
            patient_pattern=patient_pattern,
            reading=Reading(invert, any_modality),
            device=device,
            prevalence=prevalence,
            adapt_prior=adapt_prior,
            threshold=threshold,
            alpha=alpha,
            false_alarms=false_alarms,
            resamples=resamples,
            seed=seed,
            cache=cache,
            overwrite=overwrite,
            progress=lambda done: progress("Reading", done, 0),
        )
    print_evaluation(evaluation)
    typer.echo(f"\nReport: {out / 'report.html'}")


@app.command()
def predict(
    paths: Annotated[list[Path], typer.Argument(help="Files, folders (with all in them) and tables.")],
    model: ModelOption = None,
    format: Annotated[  # noqa: A002 - the option's name
        Literal["table", "csv", "json", "jsonl", "parquet"] | None,
        typer.Option(help="By default a table on a terminal, what the name of --out says, else csv."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write instead of standard output.")] = None,
    prevalence: Prevalence = None,
    adapt_prior: Annotated[
        bool, typer.Option("--adapt-prior", help="Estimate the prevalence from these very images, and state for that.")
    ] = False,
    threshold: Threshold = None,
    alpha: ErrorRate = None,
    false_alarms: FalseAlarms = None,
    no_ood: Annotated[
        bool, typer.Option("--no-ood", help="Give images unlike the training radiographs a probability, too.")
    ] = False,
    invert: Invert = False,
    any_modality: AllowModality = False,
    device: Device = "auto",
    heatmaps: Annotated[
        Path | None, typer.Option(help="Folder to write, too: a picture of each image with the evidence laid over it.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Allow earlier output to be replaced.")] = False,
) -> None:
    """Say for each radiograph how probable the positive class is, and decide."""
    pretrained = find_pretrained() if model is None else None
    chosen = format or _format_of(out)
    if chosen == "parquet" and out is None:
        raise UsageError("--format parquet needs --out FILE.")
    if out is not None and out.exists() and not overwrite:
        raise UsageError(f"{out}: exists already. Choose another --out, or allow it with --overwrite.")
    if out is not None and not out.absolute().parent.is_dir():
        raise UsageError(f"{out}: there is no folder {out.absolute().parent}. Make it, or choose another --out.")
    from pneumoscope.datasets.samples import find_images
    from pneumoscope.images.read import Reading
    from pneumoscope.inference.predictions import write_predictions
    from pneumoscope.inference.predictor import load

    samples = find_images(paths, Reading(invert, any_modality))
    if adapt_prior and prevalence is not None:
        raise UsageError("--adapt-prior estimates the prevalence that --prevalence gives: leave one out.")
    predictor = load(
        pretrained or model,
        device,
        detect_ood=not no_ood,
        prevalence=prevalence,
        threshold=threshold,
        alpha=alpha,
        false_alarms=false_alarms,
    )
    if pretrained is not None:
        typer.echo(introduce(pretrained.name, predictor.model), err=True)
    with show_progress() as progress:
        if adapt_prior:
            from pneumoscope.evaluation.prevalence import adapt

            predictor, share = adapt(predictor, samples, lambda done: progress("Estimating", done, len(samples)))
            typer.echo(f"Estimated prevalence: {share.value:.3f} ({share.low:.3f} to {share.high:.3f}).", err=True)
        if predictor.model.positive is not None:
            said = f"{predictor.model.positive} is called from a probability of {predictor.threshold:.3g} on."
            typer.echo(printable(said), err=True)
        if heatmaps is not None:
            from pneumoscope.inference.features import FeatureCache
            from pneumoscope.inference.overlays import write_explanations

            predictor.cache = predictor.cache or FeatureCache(Path(":memory:"))  # the rows take no second computation
            write_explanations(
                predictor,
                samples,
                heatmaps,
                overwrite=overwrite,
                progress=lambda done: progress("Explaining", done, len(samples)),
            )
        failed = write_predictions(
            predictor, samples, chosen, out, lambda done: progress("Predicting", done, len(samples))
        )
    _report_failed(failed, len(samples))


@app.command()
def explain(
    model: Annotated[Path, typer.Argument(help="A model, a run that holds one, or the name of a model that ships.")],
    paths: Annotated[list[Path], typer.Argument(help="Files, folders (with all in them) and tables.")],
    out: Out,
    label: Annotated[
        str | None, typer.Option(help="The class to explain; by default the positive one, or the likeliest of more.")
    ] = None,
    method: Annotated[
        Literal["auto", "cam", "ig"],
        typer.Option(
            help="cam: class-activation map; ig: integrated gradients (needs captum, slow); auto: what suits."
        ),
    ] = "auto",
    invert: Invert = False,
    any_modality: AllowModality = False,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Show where on each radiograph the evidence for a class lies: pictures, and a table of their logits."""
    from pneumoscope.datasets.samples import find_images
    from pneumoscope.images.read import Reading
    from pneumoscope.inference.overlays import write_explanations
    from pneumoscope.inference.predictor import load

    samples = find_images(paths, Reading(invert, any_modality))
    predictor = load(model, device)
    with show_progress() as progress:
        failed = write_explanations(
            predictor,
            samples,
            out,
            label=label,
            method=method,
            overwrite=overwrite,
            progress=lambda done: progress("Explaining", done, len(samples)),
        )
    _report_failed(failed, len(samples))
    typer.echo(out)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A model, a run that holds one, or the name of a model that ships.")],
    out: Out,
    to: Annotated[
        Literal["onnx", "openvino", "int8", "torch"],
        typer.Option(help="ONNX, OpenVINO, ONNX in eight bits, or a program of torch.export."),
    ] = "onnx",
    data: Annotated[
        Path | None,
        typer.Option(help="Images to check it on, and to find the ranges of eight bits; by default those of the run."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a model for another runtime, and see on images that it decides as before; else nothing is written."""
    from pneumoscope import exporting as job

    with show_progress() as progress:
        done = job.export(model, to, out, data, overwrite=overwrite, progress=progress)
    print_export(done)


def _report_failed(failed: int, files: int) -> None:
    """Say how many files could not be read; where that is all of them, the command has failed."""
    if failed:
        typer.echo(f"{failed} of {files} files could not be read; their rows say why.", err=True)
    if failed == files:
        raise typer.Exit(3)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two or more runs or evaluations of the same images.")],
    out: Annotated[Path | None, typer.Option(help="Folder for a page and comparison.json.")] = None,
    format: Annotated[  # noqa: A002 - the option's name
        Literal["table", "csv", "json"], typer.Option(help="Of what is printed.")
    ] = "table",
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Fixes them.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Say by how much runs differ on the same images, and whether that may be chance; all against the first."""
    import json

    from pneumoscope.evaluation.comparing import compare as job
    from pneumoscope.evaluation.contrasts import to_rows
    from pneumoscope.files import format_rows

    comparison = job(runs, out, resamples=resamples, seed=seed, overwrite=overwrite)
    if format == "json":
        typer.echo(json.dumps(comparison.to_json(), indent=2))
    elif format == "csv":
        typer.echo("".join(format_rows(to_rows(comparison))), nl=False)
    else:
        print_comparison(comparison)
    if out is not None:
        typer.echo(f"{chr(10) if format == 'table' else ''}Page: {out / 'comparison.html'}", err=format != "table")


@app.command()
def audit(
    data: Annotated[Path, typer.Argument(help="Folder of classes, or a table.")],
    out: Out = Path("runs/audit"),
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Leave out wrong labels, strangers, markers in corners, and cropped copies."),
    ] = False,
    fail_on: Annotated[
        Literal["error", "warning"] | None, typer.Option(help="End with exit code 3 where something as bad is found.")
    ] = None,
    patient_pattern: PatientPattern = None,
    invert: Invert = False,
    any_modality: AllowModality = False,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Fixes every random choice.")] = 0,
    overwrite: Overwrite = False,
    no_cache: NoCache = False,
) -> None:
    """Look for what would spoil a result: leaks, duplicates, bad images, shortcuts, wrong labels. Changes nothing."""
    from pneumoscope.auditing.audit import audit as job
    from pneumoscope.images.read import Reading

    with show_progress() as progress, open_cache(no_cache) as cache:
        found = job(
            data,
            out,
            quick=quick,
            seed=seed,
            patient_pattern=patient_pattern,
            reading=Reading(invert, any_modality),
            device=device,
            cache=cache,
            overwrite=overwrite,
            progress=progress,
        )
    print_audit(found)
    typer.echo(f"\nPage: {out / 'audit.html'}")
    if found.count("error") or (fail_on == "warning" and found.count("warning")):
        raise typer.Exit(3 if fail_on else 0)


app.command()(serve)
app.command()(backbones)
app.command()(models)


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    images: Annotated[int, typer.Option(min=40, help="How many simulated radiographs to draw.")] = 600,
    seed: Annotated[int, typer.Option(min=0, help="Fixes every random choice.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Go the whole road on simulated radiographs, offline: draw them, train, measure, report."""
    from pneumoscope.datasets.phantom_sets import write_phantoms
    from pneumoscope.files import claim_folder

    data = out.parent / f"{out.name or 'demo'}-images"
    with show_progress() as progress:
        from pneumoscope.training import train as job

        claim_folder(out, job.RUN_FILES, overwrite)
        claim_folder(data, ("truth.csv", "masks", "train", "val", "test"), overwrite)
        write_phantoms(data, count=images, seed=seed, progress=progress)
        note = "Simulated radiographs: the figures show that the road works, and nothing about patients."
        run = job.train(data, out, recipe="head", seed=seed, progress=progress, notes=[note])
    print_run(run)


def _format_of(out: Path | None) -> str:
    if out is None:
        return "table" if sys.stdout.isatty() else "csv"
    return {".json": "json", ".jsonl": "jsonl", ".parquet": "parquet"}.get(out.suffix.lower(), "csv")
