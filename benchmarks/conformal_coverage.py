"""Do prediction sets keep their promise? Coverage by class, and accuracy of the certain, over many splits of real images.

Each split draws training, validation and test images by patient; a logistic regression on frozen features is fitted on
the first, calibration, threshold and prediction sets on the second, as `pneumoscope train` does, and counted on the third.

Given the validation images, a class's coverage is Beta(n + 1 - k, k) distributed, with n of its validation images and
k = floor(rate * (n + 1)) (Vovk 2012); counted on m test images it is beta-binomial. The table says how many of the
splits lie in the central 95 % of that.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pneumoscope.decisions.decide import calibrate, decide, find_limits

from pneumoscope.datasets.samples import Sample, cluster_by_patient, find_classes, read_samples
from pneumoscope.decisions.calibration import fit_calibration
from pneumoscope.decisions.threshold import choose_threshold
from pneumoscope.evaluation.decision_summary import fit_conformal, summarise_decisions
from pneumoscope.inference.engines import TorchEngine
from pneumoscope.inference.features import FeatureCache, default_cache_path, extract_features
from pneumoscope.models.backbones import find_backbone, load_backbone

RATES = (0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Images:
    """Features (N, D) of all images, their class indices and patients."""

    features: NDArray[np.float32]
    targets: NDArray[np.int64]
    patients: Sequence[str | None]
    classes: tuple[str, ...]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path("../shared/data/kermany-train-224"))
    options.add_argument("--splits", type=int, default=200)
    given = options.parse_args()
    images = extract(given.data)
    print(
        "| images: train, validation, test | promise | class | mean coverage | splits within 95 % | answered | right |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for train, val in ((200, 100), (1000, 1000)):
        rounds = [split_once(images, train, val, seed) for seed in range(given.splits)]
        for rate in RATES:
            parts = [one[rate] for one in rounds]
            answered, right = (np.mean([part[name] for part in parts]) for name in ("answered", "right"))
            for name in images.classes:
                coverage = [part[name] for part in parts]
                within = [part[f"{name} within"] for part in parts]
                print(
                    f"| {train}, {val}, {len(images.targets) - train - val} | {1 - rate:.0%} | {name} "
                    f"| {np.mean(coverage):.3f} ± {np.std(coverage):.3f} | {sum(within)} of {len(within)} "
                    f"| {answered:.1%} | {right:.1%} |"
                )


def extract(data: Path) -> Images:
    samples: list[Sample] = read_samples(data)
    classes, _ = find_classes(samples)
    spec = find_backbone("efficientnet_lite0")
    with FeatureCache(default_cache_path()) as cache:
        engine = TorchEngine(load_backbone(spec), spec.input.size)
        features = [
            one.features[0]
            for one in extract_features(samples, engine, spec.input, cache=cache)
            if one.features is not None
        ]
    targets = np.array([classes.index(str(sample.label)) for sample in samples])
    return Images(np.stack(features), targets, [sample.patient for sample in samples], classes)


def divide(images: Images, train: int, val: int, seed: int) -> list[NDArray[np.int64]]:
    """Indices of training, validation and test images; the images of a patient stand together in the order drawn from."""
    clusters = cluster_by_patient(images.patients, len(images.targets))
    order = np.argsort(np.random.default_rng(seed).permutation(clusters.max() + 1)[clusters], kind="stable")
    edges = [1 + int(np.flatnonzero(np.diff(clusters[order[: n + 1]]))[-1]) for n in (train, train + val)]
    return np.split(order, edges)


def fit_logits(images: Images, fitted: NDArray[np.int64]) -> NDArray[np.float64]:
    """Logits (N, 1) of all images by a logistic regression on the features of some."""
    from sklearn.linear_model import LogisticRegression

    scale = np.abs(images.features[fitted]).mean()
    model = LogisticRegression(C=0.1, max_iter=200).fit(images.features[fitted] / scale, images.targets[fitted])
    logits: NDArray[np.float64] = model.decision_function(images.features / scale)[:, None]
    return logits


def split_once(images: Images, train: int, val: int, seed: int) -> dict[float, dict[str, float]]:
    """Coverage of each class, whether it lies where it should, and what the certain are worth, by alpha."""
    from scipy.stats import betabinom

    fitted, held, tested = divide(images, train, val, seed)
    logits = fit_logits(images, fitted)
    shares = np.bincount(images.targets[fitted]) / len(fitted)
    calibration = fit_calibration(logits[held], images.targets[held], shares=shares.tolist())
    p = np.exp(calibrate(logits, calibration))
    threshold = choose_threshold("youden", images.targets[held], p[held, 1])
    found: dict[float, dict[str, float]] = {}
    for rate in RATES:
        conformal = fit_conformal(images.targets[held], p[held], images.classes, rate)
        sets = p[tested] >= find_limits(conformal, images.classes, rate)
        names = [tuple(np.array(images.classes)[row]) for row in sets]
        calls = [images.classes[int(one >= threshold)] for one in p[tested, 1]]
        decisions = [decide(fits, call, False) for fits, call in zip(names, calls, strict=True)]
        truth = [images.classes[i] for i in images.targets[tested]]
        summary = summarise_decisions(truth, decisions, names, images.classes)
        row = {"answered": summary["answered"]["value"], "right": summary["accuracy_of_answered"]["value"]}
        for name in images.classes:
            n, m = len(conformal.scores[name]), summary["coverage"][name]["n"]
            k = math.floor(rate * (n + 1) + 1e-9)
            low, high = betabinom(m, n + 1 - k, k).interval(0.95) if k else (m, m)
            row[name] = summary["coverage"][name]["value"]
            row[f"{name} within"] = low <= round(row[name] * m) <= high
        found[rate] = row
    return found


if __name__ == "__main__":
    main()
