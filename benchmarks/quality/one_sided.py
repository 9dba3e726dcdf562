"""Does a network rely on what correlates with the class by accident? Only the images of one class are changed.

A change of both classes moves the threshold; a change of one class shows whether the network mistakes it for the class.
The images are test images of a run. With --model, small changes are made
to the children and adults that train_joint.py keeps for testing, at 224 pixels, and AUROCs are compared by patient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from chest_data import CHILD_VAL, assign, read_adults, split_adults, split_children
from corruptions import Change as ChangeImage
from corruptions import corruptions
from numpy.typing import NDArray
from PIL import Image
from protocol import draw_images, encode, make_parser, print_table
from sklearn.metrics import roc_auc_score

from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.samples import Sample, cluster_by_patient
from pneumoscope.evaluation.intervals.differences import Difference, compare_aurocs
from pneumoscope.inference.predictor import Predictor, load

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Change:
    """Effect of a change of one class, for either class: the AUROC, and the median shift of the logits."""

    name: str
    auroc: tuple[float, float]
    shift: tuple[float, float]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("run", type=Path, nargs="*")
    parser.add_argument("--model", default=None, help="a model for children and adults, instead of runs")
    parser.add_argument("--images", type=int, default=120, help="of each class")
    options = parser.parse_args()
    if options.model:
        rows = list(measure_small_changes(load(options.model, ood=False), options.data, options.images))
        print_table(["images", "change", "AUROC, normal changed", "AUROC, positive changed"], rows)
    for run in options.run:
        plain, changes = measure_changes(run, options.images)
        rows = [
            [each.name, *(f"{value:.3f}" for value in each.auroc), *(f"{value:+.1f}" for value in each.shift)]
            for each in changes
        ]
        print(f"\n{run}: AUROC of unchanged images {plain:.3f}; {summarise(changes)}")
        print_table(["change", "AUROC, normal changed", "pneumonia changed", "logit shift, normal", "pneumonia"], rows)


def measure_changes(run: Path, count: int) -> tuple[float, list[Change]]:
    """AUROC of unchanged images, and the effect of every change at its two middle amounts."""
    predictor = load(run, ood=False)
    drawn = [
        [Image.open(image.path).convert("L") for image in images]
        for images in draw_images(read_samples(run / "samples.csv"), predictor.model.labels, count)
    ]
    normal, pneumonia = (compute_logits(predictor, images) for images in drawn)
    changes = []
    for name, kind in corruptions().items():
        for amount in kind.amounts[2:4]:
            changed = [compute_logits(predictor, [kind.change(image, amount) for image in images]) for images in drawn]
            changes.append(
                Change(
                    f"{name}, {amount:g}",
                    (auroc(changed[0], pneumonia), auroc(normal, changed[1])),
                    (float(np.median(changed[0] - normal)), float(np.median(changed[1] - pneumonia))),
                )
            )
    return auroc(normal, pneumonia), changes


def measure_small_changes(predictor: Predictor, data: Path, count: int) -> Iterator[list[str]]:
    """A row for each population and change: the AUROC if one class is changed, and its difference."""
    kinds = corruptions()
    changes: dict[str, tuple[ChangeImage, float]] = {
        "blur, 1 pixel": (kinds["blur"].change, 1),
        "gamma 0.8": (kinds["gamma"].change, 0.8),
        "gamma 1.25": (kinds["gamma"].change, 1.25),
        "JPEG, quality 50": (kinds["JPEG"].change, 50),
        "5% larger": (kinds["crop"].change, 0.024),
        "5% smaller": (pad, 0.025),
    }
    for population, classes in draw_held_out(data, count).items():
        images = [[open_small(each.path, predictor.model.input.size) for each in samples] for samples in classes]
        plain = [compute_logits(predictor, each) for each in images]
        patients = [each.patient for samples in classes for each in samples]
        clusters, labels = cluster_by_patient(patients, len(patients)), np.repeat([0, 1], list(map(len, classes)))
        counts = f"{population}, {len(classes[1])} + {len(classes[0])}"
        yield [counts, "none", *[f"{auroc(*plain):.3f}"] * 2]
        for name, (change, amount) in changes.items():
            changed = [compute_logits(predictor, [change(image, amount) for image in each]) for each in images]
            sides = ([changed[0], plain[1]], [plain[0], changed[1]])
            scores = [np.stack([np.concatenate(plain), np.concatenate(side)]) for side in sides]
            yield [counts, name, *(describe(compare_aurocs(labels, each, clusters)) for each in scores)]


def draw_held_out(data: Path, count: int) -> dict[str, list[list[Sample]]]:
    """Normal and positive test images of train_joint.py, at most `count` of each, by population."""
    adults = [each for each in read_adults(data) if each.metadata["source"] in ("rsna", "nih")]
    return {
        "children": draw_images(split_children(data, CHILD_VAL), ("NORMAL", "PNEUMONIA"), count),
        "adults": draw_images(assign(adults, split_adults(data)), ("NORMAL", "OPACITY"), count),
    }


def open_small(path: Path, size: int) -> Image.Image:
    """An image squashed to a network's input, so that a change of pixels means the same for every image."""
    return Image.open(path).convert("L").resize((size, size), Image.Resampling.BICUBIC)


def pad(image: Image.Image, share: float) -> Image.Image:
    """Continue an image at each side by its mirror image, which a network then sees smaller."""
    return Image.fromarray(np.pad(np.asarray(image), round(share * image.width), "reflect"))


def describe(found: Difference) -> str:
    """An AUROC, and its difference from that of unchanged images with an interval."""
    interval = "" if np.isnan(found.low) else f" ({found.low:+.3f} to {found.high:+.3f})"  # none where nothing changed
    return f"{found.other:.3f}, {found.value:+.3f}{interval}"


def compute_logits(predictor: Predictor, images: Sequence[Image.Image]) -> Floats:
    """Logits of images."""
    return np.array([each.logits[0] for each in predictor.predict([encode(image) for image in images])])


def auroc(normal: Floats, pneumonia: Floats) -> float:
    """Area under the ROC curve."""
    logits = np.concatenate([normal, pneumonia])
    return float(roc_auc_score(np.arange(len(logits)) >= len(normal), logits))


def summarise(changes: Sequence[Change]) -> str:
    """Mean and lowest AUROC over all changes, by class."""
    normal, pneumonia = (np.array([each.auroc[side] for each in changes]) for side in (0, 1))
    return (
        f"normal images changed {normal.mean():.3f} (lowest {normal.min():.3f}), "
        f"pneumonia changed {pneumonia.mean():.3f} (lowest {pneumonia.min():.3f})"
    )


if __name__ == "__main__":
    main()
