"""How much faster `pneumoscope predict` is than the plain script, and how much memory it needs for many images.

    python benchmarks/predict_speed.py [--images 2000] [--rounds 3] [--data ../shared/data/kermany-train-224]
    python benchmarks/predict_speed.py --memory 1000,100000

Measures whole processes, which take turns. The large images are 50 real ones enlarged to 2000 x 1500, with noise, under
many names; small images are repeated likewise if there are too few.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from PIL import Image

from pneumoscope.models.model_folder import find_model

MODEL = "pneumonia-lite0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/kermany-train-224"))
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", help="measure peak memory instead, for these numbers of images")
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
    if options.memory:
        print("| images | peak memory | seconds |\n| --- | --- | --- |")
        for count in map(int, options.memory.split(",")):
            peak, seconds = measure_memory(options.data, count)
            print(f"| {count:,} | {peak:.0f} MB | {seconds:.0f} |", flush=True)
        return
    print("| images | plain script | pneumoscope | ratio | rounds of pneumoscope |\n| --- | --- | --- | --- | --- |")
    for large in (False, True):
        plain, ours = race(options.data, options.images, options.rounds, large)
        slow, fast = statistics.median(plain), statistics.median(ours)
        name = "JPEG 2000 × 1500" if large else "JPEG 224 × 224"
        every = ", ".join(f"{each:.1f}" for each in ours)
        print(
            f"| {options.images:,} {name} | {slow:.1f} s | {fast:.1f} s | {slow / fast:.2f} | {every} |",
            flush=True,
        )


def race(data: Path, count: int, rounds: int, large: bool) -> tuple[list[float], list[float]]:
    """Seconds of the plain script and of pneumoscope."""
    plain, ours = [], []
    with tempfile.TemporaryDirectory() as place:
        images, table = Path(place, "images"), Path(place, "predictions.csv")
        lay_out(find_images(data), images, count, enlarge_into=Path(place, "large") if large else None)
        usual = [
            sys.executable,
            str(Path(__file__).with_name("plain_predict.py")),
            str(images),
            str(find_model(Path(MODEL))),
        ]
        for _ in range(rounds):
            start = time.perf_counter()
            answer = subprocess.run(usual, capture_output=True, text=True, check=True).stdout
            plain.append(time.perf_counter() - start)
            start = time.perf_counter()
            subprocess.run(predict(images, table), capture_output=True, check=True)
            ours.append(time.perf_counter() - start)
        rows = len(table.read_text(encoding="utf-8").splitlines()) - 1
    if not len(answer.splitlines()) == rows == count:
        raise SystemExit(
            f"{count} images, but the plain script wrote {len(answer.splitlines())} rows, pneumoscope {rows}"
        )
    return plain, ours


def measure_memory(data: Path, count: int) -> tuple[float, float]:
    """Peak memory in MB and seconds of a process that predicts `count` images."""
    with tempfile.TemporaryDirectory() as place:
        lay_out(find_images(data), Path(place, "images"), count)
        start = time.perf_counter()
        child = subprocess.Popen(
            predict(Path(place, "images"), Path(place, "all.csv")), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        peak = 0
        while child.poll() is None:
            try:
                lines = Path(f"/proc/{child.pid}/status").read_text(encoding="utf-8").splitlines()
            except OSError:
                break
            peak = max([peak, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))])
            time.sleep(0.05)
        if child.wait():
            raise SystemExit(f"predict ended with {child.returncode}")
        return max(peak, 0) / 1024, time.perf_counter() - start


def predict(images: Path, table: Path) -> list[str]:
    command = [sys.executable, "-m", "pneumoscope", "predict", str(images), "--model", MODEL]
    return [*command, "--out", str(table), "--overwrite"]


def find_images(data: Path) -> list[Path]:
    return sorted(path for path in data.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg"))


def lay_out(sources: list[Path], folder: Path, count: int, enlarge_into: Path | None = None) -> None:
    """Fill a folder with links to images; some get several names if there are too few."""
    if enlarge_into is not None:
        enlarge_into.mkdir()
        rng = np.random.default_rng(0)
        step = max(1, len(sources) // 50)
        large = []
        for source in sources[::step][:50]:
            image = Image.open(source).convert("L").resize((2000, 1500), Image.Resampling.BICUBIC)
            noisy = np.asarray(image, np.float32) + rng.normal(0, 3, (1500, 2000))
            large.append(enlarge_into / f"{source.stem}.jpg")
            Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(large[-1], quality=90)
        sources = large
    folder.mkdir()
    for place, source in enumerate(islice(cycle(sources), count)):
        (folder / f"{place:06d}.jpg").symlink_to(source.resolve())


if __name__ == "__main__":
    main()
