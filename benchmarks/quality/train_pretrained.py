"""Train the pretrained model: all 5,216 images to train and validate, the published 100 to test.

convert_pretrained.py checks the run and stores its model with the package.
"""

from __future__ import annotations

import dataclasses

from protocol import make_parser, read_kermany, train_once

from pneumoscope.datasets.duplicates import group_identical
from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.splits import split_samples


def main() -> None:
    options = make_parser(__doc__).parse_args()
    images = [dataclasses.replace(image, split="train") for image in read_kermany(options.data)]
    images += [image for image in read_samples(options.data / "seed-400") if image.split == "test"]
    samples = split_samples(images, groups=group_identical(images), seed=0)
    train_once(samples, options.runs / "pretrained", recipe="best", seed=0)


if __name__ == "__main__":
    main()
