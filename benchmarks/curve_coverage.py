"""How often the limits of risk-coverage and decision curves, and those for another prevalence, hold the truth.

    python benchmarks/curve_coverage.py [--studies 250] [--images 100]

Logits are normal in both classes, probabilities are calibrated at a prevalence of 0.5, and 0.1 is asked about.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray
from pneumoscope.decisions.decide import normalise
from scipy.stats import norm

from pneumoscope.evaluation.curves import confidence_of, decision_curve, selective_curve
from pneumoscope.evaluation.intervals.all_metrics import evaluate_predictions
from pneumoscope.evaluation.prevalence import adjust_evaluation
from pneumoscope.images.prepare import InputSpec
from pneumoscope.models.model_folder import Calibration, Model

CLASSES = ("NORMAL", "PNEUMONIA")
ASKED = 0.1
ANSWERED = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0)
THRESHOLDS = (0.05, 0.2, 0.5, 0.8, 0.9, 0.95)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--studies", type=int, default=250)
    options.add_argument("--images", type=int, default=100)
    given = options.parse_args()
    model = Model(
        "", "", {}, CLASSES, CLASSES[1], InputSpec(), {"decision": 0.5}, Calibration(shares=(0.5, 0.5)), {}, {}, "", "",
        threshold_rule="youden",
    )  # fmt: skip
    for area in (0.8, 0.95, 0.99):
        gap = float(np.sqrt(2) * norm.ppf(area))
        held: dict[str, list[bool]] = defaultdict(list)
        truth = find_truth(gap)
        for seed in range(given.studies):
            rng = np.random.default_rng((1, seed))
            y, logits = draw(rng, given.images, gap)
            if len(np.unique(y)) == 2:
                for name, (low, high) in find_limits(model, y, logits).items():
                    held[name].append(low - 1e-12 <= truth[name] <= high + 1e-12)
        print(f"\n| AUROC {area}, {given.images} images | covered |\n| --- | --- |")
        for name, values in held.items():
            print(f"| {name} | {100 * np.mean(values):.1f} |", flush=True)


def draw(rng: np.random.Generator, images: int, gap: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    y = (rng.random(images) < 0.5).astype(np.int64)
    return y, gap * rng.normal(gap * (y - 0.5), 1)


def find_truth(gap: float) -> dict[str, float]:
    """Of half a million images, and by formula."""
    y, logits = draw(np.random.default_rng(0), 500_000, gap)
    p = 1 / (1 + np.exp(-logits))
    order = np.argsort(-confidence_of(p, 0.5))
    right = np.cumsum(((p >= 0.5) == (y == 1))[order]) / np.arange(1, len(y) + 1)
    rate = float(norm.cdf(gap / 2))  # sensitivity and specificity
    truth = {
        "accuracy, adjusted": rate,
        "PPV, adjusted": rate * ASKED / (rate * ASKED + (1 - rate) * (1 - ASKED)),
        "NPV, adjusted": rate * (1 - ASKED) / (rate * (1 - ASKED) + (1 - rate) * ASKED),
    }
    truth |= {f"accuracy of {share:.0%} answered": float(right[int(share * len(y)) - 1]) for share in ANSWERED}
    for t in THRESHOLDS:
        hits, alarms = ((p >= t) & (y == 1)).mean(), ((p >= t) & (y == 0)).mean()
        truth[f"net benefit at {t:g}"] = float(hits - alarms * t / (1 - t))
    return truth


def find_limits(model: Model, y: NDArray[np.int64], logits: NDArray[np.float64]) -> dict[str, tuple[float, float]]:
    log_shares = normalise(np.stack([np.zeros_like(logits), logits], axis=1))
    p = np.exp(log_shares[:, 1])
    evaluation = evaluate_predictions(y, p, classes=CLASSES, positive=CLASSES[1], resamples=20)
    adjusted = adjust_evaluation(evaluation, model, y, log_shares, ASKED).metrics
    limits = {
        f"{shown}, adjusted": (adjusted[name].low, adjusted[name].high)
        for name, shown in (("accuracy", "accuracy"), ("ppv", "PPV"), ("npv", "NPV"))
    }
    chosen = selective_curve((p >= 0.5) == (y == 1), confidence_of(p, 0.5), resamples=100)
    for share in ANSWERED:
        place = round(100 * share) - 1
        limits[f"accuracy of {share:.0%} answered"] = float(chosen.low[place]), float(chosen.high[place])
    benefit = decision_curve(y, p, thresholds=THRESHOLDS)
    for place, t in enumerate(THRESHOLDS):
        limits[f"net benefit at {t:g}"] = float(benefit.low[place]), float(benefit.high[place])
    return limits


if __name__ == "__main__":
    main()
