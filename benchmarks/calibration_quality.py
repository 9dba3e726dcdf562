"""What calibration, threshold rules and an estimated prevalence are worth on images that were not used for them.

Each split draws training, validation and test images by patient from real images; a logistic regression on frozen
features is fitted on the first, calibration and threshold on the second, and both are judged on the third. For the
prevalence, test images of one class are left out until the other has the share that is to be estimated.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from pneumoscope.decisions.decide import calibrate, restate

from conformal_coverage import Images, divide, extract, fit_logits
from pneumoscope.decisions.calibration import Method, fit_calibration, judge
from pneumoscope.decisions.threshold import choose_threshold
from pneumoscope.evaluation.prevalence import estimate_shares

RULES = ("0.5", "likelihood", "youden", "f1", "sensitivity>=0.95", "specificity>=0.95", "cost=5")
PREVALENCES = (0.05, 0.2, 0.5, 0.9)
Table = dict[tuple[str, ...], list[tuple[float, ...]]]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path("../shared/data/kermany-train-224"))
    options.add_argument("--splits", type=int, default=50)
    given = options.parse_args()
    images = extract(given.data)
    methods: Table = defaultdict(list)
    rules: Table = defaultdict(list)
    priors: Table = defaultdict(list)
    for train, val in ((200, 100), (1000, 1000)):
        for seed in range(given.splits):
            measure_split(images, train, val, seed, methods, rules, priors)
    print_table("| images: train, validation | method | log loss | Brier | calibration error |", methods, 4)
    print_table("| images: train, validation | threshold | sensitivity | specificity | accuracy |", rules, 3)
    print_table(
        "| images: train, validation | true prevalence | estimated | log loss as it is | adapted | with the true one |",
        priors, 3,
    )  # fmt: skip


def measure_split(images: Images, train: int, val: int, seed: int, methods: Table, rules: Table, priors: Table) -> None:
    fitted, held, tested = divide(images, train, val, seed)
    logits = fit_logits(images, fitted)
    y, size = images.targets, f"{train}, {val}"
    shares = (np.bincount(y[fitted]) / len(fitted)).tolist()
    alike = np.ones(len(tested))
    for method in get_args(Method):
        calibration = fit_calibration(logits[held], y[held], method=method, shares=shares)
        found = judge(calibrate(logits[tested], calibration), y[tested], alike)
        methods[size, method].append((found["log_loss"], found["brier"], found["ece"]))
    calibration = fit_calibration(logits[held], y[held], shares=shares)
    log_shares = calibrate(logits, calibration)
    for rule in RULES:
        threshold = choose_threshold(rule, y[held], np.exp(log_shares[held, 1]))
        called = np.exp(log_shares[tested, 1]) >= threshold
        truth = y[tested] == 1
        rules[size, rule].append((called[truth].mean(), (~called)[~truth].mean(), (called == truth).mean()))
    for prevalence in PREVALENCES:
        chosen = thin(tested, y, prevalence, seed)
        there = log_shares[chosen]
        estimate = estimate_shares(there, shares)
        losses = [
            judge(each, y[chosen], np.ones(len(chosen)))["log_loss"]
            for each in (
                there, restate(there, shares, estimate.tolist()), restate(there, shares, (1 - prevalence, prevalence)),
            )
        ]  # fmt: skip
        priors[size, f"{prevalence:g}"].append((float(estimate[1]), *losses))


def thin(indices: NDArray[np.int64], y: NDArray[np.int64], prevalence: float, seed: int) -> NDArray[np.int64]:
    """As many images as there can be with that share of the positive class."""
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
