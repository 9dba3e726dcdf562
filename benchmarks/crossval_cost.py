"""What 5-fold cross-validation of a frozen network costs, beside one extraction of the features that it needs.

    python benchmarks/crossval_cost.py [--data ../shared/data/kermany-train-224] [--images 600] [--rounds 2]

Each starts with an empty cache, and they take turns. An extraction reads every image and computes the features of it
and of its mirror image; cross-validation does the same, trains five heads, measures them and writes the report.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from pneumoscope.config import silent
from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.samples import write_samples
from pneumoscope.inference.cache import FeatureCache
from pneumoscope.training.cross_validation import cross_validate
from pneumoscope.training.data import read
from pneumoscope.training.folds import extract_all
from pneumoscope.training.settings import resolve_settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/kermany-train-224"))
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        samples = [replace(each, split=None) for each in read_samples(arguments.data)]
        table = folder / "images.csv"
        write_samples(table, samples[:: max(1, len(samples) // arguments.images)][: arguments.images])
        extractions, validations = [], []
        for number in range(arguments.rounds):
            with FeatureCache(folder / f"extraction-{number}.sqlite") as cache:
                start = time.perf_counter()
                setup = read(resolve_settings({"path": str(table)}, {}))
                extract_all(setup, cache, silent)
                extractions.append(time.perf_counter() - start)
            with FeatureCache(folder / f"crossval-{number}.sqlite") as cache:
                start = time.perf_counter()
                cross_validate(
                    table, folder / f"crossval-{number}", folds=5, workers=arguments.workers, cache=cache,
                    progress=silent,
                )  # fmt: skip
                validations.append(time.perf_counter() - start)
            print(f"extraction {extractions[-1]:.1f} s, crossval {validations[-1]:.1f} s", flush=True)
    one, five = statistics.median(extractions), statistics.median(validations)
    print(f"{arguments.images} images: crossval {five:.1f} s, extraction {one:.1f} s: {five / one:.2f} times")


if __name__ == "__main__":
    main()
