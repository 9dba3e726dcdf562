"""How often intervals hold the truth: of accuracy by coverage, of decision curves, and at another prevalence.

    python benchmarks/curve_coverage.py [--studies 250] [--images 100]

Logits are normal in both classes, and probabilities are calibrated at a prevalence of 0.5; the other one is 0.1.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from pneumoscope.decisions.calibration import Calibration, apply
from pneumoscope.decisions.decisions import Decisions
from pneumoscope.decisions.threshold import Threshold
from pneumoscope.evaluation.curves import confidence_of, decision_curve, selective_curve
from pneumoscope.evaluation.intervals.all_metrics import evaluate_predictions
from pneumoscope.evaluation.prevalence import adjust_evaluation

CLASSES = ("NORMAL", "PNEUMONIA")
DECISIONS = Decisions(Calibration(class_fractions=(0.5, 0.5)), Threshold(0.5, "youden"))
PREVALENCE = 0.1
COVERAGES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0)
THRESHOLDS = (0.05, 0.2, 0.5, 0.8, 0.9, 0.95)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=250)
    parser.add_argument("--images", type=int, default=100)
    options = parser.parse_args()
    for auroc in (0.8, 0.95, 0.99):
        gap = float(np.sqrt(2) * norm.ppf(auroc))
        covered: dict[str, list[bool]] = defaultdict(list)
        truth = compute_truth(gap)
        for seed in range(options.studies):
            rng = np.random.default_rng((1, seed))
            y, logits = draw_study(rng, options.images, gap)
            if len(np.unique(y)) == 2:
                for name, (low, high) in compute_intervals(y, logits).items():
                    covered[name].append(low - 1e-12 <= truth[name] <= high + 1e-12)
        print(f"\n| AUROC {auroc}, {options.images} images | covered |\n| --- | --- |")
        for name, values in covered.items():
            print(f"| {name} | {100 * np.mean(values):.1f} |", flush=True)


def draw_study(rng: np.random.Generator, images: int, gap: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels and logits (N,); the means of the classes are `gap` standard deviations apart."""
    y = (rng.random(images) < 0.5).astype(np.int64)
    return y, gap * rng.normal(gap * (y - 0.5), 1)


def compute_truth(gap: float) -> dict[str, float]:
    """From half a million images, and by formula."""
    y, logits = draw_study(np.random.default_rng(0), 500_000, gap)
    p = 1 / (1 + np.exp(-logits))
    order = np.argsort(-confidence_of(p, 0.5))
    accuracy = np.cumsum(((p >= 0.5) == (y == 1))[order]) / np.arange(1, len(y) + 1)
    rate = float(norm.cdf(gap / 2))  # sensitivity and specificity
    truth = {
        "accuracy, adjusted": rate,
        "PPV, adjusted": rate * PREVALENCE / (rate * PREVALENCE + (1 - rate) * (1 - PREVALENCE)),
        "NPV, adjusted": rate * (1 - PREVALENCE) / (rate * (1 - PREVALENCE) + (1 - rate) * PREVALENCE),
    }
    truth |= {f"accuracy of {each:.0%} decided": float(accuracy[int(each * len(y)) - 1]) for each in COVERAGES}
    for t in THRESHOLDS:
        hits, alarms = ((p >= t) & (y == 1)).mean(), ((p >= t) & (y == 0)).mean()
        truth[f"net benefit at {t:g}"] = float(hits - alarms * t / (1 - t))
    return truth


def compute_intervals(y: NDArray[np.int64], logits: NDArray[np.float64]) -> dict[str, tuple[float, float]]:
    log_probabilities = apply(logits[:, None], DECISIONS.calibration)
    p = np.exp(log_probabilities[:, 1])
    evaluation = evaluate_predictions(y, p, classes=CLASSES, resamples=20)
    adjusted = adjust_evaluation(evaluation, DECISIONS, y, log_probabilities, PREVALENCE).metrics
    intervals = {
        f"{shown}, adjusted": (adjusted[name].low, adjusted[name].high)
        for name, shown in (("accuracy", "accuracy"), ("ppv", "PPV"), ("npv", "NPV"))
    }
    selective = selective_curve((p >= 0.5) == (y == 1), confidence_of(p, 0.5), resamples=100)
    for each in COVERAGES:
        i = round(100 * each) - 1
        intervals[f"accuracy of {each:.0%} decided"] = float(selective.low[i]), float(selective.high[i])
    benefit = decision_curve(y, p, thresholds=THRESHOLDS)
    for i, t in enumerate(THRESHOLDS):
        intervals[f"net benefit at {t:g}"] = float(benefit.low[i]), float(benefit.high[i])
    return intervals


if __name__ == "__main__":
    main()
