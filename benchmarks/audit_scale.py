"""Time, memory and errors of `audit` on many simulated radiographs with planted copies.

    python benchmarks/audit_scale.py --images 1000 5000
    python benchmarks/audit_scale.py --images 100000 --keep /tmp/images     # the images are kept for another run
    python benchmarks/audit_scale.py --images 5000 --quick

Each image is a simulated radiograph of its own, drawn small and saved as JPEG of 256 pixels. One in fifty is a copy of
another one instead. The audit runs without a cache in a process of its own; the memory is that of this process and its
children together (resident pages, sampled), so pages that they share count more than once. Between "Comparing" and
"Checking", candidates for copies are compared closely.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pneumoscope.datasets.phantoms import draw_phantom

DRAWN, SAVED = 128, 256  # pixels of the shorter side
EVERY = 50  # one image in so many is a copy
PART = 500  # images that a process makes at once


def pad(picture: Image.Image) -> Image.Image:
    """Add black bars above and below."""
    padded = Image.new("L", (picture.width, picture.height + 80))
    padded.paste(picture, (0, 40))
    return padded


def crop(across: float, down: float) -> Callable[[Image.Image], Image.Image]:
    """Cut shares of the width and the height off each side."""

    def cut(picture: Image.Image) -> Image.Image:
        x, y = round(across * picture.width), round(down * picture.height)
        return picture.crop((x, y, picture.width - x, picture.height - y))

    return cut


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "compressed": lambda picture: picture,
    "smaller": lambda picture: picture.resize((picture.width * 7 // 10, picture.height * 7 // 10)),
    "squashed": lambda picture: picture.resize((picture.width * 6 // 10, picture.height)),
    "brighter": lambda picture: picture.point(lambda grey: 0.7 * grey + 50),
    "gamma": lambda picture: picture.point(lambda grey: 255 * (grey / 255) ** 0.8),
    "padded": pad,
    "cropped by 3%": crop(0.03, 0.03),
    "cropped by 10%": crop(0.1, 0.1),
    "centre crop": crop(0.2, 0.06),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--keep", type=Path, help="make the images here, or use those that are here, and keep them")
    parser.add_argument("--processes", type=int, default=2, help="that make the images")
    options = parser.parse_args()
    for count in options.images:
        with tempfile.TemporaryDirectory() as scratch:
            folder = (options.keep or Path(scratch)) / f"{count}"
            if not (folder / "truth.csv").exists():
                make_images(folder, count, options.processes)
            measure(folder, Path(scratch) / "audit", options.quick)


def make_images(folder: Path, count: int, processes: int) -> None:
    """Write images of two classes, and the copies among them in truth.csv."""
    for label in ("NORMAL", "PNEUMONIA"):
        (folder / label).mkdir(parents=True, exist_ok=True)
    starts = range(0, count, PART)
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = pool.map(make_part, [folder] * len(starts), starts, [min(count, start + PART) for start in starts])
        truth = [row for part in parts for row in part]
    with (folder / "truth.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("copy", "original", "kind"), *truth])


def make_part(folder: Path, start: int, stop: int) -> list[tuple[str, str, str]]:
    """Write some of the images; returns copy, original and kind of each copy."""
    rng = np.random.default_rng([24, start])
    truth = []
    for number in range(start, stop):
        original = int(rng.integers(start, stop))
        copied = number % EVERY == EVERY - 1 and original % EVERY != EVERY - 1
        source = original if copied else number
        pneumonia = source % 2 == 1
        pixels = draw_phantom(source, pneumonia=pneumonia, patient=source, size=DRAWN).pixels
        picture = Image.fromarray(np.rint(pixels * 255).astype(np.uint8))
        picture = picture.resize((picture.width * SAVED // DRAWN, SAVED), Image.Resampling.BICUBIC)
        kind, quality = "", 90
        if copied:
            kind, quality = list(COPIES)[int(rng.integers(len(COPIES)))], int(rng.integers(50, 95))
            picture = COPIES[kind](picture)
            truth.append((name(number, pneumonia), name(original, pneumonia), kind))
        picture.save(folder / name(number, pneumonia), quality=quality)
    return truth


def name(number: int, pneumonia: bool) -> str:
    """The path of an image below the folder."""
    return f"{'PNEUMONIA' if pneumonia else 'NORMAL'}/phantom{number}_1.jpg"


def measure(folder: Path, out: Path, quick: bool) -> None:
    """Run the audit in a new process, and print one table of its stages and one of the copies."""
    out.mkdir()
    script = f"""
import json, sys, time
from pathlib import Path
start, stages = time.perf_counter(), {{}}
def now():
    return time.perf_counter() - start, time.process_time()
def progress(task, done, total):
    if task not in stages:
        print(f"{{time.perf_counter() - start:.0f}} s: {{task}}", file=sys.stderr)
    stages.setdefault(task, [now(), 0])[1] = now()
from pneumoscope.reports.audit_page import audit
audit({str(folder)!r}, {str(out / "result")!r}, quick={quick}, cache=False, progress=progress)
stages["all"] = [(0, 0), now()]
Path({str(out / "stages.json")!r}).write_text(json.dumps(stages))
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL)
    start, memory = time.perf_counter(), list[tuple[float, float]]()
    while process.poll() is None:
        memory.append((time.perf_counter() - start, sum(map(resident, family(process.pid))) / 1e6))
        time.sleep(0.25)
    if process.returncode:
        sys.exit(f"The audit failed with exit code {process.returncode}.")
    images = sum(1 for _ in folder.glob("*/*.jpg"))
    print(f"\n{images:,} images{', quick' if quick else ''}\n\n| stage | from, s | to, s | processor, s | memory, MB |")
    print("| --- | --- | --- | --- | --- |")
    for stage, ((first, busy), (last, busy_then)) in json.loads((out / "stages.json").read_text()).items():
        peak = max([used for when, used in memory if first - 0.5 <= when <= last + 0.5], default=0)
        print(f"| {stage} | {first:.0f} | {last:.0f} | {busy_then - busy:.0f} | {peak:,.0f} |")
    for file in ("audit.html", "audit.json"):
        print(f"{file}: {(out / 'result' / file).stat().st_size / 1e6:.1f} MB")
    score(folder, json.loads((out / "result" / "audit.json").read_text(encoding="utf-8")))


def family(parent: int) -> list[int]:
    """A process and all its descendants."""
    found = [parent]
    for task in Path(f"/proc/{parent}/task").glob("*/children"):
        try:
            found += [each for child in task.read_text().split() for each in family(int(child))]
        except OSError:
            continue
    return found


def resident(process: int) -> int:
    """Bytes of resident memory."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def score(folder: Path, audit: dict[str, Any]) -> None:
    """Print how many of the planted copies were found, and how many other pairs."""
    with (folder / "truth.csv").open(newline="", encoding="utf-8") as file:
        truth = list(csv.DictReader(file))
    origin = {row["copy"]: row["original"] for row in truth}
    groups: dict[tuple[int, int], list[str]] = {}
    for number, finding in enumerate(audit["findings"]):
        if finding["check"] == "duplicates":
            for path, group in zip(finding["files"], finding["groups"], strict=bool(finding["groups"])):
                groups.setdefault((number, group), []).append(Path(path).relative_to(folder).as_posix())
    found = {path: key for key, group in groups.items() for path in group}
    kinds, hits = Counter(row["kind"] for row in truth), Counter[str]()
    for row in truth:
        hits[row["kind"]] += row["copy"] in found and found[row["copy"]] == found.get(row["original"])
    wrong = sum(origin.get(a, a) != origin.get(b, b) for group in groups.values() for a, b in combinations(group, 2))
    print("\n| copies | planted | found |\n| --- | --- | --- |")
    for kind in COPIES:
        print(f"| {kind} | {kinds[kind]} | {hits[kind]} |")
    print(f"| all | {len(truth)} | {sum(hits.values())} |\n\nPairs that are no copies: {wrong}")
    print("Other findings:", *(f"- {each['severity']}: {each['title']}" for each in audit["findings"]), sep="\n")


if __name__ == "__main__":
    main()
