"""A trained network learns from its validation images how to decide: calibration, threshold, prediction sets, detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pneumoscope.decisions.calibration import fit_calibration
from pneumoscope.decisions.decide import calibrate
from pneumoscope.decisions.ood import fit_detector
from pneumoscope.decisions.threshold import choose_threshold
from pneumoscope.evaluation.decision_summary import fit_conformal
from pneumoscope.inference.predictor import score
from pneumoscope.models.model_folder import Calibration, Conformal, OODState
from pneumoscope.training.phases import Split
from pneumoscope.training.settings import Settings


@dataclass(frozen=True)
class Decisions:
    """What a model needs to decide, besides its network.

    Attributes:
        calibration: logits to probabilities.
        threshold: from which probability on the positive class of two is called.
        conformal: prediction sets.
        ood: distances of ordinary images.
        arrays: the detector's, by the names that they have among the weights.
        notes: what too few validation images keep from being promised.
    """

    calibration: Calibration
    threshold: float
    conformal: Conformal
    ood: OODState
    arrays: dict[str, torch.Tensor]
    notes: tuple[str, ...]


def fit_decisions(
    train: Split, val: Split, weight: NDArray[np.float32], bias: NDArray[np.float32], classes: Sequence[str],
    settings: Settings,
) -> Decisions:  # fmt: skip
    """Fit all of it: the detector on training images, everything else on validation images.

    Where there are random views of them, the threshold goes by all views, and all else by one view an image, drawn at
    random, so that an image counts once: decisions are to hold for images taken, scanned and cut a little differently.

    Probabilities are stated for the training images' shares of the classes (validation images are often drawn in equal
    numbers), or for `settings.prevalence`.

    Args:
        train: with what the trained backbone makes of the images.
        val: likewise.
        weight: (1, D) or (C, D), the head's.
        bias: (1,) or (C,).
        classes: their names.
        settings: methods, rule and rates.
    """
    shares = np.bincount(train.targets, minlength=len(classes)) / len(train.targets)
    trained = shares if settings.balance == "none" else np.full(len(classes), 1 / len(classes))
    if settings.prevalence is not None:
        shares = np.array([1 - settings.prevalence, settings.prevalence])
    images, views = val.stages.shape[:2]
    logits = score(val.features[:, :views].reshape(images * views, -1), weight, bias)
    targets = np.repeat(val.targets, views)
    one_each = np.arange(images) * views + np.random.default_rng(settings.seed).integers(views, size=images)
    calibration = fit_calibration(
        logits[one_each],
        val.targets,
        method=settings.calibration,
        shares=shares.tolist(),
        trained=trained.tolist(),
        patients=[sample.patient for sample in val.samples],
        seed=settings.seed,
    )
    probabilities = np.exp(calibrate(logits, calibration))
    weights = (shares / np.maximum(np.bincount(targets, minlength=len(classes)), 1))[targets]
    threshold = (
        choose_threshold(settings.threshold, targets, probabilities[:, 1], weights * len(weights))
        if len(classes) == 2
        else 0.5
    )
    detector = fit_detector(train.stages.reshape(-1, train.stages.shape[-1]))
    far = detector.distance(val.stages.reshape(images * views, -1)[one_each])
    distances = {name: tuple(np.sort(far[val.targets == i]).tolist()) for i, name in enumerate(classes)}
    ood = OODState(settings.false_alarms, distances)
    counts = np.bincount(val.targets, minlength=len(classes))
    notes = [
        f"{counts[i]} validation images of {name} cannot promise an alpha of {settings.alpha:g}: every label "
        f"set holds {name}. It takes {int(np.ceil(1 / settings.alpha - 1))} images, or a larger --alpha."
        for i, name in enumerate(classes)
        if settings.alpha * (counts[i] + 1) < 1
    ]
    if ood.promise() > 2.5 * settings.false_alarms:
        notes.append(
            f"So few validation images ({counts.min()} of a class) let the detector promise {ood.promise():.1%} false "
            f"alarms at best, not {settings.false_alarms:.1%}: that many ordinary images may be called ood."
        )
    return Decisions(
        calibration,
        threshold,
        fit_conformal(val.targets, probabilities[one_each], classes, settings.alpha),
        ood,
        {f"ood.{name}": torch.from_numpy(np.ascontiguousarray(a)) for name, a in detector.arrays().items()},
        tuple(notes),
    )
