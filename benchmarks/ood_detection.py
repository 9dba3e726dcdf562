"""How well the OOD detector tells out-of-distribution images from images like those it was fitted on: docs/results.md.

    python benchmarks/ood_detection.py [--data ../shared/data] [--cache FILE] [--images 3500] [--seeds 5]
    python benchmarks/ood_detection.py --methods       # and other distances on the same features
    python benchmarks/ood_detection.py --final         # the features of the last stage alone
    python benchmarks/ood_detection.py --model RUN    # features of a trained network instead of the frozen one

A quarter of the patients is held out: their images are those that must not be flagged, and what the altered images are
made of. Of the other patients each seed draws images to fit on, and images of further patients for the limit: 200 and
100, half of each class, as in seed-400, or 1,600 and 800 as they come. AUROC is against the held-out images, with a
bootstrap interval by patient of the first seed; shares flagged are means over the seeds.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.covariance import LedoitWolf, ShrunkCovariance
from sklearn.metrics import roc_auc_score

from ood_images import CHANGED, SPOILED, Pixels, blank, drawn, hand, limb, noise, page, pattern, photographs
from pneumoscope.datasets.phantoms import draw_phantom
from pneumoscope.datasets.samples import Sample, cluster_by_patient, read_samples
from pneumoscope.decisions.ood import OODDetector, choose_limit, fit_detector
from pneumoscope.evaluation.intervals.bootstrap import resample
from pneumoscope.images.read import read_pixels
from pneumoscope.inference.engines import Engine, TorchEngine
from pneumoscope.inference.features import FeatureCache, Source, extract_features
from pneumoscope.models.backbones import find_backbone, load_backbone

Features = NDArray[np.float32]
Floats = NDArray[np.float64]
Measure = Callable[[Features], Floats]
RATES = (0.05, 0.01)
MADE = 60  # images of each kind that is drawn, and images of each alteration


@dataclass(frozen=True)
class Images:
    """Images with their features (N, D), patients and labels."""

    features: Features
    patients: NDArray[np.str_]
    labels: NDArray[np.str_]
    names: NDArray[np.str_]

    def take(self, chosen: NDArray[Any]) -> Images:
        """Some of them."""
        return Images(self.features[chosen], self.patients[chosen], self.labels[chosen], self.names[chosen])


@dataclass(frozen=True)
class Outcome:
    """What one detector said: of each kind AUROC and shares flagged, and shares of the images of its own kind."""

    auroc: Mapping[str, float]
    flagged: Mapping[str, tuple[float, ...]]
    alarms: tuple[float, ...]


def judge(
    measure: Measure,
    val: Features,
    home: Features,
    kinds: Mapping[str, Features],
    labels: NDArray[np.str_] | None = None,
) -> Outcome:
    """Limits from `val`, by class where there are labels, false alarms on `home`, shares flagged of each kind."""
    own, limits = measure(home), [choose_limit(measure(val), rate, labels) for rate in RATES]
    far = {name: measure(features) for name, features in kinds.items()}
    return Outcome(
        {name: auroc(own, distances) for name, distances in far.items()},
        {name: tuple(float((d > limit).mean()) for limit in limits) for name, d in far.items()},
        tuple(float((own > limit).mean()) for limit in limits),
    )


def auroc(own: Floats, far: Floats, weights: Floats | None = None) -> float:
    truth = np.r_[np.zeros(len(own)), np.ones(len(far))]
    return float(roc_auc_score(truth, np.r_[own, far], sample_weight=weights))


def interval(own: Floats, far: Floats, patients: Sequence[str | None]) -> tuple[float, float]:
    """Percentile bootstrap of the AUROC, by patient of the images and of what is made of them."""
    draws = [w for chunk in resample(cluster_by_patient(patients, len(own) + len(far)), 300, 0) for w in chunk]
    low, high = np.quantile([auroc(own, far, weights) for weights in draws], [0.025, 0.975])
    return float(low), float(high)


def draw(images: Images, seed: int, fit: int, val: int, even: bool) -> tuple[Images, Images]:
    """Images to fit on, and images of other patients for the limit."""
    rng = np.random.default_rng(seed)
    order = {patient: place for place, patient in enumerate(rng.permutation(np.unique(images.patients)))}
    queue = np.argsort([order[patient] for patient in images.patients], kind="stable")
    found = []
    for count in (fit, val):
        kinds = np.unique(images.labels) if even else [None]
        chosen = np.concatenate(
            [queue[(images.labels[queue] == kind) if kind else slice(None)][: count // len(kinds)] for kind in kinds]
        )
        found.append(images.take(chosen))
        queue = queue[~np.isin(images.patients[queue], images.patients[chosen])]
    return found[0], found[1]


def ood_sources(images: Sequence[Sample], phantoms: int) -> dict[str, list[bytes]]:
    """Every kind of out-of-distribution image, as files."""
    pixels = [read_pixels(image.path) for image in images]
    kinds: dict[str, list[Pixels]] = {"natural photographs": photographs(MADE, 0)}
    makers = {"noise": noise, "blank": blank, "hands": hand, "limbs": limb, "text pages": page, "test objects": pattern}
    kinds |= {name: drawn(maker, MADE, 0) for name, maker in makers.items()}
    kinds["phantoms"] = [draw_phantom(seed, pneumonia=seed % 2 == 0).pixels for seed in range(phantoms)]
    kinds |= {name: alter(pixels, 0) for name, alter in {**SPOILED, **CHANGED}.items()}
    return {name: [encode(picture) for picture in pictures] for name, pictures in kinds.items()}


def encode(pixels: Pixels) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(content, "PNG", compress_level=1)
    return content.getvalue()


def methods() -> dict[str, Callable[[Images], Measure]]:
    """Distances to compare the detector with."""

    def ours(**options: int) -> Callable[[Images], Measure]:
        return lambda images: fit_detector(images.features, **options).distance

    def fixed(shrinkage: float) -> Callable[[Images], Measure]:
        def fit(images: Images) -> Measure:
            found = ShrunkCovariance(shrinkage=shrinkage).fit(images.features.astype(np.float64))
            return lambda x: np.asarray(found.mahalanobis(x.astype(np.float64)))

        return fit

    def standardised(images: Images) -> Measure:
        scale = images.features.std(0) + 1e-6
        detector = fit_detector(images.features / scale)
        return lambda x: detector.distance(x / scale)

    def by_class(relative: bool) -> Callable[[Images], Measure]:
        def fit(images: Images) -> Measure:
            means = [images.features[images.labels == label].mean(0) for label in np.unique(images.labels)]
            places = np.unique(images.labels, return_inverse=True)[1]
            tied, whole = fit_detector(images.features - np.stack(means)[places]), fit_detector(images.features)

            def measure(x: Features) -> Floats:
                nearest = np.min([tied.distance(x - mean) ** 2 for mean in means], axis=0)
                return np.asarray(nearest - whole.distance(x) ** 2 if relative else nearest)

            return measure

        return fit

    def neighbours(images: Images) -> Measure:
        def unit(x: Features) -> Features:
            moved = x - images.features.mean(0)
            return np.asarray(moved / (np.linalg.norm(moved, axis=1, keepdims=True) + 1e-9))

        from sklearn.neighbors import NearestNeighbors

        index = NearestNeighbors(n_neighbors=10).fit(unit(images.features))
        return lambda x: np.asarray(index.kneighbors(unit(x))[0][:, -1])

    def residual(images: Images) -> Measure:
        detector = fit_detector(images.features, components=64)
        flat = OODDetector(detector.mean, detector.directions, np.full_like(detector.variances, np.inf), detector.rest)
        return flat.distance

    def norm(images: Images) -> Measure:
        centre = np.log(np.linalg.norm(images.features, axis=1)).mean()
        return lambda x: np.asarray(np.abs(np.log(np.linalg.norm(x, axis=1) + 1e-9) - centre), np.float64)

    return {
        "the detector": ours(),
        "64 components": ours(components=64),
        "128 components": ours(components=128),
        "all components": ours(components=1280),
        "shrinkage 0.001, all": fixed(0.001),
        "shrinkage 0.1, all": fixed(0.1),
        "shrinkage 0.5, all": fixed(0.5),
        "standardised": standardised,
        "tied, by class (Lee 2018)": by_class(relative=False),
        "relative (Ren 2021)": by_class(relative=True),
        "10th neighbour (Sun 2022)": neighbours,
        "residual of 64 (Wang 2022)": residual,
        "norm": norm,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, default=Path(":memory:"))
    parser.add_argument("--images", type=int, default=3500, help="of kermany-train-224, whole patients at random")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--model", type=Path, help="a run or model whose backbone gives the features")
    parser.add_argument("--final", action="store_true", help="the final features, not the averages of all stages")
    parser.add_argument("--methods", action="store_true")
    options = parser.parse_args()
    with FeatureCache(options.cache) as cache:
        kermany, seed400, kinds, made_of = gather(options, cache)
    home = kermany["held out"]
    tables(kermany["rest"], home, kinds, made_of, options.seeds)
    shifts(kermany, seed400, kinds["phantoms"], options.seeds)
    if options.methods:
        compare_methods(kermany, kinds, options.seeds)


def gather(
    options: argparse.Namespace, cache: FeatureCache
) -> tuple[dict[str, Images], dict[str, Images], dict[str, Features], list[str]]:
    """Features of everything: real images, the published split, out-of-distribution kinds, and whose images the altered ones are."""
    spec = find_backbone("efficientnet_lite0")
    engine: Engine
    if options.model:
        from pneumoscope.inference.predictor import load

        engine = load(options.model).engine
    else:
        engine = TorchEngine(load_backbone(spec).eval(), spec.input.size)

    def extract(sources: Sequence[Source]) -> Features:
        found = list(extract_features(sources, engine, spec.input, cache=cache))
        if options.final:
            return np.concatenate([each.features for each in found if each.features is not None])
        return np.stack([each.stages for each in found if each.stages is not None])

    def describe(samples: Sequence[Sample]) -> Images:
        columns = [(s.patient or s.path.stem, s.label or "", s.path.name) for s in samples]
        patients, labels, names = (np.array(column) for column in zip(*columns, strict=True))
        return Images(extract(samples), patients, labels, names)

    samples = read_samples(options.data / "kermany-train-224")
    patients = np.random.default_rng(0).permutation(sorted({str(s.patient) for s in samples}))
    held = set(patients[: len(patients) // 4].tolist())
    order = {patient: place for place, patient in enumerate(patients.tolist())}
    rest = sorted((s for s in samples if s.patient not in held), key=lambda s: order[str(s.patient)])
    own = sorted((s for s in samples if s.patient in held), key=lambda s: order[str(s.patient)])[: options.images // 5]
    made_of = own[:MADE]
    kermany = {"held out": describe(own), "rest": describe(rest[: options.images - len(own)])}
    published = read_samples(options.data / "seed-400")
    seed400 = {split: describe([s for s in published if s.split == split]) for split in ("train", "val", "test")}
    kinds = {name: extract(files) for name, files in ood_sources(made_of, 225).items()}
    return kermany, seed400, kinds, [str(s.patient) for s in made_of]


def tables(rest: Images, home: Images, kinds: Mapping[str, Features], made_of: list[str], seeds: int) -> None:
    large = len(rest.features) * 4 // 7  # 1,600 of the default's 2,800
    for title, fit, val, even in (
        ("200 images fitted, 100 for the limit", 200, 100, True),
        (f"{large:,} and {large // 2:,}", large, large // 2, False),
    ):
        outcomes, first, by_label = [], None, []
        for seed in range(seeds):
            train, limit = draw(rest, seed, fit, val, even)
            detector = fit_detector(train.features)
            first = first or detector
            limits = choose_limit(detector.distance(limit.features), RATES[0], limit.labels)
            far = detector.distance(home.features) > limits
            by_label.append([far[home.labels == label].mean() for label in np.unique(home.labels)])
            outcomes.append(judge(detector.distance, limit.features, home.features, kinds, limit.labels))
        assert first is not None
        shares = zip(np.unique(home.labels), np.mean(by_label, axis=0), strict=True)
        print(f"\n{title}: false alarms on {len(home.features)} held-out images {spread(outcomes)}")
        print(f"of each class at 5 %: {', '.join(f'{label} {100 * share:.1f} %' for label, share in shares)}\n")
        print("| kind | AUROC | 95 % interval | flagged at 5 % | at 1 % |\n| --- | --- | --- | --- | --- |")
        own = first.distance(home.features)
        for name, features in kinds.items():
            of = made_of if name in {*SPOILED, *CHANGED} else [None] * len(features)
            low, high = interval(own, first.distance(features), [*home.patients.tolist(), *of])
            value = np.mean([o.auroc[name] for o in outcomes])
            print(f"| {name} | {value:.3f} | {low:.3f} to {high:.3f} | {flags(outcomes, name)} |", flush=True)


def flags(outcomes: Sequence[Outcome], kind: str) -> str:
    """Mean shares flagged, as cells of a table."""
    return " | ".join(f"{100 * np.mean([o.flagged[kind][k] for o in outcomes]):.0f} %" for k in range(len(RATES)))


def spread(outcomes: Sequence[Outcome]) -> str:
    """Mean of the false alarms, and the lowest and highest of the seeds."""
    parts = []
    for k, rate in enumerate(RATES):
        found = [100 * outcome.alarms[k] for outcome in outcomes]
        parts.append(f"{np.mean(found):.1f} % ({min(found):.1f} to {max(found):.1f}) at {rate:.0%}")
    return ", ".join(parts)


def shifts(kermany: dict[str, Images], seed400: dict[str, Images], phantoms: Features, seeds: int) -> None:
    """OODDetectors fitted on part of the images, asked about another part."""
    every = kermany["rest"]
    series = {
        "bacteria": np.char.find(every.names, "_bacteria_") >= 0,
        "virus": np.char.find(every.names, "_virus_") >= 0,
        "NORMAL": every.labels == "NORMAL",
        "PNEUMONIA": every.labels == "PNEUMONIA",
        "NORMAL2-IM": np.char.startswith(every.names, "NORMAL2-IM"),
        "IM": np.char.startswith(every.names, "IM"),
    }
    print(
        "\n| fitted on | asked about | AUROC | flagged at 5 % | at 1 % | false alarms |"
        "\n| --- | --- | --- | --- | --- | --- |"
    )
    for one, other in (("NORMAL", "PNEUMONIA"), ("PNEUMONIA", "NORMAL"), ("bacteria", "virus"), ("virus", "bacteria"),
                       ("IM", "NORMAL2-IM"), ("NORMAL2-IM", "IM")):  # fmt: skip
        outcomes = []
        for seed in range(seeds):
            chosen = every.take(series[one])
            n = len(chosen.features)
            train, left = draw(chosen, seed, n // 2, n // 2, even=False)
            limit, own = draw(left, seed, len(left.features) // 2, len(left.features) // 2, even=False)
            others = every.take(series[other] & ~np.isin(every.patients, train.patients))
            measure = fit_detector(train.features).distance
            outcomes.append(judge(measure, limit.features, own.features, {other: others.features}, limit.labels))
        _print_shift(f"{one} ({n // 2})", other, outcomes)
    rng = np.random.default_rng(0)
    outcomes = []
    for _ in range(seeds):
        mixed = phantoms[rng.permutation(len(phantoms))]
        measure = fit_detector(mixed[:100]).distance
        outcomes.append(judge(measure, mixed[100:150], mixed[150:], {"real images": every.features}))
    _print_shift("phantoms (100)", "real images", outcomes)
    measure = fit_detector(seed400["train"].features).distance
    ood = {"the same hospital's images, squashed instead of cropped": every.features, "phantoms": phantoms}
    val, test = seed400["val"], seed400["test"]
    outcome = judge(measure, val.features, test.features, ood, val.labels)
    for name in ood:
        _print_shift("seed-400/train (200)", name, [outcome])


def _print_shift(one: str, other: str, outcomes: Sequence[Outcome]) -> None:
    value = np.mean([o.auroc[other] for o in outcomes])
    print(f"| {one} | {other} | {value:.3f} | {flags(outcomes, other)} | {spread(outcomes)} |", flush=True)


def compare_methods(kermany: dict[str, Images], kinds: Mapping[str, Features], seeds: int) -> None:
    """Mean AUROC and shares flagged at 5 % by distance, over the kinds, and the worst kinds."""
    spoiled = [name for name in kinds if name not in CHANGED]
    home = kermany["held out"].features
    large = len(kermany["rest"].features) * 4 // 7
    for fit, val, even in ((200, 100, True), (large, large // 2, False)):
        train = draw(kermany["rest"], 0, fit, val, even)[0].features
        exact = LedoitWolf().fit(train.astype(np.float64))
        ratio = fit_detector(train).distance(home) / np.sqrt(exact.mahalanobis(home.astype(np.float64)) / home.shape[1])
        print(
            f"\nshrinkage {exact.shrinkage_:.4f}; "
            f"the detector's distances over exact ones: {ratio.min():.4f} to {ratio.max():.4f}"
        )
        print(
            f"\n{fit} images fitted\n\n| distance | mean AUROC | lowest | flagged at 5 %, mean | lowest | at 1 %, mean |"
        )
        print("| --- | --- | --- | --- | --- | --- |")
        for name, make in methods().items():
            outcomes = []
            for seed in range(seeds):
                images, limit = draw(kermany["rest"], seed, fit, val, even)
                outcomes.append(judge(make(images), limit.features, home, kinds, limit.labels))
            value = {kind: np.mean([o.auroc[kind] for o in outcomes]) for kind in spoiled}
            share = {kind: np.mean([o.flagged[kind] for o in outcomes], axis=0) for kind in spoiled}
            low, least = min(value, key=lambda k: value[k]), min(share, key=lambda k: share[k][0])
            print(
                f"| {name} | {np.mean(list(value.values())):.3f} | {value[low]:.3f} ({low}) "
                f"| {100 * np.mean([s[0] for s in share.values()]):.0f} % | {100 * share[least][0]:.0f} % ({least}) "
                f"| {100 * np.mean([s[1] for s in share.values()]):.0f} % |",
                flush=True,
            )


if __name__ == "__main__":
    main()
