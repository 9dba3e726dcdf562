"""Do maps point right? On simulated images with known opacities, after randomisation, and by deletion on real images.

python benchmarks/explanation_faithfulness.py --work /tmp/maps --data ../shared/data/seed-400 [--seeds 2]

Images and runs are kept in --work and found there again.
"""

from __future__ import annotations

import argparse
import copy
import csv
from collections.abc import Iterator
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
from pneumoscope.datasets.samples import read_samples
from pneumoscope.images.prepare import InputSpec, fit, prepare
from pneumoscope.images.read import read_pixels
from pneumoscope.inference.engines import TorchEngine
from pneumoscope.inference.explain import Explanation, Method, explain
from pneumoscope.inference.predictor import Predictor, load
from pneumoscope.training.train import train

Floats = NDArray[np.float64]


def interval(values: Floats, seed: int = 0) -> str:
    """Mean and 95 % bootstrap interval over images (each patient's images are few)."""
    draws = np.random.default_rng(seed).choice(values, (2000, len(values))).mean(1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})"


def diseased(images: Path, split: str) -> Iterator[tuple[Path, NDArray[np.bool_]]]:
    with (images / "truth.csv").open() as file:
        for row in csv.DictReader(file):
            if row["split"] == split and row["mask"]:
                yield images / row["path"], np.asarray(Image.open(images / row["mask"])) > 127


def ready(work: Path, name: str, data: Path, seed: int, **options: Any) -> Predictor:
    if not (work / name / "metrics.json").exists():
        train(data, work / name, recipe="head", seed=seed, overwrite=True, audit=False, **options)
    return load(work / name)


def gaussian(side: int) -> NDArray[np.float32]:
    away = (np.arange(side) - (side - 1) / 2) ** 2 / (2 * (side / 4) ** 2)
    return np.exp(-(away[:, None] + away)).astype(np.float32)


def pointing(predictor: Predictor, images: Path, methods: tuple[Method, ...], most: int, name: str) -> None:
    """One row a method and baseline: the pointing game and the share of positive evidence inside the mask."""
    spec = predictor.model.input
    masks = [fit(mask.astype(np.float32), replace(spec, size=56)) for _, mask in diseased(images, "train")]
    baselines = {"Gaussian at the centre": gaussian(56), "mean training mask": np.mean(masks, 0)}
    scores: dict[str, list[tuple[float, ...]]] = {}
    for path, mask in list(diseased(images, "test"))[:most]:
        maps: dict[str, Explanation] = {method: explain(predictor, path, method=method) for method in methods}
        first = maps[methods[0]]
        maps |= {key: replace(first, cells=cells) for key, cells in baselines.items()}
        maps["chance (uniform)"] = replace(first, cells=np.ones((1, 1), np.float32))
        cell = (first.box[2] - first.box[0]) / first.cells.shape[1]
        for key, found in maps.items():
            drawn = found.map()
            hits = [float(points_inside(drawn, mask, reach)) for reach in (0.0, cell)]
            if key.startswith("chance"):
                seen, away = ~np.isnan(drawn), distance_transform_edt(~mask)
                hits = [float((away[seen] <= reach).mean()) for reach in (0.0, cell)]
            scores.setdefault(key, []).append((*hits, share_inside(drawn, mask), first.logit > 0))
    for key, rows in scores.items():
        table = np.array(rows, float)
        for group, part in (("all", table), ("found", table[table[:, 3] > 0])):
            print(f"| {name} | {key} | {group} {len(part)} | {' | '.join(map(interval, part.T[:3]))} |", flush=True)


def randomise(predictor: Predictor, stages: int, seed: int) -> Predictor:
    """Draw the weights of the last stages of the backbone anew, from the head down (Adebayo et al. 2018, section 3)."""
    rng = torch.Generator().manual_seed(seed)
    assert isinstance(predictor.engine, TorchEngine)
    backbone = copy.deepcopy(predictor.engine.backbone)
    network: Any = backbone.network
    parts = [network.conv_head, *reversed(network.blocks), network.conv_stem]
    for part in parts[:stages]:
        for value in (each.detach() for each in part.parameters()):
            spread = float(value.std()) if value.numel() > 1 else 0.0
            value.copy_(
                torch.randn(value.shape, generator=rng) * spread + (float(value.mean()) if value.ndim == 1 else 0)
            )
    weight = torch.randn(predictor.weight.shape, generator=rng).numpy() * predictor.weight.std()
    model = predictor.model
    return Predictor(model, weight.astype(np.float32), predictor.bias, TorchEngine(backbone, model.input.size))


def sanity(predictor: Predictor, paths: list[Path], name: str) -> None:
    """Rank correlation and SSIM of maps with those of a network whose weights are random from the head downwards."""
    stages = {"head": 0, "+ last convolution": 1, "+ block 7": 2, "+ blocks 6 to 4": 5, "all": 9}
    before = [explain(predictor, path, method="cam") for path in paths]
    for key, count in stages.items():
        ranks, alike = [], []
        for seed in range(3):
            other = randomise(predictor, count, seed)
            for one in before:
                cells = explain(other, one.path or Path(), method="cam").cells
                ranks.append(spearmanr(one.cells, cells, axis=None).statistic)
                ours, theirs = (np.abs(each) / np.abs(each).max() for each in (one.cells, cells))
                alike.append(structural_similarity(ours, theirs, data_range=1.0, win_size=3))  # type: ignore[no-untyped-call]
        print(f"| {name} | {key} | {np.mean(ranks):+.3f} ± {np.std(ranks):.3f} | {np.mean(alike):.3f} |", flush=True)
    swapped = [spearmanr(one.cells, two.cells, axis=None).statistic for one, two in pairwise(before)]
    print(f"| {name} | nothing, but another image | {np.mean(swapped):+.3f} ± {np.std(swapped):.3f} | |", flush=True)


def curves(predictor: Predictor, paths: list[Path], methods: tuple[Method, ...], name: str) -> None:
    """Areas under the curves: the mean probability while an image becomes grey, or comes out of a blur."""
    spec: InputSpec = predictor.model.input
    rng = np.random.default_rng(0)

    def probabilities(inputs: NDArray[np.float32]) -> Floats:
        features = np.concatenate([predictor.engine.run(part).features for part in np.array_split(inputs, 3)])
        logits = features @ predictor.weight[0] + predictor.bias[0]
        return np.asarray(1 / (1 + np.exp(-logits.astype(np.float64))))

    areas: dict[str, list[tuple[float, float]]] = {}
    for path in paths:
        square = replace(
            explain(predictor, path, method="cam"), box=(0, 0, spec.size, spec.size), shape=(spec.size,) * 2
        )
        inputs = prepare(read_pixels(path), spec)
        base = np.stack([gaussian_filter(channel, spec.size / 12) for channel in inputs])
        grey = np.full_like(inputs, inputs.mean())
        side = len(square.cells)
        orders: dict[str, NDArray[np.float32]] = {
            **{
                method: square.cells if method == "cam" else explain(predictor, path, method=method).cells
                for method in methods
            },
            "centre": gaussian(side),
            "random": rng.normal(size=(side, side)).astype(np.float32),
        }
        for key, cells in orders.items():
            drawn = replace(square, cells=cells).map()
            deleted = probabilities(delete_evidence(inputs, grey, drawn, 14)).mean()
            inserted = probabilities(delete_evidence(base, inputs, drawn, 14)).mean()
            areas.setdefault(key, []).append((deleted, inserted))
    for key, rows in areas.items():
        # Each image is its own control: what an order gains over chance on the same image.
        columns = [*np.array(rows).T, *(np.array(rows) - np.array(areas["random"])).T]
        print(f"| {name} | {key} | {len(rows)} | {' | '.join(map(interval, columns))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--images", type=int, default=75, help="diseased test images a seed")
    parser.add_argument("--part", choices=["pointing", "ig", "fits", "sanity", "curves"], nargs="*")
    parts = (arguments := parser.parse_args()).part or ["pointing", "ig", "fits", "sanity", "curves"]
    work: Path = arguments.work

    def images(seed: int) -> Path:
        folder = work / f"images{seed}"
        return folder if folder.exists() else write_phantoms(folder, seed=seed)

    if {"pointing", "ig", "fits"} & set(parts):
        print("| network | map | images | hits | within a cell | share inside |\n" + "| --- " * 6 + "|")
    if "pointing" in parts:
        for seed in range(arguments.seeds):
            predictor = ready(work, f"run{seed}", images(seed), seed)
            pointing(predictor, images(seed), ("cam",), arguments.images, f"crop 224, seed {seed}")
    if "ig" in parts:
        pointing(ready(work, "run0", images(0), 0), images(0), ("cam", "ig"), 40, "crop 224, seed 0")
    if "fits" in parts:
        predictor = ready(work, "pad0", images(0), 0, fit="pad")
        pointing(predictor, images(0), ("cam",), arguments.images, "pad 224, seed 0")
        for size in (320, 448):
            predictor = ready(work, f"crop{size}", images(0), 0, size=size)
            pointing(predictor, images(0), ("cam",), arguments.images, f"crop {size}, seed 0")
    if "sanity" in parts:
        print("\n| images | random | rank correlation | SSIM |\n" + "| --- " * 4 + "|")
        sanity(ready(work, "run0", images(0), 0), [path for path, _ in diseased(images(0), "test")][:12], "simulated")
    if "curves" in parts and arguments.data:
        predictor = ready(work, "real", arguments.data, 0)
        paths = [one.path for one in read_samples(arguments.data) if one.split == "val" and one.label == "PNEUMONIA"]
        print(
            "\n| images | order | n | deletion | insertion | deletion - random | insertion - random |\n"
            + "| --- " * 7
            + "|"
        )
        curves(predictor, paths[:: max(1, len(paths) // 16)], ("cam", "ig"), "real")


if __name__ == "__main__":
    main()
