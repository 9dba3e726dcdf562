"""`crossval`: train and measure fold by fold. Its options include all settings of training."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pneumoscope.cli.options import Address, Cache, CpusPerWorker, On, Out, Overwrite, option
from pneumoscope.cli.output import count_images, echo, make_table, open_console, print_decisions, show_interval
from pneumoscope.cli.progress import show_progress

if TYPE_CHECKING:
    from pneumoscope.training.cross_validation import CrossValidation

_FOLDS = "Folds"  # panel of --help


def crossval(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Argument(help="Folder with a subfolder per class, or a table (.csv, .parquet).", metavar="DATA"),
    ] = None,
    out: Out = Path("runs/crossval"),
    folds: Annotated[int | None, option("Number of folds. [default: 5]", _FOLDS, least=2, most=100)] = None,
    repeats: Annotated[
        int | None, option("How often to divide, each time with the next seed. [default: 1]", _FOLDS, least=1)
    ] = None,
    include_test: Annotated[
        bool, option("Also divide the images of a split test, which stay out otherwise.", _FOLDS, "--include-test")
    ] = False,
    ensemble: Annotated[
        bool, option("Also make one model of those of all folds (frozen backbone).", _FOLDS, "--ensemble")
    ] = False,
    workers: Annotated[
        int | None,
        option(
            "Folds trained at the same time. [default: 1, or with --on ray one for each core]",
            _FOLDS,
            least=1,
        ),
    ] = None,
    on: On = "local",
    address: Address = None,
    cpus_per_worker: CpusPerWorker = None,
    config: Annotated[Path | None, option("YAML file of settings, such as a run's config.yaml.")] = None,
    resume: Annotated[bool, option("Continue an interrupted cross-validation.", None, "--resume")] = False,
    overwrite: Overwrite = False,
    cache: Cache = True,
) -> None:
    """Cross-validate: train on all folds but one, measure on that one, and report on all together.

    Folds are drawn by patient. A split test stays out.
    """
    with show_progress(f" Continue it with: pneumoscope crossval --out {out} --resume") as progress:
        from pneumoscope.training import cross_validation as job

        result = job.cross_validate(
            data, out, folds=folds, repeats=repeats, include_test=include_test, ensemble=ensemble, workers=workers,
            on=on, address=address, cpus_per_worker=cpus_per_worker, config=config, resume=resume, overwrite=overwrite,
            cache=cache, progress=progress, **context.obj,
        )  # fmt: skip
    print_cross_validation(result)


def print_cross_validation(result: "CrossValidation") -> None:
    """Print each metric as the mean over the folds and of all predictions together, with intervals."""
    folds, evaluation = result.folds, result.evaluation
    number = len(folds.folds) // folds.repeats
    times = f", {folds.repeats} times" if folds.repeats > 1 else ""
    echo(f"{number} folds{times}: {count_images(evaluation.n // folds.repeats, evaluation.patients)}\n")
    table = make_table(["metric"], ["mean", "95% interval", "SD", "together", "95% interval "])
    for name, together in evaluation.metrics.items():
        mean = folds.means.get(name)
        cells = (
            ("", "", "") if mean is None else (*show_interval(mean), "" if math.isnan(mean.sd) else f"{mean.sd:.3f}")
        )
        table.add_row(name.replace("_", " "), *cells, *show_interval(together))
    open_console().print(table)
    print_decisions(evaluation)
    if result.model is not None:
        echo(f"\nModel:  {result.model}")
    echo(f"{'' if result.model else chr(10)}Folds:  {result.folder / 'folds'}\nReport: {result.report}")
