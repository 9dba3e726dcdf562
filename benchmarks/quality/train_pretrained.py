"""The run whose model ships: all 5,216 images to train and validate on, the published 100 to test; see convert_pretrained.py."""

from __future__ import annotations

import dataclasses

from protocol import arguments, complete, read_kermany

from pneumoscope.datasets.duplicates import group_identical
from pneumoscope.datasets.samples import read_samples
from pneumoscope.datasets.splits import split_samples


def main() -> None:
    options = arguments(__doc__).parse_args()
    images = [dataclasses.replace(image, split="train") for image in read_kermany(options.data)]
    images += [image for image in read_samples(options.data / "seed-400") if image.split == "test"]
    drawn = split_samples(images, groups=group_identical(images), seed=0)
    complete(drawn, options.runs / "pretrained", recipe="best", seed=0)


if __name__ == "__main__":
    main()
