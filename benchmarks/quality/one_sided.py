"""Does a network lean on what goes with the class by accident? Images of one class are changed, all others are not.

A change that both classes undergo alike moves a threshold; one that hits a single class shows whether the network takes
it for the class. The images are test images of a run, so many of each class.
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

from pneumoscope.datasets.samples import read_samples
from pneumoscope.inference.predictor import Predictor, load

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Change:
    """What a change does: AUROC where one class is changed, by class, and by how much the logits move (median)."""

    name: str
    auroc: tuple[float, float]
    moved: tuple[float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="+")
    parser.add_argument("--images", type=int, default=120, help="of each class")
    options = parser.parse_args()
    for run in options.run:
        plain, changes = judge(run, options.images)
        rows = [
            [one.name, *(f"{value:.3f}" for value in one.auroc), *(f"{value:+.1f}" for value in one.moved)]
            for one in changes
        ]
        print(f"\n{run}: AUROC of images as they are {plain:.3f}; {summarise(changes)}")
        print_table(["change", "AUROC, normal changed", "pneumonia changed", "normal moves by", "pneumonia by"], rows)


def judge(run: Path, count: int) -> tuple[float, list[Change]]:
    """AUROC of images as they are, and what every change does at its two middling amounts."""
    predictor = load(run, detect_ood=False)
    drawn = [
        [Image.open(image.path).convert("L") for image in images]
        for images in draw_images(read_samples(run / "samples.csv"), predictor.model.labels, count)
    ]
    normal, ill = (score(predictor, images) for images in drawn)
    changes = []
    for name, kind in corruptions().items():
        for amount in kind.amounts[2:4]:
            changed = [score(predictor, [kind.change(image, amount) for image in images]) for images in drawn]
            changes.append(
                Change(
                    f"{name}, {amount:g}",
                    (auroc(changed[0], ill), auroc(normal, changed[1])),
                    (float(np.median(changed[0] - normal)), float(np.median(changed[1] - ill))),
                )
            )
    return auroc(normal, ill), changes


def score(predictor: Predictor, images: Sequence[Image.Image]) -> Floats:
    """Logits of images."""
    return np.array([found.logits[0] for found in predictor.predict([encode(image) for image in images])])


def auroc(normal: Floats, ill: Floats) -> float:
    """Area under the ROC curve."""
    return float(roc_auc_score(np.arange(len(normal) + len(ill)) >= len(normal), np.concatenate([normal, ill])))


def summarise(changes: Sequence[Change]) -> str:
    """Mean and lowest over all changes, by class."""
    normal, ill = (np.array([one.auroc[side] for one in changes]) for side in (0, 1))
    return (
        f"normal images changed {normal.mean():.3f} (lowest {normal.min():.3f}), "
        f"pneumonia changed {ill.mean():.3f} (lowest {ill.min():.3f})"
    )


if __name__ == "__main__":
    main()
