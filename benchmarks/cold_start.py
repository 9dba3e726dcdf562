"""How long a command takes from process start to answer: medians of several processes.

python benchmarks/cold_start.py --model runs/demo --film runs/demo-films/test/NORMAL/SOME.png
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--film", required=True)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    commands = {
        "`--help`": ["--help"],
        "`train --help`": ["train", "--help"],
        "`predict` of one film": ["predict", arguments.film, "--model", arguments.model],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(arguments.rounds):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "pneumoscope", *command], capture_output=True, check=True)
            seconds[name].append(time.perf_counter() - start)
    print("| command | seconds |\n| --- | --- |")
    for name, found in seconds.items():
        print(f"| {name} | {statistics.median(found):.2f} |")


if __name__ == "__main__":
    main()
