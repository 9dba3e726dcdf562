"""The phases of training: first the head on cached features, then perhaps the whole network on images."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from pneumoscope.models.classifier import Classifier, fold_batchnorms, unfold_batchnorms
from pneumoscope.training.batches import Batches, Draw, FeatureBatches, ImageBatches
from pneumoscope.training.data import Setup, Split
from pneumoscope.training.loop import Phase, Row, choose_precision, fit
from pneumoscope.training.settings import Settings


@dataclass(frozen=True)
class Trained:
    """A trained network."""

    head: nn.Linear  # its last layer; the backbone is that of the setup, trained in place
    history: Sequence[Row]  # a row for each epoch
    best: Row  # the row of the epoch that was kept
    graph: bytes | None  # the backbone in ONNX, if it can be written so


def run_phases(
    setup: Setup,
    head: nn.Linear,
    splits: Mapping[str, Split],
    checkpoints: Path | None,
    on_epoch: Callable[[Row, int], None],
) -> tuple[list[Row], Row]:
    """Train the head and, if the settings say so, the whole network after it, in place.

    Training images have features of themselves and of their mirror images. Each phase has a checkpoint in that folder,
    if there is one; `on_epoch` is called with each row of the history and the maximum number of epochs of its phase.

    Returns:
        The history, and its row for the epoch that was kept.
    """
    head.to(setup.device)
    settings, optimisation = setup.settings, setup.settings.optimisation
    make_phase = partial(_make_phase, setup, splits["train"], checkpoints, on_epoch)
    epochs = optimisation.warmup_epochs if settings.network.train_backbone else optimisation.epochs
    history: list[Row] = []
    best: Row = {"val_loss": math.inf}
    if epochs:
        # Lower precision does not speed up a head on cached features, and early stopping suits it better.
        exact = replace(settings, optimisation=replace(optimisation, precision="float32", schedule="plateau"))
        history, best = _run_phase(head, _make_feature_batches(setup, splits), exact, make_phase("head", epochs))
    if not settings.network.train_backbone:
        return history, best
    batches = _make_image_batches(setup, splits)
    epochs = max(optimisation.epochs, math.ceil(optimisation.min_steps / batches.draw.steps))
    later, best = _finetune(setup, head, batches, make_phase("finetune", epochs), best)
    return history + later, best


def try_precisions(setup: Setup, head: nn.Linear, splits: Mapping[str, Split]) -> Literal["float32", "bfloat16"]:
    """Choose the precision for training the whole network with a trial step on the first batch."""
    batch = next(_make_image_batches(setup, splits).training(1))
    return choose_precision(_build_classifier(setup, head), batch.inputs, batch.targets)


def _finetune(setup: Setup, head: nn.Linear, batches: ImageBatches, phase: Phase, warm: Row) -> tuple[list[Row], Row]:
    """Train the whole network; keep the head alone if, with a plateau schedule, its validation loss was lower."""
    model = _build_classifier(setup, head)
    before = copy.deepcopy(model.state_dict())
    history, best = _run_phase(model, batches, setup.settings, phase)
    if setup.settings.optimisation.schedule == "plateau" and warm["val_loss"] < best["val_loss"]:
        logging.getLogger("pneumoscope").warning(
            "Training the whole network did not improve the validation loss: only the trained head is kept."
        )
        model.load_state_dict(before)
        best = warm
    if model.backbone is not setup.backbone:
        unfold_batchnorms(model.backbone.cpu(), setup.backbone.cpu().eval(), setup.input.size)
    return history, best


def _run_phase(model: nn.Module, batches: Batches, settings: Settings, phase: Phase) -> tuple[list[Row], Row]:
    """Train, load the weights of the epoch that is kept, and give the history and that epoch's row."""
    result = fit(model, batches, settings, phase)
    model.load_state_dict(result.weights)
    return result.history, result.history[result.best_epoch - 1]


def _make_phase(
    setup: Setup, train: Split, checkpoints: Path | None, on_epoch: Callable[[Row, int], None], name: str, epochs: int
) -> Phase:
    balance, counts = setup.settings.optimisation.balance, np.bincount(train.targets)
    # With these weights, n / (C n_c), all classes count the same in the loss.
    even = torch.from_numpy((len(train.targets) / (len(counts) * counts)).astype(np.float32)).to(setup.device)
    return Phase(
        name,
        epochs,
        class_weights=even if balance == "weights" else None,
        val_class_weights=None if balance == "none" else even,
        checkpoint=None if checkpoints is None else checkpoints / f"{name}.pt",
        on_epoch=lambda row: on_epoch(row, epochs),
    )


def _make_draw(setup: Setup, train: Split) -> Draw:
    settings, optimisation = setup.settings, setup.settings.optimisation
    sampling = optimisation.balance == "sampling"
    groups = None
    if setup.groups is not None:
        groups = np.unique([setup.groups[sample.path] for sample in train.samples], return_inverse=True)[1]
    flip, seed = settings.augmentation.flip, settings.run.seed
    return Draw(train.targets, optimisation.batch_size, flip, sampling, seed, groups)


def _make_feature_batches(setup: Setup, splits: Mapping[str, Split]) -> FeatureBatches:
    train, val = splits["train"], splits["val"]
    draw = _make_draw(setup, train)
    return FeatureBatches(draw, train.features, val.features[:, 0], val.targets, setup.device, setup.processes)


def _make_image_batches(setup: Setup, splits: Mapping[str, Split]) -> ImageBatches:
    train, val = splits["train"], splits["val"]
    augmentation = setup.settings.augmentation.scale_crop(len(train.samples))
    return ImageBatches(
        _make_draw(setup, train), train.samples, val.samples, val.targets, setup.input, augmentation, setup.device,
        setup.processes,
    )  # fmt: skip


def _build_classifier(setup: Setup, head: nn.Linear) -> Classifier:
    """The network as it is trained; batch norms that keep their statistics are folded into convolutions, for speed."""
    backbone, freeze = setup.backbone, setup.settings.network.freeze_batchnorm
    if freeze:
        backbone = fold_batchnorms(backbone.cpu().eval(), setup.input.size)
    model = Classifier(backbone, head, frozen=False, freeze_batchnorm=freeze)
    return model.to(setup.device).to(memory_format=torch.channels_last)
