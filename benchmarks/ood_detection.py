"""How well the OOD detector tells images that are out of distribution from images like those it was fitted on.

    python benchmarks/ood_detection.py [--data ../shared/data] [--cache FILE] [--images 3500] [--seeds 5]
    python benchmarks/ood_detection.py --methods       # and other distances on the same features
    python benchmarks/ood_detection.py --final         # the features of the last map instead of intermediate features
    python benchmarks/ood_detection.py --model RUN     # features of a trained network instead of the frozen one

A quarter of the patients is held out: their images should not be flagged, and altered images are made from them. Of the
other patients each seed draws images to fit on, and images of further patients for the limit: 200 and 100, half of each
class, as in seed-400, or 1,600 and 800 as they come. AUROC is against the held-out images, with a bootstrap interval by
patient of the first seed; shares flagged are means over the seeds. The tables are in docs/results/ood.md.
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

from ood_images import CHANGED, SPOILED, Pixels, blank, draw_images, hand, limb, noise, page, pattern, photographs
from pneumoscope.datasets.phantoms import draw_phantom
from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.samples import Sample, cluster_by_patient
from pneumoscope.decisions.ood import OOD, Mahalanobis, fit_mahalanobis
from pneumoscope.evaluation.intervals.bootstrap import resample
from pneumoscope.images.read import read_pixels
from pneumoscope.inference.cache import FeatureCache
from pneumoscope.inference.engines import Engine, TorchEngine
from pneumoscope.inference.features import Source, extract_features
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
class Detection:
    """Of one detector and each kind of image: AUROC, and shares flagged at each rate; and its false alarms."""

    auroc: Mapping[str, float]
    flagged: Mapping[str, tuple[float, ...]]
    false_alarms: tuple[float, ...]


def detect(
    measure: Measure,
    val: Features,
    ordinary: Features,
    kinds: Mapping[str, Features],
    labels: NDArray[np.str_] | None = None,
) -> Detection:
    """Limits from `val`, by class where there are labels; false alarms on `ordinary`; shares flagged of each kind."""
    known, limits = measure(ordinary), [find_limit(measure(val), rate, labels) for rate in RATES]
    unknown = {name: measure(features) for name, features in kinds.items()}
    return Detection(
        {name: auroc(known, distances) for name, distances in unknown.items()},
        {name: tuple(float((d > limit).mean()) for limit in limits) for name, d in unknown.items()},
        tuple(float((known > limit).mean()) for limit in limits),
    )


def find_limit(distances: Floats, rate: float, labels: NDArray[np.str_] | None = None) -> float:
    """The limit by the distances of validation images, by class where there are labels."""
    groups = {"": distances} if labels is None else {name: distances[labels == name] for name in np.unique(labels)}
    return OOD("mahalanobis", rate, {str(name): tuple(np.sort(each)) for name, each in groups.items()}).limit


def auroc(known: Floats, unknown: Floats, weights: Floats | None = None) -> float:
    truth = np.r_[np.zeros(len(known)), np.ones(len(unknown))]
    return float(roc_auc_score(truth, np.r_[known, unknown], sample_weight=weights))


def compute_interval(known: Floats, unknown: Floats, patients: Sequence[str | None]) -> tuple[float, float]:
    """Percentile bootstrap of the AUROC by patient; an altered image belongs to the patient of the original."""
    clusters = cluster_by_patient(patients, len(known) + len(unknown))
    draws = [weights for chunk in resample(clusters, 300, 0) for weights in chunk]
    low, high = np.quantile([auroc(known, unknown, weights) for weights in draws], [0.025, 0.975])
    return float(low), float(high)


def draw_sets(images: Images, seed: int, fit: int, val: int, even: bool) -> tuple[Images, Images]:
    """Images to fit on, and images of other patients for the limit."""
    rng = np.random.default_rng(seed)
    order = {patient: place for place, patient in enumerate(rng.permutation(np.unique(images.patients)))}
    queue = np.argsort([order[patient] for patient in images.patients], kind="stable")
    sets = []
    for count in (fit, val):
        if even:
            classes = np.unique(images.labels)
            quota = count // len(classes)
            chosen = np.concatenate([queue[images.labels[queue] == name][:quota] for name in classes])
        else:
            chosen = queue[:count]
        sets.append(images.take(chosen))
        queue = queue[~np.isin(images.patients[queue], images.patients[chosen])]
    return sets[0], sets[1]


def ood_sources(images: Sequence[Sample], phantoms: int) -> dict[str, list[bytes]]:
    """Every kind of out-of-distribution image, as files."""
    pixels = [read_pixels(image.path) for image in images]
    kinds: dict[str, list[Pixels]] = {"natural photographs": photographs(MADE, 0)}
    makers = {"noise": noise, "blank": blank, "hands": hand, "limbs": limb, "text pages": page, "test objects": pattern}
    kinds |= {name: draw_images(maker, MADE, 0) for name, maker in makers.items()}
    kinds["phantoms"] = [draw_phantom(seed, pneumonia=seed % 2 == 0).pixels for seed in range(phantoms)]
    kinds |= {name: alter(pixels, 0) for name, alter in {**SPOILED, **CHANGED}.items()}
    return {name: [encode(image) for image in images_of_kind] for name, images_of_kind in kinds.items()}


def encode(pixels: Pixels) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(content, "PNG", compress_level=1)
    return content.getvalue()


def methods() -> dict[str, Callable[[Images], Measure]]:
    """The detector, and distances to compare it with."""

    def mahalanobis(**options: int) -> Callable[[Images], Measure]:
        return lambda images: fit_mahalanobis(images.features, **options).measure

    def fix_shrinkage(shrinkage: float) -> Callable[[Images], Measure]:
        def fit(images: Images) -> Measure:
            covariance = ShrunkCovariance(shrinkage=shrinkage).fit(images.features.astype(np.float64))
            return lambda x: np.asarray(covariance.mahalanobis(x.astype(np.float64)))

        return fit

    def standardised(images: Images) -> Measure:
        scale = images.features.std(0) + 1e-6
        detector = fit_mahalanobis(images.features / scale)
        return lambda x: detector.measure(x / scale)

    def by_class(relative: bool) -> Callable[[Images], Measure]:
        def fit(images: Images) -> Measure:
            means = [images.features[images.labels == label].mean(0) for label in np.unique(images.labels)]
            places = np.unique(images.labels, return_inverse=True)[1]
            tied, whole = fit_mahalanobis(images.features - np.stack(means)[places]), fit_mahalanobis(images.features)

            def measure(x: Features) -> Floats:
                nearest = np.min([tied.measure(x - mean) ** 2 for mean in means], axis=0)
                return np.asarray(nearest - whole.measure(x) ** 2 if relative else nearest)

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
        detector = fit_mahalanobis(images.features, components=64)
        flat = Mahalanobis(detector.mean, detector.directions, np.full_like(detector.variances, np.inf), detector.rest)
        return flat.measure

    def norm(images: Images) -> Measure:
        centre = np.log(np.linalg.norm(images.features, axis=1)).mean()
        return lambda x: np.asarray(np.abs(np.log(np.linalg.norm(x, axis=1) + 1e-9) - centre), np.float64)

    return {
        "the detector": mahalanobis(),
        "64 components": mahalanobis(components=64),
        "128 components": mahalanobis(components=128),
        "all components": mahalanobis(components=1280),
        "shrinkage 0.001, all": fix_shrinkage(0.001),
        "shrinkage 0.1, all": fix_shrinkage(0.1),
        "shrinkage 0.5, all": fix_shrinkage(0.5),
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
    parser.add_argument("--final", action="store_true", help="the features of the last map, not intermediate ones")
    parser.add_argument("--methods", action="store_true")
    options = parser.parse_args()
    with FeatureCache(options.cache) as cache:
        kermany, seed400, kinds, made_of = gather(options, cache)
    print_kinds(kermany["rest"], kermany["held out"], kinds, made_of, options.seeds)
    print_shifts(kermany, seed400, kinds["phantoms"], options.seeds)
    if options.methods:
        compare_methods(kermany, kinds, options.seeds)


def gather(
    options: argparse.Namespace, cache: FeatureCache
) -> tuple[dict[str, Images], dict[str, Images], dict[str, Features], list[str]]:
    """Extract features of real images, the published split and each kind, and list patients of the altered images."""
    spec = find_backbone("efficientnet_lite0")
    engine: Engine
    if options.model:
        from pneumoscope.inference.predictor import load

        engine = load(options.model).engine
    else:
        engine = TorchEngine(load_backbone(spec).eval(), spec.input.size)

    def extract(sources: Sequence[Source]) -> Features:
        extracts = list(extract_features(sources, engine, spec.input, cache=cache))
        if options.final:
            return np.concatenate([each.features for each in extracts if each.features is not None])
        return np.stack([each.intermediate for each in extracts if each.intermediate is not None])

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


def print_kinds(rest: Images, ordinary: Images, kinds: Mapping[str, Features], made_of: list[str], seeds: int) -> None:
    """Tables of the kinds of image, with few and with many images fitted."""
    large = len(rest.features) * 4 // 7  # 1,600 of the default's 2,800
    for title, fit, val, even in (
        ("200 images fitted, 100 for the limit", 200, 100, True),
        (f"{large:,} and {large // 2:,}", large, large // 2, False),
    ):
        detections, detectors, by_label = [], [], []
        for seed in range(seeds):
            train, limit = draw_sets(rest, seed, fit, val, even)
            detector = fit_mahalanobis(train.features)
            detectors.append(detector)
            flagged = detector.measure(ordinary.features) > find_limit(
                detector.measure(limit.features), RATES[0], limit.labels
            )
            by_label.append([flagged[ordinary.labels == label].mean() for label in np.unique(ordinary.labels)])
            detections.append(detect(detector.measure, limit.features, ordinary.features, kinds, limit.labels))
        shares = zip(np.unique(ordinary.labels), np.mean(by_label, axis=0), strict=True)
        print(f"\n{title}: false alarms on {len(ordinary.features)} held-out images {format_false_alarms(detections)}")
        print(f"of each class at 5%: {', '.join(f'{label} {100 * share:.1f}%' for label, share in shares)}\n")
        print("| kind | AUROC | 95% interval | flagged at 5% | at 1% |\n| --- | --- | --- | --- | --- |")
        known = detectors[0].measure(ordinary.features)
        for name, features in kinds.items():
            patients = made_of if name in {*SPOILED, *CHANGED} else [None] * len(features)
            everybody = [*ordinary.patients.tolist(), *patients]
            low, high = compute_interval(known, detectors[0].measure(features), everybody)
            value = np.mean([each.auroc[name] for each in detections])
            cells = f"{value:.3f} | {low:.3f} to {high:.3f} | {format_flagged(detections, name)}"
            print(f"| {name} | {cells} |", flush=True)


def format_flagged(detections: Sequence[Detection], kind: str) -> str:
    """Mean shares flagged, as cells of a table."""
    return " | ".join(
        f"{100 * np.mean([each.flagged[kind][k] for each in detections]):.0f}%" for k in range(len(RATES))
    )


def format_false_alarms(detections: Sequence[Detection]) -> str:
    """Mean, lowest and highest of the seeds' false alarms."""
    parts = []
    for k, rate in enumerate(RATES):
        values = [100 * each.false_alarms[k] for each in detections]
        parts.append(f"{np.mean(values):.1f}% ({min(values):.1f} to {max(values):.1f}) at {rate:.0%}")
    return ", ".join(parts)


def print_shifts(kermany: dict[str, Images], seed400: dict[str, Images], phantoms: Features, seeds: int) -> None:
    """A table of detectors fitted on some of the images and applied to others."""
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
        "\n| fitted on | applied to | AUROC | flagged at 5% | at 1% | false alarms |"
        "\n| --- | --- | --- | --- | --- | --- |"
    )
    for one, other in (("NORMAL", "PNEUMONIA"), ("PNEUMONIA", "NORMAL"), ("bacteria", "virus"), ("virus", "bacteria"),
                       ("IM", "NORMAL2-IM"), ("NORMAL2-IM", "IM")):  # fmt: skip
        detections = []
        for seed in range(seeds):
            chosen = every.take(series[one])
            n = len(chosen.features)
            train, left = draw_sets(chosen, seed, n // 2, n // 2, even=False)
            limit, own = draw_sets(left, seed, len(left.features) // 2, len(left.features) // 2, even=False)
            others = every.take(series[other] & ~np.isin(every.patients, train.patients))
            measure = fit_mahalanobis(train.features).measure
            detections.append(detect(measure, limit.features, own.features, {other: others.features}, limit.labels))
        print_shift(f"{one} ({n // 2})", other, detections)
    rng = np.random.default_rng(0)
    detections = []
    for _ in range(seeds):
        mixed = phantoms[rng.permutation(len(phantoms))]
        measure = fit_mahalanobis(mixed[:100]).measure
        detections.append(detect(measure, mixed[100:150], mixed[150:], {"real images": every.features}))
    print_shift("phantoms (100)", "real images", detections)
    measure = fit_mahalanobis(seed400["train"].features).measure
    ood = {"the same hospital's images, squashed instead of cropped": every.features, "phantoms": phantoms}
    val, test = seed400["val"], seed400["test"]
    detection = detect(measure, val.features, test.features, ood, val.labels)
    for name in ood:
        print_shift("seed-400/train (200)", name, [detection])


def print_shift(one: str, other: str, detections: Sequence[Detection]) -> None:
    value = np.mean([each.auroc[other] for each in detections])
    print(
        f"| {one} | {other} | {value:.3f} | {format_flagged(detections, other)} | {format_false_alarms(detections)} |",
        flush=True,
    )


def compare_methods(kermany: dict[str, Images], kinds: Mapping[str, Features], seeds: int) -> None:
    """Mean AUROC and shares flagged by distance, over the kinds, and the worst kinds."""
    spoiled = [name for name in kinds if name not in CHANGED]
    ordinary = kermany["held out"].features
    large = len(kermany["rest"].features) * 4 // 7
    for fit, val, even in ((200, 100, True), (large, large // 2, False)):
        train = draw_sets(kermany["rest"], 0, fit, val, even)[0].features
        exact = LedoitWolf().fit(train.astype(np.float64))
        exact_distances = np.sqrt(exact.mahalanobis(ordinary.astype(np.float64)) / ordinary.shape[1])
        ratio = fit_mahalanobis(train).measure(ordinary) / exact_distances
        print(
            f"\nshrinkage {exact.shrinkage_:.4f}; "
            f"the detector's distances over exact ones: {ratio.min():.4f} to {ratio.max():.4f}"
        )
        print(
            f"\n{fit} images fitted\n\n"
            "| distance | mean AUROC | lowest | flagged at 5%, mean | lowest | at 1%, mean |\n"
            "| --- | --- | --- | --- | --- | --- |"
        )
        for name, make in methods().items():
            detections = []
            for seed in range(seeds):
                images, limit = draw_sets(kermany["rest"], seed, fit, val, even)
                detections.append(detect(make(images), limit.features, ordinary, kinds, limit.labels))
            aurocs = {kind: np.mean([each.auroc[kind] for each in detections]) for kind in spoiled}
            shares = {kind: np.mean([each.flagged[kind] for each in detections], axis=0) for kind in spoiled}
            low, least = min(aurocs, key=lambda kind: aurocs[kind]), min(shares, key=lambda kind: shares[kind][0])
            print(
                f"| {name} | {np.mean(list(aurocs.values())):.3f} | {aurocs[low]:.3f} ({low}) "
                f"| {100 * np.mean([each[0] for each in shares.values()]):.0f}% "
                f"| {100 * shares[least][0]:.0f}% ({least}) "
                f"| {100 * np.mean([each[1] for each in shares.values()]):.0f}% |",
                flush=True,
            )


if __name__ == "__main__":
    main()
