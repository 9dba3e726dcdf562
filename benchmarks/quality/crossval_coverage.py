"""How often the intervals of cross-validation cover the truth, over simulated studies with patients.

    python benchmarks/quality/crossval_coverage.py [--studies 1000] [--only TEXT] [--mean]

A study draws patients with one to four images, alike in part, as features that are Gaussian in each class. Logistic
regression is cross-validated on them by patient, so models really differ from fold to fold and learn from overlapping
images. The truth is known exactly, from the weights of each model. Intervals are compared with three truths: the mean
performance of the models of these very folds, which they are made for; that of models trained on other patients, the
same number of them; and that of one model trained on all images. `by image` ignores that images share a patient.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from pneumoscope.evaluation.intervals.all_metrics import evaluate_predictions
from pneumoscope.evaluation.out_of_fold import MeanOverFolds, OutOfFold, measure_folds
from pneumoscope.evaluation.results import Interval

Floats = NDArray[np.float64]
METRICS = ("auroc", "accuracy", "sensitivity", "specificity")
ROWS = ("mean over folds", "mean over folds, by image", "together")
_PHI = NormalDist().cdf


@dataclass(frozen=True)
class Setting:
    """What a study is like.

    Attributes:
        images: their number.
        separation: distance of the classes along the first feature, in standard deviations.
        width: number of features, all but the first without information.
        alike: correlation of the features of a patient's images.
        repeats: how often the images are divided.
    """

    images: int
    separation: float
    width: int = 20
    alike: float = 0.6
    folds: int = 5
    repeats: int = 1

    @property
    def name(self) -> str:
        """In the table."""
        return f"{self.images} images, {self.separation:g} SD apart, {self.repeats} x {self.folds} folds"

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], Floats, NDArray[np.int64]]:
        """Labels (N,), features (N, D) and patients (N,)."""
        sizes = np.resize([1, 2, 3, 4], self.images)
        patients = np.repeat(np.arange(len(sizes)), sizes)[: self.images]
        y = rng.permutation(np.arange(patients.max() + 1) % 2)[patients]
        common = rng.standard_normal((patients.max() + 1, self.width))[patients]
        x = np.sqrt(self.alike) * common + np.sqrt(1 - self.alike) * rng.standard_normal((self.images, self.width))
        x[:, 0] += self.separation * (y - 0.5)
        return y, x, patients

    def truth(self, weights: Floats, bias: float) -> dict[str, float]:
        """The performance of a linear model on images of new patients, exactly."""
        length = float(np.linalg.norm(weights))
        half = self.separation / 2 * float(weights[0])
        sensitivity, specificity = _PHI((half + bias) / length), _PHI((half - bias) / length)
        return {
            "auroc": _PHI(2 * half / (np.sqrt(2) * length)),
            "accuracy": (sensitivity + specificity) / 2,
            "sensitivity": sensitivity,
            "specificity": specificity,
        }


SETTINGS = (
    Setting(100, 2.0),
    Setting(200, 2.0),
    Setting(200, 3.0),
    Setting(600, 2.0),
    Setting(200, 2.0, folds=10),
    Setting(200, 2.0, repeats=3),
)


def fit(x: Floats, y: NDArray[np.int64]) -> tuple[Floats, float]:
    """Weights and bias of a logistic regression."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=0.1).fit(x, y)
    return model.coef_[0], float(model.intercept_[0])


def cross_validate(setting: Setting, seed: int) -> tuple[OutOfFold, Floats, Floats]:
    """Out-of-fold predictions, the true mean of the folds' models (M,), and that of one model of all images (M,)."""
    rng = np.random.default_rng([seed, setting.images])
    y, x, patients = setting.draw(rng)
    probabilities: list[Floats] = []
    places: list[tuple[int, int]] = []
    truths: list[list[float]] = []
    label_of = np.zeros(patients.max() + 1, np.int64)
    label_of[patients] = y
    for repeat in range(setting.repeats):
        fold_of = np.zeros(len(label_of), np.int64)  # stratified by class
        for label in (0, 1):
            own = rng.permutation(np.flatnonzero(label_of == label))
            fold_of[own] = np.arange(len(own)) % setting.folds
        p = np.zeros(len(y))
        for fold in range(setting.folds):
            inside = fold_of[patients] == fold
            weights, bias = fit(x[~inside], y[~inside])
            p[inside] = 1 / (1 + np.exp(-(x[inside] @ weights + bias)))
            truths.append(list(setting.truth(weights, bias).values()))
        probabilities.append(p)
        places += [(repeat, int(fold)) for fold in fold_of[patients]]
    labels, stacked = np.tile(y, setting.repeats), np.concatenate(probabilities)
    data = OutOfFold(labels, stacked, np.full(len(labels), 0.5), places, np.tile(patients, setting.repeats))
    return data, np.mean(truths, axis=0), np.array(list(setting.truth(*fit(x, y)).values()))


def study(task: tuple[Setting, int, bool]) -> tuple[Floats, Floats, Floats]:
    """Limits of each row and metric (3, M, 2), or of the first row alone; and the truths of `cross_validate`."""
    setting, seed, mean = task
    data, own, whole = cross_validate(setting, seed)
    rows: list[Mapping[str, MeanOverFolds | Interval]] = [dict(measure_folds(data).means)]
    if not mean:
        images = np.tile(np.arange(len(data.labels) // setting.repeats), setting.repeats)
        rows.append(dict(measure_folds(replace(data, clusters=images)).means))
        patients = [str(each) for each in data.clusters]
        together = evaluate_predictions(
            data.labels, data.probabilities, classes=("0", "1"), patients=patients, resamples=20
        )
        rows.append(dict(together.metrics))
    return np.array([[(row[m].low, row[m].high) for m in METRICS] for row in rows]), own, whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="settings whose name holds this")
    parser.add_argument("--mean", action="store_true", help="only the interval of the mean over folds")
    arguments = parser.parse_args()
    print("| setting | interval | truth | " + " | ".join(METRICS) + " | mean width, AUROC |")
    print("|" + " --- |" * (4 + len(METRICS)))
    with multiprocessing.Pool(min(arguments.jobs, os.cpu_count() or 1)) as pool:
        for setting in (each for each in SETTINGS if arguments.only in each.name):
            tasks = [(setting, seed, arguments.mean) for seed in range(arguments.studies)]
            found = pool.map(study, tasks, chunksize=10)
            limits, own, whole = (np.array(part) for part in zip(*found, strict=True))
            truths = {
                "these folds' models": own,
                "models of other patients": np.broadcast_to(own.mean(0), own.shape),
                "one model of all images": whole,
            }
            for i, row in enumerate(ROWS[: limits.shape[1]]):
                width = f"{np.nanmean(limits[:, i, 0, 1] - limits[:, i, 0, 0]):.3f}"
                for name, truth in truths.items():
                    covered = (limits[:, i, :, 0] <= truth) & (truth <= limits[:, i, :, 1])
                    cells = [f"{100 * share:.1f}" for share in covered.mean(0)]
                    print(" | ".join([f"| {setting.name}", row, name, *cells, width]) + " |", flush=True)


if __name__ == "__main__":
    main()
