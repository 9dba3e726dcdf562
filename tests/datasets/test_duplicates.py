"""Near-duplicates: copies are found whatever was done to them, other images are not, and pairs become groups."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pneumoscope.datasets.duplicates import Pair, find_near_duplicates, group_pairs
from pneumoscope.datasets.phantoms import draw_phantom
from pneumoscope.errors import UsageError
from pneumoscope.images.hash import SIDE, Vectors, hash_pixels
from pneumoscope.images.prepare import Pixels
from pneumoscope.images.read import read_pixels

IMAGES = 24  # of 12 simulated patients, who have two images each


@pytest.fixture(scope="module")
def pictures() -> list[Pixels]:
    return [draw_phantom(i, pneumonia=i % 3 == 0, patient=i // 2, size=192).pixels for i in range(IMAGES)]


@pytest.fixture(scope="module")
def hashes(pictures: list[Pixels]) -> Vectors:
    return np.stack([hash_pixels(pixels) for pixels in pictures])


def to_image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(np.rint(pixels * 255).astype(np.uint8))


def save_as_jpeg(pixels: Pixels, quality: int) -> Pixels:
    file = io.BytesIO()
    to_image(pixels).save(file, "JPEG", quality=quality)
    return read_pixels(file.getvalue())


def resize(pixels: Pixels, width: float, height: float) -> Pixels:
    sides = round(pixels.shape[1] * width), round(pixels.shape[0] * height)
    return np.asarray(to_image(pixels).resize(sides, Image.Resampling.BICUBIC), np.float32) / np.float32(255)


def crop(pixels: Pixels, top: float, bottom: float, left: float, right: float) -> Pixels:
    rows, columns = pixels.shape
    return pixels[round(top * rows) : round((1 - bottom) * rows), round(left * columns) : round((1 - right) * columns)]


COPIES: dict[str, Callable[[Pixels], Pixels]] = {
    "saved again": lambda image: image.copy(),
    "16 bits": lambda image: (np.rint(image * 65535) / 65535).astype(np.float32),
    "JPEG 95": lambda image: save_as_jpeg(image, 95),
    "JPEG 50": lambda image: save_as_jpeg(image, 50),
    "70%": lambda image: resize(image, 0.7, 0.7),
    "twice as large": lambda image: resize(image, 2, 2),
    "squashed": lambda image: resize(image, 0.6, 1),
    "brighter": lambda image: np.clip(image + np.float32(0.1), 0, 1),
    "less contrast": lambda image: image * np.float32(0.6) + np.float32(0.2),
    "gamma 0.8": lambda image: image ** np.float32(0.8),
    "gamma 1.25": lambda image: image ** np.float32(1.25),
    "cropped by 3%": lambda image: crop(image, 0.03, 0.03, 0.03, 0.03),
    "centre crop": lambda image: crop(image, 0.0625, 0.0625, 0.2, 0.2),
    "letterboxed": lambda image: np.pad(image, ((40, 40), (0, 0))),
}


@pytest.mark.parametrize("change", COPIES)
def test_a_copy_is_paired_with_its_image_and_with_no_other(
    change: str, pictures: list[Pixels], hashes: Vectors
) -> None:
    copies = np.stack([hash_pixels(COPIES[change](image)) for image in pictures])
    pairs = find_near_duplicates(np.concatenate([hashes, copies]))
    assert [(pair.first, pair.second) for pair in pairs] == [(i, i + IMAGES) for i in range(IMAGES)]
    assert all(0.96 <= pair.similarity <= 1 for pair in pairs)


def test_a_crop_of_one_side_is_nearly_always_found(pictures: list[Pixels], hashes: Vectors) -> None:
    copies = np.stack([hash_pixels(crop(image, 0, 0, 0.03, 0)) for image in pictures])
    pairs = {(pair.first, pair.second) for pair in find_near_duplicates(np.concatenate([hashes, copies]))}
    assert pairs <= {(i, i + IMAGES) for i in range(IMAGES)}
    assert len(pairs) >= IMAGES - 2


def test_other_images_of_a_patient_and_mirror_images_are_no_duplicates(hashes: Vectors) -> None:
    assert find_near_duplicates(np.concatenate([hashes, hashes[:, :, ::-1]])) == []


def test_without_crops_whole_images_are_found_and_crops_are_not(pictures: list[Pixels], hashes: Vectors) -> None:
    copies = np.stack([hash_pixels(COPIES["JPEG 95"](pictures[0])), hash_pixels(COPIES["centre crop"](pictures[1]))])
    pairs = find_near_duplicates(np.concatenate([hashes, copies]), crops=False)
    assert [(pair.first, pair.second) for pair in pairs] == [(0, IMAGES)]


def test_the_search_crosses_its_blocks(hashes: Vectors) -> None:
    noise = np.random.default_rng(0).random((2500, SIDE, SIDE), np.float32)
    noise[[3, 2400, 1100]] = hashes[[0, 0, 0]]
    pairs = find_near_duplicates(noise, crops=False)
    assert [(pair.first, pair.second) for pair in pairs] == [(3, 1100), (3, 2400)]  # which connect all three


@pytest.mark.parametrize("change", [0.0, 0.004, 0.01])
def test_many_look_alikes_form_one_group_and_hide_no_other(change: float, hashes: Vectors) -> None:
    rng = np.random.default_rng(0)
    faint = np.kron(rng.standard_normal((150, 12, 12)), np.ones((4, 4))).astype(np.float32)
    images = np.concatenate([hashes[1:3], hashes[0] + np.float32(change) * faint, hashes[1:3] * np.float32(0.8)])
    pairs = find_near_duplicates(images)
    groups = group_pairs([(pair.first, pair.second) for pair in pairs], len(images))
    assert groups == [0, 1, *[2] * 150, 0, 1]
    assert len(pairs) < 40 * len(images)  # not the 11,175 of all pairs


def test_copies_among_many_look_alikes_are_found_and_what_is_not_compared_is_said(
    pictures: list[Pixels], caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    shape, images = pictures[0].shape[::-1], list[Pixels]()
    for _ in range(60):
        pattern = Image.fromarray(rng.standard_normal((12, 12)).astype(np.float32))
        faint = np.asarray(pattern.resize(shape, Image.Resampling.NEAREST))
        images.append(np.clip(pictures[0] + np.float32(0.03) * faint, 0, 1))
    images += [change(image) for change, image in zip(COPIES.values(), images, strict=False)]
    crowded: list[int] = []
    with caplog.at_level("INFO", "pneumoscope"):
        pairs = find_near_duplicates(np.stack([hash_pixels(image) for image in images]), crowded=crowded)
    assert [(pair.first, pair.second) for pair in pairs] == [(i, i + 60) for i in range(len(COPIES))]
    assert len(crowded) > 50
    (said,) = caplog.messages
    assert said.startswith(f"{len(crowded)} images look like more than 30 others.")


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_the_order_of_the_images_makes_no_difference(hashes: Vectors, data: st.DataObject) -> None:
    images = np.concatenate([hashes[:6], hashes[:3] * np.float32(0.9)])
    order = data.draw(st.permutations(range(len(images))))
    pairs = find_near_duplicates(images[order], crops=False)
    assert {frozenset((order[p.first], order[p.second])) for p in pairs} == {frozenset((i, i + 6)) for i in range(3)}
    assert all(p.first < p.second for p in pairs)
    assert pairs == sorted(pairs)


def test_blank_images_are_similar_to_nothing() -> None:
    assert find_near_duplicates(np.full((5, SIDE, SIDE), 0.5, np.float32)) == []


def test_no_images_have_no_duplicates() -> None:
    assert find_near_duplicates(np.zeros((0, SIDE, SIDE), np.float32)) == []


def test_progress_is_reported(hashes: Vectors) -> None:
    calls: list[tuple[str, int, int]] = []
    pairs = find_near_duplicates(np.concatenate([hashes[:2], hashes[:2]]), progress=lambda *call: calls.append(call))
    assert pairs == [Pair(0, 2, 1.0), Pair(1, 3, 1.0)]
    assert calls == [("Comparing", done, len(calls)) for done in range(1, len(calls) + 1)]


@pytest.mark.parametrize("shape", [(3, 8, 8), (SIDE, SIDE), (3, SIDE * SIDE)])
def test_other_arrays_than_hashes_are_wrong_usage(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"hashes: must be \(N, 48, 48\)"):
        find_near_duplicates(np.zeros(shape, np.float32))


def test_pairs_are_grouped_through_others() -> None:
    assert group_pairs([(4, 2), (7, 5), (2, 6)], 8) == [None, None, 0, None, 0, 1, 0, 1]
    assert group_pairs([(1, 1)], 2) == [None, None]
    assert group_pairs([], 0) == []


@settings(max_examples=100, deadline=None)
@given(count=st.integers(1, 30), data=st.data())
def test_groups_are_the_connected_components(count: int, data: st.DataObject) -> None:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components  # an independent source

    item = st.integers(0, count - 1)
    pairs = data.draw(st.lists(st.tuples(item, item), max_size=40))
    rows, columns = [a for a, _ in pairs], [b for _, b in pairs]
    _, expected = connected_components(coo_array((np.ones(len(pairs)), (rows, columns)), (count, count)), False)
    groups = group_pairs(pairs, count)
    alone = np.bincount(expected)[expected] == 1
    assert [group is None for group in groups] == alone.tolist()
    for i in range(count):
        assert alone[i] or [g == groups[i] for g in groups] == (expected == expected[i]).tolist()
    assert sorted({g for g in groups if g is not None}) == list(range(len(set(expected[~alone].tolist()))))


def test_the_published_crops_are_found_among_the_squashed_images(real_data: Path) -> None:
    if not (real_data / "kermany-train-224").is_dir():
        pytest.skip("no kermany-train-224 beside seed-400")
    crops = sorted((real_data / "seed-400" / "val").rglob("*.jpeg"))[::4]
    squashed = [real_data / "kermany-train-224" / path.parent.name / path.name for path in crops]
    others = sorted((real_data / "kermany-train-224").rglob("*.jpeg"))[::40]
    others = [path for path in others if path not in squashed]
    hashes = np.stack([hash_pixels(read_pixels(path)) for path in [*crops, *squashed, *others]])
    pairs = find_near_duplicates(hashes)
    assert [(pair.first, pair.second) for pair in pairs] == [(i, i + len(crops)) for i in range(len(crops))]
