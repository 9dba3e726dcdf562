"""How far a JPEG may be decoded at reduced scale before a prediction shows it.

    python benchmarks/reduced_scale.py FOLDER RUN/model...

Images of FOLDER are enlarged to the size of a detector and given finer detail (noise whose spectrum falls as that of
radiographs, and quantum noise). They are saved as JPEG of quality 75, 90 and 95 in turn, grey and colour in turn. Each
is read in full and at 1/2, 1/4 and 1/8, and every model predicts each, with every fit. The table shows for each factor
how much the probability changes where the shorter side keeps at least factor x size; `InputSpec.min_side` sets one.
"""

from __future__ import annotations

import argparse
import io
from collections import defaultdict
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pneumoscope.images.prepare import InputSpec, prepare
from pneumoscope.images.read import read_radiograph
from pneumoscope.inference.predictor import Predictor, compute_logits, load

FACTORS = (1, 2, 3, 4, 6, 8, 12)
ENLARGED = (8, 12, 16, 24)  # shorter side over the input's: at 1/2, 1/4 or 1/8 exactly one of the factors is left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    paths = sorted(path for path in arguments.folder.rglob("*") if path.suffix in (".jpeg", ".jpg", ".png"))
    paths = paths[:: max(1, len(paths) // arguments.images)][: arguments.images]
    predictors = {path: load(path, "cpu") for path in arguments.models}
    rng = np.random.default_rng(arguments.seed)
    changes: dict[tuple[str, str, int], list[float]] = defaultdict(list)  # in probability
    for number, path in enumerate(paths):
        image = read_radiograph(path).pixels
        for times in ENLARGED[number % 2 :: 2]:  # an image in two of the sizes
            size = next(iter(predictors.values())).model.input.size
            content = encode(enlarge(image, times * size, rng), (75, 90, 95)[number % 3], colour=number % 4 > 1)
            shorter = min(read_radiograph(content).size)
            images = {scale: read_radiograph(content, min_side=shorter // scale).pixels for scale in (1, 2, 4, 8)}
            for (model, predictor), fit in product(predictors.items(), ("crop", "pad", "squash")):
                spec = replace(predictor.model.input, fit=fit)
                probabilities = {scale: predict(predictor, pixels, spec) for scale, pixels in images.items()}
                for factor in FACTORS:
                    scale = max(scale for scale in images if scale == 1 or shorter // scale >= factor * size)
                    if scale > 1:
                        changes[str(model), fit, factor].append(abs(probabilities[scale] - probabilities[1]))
    print("| model | fit | factor | images | median | 99% | largest |\n| --- | --- | --- | --- | --- | --- | --- |")
    for (name, fit, factor), values in sorted(changes.items()):
        median, high = np.quantile(values, (0.5, 0.99))
        print(f"| {name} | {fit} | {factor} | {len(values)} | {median:.5f} | {high:.5f} | {max(values):.5f} |")


def enlarge(image: NDArray[np.float32], shorter: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Enlarge an image to 4 : 3 and add the finer detail that a detector of that size would show."""
    height, width = shorter, 8 * round(shorter / 6)
    scale = shorter / min(image.shape)
    smooth = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    beyond = 0.5 / scale  # cycles per pixel: the image's own Nyquist frequency
    falling = np.where(frequency > beyond, (beyond / np.maximum(frequency, beyond)) ** 1.5, 0)
    detail = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) * falling, s=(height, width))
    levels = 255 * smooth + 4 * detail / detail.std() + 3 * rng.standard_normal((height, width))
    rounded: NDArray[np.uint8] = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return rounded


def encode(levels: NDArray[np.uint8], quality: int, colour: bool) -> bytes:
    content = io.BytesIO()
    image = Image.fromarray(levels)
    (image.convert("RGB") if colour else image).save(content, "JPEG", quality=quality)
    return content.getvalue()


def predict(predictor: Predictor, pixels: NDArray[np.float32], spec: InputSpec) -> float:
    features = predictor.engine.run(prepare(pixels, spec)[None]).features
    outcome = predictor.decider.apply(compute_logits(features, predictor.weight, predictor.bias))
    return float(outcome.probabilities[0, 1])


if __name__ == "__main__":
    main()
