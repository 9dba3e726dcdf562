"""How often 95% intervals of differences cover the truth, and how often equal models seem different, by simulation.

Two models see the same simulated images; their scores are normal, correlated, and alike within a patient. The true
differences are those of two million independent images. Prints a table in Markdown.

    python benchmarks/comparison_coverage.py [--studies 1000] [--resamples 1000] [--classes 2|3]
"""

from __future__ import annotations

import argparse
import math
from itertools import product
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.evaluation.compare import compare_pairing
from pneumoscope.evaluation.intervals.differences import Difference, compare_macro_auroc
from pneumoscope.evaluation.metrics import measure
from pneumoscope.evaluation.pairing import Pairing, Predictions

PREVALENCE = 0.6
ALIKE = 0.6  # correlation of the two models' scores
WITHIN = 0.5  # of a model's scores of one patient's images
CLASSES = ("NORMAL", "PNEUMONIA")


def number_patients(rng: np.random.Generator, n: int, images: float) -> NDArray[np.int64]:
    """(n,) numbers of patients with `images` images each on average."""
    if images == 1:
        return np.arange(n)
    return np.repeat(np.arange(n), 1 + rng.poisson(images - 1, n))[:n]


def draw_noise(rng: np.random.Generator, clusters: NDArray[np.int64], count: int = 1) -> NDArray[np.float64]:
    """Scores (2, N, count) of two models, alike between models and within patients."""
    spread = np.linalg.cholesky([[1, ALIKE], [ALIKE, 1]])
    of_patient, of_image = (spread @ rng.standard_normal((count, 2, len(clusters))) for _ in range(2))
    noise: NDArray[np.float64] = math.sqrt(WITHIN) * of_patient[..., clusters] + math.sqrt(1 - WITHIN) * of_image
    return np.moveaxis(noise, 0, -1)


def draw_two(
    rng: np.random.Generator, clusters: NDArray[np.int64], aurocs: tuple[float, float]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels (N,) and calibrated probabilities (2, N) of models with these AUROCs."""
    labels = (rng.random(len(clusters)) < PREVALENCE)[clusters].astype(np.int64)
    apart = np.array([[math.sqrt(2) * NormalDist().inv_cdf(auroc)] for auroc in aurocs])
    scores = draw_noise(rng, clusters)[..., 0] + apart * (labels - 0.5)
    logits = apart * scores + math.log(PREVALENCE / (1 - PREVALENCE))
    return labels, 1 / (1 + np.exp(-logits))


def draw_three(
    rng: np.random.Generator, clusters: NDArray[np.int64], pulls: tuple[float, float]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels (N,) and probabilities (2, N, 3) of models that pull the true class's score up by so much."""
    labels = rng.integers(3, size=len(clusters))[clusters]
    logits = draw_noise(rng, clusters, 3) + np.array(pulls)[:, None, None] * np.eye(3)[labels]
    shares = np.exp(logits)
    return labels, shares / shares.sum(2, keepdims=True)


def compare_two(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    clusters: NDArray[np.int64],
    seed: int,
    resamples: int,
) -> dict[str, Difference]:
    """What `pneumoscope compare` says of two models."""
    clusters = np.unique(clusters, return_inverse=True)[1]
    run = Predictions(Path(), CLASSES, CLASSES[1], 0.5, ())
    pairing = Pairing(
        runs=(run, run), classes=CLASSES, labels=labels, probabilities=probabilities,
        predicted=(probabilities >= 0.5).astype(np.int64), paths=(), clusters=clusters, patients=None,
        paired_by="content", unread=(0, 0),
    )  # fmt: skip
    contrast = compare_pairing(pairing, ["first", "other"], resamples=resamples, seed=seed).contrasts[0]
    return dict(contrast.differences)


def find_truth(draw: Any, qualities: tuple[float, float], names: tuple[str, ...]) -> dict[str, float]:
    """The differences in two million images, each of a patient of its own."""
    totals = []
    for seed in range(10):
        labels, probabilities = draw(np.random.default_rng(seed), np.arange(200_000), qualities)
        one, other = (measure(labels, each) for each in probabilities)
        totals.append([float(other[name][0] - one[name][0]) for name in names])
    return dict(zip(names, np.mean(totals, axis=0).tolist(), strict=True))


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--classes", type=int, choices=(2, 3), help="by default both")
    options = parser.parse_args()
    two = ("auroc", "accuracy", "sensitivity", "specificity", "brier")
    print("| classes | images | a patient | models | metric | coverage | plain bootstrap | p < 0.05 |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    settings: list[tuple[int, Any, tuple[float, float], str, tuple[str, ...]]] = [
        (2, draw_two, (0.9, 0.9), "equal, AUROC 0.90", two),
        (2, draw_two, (0.97, 0.97), "equal, AUROC 0.97", two),
        (2, draw_two, (0.93, 0.97), "AUROC 0.93, 0.97", two),
        (3, draw_three, (1.5, 1.5), "equal", ("auroc",)),
        (3, draw_three, (1.5, 2.0), "different", ("auroc",)),
    ]
    for (classes, draw, qualities, shown, names), (n, images) in product(settings, product((100, 624), (1, 2))):
        if options.classes not in (None, classes):
            continue
        truth = dict.fromkeys(names, 0.0) if qualities[0] == qualities[1] else find_truth(draw, qualities, names)
        found: dict[str, list[Difference]] = {name: [] for name in names}
        for seed in range(options.studies):
            rng = np.random.default_rng([n, images, seed])
            clusters = number_patients(rng, n, images)
            labels, probabilities = draw(rng, clusters, qualities)
            if classes == 2:
                differences = compare_two(labels, probabilities, clusters, seed, options.resamples)
            else:
                differences = {
                    "auroc": compare_macro_auroc(
                        labels, probabilities, clusters, seed=seed, resamples=options.resamples
                    )
                }
            for name in names:
                found[name].append(differences[name])
        for name in names:
            each = [one for one in found[name] if not math.isnan(one.low)]
            covered = np.mean([one.low <= truth[name] <= one.high for one in each])
            plain = [one.bootstrap[0] <= truth[name] <= one.bootstrap[1] for one in each if one.bootstrap]
            apart = np.mean([one.p < 0.05 for one in found[name]])
            print(
                f"| {classes} | {n} | {images} | {shown} | {name} | {covered:.3f} | "
                f"{f'{np.mean(plain):.3f}' if plain else ''} | {apart:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
