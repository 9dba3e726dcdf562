"""How difficult the simulated radiographs are: test AUROC of the `baseline` recipe, by seed of the images.

python benchmarks/phantom_difficulty.py [--seeds 6]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from pneumoscope.datasets.phantom_sets import write_phantoms
from pneumoscope.training.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    arguments = parser.parse_args()
    print("| seed of the images | AUROC | 95% interval | accuracy |\n| --- | --- | --- | --- |")
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            images = write_phantoms(Path(folder) / "images", seed=seed)
            metrics = train(images, Path(folder) / "run", recipe="baseline").evaluation.metrics
        auroc = metrics["auroc"]
        cells = (f"{auroc.value:.3f}", f"{auroc.low:.3f} to {auroc.high:.3f}", f"{metrics['accuracy'].value:.3f}")
        print(f"| {seed} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
