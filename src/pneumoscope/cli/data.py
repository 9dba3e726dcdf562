"""The commands below `pneumoscope data`: make, divide and fetch data sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from pneumoscope.cli.options import AllowModality, Invert, NoCache, Out, PatientPattern, open_cache
from pneumoscope.cli.output import show_progress
from pneumoscope.errors import UsageError

data_app = typer.Typer(help="Make and divide data sets.", no_args_is_help=True, rich_markup_mode=None)


@data_app.command()
def phantoms(
    out: Out,
    count: Annotated[int, typer.Option(help="How many images.")] = 600,
    size: Annotated[int, typer.Option(help="Their height in pixels.")] = 320,
    prevalence: Annotated[float, typer.Option(help="Share of images with pneumonia.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Fixes every image.")] = 0,
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
            progress=progress,
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
        typer.Option(min=2, max=100, help="Cross-validation: fold-0.csv and so on, each image tested once."),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the splits that the data have, and draw only what is missing.")
    ] = False,
    subset: Annotated[
        str | None, typer.Option(help="A published list of images and its splits, such as seed-400.")
    ] = None,
    by_name: Annotated[
        bool, typer.Option("--by-name", help="Do not read the images, so that near-duplicates may be separated.")
    ] = False,
    patient_pattern: PatientPattern = None,
    invert: Invert = False,
    any_modality: AllowModality = False,
    seed: Annotated[int, typer.Option(min=0, help="Fixes the draw.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Allow that output to be replaced.")] = False,
    no_cache: NoCache = False,
) -> None:
    """Draw splits, keeping patients and near-duplicates together, and write them as a table; nothing is moved."""
    from pneumoscope.datasets.samples import describe_counts, read_samples, write_samples
    from pneumoscope.datasets.splits import fold_samples, split_samples
    from pneumoscope.files import claim_folder
    from pneumoscope.images.read import Reading

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
        raise UsageError("--folds tests every image once: leave out --keep, --test-fraction and --test-count.")
    shares = {"val_fraction": val_fraction or 1 / 3}
    if folds is not None and out.exists() and not overwrite and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: exists already. Choose another --out, or allow it with --overwrite.")
    samples = read_samples(data, patient_pattern, Reading(invert, any_modality))
    if subset is not None:
        from pneumoscope.datasets.kermany import select_subset

        chosen = select_subset(samples, subset)
        write_samples(out, chosen)
        typer.echo(describe_counts(chosen))
        return
    groups = None
    if not by_name:
        from pneumoscope.auditing.duplicates import group_images

        with show_progress() as progress, open_cache(no_cache) as cache:
            groups = group_images(samples, cache, progress)
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
    from pneumoscope.datasets.kermany import fetch as job

    with show_progress(" The same command goes on where it stopped.") as progress:
        folder = job(
            name,
            out,
            archive=archive,
            url=url,
            sha256=sha256,
            overwrite=overwrite,
            progress=progress,
        )
    typer.echo(folder)
