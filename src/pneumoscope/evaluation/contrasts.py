"""Several models on the same images: what each differs in from the first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from pneumoscope.evaluation.differences import (
    CONFIDENCE,
    Difference,
    adjust_holm,
    compare_aurocs,
    compare_macro_auroc,
    compare_means,
    compare_rates,
)
from pneumoscope.evaluation.pairing import Pairing
from pneumoscope.evaluation.results import without_nan


@dataclass(frozen=True)
class Contrast:
    """One model against the first.

    Attributes:
        run: the folder compared.
        differences: by metric.
        both: images that both decided rightly.
        only_first: images that only the first decided rightly.
        only_other: images that only the other decided rightly.
        neither: images that both decided wrongly.
    """

    run: str
    differences: Mapping[str, Difference]
    both: int
    only_first: int
    only_other: int
    neither: int


@dataclass(frozen=True)
class Comparison:
    """Several models on the same images, each against the first.

    Attributes:
        runs: their folders, as given.
        thresholds: from which probability on each calls an image positive; nan for more than two classes.
        contrasts: one for each run but the first.
        n: images that all could read.
        patients: how many distinct ones are known, None if none is.
        unread: how many images each could not read.
        classes: their names.
        positive: the positive class of two.
        shares: the classes' shares of the images.
        paired_by: `content` or `path`.
        methods: for each metric how interval and p value were worked out.
        notes: what a reader has to know.
        resamples: bootstrap resamples.
        seed: of the resamples.
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

    def to_json(self) -> dict[str, Any]:
        """Return the content of comparison.json; what is undefined is None, as JSON has no nan."""
        plain: dict[str, Any] = without_nan(asdict(self))
        return plain


def compare_pairing(pairing: Pairing, names: Sequence[str], *, resamples: int = 2000, seed: int = 0) -> Comparison:
    """Measure the differences between the first and each other model of a pairing."""
    labels, clusters = pairing.labels, pairing.clusters
    two = len(pairing.classes) == 2
    right = pairing.calls == labels
    contrasts = []
    for i in range(1, len(names)):
        gain = right[i].astype(np.int64) - right[0]
        found = {"accuracy": compare_rates(right[0], right[i], clusters, resamples=resamples, seed=seed)}
        pair = pairing.probabilities[[0, i]]
        if two:
            for name, side in (("sensitivity", labels == 1), ("specificity", labels == 0)):
                one, other = right[0, side], right[i, side]
                found[name] = compare_rates(one, other, clusters[side], resamples=resamples, seed=seed)
            found["auroc"] = compare_aurocs(labels, pair, clusters)
            one, other = (pair - labels) ** 2
            found["brier"] = compare_means(one, other, clusters, resamples=resamples, seed=seed)
        else:
            found["auroc"] = compare_macro_auroc(labels, pair, clusters, resamples=resamples, seed=seed)
        contrasts.append(
            Contrast(
                run=names[i],
                differences=found,
                both=int((right[0] & right[i]).sum()),
                only_first=int((gain < 0).sum()),
                only_other=int((gain > 0).sum()),
                neither=int((~right[0] & ~right[i]).sum()),
            )
        )
    shares = (np.bincount(labels, minlength=len(pairing.classes)) / len(labels)).tolist()
    return Comparison(
        runs=tuple(names),
        thresholds=tuple(run.threshold for run in pairing.runs),
        contrasts=_adjust(contrasts),
        n=len(labels),
        patients=pairing.patients,
        unread=pairing.unread,
        classes=pairing.classes,
        positive=pairing.runs[0].positive,
        shares=dict(zip(pairing.classes, shares, strict=True)),
        paired_by=pairing.by,
        methods=_describe_methods(contrasts[0], two),
        notes=_find_notes(pairing),
        resamples=resamples,
        seed=seed,
    )


def to_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A row for each run but the first and each metric."""
    return [
        {"run": contrast.run, "against": comparison.runs[0], "metric": name}
        | {key: value for key, value in without_nan(asdict(one)).items() if key != "bootstrap"}
        for contrast in comparison.contrasts
        for name, one in contrast.differences.items()
    ]


def _adjust(contrasts: Sequence[Contrast]) -> tuple[Contrast, ...]:
    corrected = {
        name: adjust_holm([contrast.differences[name].p for contrast in contrasts]) for name in contrasts[0].differences
    }
    return tuple(
        replace(
            contrast,
            differences={
                name: replace(difference, adjusted=corrected[name][i])
                for name, difference in contrast.differences.items()
            },
        )
        for i, contrast in enumerate(contrasts)
    )


def _describe_methods(contrast: Contrast, two: bool) -> dict[str, str]:
    rate = (
        "Interval: Tango's score interval, the number of images reduced to allow for patients. "
        "p: McNemar's exact test, patients exchanged as a whole."
    )
    area = "Interval: MOVER, from DeLong's covariance by patient and logit limits of each area. p: DeLong."
    methods = {
        "auroc": area if two else f"Mean over the classes, each against the rest. {area}",
        "brier": "Interval and p: paired t test, with a standard error that allows for patients.",
    }
    return {name: methods.get(name, rate) for name in contrast.differences}


def _find_notes(pairing: Pairing) -> tuple[str, ...]:
    notes = []
    unread = [f"{count} by {run.folder}" for run, count in zip(pairing.runs, pairing.unread, strict=True) if count]
    if unread:
        notes.append(f"Images that one of the runs could not read are left out of all: {', '.join(unread)}.")
    if pairing.patients is None and any(run.lost_patients for run in pairing.runs):
        notes.append(
            "Patients were known, but these predictions were written by an older version and don't name them: "
            "intervals are too narrow, p values too small. Evaluate again."
        )
    for run in pairing.runs[1:]:
        if not math.isnan(run.threshold) and run.threshold != pairing.runs[0].threshold:
            notes.append("Runs decide at thresholds of their own, each as its model has it.")
            break
    return tuple(notes)
