"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pneumoscope.cli.flags import describe_error
from pneumoscope.errors import UsageError
from pneumoscope.models.pretrained import DEFAULT

if TYPE_CHECKING:
    from pneumoscope.inference.cache import FeatureCache

DECISIONS, IMAGES, COMPUTING, OUTPUT = "Decisions", "Images", "Computing", "Output"  # panels of --help

Data = Annotated[Path, typer.Argument(help="Folder with a subfolder per class, or a table.", metavar="DATA")]
Paths = Annotated[list[Path], typer.Argument(help="Images, folders of images, or tables.", metavar="PATH")]
Model = Annotated[
    Path | None,
    typer.Option(help=f"A run, a model folder, or the name of a pretrained model. [default: {DEFAULT}]"),
]

Prevalence = Annotated[
    float | None,
    typer.Option(help="Adjust probabilities to this share of the positive class.", rich_help_panel=DECISIONS),
]
AdaptPrior = Annotated[
    bool,
    typer.Option(
        "--adapt-prior",
        help="Estimate the prevalence from these images, without labels, and adjust to it.",
        rich_help_panel=DECISIONS,
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        help="Predict the positive class from this probability on, instead of the model's threshold.",
        rich_help_panel=DECISIONS,
    ),
]
Alpha = Annotated[
    float | None,
    typer.Option(
        help="How often prediction sets may miss the truth, instead of the model's alpha.", rich_help_panel=DECISIONS
    ),
]
FalseAlarms = Annotated[
    float | None,
    typer.Option(
        help="Share of ordinary images that the OOD detector may flag, instead of the model's.",
        rich_help_panel=DECISIONS,
    ),
]

PatientPattern = Annotated[
    str | None,
    typer.Option(help="Regular expression that finds the patient in a file name.", rich_help_panel=IMAGES),
]
Invert = Annotated[
    bool, typer.Option("--invert", help="Swap black and white: air is bright in the files.", rich_help_panel=IMAGES)
]
AnyModality = Annotated[
    bool,
    typer.Option(
        "--any-modality", help="Also read DICOM files that are not projection radiographs.", rich_help_panel=IMAGES
    ),
]

Seed = Annotated[int, typer.Option(min=0, help="Fixes every random choice.", rich_help_panel=COMPUTING)]
Resamples = Annotated[
    int, typer.Option(min=1, help="Bootstrap resamples for each interval.", rich_help_panel=COMPUTING)
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(help="Device to compute on.", rich_help_panel=COMPUTING)
]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Do not use the feature cache on disk.", rich_help_panel=COMPUTING)
]

Out = Annotated[Path, typer.Option(help="Folder to write.", rich_help_panel=OUTPUT)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace earlier output.", rich_help_panel=OUTPUT)]


@contextmanager
def open_cache(disabled: bool) -> Iterator[FeatureCache | None]:
    """The user's feature cache, or None."""
    if disabled:
        yield None
        return
    from pneumoscope.inference.cache import FeatureCache, default_cache_path

    try:
        opened = FeatureCache(default_cache_path())
    except UsageError as problem:
        typer.echo(f"{describe_error(problem)} Continuing without it.", err=True)
        yield None
        return
    with opened as cache:
        yield cache
