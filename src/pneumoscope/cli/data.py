"""The commands below `pneumoscope data`: draw, split and fetch data sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pneumoscope.cli import options
from pneumoscope.cli.app import PanelCommand, PanelGroup
from pneumoscope.cli.options import open_cache
from pneumoscope.cli.output import show_progress
from pneumoscope.errors import UsageError

if TYPE_CHECKING:
    from pneumoscope.datasets.samples import Sample


def _option(text: str, *names: str, **bounds: int) -> Any:
    return typer.Option(*names, help=text, rich_help_panel="Splits", **bounds)  # type: ignore[arg-type]


data_app = typer.Typer(
    cls=PanelGroup, help="Draw, split and fetch data sets.", no_args_is_help=True, rich_markup_mode=None
)


@data_app.command(cls=PanelCommand)
def phantoms(
    out: options.Out,
    count: Annotated[int, typer.Option(help="Number of images.")] = 600,
    size: Annotated[int, typer.Option(help="Height in pixels.")] = 320,
    prevalence: Annotated[float, typer.Option(help="Share of images with pneumonia.")] = 0.5,
    seed: options.Seed = 0,
) -> None:
    """Draw simulated radiographs, with masks of their opacities."""
    from pneumoscope.datasets.phantom_sets import write_phantoms

    with show_progress() as progress:
        folder = write_phantoms(out, count=count, seed=seed, size=size, prevalence=prevalence, progress=progress)
    typer.echo(folder)


@data_app.command(cls=PanelCommand)
def split(
    data: options.Data,
    out: Annotated[Path, typer.Option(help="Table to write (.csv); with --folds, a folder.")],
    test_fraction: Annotated[float | None, _option("Share of each class for the test split. [default: 0.25]")] = None,
    val_fraction: Annotated[
        float | None, _option("Share of the rest for the validation split. [default: 0.333]")
    ] = None,
    test_count: Annotated[int | None, _option("Number of test images, instead of a share.", min=1)] = None,
    val_count: Annotated[int | None, _option("Number of validation images.", min=1)] = None,
    balanced: Annotated[
        Literal["none", "val", "test", "both"], _option("New splits that get equal numbers of images of each class.")
    ] = "val",
    folds: Annotated[
        int | None, _option("Cross-validation: write fold-0.csv, …; each image is tested once.", min=2, max=100)
    ] = None,
    keep: Annotated[bool, _option("Keep existing splits and draw only missing ones.", "--keep")] = False,
    subset: Annotated[str | None, _option("A published list of images and splits, such as seed-400.")] = None,
    by_name: Annotated[bool, _option("Do not read the images; near-duplicates may be separated.", "--by-name")] = False,
    patient_pattern: options.PatientPattern = None,
    invert: options.Invert = False,
    any_modality: options.AnyModality = False,
    seed: options.Seed = 0,
    no_cache: options.NoCache = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Split a data set by patient, and write the splits as a table.

    Near-duplicates stay together. No file is moved.
    """
    from pneumoscope.datasets.samples import read_samples
    from pneumoscope.files import check_file
    from pneumoscope.images.read import Reading

    draw = {
        "test_fraction": test_fraction,
        "val_fraction": val_fraction,
        "test_count": test_count,
        "val_count": val_count,
    }
    _check_draw(draw, subset, folds, keep)
    if folds is None or not out.is_dir() or any(out.iterdir()):
        check_file(out, overwrite)
    samples = read_samples(data, patient_pattern, Reading(invert, any_modality))
    if subset is not None:
        from pneumoscope.datasets.kermany import select_subset

        _write_table(out, select_subset(samples, subset))
        return
    groups = None if by_name else _group(samples, no_cache)
    from pneumoscope.datasets.splits import fold_samples, split_samples

    classes = {"none": (), "both": ("val", "test")}.get(balanced, (balanced,))
    given = {name: value for name, value in draw.items() if value is not None}
    how: dict[str, Any] = {**given, "balanced": classes, "groups": groups, "seed": seed}
    if folds is not None:
        _write_folds(out, fold_samples(samples, folds, **how), overwrite)
        return
    unsplit = samples if keep else [replace(sample, split=None) for sample in samples]
    _write_table(out, split_samples(unsplit, **how))


@data_app.command(cls=PanelCommand)
def fetch(
    name: Annotated[str, typer.Argument(help="The data set: kermany.", metavar="NAME")],
    out: options.Out,
    archive: Annotated[
        Path | None, typer.Option(help="An archive (zip) that you already have, instead of a download.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Another address of the archive, such as a mirror.")] = None,
    sha256: Annotated[str | None, typer.Option(help="Checksum that the archive must have.")] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Download, check and unpack a public data set.

    The same command continues an interrupted download.
    """
    from pneumoscope.datasets.kermany import fetch as job

    with show_progress(" Run the same command again to continue.") as progress:
        folder = job(name, out, archive=archive, url=url, sha256=sha256, overwrite=overwrite, progress=progress)
    typer.echo(folder)


def _check_draw(draw: dict[str, Any], subset: str | None, folds: int | None, keep: bool) -> None:
    for name in ("test", "val"):
        fraction = draw[f"{name}_fraction"]
        if fraction is not None and not 0 < fraction < 1:
            raise UsageError(f"{fraction} is not between 0 and 1.", parameter=f"{name}_fraction")
        if fraction is not None and draw[f"{name}_count"] is not None:
            raise UsageError(f"--{name}-fraction and --{name}-count cannot be combined. Use one of them.")
    if subset and (folds or keep or any(value is not None for value in draw.values())):
        raise UsageError("--subset has splits of its own. Leave out the options that draw others.")
    if folds and (keep or draw["test_fraction"] or draw["test_count"]):
        raise UsageError("--folds tests every image once. Leave out --keep, --test-fraction and --test-count.")


def _group(samples: list[Sample], no_cache: bool) -> list[int | None]:
    from pneumoscope.auditing.duplicates import group_images

    with show_progress() as progress, open_cache(no_cache) as cache:
        return group_images(samples, cache, progress)


def _write_table(out: Path, samples: list[Sample]) -> None:
    from pneumoscope.datasets.samples import describe_counts, write_samples

    write_samples(out, samples)
    typer.echo(describe_counts(samples))


def _write_folds(out: Path, folds: list[list[Sample]], overwrite: bool) -> None:
    from pneumoscope.datasets.samples import describe_counts, write_samples
    from pneumoscope.files import claim_folder

    claim_folder(out, [f"fold-{number}.csv" for number in range(100)], overwrite)
    for number, samples in enumerate(folds):
        write_samples(out / f"fold-{number}.csv", samples)
        typer.echo(f"fold {number}: {describe_counts(samples)}")
