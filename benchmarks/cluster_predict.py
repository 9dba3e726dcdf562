"""Predictions on 1, 2 and 4 nodes of a Ray cluster on this machine, with a driver, a worker and a node killed.

    python benchmarks/cluster_predict.py [--images 2000] [--nodes 1 2 4] [--part-size 100] [--size 224]
    python benchmarks/cluster_predict.py --images 1000 --copies 20 --nodes 2 --kills-only
    python benchmarks/cluster_predict.py --images 500 --copies 2000 --nodes 2 --part-size 500 --soak 90
    python benchmarks/cluster_predict.py --plan 1000000
    python benchmarks/cluster_predict.py --ids 5000000

Each node is a set of Ray processes that offers one core. All share the cores of this machine, so more nodes than cores
show overhead, not speed. The images are phantoms. In the last run the driver is killed when a tenth of the images is
done, and started again; then a worker and a node are killed. At the end every image must have one row. With --copies,
each image has so many names, and each name counts as an image. --soak stops after so many minutes, and shows the memory
of the driver, the largest worker, and Ray's raylets and GCS, as it goes. --plan only plans: it lists so many addresses
of files that do not exist, twice, because a run that is continued lists them again. --ids only measures the set of ids.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyarrow import parquet

from pneumoscope.cluster.ids import IdSet
from pneumoscope.cluster.listing import ListedImage
from pneumoscope.cluster.plan import extend_plan, find_work
from pneumoscope.cluster.storage import Storage
from pneumoscope.datasets.phantom_sets import write_phantoms
from pneumoscope.inference.runtimes import count_threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--part-size", type=int, default=100)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--kills-only", action="store_true")
    parser.add_argument("--soak", type=float)
    parser.add_argument("--plan", type=int)
    parser.add_argument("--ids", type=int)
    arguments = parser.parse_args()
    if arguments.ids:
        measure_ids(arguments.ids)
        return
    if arguments.plan:
        measure_plan(arguments.plan)
        return
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
    os.environ |= {"RAY_AUTH_TOKEN": os.urandom(32).hex(), "RAY_BACKEND_LOG_LEVEL": "fatal"}
    with tempfile.TemporaryDirectory() as kept:
        images = write_phantoms(Path(kept, "images"), count=arguments.images, seed=1, size=arguments.size)
        copy(images, arguments.copies)
        arguments.images *= arguments.copies
        if arguments.soak:
            soak(images, Path(kept, "soaked"), arguments)
            return
        if not arguments.kills_only:
            start = time.perf_counter()
            run_command("predict", images, "--out", Path(kept, "one.csv"))
            seconds = time.perf_counter() - start
            print(
                f"predict alone, {count_threads()} threads: {seconds:.1f} s, {arguments.images / seconds:.1f} images/s"
            )
            for nodes in arguments.nodes:
                measure(images, Path(kept, f"out-{nodes}"), nodes, arguments)
        kill(images, Path(kept, "killed"), max(arguments.nodes), arguments)


def copy(images: Path, copies: int) -> None:
    """Give each image more names."""
    for file in [*images.glob("*/*/*.png")] if copies > 1 else []:
        for number in range(1, copies):
            file.with_name(f"{number}-{file.name}").hardlink_to(file)


def measure_plan(count: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as kept:
        out = Storage(kept)
        for _ in range(2):
            start = time.perf_counter()
            new = extend_plan(out, list_addresses(count), 1000, {})
            parts = len(find_work(out).missing)
            print(f"{count} images, {new} new, {parts} parts: {time.perf_counter() - start:.1f} s")
        size = sum(each.stat().st_size for each in Path(kept, "plans").iterdir())
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / count
    print(f"plan: {size / count:.0f} bytes an image on disk, {more:.0f} in memory")


def measure_ids(count: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, ids = time.process_time(), IdSet()
    for _ in range(count // 1000):
        ids.add([os.urandom(16).hex() for _ in range(1000)])
    seconds = time.process_time() - start
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / count
    print(f"{len(ids)} ids: {more:.0f} bytes each in memory, {seconds:.1f} s of one core")


def list_addresses(count: int) -> Iterator[ListedImage]:
    for number in range(count):
        name = f"s3://bucket/{number // 1000:06}/{number:09}.dcm"
        yield ListedImage(hashlib.sha256(name.encode()).hexdigest()[:32], name)


def make_cluster(nodes: int) -> Any:
    from ray.cluster_utils import Cluster

    options: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
    for _ in range(nodes - 1):
        cluster.add_node(**options)
    cluster.wait_for_nodes()
    return cluster


def measure(images: Path, out: Path, nodes: int, arguments: argparse.Namespace) -> None:
    cluster = make_cluster(nodes)
    start = time.perf_counter()
    with start_driver(images, out, cluster, arguments) as driver:
        first = wait_for(out, 1, driver)
        largest = watch(driver)
    end = time.perf_counter()
    cluster.shutdown()
    done = check(out, arguments.images)
    steady = (done - arguments.part_size) / (end - first)
    print(f"{nodes} nodes: {end - start:.1f} s, {steady:.1f} images/s after the first part, {largest}", flush=True)


def kill(images: Path, out: Path, nodes: int, arguments: argparse.Namespace) -> None:
    cluster = make_cluster(nodes)
    parts = -(-arguments.images // arguments.part_size)
    start = time.perf_counter()
    with start_driver(images, out, cluster, arguments) as driver:
        wait_for(out, max(1, parts // 10), driver)
        driver.kill()
    with start_driver(images, out, cluster, arguments) as driver:
        wait_for(out, parts * 4 // 10, driver)
        os.kill(find_workers()[0], signal.SIGKILL)
        wait_for(out, parts * 6 // 10, driver)
        if nodes > 1:
            cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
        driver.wait()
    end = time.perf_counter()
    code = driver.returncode
    cluster.shutdown()
    print(f"{nodes} nodes, three kills: {end - start:.1f} s, exit code {code}, {check(out, arguments.images)} images")
    shutil.rmtree(out)


def soak(images: Path, out: Path, arguments: argparse.Namespace) -> None:
    """Predict until all is done or the time is over, and show the memory; no image may have two rows."""
    cluster = make_cluster(max(arguments.nodes))
    start = shown = time.perf_counter()
    print(
        "| minutes | images | driver, MB | largest worker, MB | raylet and GCS, MB |\n| --- | --- | --- | --- | --- |"
    )
    with start_driver(images, out, cluster, arguments) as driver:
        while driver.poll() is None and time.perf_counter() - start < 60 * arguments.soak:
            time.sleep(1)
            if time.perf_counter() - shown >= 300:
                shown += 300
                show_memory(shown - start, out, driver.pid, arguments.part_size)
        if driver.poll() is None:
            show_memory(time.perf_counter() - start, out, driver.pid, arguments.part_size)
        driver.send_signal(signal.SIGINT)
    cluster.shutdown()
    ids = [each for file in out.glob("predictions/*.parquet") for each in read_ids(file)]
    if len(ids) != len(set(ids)):
        sys.exit(f"{len(ids)} rows of {len(set(ids))} images")
    print(f"exit code {driver.returncode}, {len(ids)} rows of {len(set(ids))} images, of {arguments.images}")


def show_memory(seconds: float, out: Path, driver: int, part_size: int) -> None:
    done = part_size * len(list(out.glob("predictions/*.parquet")))
    worker = max(map(read_memory, find_processes(b"PartPredictor")), default=0)
    own = sum(map(read_memory, find_processes(b"raylet") + find_processes(b"gcs_server")))
    print(f"| {seconds / 60:.0f} | {done} | {read_memory(driver)} | {worker} | {own} |", flush=True)


def run_command(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "pneumoscope", *map(str, words)], check=True, stderr=subprocess.DEVNULL)


def start_driver(images: Path, out: Path, cluster: Any, arguments: argparse.Namespace) -> subprocess.Popen[bytes]:
    words = ["cluster", "predict", images, "--out", out, "--address", cluster.address]
    command = [sys.executable, "-m", "pneumoscope", *map(str, words), "--part-size", str(arguments.part_size)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def watch(driver: subprocess.Popen[bytes]) -> str:
    """Wait for the end; gives the largest memory of the driver and of a worker, half-way and at the end, in MB."""
    seen: list[tuple[int, int]] = []
    while driver.poll() is None:
        workers = [read_memory(each) for each in find_workers()]
        seen.append((read_memory(driver.pid), max(workers, default=0)))
        time.sleep(0.5)
    (driver_half, worker_half), (driver_all, worker_all) = (
        tuple(map(max, zip(*each, strict=True))) for each in (seen[: len(seen) // 2 + 1], seen)
    )
    return f"memory of driver {driver_half} then {driver_all} MB, of a worker {worker_half} then {worker_all} MB"


def read_memory(process: int) -> int:
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in text.splitlines() if line.startswith("VmRSS")), 0)


def wait_for(out: Path, parts: int, driver: subprocess.Popen[bytes]) -> float:
    """Wait until so many parts are written; gives the time."""
    while driver.poll() is None and len(list(out.glob("predictions/*.parquet"))) < parts:
        time.sleep(0.05)
    return time.perf_counter()


def find_workers() -> list[int]:
    """The processes of Ray that predict."""
    return find_processes(b"PartPredictor")


def find_processes(name: bytes) -> list[int]:
    """The processes of Ray started by this script with this in the name of their program or task."""
    mark = f"RAY_AUTH_TOKEN={os.environ['RAY_AUTH_TOKEN']}".encode()
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and name in (process / "cmdline").read_bytes().partition(b"\0")[0]:
                found += [int(process.name)] if mark in (process / "environ").read_bytes() else []
        except OSError:
            continue
    return found


def check(out: Path, images: int) -> int:
    """How many images have a row; each must have one."""
    ids = [each for file in out.glob("predictions/*.parquet") for each in read_ids(file)]
    if len(ids) != images or len(set(ids)) != images:
        sys.exit(f"{len(ids)} rows of {len(set(ids))} images, not {images}")
    return len(ids)


def read_ids(file: Path) -> list[str]:
    ids: list[str] = parquet.ParquetFile(file).read(["id"], use_threads=False)["id"].to_pylist()
    return ids


if __name__ == "__main__":
    main()
