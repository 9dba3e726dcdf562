"""Seconds, memory and sizes of `evaluate` on a table of a million predictions, and of `compare` on two of them.

    python benchmarks/evaluate_scale.py                       # a million images, CSV
    python benchmarks/evaluate_scale.py --images 100000 --suffix .parquet

The tables are simulated: two classes, patients with two images on average, sex and age. Each command is a process of
its own. Memory is the most that it held at once.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--suffix", choices=(".csv", ".parquet"), default=".csv")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = [f"{name}{given.suffix}" for name in ("labels", "first", "other")]
        for name, columns in zip(names, draw(given.images), strict=True):
            write(root / name, columns)
        print(f"{given.images:,} images\n\n| command | wall | processor | memory | files |")
        print("| --- | --- | --- | --- | --- |")
        labels, first, other = (str(root / name) for name in names)
        run("evaluate", "--predictions", first, "--truth", labels, "--out", str(root / "a"))
        run("evaluate", "--predictions", other, "--truth", labels, "--out", str(root / "b"))
        run("compare", first, other, "--truth", labels, "--out", str(root / "of-tables"))
        run("compare", str(root / "a"), str(root / "b"), "--out", str(root / "of-folders"))


def draw(images: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Labels, and the predictions of two models, as columns."""
    rng = np.random.default_rng(0)
    patients = rng.integers(0, max(1, images // 2), images)
    positive = rng.random(images) < 0.3
    paths = [f"site{i % 7}/image-{i:07}.png" for i in range(images)]
    labels = {
        "path": paths,
        "label": np.where(positive, "PNEUMONIA", "NORMAL").tolist(),
        "patient": [f"p{i}" for i in patients],
        "sex": np.where(patients % 2, "F", "M").tolist(),
        "age": (patients % 90).tolist(),
    }
    found = []
    for shift in (1.9, 2.0):
        logits = rng.normal(positive * shift - 1.2, 1.0)
        found.append({"path": paths, "probability": np.round(1 / (1 + np.exp(-logits)), 6).tolist()})
    return labels, found[0], found[1]


def write(path: Path, columns: dict[str, Any]) -> None:
    """Write a table."""
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    table = pyarrow.table(columns)
    pyarrow.parquet.write_table(table, path) if path.suffix == ".parquet" else pyarrow.csv.write_csv(table, path)


def run(*arguments: str) -> None:
    """Run a command, and print what it took."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "pneumoscope", *arguments], stderr=subprocess.PIPE, text=True)
    said = process.stderr.read() if process.stderr else ""
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    out = Path(arguments[-1])
    files = ", ".join(f"{each.name} {each.stat().st_size / 1e6:.2f} MB" for each in sorted(out.glob("*.*")))
    if status:
        print(said)
    shown = " ".join(Path(each).name if "/" in each else each for each in arguments)
    processor = used.ru_utime + used.ru_stime
    print(f"| {shown} | {seconds:.0f} s | {processor:.0f} s | {used.ru_maxrss / 1e6:.2f} GB | {files} |", flush=True)


if __name__ == "__main__":
    main()
