"""The small task: 200 images to train, 100 to validate, several draws by patient; tested on all other images.

`--published` trains on the published 200 + 100 images and tests on their 100 instead, once for each seed. Use it for
the table only: images that a recipe was chosen by do not measure it. docs/results.md says how often these 100 were
looked at while the recipes were developed.
"""

from __future__ import annotations

from itertools import product

from protocol import (
    BACKBONE,
    METRICS,
    draw_small,
    make_parser,
    name_backbone,
    print_table,
    read_kermany,
    refuse_seen,
    summarise,
    train_once,
)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--recipes", default="baseline,head,finetune,best")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--published", action="store_true")
    parser.add_argument("--backbones", default=BACKBONE)
    options = parser.parse_args()
    if not options.published:
        refuse_seen(options.backbones)
    samples = [] if options.published else read_kermany(options.data)
    rows = []
    for recipe, backbone in product(options.recipes.split(","), options.backbones.split(",")):
        results = []
        for seed in range(options.seeds):
            task = "published" if options.published else "small"
            folder = options.runs / "-".join([task, recipe, *name_backbone(backbone), str(seed)])
            images = options.data / "seed-400" if options.published else draw_small(samples, seed)
            results.append(train_once(images, folder, recipe=recipe, seed=seed, backbone=backbone))
        low, high = results[0].metrics["accuracy"]["low"], results[0].metrics["accuracy"]["high"]
        rows.append([recipe, backbone, *summarise(results), f"{low:.3f} to {high:.3f}"])
    print_table(["recipe", "backbone", *METRICS, "training and test", "95% interval of the accuracy, seed 0"], rows)


if __name__ == "__main__":
    main()
