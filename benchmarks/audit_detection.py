"""How often the audit finds faults that were planted into clean simulated images, and its false alarms.

    python benchmarks/audit_detection.py [--seeds 20] [--images 200]

Each fault is planted at several strengths into a fresh copy of each dataset. The table is in docs/results/audit.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pneumoscope.auditing.duplicates import group_similar
from pneumoscope.auditing.findings import Finding
from pneumoscope.auditing.intake import measure_images
from pneumoscope.auditing.shortcuts import find_shortcuts
from pneumoscope.datasets.phantom_sets import write_phantoms
from pneumoscope.datasets.reading import read_samples
from pneumoscope.images.prepare import InputSpec
from pneumoscope.inference.cache import FeatureCache
from pneumoscope.reports.audit_page import audit

FIRST_SEED = 7000  # no threshold of the audit was chosen on these images
Rng = np.random.Generator
Plant = Callable[[Path, float, Rng], set[Path]]


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        name: what it is.
        check: the check that should find it.
        strengths: from weak to strong.
        unit: of the strengths.
        plant: changes a folder of images and returns the files that a finding should name, if any.
    """

    name: str
    check: str
    strengths: tuple[float, ...]
    unit: str
    plant: Plant

    @property
    def quick(self) -> bool:
        """Whether the quick audit should find it."""
        return self.check not in ("labels", "shortcuts") and "photographs" not in self.name


def find_images(folder: Path, where: str = "*", label: str = "*") -> list[Path]:
    """List images of a split and class, in order."""
    return sorted(folder.glob(f"{where}/{label}/*.*"))


def choose(images: Sequence[Path], count: float, rng: Rng) -> list[Path]:
    """Draw images at random: a number of them, or up to 1 a share of all; at least one."""
    n = max(1, round(count * len(images))) if count <= 1 else int(count)
    return [images[i] for i in rng.permutation(len(images))[:n]]


def edit(path: Path, change: Callable[[Image.Image], Image.Image]) -> None:
    """Change an image in place."""
    with Image.open(path) as picture:
        changed = change(picture.convert("L"))
    changed.save(path)


def rename(path: Path, folder: Path, number: int, suffix: str | None = None) -> Path:
    """A path in a folder with a name that no patient has."""
    return folder / f"phantom{90000 + number}_1{suffix or path.suffix}"


def plant_copies(folder: Path, count: float, rng: Rng) -> set[Path]:
    """Copy training images to the test split under other names."""
    touched = set()
    for number, image in enumerate(choose(find_images(folder, "train"), 10, rng)[: int(count)]):
        copy = rename(image, folder / "test" / image.parent.name, number)
        shutil.copy(image, copy)
        touched |= {image, copy}
    return touched


def plant_torn_copies(folder: Path, count: float, rng: Rng) -> set[Path]:
    """Copy normal images to the pneumonia images of the same split."""
    touched = set()
    for number, image in enumerate(choose(find_images(folder, "train", "NORMAL"), 10, rng)[: int(count)]):
        copy = rename(image, folder / "train" / "PNEUMONIA", number)
        shutil.copy(image, copy)
        touched |= {image, copy}
    return touched


def plant_likenesses(folder: Path, quality: float, rng: Rng) -> set[Path]:
    """Copy training images to the test split, smaller, with less contrast, and compressed."""
    touched = set()
    for number, image in enumerate(choose(find_images(folder, "train"), 5, rng)):
        with Image.open(image) as picture:
            sides = (int(picture.width * 0.8), int(picture.height * 0.8))
            small = picture.convert("L").resize(sides, Image.Resampling.LANCZOS)
        copy = rename(image, folder / "test" / image.parent.name, number, ".jpg")
        small.point(lambda value: value * 0.92 + 12).save(copy, quality=int(quality))
        touched |= {image, copy}
    return touched


def plant_patients(folder: Path, count: float, rng: Rng) -> set[Path]:
    """Rename test images, as if they were of patients in train."""
    touched = set()
    for image in choose(find_images(folder, "test"), 10, rng)[: int(count)]:
        patient = choose(find_images(folder, "train", image.parent.name), 2, rng)[0].stem.split("_")[0]
        touched.add(image.rename(image.with_name(f"{patient}_{rng.integers(10, 10**6)}.png")))
    return touched


def plant_border(level: int) -> Plant:
    """Draw a border of a grey level, 3% wide, on a share of the pneumonia images."""

    def plant(folder: Path, share: float, rng: Rng) -> set[Path]:
        def frame(picture: Image.Image) -> Image.Image:
            ImageDraw.Draw(picture).rectangle(
                (0, 0, picture.width - 1, picture.height - 1), outline=level, width=max(1, round(0.03 * picture.width))
            )
            return picture

        for image in choose(find_images(folder, "*", "PNEUMONIA"), share, rng):
            edit(image, frame)
        return set()

    return plant


def plant_marker(random_corner: bool) -> Plant:
    """Draw an L, 9% high, in a corner of a share of the pneumonia images."""

    def plant(folder: Path, share: float, rng: Rng) -> set[Path]:
        for image in choose(find_images(folder, "*", "PNEUMONIA"), share, rng):

            def mark(picture: Image.Image) -> Image.Image:
                size = round(0.09 * picture.height)
                right, low = rng.integers(2, size=2) if random_corner else (1, 0)
                jitter = rng.integers(0, max(2, size // 3), size=2)
                x = picture.width - 2 * size + jitter[0] if right else size // 2 + jitter[0]
                y = picture.height - 2 * size + jitter[1] if low else size // 3 + jitter[1]
                font = ImageFont.load_default(size)
                ImageDraw.Draw(picture).text((int(x), int(y)), "L", fill=240, font=font)
                return picture

            edit(image, mark)
        return set()

    return plant


def plant_quality(folder: Path, quality: float, _: Rng) -> set[Path]:
    """Convert all images to JPEG: normal ones of quality 92, pneumonia of another."""
    for image in find_images(folder):
        with Image.open(image) as picture:
            chosen = quality if image.parent.name == "PNEUMONIA" else 92
            picture.convert("L").save(image.with_suffix(".jpg"), quality=int(chosen))
        image.unlink()
    return set()


def plant_format(folder: Path, share: float, rng: Rng) -> set[Path]:
    """Convert a share of the pneumonia images to TIFF."""
    for image in choose(find_images(folder, "*", "PNEUMONIA"), share, rng):
        with Image.open(image) as picture:
            picture.save(image.with_suffix(".tif"))
        image.unlink()
    return set()


def plant_mode(folder: Path, share: float, rng: Rng) -> set[Path]:
    """Store a share of the pneumonia images as RGB."""
    for image in choose(find_images(folder, "*", "PNEUMONIA"), share, rng):
        with Image.open(image) as picture:
            colour = picture.convert("RGB")
        colour.save(image)
    return set()


def plant_size(folder: Path, share: float, rng: Rng) -> set[Path]:
    """Enlarge a share of the pneumonia images by a quarter."""
    for image in choose(find_images(folder, "*", "PNEUMONIA"), share, rng):
        edit(
            image,
            lambda picture: picture.resize((picture.width * 5 // 4, picture.height * 5 // 4), Image.Resampling.BICUBIC),
        )
    return set()


def plant_edit(change: Callable[[Image.Image], Image.Image]) -> Plant:
    """Change some images of any class and split."""

    def plant(folder: Path, count: float, rng: Rng) -> set[Path]:
        images = choose(find_images(folder), count, rng)
        for image in images:
            edit(image, change)
        return set(images)

    return plant


def plant_truncation(folder: Path, count: float, rng: Rng) -> set[Path]:
    """Cut some files off in the middle."""
    images = choose(find_images(folder), count, rng)
    for image in images:
        image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    return set(images)


def plant_photographs(folder: Path, count: float, rng: Rng) -> set[Path]:
    """Put grey photographs among the training images."""
    from skimage import data

    names = ("astronaut", "camera", "coins", "page", "text", "clock", "moon", "brick", "grass", "gravel")
    touched = set()
    for number, at in enumerate(rng.permutation(len(names))[: int(count)]):
        image = choose(find_images(folder, "train"), 2, rng)[0]
        place = rename(image, image.parent, number)
        Image.fromarray(getattr(data, names[at])()).convert("L").save(place)
        touched.add(place)
    return touched


def plant_swaps(folder: Path, share: float, rng: Rng) -> set[Path]:
    """Move a share of the images to the other class's folder."""
    other = {"NORMAL": "PNEUMONIA", "PNEUMONIA": "NORMAL"}
    moved = set()
    for image in choose(find_images(folder), share, rng):
        place = image.parents[1] / other[image.parent.name] / image.name
        image.rename(place)
        moved.add(place)
    return moved


def invert(picture: Image.Image) -> Image.Image:
    """Exchange black and white."""
    return picture.point(lambda value: 255 - value)


FAULTS = (
    Fault("identical images in train and test", "duplicates", (1, 3, 10), "images", plant_copies),
    Fault("identical images in both classes", "duplicates", (1, 3, 10), "images", plant_torn_copies),
    Fault("smaller, brighter, compressed copies", "duplicates", (95, 75, 50), "JPEG quality", plant_likenesses),
    Fault("patients in train and test", "leaks", (1, 3, 10), "images", plant_patients),
    Fault("white border in one class", "shortcuts", (0.25, 0.5, 1.0), "share", plant_border(255)),
    Fault("grey border in one class", "shortcuts", (0.25, 0.5, 1.0), "share", plant_border(110)),
    Fault("L marker in one class, same corner", "shortcuts", (0.25, 0.5, 1.0), "share", plant_marker(False)),
    Fault("L marker in one class, any corner", "shortcuts", (0.25, 0.5, 1.0), "share", plant_marker(True)),
    Fault("JPEG quality by class (92 and …)", "shortcuts", (90, 85, 70), "quality", plant_quality),
    Fault("file format by class", "shortcuts", (0.25, 0.5, 1.0), "share", plant_format),
    Fault("colour mode by class", "shortcuts", (0.25, 0.5, 1.0), "share", plant_mode),
    Fault("image size by class", "shortcuts", (0.25, 0.5, 1.0), "share", plant_size),
    Fault("inverted images", "quality", (0.005, 0.02, 0.1), "share", plant_edit(invert)),
    Fault("images on their side", "quality", (0.005, 0.02, 0.1), "share",
          plant_edit(lambda picture: picture.transpose(Image.Transpose.ROTATE_90))),
    Fault("images upside down", "quality", (0.005, 0.02, 0.1), "share",
          plant_edit(lambda picture: picture.transpose(Image.Transpose.ROTATE_180))),
    Fault("blank images", "quality", (0.005, 0.02, 0.1), "share",
          plant_edit(lambda picture: picture.point(lambda _: 77))),
    Fault("burnt-out images", "quality", (0.005, 0.02, 0.1), "share",
          plant_edit(lambda picture: picture.point(lambda value: min(255, value * 2)))),
    Fault("tiny images", "quality", (0.005, 0.02, 0.1), "share", plant_edit(lambda picture: picture.resize((40, 40)))),
    Fault("truncated files", "reading", (0.005, 0.02, 0.1), "share", plant_truncation),
    Fault("photographs among the images", "quality", (1, 3, 10), "files", plant_photographs),
    Fault("swapped labels", "labels", (0.02, 0.05, 0.1), "share", plant_swaps),
)  # fmt: skip


def plant(fault: Fault, strength: float, clean: Path, folder: Path, seed: int) -> set[Path]:
    """Copy clean images and plant a fault; returns the changed files that a finding should name."""
    shutil.copytree(clean, folder, ignore=shutil.ignore_patterns("masks", "truth.csv"))
    return fault.plant(folder, strength, np.random.default_rng([seed, int(strength * 1000)]))


def find(fault: Fault, folder: Path, seed: int, cache: FeatureCache) -> Sequence[Finding]:
    """Findings of the audit. For shortcuts only that check is run, as it needs no features and the full audit does."""
    if fault.check != "shortcuts":
        return audit(folder, seed=seed, quick=fault.quick, cache=cache).findings
    images = measure_images(read_samples(folder), InputSpec(), cache=cache)
    return find_shortcuts(images, seed=seed, groups=group_similar(images, crops=False))


def score(fault: Fault, touched: set[Path], findings: Sequence[Finding]) -> tuple[bool, float]:
    """Whether the right check reported something above a note, and the share of changed files that it named."""
    serious = [each for each in findings if each.check == fault.check and each.severity != "note"]
    listed = {path for each in findings if each.check == fault.check for path in each.files}
    return bool(serious), len(touched & listed) / len(touched) if touched else float("nan")


def audit_seed(
    seed: int, count: int, size: int, only: str
) -> tuple[list[str], dict[tuple[str, float], tuple[bool, float]]]:
    """Audit one clean dataset, and each fault planted into it: false alarms of the clean one, and scores."""
    with tempfile.TemporaryDirectory() as scratch, FeatureCache(Path(scratch) / "cache.sqlite") as cache:
        clean, folder = Path(scratch) / "clean", Path(scratch) / "planted"
        write_phantoms(clean, count=count, seed=FIRST_SEED + seed, size=size)
        alarms = [
            f"{each.severity}: {each.title}"
            for each in audit(clean, seed=seed, cache=cache).findings
            if each.severity != "note"
        ]
        scores = {}
        for fault in FAULTS:
            for strength in fault.strengths if only in fault.name else ():
                touched = plant(fault, strength, clean, folder, seed)
                scores[fault.name, strength] = score(fault, touched, find(fault, folder, seed, cache))
                shutil.rmtree(folder)
    print(f"seed {seed} done; clean: {alarms or 'nothing'}", file=sys.stderr, flush=True)
    return alarms, scores


def main() -> None:
    """Plant and audit, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--only", default="", help="only faults with this in their name")
    options = parser.parse_args()
    results: defaultdict[tuple[str, float], list[tuple[bool, float]]] = defaultdict(list)
    alarms: list[list[str]] = []
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        settings = (options.images, options.size, options.only)
        for future in [pool.submit(audit_seed, seed, *settings) for seed in range(options.seeds)]:
            raised, scores = future.result()
            alarms.append(raised)
            for key, result in scores.items():
                results[key].append(result)
    print("| planted fault | strength | found | files named |\n| --- | --- | --- | --- |")
    for fault in FAULTS:
        for strength in fault.strengths:
            if tried := results.get((fault.name, strength)):
                hits = sum(hit for hit, _ in tried)
                named = float(np.mean([part for _, part in tried]))
                share = "" if np.isnan(named) else f"{named:.0%}"
                print(f"| {fault.name} | {strength:g} ({fault.unit}) | {hits} of {len(tried)} | {share} |")
    print(f"\nClean sets with anything above a note: {sum(map(bool, alarms))} of {len(alarms)}.")
    for messages in alarms:
        for message in messages:
            print(f"- {message}")


if __name__ == "__main__":
    main()
