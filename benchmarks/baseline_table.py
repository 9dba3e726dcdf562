"""The published recipe with each packaged backbone, several seeds each, on the published split: docs/results.md.

python benchmarks/baseline_table.py [--data ../shared/data/seed-400] [--recipe baseline] [--seeds 5]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from pneumoscope.inference.cache import FeatureCache
from pneumoscope.training.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/seed-400")
    parser.add_argument("--recipe", default="baseline")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    print("| backbone | accuracy | F1 | AUROC | 95% interval of accuracy, seed 0 |\n| --- | --- | --- | --- | --- |")
    for backbone in ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"):
        cells = []
        with tempfile.TemporaryDirectory() as folder, FeatureCache(Path(folder) / "features.sqlite") as cache:
            runs = [
                train(
                    arguments.data,
                    Path(folder) / str(seed),
                    recipe=arguments.recipe,
                    backbone=backbone,
                    seed=seed,
                    cache=cache,
                )
                for seed in range(arguments.seeds)
            ]
        for name in ("accuracy", "f1", "auroc"):
            values = [run.evaluation.metrics[name].value for run in runs]
            cells.append(f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}")
        first = runs[0].evaluation.metrics["accuracy"]
        cells.append(f"{first.low:.3f} to {first.high:.3f}")
        print(f"| {backbone} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
