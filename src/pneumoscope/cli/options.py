"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pneumoscope.models.pretrained import DEFAULT

DECISIONS, IMAGES, COMPUTING, OUTPUT = "Decisions", "Images", "Computing", "Output"  # panels of --help
EXTERNAL = "Predictions of another program"  # another panel


def option(text: str, panel: str | None = None, *names: str, least: int | None = None, most: int | None = None) -> Any:
    """An option with this help, in this panel; a bool has the flags --name and --no-name unless `names` differ."""
    return typer.Option(*names, help=text, rich_help_panel=panel, min=least, max=most)


Data = Annotated[Path, typer.Argument(help="Folder with a subfolder per class, or a table.", metavar="DATA")]
Paths = Annotated[list[Path], typer.Argument(help="Images, folders of images, or tables.", metavar="PATH")]
MODEL = "A run, a model folder, a .zip of one, a pretrained model's name, an https:// address, or hf:OWNER/NAME."
Model = Annotated[str | None, option(f"{MODEL} [default: {DEFAULT}]")]

Prevalence = Annotated[float | None, option("Adjust probabilities to this share of the positive class.", DECISIONS)]
AdaptPrior = Annotated[
    bool,
    option("Estimate the prevalence from these images, without labels, and adjust to it.", DECISIONS, "--adapt-prior"),
]
Estimate = Annotated[
    bool,
    option(
        "Also estimate from the probabilities, without labels, how often they are right. This holds only where they "
        "are calibrated, as after adapt.",
        DECISIONS,
        "--estimate",
    ),
]
Threshold = Annotated[
    str | None,
    typer.Option(
        help="Predict the positive class at or above this probability, instead of the model's threshold.",
        rich_help_panel=DECISIONS,
        metavar="<float>",
    ),
]
ThresholdOrRule = Annotated[
    str | None,
    option(
        "Predict the positive class at or above this probability, instead of the model's threshold; or a rule of "
        "train, such as sensitivity>=0.95, applied to the validation split of DATA.",
        DECISIONS,
    ),
]
Alpha = Annotated[
    float | None, option("How often prediction sets may miss the truth, instead of the model's alpha.", DECISIONS)
]
FalseAlarms = Annotated[
    float | None,
    option("Share of ordinary images that the OOD detector may flag, instead of the model's.", DECISIONS),
]

RefuseOutOfScope = Annotated[
    bool,
    option(
        "Give images outside the model's intended use an error and no probability, instead of a warning.",
        DECISIONS,
        "--refuse-out-of-scope",
    ),
]

PatientPattern = Annotated[
    str | None, option("Regular expression that finds the patient in the path of a file.", IMAGES)
]
PathColumn = Annotated[str | None, option("Column of the table that holds the file.", IMAGES)]
Invert = Annotated[bool, option("Swap black and white: air is bright in the files.", IMAGES, "--invert")]
AnyModality = Annotated[
    bool, option("Also read DICOM files that are not projection radiographs.", IMAGES, "--any-modality")
]

Seed = Annotated[int, option("Fixes every random choice.", COMPUTING, least=0)]
Resamples = Annotated[int, option("Bootstrap resamples for each interval.", COMPUTING, least=1)]
Device = Annotated[Literal["auto", "cpu", "cuda"], option("Device to compute on.", COMPUTING)]
On = Annotated[
    Literal["local", "ray"], option("Use this machine alone, or the machines of a Ray cluster.", COMPUTING, "--on")
]
Address = Annotated[
    str | None,
    option("Ray cluster to use, HOST:PORT or auto. [default: $RAY_ADDRESS, else a new one on this machine]", COMPUTING),
]
CpusPerWorker = Annotated[
    int | None, option("With --on ray: cores that each worker computes with. [default: 1]", COMPUTING, least=1)
]
Cache = Annotated[bool, option("Keep features on disk and reuse them.", COMPUTING)]

# What another program predicted
Predictions = Annotated[Path | None, option("Table of predictions to measure, instead of a model.", EXTERNAL)]
Truth = Annotated[
    Path | None, option("Their labels: a table or a folder of classes. [default: the table itself]", EXTERNAL)
]
IdColumn = Annotated[str | None, option("Column of the predictions with the image's path, name or id.", EXTERNAL)]
ProbabilityColumn = Annotated[
    str | None, option("Column with the probability of the positive class, or CLASS=COLUMN,CLASS=COLUMN.", EXTERNAL)
]
PredictedColumn = Annotated[str | None, option("Column with the predicted label.", EXTERNAL)]
ScaleOfNumbers = Annotated[
    Literal["probability", "percent", "logit"], option("What the numbers are.", EXTERNAL, "--scale")
]
Positive = Annotated[str | None, option("The positive of two classes.", EXTERNAL)]
Calibrate = Annotated[
    bool,
    option(
        "Calibrate the probabilities: on the split val of the labels, or without one by cross-validation by patient.",
        EXTERNAL,
        "--calibrate",
    ),
]
Subgroups = Annotated[
    str | None, option("What to divide the images by, such as 'sex,age,sex*age'. [default: all that is known]", OUTPUT)
]

PatientIds = Annotated[bool, option("Name patients in findings, metrics and report.", OUTPUT, "--patient-ids")]
Excel = Annotated[
    bool, option("Begin CSV files with a byte order mark, so that Excel reads them as UTF-8.", OUTPUT, "--excel")
]
Out = Annotated[Path, option("Folder to write.", OUTPUT)]
Overwrite = Annotated[bool, option("Replace earlier output.", OUTPUT, "--overwrite")]
