"""How fast each engine runs a network on this processor, compared with large matrix products.

All engines take turns in one run; the fastest of several rounds counts. Operations are counted as if every convolution
were computed term by term. Matrix products are those of PyTorch or NumPy, whichever is faster. Two engines are only
measured, and used nowhere else: PyTorch's compiler (which needs a C++ compiler) and 16-bit arithmetic (bf16).

    python benchmarks/engine_speed.py [--backbones efficientnet_lite0,resnet50] [--rounds 5] [--compile]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from pneumoscope.inference.engines import OnnxEngine, OpenVinoEngine, TorchEngine
from pneumoscope.inference.runtimes import count_threads
from pneumoscope.models.backbones import BackboneSpec, find_backbone
from pneumoscope.models.classifier import Backbone
from pneumoscope.models.onnx_graphs import trace_graph
from short_arithmetic import ShortEngine

BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", default="efficientnet_lite0,resnet50,densenet121")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="measure PyTorch's compiler, too")
    options = parser.parse_args()
    torch.set_num_threads(count_threads())
    roofs = measure_products()
    print(
        f"{count_threads()} threads. Matrix product:", ", ".join(f"{k} {v / 1e9:.0f} GFLOP/s" for k, v in roofs.items())
    )
    print("\n| backbone | engine | ms per image | images per second | GFLOP/s | of the matrix product |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in options.backbones.split(","):
        for engine, seconds, rate in race(find_backbone(name), options.rounds, options.compile):
            cells = f"{seconds * 1e3:.1f} | {1 / seconds:.0f} | {rate / 1e9:.0f}"
            roof = roofs["bf16" if "bf16" in engine else "fp32"]
            print(f"| {name} | {engine} | {cells} | {rate / roof:.0%} |", flush=True)


def race(spec: BackboneSpec, rounds: int, compiled: bool = False) -> list[tuple[str, float, float]]:
    """Engine, seconds an image, and operations a second; weights are random, which changes no time."""
    size = spec.input.size
    network = timm.create_model(spec.architecture, num_classes=0, **spec.arguments)
    backbone = Backbone(network.eval(), spec.architecture)
    images = np.random.default_rng(0).normal(size=(BATCH, 3, size, size)).astype(np.float32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone(torch.from_numpy(images))
    work = counter.get_total_flops() / BATCH
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "network.onnx"
        graph.write_bytes(trace_graph(backbone, size))
        engines: dict[str, Callable[[], object]] = {}
        for name, engine in (
            ("PyTorch", TorchEngine(backbone, size, "cpu")),
            ("ONNX Runtime", OnnxEngine(graph, "")),
            ("OpenVINO", OpenVinoEngine(graph, "", size)),
            ("OpenVINO bf16", ShortEngine(graph, "", size)),
        ):
            engines[name] = partial(engine.run, images)
        batch = torch.from_numpy(images).to(memory_format=torch.channels_last)
        folded = TorchEngine(backbone, size, "cpu").backbone
        engines["PyTorch bf16"] = lambda: run_bf16(folded, batch)
        if compiled:
            quick = torch.compile(folded)
            engines["PyTorch compiled"] = lambda: run_plain(quick, batch)
            engines["PyTorch compiled bf16"] = lambda: run_bf16(quick, batch)
        best = dict.fromkeys(engines, float("inf"))
        for _ in range(rounds + 1):  # the first one warms up
            for name, run in engines.items():
                start = time.perf_counter()
                for _ in range(4):
                    run()
                best[name] = min(best[name], (time.perf_counter() - start) / 4 / BATCH)
    return [(name, seconds, work / seconds) for name, seconds in best.items()]


def run_plain(network: Callable[[torch.Tensor], object], batch: torch.Tensor) -> None:
    with torch.inference_mode():
        network(batch)


def run_bf16(network: Callable[[torch.Tensor], object], batch: torch.Tensor) -> None:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        network(batch)


def measure_products(side: int = 2048) -> dict[str, float]:
    """Floating-point operations a second of a matrix product, the fastest of eight and of two libraries."""
    one, other = (torch.randn(side, side) for _ in range(2))
    left, right, out = one.numpy(), other.numpy(), np.empty((side, side), np.float32)
    halves = one.bfloat16(), other.bfloat16()
    ways: dict[str, list[Callable[[], object]]] = {
        "fp32": [lambda: torch.mm(one, other), lambda: np.matmul(left, right, out=out)],
        "bf16": [lambda: torch.mm(*halves)],
    }
    best: dict[str, float] = {}
    for kind, each in ways.items():
        for way in each * 9:
            start = time.perf_counter()
            way()
            best[kind] = min(best.get(kind, float("inf")), time.perf_counter() - start)
    return {kind: 2 * side**3 / seconds for kind, seconds in best.items()}


if __name__ == "__main__":
    main()
