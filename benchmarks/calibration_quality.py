"""What calibration, threshold rules and an estimated prevalence are worth on images that were not used for them.

Each split draws training, validation and test images by patient from real images. A linear head on frozen features is
fitted on the first, calibration and threshold on the second; the third measures both. For the prevalence, test images
of one class are left out until the other has the fraction that is to be estimated.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from conformal_coverage import Images, extract, fit_logits, split_by_patient
from pneumoscope.decisions import calibration, prior_shift, threshold
from pneumoscope.evaluation.metrics import measure

METHODS: tuple[calibration.Method | Literal["auto"], ...] = ("auto", "none", "temperature", "platt", "isotonic")
RULES = ("0.5", "likelihood", "youden", "f1", "sensitivity>=0.95", "specificity>=0.95", "cost=5")
PREVALENCES = (0.05, 0.2, 0.5, 0.9)
Floats = NDArray[np.float64]
Table = dict[tuple[str, ...], list[tuple[float, ...]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/kermany-train-224"))
    parser.add_argument("--splits", type=int, default=50)
    options = parser.parse_args()
    images = extract(options.data)
    methods: Table = defaultdict(list)
    rules: Table = defaultdict(list)
    priors: Table = defaultdict(list)
    for train, val in ((200, 100), (1000, 1000)):
        for seed in range(options.splits):
            measure_split(images, (train, val), seed, methods, rules, priors)
    print_table("| images: train, validation | method | log loss | Brier | calibration error |", methods, 4)
    print_table("| images: train, validation | threshold | sensitivity | specificity | accuracy |", rules, 3)
    print_table(
        "| images: train, validation | true prevalence | estimated | log loss, unadjusted | adjusted to the estimate "
        "| adjusted to the truth |",
        priors,
        3,
    )


def measure_split(
    images: Images, sizes: tuple[int, int], seed: int, methods: Table, rules: Table, priors: Table
) -> None:
    """Add the metrics of one split to the three tables; `sizes` are those of training and validation."""
    fitted, held_out, tested = split_by_patient(images, *sizes, seed)
    logits, y, shown = fit_logits(images, fitted), images.targets, f"{sizes[0]}, {sizes[1]}"
    fractions = (np.bincount(y[fitted]) / len(fitted)).tolist()
    for method in METHODS:
        calibrated = calibration.fit(logits[held_out], y[held_out], method=method, class_fractions=fractions)
        log_probabilities = calibration.apply(logits[tested], calibrated)
        metrics = measure(y[tested], np.exp(log_probabilities[:, 1]))
        loss = log_loss(log_probabilities, y[tested])
        methods[shown, method].append((loss, float(metrics["brier"][0]), float(metrics["ece"][0])))
    calibrated = calibration.fit(logits[held_out], y[held_out], class_fractions=fractions)
    log_probabilities = calibration.apply(logits, calibrated)
    p, truth = np.exp(log_probabilities[:, 1]), y[tested] == 1
    for rule in RULES:
        predicted = threshold.apply(p[tested], threshold.fit(rule, y[held_out], p[held_out]))
        rules[shown, rule].append((predicted[truth].mean(), (~predicted)[~truth].mean(), (predicted == truth).mean()))
    for prevalence in PREVALENCES:
        chosen = draw_at_prevalence(tested, y, prevalence, seed)
        unadjusted = log_probabilities[chosen]
        estimate = prior_shift.fit(unadjusted, fractions)
        adjusted = [
            prior_shift.apply(unadjusted, fractions, wanted)
            for wanted in (estimate.tolist(), (1 - prevalence, prevalence))
        ]
        losses = [log_loss(each, y[chosen]) for each in (unadjusted, *adjusted)]
        priors[shown, f"{prevalence:g}"].append((float(estimate[1]), *losses))


def log_loss(log_probabilities: Floats, y: NDArray[np.int64]) -> float:
    """Of probabilities not below exp(-700), so that one certain error does not make it infinite."""
    return float(-np.maximum(log_probabilities[np.arange(len(y)), y], -700).mean())


def draw_at_prevalence(
    indices: NDArray[np.int64], y: NDArray[np.int64], prevalence: float, seed: int
) -> NDArray[np.int64]:
    """As many images as there can be with that fraction of the positive class."""
    rng = np.random.default_rng(seed)
    positive, negative = (rng.permutation(indices[y[indices] == label]) for label in (1, 0))
    n = int(min(len(positive) / prevalence, len(negative) / (1 - prevalence)))
    k = round(n * prevalence)
    return np.concatenate([positive[:k], negative[: n - k]])


def print_table(head: str, rows: Table, digits: int) -> None:
    print(f"\n{head}\n{'| --- ' * (head.count('|') - 1)}|")
    for names, values in rows.items():
        mean, spread = np.mean(values, axis=0), np.std(values, axis=0)
        cells = [f"{m:.{digits}f} ± {s:.{digits}f}" for m, s in zip(mean, spread, strict=True)]
        print(f"| {' | '.join([*names, *cells])} |")


if __name__ == "__main__":
    main()
