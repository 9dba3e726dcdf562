"""How often the audit finds faults that were planted into clean simulated films, and how often it cries wolf.

    python benchmarks/audit_detection.py [--seeds 20] [--films 200]

Each fault is planted at several strengths into a fresh copy of each data set. Printed is a table for docs/results.md.
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

from pneumoscope.auditing.audit import audit
from pneumoscope.auditing.duplicates import group_similar
from pneumoscope.auditing.films import measure_films
from pneumoscope.auditing.findings import Finding
from pneumoscope.auditing.shortcuts import find_shortcuts
from pneumoscope.datasets.phantom_sets import write_phantoms
from pneumoscope.datasets.samples import read_samples
from pneumoscope.images.preparing import InputSpec
from pneumoscope.inference.features import FeatureCache

FIRST_SEED = 7000  # of films that nothing was chosen on
Rng = np.random.Generator
Plant = Callable[[Path, float, Rng], set[Path]]


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        name: what it is.
        check: the check that has to find it.
        strengths: from weak to strong, and what they mean.
        unit: of the strengths.
        plant: changes a folder of films and gives the files that a finding should name (or none).
    """

    name: str
    check: str
    strengths: tuple[float, ...]
    unit: str
    plant: Plant

    @property
    def quick(self) -> bool:
        """Whether the quick audit is to find it."""
        return self.check not in ("labels", "shortcuts") and "photographs" not in self.name


def find_films(folder: Path, where: str = "*", label: str = "*") -> list[Path]:
    """Films of a split and class, in order."""
    return sorted(folder.glob(f"{where}/{label}/*.*"))


def choose(films: Sequence[Path], count: float, rng: Rng) -> list[Path]:
    """So many films at random, or, below or at 1, such a share of them; one at least."""
    n = max(1, round(count * len(films))) if count <= 1 else int(count)
    return [films[i] for i in rng.permutation(len(films))[:n]]


def edit(path: Path, change: Callable[[Image.Image], Image.Image]) -> None:
    """Change a film in place."""
    with Image.open(path) as image:
        changed = change(image.convert("L"))
    changed.save(path)


def rename(path: Path, folder: Path, number: int, suffix: str | None = None) -> Path:
    """A name in a folder that no patient has."""
    return folder / f"phantom{90000 + number}_1{suffix or path.suffix}"


def plant_copies(folder: Path, count: float, rng: Rng) -> set[Path]:
    """Training films turn up in the test split under other names."""
    touched = set()
    for number, film in enumerate(choose(find_films(folder, "train"), 10, rng)[: int(count)]):
        copy = rename(film, folder / "test" / film.parent.name, number)
        shutil.copy(film, copy)
        touched |= {film, copy}
    return touched


def plant_torn_copies(folder: Path, count: float, rng: Rng) -> set[Path]:
    """Normal films turn up as pneumonia, too, in the same split."""
    touched = set()
    for number, film in enumerate(choose(find_films(folder, "train", "NORMAL"), 10, rng)[: int(count)]):
        copy = rename(film, folder / "train" / "PNEUMONIA", number)
        shutil.copy(film, copy)
        touched |= {film, copy}
    return touched


def plant_likenesses(folder: Path, quality: float, rng: Rng) -> set[Path]:
    """Training films turn up in the test split, smaller, with less contrast, and compressed."""
    touched = set()
    for number, film in enumerate(choose(find_films(folder, "train"), 5, rng)):
        with Image.open(film) as image:
            sides = (int(image.width * 0.8), int(image.height * 0.8))
            small = image.convert("L").resize(sides, Image.Resampling.LANCZOS)
        copy = rename(film, folder / "test" / film.parent.name, number, ".jpg")
        small.point(lambda value: value * 0.92 + 12).save(copy, quality=int(quality))
        touched |= {film, copy}
    return touched


def plant_patients(folder: Path, count: float, rng: Rng) -> set[Path]:
    """Test films turn out to be of patients who are in train."""
    touched = set()
    for film in choose(find_films(folder, "test"), 10, rng)[: int(count)]:
        patient = choose(find_films(folder, "train", film.parent.name), 2, rng)[0].stem.split("_")[0]
        touched.add(film.rename(film.with_name(f"{patient}_{rng.integers(10, 10**6)}.png")))
    return touched


def plant_border(level: int) -> Plant:
    """A share of the pneumonia films has a border of a grey level, 3 % wide."""

    def plant(folder: Path, share: float, rng: Rng) -> set[Path]:
        def frame(image: Image.Image) -> Image.Image:
            ImageDraw.Draw(image).rectangle(
                (0, 0, image.width - 1, image.height - 1), outline=level, width=max(1, round(0.03 * image.width))
            )
            return image

        for film in choose(find_films(folder, "*", "PNEUMONIA"), share, rng):
            edit(film, frame)
        return set()

    return plant


def plant_marker(random_corner: bool) -> Plant:
    """A share of the pneumonia films has a burnt-in L, 9 % high, in a corner."""

    def plant(folder: Path, share: float, rng: Rng) -> set[Path]:
        for film in choose(find_films(folder, "*", "PNEUMONIA"), share, rng):

            def mark(image: Image.Image) -> Image.Image:
                size = round(0.09 * image.height)
                right, low = rng.integers(2, size=2) if random_corner else (1, 0)
                jitter = rng.integers(0, max(2, size // 3), size=2)
                x = image.width - 2 * size + jitter[0] if right else size // 2 + jitter[0]
                y = image.height - 2 * size + jitter[1] if low else size // 3 + jitter[1]
                font = ImageFont.load_default(size)
                ImageDraw.Draw(image).text((int(x), int(y)), "L", fill=240, font=font)
                return image

            edit(film, mark)
        return set()

    return plant


def plant_quality(folder: Path, quality: float, _: Rng) -> set[Path]:
    """All films become JPEG; normal ones of quality 92, pneumonia of another."""
    for film in find_films(folder):
        with Image.open(film) as image:
            chosen = quality if film.parent.name == "PNEUMONIA" else 92
            image.convert("L").save(film.with_suffix(".jpg"), quality=int(chosen))
        film.unlink()
    return set()


def plant_format(folder: Path, share: float, rng: Rng) -> set[Path]:
    """A share of the pneumonia films is TIFF instead of PNG."""
    for film in choose(find_films(folder, "*", "PNEUMONIA"), share, rng):
        with Image.open(film) as image:
            image.save(film.with_suffix(".tif"))
        film.unlink()
    return set()


def plant_mode(folder: Path, share: float, rng: Rng) -> set[Path]:
    """A share of the pneumonia films is stored as RGB."""
    for film in choose(find_films(folder, "*", "PNEUMONIA"), share, rng):
        with Image.open(film) as image:
            colour = image.convert("RGB")
        colour.save(film)
    return set()


def plant_size(folder: Path, share: float, rng: Rng) -> set[Path]:
    """A share of the pneumonia films is a quarter larger."""
    for film in choose(find_films(folder, "*", "PNEUMONIA"), share, rng):
        edit(film, lambda image: image.resize((image.width * 5 // 4, image.height * 5 // 4), Image.Resampling.BICUBIC))
    return set()


def plant_edit(change: Callable[[Image.Image], Image.Image]) -> Plant:
    """Some films, of any class and split, are changed."""

    def plant(folder: Path, count: float, rng: Rng) -> set[Path]:
        films = choose(find_films(folder), count, rng)
        for film in films:
            edit(film, change)
        return set(films)

    return plant


def plant_truncation(folder: Path, count: float, rng: Rng) -> set[Path]:
    """Some files end in the middle."""
    films = choose(find_films(folder), count, rng)
    for film in films:
        film.write_bytes(film.read_bytes()[: film.stat().st_size // 2])
    return set(films)


def plant_photographs(folder: Path, count: float, rng: Rng) -> set[Path]:
    """Grey photographs lie among the films."""
    from skimage import data

    names = ("astronaut", "camera", "coins", "page", "text", "clock", "moon", "brick", "grass", "gravel")
    touched = set()
    for number, at in enumerate(rng.permutation(len(names))[: int(count)]):
        film = choose(find_films(folder, "train"), 2, rng)[0]
        place = rename(film, film.parent, number)
        Image.fromarray(getattr(data, names[at])()).convert("L").save(place)
        touched.add(place)
    return touched


def plant_swaps(folder: Path, share: float, rng: Rng) -> set[Path]:
    """A share of the films lies in the other class's folder."""
    other = {"NORMAL": "PNEUMONIA", "PNEUMONIA": "NORMAL"}
    moved = set()
    for film in choose(find_films(folder), share, rng):
        place = film.parents[1] / other[film.parent.name] / film.name
        film.rename(place)
        moved.add(place)
    return moved


def invert(image: Image.Image) -> Image.Image:
    """Exchange black and white."""
    return image.point(lambda value: 255 - value)


FAULTS = (
    Fault("identical films in train and test", "duplicates", (1, 3, 10), "films", plant_copies),
    Fault("identical films in both classes", "duplicates", (1, 3, 10), "films", plant_torn_copies),
    Fault("smaller, brighter, compressed copies", "duplicates", (95, 75, 50), "JPEG quality", plant_likenesses),
    Fault("patients in train and test", "leaks", (1, 3, 10), "films", plant_patients),
    Fault("white border in one class", "shortcuts", (0.25, 0.5, 1.0), "share", plant_border(255)),
    Fault("grey border in one class", "shortcuts", (0.25, 0.5, 1.0), "share", plant_border(110)),
    Fault("L marker in one class, same corner", "shortcuts", (0.25, 0.5, 1.0), "share", plant_marker(False)),
    Fault("L marker in one class, any corner", "shortcuts", (0.25, 0.5, 1.0), "share", plant_marker(True)),
    Fault("JPEG quality by class (92 and …)", "shortcuts", (90, 85, 70), "quality", plant_quality),
    Fault("file format by class", "shortcuts", (0.25, 0.5, 1.0), "share", plant_format),
    Fault("colour mode by class", "shortcuts", (0.25, 0.5, 1.0), "share", plant_mode),
    Fault("image size by class", "shortcuts", (0.25, 0.5, 1.0), "share", plant_size),
    Fault("inverted films", "quality", (0.005, 0.02, 0.1), "share", plant_edit(invert)),
    Fault("films on their side", "quality", (0.005, 0.02, 0.1), "share",
          plant_edit(lambda image: image.transpose(Image.Transpose.ROTATE_90))),
    Fault("films upside down", "quality", (0.005, 0.02, 0.1), "share",
          plant_edit(lambda image: image.transpose(Image.Transpose.ROTATE_180))),
    Fault("blank films", "quality", (0.005, 0.02, 0.1), "share",
          plant_edit(lambda image: image.point(lambda _: 77))),
    Fault("burnt-out films", "quality", (0.005, 0.02, 0.1), "share",
          plant_edit(lambda image: image.point(lambda value: min(255, value * 2)))),
    Fault("tiny films", "quality", (0.005, 0.02, 0.1), "share", plant_edit(lambda image: image.resize((40, 40)))),
    Fault("truncated files", "reading", (0.005, 0.02, 0.1), "share", plant_truncation),
    Fault("photographs among the films", "quality", (1, 3, 10), "files", plant_photographs),
    Fault("swapped labels", "labels", (0.02, 0.05, 0.1), "share", plant_swaps),
)  # fmt: skip


def plant(fault: Fault, strength: float, clean: Path, folder: Path, seed: int) -> set[Path]:
    """Copy clean films and plant a fault; gives the files that it touched, where those are to be named."""
    shutil.copytree(clean, folder, ignore=shutil.ignore_patterns("masks", "truth.csv"))
    return fault.plant(folder, strength, np.random.default_rng([seed, int(strength * 1000)]))


def look(fault: Fault, folder: Path, seed: int, cache: FeatureCache) -> Sequence[Finding]:
    """What the audit finds; of the full one, for shortcuts, only that check is run, which takes no features."""
    if fault.check != "shortcuts":
        return audit(folder, seed=seed, quick=fault.quick, cache=cache).findings
    films = measure_films(read_samples(folder), InputSpec(), cache=cache)
    return find_shortcuts(films, seed=seed, groups=group_similar(films, crops=False))


def judge(fault: Fault, touched: set[Path], findings: Sequence[Finding]) -> tuple[bool, float]:
    """Whether the right check said something above a note, and the share of touched files that it named."""
    serious = [each for each in findings if each.check == fault.check and each.severity != "note"]
    listed = {path for each in findings if each.check == fault.check for path in each.files}
    return bool(serious), len(touched & listed) / len(touched) if touched else float("nan")


def try_seed(
    seed: int, count: int, size: int, only: str
) -> tuple[list[str], dict[tuple[str, float], tuple[bool, float]]]:
    """Audit one clean set and all that is planted into it: what the clean one raised, and what was found."""
    with tempfile.TemporaryDirectory() as scratch, FeatureCache(Path(scratch) / "cache.sqlite") as cache:
        clean, folder = Path(scratch) / "clean", Path(scratch) / "planted"
        write_phantoms(clean, count=count, seed=FIRST_SEED + seed, size=size)
        alarms = [
            f"{each.severity}: {each.title}"
            for each in audit(clean, seed=seed, cache=cache).findings
            if each.severity != "note"
        ]
        found = {}
        for fault in FAULTS:
            for strength in fault.strengths if only in fault.name else ():
                touched = plant(fault, strength, clean, folder, seed)
                found[fault.name, strength] = judge(fault, touched, look(fault, folder, seed, cache))
                shutil.rmtree(folder)
    print(f"seed {seed} done; clean: {alarms or 'nothing'}", file=sys.stderr, flush=True)
    return alarms, found


def main() -> None:
    """Run it all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--films", type=int, default=200)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--only", default="", help="only faults with this in their name")
    options = parser.parse_args()
    results: defaultdict[tuple[str, float], list[tuple[bool, float]]] = defaultdict(list)
    alarms: list[list[str]] = []
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        settings = (options.films, options.size, options.only)
        for future in [pool.submit(try_seed, seed, *settings) for seed in range(options.seeds)]:
            raised, found = future.result()
            alarms.append(raised)
            for key, judged in found.items():
                results[key].append(judged)
    print("| planted fault | strength | found | files named |\n| --- | --- | --- | --- |")
    for fault in FAULTS:
        for strength in fault.strengths:
            if tried := results.get((fault.name, strength)):
                hits = sum(hit for hit, _ in tried)
                named = float(np.mean([share for _, share in tried]))
                said = "" if np.isnan(named) else f"{named:.0%}"
                print(f"| {fault.name} | {strength:g} ({fault.unit}) | {hits} of {len(tried)} | {said} |")
    print(f"\nClean sets with anything above a note: {sum(map(bool, alarms))} of {len(alarms)}.")
    for messages in alarms:
        for message in messages:
            print(f"- {message}")


if __name__ == "__main__":
    main()
