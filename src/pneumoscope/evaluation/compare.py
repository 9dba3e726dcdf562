"""Compares runs on the same images: measures how their metrics differ, image by image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.datasets.samples import Sample
from pneumoscope.errors import UsageError
from pneumoscope.evaluation.external import read_all
from pneumoscope.evaluation.external_tables import Choices
from pneumoscope.evaluation.intervals.differences import (
    Difference,
    adjust_holm,
    compare_aurocs,
    compare_macro_auroc,
    compare_means,
    compare_rates,
)
from pneumoscope.evaluation.intervals.proportions import CONFIDENCE
from pneumoscope.evaluation.pairing import Pairing, pair_predictions
from pneumoscope.evaluation.results import without_nan
from pneumoscope.evaluation.summary import find_repeats
from pneumoscope.notebook import Drawn, to_frame, to_html

_RATE = "Interval: Tango's score interval by the patients' design effect. p: McNemar's exact test by patient."
_MANY_RATES = (
    "Interval: Tango's score interval by the patients' design effect. p: McNemar's test by patient in its normal "
    "approximation with a correction for continuity, as the exact one would take too long for so many patients."
)
_AREA = "Interval: MOVER, from DeLong's covariance by patient and the logit interval of each area. p: DeLong."
_MEAN = "Interval and p: paired t test, with a standard error by patient."


@dataclass(frozen=True)
class Contrast:
    """One run against the first: differences by metric, and how many images both, one or none labels correctly."""

    run: str
    differences: Mapping[str, Difference]
    both_correct: int
    only_first: int
    only_other: int
    both_wrong: int


@dataclass(frozen=True)
class Comparison(Drawn):
    """Several runs on the same images, each compared with the first.

    Attributes:
        runs: their folders, as given.
        thresholds: one per run; nan for more than two classes.
        contrasts: one for each run but the first.
        n: number of images that all runs could read.
        patients: number of distinct known patients; None if none is known.
        unread: how many images each run could not read.
        classes: their names.
        positive: the positive class, if there are two.
        shares: the classes' shares of the images.
        paired_by: `content`, `path` or, with a table of another program, `name`.
        methods: the methods behind interval and p value, by metric.
        notes: what a reader must know.
        resamples: bootstrap resamples.
        seed: fixes the resamples.
        confidence: of the intervals.
    """

    runs: tuple[str, ...]
    thresholds: tuple[float, ...]
    contrasts: tuple[Contrast, ...]
    n: int
    patients: int | None
    unread: tuple[int, ...]
    classes: tuple[str, ...]
    positive: str | None
    shares: Mapping[str, float]
    paired_by: str
    methods: Mapping[str, str]
    notes: tuple[str, ...]
    resamples: int
    seed: int
    confidence: float = CONFIDENCE

    def __repr__(self) -> str:
        return f"Comparison({', '.join(self.runs)}: {self.n} images)"

    def _repr_html_(self) -> str:
        return to_html(f"{self.n} images, each run against {self.runs[0]}", self.to_rows())

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each run but the first and each metric; it needs pandas."""
        return to_frame(self.to_rows())

    def to_json(self) -> dict[str, Any]:
        """Return the content of comparison.json; undefined values are None, as JSON has no nan."""
        plain: dict[str, Any] = without_nan(asdict(self))
        return plain

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a row for each run but the first and each metric."""
        return [
            {"run": contrast.run, "against": self.runs[0], "metric": metric}
            | {key: value for key, value in without_nan(asdict(difference)).items() if key != "bootstrap"}
            for contrast in self.contrasts
            for metric, difference in contrast.differences.items()
        ]


def compare_runs(
    runs: Sequence[str | Path],
    *,
    truth: Sequence[Sample] | None = None,
    choices: Choices | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[Comparison, Pairing]:
    """Compare runs or evaluations with the first one, on the same images.

    Args:
        runs: two or more folders with `metrics.json` and `predictions.csv`, or tables of another program's predictions.
        truth: labelled images, for tables; by default those of the first folder.
        choices: how to read tables, and the positive class.
        resamples: bootstrap resamples.
        seed: fixes them.

    Returns:
        The comparison, and the paired predictions behind it.

    Raises:
        UsageError: fewer than two runs.
        DataError: different images, labels or classes; the message names the first.
    """
    if len(runs) < 2:
        given = f"only {runs[0]} was given" if runs else "none was given"
        raise UsageError(f"{given}. Name at least two runs: each is compared with the first.", "runs")
    if resamples < 1:
        raise UsageError(f"at least 1 is needed, found {resamples}.", "resamples")
    pairing = pair_predictions(read_all(runs, truth, choices or Choices()))
    comparison = compare_pairing(pairing, [str(run) for run in runs], resamples=resamples, seed=seed)
    repeats = find_repeats(runs)
    return replace(comparison, notes=(*comparison.notes, *([repeats] if repeats else ()))), pairing


def compare_pairing(pairing: Pairing, names: Sequence[str], *, resamples: int = 2000, seed: int = 0) -> Comparison:
    """Measure the differences between the first and each other run of a pairing."""
    measured = [_measure_differences(pairing, other, resamples, seed) for other in range(1, len(names))]
    for metric in measured[0]:
        adjusted = adjust_holm([differences[metric].p for differences in measured])
        for differences, p in zip(measured, adjusted, strict=True):
            differences[metric] = replace(differences[metric], adjusted=p)
    correct = pairing.predicted == pairing.labels
    shares = (np.bincount(pairing.labels, minlength=len(pairing.classes)) / len(pairing.labels)).tolist()
    return Comparison(
        runs=tuple(names),
        thresholds=tuple(run.threshold for run in pairing.runs),
        contrasts=tuple(
            Contrast(
                run=name,
                differences=differences,
                both_correct=int((correct[0] & other).sum()),
                only_first=int((correct[0] & ~other).sum()),
                only_other=int((~correct[0] & other).sum()),
                both_wrong=int((~correct[0] & ~other).sum()),
            )
            for name, differences, other in zip(names[1:], measured, correct[1:], strict=True)
        ),
        n=len(pairing.labels),
        patients=pairing.patients,
        unread=pairing.unread,
        classes=pairing.classes,
        positive=pairing.runs[0].positive,
        shares=dict(zip(pairing.classes, shares, strict=True)),
        paired_by=pairing.paired_by,
        methods={
            metric: _describe_method(
                metric, len(pairing.classes), all(each[metric].exact is not False for each in measured)
            )
            for metric in measured[0]
        },
        notes=_find_notes(pairing),
        resamples=resamples,
        seed=seed,
    )


def _measure_differences(pairing: Pairing, other: int, resamples: int, seed: int) -> dict[str, Difference]:
    labels, clusters = pairing.labels, pairing.clusters
    probabilities = pairing.probabilities[[0, other]]
    two = len(pairing.classes) == 2
    sides = {"accuracy": np.ones_like(labels, dtype=bool)}
    if two:
        sides |= {"sensitivity": labels == 1, "specificity": labels == 0}
    differences = {}
    for metric, side in sides.items():
        first, second = (pairing.predicted[[0, other]] == labels)[:, side]
        differences[metric] = compare_rates(first, second, clusters[side], resamples=resamples, seed=seed)
    if two:
        differences["auroc"] = compare_aurocs(labels, probabilities, clusters)
        first, second = (probabilities - labels) ** 2
        differences["brier"] = compare_means(first, second, clusters, resamples=resamples, seed=seed)
    else:
        differences["auroc"] = compare_macro_auroc(labels, probabilities, clusters, resamples=resamples, seed=seed)
    return differences


def _describe_method(metric: str, classes: int, exact: bool) -> str:
    if metric == "auroc":
        return _AREA if classes == 2 else f"Mean over the classes, each against the rest. {_AREA}"
    return _MEAN if metric == "brier" else _RATE if exact else _MANY_RATES


def _find_notes(pairing: Pairing) -> tuple[str, ...]:
    notes = []
    unread = [f"{count} by {run.folder}" for run, count in zip(pairing.runs, pairing.unread, strict=True) if count]
    if unread:
        notes.append(f"Images that any run could not read are left out: {', '.join(unread)}.")
    if len({run.threshold for run in pairing.runs if not math.isnan(run.threshold)}) > 1:
        notes.append("The runs have different thresholds: each uses the threshold of its own model.")
    return tuple(notes)
