"""What the costliest uploads do to the service: two at once, ten times, with 4 GB of memory, beside ordinary ones.

    python benchmarks/hostile_service.py [--rounds 10] [--memory 4]

The service runs in a memory cgroup (version 1, as root); where there is none, only its memory is measured. The files
are flat images, small to send and large to decode. Meanwhile another client sends ordinary images one after the other.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from hostile_files import repeat_scan

GROUP = Path("/sys/fs/cgroup/memory/pneumoscope-benchmark")
GIB = 1024**3


def encode(levels: Any, form: str, **options: Any) -> bytes:
    """An image file as Pillow writes it."""
    Image.MAX_IMAGE_PIXELS = None
    file = io.BytesIO()
    Image.fromarray(levels).save(file, form, **options)
    return file.getvalue()


def make_files() -> dict[str, bytes]:
    """Files below 64 MiB that take the most time or memory."""
    blank = np.zeros((10_000, 10_000), np.uint8)
    colour = np.zeros((9_500, 9_500, 3), np.uint8)
    return {
        "JPEG, 20 scans": repeat_scan(encode(blank, "JPEG", progressive=True), 14),
        "JPEG, progressive, colour": encode(colour, "JPEG", progressive=True),
        "PNG, 16 bits": encode(np.zeros((10_000, 10_000), np.uint16), "PNG", compress_level=6),
        "WebP, lossless": encode(colour[:9_000, :9_000], "WEBP", lossless=True, quality=0, method=0),
    }


def measure_memory(pid: int) -> int:
    """The memory of a process and its children, in bytes."""
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    total = 0
    for each in [str(pid), *children]:
        try:
            lines = Path(f"/proc/{each}/status").read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return total


def start_service(folder: Path, memory: float) -> tuple[subprocess.Popen[str], str, bool]:
    """A service, its address, and whether its memory is limited."""
    limited = True
    try:
        GROUP.mkdir(exist_ok=True)
        (GROUP / "memory.limit_in_bytes").write_text(str(int(memory * GIB)), encoding="ascii")
    except OSError:
        limited = False

    def enter() -> None:
        if limited:
            (GROUP / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")

    command = [sys.executable, "-m", "pneumoscope", "serve", "--port", "0", "--database", str(folder / "x.sqlite")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=enter)
    assert process.stderr is not None
    url = ""
    for line in process.stderr:
        if "http://" in line:
            url = line[line.index("http://") :].split()[0]
            break
    threading.Thread(target=process.stderr.read, daemon=True).start()
    while True:
        try:
            if httpx.get(f"{url}readyz").status_code == 200:
                return process, url, limited
        except httpx.TransportError:
            time.sleep(0.2)


def main() -> None:
    """Run it, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--memory", type=float, default=4.0, help="GiB")
    options = parser.parse_args()
    files = make_files()
    ordinary = encode(np.random.default_rng(0).integers(0, 255, (400, 500), np.uint8), "PNG")
    print("| file | answers | slowest | ordinary: median, slowest, refused | memory |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        process, url, limited = start_service(Path(folder), options.memory)

        def send(name: str, content: bytes, times: list[float], statuses: list[int]) -> None:
            began = time.monotonic()
            answer = httpx.post(f"{url}v1/predictions", files={"files": (name, content)}, timeout=300)
            times.append(time.monotonic() - began)
            statuses.append(answer.status_code)

        for name, content in files.items():
            times: list[float] = []
            statuses: list[int] = []
            other: list[float] = []
            refused: list[int] = []
            peak, over = [0], threading.Event()

            def watch(peak: list[int] = peak, over: threading.Event = over) -> None:
                while not over.wait(0.1):
                    peak[0] = max(peak[0], measure_memory(process.pid))

            def ask(other: list[float] = other, refused: list[int] = refused, over: threading.Event = over) -> None:
                while not over.is_set():
                    send("ordinary.png", ordinary, other, refused)

            watchers = [threading.Thread(target=each) for each in (watch, ask)]
            for each in watchers:
                each.start()
            for _ in range(options.rounds):
                pair = [threading.Thread(target=send, args=(name, content, times, statuses)) for _ in range(2)]
                for each in pair:
                    each.start()
                for each in pair:
                    each.join()
            over.set()
            for each in watchers:
                each.join()
            answers = ", ".join(f"{count} × {status}" for status, count in sorted(Counter(statuses).items()))
            bad = sum(status != 201 for status in refused)
            beside = f"{statistics.median(other):.2f} s, {max(other):.2f} s, {bad} of {len(other)}"
            print(f"| {name} | {answers} | {max(times):.1f} s | {beside} | {peak[0] / 1e9:.2f} GB |", flush=True)
        assert process.poll() is None, "the service has ended"
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        print(f"\nThe service lived; SIGTERM ended it in {time.monotonic() - began:.1f} s.")
        print(f"Its memory was {'limited to' if limited else 'not limited to'} {options.memory:g} GiB.")


if __name__ == "__main__":
    main()
