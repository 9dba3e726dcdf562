"""The commands below `pneumoscope data`: draw, split and fetch data sets."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pneumoscope.cli import options
from pneumoscope.cli.app import PanelCommand, TableCommand, make_group
from pneumoscope.cli.options import option
from pneumoscope.cli.output import echo
from pneumoscope.cli.progress import show_progress
from pneumoscope.errors import UsageError

if TYPE_CHECKING:
    from pneumoscope.config import Progress
    from pneumoscope.datasets.samples import Sample


_SPLITS = "Splits"  # panel of --help

data_app = make_group("Draw, split and fetch data sets.")


@data_app.command(cls=PanelCommand)
def phantoms(
    out: options.Out,
    count: Annotated[int, option("Number of images.")] = 600,
    size: Annotated[int, option("Height in pixels.")] = 320,
    prevalence: Annotated[float, option("Share of images with pneumonia.")] = 0.5,
    plant: Annotated[
        str | None,
        option(
            "Shortcuts for an audit to find, such as marker:0.8,noise:0.5:NORMAL: marker, border, exposure or noise."
        ),
    ] = None,
    form: Annotated[Literal["png", "dicom"], option("Format of the images.", None, "--format")] = "png",
    seed: options.Seed = 0,
) -> None:
    """Draw simulated radiographs, with masks of their opacities."""
    from pneumoscope.datasets.phantom_sets import write_phantoms

    with show_progress() as progress:
        folder = write_phantoms(
            out, count=count, seed=seed, size=size, prevalence=prevalence, plant=plant, form=form, progress=progress
        )
    echo(folder)


@data_app.command(cls=TableCommand)
def split(
    context: typer.Context,
    data: options.Data,
    out: Annotated[Path, option("Table to write (.csv); with --folds, a folder.")],
    test_fraction: Annotated[float | None, option("Share of each class in test. [default: 0.25]", _SPLITS)] = None,
    val_fraction: Annotated[float | None, option("Share of the rest in val. [default: 0.333]", _SPLITS)] = None,
    test_count: Annotated[int | None, option("Number of test images, instead of a share.", _SPLITS, least=1)] = None,
    val_count: Annotated[int | None, option("Number of validation images.", _SPLITS, least=1)] = None,
    balanced: Annotated[
        Literal["none", "val", "test", "both"] | None,
        option("New splits that get equal numbers of images of each class. [default: val]", _SPLITS),
    ] = None,
    folds: Annotated[
        int | None,
        option("Cross-validation: write fold-0.csv and so on; each image is tested once.", _SPLITS, least=2, most=100),
    ] = None,
    redraw: Annotated[bool, option("Redraw all splits, not only the missing ones.", _SPLITS, "--redraw")] = False,
    redraw_val: Annotated[bool, option("Redraw val, from train and val.", _SPLITS, "--redraw-val")] = False,
    subset: Annotated[str | None, option("A published list of images and splits, such as seed-400.", _SPLITS)] = None,
    by_name: Annotated[
        bool, option("Do not read images; near-duplicates may be separated.", _SPLITS, "--by-name")
    ] = False,
    patient_pattern: options.PatientPattern = None,
    invert: options.Invert = False,
    any_modality: options.AnyModality = False,
    seed: options.Seed = 0,
    cache: options.Cache = True,
    excel: options.Excel = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Split a dataset by patient, and write the splits as a table.

    Existing splits are kept, and missing ones are drawn. Near-duplicates stay together. No file is moved.
    """
    from pneumoscope.datasets.reading import read_samples
    from pneumoscope.images.read import Reading

    sizes = {"test_fraction": test_fraction, "val_fraction": val_fraction}
    sizes |= {"test_count": test_count, "val_count": val_count}
    draw: dict[str, Any] = {name: size for name, size in sizes.items() if size is not None}
    if balanced is not None:
        draw["balanced"] = {"none": (), "both": ("val", "test")}.get(balanced, (balanced,))
    anew = {"all": redraw, "val": redraw_val}
    _check_draw(draw, subset, folds, anew)
    if folds is None or not out.is_dir() or any(out.iterdir()):
        from pneumoscope.files import check_file

        check_file(out, overwrite)
    with show_progress() as progress:
        samples = read_samples(data, patient_pattern, Reading(invert, any_modality), context.obj)
        if subset is not None:
            _write_table(out, _select_subset(samples, subset), excel)
            return
        samples = _forget_splits(samples, anew, folds, draw)
        draw |= {"groups": None if by_name else _group(samples, folds, cache, progress), "seed": seed}
        drawn = _draw(samples, folds, draw)
    if folds is None:
        _write_table(out, drawn[0], excel)
    else:
        _write_folds(out, drawn, excel, overwrite)


@data_app.command(cls=PanelCommand)
def fetch(
    name: Annotated[
        str, typer.Argument(help="The data set: kermany, pneumoniamnist or pneumoniamnist_224.", metavar="NAME")
    ],
    out: options.Out,
    archive: Annotated[Path | None, option("The archive, if you already have it, instead of a download.")] = None,
    url: Annotated[str | None, option("Another address for the archive, such as a mirror.")] = None,
    sha256: Annotated[str | None, option("Checksum that the archive must have.")] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Download, check and unpack a public data set.

    The same command continues an interrupted download.
    """
    from pneumoscope.datasets.kermany import fetch as job

    with show_progress(" Run the same command again to continue.") as progress:
        folder = job(name, out, archive=archive, url=url, sha256=sha256, overwrite=overwrite, progress=progress)
    echo(folder)


def _check_draw(draw: dict[str, Any], subset: str | None, folds: int | None, anew: dict[str, bool]) -> None:
    if all(anew.values()):
        raise UsageError("--redraw draws all splits, and --redraw-val only val. Use one of them.")
    for name in ("test", "val"):
        fraction = draw.get(f"{name}_fraction")
        if fraction is not None and not 0 < fraction < 1:
            raise UsageError(f"{fraction} is not between 0 and 1.", parameter=f"{name}_fraction")
        if fraction is not None and f"{name}_count" in draw:
            raise UsageError(f"--{name}-fraction and --{name}-count cannot be combined. Use one of them.")
    if subset and (folds or any(anew.values()) or draw):
        raise UsageError("--subset has its own splits. Leave out the options that draw splits.")
    if folds and (anew["val"] or draw.keys() & {"test_fraction", "test_count"}):
        raise UsageError("--folds tests every image once. Leave out --redraw-val, --test-fraction and --test-count.")


def _forget_splits(
    samples: "list[Sample]", anew: dict[str, bool], folds: int | None, draw: dict[str, Any]
) -> "list[Sample]":
    """Forget the splits that are to be redrawn; refuse options for those that are kept."""
    present = {sample.split for sample in samples if sample.split}
    if anew["all"]:
        return [replace(sample, split=None) for sample in samples]
    if folds and present:
        raise UsageError(
            f"the data have the splits {', '.join(sorted(present))}, but folds replace them, because every image is "
            "tested once. Add `redraw=True` if that is intended.",
            "folds",
        )
    if anew["val"] and "val" not in present:
        raise UsageError("the data have no val split to redraw. Leave the option out.", "redraw_val")
    if anew["val"]:
        samples = [replace(sample, split="train") if sample.split == "val" else sample for sample in samples]
    kept = {"val", "test"} & {sample.split for sample in samples}
    for name in draw:
        concerned = kept & ({name.partition("_")[0]} if name != "balanced" else set(draw["balanced"]))
        if concerned:
            raise UsageError(
                f"the data have the split {', '.join(sorted(concerned))}, which is kept. Leave the option out, or "
                "redraw all splits with `redraw=True`.",
                name,
            )
    return samples


def _draw(samples: "list[Sample]", folds: int | None, how: dict[str, Any]) -> "list[list[Sample]]":
    """Draw folds, or the missing splits alone; say which are kept."""
    import logging

    from pneumoscope.datasets.splits import describe_small_val, fold_samples, split_samples

    if folds is not None:
        return fold_samples(samples, folds, **how)
    present = {sample.split for sample in samples}
    kept, missing = ([s for s in ("train", "val", "test") if (s in present) is known] for known in (True, False))
    if missing:
        kept = [split for split in kept if split != "train"]  # which gives images to those that are drawn
    if kept:
        logging.getLogger("pneumoscope").info(
            "The existing splits are kept (%s); %s. To redraw all splits, use `redraw`.",
            ", ".join(kept), f"drawn from train: {', '.join(missing)}" if missing else "nothing is drawn",
        )  # fmt: skip
    result = split_samples(samples, **how)
    if small := describe_small_val(result):
        logging.getLogger("pneumoscope").warning("%s. %s", *small)
    return [result]


def _group(samples: "list[Sample]", folds: int | None, cache: bool, progress: "Progress") -> list[int | None] | None:
    """Group near-duplicates, if anything is to be drawn."""
    if not folds and {"val", "test"} <= {sample.split for sample in samples}:
        return None
    from pneumoscope.auditing.duplicates import group_images
    from pneumoscope.inference.cache import open_cache

    with open_cache(cache) as opened:
        return group_images(samples, opened, progress)


def _write_table(out: Path, samples: "list[Sample]", excel: bool) -> None:
    from pneumoscope.datasets.samples import describe_counts, write_samples

    write_samples(out, samples, excel)
    echo(describe_counts(samples))


def _select_subset(samples: "list[Sample]", name: str) -> "list[Sample]":
    from pneumoscope.datasets.kermany import select_subset

    return select_subset(samples, name)


def _write_folds(out: Path, folds: "list[list[Sample]]", excel: bool, overwrite: bool) -> None:
    from pneumoscope.datasets.samples import describe_counts, write_samples
    from pneumoscope.files import claim_folder, lock_folder

    with lock_folder(out):
        claim_folder(out, [f"fold-{number}.csv" for number in range(100)], overwrite)
        for number, samples in enumerate(folds):
            write_samples(out / f"fold-{number}.csv", samples, excel)
            echo(f"fold {number}: {describe_counts(samples)}")
