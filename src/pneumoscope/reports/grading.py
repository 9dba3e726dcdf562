"""`pneumoscope.grade`: rank submissions against hidden labels, and write page, table and JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pneumoscope.config import Count, Seed, checked
from pneumoscope.datasets.columns import Naming
from pneumoscope.datasets.prediction_tables import PredictionColumns, Scale
from pneumoscope.datasets.reading import read_dataset
from pneumoscope.datasets.tables import SUFFIXES
from pneumoscope.errors import UsageError, require_extra
from pneumoscope.evaluation.external_tables import Choices
from pneumoscope.evaluation.grading import LOWER_IS_BETTER, Grading, grade_submissions
from pneumoscope.files import check_folder, claim_folder, lock_folder, write_rows, write_text
from pneumoscope.reports.pages import format_command, format_level, render

OUTPUTS = ("grading.json", "grading.csv", "grading.html")
_SHOWN = ("auroc", "accuracy", "brier")  # on the page, besides the metric that decides


@checked
def grade(
    truth: str | Path,
    submissions: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    metric: str = "auroc",
    split: str | None = None,
    id_column: str | None = None,
    probability_column: str | None = None,
    scale: Scale = "probability",
    positive: str | None = None,
    patient_pattern: str | None = None,
    naming: Naming = Naming(),
    resamples: Count = 2000,
    seed: Seed = 0,
    excel: bool = False,
    overwrite: bool = False,
) -> Grading:
    """Rank many tables of predictions by labels that their authors do not know.

    A submission needs one row with one probability for each image, and no others; what is wrong with one is said, and
    does not stop the others. Metrics that need labels use a threshold of 0.5, or the likeliest class.

    Args:
        truth: the labels: a table, or a folder of classes.
        submissions: tables of predictions; a folder stands for the tables in it.
        out: folder for `grading.html`, `grading.csv` and `grading.json`; None writes nothing.
        metric: that decides, such as `auroc`, `average_precision`, `accuracy`, `f1`, `mcc` or `brier`.
        split: of `truth`, or `all`; by default `test` if there is one.
        id_column: column of the submissions with the path, name or id of the image.
        probability_column: column with the probability of the positive class, or `CLASS=COLUMN,CLASS=COLUMN`.
        scale: of the numbers: `probability`, `percent`, or `logit`.
        positive: the positive of two classes, if it is not PNEUMONIA, 1, true or positive.
        patient_pattern: regular expression that finds the patient in the path of a file of `truth`.
        naming: what columns and classes of `truth` are called.
        resamples: bootstrap resamples.
        seed: fixes them.
        excel: whether `grading.csv` begins with a byte order mark, which Excel needs to read UTF-8.
        overwrite: whether to replace an earlier grading in `out`.

    Raises:
        UsageError: a metric or split does not exist, there are no submissions, or `out` exists.
        DataError: the labels cannot be used, or no submission can.
    """
    require_extra("evaluate")
    if out is not None:
        check_folder(Path(out), OUTPUTS, overwrite)
    paths = _list_tables(submissions, Path(truth))
    samples = read_dataset(truth, patient_pattern, naming=naming, files=False).samples
    choices = Choices(PredictionColumns(id_column, probability_column, None, scale), positive)
    root = Path(truth) if Path(truth).is_dir() else Path(truth).parent
    grading = grade_submissions(
        samples, paths, choices, root=root, metric=metric, split=split, resamples=resamples, seed=seed
    )
    if out is not None:
        options = {"patient_pattern": patient_pattern, "split": split, **naming.to_options()}
        command = _format_command([truth, *submissions], grading, choices, options)
        with lock_folder(Path(out)):
            claim_folder(Path(out), OUTPUTS, overwrite)
            _write(Path(out), grading, command, excel)
    return grading


def _format_command(
    paths: Sequence[str | Path], grading: Grading, choices: Choices, options: Mapping[str, str | None]
) -> str:
    given = {"metric": grading.metric, "resamples": grading.resamples, "seed": grading.seed, **asdict(choices.columns)}
    given |= {"positive": choices.positive, **options}
    usual = ("scale", "probability")
    return format_command(
        "grade",
        *map(str, paths),
        out="NEW_FOLDER",
        **{name: each for name, each in given.items() if (name, each) != usual},
    )


def _list_tables(submissions: Sequence[str | Path], truth: Path) -> list[Path]:
    """The tables, with those in folders; the table of the truth is none of them."""
    paths: list[Path] = []
    for path in map(Path, submissions):
        if not path.is_dir():
            paths.append(path)
            continue
        inside = sorted(each for each in path.iterdir() if each.suffix.lower() in SUFFIXES and each.is_file())
        inside = [each for each in inside if each.resolve() != truth.resolve()]
        if not inside:
            raise UsageError(f"{path}: no table in this folder ({', '.join(sorted(SUFFIXES))}).", "submissions")
        paths += inside
    if twice := [path for i, path in enumerate(paths) if path in paths[:i]]:
        raise UsageError(f"{twice[0]} is given twice. Name each submission once.", "submissions")
    return paths


def _write(folder: Path, grading: Grading, command: str, excel: bool) -> None:
    write_text(folder / OUTPUTS[0], json.dumps(grading.to_json(), indent=2) + "\n")
    write_rows(folder / OUTPUTS[1], grading.to_rows(), excel)
    low, high = _choose_scale(grading)
    reasons = [(each.submission, _name_flags(each.reason)) for each in grading.not_ranked]
    page = render(
        "grading.html",
        title=f"Grading of {len(grading.ranked) + len(grading.not_ranked)} submissions",
        grading=grading,
        level=format_level(grading.confidence),
        low=low,
        high=high,
        lower=grading.metric in LOWER_IS_BETTER,
        shown=[name for name in _SHOWN if name != grading.metric],
        command=command,
        reasons=reasons,
    )
    write_text(folder / OUTPUTS[2], page)


def _name_flags(reason: str) -> str:
    """A reason with the flags of the command that the page shows, instead of parameters of Python."""
    return re.sub(r"`([a-z]+_column)(?:='([^'`]*)')?`", lambda found: _to_flag(found[1], found[2]), reason)


def _to_flag(parameter: str, value: str | None) -> str:
    return f"`--{parameter.replace('_', '-')}{f' {value}' if value else ''}`"


def _choose_scale(grading: Grading) -> tuple[float, float]:
    """Ends of a scale that holds all intervals, in tenths."""
    each = [end for one in grading.ranked for end in (one.value.value, one.value.low, one.value.high)]
    ends = [end for end in each if not math.isnan(end)]
    low, high = math.floor(min(ends) * 10) / 10, math.ceil(max(ends) * 10) / 10
    return low, high if high > low else low + 0.1
