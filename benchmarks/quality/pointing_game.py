"""Do the maps of a model point at what radiologists marked? The pointing game on 239 adults' images with an opacity.

The boxes are those of the RSNA Pneumonia Detection Challenge. `hit`: the centre of the map's strongest cell lies in a
box (the pointing game of Zhang et al. 2018); `near`: it lies there or at most 15 pixels of 1,024 away; `share inside`:
how much of the positive evidence lies inside the boxes. For comparison: chance (a point anywhere, evidence spread
evenly), the centre of the image, and what knows other patients only: the mean of their boxes (its highest point, its
share) and the mean of their maps.

A convolutional network takes any size: with the same weights, a larger input gives a finer map. Inputs of up to 224
pixels are read from the files of 224 pixels, larger ones from those of 512. All intervals are for 95%, by patient.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from chest_data import split_adults
from numpy.typing import NDArray
from protocol import make_parser, print_table

from pneumoscope.datasets.samples import cluster_by_patient
from pneumoscope.evaluation.intervals.proportions import (
    CONFIDENCE,
    Ints,
    rate_interval,
    t_quantile,
    wilson_interval_from_error,
)
from pneumoscope.inference.engines import TorchEngine
from pneumoscope.inference.evidence import Evidence
from pneumoscope.inference.predictor import Predictor, load

sys.path.insert(0, str(Path(__file__).parents[1]))
from faithfulness import share_inside

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Point = tuple[float, float]  # across and down, as shares of width and height
GRID = 256  # side of the raster that areas are measured on
TOLERANCE = 15 / 1024
COLUMNS = ("hit", "near", "share inside")


@dataclass(frozen=True)
class Marked:
    """An image with the boxes that radiologists drew: left, top, width, height, as shares of width and height."""

    small: Path  # 224 pixels
    large: Path  # 512 pixels
    patient: str
    view: str
    boxes: tuple[tuple[float, float, float, float], ...]

    def mask(self) -> Mask:
        """Which pixels of the raster have their centre in a box, bool (GRID, GRID)."""
        return np.asarray(self.distances() == 0)

    def distances(self) -> Floats:
        """How far each pixel of the raster is from the nearest box, (GRID, GRID)."""
        centres = (np.arange(GRID) + 0.5) / GRID
        return self.distance(centres[None], centres[:, None])

    def distance(self, across: Floats, down: Floats) -> Floats:
        """How far points are from the nearest box, as a share of the side; 0 inside."""
        found = []
        for left, top, width, height in self.boxes:
            x = np.maximum(0, np.maximum(left - across, across - left - width))
            y = np.maximum(0, np.maximum(top - down, down - top - height))
            found.append(np.hypot(x, y))
        return np.asarray(np.min(found, axis=0), np.float64)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default=None, help="model folder, run or name; by default the pretrained model")
    parser.add_argument("--sizes", default="224,320,448", help="sides of the input, in pixels")
    parser.add_argument("--patients", type=Path, help="file with a patient, or the path of an image, on each line")
    parser.add_argument("--held-out", action="store_true", help="patients that train_joint.py does not train on")
    options = parser.parse_args()
    every = read_marked(options.data)
    images = choose(every, options.patients)
    if options.held_out:
        held = set().union(*split_adults(options.data).values())
        images = [image for image in images if image.patient in held]
    predictor = load(options.model, "cpu", engine="torch", ood=False)
    scores = score_baselines(images, every)
    for size in map(int, options.sizes.split(",")):
        maps = find_maps(resize(predictor, size), images)
        scores[f"mean map of others, {size}"] = score_maps(average_others(maps, images), images)
        scores[f"map, {size}"] = score_maps(maps, images)
    report(images, scores)


def read_marked(data: Path) -> list[Marked]:
    """The images with boxes."""
    images = []
    folder = data / "adults"
    with (folder / "films.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["boxes"] and row["label"] == "OPACITY" and row["source"] == "rsna":
                boxes = tuple((float(x), float(y), float(w), float(h)) for x, y, w, h in json.loads(row["boxes"]))
                images.append(
                    Marked(folder / row["path"], folder / row["sharp"], row["patient"], row["view"].upper(), boxes)
                )
    return images


def choose(images: Sequence[Marked], patients: Path | None) -> list[Marked]:
    """All images of the patients in a file, of which a line is a patient or the path of one of the images."""
    if patients is None:
        return list(images)
    lines = {line.strip() for line in patients.read_text(encoding="utf-8").splitlines()}
    files = {Path(line).name for line in lines if line}
    named = {image.patient for image in images if image.patient in lines or image.small.name in files}
    if not named:
        raise SystemExit(f"{patients}: none of its {len(lines)} lines is a patient or an image with boxes.")
    return [image for image in images if image.patient in named]


def resize(predictor: Predictor, size: int) -> Predictor:
    """The same weights for another size of input."""
    if size == predictor.model.input.size:
        return predictor
    if not isinstance(predictor.engine, TorchEngine):
        raise SystemExit("Another size of input needs PyTorch to run the network.")
    model = replace(predictor.model, input=replace(predictor.model.input, size=size))
    engine = TorchEngine(predictor.engine.backbone, size, "cpu")
    return Predictor(model, predictor.weight, predictor.bias, engine, predictor.decider)


def find_maps(predictor: Predictor, images: Sequence[Marked]) -> list[Evidence]:
    """The maps of images."""
    paths = [image.small if predictor.model.input.size <= 224 else image.large for image in images]
    maps = []
    for found in predictor.run(paths, maps=True):
        if found.evidence is None:
            raise SystemExit(f"{found.path}: {found.error}")
        maps.append(found.evidence)
    return maps


def average_others(maps: Sequence[Evidence], images: Sequence[Marked]) -> list[Evidence]:
    """For each image the mean of the maps of all other patients, which knows nothing of this image."""
    patients = np.array([image.patient for image in images])
    cells = np.array([each.cells for each in maps])
    return [
        replace(each, cells=cells[patients != image.patient].mean(0)) for each, image in zip(maps, images, strict=True)
    ]


def score_maps(maps: Sequence[Evidence], images: Sequence[Marked]) -> Floats:
    """Hit, near and share inside of each image's map, (N, 3)."""
    return np.array(
        [
            (*score_point(image, find_peak(each)), share_inside(each.map((GRID, GRID)), image.mask()))
            for each, image in zip(maps, images, strict=True)
        ]
    )


def find_peak(evidence: Evidence) -> Point:
    """The centre of the strongest cell; of those whose centre the image covers, since `pad` adds a border."""
    height, width = evidence.shape
    left, top, right, bottom = evidence.box
    rows, columns = evidence.cells.shape
    down = (top + (np.arange(rows) + 0.5) / rows * (bottom - top)) / height
    across = (left + (np.arange(columns) + 0.5) / columns * (right - left)) / width
    covered = ((down > 0) & (down < 1))[:, None] & (across > 0) & (across < 1)
    row, column = np.unravel_index(int(np.where(covered, evidence.cells, -np.inf).argmax()), evidence.cells.shape)
    return float(across[column]), float(down[row])


def score_point(image: Marked, point: Point) -> tuple[float, float]:
    """Whether a point lies in a box, and whether it lies there or near."""
    distance = float(image.distance(*np.array(point)))
    return float(distance == 0), float(distance <= TOLERANCE)


def score_baselines(images: Sequence[Marked], every: Sequence[Marked]) -> dict[str, Floats]:
    """The same scores of what knows nothing of the image: (N, 3) each; the mean boxes are those of other patients."""
    total = np.sum([image.mask() for image in every], axis=0)
    scores: dict[str, list[tuple[float, ...]]] = {"chance": [], "centre of the image": [], "mean boxes": []}
    for image in images:
        mask, distances = image.mask(), image.distances()
        others = total - np.sum([each.mask() for each in every if each.patient == image.patient], axis=0)
        down, across = np.unravel_index(int(others.argmax()), others.shape)
        peak = (float(across) + 0.5) / GRID, (float(down) + 0.5) / GRID
        scores["chance"].append((float(mask.mean()), float((distances <= TOLERANCE).mean()), float(mask.mean())))
        scores["centre of the image"].append((*score_point(image, (0.5, 0.5)), np.nan))
        scores["mean boxes"].append((*score_point(image, peak), share_inside(others.astype(np.float32), mask)))
    return {name: np.array(rows) for name, rows in scores.items()}


def report(images: Sequence[Marked], scores: dict[str, Floats]) -> None:
    """Print the scores by group, and how much better each map is than what knows other patients only."""
    patients = cluster_by_patient([image.patient for image in images], len(images))
    rows, gains = [], []
    for name, kept in divide(images):
        count = f"{kept.sum()} of {len(set(patients[kept]))}"
        for key, values in scores.items():
            rows.append([name, count, key, *(format_mean(column, patients[kept]) for column in values[kept].T)])
        for key in scores:
            for other in ("mean boxes", f"mean {key.replace(',', ' of others,')}") if key.startswith("map") else ():
                columns = (scores[key] - scores[other])[kept].T
                gains.append([name, f"{key}, minus {other}", *(format_gain(each, patients[kept]) for each in columns)])
    print_table(["images", "number, of patients", "what points", *COLUMNS], rows)
    print_table(["images", "difference", *COLUMNS], gains)


def divide(images: Sequence[Marked]) -> Iterator[tuple[str, Mask]]:
    """The groups that are reported: all, views, and thirds by the area of the boxes."""
    areas = np.array([image.mask().mean() for image in images])
    low, high = np.quantile(areas, (1 / 3, 2 / 3))
    rules: list[tuple[str, Callable[[], Mask]]] = [
        ("all", lambda: np.ones(len(images), bool)),
        *((view, lambda view=view: np.array([image.view == view for image in images])) for view in ("PA", "AP")),
        (f"boxes up to {low:.1%} of the image", lambda: areas <= low),
        (f"{low:.1%} to {high:.1%}", lambda: (areas > low) & (areas <= high)),
        (f"over {high:.1%}", lambda: areas > high),
    ]
    for name, rule in rules:
        if (kept := rule()).any():
            yield name, kept


def format_mean(values: Floats, patients: Ints) -> str:
    """Mean of values in [0, 1] with its interval, leaving out those that are not defined."""
    defined = ~np.isnan(values)
    if not defined.any():
        return "–"
    values, patients = values[defined], patients[defined]
    mean, error, degrees = measure_mean(values, patients)
    if np.isin(values, (0, 1)).all():
        low, high = rate_interval(values == 1, np.ones(len(values), bool), patients, CONFIDENCE)
    else:
        low, high = wilson_interval_from_error(mean, error, CONFIDENCE, degrees)
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


def format_gain(values: Floats, patients: Ints) -> str:
    """Mean of differences between images' scores with its interval."""
    defined = ~np.isnan(values)
    mean, error, degrees = measure_mean(values[defined], patients[defined])
    reach = t_quantile(CONFIDENCE, degrees) * error if degrees > 0 else np.nan
    return f"{mean:+.3f} ({mean - reach:+.3f} to {mean + reach:+.3f})"


def measure_mean(values: Floats, patients: Ints) -> tuple[float, float, int]:
    """The mean, its standard error by patient (linearised), and the degrees of freedom."""
    _, cluster = np.unique(patients, return_inverse=True)
    mean, count = float(values.mean()), int(cluster.max()) + 1
    sums = np.bincount(cluster, values - mean)
    return mean, float(np.sqrt(count / max(count - 1, 1) * (sums**2).sum())) / len(values), count - 1


if __name__ == "__main__":
    main()
