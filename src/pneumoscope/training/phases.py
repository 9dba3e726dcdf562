"""The phases of training: first the head on cached features, then perhaps the whole network on images."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from pneumoscope.images.prepare import InputSpec
from pneumoscope.models.classifier import Backbone, Classifier, fold_batchnorms, unfold_batchnorms
from pneumoscope.training.batches import Batches, Draw, FeatureBatches, ImageBatches
from pneumoscope.training.data import Split
from pneumoscope.training.loop import Phase, Row, choose_precision, fit
from pneumoscope.training.settings import Settings


@dataclass(frozen=True)
class Network:
    """What is trained, in place.

    Attributes:
        backbone: inputs -> maps.
        head: features -> logits.
        input: the backbone's.
        device: where to train.
    """

    backbone: Backbone
    head: nn.Linear
    input: InputSpec
    device: torch.device


def run_phases(
    network: Network,
    splits: Mapping[str, Split],
    settings: Settings,
    checkpoints: Path,
    on_epoch: Callable[[Row, int], None],
) -> tuple[list[Row], Row]:
    """Train the head and, if the settings say so, the whole network after it.

    Args:
        network: trained in place.
        splits: `train`, with features of each image and its mirror image, and `val`.
        settings: all of them; the precision is no longer `auto`.
        checkpoints: folder for the checkpoint of each phase.
        on_epoch: called with each row of the history and the maximum number of epochs of its phase.

    Returns:
        The history, and its row for the epoch that was kept.
    """
    network.head.to(network.device)
    optimisation = settings.optimisation
    epochs = optimisation.warmup_epochs if settings.network.train_backbone else optimisation.epochs
    history: list[Row] = []
    best: Row = {"val_loss": math.inf}
    if epochs:
        # Lower precision does not speed up a head on cached features, and early stopping suits it better.
        exact = replace(settings, optimisation=replace(optimisation, precision="float32", schedule="plateau"))
        phase = _make_phase("head", epochs, network, splits["train"], exact, checkpoints, on_epoch)
        history, best = _run_phase(network.head, _make_feature_batches(network, splits, settings), exact, phase)
    if not settings.network.train_backbone:
        return history, best
    batches = _make_image_batches(network, splits, settings)
    epochs = max(optimisation.epochs, math.ceil(optimisation.min_steps / batches.steps))
    phase = _make_phase("finetune", epochs, network, splits["train"], settings, checkpoints, on_epoch)
    later, best = _finetune(network, batches, settings, phase, best)
    return history + later, best


def try_precisions(network: Network, splits: Mapping[str, Split], settings: Settings) -> Literal["float32", "bfloat16"]:
    """Choose the precision for training the whole network with a trial step on the first batch."""
    inputs, targets = next(_make_image_batches(network, splits, settings).training(1))
    return choose_precision(_build_classifier(network, settings), inputs, targets)


def _finetune(network: Network, batches: Batches, settings: Settings, phase: Phase, warm: Row) -> tuple[list[Row], Row]:
    """Train the whole network; keep the head alone if, with a plateau schedule, its validation loss was lower."""
    model = _build_classifier(network, settings)
    before = copy.deepcopy(model.state_dict())
    history, best = _run_phase(model, batches, settings, phase)
    if settings.optimisation.schedule == "plateau" and warm["val_loss"] < best["val_loss"]:
        logging.getLogger("pneumoscope").warning(
            "Training the whole network did not improve the validation loss: only the trained head is kept."
        )
        model.load_state_dict(before)
        best = warm
    if model.backbone is not network.backbone:
        unfold_batchnorms(model.backbone.cpu(), network.backbone.cpu().eval(), network.input.size)
    return history, best


def _run_phase(model: nn.Module, batches: Batches, settings: Settings, phase: Phase) -> tuple[list[Row], Row]:
    """Train, load the weights of the epoch that is kept, and give the history and that epoch's row."""
    result = fit(model, batches, settings, phase)
    model.load_state_dict(result.weights)
    return result.history, result.history[result.best_epoch - 1]


def _make_phase(
    name: str,
    epochs: int,
    network: Network,
    train: Split,
    settings: Settings,
    checkpoints: Path,
    on_epoch: Callable[[Row, int], None],
) -> Phase:
    balance = settings.optimisation.balance
    weights = None if balance == "none" else _balance(train, network)
    return Phase(
        name,
        epochs,
        class_weights=weights if balance == "weights" else None,
        val_class_weights=weights,
        checkpoint=checkpoints / f"{name}.pt",
        on_epoch=lambda row: on_epoch(row, epochs),
    )


def _balance(train: Split, network: Network) -> Tensor:
    """Class weights with which all classes count the same in the loss: n / (C n_c)."""
    counts = np.bincount(train.targets)
    weights = len(train.targets) / (len(counts) * counts)
    return torch.from_numpy(weights.astype(np.float32)).to(network.device)


def _make_draw(train: Split, settings: Settings) -> Draw:
    optimisation = settings.optimisation
    return Draw(
        train.targets,
        optimisation.batch_size,
        settings.augmentation.flip,
        optimisation.balance == "sampling",
        settings.run.seed,
    )


def _make_feature_batches(network: Network, splits: Mapping[str, Split], settings: Settings) -> FeatureBatches:
    train, val = splits["train"], splits["val"]
    return FeatureBatches(_make_draw(train, settings), train.features, val.features[:, 0], val.targets, network.device)


def _make_image_batches(network: Network, splits: Mapping[str, Split], settings: Settings) -> ImageBatches:
    train, val = splits["train"], splits["val"]
    return ImageBatches(
        _make_draw(train, settings),
        train.samples,
        val.samples,
        val.targets,
        network.input,
        settings.augmentation.scale_crop(len(train.samples)),
        network.device,
    )


def _build_classifier(network: Network, settings: Settings) -> Classifier:
    """The network as it is trained; batch norms that keep their statistics are folded into convolutions, for speed."""
    backbone, freeze = network.backbone, settings.network.freeze_batchnorm
    if freeze:
        backbone = fold_batchnorms(backbone.cpu().eval(), network.input.size)
    model = Classifier(backbone, network.head, frozen=False, freeze_batchnorm=freeze)
    return model.to(network.device).to(memory_format=torch.channels_last)
