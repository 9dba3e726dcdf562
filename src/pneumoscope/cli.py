"""The command line: reads options, calls one job, prints what it gives. Standard output carries results alone."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from pneumoscope import __version__
from pneumoscope.errors import PneumoscopeError, UsageError
from pneumoscope.terminal import (
    open_console,
    print_audit,
    print_comparison,
    print_evaluation,
    print_run,
    printable,
    show_progress,
)

if TYPE_CHECKING:
    from pneumoscope.inference.features import FeatureCache

app = typer.Typer(
    name="pneumoscope",
    help="Chest radiographs in, a measured classifier out. For research; not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Make and divide data sets.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")

Out = Annotated[Path, typer.Option(help="Folder to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Allow an earlier output in that folder to go.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Neither read nor keep features on disk.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")]
PatientPattern = Annotated[str | None, typer.Option(help="Regular expression that finds the patient in a file name.")]
Invert = Annotated[bool, typer.Option("--invert", help="Films show air bright: exchange black and white.")]
AllowModality = Annotated[
    bool, typer.Option("--allow-modality", help="Read DICOM files that are no projection radiographs, too.")
]


def main() -> None:
    """Run the command line; every error of ours ends in its exit code and a message, never in a stack trace."""
    import os

    # Waiting threads soon sleep instead of spinning: on a busy machine the spinning costs several times the work.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        app()
    except PneumoscopeError as problem:
        typer.echo(f"error: {printable(str(problem))}", err=True)
        sys.exit(problem.exit_code)
    except OSError as problem:
        typer.echo(f"error: {problem.filename or 'file'}: {problem.strerror or problem}.", err=True)
        sys.exit(2)
    except Exception as problem:
        if os.environ.get("PNEUMOSCOPE_DEBUG"):
            raise
        name = type(problem).__name__
        typer.echo(f"error: a fault of ours, or too little memory: {name}: {problem}", err=True)
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
    from pneumoscope.training.recipes import Settings

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
        default = Settings.__dataclass_fields__[name].default
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
    with show_progress(hint) as progress, _cache(no_cache) as cache:
        from pneumoscope.training import train as job

        run = job.train(
            data, out, config=config, resume=resume, overwrite=overwrite, cache=cache, progress=progress, **options
        )
    print_run(run)


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="A bundle, or a run that holds one.")],
    data: Annotated[Path, typer.Argument(help="Folder of classes, or a table.")],
    out: Out,
    split: Annotated[
        str | None, typer.Option(help="train, val, test or all; by default test where there is one.")
    ] = None,
    patient_pattern: PatientPattern = None,
    invert: Invert = False,
    allow_modality: AllowModality = False,
    device: Device = "auto",
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples behind each interval.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Fixes them.")] = 0,
    overwrite: Overwrite = False,
    no_cache: NoCache = False,
) -> None:
    """Measure a trained bundle on labelled radiographs."""
    from pneumoscope.evaluation import evaluate as job
    from pneumoscope.images.reading import Reading

    with show_progress() as progress, _cache(no_cache) as cache:
        evaluation = job.evaluate(
            bundle,
            data,
            out,
            split=split,
            patient_pattern=patient_pattern,
            reading=Reading(invert, allow_modality),
            device=device,
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
    model: Annotated[Path | None, typer.Option(help="A bundle, or a run that holds one.")] = None,
    format: Annotated[  # noqa: A002 - the option's name
        Literal["table", "csv", "json", "jsonl", "parquet"] | None,
        typer.Option(help="By default a table on a terminal, what the name of --out says, else csv."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write instead of standard output.")] = None,
    invert: Invert = False,
    allow_modality: AllowModality = False,
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Allow that file to be replaced.")] = False,
) -> None:
    """Say for each radiograph how probable the positive class is, and decide."""
    if model is None:
        raise UsageError("No model. Train one (pneumoscope train DATA --out RUN) and give it with --model RUN.")
    chosen = format or _format_of(out)
    if chosen == "parquet" and out is None:
        raise UsageError("--format parquet needs --out FILE.")
    if out is not None and out.exists() and not overwrite:
        raise UsageError(f"{out}: exists already. Choose another --out, or allow it with --overwrite.")
    if out is not None and not out.absolute().parent.is_dir():
        raise UsageError(f"{out}: there is no folder {out.absolute().parent}. Make it, or choose another --out.")
    from pneumoscope.datasets.samples import find_images
    from pneumoscope.images.reading import Reading
    from pneumoscope.inference.predictions import write_predictions
    from pneumoscope.inference.predictor import load

    samples = find_images(paths, Reading(invert, allow_modality))
    predictor = load(model, device)
    with show_progress() as progress:
        failed = write_predictions(
            predictor, samples, chosen, out, lambda done: progress("Predicting", done, len(samples))
        )
    if failed:
        typer.echo(f"{failed} of {len(samples)} files could not be read; their rows say why.", err=True)
    if failed == len(samples):
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
    from pneumoscope.outputs import format_rows

    comparison = job(runs, out, resamples=resamples, seed=seed, overwrite=overwrite)
    if format == "json":
        typer.echo(json.dumps(comparison.to_json(), indent=2, ensure_ascii=False))
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
    allow_modality: AllowModality = False,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Fixes every random choice.")] = 0,
    overwrite: Overwrite = False,
    no_cache: NoCache = False,
) -> None:
    """Look for what would spoil a result: leaks, duplicates, bad films, shortcuts, wrong labels. Changes nothing."""
    from pneumoscope.auditing import audit as job
    from pneumoscope.images.reading import Reading

    with show_progress() as progress, _cache(no_cache) as cache:
        found = job.audit(
            data,
            out,
            quick=quick,
            seed=seed,
            patient_pattern=patient_pattern,
            reading=Reading(invert, allow_modality),
            device=device,
            cache=cache,
            overwrite=overwrite,
            progress=progress,
        )
    print_audit(found)
    typer.echo(f"\nPage: {out / 'audit.html'}")
    if found.count("error") or (fail_on == "warning" and found.count("warning")):
        raise typer.Exit(3 if fail_on else 0)


@app.command()
def backbones() -> None:
    """List the pretrained networks known by name: where their weights are, and under which licence."""
    from rich.table import Table

    from pneumoscope.models.backbones import is_available, list_backbones

    table = Table(box=None, pad_edge=False)
    for column in ("backbone", "input", "weights", "here", "licence"):
        table.add_column(column, no_wrap=True)
    for spec in list_backbones():
        source = "with the installation" if spec.package else spec.source
        table.add_row(spec.name, f"{spec.input.size} px", source, "yes" if is_available(spec) else "no", spec.licence)
    open_console().print(table)
    typer.echo("Any other timm name works too. Where the hub is out of reach: --weights FILE.", err=True)


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    films: Annotated[int, typer.Option(min=40, help="How many simulated radiographs to draw.")] = 600,
    seed: Annotated[int, typer.Option(min=0, help="Fixes every random choice.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Go the whole road on simulated radiographs, offline: draw them, train, measure, report."""
    from pneumoscope.datasets.phantom_sets import write_phantoms
    from pneumoscope.outputs import claim_folder

    data = out.parent / f"{out.name or 'demo'}-films"
    with show_progress() as progress:
        from pneumoscope.training import train as job

        claim_folder(out, job.RUN_FILES, overwrite)
        claim_folder(data, ("truth.csv", "masks", "train", "val", "test"), overwrite)
        write_phantoms(data, count=films, seed=seed, progress=lambda done: progress("Drawing", done, films))
        note = "Simulated radiographs: the figures show that the road works, and nothing about patients."
        run = job.train(data, out, recipe="head", seed=seed, progress=progress, notes=[note])
    print_run(run)


@data_app.command()
def phantoms(
    out: Out,
    count: Annotated[int, typer.Option(help="How many films.")] = 600,
    size: Annotated[int, typer.Option(help="Their height in pixels.")] = 320,
    prevalence: Annotated[float, typer.Option(help="Share of films with pneumonia.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Fixes every film.")] = 0,
) -> None:
    """Draw simulated radiographs, with the opacities' masks as truth."""
    from pneumoscope.datasets.phantom_sets import write_phantoms

    with show_progress() as progress:
        folder = write_phantoms(
            out,
            count=count,
            seed=seed,
            size=size,
            prevalence=prevalence,
            progress=lambda done: progress("Drawing", done, count),
        )
    typer.echo(folder)


@data_app.command()
def split(
    data: Annotated[Path, typer.Argument(help="Folder of classes, or a table.")],
    out: Annotated[Path, typer.Option(help="CSV table to write: path,label,patient,split. With --folds, a folder.")],
    test_fraction: Annotated[
        float | None, typer.Option(help="Share of each class for a drawn test split. [default: 0.25]")
    ] = None,
    val_fraction: Annotated[
        float | None, typer.Option(help="The same of the rest for a drawn validation split. [default: 0.333]")
    ] = None,
    test_count: Annotated[int | None, typer.Option(min=1, help="Number of test images, instead of a share.")] = None,
    val_count: Annotated[int | None, typer.Option(min=1, help="Number of validation images.")] = None,
    balanced: Annotated[
        Literal["none", "val", "test", "both"], typer.Option(help="Which drawn splits have as many of each class.")
    ] = "val",
    folds: Annotated[
        int | None,
        typer.Option(min=2, max=100, help="Cross-validation: fold-0.csv and so on, each film tested once."),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the splits that the data have, and draw only what is missing.")
    ] = False,
    subset: Annotated[
        str | None, typer.Option(help="A published list of films and its splits, such as seed-400.")
    ] = None,
    by_name: Annotated[
        bool, typer.Option("--by-name", help="Do not read the films, so that near-duplicates may be separated.")
    ] = False,
    patient_pattern: PatientPattern = None,
    invert: Invert = False,
    allow_modality: AllowModality = False,
    seed: Annotated[int, typer.Option(min=0, help="Fixes the draw.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Allow that output to be replaced.")] = False,
    no_cache: NoCache = False,
) -> None:
    """Draw splits, keeping patients and near-duplicates together, and write them as a table; nothing is moved."""
    from pneumoscope.datasets.samples import describe_counts, read_samples, write_samples
    from pneumoscope.datasets.splitting import fold_samples, split_samples
    from pneumoscope.images.reading import Reading
    from pneumoscope.outputs import claim_folder

    if folds is None and out.exists() and not overwrite:
        raise UsageError(f"{out}: exists already. Choose another --out, or allow it with --overwrite.")
    for name, value, count in (("test", test_fraction, test_count), ("val", val_fraction, val_count)):
        if value is not None and not 0 < value < 1:
            raise UsageError(f"--{name}-fraction {value}: a share lies between 0 and 1.")
        if value is not None and count is not None:
            raise UsageError(f"--{name}-fraction and --{name}-count: give one of them.")
    if subset and (folds or keep or (test_fraction, val_fraction, test_count, val_count) != (None,) * 4):
        raise UsageError("--subset has its own splits: leave out what would draw others.")
    if folds and (keep or test_fraction or test_count):
        raise UsageError("--folds tests every film once: leave out --keep, --test-fraction and --test-count.")
    shares = {"val_fraction": val_fraction or 1 / 3}
    if folds is not None and out.exists() and not overwrite and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: exists already. Choose another --out, or allow it with --overwrite.")
    samples = read_samples(data, patient_pattern, Reading(invert, allow_modality))
    if subset is not None:
        from pneumoscope.datasets.subsets import select_subset

        chosen = select_subset(samples, subset)
        write_samples(out, chosen)
        typer.echo(describe_counts(chosen))
        return
    groups = None
    if not by_name:
        from pneumoscope.auditing.duplicates import group_films

        with show_progress() as progress, _cache(no_cache) as cache:
            groups = group_films(samples, cache, progress)
    even = {"none": (), "both": ("val", "test")}.get(balanced, (balanced,))
    if folds is None:
        drawn = split_samples(
            samples if keep else [replace(sample, split=None) for sample in samples],
            test_fraction=test_fraction or 0.25,
            **shares,
            test_count=test_count,
            val_count=val_count,
            balanced=even,
            groups=groups,
            seed=seed,
        )
        write_samples(out, drawn)
        typer.echo(describe_counts(drawn))
        return
    rounds = fold_samples(samples, folds, **shares, val_count=val_count, balanced=even, groups=groups, seed=seed)
    claim_folder(out, [f"fold-{number}.csv" for number in range(100)], overwrite)
    for number, drawn in enumerate(rounds):
        write_samples(out / f"fold-{number}.csv", drawn)
        typer.echo(f"fold {number}: {describe_counts(drawn)}")


@data_app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="The data set: kermany.")],
    out: Out,
    archive: Annotated[
        Path | None, typer.Option(help="An archive that you have already (zip), not a download.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Another address of the archive, such as a mirror.")] = None,
    sha256: Annotated[str | None, typer.Option(help="Checksum that the archive must have.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Fetch anew what is there already.")] = False,
) -> None:
    """Download a public data set, check it and unpack it; taken up again where it was interrupted."""
    from pneumoscope.datasets.sources import fetch as job

    with show_progress(" The same command goes on where it stopped.") as progress:
        folder = job(
            name,
            out,
            archive=archive,
            url=url,
            sha256=sha256,
            overwrite=overwrite,
            progress=lambda done, total: progress("Downloading", done, total),
        )
    typer.echo(folder)


def _format_of(out: Path | None) -> str:
    if out is None:
        return "table" if sys.stdout.isatty() else "csv"
    return {".json": "json", ".jsonl": "jsonl", ".parquet": "parquet"}.get(out.suffix.lower(), "csv")


@contextmanager
def _cache(disabled: bool) -> Iterator[FeatureCache | None]:
    """The user's feature cache, or none."""
    if disabled:
        yield None
        return
    from pneumoscope.inference.features import FeatureCache, default_cache_path

    try:
        opened = FeatureCache(default_cache_path())
    except UsageError as problem:
        typer.echo(f"{problem} Going on without it.", err=True)
        yield None
        return
    with opened as cache:
        yield cache
