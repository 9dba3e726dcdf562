"""The full task: cross-validation by patient on the 5,216 training images."""

from __future__ import annotations

import csv
from collections.abc import Sequence

import numpy as np
from protocol import METRICS, Result, draw_folds, make_parser, print_table, read_kermany, summarise, train_once

from pneumoscope.datasets.samples import cluster_by_patient
from pneumoscope.evaluation.intervals.proportions import rate_interval


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--recipes", default="baseline,head,finetune,best")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1, help="how often to divide into folds")
    options = parser.parse_args()
    samples = read_kermany(options.data)
    rows = []
    for recipe in options.recipes.split(","):
        results = [
            train_once(images, options.runs / f"full-{recipe}-{seed}-{fold}", recipe=recipe, seed=seed)
            for seed in range(options.seeds)
            for fold, images in enumerate(draw_folds(samples, options.folds, seed))
        ]
        rows.append([recipe, *summarise(results), pool_accuracy(results[: options.folds])])
    print_table(["recipe", *METRICS, "training and test", "accuracy on all images, first division, 95% interval"], rows)


def pool_accuracy(results: Sequence[Result]) -> str:
    """Accuracy on all images, each tested in its fold, with an interval by patient."""
    rows = []
    for result in results:
        with (result.folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
            rows += [row for row in csv.DictReader(file) if row["predicted_label"]]
    correct = np.array([row["predicted_label"] == row["label"] for row in rows])
    clusters = cluster_by_patient([row["patient"] or None for row in rows], len(rows))
    low, high = rate_interval(correct, np.ones(len(rows), bool), clusters, 0.95)
    return f"{correct.mean():.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
