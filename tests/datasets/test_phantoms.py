from __future__ import annotations

import csv
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pneumoscope.datasets.phantom_sets import write_phantoms
from pneumoscope.datasets.phantoms import Phantom, draw_phantom
from pneumoscope.datasets.reading import read_samples
from pneumoscope.errors import UsageError
from pneumoscope.images.dicom import read_tags
from pneumoscope.images.read import read_pixels

SIZE = 96  # small images are drawn quickly
seeds = st.integers(min_value=0, max_value=2**32 - 1)


def grown(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """The mask and its neighbourhood."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(picture.filter(ImageFilter.MaxFilter(2 * pixels + 1))) > 0


def likeness(one: Phantom, other: Phantom) -> float:
    """Correlation of two images, both brought to one size."""
    first, second = (np.asarray(Image.fromarray(p.pixels).resize((64, 64))).ravel() for p in (one, other))
    return float(np.corrcoef(first, second)[0, 1])


def average_image() -> NDArray[np.float32]:
    """Twenty normal images laid over each other, 100 x 100."""
    images = [draw_phantom(seed, pneumonia=False, size=SIZE).pixels for seed in range(20)]
    return np.asarray(np.mean([np.asarray(Image.fromarray(image).resize((100, 100))) for image in images], axis=0))


def read_truth(folder: Path) -> list[dict[str, str]]:
    with (folder / "truth.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("data") / "phantoms", count=60, seed=3, size=64, prevalence=0.4)


@settings(max_examples=15, deadline=None)
@given(seed=seeds, size=st.integers(64, 200), pneumonia=st.booleans())
def test_an_image_is_grey_and_has_the_requested_height(seed: int, size: int, pneumonia: bool) -> None:
    phantom = draw_phantom(seed, pneumonia=pneumonia, size=size)
    height, width = phantom.pixels.shape
    assert height == size
    assert 0.9 * size <= width <= 1.3 * size
    assert phantom.pixels.dtype == np.float32
    assert phantom.pixels.min() >= 0
    assert phantom.pixels.max() <= 1
    assert phantom.pixels.std() > 0.1
    assert phantom.mask.shape == phantom.pixels.shape
    assert phantom.mask.dtype == np.bool_


@settings(max_examples=15, deadline=None)
@given(seed=seeds, pneumonia=st.booleans())
def test_there_is_a_mask_exactly_where_there_is_pneumonia(seed: int, pneumonia: bool) -> None:
    phantom = draw_phantom(seed, pneumonia=pneumonia, size=SIZE)
    assert phantom.label == ("PNEUMONIA" if pneumonia else "NORMAL")
    assert phantom.mask.any() == pneumonia
    assert phantom.mask.mean() < 0.4


@settings(max_examples=8, deadline=None)
@given(seed=seeds, patient=st.none() | seeds, pneumonia=st.booleans())
def test_the_same_seed_gives_the_same_image(seed: int, patient: int | None, pneumonia: bool) -> None:
    one, other = (draw_phantom(seed, pneumonia=pneumonia, patient=patient, size=SIZE) for _ in range(2))
    assert one.pixels.tobytes() == other.pixels.tobytes()
    assert one.mask.tobytes() == other.mask.tobytes()


def test_images_of_different_seeds_differ_in_pose_exposure_and_width() -> None:
    images = [draw_phantom(seed, pneumonia=False, size=SIZE).pixels for seed in range(12)]
    assert len({image.tobytes() for image in images}) == 12
    assert len({image.shape[1] for image in images}) > 6
    assert np.ptp([image.mean() for image in images]) > 0.05


def test_the_patient_is_the_seed_by_default() -> None:
    implied, explicit = (
        draw_phantom(5, pneumonia=True, size=SIZE),
        draw_phantom(5, pneumonia=True, patient=5, size=SIZE),
    )
    assert np.array_equal(implied.pixels, explicit.pixels)


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_an_opacity_brightens_the_image_inside_its_mask_and_nowhere_else(seed: int) -> None:
    ill, well = (draw_phantom(seed, pneumonia=pneumonia, size=SIZE) for pneumonia in (True, False))
    brighter = ill.pixels - well.pixels
    far = ~grown(ill.mask, 12)
    assert brighter[ill.mask].mean() > 0.03
    assert brighter[ill.mask].mean() > brighter[far].mean() + 0.05
    assert brighter[far].max() < 0.12  # the image's automatic brightness and its noise, no more


@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_an_opacity_lies_where_the_image_of_the_healthy_patient_is_dark(seed: int) -> None:
    ill, well = (draw_phantom(seed, pneumonia=pneumonia, size=SIZE) for pneumonia in (True, False))
    height, width = well.pixels.shape
    spine = well.pixels[height // 4 : -height // 4, width // 2 - 3 : width // 2 + 3]
    assert well.pixels[ill.mask].mean() < spine.mean() - 0.1


def test_air_is_dark_and_bone_is_bright() -> None:
    squares = average_image()
    lungs, spine, abdomen = squares[35:55, 18:32], squares[35:75, 47:53], squares[82:90, 25:40]
    assert lungs.mean() < spine.mean() - 0.25
    assert lungs.mean() < abdomen.mean() - 0.15


def test_the_heart_bulges_to_the_image_s_right_and_the_right_dome_stands_higher() -> None:
    squares = average_image()
    assert squares[60:68, 60:68].mean() > squares[60:68, 32:40].mean() + 0.1
    right, left = (60 + np.diff(squares[60:95, part].mean(axis=1)).argmax() for part in (np.s_[22:28], np.s_[72:78]))
    assert right < left  # y points down


def test_images_of_one_patient_look_more_alike_than_those_of_two() -> None:
    same, different = [], []
    for patient in range(15):
        first = draw_phantom(1000 + patient, pneumonia=False, patient=patient, size=SIZE)
        same.append(likeness(first, draw_phantom(2000, pneumonia=False, patient=patient, size=SIZE)))
        different.append(likeness(first, draw_phantom(2000, pneumonia=False, patient=patient + 500, size=SIZE)))
    assert np.mean(same) > np.mean(different)


def test_overall_brightness_hardly_predicts_the_label() -> None:
    brightness = [[draw_phantom(s, pneumonia=p, size=64).pixels.mean() for s in range(60)] for p in (False, True)]
    wins = np.mean(np.array(brightness[1])[:, None] > np.array(brightness[0])[None, :])
    assert 0.4 < wins < 0.6


@pytest.mark.parametrize("size", [63, 0, -1, 2049])
def test_an_image_of_impossible_size_is_refused(size: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{size}.*64"):
        draw_phantom(0, pneumonia=True, size=size)
    with pytest.raises(UsageError, match=f"{size}.*64"):
        write_phantoms(tmp_path / "new", count=8, size=size)
    assert not (tmp_path / "new").exists()


def test_the_table_of_truth_names_every_image_and_mask(written: Path) -> None:
    rows = read_truth(written)
    assert list(rows[0]) == ["path", "label", "patient", "split", "mask"]
    assert len(rows) == 60
    files = set(contents(written)) - {"truth.csv"}
    assert files == {row["path"] for row in rows} | {row["mask"] for row in rows if row["mask"]}
    for row in rows:
        name = Path(row["path"]).name
        assert row["path"] == f"{row['split']}/{row['label']}/{name}"
        assert re.fullmatch(rf"{row['patient']}_[12]\.png", name)
        assert row["mask"] == (f"masks/{name}" if row["label"] == "PNEUMONIA" else "")


def test_splits_share_no_patient_and_keep_the_share_of_each_label(written: Path) -> None:
    rows = read_truth(written)
    assert all(len({row["split"] for row in rows if row["patient"] == p}) == 1 for p in {r["patient"] for r in rows})
    assert Counter((row["split"], row["label"]) for row in rows) == {
        ("train", "NORMAL"): 18, ("val", "NORMAL"): 9, ("test", "NORMAL"): 9,
        ("train", "PNEUMONIA"): 12, ("val", "PNEUMONIA"): 6, ("test", "PNEUMONIA"): 6,
    }  # fmt: skip


def test_some_patients_have_two_images(written: Path) -> None:
    images = Counter(row["patient"] for row in read_truth(written))
    assert set(images.values()) == {1, 2}
    assert 0.1 < sum(n == 2 for n in images.values()) / len(images) < 0.3


def test_names_do_not_reveal_the_label(written: Path) -> None:
    ill = [row["label"] == "PNEUMONIA" for row in sorted(read_truth(written), key=lambda row: Path(row["path"]).name)]
    changes = sum(one != other for one, other in pairwise(ill))
    assert changes > 10


def test_written_images_are_8_bit_grey_and_masks_fit_them(written: Path) -> None:
    for row in read_truth(written):
        with Image.open(written / row["path"]) as image:
            assert image.format == "PNG"
            assert image.mode == "L"
            assert image.height == 64
            if row["mask"]:
                with Image.open(written / row["mask"]) as mask:
                    assert mask.size == image.size
                    assert set(np.unique(np.asarray(mask))) == {0, 255}


def test_the_same_seed_writes_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_phantoms(tmp_path / name, count=8, seed=seed, size=64)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


@pytest.mark.parametrize("prevalence", [0.001, 0.5, 0.999])
def test_even_the_smallest_set_has_both_labels_in_every_split(tmp_path: Path, prevalence: float) -> None:
    rows = read_truth(write_phantoms(tmp_path / "few", count=8, size=64, prevalence=prevalence))
    assert len({(row["split"], row["label"]) for row in rows}) == 6


def test_progress_is_reported_after_each_image(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    folder = tmp_path / "empty"
    folder.mkdir()
    assert write_phantoms(folder, count=9, size=64, progress=lambda *call: calls.append(call)) == folder
    assert calls == [("Drawing", done, 9) for done in range(1, 10)]


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=re.escape(str(tmp_path))):
        write_phantoms(tmp_path, count=8, size=64)
    with pytest.raises(UsageError, match=r"notes\.txt"):
        write_phantoms(tmp_path / "notes.txt", count=8, size=64)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize(("count", "prevalence"), [(7, 0.5), (0, 0.5), (20, 0.0), (20, 1.0), (20, float("nan"))])
def test_numbers_out_of_range_are_refused(tmp_path: Path, count: int, prevalence: float) -> None:
    with pytest.raises(UsageError, match="8" if count < 8 else "prevalence"):
        write_phantoms(tmp_path / "new", count=count, size=64, prevalence=prevalence)
    assert not (tmp_path / "new").exists()


def test_phantoms_as_dicom_show_the_same_in_one_study_for_each_patient(tmp_path: Path) -> None:
    kinds: tuple[Literal["png", "dicom"], ...] = ("png", "dicom", "dicom")
    folders = [write_phantoms(tmp_path / str(i), count=16, seed=5, size=128, form=form) for i, form in enumerate(kinds)]
    first, second, again = (read_samples(folder) for folder in folders)
    assert [each.path.with_suffix("").name for each in first] == [each.path.with_suffix("").name for each in second]
    assert [each.path.read_bytes() for each in second] == [each.path.read_bytes() for each in again]
    studies: dict[str, set[str]] = {}
    instances = set()
    for png, dcm in zip(first, second, strict=True):
        assert np.abs(read_pixels(png.path) - read_pixels(dcm.path)).max() < 1 / 255
        tags = read_tags(dcm.path)
        studies.setdefault(str(tags.patient), set()).add(str(tags.study))
        instances.add(tags.instance)
        assert (tags.patient, tags.view, tags.modality) == (png.path.stem[:-2], "PA", "CR")
    assert len(instances) == 16
    assert len(studies) < 16
    assert all(len(found) == 1 for found in studies.values())
    assert len(set.union(*studies.values())) == len(studies)
