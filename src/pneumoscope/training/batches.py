"""Batches: the order, flips and augmentation of an epoch's images are fixed by the seed and the epoch's number.

Of several processes, each makes its share of every batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pneumoscope.datasets.samples import Sample
from pneumoscope.images.augment import Augmentation, augment
from pneumoscope.images.prefetch import prefetch
from pneumoscope.images.prepare import InputSpec
from pneumoscope.inference.features import read_inputs
from pneumoscope.training.distributed import ALONE, Processes

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Draw:
    """How the training images of an epoch are drawn."""

    targets: Ints  # class index of every training image
    batch_size: int  # images in a batch; the last batch may be smaller, or larger by one
    flip: float  # probability of a flip
    sampling: bool  # draw the classes equally often, with replacement
    seed: int  # together with the epoch's number, fixes the draw
    groups: Ints | None = None  # group of every training image, drawn equally often within its class

    @property
    def steps(self) -> int:
        """How many batches an epoch has."""
        return len(self._starts())

    def _starts(self) -> list[int]:
        starts = list(range(0, len(self.targets), self.batch_size))
        if len(starts) > 1 and len(self.targets) - starts[-1] == 1:
            starts.pop()  # a single image has no batch statistics; it joins the batch before
        return starts

    def _weigh(self) -> NDArray[np.float64]:
        """How often each image is drawn, in proportion: every class alike, and every group of a class alike."""
        if self.groups is None:
            return 1 / np.bincount(self.targets)[self.targets]
        pairs = np.stack([self.targets, self.groups])
        kinds, members, counts = np.unique(pairs, axis=1, return_inverse=True, return_counts=True)
        shares: NDArray[np.float64] = 1 / (np.bincount(kinds[0])[self.targets] * counts[members.ravel()])
        return shares

    def epoch(self, number: int) -> Iterator[tuple[Ints, NDArray[np.bool_]]]:
        """Indices and flips of each batch of an epoch."""
        rng = np.random.default_rng([self.seed, number])
        n = len(self.targets)
        if self.sampling:
            weights = self._weigh()
            order = rng.choice(n, n, p=weights / weights.sum())
        else:
            order = rng.permutation(n)
        flips = rng.random(n) < self.flip
        starts = self._starts()
        for start, stop in zip(starts, [*starts[1:], n], strict=True):
            yield order[start:stop], flips[start:stop]


class Batch(NamedTuple):
    """This process's share of a training batch; of a single process, all of it."""

    inputs: Tensor  # float32 (B, ...)
    targets: Tensor  # (B,) class indices
    # B, or 0 if the batch has fewer images than there are processes: every process needs an image to take part
    counted: int
    weight: float  # of its mean loss: the mean over all processes is then that of the whole batch


def _take_share(processes: Processes, batch: Ints) -> tuple[Ints, int, float]:
    """This process's images of a batch, how many of them count, and the weight of their mean loss."""
    own = processes.share(batch)
    return own if len(own) else batch[:1], len(own), len(own) * processes.size / len(batch)


class FeatureBatches:
    """Batches of cached features, for training the head of a frozen backbone.

    `train` is float32 (N, 2, D), features of each image and of its mirror image; `val` is (M, D).
    """

    def __init__(
        self, draw: Draw, train: Floats, val: Floats, val_targets: Ints, device: torch.device,
        processes: Processes = ALONE,
    ) -> None:  # fmt: skip
        self.draw, self.processes = draw, processes
        self._train = torch.from_numpy(train).to(device)
        self._targets = torch.from_numpy(draw.targets).to(device)
        own, own_targets = (processes.share(each) for each in (val, val_targets))
        self._val = torch.from_numpy(own).to(device), torch.from_numpy(own_targets).to(device)

    def training(self, epoch: int) -> Iterator[Batch]:
        """Batches of features (B, D) of an epoch, numbered from 1."""
        for order, flips in self.draw.epoch(epoch):
            places, count, weight = _take_share(self.processes, np.arange(len(order)))
            chosen = torch.from_numpy(order[places])
            views = torch.from_numpy(flips[places].astype(np.int64))
            yield Batch(self._train[chosen, views], self._targets[chosen], count, weight)

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One batch with all validation images of this process."""
        yield self._val


@dataclass(frozen=True)
class ImageBatches:
    """Batches of images, read and augmented ahead of the network by a few threads."""

    draw: Draw  # how an epoch is drawn
    train: Sequence[Sample]  # the training images, in the order of `draw.targets`
    val: Sequence[Sample]  # the validation images
    val_targets: Ints  # (M,) class indices
    spec: InputSpec  # what the network takes
    augmentation: Augmentation  # of training images
    device: torch.device  # where the network is
    processes: Processes = ALONE  # which share the images

    def training(self, epoch: int) -> Iterator[Batch]:
        """Batches of augmented images (B, 3, S, S) of an epoch, numbered from 1."""
        plan = list(self.draw.epoch(epoch))
        order, flips = (np.concatenate(parts) for parts in zip(*plan, strict=True))
        ends = np.cumsum([len(batch) for batch, _ in plan])
        shares = [_take_share(self.processes, places) for places in np.split(np.arange(len(order)), ends[:-1])]

        def read(place: int) -> Floats:
            rng = np.random.default_rng([self.draw.seed, epoch, place])
            change = partial(augment, augmentation=self.augmentation, rng=rng, flip=bool(flips[place]))
            inputs: Floats = read_inputs(self.train[order[place]], self.spec, [change])[0]
            return inputs

        own = np.concatenate([places for places, _, _ in shares]).tolist()
        images = prefetch(read, own, ahead=3 * self.draw.batch_size)
        for places, count, weight in shares:
            yield Batch(*self._to_device(images, self.draw.targets[order[places]]), count, weight)

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of unchanged images (B, 3, S, S) of this process and class indices."""
        size, targets = self.draw.batch_size, self.processes.share(self.val_targets)
        val = self.processes.share(self.val)
        images = prefetch(lambda sample: read_inputs(sample, self.spec)[0], val, ahead=2 * size)
        for start in range(0, len(val), size):
            yield self._to_device(images, targets[start : start + size])

    def _to_device(self, images: Iterator[Floats], targets: Ints) -> tuple[Tensor, Tensor]:
        inputs = torch.from_numpy(np.stack(list(islice(images, len(targets)))))
        return (
            inputs.to(self.device, memory_format=torch.channels_last),
            torch.from_numpy(targets).to(self.device),
        )


Batches: TypeAlias = FeatureBatches | ImageBatches
