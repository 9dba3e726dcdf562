"""Calibrates probabilities of another program: on the split val, or by cross-validation; and says where it fails."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.samples import cluster_by_patient
from pneumoscope.decisions import calibration
from pneumoscope.decisions.calibration import FOLDS, Calibration
from pneumoscope.errors import DataError
from pneumoscope.evaluation.external_tables import Choices, Joined
from pneumoscope.text import counted

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SMALLEST = 1e-7  # a probability of 0 has no logit


def calibrate(
    joined: Joined, usable: Sequence[int], val: Sequence[int], choices: Choices, seed: int
) -> tuple[Floats, Floats | None, Calibration | None, dict[str, str]]:
    """Probabilities (N, C), nan where there are none; those before calibration, the fit, and how it was made."""
    classes, raw = len(joined.classes), joined.stack()
    if not choices.calibrate:
        return raw, None, None, {}
    labels = np.full(len(raw), -1)
    labels[usable] = index_classes(joined, usable)
    clusters = cluster_by_patient([sample.patient for sample in joined.samples], len(raw))
    logs = np.log(np.clip(raw, SMALLEST, 1 - SMALLEST))
    logits = logs[:, 1:] - logs[:, :1] if classes == 2 else logs
    calibrated = raw.copy()

    def fit(images: Sequence[int]) -> Calibration:
        where = np.asarray(images)
        return calibration.fit(
            logits[where], labels[where], patients=[str(each) for each in clusters[where]], seed=seed
        )

    if val:
        labels[val] = index_classes(joined, val)
        _require_classes(labels[val], classes, "The val split")
        fitted = fit(val)
        moved = [*usable, *val]
        calibrated[moved] = np.exp(calibration.apply(logits[moved], fitted))
        return (
            calibrated,
            raw,
            fitted,
            {"Calibration": f"{_name_method(fitted)}, fitted on {len(val)} images of the split val"},
        )
    folds = _draw_folds(clusters, usable, seed)
    images = np.asarray(usable)
    for fold in range(FOLDS):
        rest, held_out = images[folds[images] != fold], images[folds[images] == fold]
        _require_classes(labels[rest], classes, "Four fifths of the patients")
        if len(held_out):
            calibrated[held_out] = np.exp(calibration.apply(logits[held_out], fit(rest.tolist())))
    by = "patient" if any(sample.patient for sample in joined.samples) else "image"
    fitted = fit(usable)
    how = (
        f"cross-validated in {FOLDS} folds by {by}: each probability comes from a fit on the other folds. On all "
        f"images: {_name_method(fitted)}"
    )
    return calibrated, raw, fitted, {"Calibration": how}


def _name_method(fitted: Calibration) -> str:
    return calibration.NAMES.get(fitted.method, "none, because no method lowers the cross-validated log loss")


def _draw_folds(clusters: Ints, usable: Sequence[int], seed: int) -> Ints:
    """The fold (N,) of each image; those of a patient share one."""
    rng = np.random.default_rng(seed)
    places = {cluster: i for i, cluster in enumerate(rng.permutation(np.unique(clusters[np.asarray(usable)])).tolist())}
    return np.array([places.get(cluster, 0) % FOLDS for cluster in clusters.tolist()])


def _require_classes(labels: Ints, classes: int, what: str) -> None:
    if len(np.unique(labels)) < classes:
        raise DataError(f"{what} lack a class, so probabilities cannot be calibrated. Leave `calibrate` out.")


def find_harm(joined: Joined, usable: Sequence[int], before: Floats | None, after: Floats) -> list[str]:
    """Say so if calibration made the measured images' probabilities (N, C) worse; None before means without it."""
    if before is None:
        return []
    labels = index_classes(joined, usable)
    losses = [
        calibration.score(np.log(np.clip(each[list(usable)], SMALLEST, 1)), labels, np.ones(len(labels)))["log_loss"]
        for each in (before, after)
    ]
    if losses[1] <= losses[0] + 5e-4:
        return []
    return [
        f"Calibration raised the log loss of these images from {losses[0]:.3f} to {losses[1]:.3f}. Leave `calibrate` "
        "out, or calibrate on more images."
    ]


def describe_certain(joined: Joined, usable: Sequence[int], choices: Choices) -> str:
    """Say how many probabilities are exactly 0 or 1, and how many of these are wrong."""
    shares, labels = joined.stack()[list(usable)], index_classes(joined, usable)
    certain = np.isin(shares, (0, 1)).any(1)
    if not certain.any():
        return ""
    wrong = int((shares[np.arange(len(labels)), labels] == 0).sum())
    text = f"{int(certain.sum())} of {counted(len(labels), 'image')} have a probability of exactly 0 or 1"
    text += f", {wrong} of them for the wrong class: one such image makes the log loss infinite." if wrong else "."
    if choices.calibrate:
        text += f" For calibration these count as {SMALLEST:g} and 1 - {SMALLEST:g}."
    return f"{text} If the numbers were rounded, export more digits."


def index_classes(joined: Joined, images: Sequence[int]) -> Ints:
    """The classes of images, as numbers."""
    return np.array([joined.classes.index(str(joined.samples[i].label)) for i in images])
