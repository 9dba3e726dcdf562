"""`pneumoscope.compare`: compare runs, and show the differences on one page, comparison.html."""

from __future__ import annotations

import json
import math
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from pneumoscope.config import Count, Seed, checked
from pneumoscope.datasets.columns import Naming
from pneumoscope.datasets.prediction_tables import PredictionColumns, Scale
from pneumoscope.datasets.reading import read_dataset
from pneumoscope.errors import require_extra
from pneumoscope.evaluation.compare import Comparison, compare_runs
from pneumoscope.evaluation.external_tables import Choices
from pneumoscope.evaluation.pairing import Pairing
from pneumoscope.files import check_folder, claim_folder, lock_folder, write_text
from pneumoscope.reports.figures import render_svg
from pneumoscope.reports.pages import format_command, format_level, format_number, group_methods, render
from pneumoscope.reports.plots import plot_roc_of_runs

OUTPUTS = ("comparison.json", "comparison.html")
SHOWN = 12  # images with different predicted labels
REACHES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)  # possible ends of the scale of differences


@dataclass(frozen=True)
class _Case:
    """An image for which a run predicts another label than the first run, with the probabilities behind it."""

    path: str
    label: str
    run: str
    first: str
    first_probability: float
    other: str
    other_probability: float


@checked
def compare(
    runs: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    truth: str | Path | None = None,
    id_column: str | None = None,
    probability_column: str | None = None,
    predicted_column: str | None = None,
    scale: Scale = "probability",
    positive: str | None = None,
    naming: Naming = Naming(),
    resamples: Count = 2000,
    seed: Seed = 0,
    overwrite: bool = False,
) -> Comparison:
    """Compare runs or evaluations on the same images, each with the first.

    Args:
        runs: two or more folders with `metrics.json` and `predictions.csv`, or tables of another program's predictions
            for the same images; such tables give their predicted labels, or else 0.5 decides between two classes.
        out: folder for `comparison.html` and `comparison.json`; None writes nothing.
        truth: the labels where all `runs` are tables: a table or a folder of classes.
        id_column: column of such tables with the path, name or id of the image.
        probability_column: column with the probability of the positive class, or `CLASS=COLUMN,CLASS=COLUMN`.
        predicted_column: column with the predicted label.
        scale: of the numbers: `probability`, `percent`, or `logit`.
        positive: the positive of two classes of `truth`.
        naming: what columns and classes of `truth` are called.
        resamples: bootstrap resamples.
        seed: fixes them.
        overwrite: whether to replace an earlier comparison in `out`.

    Raises:
        UsageError: fewer than two runs, or `out` exists.
        DataError: different images, labels or classes; the message names the first.
    """
    require_extra("evaluate")
    if out is not None:
        check_folder(Path(out), OUTPUTS, overwrite)
    samples = None if truth is None else read_dataset(truth, naming=naming, files=False).samples
    choices = Choices(PredictionColumns(id_column, probability_column, predicted_column, scale), positive)
    comparison, pairing = compare_runs(runs, truth=samples, choices=choices, resamples=resamples, seed=seed)
    if out is not None:
        with lock_folder(Path(out)):
            claim_folder(Path(out), OUTPUTS, overwrite)
            write_text(Path(out) / OUTPUTS[0], json.dumps(comparison.to_json(), indent=2) + "\n")
            given = {**asdict(choices.columns), "truth": truth, "positive": positive, **naming.to_options()}
            write_comparison(Path(out) / OUTPUTS[1], comparison, pairing, given)
    return comparison


def write_comparison(
    path: Path, comparison: Comparison, pairing: Pairing, options: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Write a comparison, and the predictions behind it, as one HTML file."""
    two = len(comparison.classes) == 2
    cases, differing = _find_cases(comparison, pairing)
    aurocs = {comparison.runs[0]: comparison.contrasts[0].differences["auroc"].first} | {
        contrast.run: contrast.differences["auroc"].other for contrast in comparison.contrasts
    }
    draw = plot_roc_of_runs(comparison.runs, pairing.labels, pairing.probabilities, pairing.predicted)
    page = render(
        "comparison.html",
        title=f"Comparison of {len(comparison.runs)} runs",
        comparison=comparison,
        level=format_level(comparison.confidence),
        two=two,
        reach=_choose_reach(comparison),
        roc=render_svg("compared", draw) if two else "",
        description="; ".join(f"{run}: AUROC {format_number(auroc)}" for run, auroc in aurocs.items()),
        methods=group_methods(comparison.methods),
        cases=cases,
        differing=differing,
        command=format_command(
            "compare",
            *comparison.runs,
            out="NEW_FOLDER",
            resamples=comparison.resamples,
            seed=comparison.seed,
            **{name: value for name, value in options.items() if (name, value) != ("scale", "probability")},
        ),
    )
    write_text(path, page)


def _find_cases(comparison: Comparison, pairing: Pairing) -> tuple[list[_Case], int]:
    """Images whose predicted label differs from the first run's, largest difference first; and how many there are."""
    predicted, probabilities = pairing.predicted, pairing.probabilities
    found = []
    for i in range(1, len(predicted)):
        for j in np.flatnonzero(predicted[i] != predicted[0]):
            first, other = probabilities[0, j], probabilities[i, j]
            gap = other - first
            if probabilities.ndim == 3:
                first, other = first[predicted[0, j]], other[predicted[i, j]]
                gap = gap[predicted[i, j]] - gap[predicted[0, j]]
            found.append((-abs(float(gap)), i, int(j), float(first), float(other)))
    start = 0
    if len({path.startswith("/") for path in pairing.paths}) == 1:  # the folder that all images are in is left out
        start = len(posixpath.join(posixpath.commonpath([posixpath.dirname(path) for path in pairing.paths]), ""))
    name = pairing.classes.__getitem__
    return [
        _Case(
            pairing.paths[j][start:], name(pairing.labels[j]), comparison.runs[i], name(predicted[0, j]), first,
            name(predicted[i, j]), other,
        )
        for _, i, j, first, other in sorted(found)[:SHOWN]
    ], len(found)  # fmt: skip


def _choose_reach(comparison: Comparison) -> float:
    """The shortest of the round scales that holds all intervals."""
    ends = [
        abs(end)
        for contrast in comparison.contrasts
        for difference in contrast.differences.values()
        for end in (difference.value, difference.low, difference.high)
        if not math.isnan(end)
    ]
    return next((reach for reach in REACHES if reach >= max(ends, default=0)), 1.0)
