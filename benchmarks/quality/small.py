"""The small task: 200 images to train, 100 to validate, several draws by patient; tested on all other images.

`--published` trains on the published 200 + 100 images and tests on their 100 instead, once for each seed: for the table
only, since what is chosen by it is no longer measured by it. These 100 have been looked at while the recipe was made:
docs/results.md says how often.
"""

from __future__ import annotations

from protocol import METRICS, arguments, complete, draw_small, print_table, read_kermany, summarise


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--recipes", default="baseline,head,finetune,best")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--published", action="store_true")
    options = parser.parse_args()
    samples = [] if options.published else read_kermany(options.data)
    rows = []
    for recipe in options.recipes.split(","):
        results = []
        for seed in range(options.seeds):
            name = f"{'published' if options.published else 'small'}-{recipe}-{seed}"
            images = options.data / "seed-400" if options.published else draw_small(samples, seed)
            results.append(complete(images, options.runs / name, recipe=recipe, seed=seed))
        low, high = results[0].metrics["accuracy"]["low"], results[0].metrics["accuracy"]["high"]
        rows.append([recipe, *summarise(results), f"{low:.3f} to {high:.3f}"])
    print_table(["recipe", *METRICS, "training and test", "95 % interval of accuracy, seed 0"], rows)


if __name__ == "__main__":
    main()
