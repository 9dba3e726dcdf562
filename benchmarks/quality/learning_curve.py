"""Accuracy by number of images, training and validation together; all are tested on the same held-out fifth."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import product

from protocol import (
    BACKBONE,
    METRICS,
    draw_folds,
    make_parser,
    name_backbone,
    print_table,
    read_kermany,
    refuse_seen,
    summarise,
    train_once,
)

from pneumoscope.datasets.duplicates import group_identical
from pneumoscope.datasets.samples import Sample
from pneumoscope.datasets.splits import split_samples


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--recipes", default="head,best")
    parser.add_argument("--counts", default="50,100,200,400,800,1600,3200,0", help="0: all the other four fifths")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--backbones", default=BACKBONE)
    options = parser.parse_args()
    refuse_seen(options.backbones)
    samples = read_kermany(options.data)
    fold = draw_folds(samples, 5, 0)[0]
    rows = []
    for recipe, backbone in product(options.recipes.split(","), options.backbones.split(",")):
        for count in map(int, options.counts.split(",")):
            results = []
            for seed in range(options.seeds):
                images = draw(fold, count, seed)
                folder = options.runs / "-".join(["curve", recipe, *name_backbone(backbone), str(count), str(seed)])
                results.append(train_once(images, folder, recipe=recipe, seed=seed, backbone=backbone))
            rows.append([recipe, backbone, sum(image.split != "test" for image in images), *summarise(results)])
    print_table(["recipe", "backbone", "images", *METRICS, "a run"], rows)


def draw(fold: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """About `count` images of whole patients, stratified, from those that are not tested; split into train and val."""
    test = [image for image in fold if image.split == "test"]
    rest = [dataclasses.replace(image, split=None) for image in fold if image.split != "test"]
    if count:
        drawn = split_samples(rest, test_count=count, val_count=2, groups=group_identical(rest), seed=seed)
        rest = [image for image in drawn if image.split == "test"]
    chosen = [dataclasses.replace(image, split="train") for image in rest] + test
    return split_samples(chosen, groups=group_identical(chosen), seed=seed)


if __name__ == "__main__":
    main()
