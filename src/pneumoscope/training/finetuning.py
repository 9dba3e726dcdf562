"""Fine-tunes a model's whole network on a few hundred images at low rates, separately for each fold of patients."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pneumoscope.config import Progress
from pneumoscope.decisions.calibration import Calibration
from pneumoscope.decisions.ood import Detector, fit_mahalanobis
from pneumoscope.errors import DataError, UsageError
from pneumoscope.inference.engines import Engine, TorchEngine
from pneumoscope.inference.features import Extract
from pneumoscope.inference.predictor import compute_logits
from pneumoscope.inference.runtimes import choose_device
from pneumoscope.models.classifier import Backbone, build_head, round_to_half
from pneumoscope.models.model_folder import load_model, stores_half
from pneumoscope.text import counted
from pneumoscope.training.adaptation import Local, Parent, Tuned, Wishes, shift
from pneumoscope.training.adaptation_choice import WEAK_FROM
from pneumoscope.training.adaptation_data import Data
from pneumoscope.training.data import Setup, Split, add_augmented, extract_split
from pneumoscope.training.initial import load_initial
from pneumoscope.training.loop import Row
from pneumoscope.training.phases import run_phases
from pneumoscope.training.settings import resolve_settings

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

NETWORKS = 3  # one for each fold of patients; each learns from the other two thirds
FEWEST_PATIENTS = NETWORKS * WEAK_FROM // (NETWORKS - 1)  # so that those two thirds are enough for weak evidence
FEWEST_IMAGES = 20  # of a class
FEWEST_PER_FOLD = 2  # patients of a class, so that each fold has some to learn from and some to measure on
FEWEST_OF_CLASS = FEWEST_PER_FOLD * NETWORKS  # patients of a class
VALIDATION = 32  # images whose loss is shown; it decides nothing, because the last epoch is kept
REMEDY = "restore it, and adapt again"  # if an image can no longer be read
SETTINGS: dict[str, Any] = {  # what differs from the recipe `finetune`; low rates, few steps, the classes' own shares
    "recipe": "finetune",
    "warmup_epochs": 0,
    "epochs": 4,
    "min_steps": 40,
    "batch_size": 16,
    "lr": 2e-4,
    "backbone_lr": 2e-4,
    "ema": 0.0,
    "balance": "none",
    "precision": "float32",  # so that no timing decides the precision
}


@dataclass(frozen=True, eq=False)
class Readout:
    """What turns the features of a fine-tuned network into logits and distances."""

    weight: Floats  # (1, D) or (C, D), the head's
    bias: Floats  # (1,) or (C,)
    detector: Detector | None  # fitted to the images that the network learned from; None if the model has none


@dataclass(frozen=True, eq=False)
class Network:
    """A fine-tuned network."""

    backbone: Backbone
    engine: Engine  # runs it
    readout: Readout


@dataclass(frozen=True, eq=False)
class CrossTrained:
    """What networks compute of images whose patients they did not learn from."""

    tuned: Tuned  # of N images
    extracts: Sequence[Extract]  # (N,), with the features that each image's network computes
    readouts: Sequence[Readout]  # one for each fold


def load_setup(wishes: Wishes, data: str, model: str, device: str) -> Setup | None:
    """What fine-tuning starts from, or None if it was not requested.

    Raises:
        UsageError: an export, which cannot be trained.
    """
    if not wishes.finetune:
        return None
    given = {**SETTINGS, "path": data, "seed": wishes.seed, "init": model, "device": device}
    settings = resolve_settings(given, {})
    try:
        initial, spec, backbone = load_initial(settings.network)
    except UsageError as problem:
        raise UsageError(problem.message, "finetune") from None
    folder = Path(model)
    description = load_model(folder)
    half = stores_half(folder, description)
    settings = replace(settings, network=replace(settings.network, backbone=spec.name, half_precision=half))
    return Setup(
        settings, (), initial.labels, spec, backbone, description.input, choose_device(device), initial=initial
    )


def cross_train(setup: Setup, parent: Parent, data: Data, wishes: Wishes, progress: Progress) -> CrossTrained:
    """Fine-tune a network for each fold on the images of the other folds, and run it on the images of the fold.

    Args:
        setup: from `load_setup`.
        parent: the model to start from.
        data: N images, with what that model computes of them.
        wishes: seed and prevalence.
        progress: called as `progress(task, done, total)`.

    Raises:
        DataError: too few images or patients, or an image that can no longer be read.
    """
    folds = draw_folds(data.local, parent.classes, wishes.seed)
    found = list(data.extracts)
    logits = np.zeros((len(found), len(parent.bias)))
    distances = np.zeros(len(found))
    readouts = []
    for fold in range(NETWORKS):
        places = np.flatnonzero(folds == fold)
        task = f"Fine-tuning (fold {fold + 1} of {NETWORKS})"
        network = finetune_network(setup, parent, data, wishes, folds != fold, task, progress)
        own, held_out = network.readout, _make_split(data, folds == fold)
        fresh = extract_split(held_out, network.engine, setup.input, remedy=REMEDY)
        for i, place in enumerate(places.tolist()):
            found[place] = replace(found[place], features=fresh.features[i], intermediate=fresh.intermediate[i, 0])
        logits[places] = compute_logits(fresh.features[:, 0], own.weight, own.bias)
        if own.detector is not None:
            distances[places] = own.detector.measure(fresh.intermediate[:, 0])
        readouts.append(own)
    neutral = Calibration(class_fractions=_find_start(parent, data.local, wishes).class_fractions)
    return CrossTrained(Tuned(logits, distances, folds, neutral), found, readouts)


def finetune_network(
    setup: Setup, parent: Parent, data: Data, wishes: Wishes, chosen: NDArray[np.bool_], task: str, progress: Progress
) -> Network:
    """Fine-tune a copy of the network on the chosen images, starting from its calibrated probabilities.

    The calibration becomes part of the head, so that the loss is that of the probabilities that the model states.
    Where the model's weights are stored in half precision, so are these, and they are rounded here. As after training,
    the OOD detector is fitted to the features of the images that the network learned from, and of augmented copies.
    """
    start = _find_start(parent, data.local, wishes)
    train = _make_split(data, chosen)
    shown = np.random.default_rng(wishes.seed).permutation(len(train.samples))[:VALIDATION]
    val = _make_split(data, np.flatnonzero(chosen)[shown])
    own = replace(setup, backbone=copy.deepcopy(setup.backbone))

    def report(row: Row, epochs: int) -> None:
        progress(task, row["epoch"], epochs)
        logging.getLogger("pneumoscope").debug(
            "%s, epoch %d of %d: training loss %.4f", task, row["epoch"], epochs, row["train_loss"]
        )

    with torch.random.fork_rng(devices=[]):
        head = build_head(own.backbone.width, len(parent.classes))
        weight, bias = merge_calibration(parent.weight, parent.bias, start)
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(weight))
            head.bias.copy_(torch.from_numpy(bias))
        run_phases(own, head, {"train": train, "val": val}, None, report)
    backbone, head = own.backbone.cpu().eval(), head.cpu()
    if setup.settings.network.half_precision:
        round_to_half(backbone)
        round_to_half(head)
    engine = TorchEngine(backbone, setup.input.size, setup.device.type)
    detector = None if parent.detector is None else _fit_detector(setup, train, engine, progress)
    weight, bias = (part.detach().numpy().copy() for part in (head.weight, head.bias))
    return Network(backbone, engine, Readout(weight, bias, detector))


def _fit_detector(setup: Setup, train: Split, engine: Engine, progress: Progress) -> Detector:
    split = extract_split(train, engine, setup.input, remedy=REMEDY)
    full = setup.settings.augmentation.scale_crop(len(train.samples))
    augmentations = [full.halve_geometry(), full]
    seen = add_augmented(split, engine, setup.input, augmentations, setup.settings.run.seed, progress).intermediate
    return fit_mahalanobis(seen.reshape(-1, seen.shape[-1]))


def merge_calibration(weight: Floats, bias: Floats, calibrated: Calibration) -> tuple[Floats, Floats]:
    """The head whose own sigmoid or softmax gives the probabilities of another one after its calibration."""
    offset = np.asarray(calibrated.offset or np.zeros(max(2, len(bias))))
    added = offset if len(bias) > 1 else np.array([calibrated.intercept + offset[1] - offset[0]])
    merged: Floats = (calibrated.slope * bias + added).astype(np.float32)
    return (calibrated.slope * weight).astype(np.float32), merged


def draw_folds(local: Local, classes: Sequence[str], seed: int) -> Ints:
    """The fold of each image, (N,): patients stay together, and each class is spread over all folds.

    Raises:
        DataError: too few images or patients.
    """
    counts, folds = np.bincount(local.labels, minlength=len(classes)), _draw(local, len(classes), seed)
    patients = np.array([len(np.unique(local.clusters[local.labels == i])) for i in range(len(classes))])
    cells = [(folds == fold) & (local.labels == i) for fold in range(NETWORKS) for i in range(len(classes))]
    total, fewest = len(np.unique(local.clusters)), min(len(np.unique(local.clusters[cell])) for cell in cells)
    if total < FEWEST_PATIENTS or counts.min() < FEWEST_IMAGES or fewest < FEWEST_PER_FOLD:
        found = ", ".join(
            f"{count} {name} of {counted(int(n), 'patient')}"
            for name, count, n in zip(classes, counts, patients, strict=True)
        )
        raise DataError(
            f"There are {found} to adapt to, {counted(total, 'patient')} in all, as few as {fewest} of a class "
            f"in a fold. Fine-tuning needs at least {FEWEST_PATIENTS} patients, and {FEWEST_IMAGES} images of "
            f"{FEWEST_OF_CLASS} patients of each class, {FEWEST_PER_FOLD} in each of {NETWORKS} folds: fewer cannot "
            "show whether it helps. Add images of other patients, or leave it out.",
            "finetune",
        )
    return folds


def _draw(local: Local, classes: int, seed: int) -> Ints:
    """Divide the patients into folds, (N,). A patient with images of several classes counts for the rarest."""
    rarest = np.argsort(np.bincount(local.labels, minlength=classes))[::-1]
    kinds = np.zeros(int(local.clusters.max()) + 1, np.int64)
    for label in rarest:
        kinds[local.clusters[local.labels == label]] = label
    order = np.random.default_rng(seed).permutation(len(kinds))
    order = order[np.argsort(kinds[order], kind="stable")]
    fold_of = np.zeros(len(kinds), np.int64)
    fold_of[order] = np.arange(len(order)) % NETWORKS
    folds: Ints = fold_of[local.clusters]
    return folds


def describe_training(setup: Setup) -> dict[str, Any]:
    """What a model's lineage records about fine-tuning."""
    settings = setup.settings
    return {
        "folds": NETWORKS,
        "seed": settings.run.seed,
        **asdict(settings.optimisation),
        "augmentation": asdict(settings.augmentation),
    }


def _find_start(parent: Parent, local: Local, wishes: Wishes) -> Calibration:
    """The calibration to start from. Where another prevalence is requested, it is for the shares of these images."""
    start = parent.decisions.calibration
    if wishes.prevalence is None:
        return start
    return shift(start, np.bincount(local.labels, minlength=len(parent.classes)) / len(local.labels))


def _make_split(data: Data, chosen: NDArray[np.bool_] | Ints) -> Split:
    """Some of the images, without features."""
    samples = [data.samples[i] for i in np.arange(len(data.samples))[chosen].tolist()]
    nothing = np.zeros((len(samples), 0, 0), np.float32)
    return Split(samples, data.local.labels[chosen], nothing, nothing)
