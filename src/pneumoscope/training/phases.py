"""What is trained, and in which order: the head on cached features, then perhaps the whole network."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pneumoscope.datasets.samples import Sample
from pneumoscope.images.augment import Augmentation
from pneumoscope.images.prepare import InputSpec
from pneumoscope.models.classifier import Backbone, Classifier, fold_batchnorms, unfold_batchnorms
from pneumoscope.training.data import Batches, Draw, FeatureBatches, RadiographBatches
from pneumoscope.training.loop import choose_precision, fit
from pneumoscope.training.settings import Settings


@dataclass(frozen=True)
class Split:
    """The readable images of a split.

    Attributes:
        samples: N images.
        targets: (N,) class indices.
        features: float32 (N, V, D), of the image as it is and perhaps of its mirror image or of random views.
        intermediate: float32 (N, W, E), what the OOD detector looks at, of the image and of the same random views.
    """

    samples: Sequence[Sample]
    targets: NDArray[np.int64]
    features: NDArray[np.float32]
    intermediate: NDArray[np.float32]


@dataclass(frozen=True)
class Network:
    """What is trained, in place: `backbone` and `head`, for so many `classes`, with `input` on `device`."""

    backbone: Backbone
    head: nn.Linear
    classes: int
    input: InputSpec
    device: torch.device


@dataclass(frozen=True)
class Stages:
    """The stages of a run.

    Attributes:
        network: what is trained.
        train: training images, with the features of two views.
        val: validation images.
        checkpoints: folder of the checkpoints, one a stage.
        on_epoch: called with each row of the history and the stage's number of epochs.
    """

    network: Network
    train: Split
    val: Split
    checkpoints: Path
    on_epoch: Callable[[Mapping[str, Any], int], None]

    def run(self, settings: Settings) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Train the head, or warm it up and then train all; give the history and the row of the epoch kept."""
        network = self.network
        network.head.to(network.device)
        # A head on cached features gains nothing from less precision, and knows best itself when it is done.
        exact = dataclasses.replace(settings, precision="float32", schedule="plateau")
        if not settings.train_backbone:
            return self._run_stage("head", network.head, self._features(settings), exact, settings.epochs)
        history: list[dict[str, Any]] = []
        warm: dict[str, Any] = {"val_loss": math.inf}
        if settings.warmup_epochs:
            history, warm = self._run_stage(
                "head", network.head, self._features(settings), exact, settings.warmup_epochs
            )
        model = self._classifier(settings)
        warmed_up = copy.deepcopy(model.state_dict())
        images = self._images(settings)
        epochs = max(settings.epochs, math.ceil(settings.min_steps / images.steps))
        later, best = self._run_stage("finetune", model, images, settings, epochs)
        if settings.schedule == "plateau" and warm["val_loss"] < best["val_loss"]:
            logging.getLogger("pneumoscope").warning(
                "Training all layers did not improve on the head alone, which is the model."
            )
            model.load_state_dict(warmed_up)
            best = warm
        if model.backbone is not network.backbone:
            unfold_batchnorms(model.backbone.cpu(), network.backbone.cpu().eval(), network.input.size)
        return history + later, best

    def choose_precision(self, settings: Settings) -> Literal["float32", "bfloat16"]:
        """Resolve `auto` with a trial step on the first batch."""
        if settings.precision != "auto":
            return settings.precision
        inputs, targets = next(self._images(settings).training(1))
        return choose_precision(self._classifier(settings), inputs, targets, settings)

    def _run_stage(
        self, stage: str, model: nn.Module, batches: Batches, settings: Settings, epochs: int
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        even = None if settings.balance == "none" else self._even_weights()
        result = fit(
            model,
            batches,
            settings,
            stage=stage,
            epochs=epochs,
            class_weights=even if settings.balance == "weights" else None,
            val_class_weights=even,
            checkpoint=self.checkpoints / f"{stage}.pt",
            on_epoch=lambda row: self.on_epoch(row, epochs),
        )
        model.load_state_dict(result.state)
        return result.history, result.history[result.best_epoch - 1]

    def _draw(self, settings: Settings) -> Draw:
        return Draw(
            self.train.targets, settings.batch_size, settings.flip, settings.balance == "sampling", settings.seed
        )

    def _features(self, settings: Settings) -> FeatureBatches:
        return FeatureBatches(
            self._draw(settings), self.train.features, self.val.features[:, 0], self.val.targets, self.network.device
        )

    def _images(self, settings: Settings) -> RadiographBatches:
        return RadiographBatches(
            self._draw(settings),
            self.train.samples,
            self.val.samples,
            self.val.targets,
            self.network.input,
            find_augmentation(settings, len(self.train.samples)),
            self.network.device,
        )

    def _classifier(self, settings: Settings) -> Classifier:
        """The network as it is trained: batch norms that keep their statistics are folded, which saves time."""
        network = self.network
        backbone = network.backbone
        if settings.train_backbone and settings.freeze_batchnorm:
            backbone = fold_batchnorms(backbone.cpu().eval(), network.input.size)
        model = Classifier(
            backbone,
            network.head,
            frozen=not settings.train_backbone,
            freeze_batchnorm=settings.freeze_batchnorm,
        )
        return model.to(network.device).to(memory_format=torch.channels_last)

    def _even_weights(self) -> Tensor:
        """Weights with which every class counts the same in the loss: n / (C n_c)."""
        counts = np.bincount(self.train.targets, minlength=self.network.classes)
        weights = len(self.train.targets) / (self.network.classes * counts)
        return torch.from_numpy(weights.astype(np.float32)).to(self.network.device)


def find_augmentation(settings: Settings, images: int) -> Augmentation:
    """The random views that settings ask for with so many training images."""
    asked = Augmentation(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(Augmentation)})
    return dataclasses.replace(asked, crop=asked.crop * min(1, images / max(settings.crop_images, 1)))
