"""Processor seconds and memory of the intervals of very many images, beside those of the methods for fewer.

    python benchmarks/many_intervals.py                      # a million images
    python benchmarks/many_intervals.py --images 50000       # both methods, for comparison
    python benchmarks/many_intervals.py --images 12000 --positive 0.01

Images are drawn as scores of two classes; each patient has two on average.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable

import numpy as np

from pneumoscope.evaluation import curves
from pneumoscope.evaluation.intervals import all_metrics, bootstrap, calibration_error, differences, many_images
from pneumoscope.evaluation.intervals.all_metrics import evaluate_predictions

BOTH = 60_000  # images up to which both methods are measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--positive", type=float, default=0.3, help="share of positive images")
    given = parser.parse_args()
    n = given.images
    for limit in (n, 0) if n <= BOTH else (many_images.MANY,):
        for module in (all_metrics, bootstrap, calibration_error, curves, differences):
            vars(module)["MANY"] = limit
        print(f"\n{n:,} images, methods for {'many' if n > limit else 'few'}\n")
        measure(n, given.positive)


def measure(n: int, positive: float) -> None:
    """Print the seconds of each kind of interval, and the metrics."""
    rng = np.random.default_rng(0)
    clusters = np.unique(rng.integers(0, n // 2, n), return_inverse=True)[1]
    patients = [f"p{i}" for i in clusters]
    y = (rng.random(n) < positive).astype(np.int64)
    p, q = 1 / (1 + np.exp(-rng.normal(1.5 * y - 1.2, 1.1, (2, n))))
    sure = curves.confidence_of(p)
    steps: dict[str, Callable[[], object]] = {
        "ROC band": lambda: curves.roc_band(y, p, patients),
        "precision-recall band": lambda: curves.precision_recall_band(y, p, patients),
        "decision curve": lambda: curves.decision_curve(y, p, patients),
        "risk-coverage curve": lambda: curves.selective_curve((p > 0.5) == y, sure, patients),
        "difference of a rate": lambda: differences.compare_rates((p > 0.5) == y, (q > 0.5) == y, clusters),
        "difference of the Brier score": lambda: differences.compare_means((p - y) ** 2, (q - y) ** 2, clusters),
        "difference of AUROC": lambda: differences.compare_aurocs(y, np.stack([p, q]), clusters),
    }
    start = time.process_time()
    evaluation = evaluate_predictions(y, p, classes=["NORMAL", "PNEUMONIA"], patients=patients)
    print(f"all metrics: {time.process_time() - start:.1f} s")
    for name, metric in evaluation.metrics.items():
        print(f"    {name}: {metric.value:.5f} ({metric.low:.5f} to {metric.high:.5f})")
    for name, step in steps.items():
        start = time.process_time()
        step()
        print(f"{name}: {time.process_time() - start:.1f} s", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform != "darwin" else 1 << 30)
    print(f"memory: {peak:.2f} GB")


if __name__ == "__main__":
    main()
