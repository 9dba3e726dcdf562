"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pneumoscope.cli.flags import describe_error
from pneumoscope.errors import UsageError

if TYPE_CHECKING:
    from pneumoscope.inference.features import FeatureCache

Out = Annotated[Path, typer.Option(help="Folder to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Allow an earlier output in that folder to go.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Neither read nor keep features on disk.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")]
PatientPattern = Annotated[str | None, typer.Option(help="Regular expression that finds the patient in a file name.")]
Invert = Annotated[bool, typer.Option("--invert", help="Images show air bright: exchange black and white.")]
AllowModality = Annotated[
    bool, typer.Option("--any-modality", help="Read DICOM files that are no projection radiographs, too.")
]
Prevalence = Annotated[
    float | None,
    typer.Option(help="State probabilities for this share of the positive class, such as your clinic's."),
]
Threshold = Annotated[
    float | None,
    typer.Option(help="Call the positive class from this probability on, instead of the model's own threshold."),
]
ErrorRate = Annotated[
    float | None, typer.Option(help="How often prediction sets may miss the truth, instead of the model's rate.")
]
FalseAlarms = Annotated[
    float | None, typer.Option(help="Share of ordinary images that may be called ood, instead of the model's.")
]


@contextmanager
def open_cache(disabled: bool) -> Iterator[FeatureCache | None]:
    """The user's feature cache, or none."""
    if disabled:
        yield None
        return
    from pneumoscope.inference.features import FeatureCache, default_cache_path

    try:
        opened = FeatureCache(default_cache_path())
    except UsageError as problem:
        typer.echo(f"{describe_error(problem)} Going on without it.", err=True)
        yield None
        return
    with opened as cache:
        yield cache
