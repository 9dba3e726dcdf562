"""How often intervals cover the truth, over simulated studies, beside those of the plain percentile bootstrap.

    python benchmarks/interval_coverage.py [--studies 1000] [--sizes 100 624] [--only TEXT] [--bands] [--quick]

A study draws images whose logits are normal in each class, or images of patients that have one to four each, alike in
part. The truth is that of a million images. Each row is printed when it is done, as a row of a Markdown table.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.samples import cluster_by_patient
from pneumoscope.evaluation.curves import precision_recall_band, roc_band
from pneumoscope.evaluation.intervals.all_metrics import evaluate_predictions
from pneumoscope.evaluation.intervals.bootstrap import resample
from pneumoscope.evaluation.metrics import METRICS, measure, roc_curve

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CLASSES = ("NORMAL", "PNEUMONIA")
TRUTH = 1_000_000
GRID = np.linspace(0, 1, 101)
PLACES = (2, 5, 10, 20, 50, 80, 95)  # on it, for --bands


@dataclass(frozen=True)
class Setting:
    """What the images of a study are like.

    Attributes:
        name: in the tables.
        auroc: of the binormal logits.
        prevalence: of class 1.
        slope: of the stated logits on the true ones: above 1 is overconfident.
        shift: added to the stated logits.
        alike: correlation of the scores of a patient's images; 0: images are independent.
        hidden: share of the positives that look like negatives, so that scores are not binormal.
    """

    name: str
    auroc: float
    prevalence: float
    slope: float = 1.0
    shift: float = 0.0
    alike: float = 0.0
    hidden: float = 0.0

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Ints, Floats, list[str] | None]:
        """Labels, probabilities and patients of n images."""
        sizes = np.ones(n, dtype=np.int64)
        if self.alike:
            sizes = np.resize([1, 2, 3, 4], n)
            sizes = sizes[: np.searchsorted(np.cumsum(sizes), n) + 1]
            sizes[-1] -= sizes.sum() - n
        patient = np.repeat(np.arange(len(sizes)), sizes)
        y = (rng.random(len(sizes)) < self.prevalence).astype(np.int64)[patient]
        common = rng.standard_normal(len(sizes))[patient] if self.alike else 0.0
        gap = np.sqrt(2) * NormalDist().inv_cdf(self.auroc)
        seen = y * (rng.random(n) >= self.hidden) if self.hidden else y
        score = gap * (seen - 0.5) + np.sqrt(self.alike) * common
        score += np.sqrt(1 - self.alike) * rng.standard_normal(n)
        logit = np.log(self.prevalence / (1 - self.prevalence)) + gap * score
        p = 1 / (1 + np.exp(-(self.slope * logit + self.shift)))
        return y, p, [str(number) for number in patient] if self.alike else None

    def truth(self) -> tuple[dict[str, float], Floats, Floats]:
        """Every metric, sensitivity at each false-positive rate of `GRID` and precision at each recall of it."""
        rng = np.random.default_rng(0)
        y, p, _ = Setting(**{**vars(self), "alike": 0.0}).draw(TRUTH, rng)
        values = {name: float(value[0]) for name, value in measure(y, p).items()}
        if (self.slope, self.shift, self.hidden) == (1, 0, 0):
            values["ece"] = 0.0
        fpr, tpr, _ = roc_curve(y, p)
        reached = np.searchsorted(tpr, GRID - 1e-9)
        hits, alarms = tpr * y.mean(), fpr * (1 - y.mean())
        precision = hits[reached] / np.maximum(hits[reached] + alarms[reached], 1e-12)
        return values, np.interp(GRID, fpr, tpr), precision


SETTINGS = (
    Setting("AUROC 0.80, half positive", 0.80, 0.5),
    Setting("AUROC 0.95", 0.95, 0.625),
    Setting("AUROC 0.99", 0.99, 0.625),
    Setting("AUROC 0.95, prevalence 0.2", 0.95, 0.2),
    Setting("AUROC 0.95, overconfident", 0.95, 0.625, slope=2),
    Setting("AUROC 0.80, underconfident", 0.80, 0.625, slope=0.5),
    Setting("AUROC 0.95, logits + 1", 0.95, 0.625, shift=1),
    Setting("AUROC 0.85, prevalence 0.01, logits + 3.5", 0.85, 0.01, shift=3.5),
    Setting("one positive in ten unseen", 0.97, 0.5, hidden=0.1),
    Setting("patients, AUROC 0.95", 0.95, 0.625, alike=0.6),
    Setting("patients, AUROC 0.80, overconfident", 0.80, 0.625, slope=2, alike=0.6),
)


def bootstrap(y: Ints, p: Floats, patients: Sequence[str] | None, resamples: int, seed: int) -> dict[str, Floats]:
    """Percentile limits (2,) of every metric, drawing patients; those of `ece` are reflected at its value."""
    draws = [
        measure(y, p, weights=weights) for weights in resample(cluster_by_patient(patients, len(y)), resamples, seed)
    ]
    limits = {name: np.nanquantile(np.concatenate([draw[name] for draw in draws]), [0.025, 0.975]) for name in METRICS}
    limits["ece"] = np.clip(2 * measure(y, p)["ece"] - limits["ece"][::-1], 0, 1)
    return limits


def study(task: tuple[Setting, int, int, dict[str, float], int, bool]) -> list[tuple[bool, bool]]:
    """Whether the truth lies below and above the limits, metric by metric: of ours, and of the bootstrap if asked."""
    setting, n, seed, truth, resamples, plain = task
    y, p, patients = setting.draw(n, np.random.default_rng([seed, n]))
    if plain:
        limits = bootstrap(y, p, patients, resamples, seed)
    else:
        found = evaluate_predictions(
            y, p, classes=CLASSES, patients=patients, resamples=resamples, seed=seed
        ).metrics  # fmt: skip
        limits = {name: np.array([interval.low, interval.high]) for name, interval in found.items()}
    return [(not truth[name] >= limits[name][0], bool(truth[name] > limits[name][1])) for name in METRICS]


def bands(task: tuple[Setting, int, int, Floats, Floats, int]) -> list[NDArray[np.bool_]]:
    """Whether the bands hold the true curves, point by point (2, 101)."""
    setting, n, seed, sensitivity, precision, resamples = task
    y, p, patients = setting.draw(n, np.random.default_rng([seed, n]))
    held = []
    for band, truth in ((roc_band, sensitivity), (precision_recall_band, precision)):
        _, low, high = band(y, p, patients=patients, resamples=resamples, seed=seed)
        held.append((low <= truth) & (truth <= high))
    return held


def rows(arguments: argparse.Namespace) -> Iterator[str]:
    """Rows of the table, setting by setting."""
    named = [setting for setting in SETTINGS if arguments.only == setting.name]
    chosen = named or [setting for setting in SETTINGS if arguments.only in setting.name]
    with multiprocessing.Pool(min(arguments.jobs, os.cpu_count() or 1)) as pool:
        known = ((setting, setting.truth()) for setting in chosen)
        for (setting, (values, sensitivity, precision)), n in ((each, n) for each in known for n in arguments.sizes):
            if arguments.bands:
                tasks: Any = [
                    (setting, n, i, sensitivity, precision, arguments.resamples) for i in range(arguments.studies)
                ]
                held = np.mean(pool.map(bands, tasks, chunksize=10), axis=0)
                for name, part in zip(("ROC", "precision-recall"), held, strict=True):
                    cells = [f"{100 * part[place]:.1f}" for place in PLACES]
                    yield " | ".join([f"| {setting.name}", str(n), name, *cells]) + " |"
                continue
            for name, plain, studies in (("ours", False, arguments.studies), ("bootstrap", True, arguments.bootstrap)):
                if studies:
                    tasks = [(setting, n, i, values, arguments.resamples, plain) for i in range(studies)]
                    missed = np.mean(pool.map(study, tasks, chunksize=10), axis=0)  # (metrics, 2)
                    sides = [f" ({100 * below:.1f}, {100 * above:.1f})" * arguments.sides for below, above in missed]
                    cells = [f"{100 * (1 - sum(miss)):.1f}{side}" for miss, side in zip(missed, sides, strict=True)]
                    yield " | ".join([f"| {setting.name}", str(n), name, *cells]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=400)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 624])
    parser.add_argument("--only", default="", help="settings whose name holds this")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--bands", action="store_true", help="of the curves, at some places, instead of the metrics")
    parser.add_argument("--bootstrap", type=int, default=300, help="studies in which the bootstrap is tried")
    parser.add_argument(
        "--sides", action="store_true", help="besides, how often the truth is below and above the limits"
    )
    parser.add_argument("--quick", action="store_true", help="100 studies of 100 images")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.studies, arguments.bootstrap, arguments.sizes = 100, 100, [100]
    columns = [f"at {GRID[place]:.2f}" for place in PLACES] if arguments.bands else list(METRICS)
    print("| " + " | ".join(["setting", "n", "band" if arguments.bands else "limits", *columns]) + " |")
    print("|" + " --- |" * (3 + len(columns)))
    for row in rows(arguments):
        print(row, flush=True)


if __name__ == "__main__":
    main()
