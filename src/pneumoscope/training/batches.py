"""Batches: the order, flips and augmentation of an epoch's images are fixed by the seed and the epoch's number."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pneumoscope.datasets.samples import Sample
from pneumoscope.images.augment import Augmentation, augment
from pneumoscope.images.prepare import InputSpec
from pneumoscope.inference.features import read_input

Ints = NDArray[np.int64]


class Batches(Protocol):
    """Training batches by epoch, and validation batches that are always the same."""

    @property
    def steps(self) -> int:
        """How many batches an epoch has."""

    def training(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of (inputs, class indices) of one epoch, numbered from 1."""

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of (inputs, class indices)."""


@dataclass(frozen=True)
class Draw:
    """How an epoch is drawn.

    Attributes:
        targets: class index of every training image.
        batch_size: images a batch; the last one may be smaller, or larger by one.
        flip: probability of a flip.
        sampling: draw the classes equally often, with replacement.
        seed: fixes the draw, together with the epoch.
    """

    targets: Ints
    batch_size: int
    flip: float
    sampling: bool
    seed: int

    @property
    def steps(self) -> int:
        """How many batches an epoch has."""
        return len(self._starts())

    def _starts(self) -> list[int]:
        starts = list(range(0, len(self.targets), self.batch_size))
        if len(starts) > 1 and len(self.targets) - starts[-1] == 1:
            starts.pop()  # one image alone has no batch statistics; it goes with the batch before
        return starts

    def epoch(self, number: int) -> Iterator[tuple[Ints, NDArray[np.bool_]]]:
        """Indices and flips of each batch of an epoch."""
        rng = np.random.default_rng([self.seed, number])
        n = len(self.targets)
        if self.sampling:
            counts = np.bincount(self.targets)
            chances = 1 / counts[self.targets]
            order = rng.choice(n, n, p=chances / chances.sum())
        else:
            order = rng.permutation(n)
        flips = rng.random(n) < self.flip
        starts = self._starts()
        for start, stop in zip(starts, [*starts[1:], n], strict=True):
            yield order[start:stop], flips[start:stop]


class FeatureBatches:
    """Batches of cached features: a frozen backbone gives an image and its mirror image one vector each.

    Args:
        draw: how an epoch is drawn.
        train: float32 (N, 2, D), features of the image and of its mirror image.
        val: float32 (M, D).
        val_targets: (M,) class indices.
        device: where the head is.
    """

    def __init__(
        self, draw: Draw, train: NDArray[np.float32], val: NDArray[np.float32], val_targets: Ints, device: torch.device
    ) -> None:
        self._draw = draw
        self._train = torch.from_numpy(train).to(device)
        self._targets = torch.from_numpy(draw.targets).to(device)
        self._val = torch.from_numpy(val).to(device), torch.from_numpy(val_targets).to(device)

    @property
    def steps(self) -> int:
        """How many batches an epoch has."""
        return self._draw.steps

    def training(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of features (B, D) and class indices."""
        for order, flips in self._draw.epoch(epoch):
            chosen = torch.from_numpy(order)
            yield self._train[chosen, torch.from_numpy(flips.astype(np.int64))], self._targets[chosen]

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One batch with all of it."""
        yield self._val


class RadiographBatches:
    """Batches of radiographs, read and augmented ahead of the network by a few threads.

    Args:
        draw: how an epoch is drawn.
        train: the training images, in the order of `draw.targets`.
        val: the validation images.
        val_targets: (M,) class indices.
        spec: what the network takes.
        augmentation: the random views of training.
        device: where the network is.
    """

    def __init__(
        self,
        draw: Draw,
        train: Sequence[Sample],
        val: Sequence[Sample],
        val_targets: Ints,
        spec: InputSpec,
        augmentation: Augmentation,
        device: torch.device,
    ) -> None:
        self._draw = draw
        self._train = train
        self._val = val
        self._val_targets = val_targets
        self._spec = spec
        self._augmentation = augmentation
        self._device = device

    @property
    def steps(self) -> int:
        """How many batches an epoch has."""
        return self._draw.steps

    def training(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of random views (B, 3, S, S) and class indices."""

        def view(index: int, flip: bool, place: int) -> NDArray[np.float32]:
            rng = np.random.default_rng([self._draw.seed, epoch, place])
            return read_input(
                self._train[index], self._spec, lambda image: augment(image, self._augmentation, rng, flip)
            )

        def jobs() -> Iterator[tuple[Ints, list[tuple[int, bool, int]]]]:
            place = 0
            for order, flips in self._draw.epoch(epoch):
                yield order, [(int(i), bool(f), place + k) for k, (i, f) in enumerate(zip(order, flips, strict=True))]
                place += len(order)

        with ThreadPoolExecutor(max_workers=max(2, (os.cpu_count() or 2) // 2)) as pool:
            planned = jobs()
            ahead = deque((order, [pool.submit(view, *job) for job in batch]) for order, batch in islice(planned, 3))
            while ahead:
                order, futures = ahead.popleft()
                inputs = np.stack([future.result() for future in futures])
                ahead.extend((order, [pool.submit(view, *job) for job in batch]) for order, batch in islice(planned, 1))
                yield self._to_device(inputs), torch.from_numpy(self._draw.targets[order]).to(self._device)

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of images as they are, (B, 3, S, S), and class indices."""
        size = self._draw.batch_size
        with ThreadPoolExecutor(max_workers=2) as pool:
            for start in range(0, len(self._val), size):
                images = pool.map(lambda sample: read_input(sample, self._spec), self._val[start : start + size])
                yield (
                    self._to_device(np.stack(list(images))),
                    torch.from_numpy(self._val_targets[start : start + size]).to(self._device),
                )

    def _to_device(self, inputs: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(inputs)).to(self._device, memory_format=torch.channels_last)
