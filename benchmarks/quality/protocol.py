"""What the quality benchmarks share: splits of the Kermany images by patient, and runs that are trained only once.

Every run is an ordinary `pneumoscope.train` on a table of images. A finished run is used again, so that a benchmark
that was interrupted continues where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import pneumoscope
from pneumoscope import __version__
from pneumoscope.datasets.duplicates import group_identical
from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.samples import Sample, write_samples
from pneumoscope.datasets.sources import KERMANY
from pneumoscope.datasets.splits import fold_samples, split_samples
from pneumoscope.inference.cache import FeatureCache, default_cache_path
from pneumoscope.models.backbones import find_backbone
from pneumoscope.models.lineage import name_earlier_sources
from pneumoscope.models.model_folder import load_model
from pneumoscope.training.settings import resolve_settings
from pneumoscope.training.train import train

METRICS = ("accuracy", "f1", "sensitivity", "specificity", "auroc")
TRANSFERS = (("NORMAL2-IM", "bacteria"), ("NORMAL2-IM", "virus"), ("IM", "virus"), ("IM", "bacteria"))
BACKBONE = "efficientnet_lite0"
_SERIES = re.compile(r"(NORMAL2-IM|IM)-|person\d+_(bacteria|virus)_")


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run: its folder, metrics on its test images, and seconds of training and testing.

    Features of a frozen backbone may come from the cache; the seconds do not include their extraction then.
    """

    folder: Path
    metrics: dict[str, dict[str, float]]
    seconds: float

    def value(self, metric: str) -> float:
        """A metric without its interval."""
        return self.metrics[metric]["value"]


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments that every script takes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the datasets")
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"), help="folder of the runs")
    return parser


def read_kermany(data: Path) -> list[Sample]:
    """All 5,216 images, without splits."""
    return [dataclasses.replace(sample, split=None) for sample in read_samples(data / "kermany-train-224")]


def draw_small(samples: Sequence[Sample], seed: int, train_count: int = 200, val_count: int = 100) -> list[Sample]:
    """As many images of each class to train and validate as in seed-400, by patient; all others are for testing."""
    drawn = split_samples(
        samples,
        test_count=val_count,
        val_count=train_count,
        balanced=("val", "test"),
        groups=group_identical(samples),
        seed=seed,
    )
    roles = {"test": "val", "val": "train", "train": "test"}
    return [dataclasses.replace(sample, split=roles[str(sample.split)]) for sample in drawn]


def draw_folds(samples: Sequence[Sample], folds: int, seed: int) -> list[list[Sample]]:
    """Cross-validation by patient; each fold's validation images are drawn from those that it does not test."""
    return fold_samples(samples, folds, groups=group_identical(samples), seed=seed)


def draw_transfer(samples: Sequence[Sample], tested: tuple[str, str], seed: int, count: int = 400) -> list[Sample]:
    """Train on two series, test on `count` images of each class from the other two."""
    rng = np.random.default_rng(seed)
    other = [sample for sample in samples if series_of(sample) in tested]
    test = []
    for label in sorted({str(sample.label) for sample in other}):
        images = [sample for sample in other if sample.label == label]
        test += [dataclasses.replace(images[i], split="test") for i in rng.permutation(len(images))[:count]]
    rest = [dataclasses.replace(sample, split="train") for sample in samples if series_of(sample) not in tested]
    return split_samples(rest + test, groups=group_identical(rest + test), seed=seed)


def series_of(sample: Sample) -> str:
    """IM, NORMAL2-IM, bacteria or virus."""
    match = _SERIES.match(sample.path.name)
    if match is None:
        raise SystemExit(f"{sample.path}: not named like an image of the Kermany data.")
    return str(match.group(1) or match.group(2))


def train_once(samples: Sequence[Sample] | Path, folder: Path, **settings: Any) -> Result:
    """Train and test, unless that was done before with the same settings, images and version.

    A change of the source code since then only gives a warning: most changes do not affect a run, and some runs take
    half an hour.

    Args:
        samples: with splits, or a folder that has them.
        folder: of the run.
        **settings: as for `pneumoscope.train`.
    """
    record = folder.parent / f"{folder.name}.json"
    resolved = dataclasses.asdict(resolve_settings({**settings, "path": "-"}, {}))
    images = [
        [str(image.path), image.label, image.split, image.path.stat().st_size]
        for image in (read_samples(samples) if isinstance(samples, Path) else samples)
    ]
    groups = [Path(file).read_text(encoding="utf-8") for file in [settings.get("groups")] if file]
    digest, code = _hash([__version__, resolved, images, *groups]), _hash_code()
    if record.exists():
        done = json.loads(record.read_text(encoding="utf-8"))
        if done["digest"] == digest:
            if done.get("code") != code:
                print(f"{folder}: made by other source code; delete {record} to train it again.", file=sys.stderr)
            return Result(folder, done["metrics"], done["seconds"])
        record.unlink()
    data = samples
    if not isinstance(samples, Path):
        folder.parent.mkdir(parents=True, exist_ok=True)
        data = folder.parent / f"{folder.name}.csv"
        write_samples(data, samples)
    start = time.perf_counter()
    with FeatureCache(default_cache_path()) as cache:
        run = train(str(data), folder, overwrite=folder.exists(), cache=cache, audit=False, **settings)
    seconds = time.perf_counter() - start
    metrics = {name: dataclasses.asdict(run.evaluation.metrics[name]) for name in METRICS}
    record.write_text(
        json.dumps({"digest": digest, "code": code, "metrics": metrics, "seconds": seconds}), encoding="utf-8"
    )
    print(f"{folder}: {seconds:.0f} s, " + ", ".join(f"{m} {metrics[m]['value']:.4f}" for m in METRICS), flush=True)
    return Result(folder, metrics, seconds)


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _hash_code() -> str:
    """Digest of the package's source."""
    package = Path(pneumoscope.__file__).parent
    return _hash([path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))])


def draw_images(samples: Sequence[Sample], labels: Sequence[str], count: int) -> list[list[Sample]]:
    """`count` random test images of each class."""
    rng = np.random.default_rng(0)
    classes = [[image for image in samples if image.split == "test" and image.label == label] for label in labels]
    return [[images[i] for i in rng.permutation(len(images))[:count]] for images in classes]


def encode(picture: Image.Image) -> bytes:
    """An image as the content of a PNG file."""
    content = io.BytesIO()
    picture.save(content, "PNG", compress_level=1)
    return content.getvalue()


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation, for a cell of a table."""
    deviation = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{deviation}"


def name_backbone(backbone: str) -> list[str]:
    """The part of a run's name that says its backbone, unless it is the default."""
    return [] if backbone == BACKBONE else [backbone]


def refuse_seen(backbones: str) -> None:
    """Stop if a backbone has learned from the Kermany training images, on which it would be tested."""
    for name in backbones.split(","):
        if (pretrained := find_backbone(name).model) is None:
            continue
        model = load_model(Path(pretrained))
        if KERMANY.name in {*model.data.get("sources", ()), *name_earlier_sources(model.lineage)}:
            raise SystemExit(f"{name} has learned from the images that it would be tested on.")


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table in Markdown."""
    print(f"\n| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(str(cell) for cell in row)} |")


def summarise(results: Sequence[Result]) -> list[str]:
    """Mean and standard deviation of each metric, and the mean seconds of a run."""
    return [spread([result.value(metric) for result in results]) for metric in METRICS] + [
        f"{np.mean([result.seconds for result in results]):.0f} s"
    ]
