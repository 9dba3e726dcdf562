"""Extraction, fine-tuning and prediction on a GPU, in images a second, against a plain loop.

    bash benchmarks/gpu.sh            # on a machine with a GPU: under 8 minutes
    python benchmarks/gpu_speed.py --device cpu --images 32   # elsewhere: only to try the script

The images are simulated radiographs, each file read several times under different names. Shares say how long decoding,
copying to the device, and computing would take alone, relative to the whole; they overlap, so they may add up to
more than 1. Everything that is compared takes turns; numbers are medians. The plain loop is torchvision, timm and a
DataLoader with as many workers as there are cores.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import timm
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import pneumoscope
from pneumoscope.images.prefetch import prefetch
from pneumoscope.inference.engines import TorchEngine
from pneumoscope.inference.features import extract_features, read_source
from pneumoscope.models.backbones import find_backbone, load_backbone
from pneumoscope.models.classifier import Classifier, build_head, fold_batchnorms
from pneumoscope.training.loop import compute_loss

BATCH = 64


class Files(Dataset[Tensor]):
    """Images as a plain loop reads them."""

    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths = paths
        self.look = transforms.Compose(
            [
                transforms.Resize(size, transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(size),
                transforms.ToTensor(),
                transforms.Normalize((0.5,) * 3, (0.5,) * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            found: Tensor = self.look(image.convert("RGB"))
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--pixels", type=int, default=1024, help="side of the images")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu_speed: skipped: PyTorch finds no GPU. Try the script with --device cpu --images 32.")
    name = torch.cuda.get_device_name() if options.device == "cuda" else "processor"
    print(f"{name}, {os.cpu_count()} cores, torch {torch.__version__}\n")
    with tempfile.TemporaryDirectory() as folder:
        paths = write_images(Path(folder), options.images, options.pixels)
        print("| what | images/s | share of the whole |\n| --- | --- | --- |", flush=True)
        for kind, rate, share in (
            *measure_extraction(paths, options.device, options.rounds),
            *measure_prediction(paths, options.device, options.rounds),
            *measure_finetuning(options.device, options.rounds),
        ):
            print(f"| {kind} | {rate:.0f} | {share} |", flush=True)


def write_images(folder: Path, count: int, side: int) -> list[Path]:
    """A few different simulated radiographs under many names."""
    pneumoscope.write_phantoms(folder / "drawn", count=16, size=side)
    drawn = sorted((folder / "drawn").glob("t*/*/*.png"))
    paths = [folder / f"{i:06d}.png" for i in range(count)]
    for i, path in enumerate(paths):
        path.hardlink_to(drawn[i % len(drawn)])
    return paths


def take_turns(kinds: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Median seconds of each, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds + 1):
        for name, run in kinds.items():
            start = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(each[1:]) for name, each in seconds.items()}


def measure_extraction(paths: list[Path], device: str, rounds: int) -> Iterator[tuple[str, float, str]]:
    """Features of the frozen backbone: all of it, its parts alone, in bf16, and the plain loop."""
    spec = find_backbone("efficientnet_lite0")
    backbone, size, n = load_backbone(spec), spec.input.size, len(paths)
    engine = TorchEngine(backbone, size, device)
    host = torch.randn(BATCH, 3, size, size)
    place = torch.device(device)
    there = host.to(place, memory_format=torch.channels_last)
    plain = timm.create_model(spec.architecture, num_classes=0).eval().to(place)
    batches = -(-n // BATCH)

    def compute(half: bool) -> None:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=half):
            for _ in range(batches):
                engine.backbone(there)

    def copy_there() -> None:
        for _ in range(batches):
            host.to(place, memory_format=torch.channels_last, copy=True)

    def run_plain(half: bool) -> None:
        loader = DataLoader(Files(paths, size), BATCH, num_workers=os.cpu_count() or 1, pin_memory=device == "cuda")
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=half):
            for inputs in loader:
                plain(inputs.to(place, non_blocking=True)).float().cpu()

    whole = "extraction"
    seconds = take_turns(
        {
            whole: lambda: list(extract_features(paths, engine, spec.input)),
            "decoding alone": lambda: list(prefetch(lambda path: read_source(path, spec.input), paths)),
            "copying alone": copy_there,
            "computing alone, fp32": lambda: compute(half=False),
            "computing alone, bf16 (not used)": lambda: compute(half=True),
            "plain loop, fp32": lambda: run_plain(half=False),
            "plain loop, bf16": lambda: run_plain(half=True),
        },
        rounds,
        device,
    )
    for name, each in seconds.items():
        yield name, n / each, f"{each / seconds[whole]:.2f}"


def measure_prediction(paths: list[Path], device: str, rounds: int) -> Iterator[tuple[str, float, str]]:
    """Predictions of the pretrained model, with decisions and OOD scores."""
    predictor = pneumoscope.load("pneumonia-lite0", device=device)
    seconds = take_turns({"prediction": lambda: predictor.predict(paths)}, rounds, device)
    yield "prediction", len(paths) / seconds["prediction"], "1.00"


def measure_finetuning(device: str, rounds: int) -> Iterator[tuple[str, float, str]]:
    """Forward and backward passes of a batch, as the recipes train it and, as usual, with trained batch norms."""
    spec = find_backbone("efficientnet_lite0")
    backbone, size = load_backbone(spec).eval(), spec.input.size
    place = torch.device(device)
    inputs = torch.randn(BATCH, 3, size, size).to(place, memory_format=torch.channels_last)
    targets = torch.randint(0, 2, (BATCH,)).to(place)
    models = {
        name: Classifier(copy.deepcopy(each), build_head(each.width, 2), frozen=False, freeze_batchnorm=name == "ours")
        .to(place)
        .to(memory_format=torch.channels_last)
        for name, each in (("ours", fold_batchnorms(backbone, size)), ("usual", backbone))
    }
    steps = 20 if device == "cuda" else 1

    def step(name: str, half: bool) -> None:
        for _ in range(steps):
            with torch.autocast(device, torch.bfloat16, enabled=half):
                logits = models[name].train()(inputs)
            torch.autograd.backward(compute_loss(logits.float(), targets))

    kinds: dict[str, Callable[[], object]] = {
        f"fine-tuning, {name}, {kind}": partial(step, name, kind == "bf16")
        for name in models
        for kind in ("fp32", "bf16")
    }
    seconds = take_turns(kinds, rounds, device)
    for name, each in seconds.items():
        yield name, steps * BATCH / each, f"{each / seconds['fine-tuning, ours, fp32']:.2f}"


if __name__ == "__main__":
    main()
