"""How much faster `pneumoscope train` is than the plain loop: whole processes, the same epochs.

    python benchmarks/train_speed.py [--epochs 40] [--rounds 2] [--data ../shared/data/seed-400]

In each round pneumoscope runs before and after the plain loop, with an empty cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def timed(command: list[str], **environment: str) -> tuple[float, str]:
    start = time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    return time.perf_counter() - start, result.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/seed-400")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
    plain, ours, metrics = race(options.data, options.epochs, options.rounds)
    slow, fast = statistics.median(plain), statistics.median(ours)
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {options.epochs} epochs\n"
    )
    print("| | seconds | accuracy | F1 | AUROC |\n| --- | --- | --- | --- | --- |")
    for name, seconds in (("plain loop", slow), ("pneumoscope", fast)):
        values = metrics[name]
        print(f"| {name} | {seconds:.1f} | {values['accuracy']:.3f} | {values['f1']:.3f} | {values['auroc']:.3f} |")
    print(f"\nRounds of pneumoscope: {', '.join(f'{each:.1f} s' for each in ours)}. Ratio: {slow / fast:.1f}")


def race(data: str, epochs: int, rounds: int) -> tuple[list[float], list[float], dict[str, dict[str, float]]]:
    """Seconds of the plain loop and of pneumoscope, and the test metrics of each."""
    plain: list[float] = []
    ours: list[float] = []
    metrics: dict[str, dict[str, float]] = {}
    script = str(Path(__file__).with_name("plain_loop.py"))

    def run_ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pneumoscope", "train", data, "--recipe", "baseline"]
            command += ["--out", f"{folder}/run", "--epochs", str(epochs), "--patience", str(epochs), "--no-cache"]
            ours.append(timed(command, PNEUMOSCOPE_CACHE=f"{folder}/cache")[0])
            measured = json.loads(Path(folder, "run", "metrics.json").read_text())["metrics"]
            metrics["pneumoscope"] = {name: measured[name]["value"] for name in ("accuracy", "f1", "auroc")}

    for _ in range(rounds):
        run_ours()
        seconds, answer = timed([sys.executable, script, data, "--epochs", str(epochs)])
        plain.append(seconds)
        metrics["plain loop"] = json.loads(answer)
        run_ours()
    return plain, ours, metrics


if __name__ == "__main__":
    main()
