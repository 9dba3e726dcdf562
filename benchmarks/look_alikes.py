"""Seconds and memory of `audit` and `train` on images that all look alike, and of the search for near-duplicates alone.

    python benchmarks/look_alikes.py                            # whole commands, 2,000 images of 224 pixels
    python benchmarks/look_alikes.py --images 20000 --size 64
    python benchmarks/look_alikes.py --search 100000            # the search alone, on generated hashes

Each image is one simulated radiograph with a faint pattern of its own. At the strength 0.01 all are nearly identical,
at 0.02 half of the pairs, and at 0.03 none, though each pair is a candidate that must be compared closely.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from pneumoscope.datasets.phantoms import draw_phantom

STRENGTHS = (0.01, 0.02, 0.03)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS)
    parser.add_argument("--commands", nargs="+", default=["audit", "quick audit", "train"])
    parser.add_argument("--search", type=int, help="search so many generated hashes instead")
    options = parser.parse_args()
    print("| what | images | strength | s | CPU s | memory, MB |\n| --- | --- | --- | --- | --- | --- |", flush=True)
    for strength in options.strengths:
        if options.search:
            measure_search(options.search, strength)
        else:
            measure_commands(options.commands, options.images, options.size, strength)


def measure_commands(commands: list[str], images: int, size: int, strength: float) -> None:
    """Run whole commands on the same folder of images, each in a new process with an empty cache."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_images(folder / "images", images, size, strength)
        for command in commands:
            flags = {"audit": [], "quick audit": ["--quick"], "train": ["--epochs", "1", "--resamples", "100"]}[command]
            line = [command.split()[-1], str(folder / "images"), "--out", str(folder / command), "--no-cache", *flags]
            start = time.perf_counter()
            process = subprocess.Popen([sys.executable, "-m", "pneumoscope", *line], stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
            failed = f" (exit code {os.waitstatus_to_exitcode(status)})" if status else ""
            busy, memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
            name = f"{command}{failed}"
            print(f"| {name} | {images:,} | {strength} | {seconds:.0f} | {busy:.0f} | {memory:,.0f} |", flush=True)


def write_images(folder: Path, count: int, size: int, strength: float) -> None:
    """Write one simulated radiograph with a faint pattern that differs from image to image, in two classes."""
    rng = np.random.default_rng(0)
    pixels = draw_phantom(0, pneumonia=False, patient=0, size=size).pixels
    for label in ("NORMAL", "PNEUMONIA"):
        (folder / label).mkdir(parents=True)
    for number in range(count):
        pattern = Image.fromarray(rng.standard_normal((12, 12)).astype(np.float32))
        faint = np.asarray(pattern.resize(pixels.shape[::-1], Image.Resampling.NEAREST))
        grey = np.rint(np.clip(pixels + strength * faint, 0, 1) * 255).astype(np.uint8)
        label = ("NORMAL", "PNEUMONIA")[number % 2]
        Image.fromarray(grey).save(folder / label / f"image{number}.png", compress_level=1)


def measure_search(count: int, strength: float) -> None:
    """Search generated hashes in a new process, so that its memory is its own."""
    script = f"""
import resource, time
import numpy as np
from pneumoscope.auditing.duplicates import MOST_SEARCHED
from pneumoscope.datasets.duplicates import find_near_duplicates
from pneumoscope.datasets.phantoms import draw_phantom
from pneumoscope.images.hash import hash_pixels

rng = np.random.default_rng(0)
base = hash_pixels(draw_phantom(0, pneumonia=False, patient=0, size=224).pixels)
hashes = np.empty(({count}, *base.shape), np.float32)
for row in hashes:
    row[:] = base + np.float32({strength}) * np.kron(rng.standard_normal((12, 12)), np.ones((4, 4)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start, busy = time.perf_counter(), time.process_time()
find_near_duplicates(hashes, crops={count} <= MOST_SEARCHED)
seconds, busy = time.perf_counter() - start, time.process_time() - busy
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
how = "with" if {count} <= MOST_SEARCHED else "without"
memory = (after - before) / 1024
print(f"| search {{how}} crops | {count:,} | {strength} | {{seconds:.0f}} | {{busy:.0f}} | {{memory:,.0f}} more |")
"""
    subprocess.run([sys.executable, "-c", script], check=True)


if __name__ == "__main__":
    main()
