"""How fast each engine runs a network on this processor, beside the rate that large matrix products reach.

All engines take turns in one run; a figure is the fastest of several rounds. Operations are counted as if every
convolution were computed term by term.

    python benchmarks/engine_speed.py [--backbones efficientnet_lite0,resnet50] [--rounds 5]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from pneumoscope.inference.engines import OnnxEngine, OpenVinoEngine, TorchEngine, count_threads
from pneumoscope.models.backbones import BackboneSpec, find_backbone
from pneumoscope.models.classifier import Backbone
from pneumoscope.models.graphs import trace_graph

BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", default="efficientnet_lite0,resnet50,densenet121")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(count_threads())
    rates = {str(kind): measure_products(kind) for kind in (torch.float32, torch.bfloat16)}
    print(
        f"{count_threads()} threads. Matrix product:", ", ".join(f"{k} {v / 1e9:.0f} GFLOP/s" for k, v in rates.items())
    )
    print("\n| backbone | engine | ms a film | films a second | GFLOP/s |\n| --- | --- | --- | --- | --- |")
    for name in options.backbones.split(","):
        for engine, seconds, rate in race(find_backbone(name), options.rounds):
            print(f"| {name} | {engine} | {seconds * 1e3:.1f} | {1 / seconds:.0f} | {rate / 1e9:.0f} |", flush=True)


def race(spec: BackboneSpec, rounds: int) -> list[tuple[str, float, float]]:
    """Engine, seconds a film, and operations a second; weights are random, which changes no time."""
    size = spec.input.size
    network = timm.create_model(spec.architecture, num_classes=0, **spec.arguments)
    backbone = Backbone(network.eval(), spec.architecture)
    films = np.random.default_rng(0).normal(size=(BATCH, 3, size, size)).astype(np.float32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone(torch.from_numpy(films))
    work = counter.get_total_flops() / BATCH
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "network.onnx"
        graph.write_bytes(trace_graph(backbone, size))
        engines: dict[str, Callable[[], object]] = {}
        for name, engine in (
            ("PyTorch", TorchEngine(backbone, size, "cpu")),
            ("ONNX Runtime", OnnxEngine(graph, "")),
            ("OpenVINO", OpenVinoEngine(graph, "")),
        ):
            engines[name] = lambda engine=engine: engine.run(films)  # type: ignore[misc]
        best = dict.fromkeys(engines, float("inf"))
        for _ in range(rounds + 1):  # the first one warms up
            for name, run in engines.items():
                start = time.perf_counter()
                for _ in range(4):
                    run()
                best[name] = min(best[name], (time.perf_counter() - start) / 4 / BATCH)
    return [(name, seconds, work / seconds) for name, seconds in best.items()]


def measure_products(kind: torch.dtype, side: int = 2048) -> float:
    """Floating-point operations a second of a matrix product, the fastest of eight."""
    one, other = (torch.randn(side, side).to(kind) for _ in range(2))
    best = float("inf")
    for _ in range(9):
        start = time.perf_counter()
        torch.mm(one, other)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


if __name__ == "__main__":
    main()
