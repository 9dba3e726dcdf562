"""What an image costs OpenVINO, by how many run together and how many the network was compiled for.

    python benchmarks/batches_of_one.py [--model pneumonia-lite0] [--rounds 7]

All kinds take turns within one run; the table gives the fastest round of each, in milliseconds an image.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.inference.runtimes import count_threads, import_openvino
from pneumoscope.models.model_folder import GRAPH, find_model, load_model

IMAGES = 64
KINDS = ((1, True), (2, True), (4, True), (8, True), (1, False), (8, False))  # images, and whether compiled for them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pneumonia-lite0")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    folder = find_model(Path(options.model))
    size = load_model(folder).input.size
    inputs = np.random.default_rng(0).normal(size=(IMAGES, 3, size, size)).astype(np.float32)
    runs = {kind: compile_graph(folder / GRAPH, *kind, size) for kind in KINDS}
    times: dict[tuple[int, bool], list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for _ in range(options.rounds):
        for kind, run in runs.items():
            start, used = time.perf_counter(), time.process_time()
            run(inputs)
            times[kind].append((time.perf_counter() - start, time.process_time() - used))
    print("| images together | compiled for | by the clock | of processors |\n| --- | --- | --- | --- |")
    for (count, fixed), found in times.items():
        clock, used = (1000 * min(column) / IMAGES for column in zip(*found, strict=True))
        print(f"| {count} | {'as many' if fixed else 'any number'} | {clock:.1f} ms | {used:.1f} ms |")


def compile_graph(graph: Path, count: int, fixed: bool, size: int) -> Callable[[NDArray[np.float32]], None]:
    """Compile a network; what is returned runs images, `count` at a time, with two requests for each stream."""
    openvino: Any = import_openvino()
    core = openvino.Core()
    model = core.read_model(graph)
    if fixed:
        model.reshape({0: [count, 3, size, size]})
    threads = count_threads()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": threads}
    compiled = core.compile_model(model, "CPU", options)
    requests = [compiled.create_infer_request() for _ in range(2 * threads)]

    def run(inputs: NDArray[np.float32]) -> None:
        for number, start in enumerate(range(0, len(inputs), count)):
            request = requests[number % len(requests)]
            request.wait()
            request.start_async({0: inputs[start : start + count]}, share_inputs=True)
        for request in requests:
            request.wait()

    run(inputs=np.zeros((count, 3, size, size), np.float32))
    return run


if __name__ == "__main__":
    main()
