"""Do maps point at the evidence? Simulated images with known opacities, randomised weights, deletion on real images.

    python benchmarks/explanation_faithfulness.py --work /tmp/maps --data ../shared/data/seed-400 [--seeds 2]

Images and runs are kept in --work and used again by the next call.
"""

from __future__ import annotations

import argparse
import copy
import csv
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity

from faithfulness import delete_evidence, points_inside, share_inside
from pneumoscope.datasets.phantom_sets import write_phantoms
from pneumoscope.datasets.reading import read_samples
from pneumoscope.images.prepare import InputSpec, fit, prepare
from pneumoscope.images.read import read_pixels
from pneumoscope.inference.engines import TorchEngine
from pneumoscope.inference.evidence import Evidence, Method
from pneumoscope.inference.explain import explain
from pneumoscope.inference.predictor import Predictor, compute_logits, load
from pneumoscope.training.train import train

Array = NDArray[np.float32]
Floats = NDArray[np.float64]
METHODS: dict[Method, str] = {"cam": "class-activation map", "ig": "integrated gradients"}
PARTS = ("pointing", "ig", "fits", "sanity", "curves")


def format_interval(values: Floats, seed: int = 0) -> str:
    """Mean and 95% bootstrap interval over images (no patient has many)."""
    draws = np.random.default_rng(seed).choice(values, (2000, len(values))).mean(1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})"


def find_opacities(images: Path, split: str) -> Iterator[tuple[Path, NDArray[np.bool_]]]:
    """Images of a split that show an opacity, with its mask, bool (H, W)."""
    with (images / "truth.csv").open() as file:
        for row in csv.DictReader(file):
            if row["split"] == split and row["mask"]:
                yield images / row["path"], np.asarray(Image.open(images / row["mask"])) > 127


def load_or_train(work: Path, name: str, data: Path, seed: int, **options: Any) -> Predictor:
    if not (work / name / "metrics.json").exists():
        train(data, work / name, recipe="head", seed=seed, overwrite=True, audit=False, **options)
    return load(work / name, "cpu", engine="torch")  # which alone gives gradients and lets weights be changed


def draw_gaussian(side: int) -> Array:
    """A hill at the centre of a square."""
    exponents = (np.arange(side) - (side - 1) / 2) ** 2 / (2 * (side / 4) ** 2)
    return np.exp(-(exponents[:, None] + exponents)).astype(np.float32)


def find_evidence(predictor: Predictor, path: Path, method: Method = "cam") -> Evidence:
    evidence = explain(path, predictor, method=method).evidence
    assert evidence is not None
    return evidence


def measure_pointing(predictor: Predictor, images: Path, methods: tuple[Method, ...], most: int, name: str) -> None:
    """Print for each method and baseline the pointing game, and how much positive evidence lies inside the mask."""
    spec = predictor.model.input
    masks = [fit(mask.astype(np.float32), replace(spec, size=56)) for _, mask in find_opacities(images, "train")]
    baselines = {"Gaussian at the centre": draw_gaussian(56), "mean training mask": np.mean(masks, 0)}
    scores: dict[str, list[tuple[float, ...]]] = {}
    for path, mask in list(find_opacities(images, "test"))[:most]:
        maps = {METHODS[method]: find_evidence(predictor, path, method) for method in methods}
        first = maps[METHODS[methods[0]]]
        maps |= {key: replace(first, cells=cells) for key, cells in baselines.items()}
        maps["chance (uniform)"] = replace(first, cells=np.ones((1, 1), np.float32))
        cell = (first.box[2] - first.box[0]) / first.cells.shape[1]
        for key, evidence in maps.items():
            map_ = evidence.map()
            hits = [float(points_inside(map_, mask, tolerance)) for tolerance in (0.0, cell)]
            if key.startswith("chance"):
                seen, distances = ~np.isnan(map_), distance_transform_edt(~mask)
                hits = [float((distances[seen] <= tolerance).mean()) for tolerance in (0.0, cell)]
            scores.setdefault(key, []).append((*hits, share_inside(map_, mask), first.logit > 0))
    for key, rows in scores.items():
        table = np.array(rows, float)
        for group, part in (("all", table), ("found", table[table[:, 3] > 0])):
            cells = " | ".join(map(format_interval, part.T[:3]))
            print(f"| {name} | {key} | {group} {len(part)} | {cells} |", flush=True)


def randomise(predictor: Predictor, layers: int, seed: int) -> Predictor:
    """Replace the weights of the head and of the last layers by random ones (Adebayo et al. 2018, section 3)."""
    rng = torch.Generator().manual_seed(seed)
    assert isinstance(predictor.engine, TorchEngine)
    backbone = copy.deepcopy(predictor.engine.backbone)
    network: Any = backbone.network
    for layer in [network.conv_head, *reversed(network.blocks), network.conv_stem][:layers]:
        for value in (each.detach() for each in layer.parameters()):
            spread = float(value.std()) if value.numel() > 1 else 0.0
            centre = float(value.mean()) if value.ndim == 1 else 0
            value.copy_(torch.randn(value.shape, generator=rng) * spread + centre)
    weight = (torch.randn(predictor.weight.shape, generator=rng).numpy() * predictor.weight.std()).astype(np.float32)
    engine = TorchEngine(backbone, predictor.model.input.size)
    return Predictor(predictor.model, weight, predictor.bias, engine, predictor.decider)


def measure_sanity(predictor: Predictor, paths: list[Path], name: str) -> None:
    """Print rank correlation and SSIM of maps with those of a network whose last layers are random."""
    ssim: Callable[..., float] = structural_similarity  # scikit-image has no types for it
    layers = {"head": 0, "+ last convolution": 1, "+ block 7": 2, "+ blocks 6 to 4": 5, "all": 9}
    trained = [find_evidence(predictor, path).cells for path in paths]
    for key, count in layers.items():
        correlations, similarities = [], []
        for seed in range(3):
            other = randomise(predictor, count, seed)
            for path, cells in zip(paths, trained, strict=True):
                random = find_evidence(other, path).cells
                correlations.append(spearmanr(cells, random, axis=None).statistic)
                first, second = (np.abs(each) / np.abs(each).max() for each in (cells, random))
                similarities.append(ssim(first, second, data_range=1.0, win_size=3))
        print(
            f"| {name} | {key} | {np.mean(correlations):+.3f} ± {np.std(correlations):.3f} "
            f"| {np.mean(similarities):.3f} |",
            flush=True,
        )
    swapped = [spearmanr(one, other, axis=None).statistic for one, other in pairwise(trained)]
    print(f"| {name} | nothing, but another image | {np.mean(swapped):+.3f} ± {np.std(swapped):.3f} | |", flush=True)


def measure_curves(predictor: Predictor, paths: list[Path], methods: tuple[Method, ...], name: str) -> None:
    """Print areas under curves: the mean probability while an image turns grey, or emerges from a blur."""
    spec: InputSpec = predictor.model.input
    rng = np.random.default_rng(0)

    def predict(inputs: Array) -> Floats:
        features = np.concatenate([predictor.engine.run(part).features for part in np.array_split(inputs, 3)])
        logits = compute_logits(features, predictor.weight, predictor.bias)[:, 0]
        return np.asarray(1 / (1 + np.exp(-logits)))

    areas: dict[str, list[tuple[float, float]]] = {}
    for path in paths:
        square = replace(find_evidence(predictor, path), box=(0, 0, spec.size, spec.size), shape=(spec.size,) * 2)
        inputs = prepare(read_pixels(path), spec)
        blurred = np.stack([gaussian_filter(channel, spec.size / 12) for channel in inputs])
        grey = np.full_like(inputs, inputs.mean())
        side = len(square.cells)
        orders: dict[str, Array] = {
            **{METHODS[method]: find_evidence(predictor, path, method).cells for method in methods},
            "centre": draw_gaussian(side),
            "random": rng.normal(size=(side, side)).astype(np.float32),
        }
        for key, cells in orders.items():
            map_ = replace(square, cells=cells).map()
            deleted = predict(delete_evidence(inputs, grey, map_, 14)).mean()
            inserted = predict(delete_evidence(blurred, inputs, map_, 14)).mean()
            areas.setdefault(key, []).append((deleted, inserted))
    for key, rows in areas.items():
        # Each image is its own control: what an order gains over chance on the same image.
        columns = [*np.array(rows).T, *(np.array(rows) - np.array(areas["random"])).T]
        print(f"| {name} | {key} | {len(rows)} | {' | '.join(map(format_interval, columns))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--images", type=int, default=75, help="test images with an opacity, for each seed")
    parser.add_argument("--part", choices=PARTS, nargs="*", default=PARTS)
    options = parser.parse_args()
    parts, work = set(options.part), options.work

    def images(seed: int) -> Path:
        folder: Path = work / f"images{seed}"
        return folder if folder.exists() else write_phantoms(folder, seed=seed)

    if {"pointing", "ig", "fits"} & parts:
        print("| network | map | images | hits | within a cell | share inside |\n" + "| --- " * 6 + "|")
    if "pointing" in parts:
        for seed in range(options.seeds):
            predictor = load_or_train(work, f"run{seed}", images(seed), seed)
            measure_pointing(predictor, images(seed), ("cam",), options.images, f"crop 224, seed {seed}")
    if "ig" in parts:
        predictor = load_or_train(work, "run0", images(0), 0)
        measure_pointing(predictor, images(0), ("cam", "ig"), 40, "crop 224, seed 0, first 40 images")
    if "fits" in parts:
        predictor = load_or_train(work, "pad0", images(0), 0, fit="pad")
        measure_pointing(predictor, images(0), ("cam",), options.images, "pad 224, seed 0")
        for size in (320, 448):
            predictor = load_or_train(work, f"crop{size}", images(0), 0, size=size)
            measure_pointing(predictor, images(0), ("cam",), options.images, f"crop {size}, seed 0")
    if "sanity" in parts:
        print("\n| images | randomised | rank correlation | SSIM |\n" + "| --- " * 4 + "|")
        measure_sanity(
            load_or_train(work, "run0", images(0), 0),
            [path for path, _ in find_opacities(images(0), "test")][:12],
            "simulated",
        )
    if "curves" in parts and options.data:
        predictor = load_or_train(work, "real", options.data, 0)
        paths = [each.path for each in read_samples(options.data) if each.split == "val" and each.label == "PNEUMONIA"]
        print(
            "\n| images | order | n | deletion | insertion | deletion - random | insertion - random |\n"
            + "| --- " * 7
            + "|"
        )
        measure_curves(predictor, paths[:: max(1, len(paths) // 16)], ("cam", "ig"), "real")


if __name__ == "__main__":
    main()
