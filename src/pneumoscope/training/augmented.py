"""Images as a trained network sees them: as they are, and in random views as another day could have given."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.samples import Sample
from pneumoscope.errors import DataError
from pneumoscope.images.augment import GEOMETRY, Augmentation, augment
from pneumoscope.images.prepare import InputSpec, Pixels, prepare
from pneumoscope.images.read import read_radiograph
from pneumoscope.inference.cache import FeatureCache
from pneumoscope.inference.engines import Engine
from pneumoscope.inference.features import extract_features
from pneumoscope.training.phases import Split, find_augmentation
from pneumoscope.training.settings import Settings

Floats = NDArray[np.float32]


def see_again(
    splits: Mapping[str, Split],
    engine: Engine,
    spec: InputSpec,
    settings: Settings,
    cache: FeatureCache | None,
    progress: Callable[[str, int, int], None],
) -> dict[str, Split]:
    """What a trained backbone makes of the images that decisions are fitted on, and of random views of them.

    In geometry these views go half as far as those of training, which are meant to be harder than anything that will
    come. A training image, from which the detector learns what is ordinary, is seen both ways.

    Args:
        splits: `train` and `val`.
        engine: runs the backbone.
        spec: its input.
        settings: say how many views, how far they may be from the image, and the seed.
        cache: keeps what is made of the images as they are.
        progress: called with what is being done, the number of images done, and of all.
    """
    whole = find_augmentation(settings, len(splits["train"].samples))
    mild = dataclasses.replace(whole, **{name: getattr(whole, name) / 2 for name in GEOMETRY})
    seen = {}
    for name, views in (("train", [mild, whole]), ("val", [mild] * settings.views)):
        seen[name] = describe(splits[name], engine, spec, cache)
        if settings.views:
            tell = functools.partial(progress, "Random views")
            seen[name] = add_views(seen[name], engine, spec, views, settings.seed, tell)
    return seen


def describe(split: Split, engine: Engine, spec: InputSpec, cache: FeatureCache | None = None) -> Split:
    """The same images with what an engine makes of them now.

    Raises:
        DataError: an image cannot be read any more.
    """
    found = list(extract_features(split.samples, engine, spec, cache=cache))
    if faults := [str(one.error) for one in found if one.error]:
        raise DataError(f"{faults[0]} It was read before: put it back, and start again.")
    read = [
        (one.features, one.intermediate[None])
        for one in found
        if one.features is not None and one.intermediate is not None
    ]
    features, intermediate = (np.stack(column) for column in zip(*read, strict=True))
    return dataclasses.replace(split, features=features, intermediate=intermediate)


def add_views(
    split: Split,
    engine: Engine,
    spec: InputSpec,
    augmentations: Sequence[Augmentation],
    seed: int,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Split:
    """Add what an engine makes of random views of each image, as training draws them.

    Args:
        split: with features of the images as they are.
        engine: runs the trained backbone.
        spec: its input.
        augmentations: how far each view of an image may be from it.
        seed: fixes them.
        progress: called with the number of images done, and of all.
    """
    features, intermediate, done, n, count = [], [], 0, len(split.samples), len(augmentations)
    drawn = _draw(split.samples, spec, augmentations, seed)
    while images := list(islice(drawn, max(1, engine.batch_size // count))):
        seen = engine.run(np.concatenate(images))
        features.append(seen.features)
        intermediate.append(seen.intermediate)
        done += len(images)
        progress(done, n)
    return dataclasses.replace(
        split,
        features=np.concatenate([split.features[:, :1], np.concatenate(features).reshape(n, count, -1)], axis=1),
        intermediate=np.concatenate(
            [split.intermediate[:, :1], np.concatenate(intermediate).reshape(n, count, -1)], axis=1
        ),
    )


def _draw(
    samples: Sequence[Sample], spec: InputSpec, augmentations: Sequence[Augmentation], seed: int
) -> Iterator[Floats]:
    """Views (V, 3, S, S) of one image after the other, read ahead by a few threads."""

    def views(place: int) -> Floats:
        rng = np.random.default_rng([seed, 0, place])  # epochs of training are numbered from 1
        flips = [rng.random() < one.flip for one in augmentations]
        image = read_radiograph(samples[place].path, reading=samples[place].reading, min_side=spec.min_side)
        drawn = zip(augmentations, flips, strict=True)

        def view(fitted: Pixels) -> Pixels:
            augmentation, flip = next(drawn)
            return augment(fitted, augmentation, rng, flip)

        return np.stack([prepare(image.pixels, spec, view) for _ in augmentations])

    with ThreadPoolExecutor(max_workers=max(2, (os.cpu_count() or 2) // 2)) as pool:
        ahead: deque[Future[Floats]] = deque()
        for place in range(len(samples)):
            ahead.append(pool.submit(views, place))
            if len(ahead) > 16:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
