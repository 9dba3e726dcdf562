from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pneumoscope.datasets.samples import Sample
from pneumoscope.errors import DataError
from pneumoscope.images.augment import GEOMETRY, Augmentation
from pneumoscope.images.prepare import InputSpec
from pneumoscope.inference.engines import Activations
from pneumoscope.training.augmented import add_views, describe, see_again
from pneumoscope.training.phases import Split, find_augmentation
from pneumoscope.training.settings import Settings, resolve_settings

LOOK = InputSpec(32, mean=(0.0,) * 3, std=(1.0,) * 3, fit="squash")


class Eye:
    """An engine whose features are the pixels that it sees, four by four, and whose stages are their mean."""

    fingerprint = "eye"
    batch_size = 4
    width = 16

    def run(self, inputs: NDArray[np.float32], maps: bool = False) -> Activations:
        seen = inputs[:, 0, ::8, ::8].reshape(len(inputs), -1)
        return Activations(seen, None, seen.mean(1, keepdims=True))


def settings(**changes: object) -> Settings:
    return resolve_settings({"data": "images", "recipe": "best", "flip": 0, **changes}, {})


def split_of(paths: list[Path]) -> Split:
    nothing = np.zeros((len(paths), 1, 0), np.float32)
    return Split([Sample(path, "NORMAL") for path in paths], np.zeros(len(paths), np.int64), nothing, nothing)


@pytest.fixture
def paths(images: Path) -> list[Path]:
    return sorted((images / "train").rglob("*.png"))[:9]


def test_views_of_nothing_are_the_image_beside_which_they_stand(paths: list[Path]) -> None:
    plain = describe(split_of(paths), Eye(), LOOK)
    seen = add_views(plain, Eye(), LOOK, [Augmentation(flip=0)] * 3, seed=1)
    assert seen.features.shape == (9, 4, 16)
    np.testing.assert_array_equal(seen.features, np.repeat(plain.features[:, :1], 4, axis=1))
    np.testing.assert_array_equal(seen.stages, np.repeat(plain.stages[:, :1], 4, axis=1))
    assert len(np.unique(plain.features[:, 0], axis=0)) == 9


def test_a_view_comes_from_the_seed_and_the_image_s_place(paths: list[Path]) -> None:
    plain = describe(split_of(paths), Eye(), LOOK)
    one, same, other = (
        add_views(plain, Eye(), LOOK, [Augmentation(flip=0, brightness=0.2)] * 2, seed).features for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one[:, 1:], other[:, 1:])
    assert not np.allclose(one[:, 1], one[:, 2])


def test_training_images_get_two_views_and_validation_images_as_many_as_are_asked_for(paths: list[Path]) -> None:
    splits = {"train": split_of(paths[:5]), "val": split_of(paths[5:])}
    seen = see_again(splits, Eye(), LOOK, settings(views=3), None, lambda *_: None)
    assert (seen["train"].features.shape[1], seen["val"].features.shape[1]) == (3, 4)
    plain = see_again(splits, Eye(), LOOK, settings(views=0), None, lambda *_: None)
    assert (plain["train"].features.shape[1], plain["val"].features.shape[1]) == (1, 1)


def test_decisions_are_made_on_half_the_geometry_and_all_the_rest(paths: list[Path]) -> None:
    still = {"rotate", "shift", "zoom", "stretch", "crop", "brightness", "contrast", "gamma", "blur", "noise",
             "sharpen", "compress"}  # fmt: skip
    for name, amount, half in (("crop", 0.3, True), ("stretch", 0.7, True), ("gamma", 0.3, False)):
        chosen = settings(views=4, crop_images=0, **{**dict.fromkeys(still, 0.0), name: amount})
        splits = {"train": split_of(paths[:1]), "val": split_of(paths)}
        seen = see_again(splits, Eye(), LOOK, chosen, None, lambda *_: None)["val"]
        expected = Augmentation(flip=0, **{name: amount / 2 if half else amount})
        by_hand = add_views(describe(split_of(paths), Eye(), LOOK), Eye(), LOOK, [expected] * 4, chosen.seed)
        np.testing.assert_array_equal(seen.features, by_hand.features)
        assert not np.allclose(seen.features[:, 1:], seen.features[:, :1])


def test_the_detector_learns_from_a_mild_view_and_from_one_as_far_as_those_of_training(paths: list[Path]) -> None:
    chosen = settings(gamma=0, rotate=10.0)
    splits = {"train": split_of(paths), "val": split_of(paths[:1])}
    seen = see_again(splits, Eye(), LOOK, chosen, None, lambda *_: None)["train"]
    whole = find_augmentation(chosen, len(paths))
    mild = dataclasses.replace(whole, **{name: getattr(whole, name) / 2 for name in GEOMETRY})
    by_hand = add_views(describe(split_of(paths), Eye(), LOOK), Eye(), LOOK, [mild, whole], chosen.seed)
    np.testing.assert_array_equal(seen.features, by_hand.features)


@pytest.mark.parametrize(("images", "crop"), [(1, 0.00015), (200, 0.03), (2000, 0.3), (5000, 0.3)])
def test_few_images_are_cropped_less(images: int, crop: float) -> None:
    assert find_augmentation(settings(crop_images=2000), images).crop == pytest.approx(crop)
    assert find_augmentation(settings(crop_images=0), images).crop == 0.3


def test_an_image_that_cannot_be_read_any_more_is_named(paths: list[Path], tmp_path: Path) -> None:
    gone = Path(shutil.copy(paths[0], tmp_path / "gone.png"))
    split = split_of([*paths[:2], gone])
    gone.unlink()
    with pytest.raises(DataError, match=r"gone\.png.*read before"):
        describe(split, Eye(), LOOK)
