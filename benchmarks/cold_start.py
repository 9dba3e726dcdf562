"""How long a command takes from process start to its end, as the median of several processes.

    python benchmarks/cold_start.py --image SOME.jpg [--model pneumonia-lite0] [--source old=FOLDER]...

`FOLDER` holds the package `pneumoscope` of another version, as `git archive COMMIT src | tar -x -C …` gives it. All
versions take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

HERE = "this version"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pneumonia-lite0")
    parser.add_argument("--image", required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--source", action="append", default=[], metavar="NAME=FOLDER")
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
    sources = dict(each.partition("=")[::2] for each in options.source)
    found = measure_all(options.model, options.image, options.rounds, sources)
    print("| command | " + " | ".join(found) + " |\n| --- |" + " --- |" * len(found))
    for name in found[HERE]:
        print(f"| {name} | " + " | ".join(f"{seconds[name]:.2f} s" for seconds in found.values()) + " |")


def measure(model: str, image: str, rounds: int) -> dict[str, float]:
    """Median seconds per command. With an empty cache, each prediction compiles the network."""
    return measure_all(model, image, rounds, {})[HERE]


def measure_all(model: str, image: str, rounds: int, sources: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """As `measure`, of this version and of those in other folders."""
    sources = {**sources, HERE: str(Path(__file__).parents[1] / "src")}
    first = "`predict` of one image, cache empty"
    commands = {
        "`--help`": ["--help"],
        "`train --help`": ["train", "--help"],
        "`predict` of one image": ["predict", image, "--model", model],
        first: ["predict", image, "--model", model],
    }
    seconds: dict[str, dict[str, list[float]]] = {source: {name: [] for name in commands} for source in sources}
    with tempfile.TemporaryDirectory() as folder:
        for place in range(rounds + 1):
            for name, command in commands.items():
                for source, path in sources.items():
                    cache = f"{folder}/{source} {place if name == first else 'kept'}"
                    start = time.perf_counter()
                    subprocess.run(
                        [sys.executable, "-m", "pneumoscope", *command], capture_output=True, check=True,
                        env={**os.environ, "PNEUMOSCOPE_CACHE": cache, "PYTHONPATH": path},
                    )  # fmt: skip
                    if place:  # the first round only fills the cache
                        seconds[source][name].append(time.perf_counter() - start)
    return {
        source: {name: statistics.median(each) for name, each in found.items()} for source, found in seconds.items()
    }


if __name__ == "__main__":
    main()
