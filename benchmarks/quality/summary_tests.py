"""How often `summarize` finds a difference between two groups of runs where there is none, over simulated studies.

    python benchmarks/quality/summary_tests.py [--studies 400] [--seeds 3 5]

Patients have two images each, hard or easy for every model. The runs of a model find some of them harder than the other
model does; each run (seed) also has noise of its own and is a little better or worse. Both groups are from the same
distribution, so 5% of studies should give p < 0.05. Beside it: tests that count only the variance between seeds (paired
t test), or only that between patients.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope.evaluation.intervals.bootstrap import jackknife
from pneumoscope.evaluation.pairing import Pairing, Predictions
from pneumoscope.evaluation.summary import find_difference, measure_differences, measure_run

Floats = NDArray[np.float64]
CLASSES = ("NORMAL", "PNEUMONIA")
METRICS = ("auroc", "accuracy", "sensitivity", "brier")


def draw(images: int, seeds: int, rng: np.random.Generator) -> Pairing:
    """The predictions of two models with so many seeds each."""
    patients = np.arange(images) // 2
    labels = rng.permutation(np.arange(patients.max() + 1) % 2)[patients]
    hard = rng.standard_normal(patients.max() + 1)[patients]
    scores = []
    for _ in range(2):
        own = 0.5 * rng.standard_normal(patients.max() + 1)[patients]
        for _ in range(seeds):
            skill = 2 + 0.3 * rng.standard_normal()
            scores.append(skill * (labels - 0.5) * 1.5 + hard + own + 0.4 * rng.standard_normal(images))
    probabilities = 1 / (1 + np.exp(-np.array(scores)))
    runs = tuple(Predictions(Path(str(i)), CLASSES, CLASSES[1], 0.5, ()) for i in range(2 * seeds))
    return Pairing(
        runs, CLASSES, labels, probabilities, (probabilities >= 0.5).astype(np.int64), (), patients, None, "path",
        (0,) * len(runs),
    )  # fmt: skip


def study(images: int, seeds: int, seed: int) -> Floats:
    """P values (3, M): ours, by seeds alone, by patients alone."""
    pairing = draw(images, seeds, np.random.default_rng([seed, images, seeds]))
    first, other = range(seeds), range(seeds, 2 * seeds)
    ours = measure_differences(pairing, first, other, paired=True)
    whole = np.ones((1, images))
    values = [measure_run(pairing, i, whole) for i in range(2 * seeds)]

    def contrast(weights: Floats) -> dict[str, Floats]:
        found = [measure_run(pairing, i, weights) for i in range(2 * seeds)]
        means = [{m: np.mean([run[m] for run in part], 0) for m in METRICS} for part in (found[:seeds], found[seeds:])]
        return {m: means[1][m] - means[0][m] for m in METRICS}

    errors = jackknife(contrast, pairing.clusters)
    rows = []
    for metric in METRICS:
        a, b = (np.array([float(values[i][metric][0]) for i in group]) for group in (first, other))
        by_seed = ((b - a).var(ddof=1) / seeds, seeds - 1)
        by_patient = (errors[metric] ** 2, images // 2 - 1)
        pair = float(a.mean()), float(b.mean())
        rows.append([ours[metric].p, find_difference(*pair, [by_seed]).p, find_difference(*pair, [by_patient]).p])
    return np.array(rows).T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 5])
    parser.add_argument("--images", type=int, nargs="+", default=[100, 300])
    arguments = parser.parse_args()
    print("| images | seeds | variance | " + " | ".join(METRICS) + " |")
    print("|" + " --- |" * (3 + len(METRICS)))
    for images in arguments.images:
        for seeds in arguments.seeds:
            found = np.array([study(images, seeds, i) for i in range(arguments.studies)])
            shares = 100 * (found < 0.05).mean(0)
            for name, row in zip(("seeds and patients (ours)", "seeds alone", "patients alone"), shares, strict=True):
                print(
                    f"| {images} | {seeds} | {name} | " + " | ".join(f"{share:.1f}" for share in row) + " |", flush=True
                )


if __name__ == "__main__":
    main()
