"""Subsets: the published images and their split come out of a full download, whatever its layout."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from pneumoscope.datasets.kermany import list_subsets, select_subset
from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.samples import Sample
from pneumoscope.errors import DataError, UsageError


@pytest.fixture(scope="module")
def published() -> list[tuple[str, str, str]]:
    text = files("pneumoscope.datasets").joinpath("lists/seed-400.csv").read_text(encoding="utf-8")
    return [(row["name"], row["label"], row["split"]) for row in csv.DictReader(text.splitlines())]


def download(root: Path, published: list[tuple[str, str, str]], suffix: str = ".jpeg", val: bool = True) -> Path:
    """The official layout: the published images and others, empty; two of them are in the official val."""
    others = [(f"person{i}_virus_{i}", "PNEUMONIA", "train") for i in range(9000, 9030)]
    for i, (name, label, split) in enumerate([*published, *others]):
        folder = "test" if split == "test" else "val" if val and i < 2 else "train"
        (root / folder / label).mkdir(parents=True, exist_ok=True)
        (root / folder / label / f"{name}{suffix}").touch()
    return root


@pytest.mark.parametrize("suffix", [".jpeg", ".jpg", ".png"])
@pytest.mark.parametrize("val", [True, False])
def test_a_full_download_gives_the_published_images_and_their_split(
    suffix: str, val: bool, published: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    samples = read_samples(download(tmp_path, published, suffix, val))
    chosen = select_subset(samples, "seed-400")
    assert sorted((s.path.stem, str(s.label), str(s.split)) for s in chosen) == sorted(published)
    assert [replace(s, split=None) for s in chosen] == [
        replace(s, split=None) for s in samples if s.path in {c.path for c in chosen}
    ]


def test_the_published_split_is_half_and_half() -> None:
    rows = files("pneumoscope.datasets").joinpath("lists/seed-400.csv").read_text(encoding="utf-8").splitlines()
    counts = Counter((row["split"], row["label"]) for row in csv.DictReader(rows))
    sizes = {"train": 100, "val": 50, "test": 50}
    assert counts == {(split, label): n for split, n in sizes.items() for label in ("NORMAL", "PNEUMONIA")}


def test_missing_images_are_counted_and_named_and_the_remedy_is_too(
    published: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    samples = [s for s in read_samples(download(tmp_path, published)) if s.split != "test"]
    first = next(f"{label}/{name}" for name, label, split in published if split == "test")
    with pytest.raises(
        DataError, match=rf"100 of the 400 images of seed-400 are missing: {first}, .* 95 more.*data fetch"
    ):
        select_subset(samples, "seed-400")


def test_an_image_of_the_same_name_in_the_other_class_is_another_image(
    published: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    samples = read_samples(download(tmp_path, published))
    name, label, _ = published[0]
    samples.append(Sample(Path("elsewhere", f"{name}.jpeg"), "PNEUMONIA" if label == "NORMAL" else "NORMAL"))
    assert samples[-1] not in [replace(s, split=None) for s in select_subset(samples, "seed-400")]


def test_an_image_that_is_there_twice_is_an_error_that_names_both(
    published: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    samples = read_samples(download(tmp_path, published))
    name, label, _ = published[0]
    again = Sample(Path("again", f"{name}.jpeg"), label)
    with pytest.raises(DataError, match=rf"1 images of seed-400 .*{name}.jpeg, .*again.{name}.jpeg"):
        select_subset([*samples, again], "seed-400")


def test_an_unknown_subset_is_wrong_usage_that_names_the_known() -> None:
    assert "seed-400" in list_subsets()
    with pytest.raises(UsageError, match=r"subset: No subset is named .seed-4.. Known: .*seed-400"):
        select_subset([], "seed-4")


def test_the_list_is_what_was_published(real_data: Path) -> None:
    samples = read_samples(real_data / "seed-400")
    assert select_subset([replace(s, split=None) for s in samples], "seed-400") == samples
