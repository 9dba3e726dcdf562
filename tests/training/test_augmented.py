"""Features of augmented copies, on which decisions are fitted."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pneumoscope.datasets.samples import Sample
from pneumoscope.errors import DataError
from pneumoscope.images.augment import Augmentation
from pneumoscope.images.prepare import InputSpec
from pneumoscope.inference.engines import Activations
from pneumoscope.models.backbones import find_backbone, load_backbone
from pneumoscope.training.data import Setup, Split, add_augmented, extract_again, extract_split
from pneumoscope.training.settings import Settings, resolve_settings

INPUT = InputSpec(32, mean=(0.0,) * 3, std=(1.0,) * 3, fit="squash")


class PixelEngine:
    """An engine whose features are the pixels of its input, four by four; the intermediate feature is their mean."""

    fingerprint = "pixels"
    batch_size = 4
    width = 16

    def run(self, inputs: NDArray[np.float32], maps: bool = False) -> Activations:
        pixels = inputs[:, 0, ::8, ::8].reshape(len(inputs), -1)
        return Activations(pixels, pixels.mean(1, keepdims=True))


ENGINE = PixelEngine()


def settings(**changes: object) -> Settings:
    return resolve_settings({"path": "images", "recipe": "best", "flip": 0, **changes}, {})


def setup(**changes: object) -> Setup:
    """A setup of which only settings and input matter here."""
    spec = find_backbone("efficientnet_lite0")
    return Setup(settings(**changes), [], ("NORMAL",), spec, load_backbone(spec), INPUT, torch.device("cpu"))


def split_of(paths: list[Path]) -> Split:
    nothing = np.zeros((len(paths), 1, 0), np.float32)
    return Split([Sample(path, "NORMAL") for path in paths], np.zeros(len(paths), np.int64), nothing, nothing)


def augmented(paths: list[Path], augmentations: list[Augmentation], seed: int) -> NDArray[np.float32]:
    """Features of images and of copies augmented in a given way."""
    return add_augmented(extract_split(split_of(paths), ENGINE, INPUT), ENGINE, INPUT, augmentations, seed).features


@pytest.fixture
def paths(images: Path) -> list[Path]:
    return sorted((images / "train").rglob("*.png"))[:9]


def test_copies_augmented_by_nothing_have_the_features_of_their_image(paths: list[Path]) -> None:
    plain = extract_split(split_of(paths), ENGINE, INPUT)
    copied = add_augmented(plain, ENGINE, INPUT, [Augmentation(flip=0)] * 3, seed=1)
    assert copied.features.shape == (9, 4, 16)
    np.testing.assert_array_equal(copied.features, np.repeat(plain.features[:, :1], 4, axis=1))
    np.testing.assert_array_equal(copied.intermediate, np.repeat(plain.intermediate[:, :1], 4, axis=1))
    assert len(np.unique(plain.features[:, 0], axis=0)) == 9


def test_the_seed_fixes_the_copies_of_an_image(paths: list[Path]) -> None:
    first, same, other = (augmented(paths, [Augmentation(flip=0, brightness=0.2)] * 2, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert not np.allclose(first[:, 1:], other[:, 1:])
    assert not np.allclose(first[:, 1], first[:, 2])


def test_training_images_get_two_copies_and_validation_images_as_many_as_are_set(paths: list[Path]) -> None:
    splits = {"train": split_of(paths[:5]), "val": split_of(paths[5:])}
    again = extract_again(setup(augmented_copies=3), splits, ENGINE, None, lambda *_: None)
    assert (again["train"].features.shape[1], again["val"].features.shape[1]) == (3, 4)
    plain = extract_again(setup(augmented_copies=0), splits, ENGINE, None, lambda *_: None)
    assert (plain["train"].features.shape[1], plain["val"].features.shape[1]) == (1, 1)


@pytest.mark.parametrize(
    ("name", "amount", "half"), [("crop", 0.3, True), ("stretch", 0.7, True), ("gamma", 0.3, False)]
)
def test_validation_copies_have_half_the_geometry_and_all_of_the_rest(
    name: str, amount: float, half: bool, paths: list[Path]
) -> None:
    amounts: dict[str, Any] = {field.name: 0 for field in dataclasses.fields(Augmentation)} | {name: amount}
    splits = {"train": split_of(paths[:1]), "val": split_of(paths)}
    again = extract_again(setup(augmented_copies=4, **amounts), splits, ENGINE, None, lambda *_: None)["val"].features
    expected = Augmentation(**amounts | {name: amount / 2 if half else amount})
    np.testing.assert_array_equal(again, augmented(paths, [expected] * 4, seed=0))
    assert not np.allclose(again[:, 1:], again[:, :1])


def test_the_ood_detector_learns_from_a_mild_copy_and_from_one_as_in_training(paths: list[Path]) -> None:
    chosen = setup(gamma=0, rotate=10.0)
    splits = {"train": split_of(paths), "val": split_of(paths[:1])}
    again = extract_again(chosen, splits, ENGINE, None, lambda *_: None)["train"].features
    full = chosen.settings.augmentation.scale_crop(len(paths))
    np.testing.assert_array_equal(again, augmented(paths, [full.halve_geometry(), full], seed=0))


@pytest.mark.parametrize(("images", "crop"), [(1, 0.00015), (200, 0.03), (2000, 0.3), (5000, 0.3)])
def test_few_training_images_are_cropped_less(images: int, crop: float) -> None:
    assert settings(full_crop_from=2000).augmentation.scale_crop(images).crop == pytest.approx(crop)
    assert settings(full_crop_from=0).augmentation.scale_crop(images).crop == 0.3


def test_an_image_that_can_no_longer_be_read_is_named(paths: list[Path], tmp_path: Path) -> None:
    gone = Path(shutil.copy(paths[0], tmp_path / "gone.png"))
    split = split_of([*paths[:2], gone])
    gone.unlink()
    with pytest.raises(DataError, match=r"gone\.png.*read before"):
        extract_split(split, ENGINE, INPUT)
