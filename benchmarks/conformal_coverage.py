"""Do prediction sets keep their promise? Coverage by class over many splits of real images.

Each split draws training, validation and test images by patient. As in `pneumoscope train`, a linear head on frozen
features is fitted on the first, calibration, threshold and prediction sets on the second; the third is counted.

Given the validation images, a class's coverage is Beta(n + 1 - k, k) distributed, with n of its validation images and
k = floor(alpha * (n + 1)) (Vovk 2012); counted on m test images it is beta-binomial. The table says how many of the
splits lie in the central 95% of that.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.samples import Sample, cluster_by_patient, find_classes
from pneumoscope.decisions import calibration, prediction_sets, threshold
from pneumoscope.decisions.decisions import Decider, Decisions
from pneumoscope.evaluation.decision_summary import summarise_decisions
from pneumoscope.inference.cache import FeatureCache, default_cache_path
from pneumoscope.inference.engines import TorchEngine
from pneumoscope.inference.features import extract_features
from pneumoscope.models.backbones import find_backbone, load_backbone

ALPHAS = (0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Images:
    """Features (N, D) of all images, their class indices and patients."""

    features: NDArray[np.float32]
    targets: NDArray[np.int64]
    patients: Sequence[str | None]
    classes: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/kermany-train-224"))
    parser.add_argument("--splits", type=int, default=200)
    options = parser.parse_args()
    images = extract(options.data)
    print(
        "| images: train, validation, test | promise | class | mean coverage | splits within 95% | decided | correct |"
        "\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    for train, val in ((200, 100), (1000, 1000)):
        splits = [measure_split(images, train, val, seed) for seed in range(options.splits)]
        for alpha in ALPHAS:
            rows = [split[alpha] for split in splits]
            decided, correct = (np.mean([row[name] for row in rows]) for name in ("decided", "correct"))
            for name in images.classes:
                coverage = [row[name] for row in rows]
                within = [row[f"{name} within"] for row in rows]
                print(
                    f"| {train}, {val}, {len(images.targets) - train - val} | {1 - alpha:.0%} | {name} "
                    f"| {np.mean(coverage):.3f} ± {np.std(coverage):.3f} | {sum(within)} of {len(within)} "
                    f"| {decided:.1%} | {correct:.1%} |"
                )


def extract(data: Path) -> Images:
    """Features of a data set by the frozen network that recipes start from."""
    samples: list[Sample] = read_samples(data)
    classes, _ = find_classes(samples)
    backbone = find_backbone("efficientnet_lite0")
    with FeatureCache(default_cache_path()) as cache:
        engine = TorchEngine(load_backbone(backbone), backbone.input.size)
        features = [
            each.features[0]
            for each in extract_features(samples, engine, backbone.input, cache=cache)
            if each.features is not None
        ]
    targets = np.array([classes.index(str(sample.label)) for sample in samples])
    return Images(np.stack(features), targets, [sample.patient for sample in samples], classes)


def split_by_patient(images: Images, train: int, val: int, seed: int) -> list[NDArray[np.int64]]:
    """Indices of training, validation and test images, drawn by patient; the two sizes are met as far as possible."""
    clusters = cluster_by_patient(images.patients, len(images.targets))
    order = np.argsort(np.random.default_rng(seed).permutation(clusters.max() + 1)[clusters], kind="stable")
    edges = [1 + int(np.flatnonzero(np.diff(clusters[order[: n + 1]]))[-1]) for n in (train, train + val)]
    return np.split(order, edges)


def fit_logits(images: Images, train: NDArray[np.int64]) -> NDArray[np.float64]:
    """Logits (N, 1) of all images by a logistic regression on the features of the training images."""
    from sklearn.linear_model import LogisticRegression

    scale = np.abs(images.features[train]).mean()
    head = LogisticRegression(C=0.1, max_iter=200).fit(images.features[train] / scale, images.targets[train])
    logits: NDArray[np.float64] = head.decision_function(images.features / scale)[:, None]
    return logits


def measure_split(images: Images, train: int, val: int, seed: int) -> dict[float, dict[str, float]]:
    """By alpha: each class's coverage, whether it is in its 95% interval, images decided, and decisions correct."""
    from scipy.stats import betabinom

    fitted, held_out, tested = split_by_patient(images, train, val, seed)
    logits, targets, classes = fit_logits(images, fitted), images.targets, images.classes
    fractions = (np.bincount(targets[fitted]) / len(fitted)).tolist()
    calibrated = calibration.fit(logits[held_out], targets[held_out], class_fractions=fractions)
    p = np.exp(calibration.apply(logits[held_out], calibrated))
    cut = threshold.fit("youden", targets[held_out], p[:, 1])
    truth = [classes[i] for i in targets[tested]]
    measured: dict[float, dict[str, float]] = {}
    for alpha in ALPHAS:
        sets = prediction_sets.fit(targets[held_out], p, classes, alpha)
        outcome = Decider(classes, Decisions(calibrated, cut, sets)).apply(logits[tested])
        names = [tuple(np.array(classes)[row]) for row in outcome.in_set]
        summary = summarise_decisions(truth, outcome.decisions, names, classes)
        row = {"decided": summary["answered"]["value"], "correct": summary["accuracy_of_answered"]["value"]}
        for name in classes:
            n, m, k = len(sets.scores[name]), summary["coverage"][name]["n"], sets.rank(name)
            low, high = betabinom(m, n + 1 - k, k).interval(0.95) if k else (m, m)
            row[name] = summary["coverage"][name]["value"]
            row[f"{name} within"] = low <= round(row[name] * m) <= high
        measured[alpha] = row
    return measured


if __name__ == "__main__":
    main()
