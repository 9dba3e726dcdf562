"""Narrow windows and inverted images: what a window costs the classifier, and how many inverted images are noticed.

A window that shows only part of an image's grey levels saturates the rest. Each image is stretched to such windows, as
a viewer would, and scored by the pretrained model; `none` is the full range. The second table counts the warning
"probably inverted" on images as they are and inverted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from chest_data import read_adults
from PIL import Image
from protocol import encode, make_parser, print_table, read_kermany

from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.samples import Sample
from pneumoscope.evaluation.metrics import measure
from pneumoscope.images.appearance import find_faults
from pneumoscope.images.read import read_radiograph
from pneumoscope.inference.predictor import load

SHARES = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85)  # of the pixels that a window saturates
SIDES = {"dark": (1.0, 0.0), "bright": (0.0, 1.0), "both": (0.5, 0.5)}


def main() -> None:
    options = make_parser(__doc__).parse_args()
    children = [image for image in read_samples(options.data / "seed-400") if image.split == "test"]
    adults = read_adults(options.data)
    classes = [image for image in adults if image.path.parent.name != "rsna-normal" and image.label != "OTHER"]
    rows = []
    for name, images in (("children", children), ("adults", draw(classes, 250))):
        truth = np.array([image.label in ("PNEUMONIA", "OPACITY") for image in images])
        pixels = [read(image.path) for image in images]
        rows.append([name, "none", f"{score(pixels, truth):.3f}", *[""] * (len(SHARES) - 1)])
        for side, parts in SIDES.items():
            scores = [score([apply(each, share, parts) for each in pixels], truth) for share in SHARES]
            rows.append([name, side, *(f"{value:.3f}" for value in scores)])
    print_table(["images", "saturated", *(f"{share:.0%}" for share in SHARES)], rows)
    rows = []
    for name, images in (("children", read_kermany(options.data)), ("adults", adults)):
        found = np.array([[notice(each), notice(1 - each)] for each in (read(image.path) for image in images)])
        rows.append([name, str(len(images)), str(found[:, 0].sum()), f"{found[:, 1].mean():.1%}"])
    print_table(["images", "number", "called inverted as they are", "called inverted when inverted"], rows)


def draw(images: Sequence[Sample], count: int) -> list[Sample]:
    """Some of the images, by chance."""
    places = np.sort(np.random.default_rng(0).permutation(len(images))[:count])
    return [images[place] for place in places]


def read(path: Path) -> np.ndarray:
    """Pixels, float32 (H, W) in [0, 1]."""
    return read_radiograph(path.read_bytes()).pixels


def apply(pixels: np.ndarray, share: float, parts: tuple[float, float]) -> np.ndarray:
    """Stretch what a window shows that saturates a share of the pixels, split between dark and bright."""
    low, high = np.quantile(pixels, (share * parts[0], 1 - share * parts[1]))
    stretched: np.ndarray = np.clip((pixels - low) / max(high - low, 1 / 255), 0, 1)
    return stretched


def score(images: Sequence[np.ndarray], truth: np.ndarray) -> float:
    """AUROC of the pretrained model."""
    contents: Iterator[bytes] = (encode(Image.fromarray(np.rint(each * 255).astype(np.uint8))) for each in images)
    probabilities = [each.raw_probability for each in load("pneumonia-lite0").run(contents)]
    return float(measure(truth.astype(int), np.array(probabilities, float))["auroc"][0])


def notice(pixels: np.ndarray) -> bool:
    """Whether an image is called inverted."""
    return any(fault.startswith("probably inverted") for fault in find_faults(pixels))


if __name__ == "__main__":
    main()
