"""How long a command takes from process start to its answer, as the median of several processes.

python benchmarks/cold_start.py --image SOME.jpg [--model pneumonia-lite0]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pneumonia-lite0")
    parser.add_argument("--image", required=True)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
    print("| command | seconds |\n| --- | --- |")
    for name, seconds in measure(options.model, options.image, options.rounds).items():
        print(f"| {name} | {seconds:.2f} |")


def measure(model: str, image: str, rounds: int) -> dict[str, float]:
    """Median seconds per command. With an empty cache, each prediction compiles the network."""
    first = "`predict` of one image, cache empty"
    commands = {
        "`--help`": ["--help"],
        "`train --help`": ["train", "--help"],
        "`predict` of one image": ["predict", image, "--model", model],
        first: ["predict", image, "--model", model],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        for place in range(rounds + 1):
            for name, command in commands.items():
                cache = f"{folder}/{place if name == first else 'kept'}"
                start = time.perf_counter()
                subprocess.run(
                    [sys.executable, "-m", "pneumoscope", *command], capture_output=True, check=True,
                    env={**os.environ, "PNEUMOSCOPE_CACHE": cache},
                )  # fmt: skip
                if place:  # the first round only fills the cache
                    seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in seconds.items()}


if __name__ == "__main__":
    main()
