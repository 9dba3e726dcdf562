"""Writes datasets of simulated radiographs: images in folders, masks, and a table of the truth."""

from __future__ import annotations

import csv
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.random import Generator
from PIL import Image

from pneumoscope.config import Progress, Seed, checked
from pneumoscope.datasets.phantom_dicom import to_dicom
from pneumoscope.datasets.phantoms import Phantom, check_size, draw_phantom
from pneumoscope.datasets.planted import choose_carriers, parse_plants, plant_all
from pneumoscope.errors import UsageError
from pneumoscope.files import lock_folder
from pneumoscope.notebook import notebook_progress

LABELS = ("NORMAL", "PNEUMONIA")
_Planned: TypeAlias = tuple[dict[str, str], int, int]  # row in the table of the truth, seeds of image and patient


@checked
def write_phantoms(
    folder: str | Path,
    *,
    count: int = 600,
    seed: Seed = 0,
    size: int = 320,
    prevalence: float = 0.5,
    plant: str | None = None,
    form: Literal["png", "dicom"] = "png",
    progress: Progress = notebook_progress,
) -> Path:
    """Write a dataset of simulated radiographs, split by patient and stratified by label.

    Images are in `folder/{train,val,test}/{NORMAL,PNEUMONIA}/`, half of them in train and a quarter in each of the
    others, masks of the opacities in `folder/masks/`, and the truth in `folder/truth.csv` with the columns path, label,
    patient, split and mask. About one patient in five has two images: `phantom0012_2.png` is the second image of
    patient phantom0012. The same arguments give the same bytes.

    Args:
        folder: where to write; it must be new or empty.
        count: number of images.
        seed: fixes everything.
        size: height of the images in pixels.
        prevalence: share of images with pneumonia; each label has at least four images.
        plant: shortcuts for an audit to find, such as `marker:0.8,noise:0.5:NORMAL`: a kind (`marker`, `border`,
            `exposure` or `noise`), the share of a class that has it, and that class, by default PNEUMONIA. They are in
            the column `planted` of the truth; otherwise the images are the same as without.
        form: `dicom` writes the images as CR images of 12 bits, all of a patient in one study; masks stay PNG.
        progress: called after each image; by default a bar in a notebook.

    Returns:
        `folder`.

    Raises:
        MissingExtraError: `dicom` needs pydicom.
        UsageError: the folder is not empty, another process is writing into it, or a number is out of range.
    """
    folder = Path(folder)
    check_size(size)
    if count < 8:
        raise UsageError(f"{count} are too few for three splits of two labels; at least 8 are needed.", "count")
    if not 0 < prevalence < 1:
        raise UsageError(f"{prevalence} is not between 0 and 1.", "prevalence")
    plants = None if plant is None else parse_plants(plant, LABELS)
    images = _plan(np.random.default_rng((3, seed)), count, prevalence)
    if form == "dicom":
        for row, _, _ in images:
            row["path"] = row["path"].removesuffix(".png") + ".dcm"
    carried: list[list[str]] = [[] for _ in images]
    if plants is not None:
        carried = choose_carriers([row for row, _, _ in images], plants, seed)
        for (row, _, _), kinds in zip(images, carried, strict=True):
            row["planted"] = " ".join(kinds)
    with lock_folder(folder):
        _write(folder, images, carried, size, progress)
    return folder


def _write(
    folder: Path, images: Sequence[_Planned], carried: Sequence[Sequence[str]], size: int, progress: Progress
) -> None:
    if not folder.is_dir() or any(folder.iterdir()):
        raise UsageError(f"{folder}: exists and is not an empty folder. Choose a new one, or remove it.")
    for place in {folder / row["path"] for row, _, _ in images} | {folder / "masks" / "any"}:
        place.parent.mkdir(parents=True, exist_ok=True)
    # After freeing a large block, glibc keeps memory instead of requesting it for every array.
    np.empty(31 << 20, dtype=np.uint8)
    with ThreadPoolExecutor(1) as writer, (folder / "truth.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(images[0][0]), lineterminator="\n")
        table.writeheader()
        pending = writer.submit(lambda: None)
        for done, ((row, image, patient), kinds) in enumerate(zip(images, carried, strict=True), start=1):
            phantom = draw_phantom(image, pneumonia=row["label"] == "PNEUMONIA", patient=patient, size=size)
            phantom = replace(phantom, pixels=plant_all(phantom.pixels, kinds, image)) if kinds else phantom
            pending.result()  # an image is compressed while the next one is drawn
            pending = writer.submit(_save, folder, row, phantom, patient)
            table.writerow(row)
            progress("Drawing", done, len(images))
        pending.result()


def _plan(rng: Generator, count: int, prevalence: float) -> list[_Planned]:
    """For each image its row in the table of the truth, its seed and its patient's seed, in random order."""
    sick = min(max(round(count * prevalence), 4), count - 4)
    patients: list[tuple[str, str, int]] = []
    for label, images in (("NORMAL", count - sick), ("PNEUMONIA", sick)):
        for split, share in (("train", images - images // 4 * 2), ("val", images // 4), ("test", images // 4)):
            twice = round(share / 6)  # one patient in five
            patients += [(label, split, 2)] * twice + [(label, split, 1)] * (share - 2 * twice)
    plan = []
    for number, index in enumerate(rng.permutation(len(patients))):
        label, split, images = patients[index]
        anatomy, *seeds = rng.integers(2**31, size=1 + images).tolist()
        for image, seed in enumerate(seeds, start=1):
            name = f"phantom{number:04}_{image}.png"
            row = {"path": f"{split}/{label}/{name}", "label": label, "patient": name[:-6], "split": split}
            plan.append(({**row, "mask": f"masks/{name}" if label == "PNEUMONIA" else ""}, seed, anatomy))
    return plan


def _save(folder: Path, row: dict[str, str], phantom: Phantom, seed: int) -> None:
    if row["path"].endswith(".dcm"):
        path = folder / row["path"]
        path.write_bytes(to_dicom(phantom.pixels, row["patient"], int(path.stem.rpartition("_")[2]), seed))
        row = row | {"path": ""}
    for name, grey in ((row["path"], np.rint(phantom.pixels * 255)), (row["mask"], phantom.mask * 255)):
        if name:
            picture = Image.fromarray(grey.astype(np.uint8))
            picture.save(folder / name, compress_level=1, compress_type=zlib.Z_RLE)
