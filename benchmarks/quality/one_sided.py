"""Does a network rely on what correlates with the class by accident? Only the images of one class are changed.

A change of both classes moves the threshold; a change of one class shows whether the network mistakes it for the class.
The images are test images of a run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from corruptions import corruptions
from numpy.typing import NDArray
from PIL import Image
from protocol import draw_images, encode, print_table
from sklearn.metrics import roc_auc_score

from pneumoscope.datasets.reading import read_samples
from pneumoscope.inference.predictor import Predictor, load

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Change:
    """Effect of a change of one class, for either class: the AUROC, and the median shift of the logits."""

    name: str
    auroc: tuple[float, float]
    shift: tuple[float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="+")
    parser.add_argument("--images", type=int, default=120, help="of each class")
    options = parser.parse_args()
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
