"""How a training by several processes differs from that of one, and how long each takes.

    python benchmarks/several_processes.py ../shared/data/seed-400 --recipe finetune --precision float32

All further options are those of `train`. Each process has one thread, also a single one, and none has a cache.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

SIZES = (1, 2, 4)


def train(size: int, data: str, options: list[str], out: Path) -> float:
    """Train in some processes, and give the seconds that it took."""
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)] if size > 1 else []
    command = [sys.executable, *words, "-m", "pneumoscope", "train", data, "--out", str(out), "--no-cache", *options]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return time.perf_counter() - start


def read_columns(path: Path, *names: str) -> NDArray[Any]:
    """Columns of numbers of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return np.array([[float(row[name]) for name in names] for row in csv.DictReader(file)])


def main() -> None:
    """Train with each number of processes, and print a table."""
    data, *options = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        runs = {size: Path(folder) / str(size) for size in SIZES}
        print("| processes | seconds | epochs | losses | weights | probabilities |")
        print("| --- " * 6 + "|")
        for size, run in runs.items():
            seconds = train(size, data, options, run)
            history = [read_columns(each / "history.csv", "train_loss", "val_loss") for each in (run, runs[1])]
            tested = [read_columns(each / "predictions.csv", "probability") for each in (run, runs[1])]
            weights, others = (load_file(each / "model" / "weights.safetensors") for each in (run, runs[1]))
            trained = [name for name in weights if name.startswith(("head.", "backbone."))]
            pairs = [history, tested, *([weights[name].astype(float), others[name]] for name in trained)]
            losses, probabilities, *rest = (float(np.abs(one - other).max()) for one, other in pairs)
            differences = " | ".join(f"{each:.1e}" for each in (losses, max(rest), probabilities))
            print(f"| {size} | {seconds:.1f} | {len(history[0])} | {differences} |", flush=True)


if __name__ == "__main__":
    main()
