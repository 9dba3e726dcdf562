"""Throughput and latency of `serve` at 1, 8 and 64 clients, against a plain FastAPI service, in turns.

    python benchmarks/service_load.py [--rounds 3] [--seconds 8] [--clients 1,8,64]

wrk sends real images (JPEG of 224 x 224, one a request, as a form) over loopback and takes next to nothing of the
processor; without it, nothing is measured. All services run on all cores; `serve` stores every prediction in its
database, the plain ones store nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import predict_speed
from pneumoscope.models.model_folder import find_model

SCRIPT = """
local bodies = {}
function init(args)
  for line in io.lines(args[1]) do
    local file = io.open(line, "rb")
    table.insert(bodies, '--frontier\\r\\nContent-Disposition: form-data; name="files"; filename="image.jpeg"\\r\\n' ..
      'Content-Type: image/jpeg\\r\\n\\r\\n' .. file:read("*a") .. '\\r\\n--frontier--\\r\\n')
    file:close()
  end
end
local turn = 0
function request()
  turn = turn % #bodies + 1
  local kind = "multipart/form-data; boundary=frontier"
  return wrk.format("POST", "/v1/predictions", {["Content-Type"] = kind}, bodies[turn])
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('RESULT {"rate": %f, "p50": %f, "p95": %f, "p99": %f, "errors": %d}\\n',
    summary.requests / summary.duration * 1e6, latency:percentile(50) / 1e3, latency:percentile(95) / 1e3,
    latency:percentile(99) / 1e3, e.connect + e.read + e.write + e.status + e.timeout))
end
"""
NAMES = ("pneumoscope serve", "FastAPI, in threads", "FastAPI, on the event loop")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="where the real images are")
    parser.add_argument("--clients", default="1,8,64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=8)
    options = parser.parse_args()
    if missing := explain_missing_wrk():
        raise SystemExit(f"Not measured: {missing}")
    clients = [int(count) for count in options.clients.split(",")]
    results = race(options.shared, clients, options.rounds, options.seconds)
    columns = ("service", "clients", "images/s", "p50 ms", "p95 ms", "p99 ms", "errors")
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for count in clients:
        for name in NAMES:
            medians = summarise(results[name, count])
            cells = [name, str(count), f"{medians['rate']:.1f}", *(f"{medians[p]:.0f}" for p in ("p50", "p95", "p99"))]
            print(f"| {' | '.join(cells)} | {sum(each['errors'] for each in results[name, count]):.0f} |")


def explain_missing_wrk() -> str:
    """Why no load can be made; empty if it can."""
    return "" if shutil.which("wrk") else "wrk is not installed. Try: apt-get install wrk"


def race(shared: Path, clients: list[int], rounds: int, seconds: int) -> dict[tuple[str, int], list[dict[str, float]]]:
    """What each service achieved in each round, by its name and the number of clients."""
    results: dict[tuple[str, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images.txt"
        images.write_text(
            "\n".join(str(path.absolute()) for path in predict_speed.find_images(shared / "seed-400")[::4])
        )
        script = Path(folder) / "send.lua"
        script.write_text(SCRIPT)
        for _ in range(rounds):
            for name in NAMES:
                with run_service(name, Path(folder)) as url:
                    send(url, script, images, 8, 2)  # warm
                    for count in clients:
                        result = send(url, script, images, count, seconds)
                        results.setdefault((name, count), []).append(result)
                        print(f"{name}, {count} clients: {result}", file=sys.stderr, flush=True)
    return results


def summarise(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Medians of the rounds."""
    return {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}


@contextmanager
def run_service(name: str, folder: Path) -> Iterator[str]:
    """A service in a process of its own; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    model = find_model(Path(predict_speed.MODEL))
    if name == NAMES[0]:
        command = ["-m", "pneumoscope", "serve", "--port", str(port), "--database", str(folder / "predictions.sqlite")]
    else:
        here = str(Path(__file__).parent)
        app = "plain_service:app" if name == NAMES[1] else "plain_service:awaited"
        command = ["-m", "uvicorn", app, "--port", str(port), "--no-access-log", "--app-dir", here]
    process = subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, "PLAIN_MODEL": str(model)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/openapi.json").close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            sys.exit(f"{name} did not start within a minute.")
        yield url
    finally:
        process.terminate()
        process.wait(60)


def send(url: str, script: Path, images: Path, clients: int, seconds: int) -> dict[str, float]:
    """Send requests for some seconds: rate, latencies in ms, errors."""
    command = ["wrk", "-t", "1", "-c", str(clients), "-d", f"{seconds}s", "--timeout", "60s", "-s", str(script), url]
    done = subprocess.run([*command, "--", str(images)], capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    result: dict[str, float] = json.loads(line.removeprefix("RESULT "))
    return result


if __name__ == "__main__":
    main()
