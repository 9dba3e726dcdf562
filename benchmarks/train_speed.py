"""How much faster `pneumoscope train` is than the plain loop: both as whole processes, in one run, same epochs.

    python benchmarks/train_speed.py [--epochs 40] [--rounds 3] [--data ../shared/data/seed-400]

The plain loop runs once between the rounds of ours (it takes minutes); ours starts with an empty cache every time.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def timed(command: list[str]) -> tuple[float, str]:
    start = time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - start, result.stdout


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="../shared/data/seed-400")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    ours: list[float] = []
    metrics: dict[str, dict[str, float]] = {}

    def run_ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pneumoscope", "train", arguments.data, "--recipe", "baseline"]
            command += [
                "--out",
                f"{folder}/run",
                "--epochs",
                str(arguments.epochs),
                "--patience",
                str(arguments.epochs),
                "--no-cache",
            ]
            ours.append(timed(command)[0])
            measured = json.loads(Path(folder, "run", "metrics.json").read_text())["metrics"]
            metrics["pneumoscope"] = {name: measured[name]["value"] for name in ("accuracy", "f1", "auroc")}

    plain_script = str(Path(__file__).with_name("plain_loop.py"))
    for _ in range(arguments.rounds - 1):
        run_ours()
    plain, answer = timed([sys.executable, plain_script, arguments.data, "--epochs", str(arguments.epochs)])
    metrics["plain loop"] = json.loads(answer)
    run_ours()

    fast = statistics.median(ours)
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {arguments.epochs} epochs\n"
    )
    print("| | seconds | accuracy | F1 | AUROC |\n| --- | --- | --- | --- | --- |")
    for name, seconds in (("plain loop", plain), ("pneumoscope", fast)):
        found = metrics[name]
        print(f"| {name} | {seconds:.1f} | {found['accuracy']:.3f} | {found['f1']:.3f} | {found['auroc']:.3f} |")
    print(f"\nRounds of ours: {', '.join(f'{each:.1f} s' for each in ours)}. Ratio: {plain / fast:.1f}")


if __name__ == "__main__":
    main()
