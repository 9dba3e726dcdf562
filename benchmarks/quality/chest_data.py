"""The adults' images and those of children, as the scripts that train on both use them."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from protocol import read_kermany

from pneumoscope.datasets.duplicates import group_identical
from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.samples import Sample
from pneumoscope.datasets.splits import fold_samples, split_samples
from pneumoscope.images.dicom import Tags

READ = ("OPACITY", "NORMAL", "OTHER")
CHILD_VAL = 135  # children of each class that decisions are fitted to; with the adults 1% of a class is two images


def read_adults(data: Path) -> list[Sample]:
    """The adults' images that radiologists read, with what the table says of them."""
    samples = []
    with (data / "adults" / "films.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            path = data / "adults" / row["path"]
            if row["label"] in READ:
                tags = Tags(age=float(row["age"]) if row["age"] else None, sex=row["sex"] or None, view=row["view"])
                metadata = {"source": row["source"], "reading": row["label"], "view": row["view"]}
                samples.append(Sample(path, row["label"], row["patient"], None, tags=tags, metadata=metadata))
    return samples


def restore_lungs(data: Path, out: Path) -> list[Sample]:
    """The images of lungs alone, written to `out` with air dark, as other images have it."""
    out.mkdir(parents=True, exist_ok=True)
    samples = []
    with (data / "adults" / "lungs-only.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            path = out / f"{Path(row['path']).stem}.png"
            if not path.exists():
                inverted = np.asarray(Image.open(data / "adults" / row["path"]).convert("L")).astype(np.int16)
                restored = np.where(inverted > 4, 256 - inverted, 0).clip(0, 255).astype(np.uint8)
                Image.fromarray(restored).save(path, "PNG", compress_level=1)
            metadata = {"source": "lungs-only", "reading": row["label"], "view": row["view"]}
            samples.append(Sample(path, row["label"], row["patient"], None, metadata=metadata))
    return samples


def split_adults(data: Path, fold: int = 0) -> dict[str, set[str]]:
    """The adults' patients of each split: one of five folds tests, the next one validates."""
    folds = fold_samples([*read_adults(data), *read_kermany(data)], 5, seed=0)
    patients = [
        {str(each.patient) for each in images if each.split == "test" and "reading" in each.metadata}
        for images in folds
    ]
    test, val = patients[fold], patients[(fold + 1) % 5]
    return {"test": test, "val": val}


def assign(samples: Sequence[Sample], patients: dict[str, set[str]]) -> list[Sample]:
    """Give samples the split of their patient; patients in neither test nor val are trained on."""
    splits = {patient: split for split, members in patients.items() for patient in members}
    return [dataclasses.replace(each, split=splits.get(str(each.patient), "train")) for each in samples]


def draw_normal(samples: Sequence[Sample], count: int, rng: np.random.Generator) -> list[Sample]:
    """Leave out all but some images of rsna-normal: half of each view; a fifth as many to validate and to test."""
    drawn = [each for each in samples if each.metadata["source"] != "rsna-normal"]
    for split, share in (("train", count), ("val", count // 5), ("test", count // 5)):
        for view in ("PA", "AP"):
            fits = [
                each
                for each in samples
                if (each.metadata["source"], each.split, each.metadata["view"]) == ("rsna-normal", split, view)
            ]
            drawn += [fits[i] for i in rng.permutation(len(fits))[: share // 2]]
    return drawn


def split_children(data: Path, count: int) -> list[Sample]:
    """The split of the first pretrained model; of its validation images, `count` of each class validate, others test.

    No weights were fitted to those images, so that training may continue from that model.
    """
    images = [dataclasses.replace(image, split="train") for image in read_kermany(data)]
    images += [image for image in read_samples(data / "seed-400") if image.split == "test"]
    samples = split_samples(images, groups=group_identical(images), seed=0)
    patients = sorted({str(each.patient) for each in samples if each.split == "val"})
    order = [patients[i] for i in np.random.default_rng(0).permutation(len(patients))]
    places = {patient: place for place, patient in enumerate(order)}
    kept: dict[str, int] = {}
    result = [each for each in samples if each.split != "val"]
    for each in sorted((each for each in samples if each.split == "val"), key=lambda each: places[str(each.patient)]):
        label = str(each.label)
        kept[label] = kept.get(label, 0) + 1
        result.append(each if kept[label] <= count else dataclasses.replace(each, split="test"))
    tested = {each.patient for each in result if each.split == "test"}
    return [dataclasses.replace(each, split="test") if each.patient in tested else each for each in result]
