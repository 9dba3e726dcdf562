"""A trained network learns from its validation films how to decide: calibration, threshold, label sets, guard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pneumoscope.evaluation.calibration import fit_calibration
from pneumoscope.evaluation.conformal import fit_conformal
from pneumoscope.evaluation.thresholds import choose_threshold
from pneumoscope.inference.decisions import calibrate
from pneumoscope.inference.novelty import fit_guard
from pneumoscope.inference.predictor import score
from pneumoscope.models.bundle import Calibration, Conformal, Novelty
from pneumoscope.training.recipes import Settings
from pneumoscope.training.stages import Split


@dataclass(frozen=True)
class Decisions:
    """What a bundle needs to decide, besides its network.

    Attributes:
        calibration: logits to probabilities.
        threshold: from which probability on the positive class of two is called.
        conformal: label sets.
        novelty: distances of ordinary films.
        arrays: the guard's, by the names that they have among the weights.
        notes: what too few validation films keep from being promised.
    """

    calibration: Calibration
    threshold: float
    conformal: Conformal
    novelty: Novelty
    arrays: dict[str, torch.Tensor]
    notes: tuple[str, ...]


def fit_decisions(
    train: Split, val: Split, weight: NDArray[np.float32], bias: NDArray[np.float32], classes: Sequence[str],
    settings: Settings,
) -> Decisions:  # fmt: skip
    """Fit all of it: the guard on training films, everything else on validation films.

    Where there are random views of them, the threshold goes by all views, and all else by one view a film, drawn at
    random, so that a film counts once: decisions are to hold for films taken, scanned and cut a little differently.

    Probabilities are stated for the training films' shares of the classes (validation films are often drawn in equal
    numbers), or for `settings.prevalence`.

    Args:
        train: with what the trained backbone makes of the films.
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
    films, views = val.stages.shape[:2]
    logits = score(val.features[:, :views].reshape(films * views, -1), weight, bias)
    targets = np.repeat(val.targets, views)
    one_each = np.arange(films) * views + np.random.default_rng(settings.seed).integers(views, size=films)
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
    guard = fit_guard(train.stages.reshape(-1, train.stages.shape[-1]))
    far = guard.distance(val.stages.reshape(films * views, -1)[one_each])
    distances = {name: tuple(np.sort(far[val.targets == i]).tolist()) for i, name in enumerate(classes)}
    novelty = Novelty(settings.false_alarms, distances)
    counts = np.bincount(val.targets, minlength=len(classes))
    notes = [
        f"{counts[i]} validation films of {name} cannot promise an error rate of {settings.error_rate:g}: every label "
        f"set holds {name}. It takes {int(np.ceil(1 / settings.error_rate - 1))} films, or a larger --error-rate."
        for i, name in enumerate(classes)
        if settings.error_rate * (counts[i] + 1) < 1
    ]
    if novelty.promise() > 2.5 * settings.false_alarms:
        notes.append(
            f"So few validation films ({counts.min()} of a class) let the guard promise {novelty.promise():.1%} false "
            f"alarms at best, not {settings.false_alarms:.1%}: that many ordinary films may be called foreign."
        )
    return Decisions(
        calibration,
        threshold,
        fit_conformal(val.targets, probabilities[one_each], classes, settings.error_rate),
        novelty,
        {f"novelty.{name}": torch.from_numpy(np.ascontiguousarray(a)) for name, a in guard.arrays().items()},
        tuple(notes),
    )
