"""Clues: anything about images, other than the lungs, that may predict the class, and how well it does.

A network uses whatever separates the classes: markers, borders, compression (Zech et al. 2018; DeGrave et al. 2021).
So a simple model predicts the class from one clue at a time, cross-validated by patient, and is compared with itself
after the classes were permuted between patients. Many clues are tried on one dataset, so a clue counts only where it
beats the best of all clues under permutation (max T, Westfall & Young 1993).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pneumoscope.auditing.intake import COMPRESSIONS, FORMATS, MODALITIES, MODES, VIEWS
from pneumoscope.auditing.measurements import FIELDS, MANY, Measured, list_blocks
from pneumoscope.evaluation.intervals.proportions import Floats, Ints
from pneumoscope.images.appearance import THUMBNAIL

# Disease has no part in `file`, `view` and `border`, nor in `surroundings`, the image without the lungs; but it changes
# `appearance`.
Kind: TypeAlias = Literal["file", "view", "border", "surroundings", "appearance"]
Singles: TypeAlias = NDArray[np.float32]

FOLDS = 5
BINS = 8


@dataclass(frozen=True)
class Property:
    """One property of all images."""

    name: str  # of the clue; several properties may share it
    kind: Kind
    label: str  # what `values` are
    values: Singles  # (N,) numbers, or indices into `names`
    names: tuple[str, ...] = ()  # of categories; empty for numbers

    def describe(self, i: int) -> str:
        """An image's value in words."""
        value = float(self.values[i])
        if self.names:
            return self.names[int(value)]
        return f"{self.label} {'unknown' if math.isnan(value) else f'{value:.4g}'}"


@dataclass(frozen=True)
class Clue:
    """How well one thing about the images, other than the lungs, predicts the class."""

    name: str
    kind: Kind
    auroc: float  # cross-validated by patient; of more than two classes, each against the rest, averaged
    low: float  # lower end of its 95% interval (Hanley & McNeil 1982, counting patients)
    chance_95: float  # 95th percentile of the AUROC with permuted classes
    chance_99: float  # 99th percentile of it
    p: float  # how often any clue predicts permuted classes as well, (0, 1]
    scores: Floats  # (N,) how clearly it gives away each image's own class; comparable within a clue only
    measured: Property | None = None  # the property behind it; None for surroundings

    @property
    def values(self) -> dict[str, float]:
        """The numbers of a finding."""
        return {name: getattr(self, name) for name in ("auroc", "low", "chance_95", "chance_99", "p")}


@dataclass(frozen=True)
class _Permuted:
    """The classes and their permutations, and the images' clusters and folds."""

    classes: NDArray[np.int16]  # (1 + P, N), the true ones first
    clusters: Ints  # (N,)
    folds: Ints  # (N,)

    def memberships(self) -> Iterator[Singles]:
        """Yield for each class which images are in it, (N, 1 + P); if there are two, only for the second."""
        last = int(self.classes.max())
        for label in [1] if last == 1 else range(last + 1):
            yield np.ascontiguousarray((self.classes == label).T, np.float32)


def measure_clues(
    measured: Measured, classes: Ints, clusters: Ints, *, seed: int = 0, quick: bool = False
) -> list[Clue]:
    """Measure how well each clue predicts the class; clues that never vary are left out.

    Args:
        measured: (N,) of `FIELDS`.
        classes: (N,) from 0 without a gap.
        clusters: (N,) from `join_clusters`.
        seed: fixes folds and permutations.
        quick: skip the surroundings, and draw 200 permutations instead of 1000, as for more than `MANY` images.

    Returns:
        One clue for each name, the best predictor first.
    """
    rng = np.random.default_rng(seed)
    permuted_classes = _permute(classes, clusters, 200, rng)
    folds = (rng.permutation(clusters.max() + 1) % FOLDS)[clusters]  # the same with `quick`, and so are AUROCs
    if not quick and len(classes) <= MANY:
        permuted_classes = np.vstack([permuted_classes, _permute(classes, clusters, 800, rng)[1:]])
    permuted = _Permuted(permuted_classes, clusters, folds)
    clues, statistics = [], []
    for each in _list_properties(measured):
        if np.ptp(bins := _bin(each.values, clusters)):
            aurocs, scores = _predict_from_bins(bins, permuted)
            clues.append(_make_clue(each.name, each.kind, aurocs, scores, permuted, each))
            statistics.append(_standardise(aurocs))
    for name, describe in () if quick else _SURROUNDINGS.items():
        pixels = _standardise_pixels(_by_block(describe, measured["thumbnail"]))
        if pixels.shape[1]:  # a rim that is the same in every image, such as a black frame, tells nothing
            aurocs, correlations, scores = _predict_from_pixels(pixels, permuted)
            clues.append(_make_clue(name, "surroundings", aurocs, scores, permuted))
            statistics.append(np.maximum(_standardise(aurocs), _standardise(correlations)))
    best = np.max([statistic[1:] for statistic in statistics], axis=0) if statistics else np.zeros(0)
    by_name: dict[str, Clue] = {}
    for i in sorted(range(len(clues)), key=lambda i: -statistics[i][0]):
        p = (1 + int(np.sum(best >= statistics[i][0]))) / (1 + len(best))
        by_name.setdefault(clues[i].name, replace(clues[i], p=p))
    return list(by_name.values())


def _permute(classes: Ints, clusters: Ints, permutations: int, rng: np.random.Generator) -> NDArray[np.int16]:
    """Return the classes, followed by P permutations of them between patients, (1 + P, N).

    Patients swap only with others who have as many images; otherwise that number itself could predict the class.
    """
    order = np.argsort(clusters, kind="stable")
    size = np.bincount(clusters)
    start = np.cumsum(size) - size
    owner = clusters[order]
    place = np.arange(len(classes)) - start[owner]
    sorted_classes, permuted = classes[order], np.tile(classes.astype(np.int16), (1 + permutations, 1))
    equal_sized = [np.flatnonzero(size == images) for images in np.unique(size)]
    donor = np.arange(len(size))
    for row in permuted[1:]:
        for patients in equal_sized:
            donor[patients] = rng.permutation(patients)
        row[order] = sorted_classes[start[donor][owner] + place]
    return permuted


def _standardise(statistics: Floats) -> Floats:
    """Express statistics in standard deviations of the permuted ones, which hardly vary if most images are alike."""
    permuted = statistics[1:]
    standardised: Floats = (statistics - permuted.mean()) / max(float(permuted.std()), 1e-3)
    return standardised


def _list_properties(measured: Measured) -> Iterator[Property]:
    numbers = {name: measured[name].astype(np.float32) for name in FIELDS.names or () if not FIELDS[name].shape}
    height, width = np.maximum(numbers["height"], 1), np.maximum(numbers["width"], 1)
    yield Property("file format", "file", "format", numbers["format"], FORMATS)
    yield Property("colour mode", "file", "mode", numbers["mode"], MODES)
    yield Property("colour mode", "file", "colour", numbers["colour"].round(2))
    yield Property("modality", "file", "modality", numbers["modality"], MODALITIES)
    yield Property("compression", "file", "compression", numbers["compression"], COMPRESSIONS)
    yield Property("view position", "view", "view", numbers["view"], VIEWS)
    yield Property("image size", "file", "height", height)
    yield Property("image size", "file", "width", width)
    yield Property("image size", "file", "width / height", (width / height).round(3).astype(np.float32))
    yield Property("JPEG quality", "file", "quality", numbers["quality"].round())
    for i, side in enumerate(("top", "right", "bottom", "left")):
        yield Property("border", "border", f"brightness at the {side}", measured["border"][:, i])
    contrast = _by_block(_measure_rim, measured["thumbnail"])[:, 0]
    yield Property("border", "border", "contrast of the outermost pixels", contrast)
    yield Property("file size", "appearance", "bytes per pixel", numbers["bytes"] / (height * width))
    yield Property("brightness", "appearance", "mean", numbers["mean"])
    yield Property("brightness", "appearance", "1st percentile", numbers["low"])
    yield Property("brightness", "appearance", "99th percentile", numbers["high"])
    yield Property("contrast", "appearance", "standard deviation", numbers["spread"])
    yield Property("share of black or white", "appearance", "share of black", numbers["black"])
    yield Property("share of black or white", "appearance", "share of white", numbers["white"])
    yield Property("sharpness", "appearance", "mean step between pixels", numbers["sharpness"])


def _by_block(describe: Callable[[NDArray[np.uint8]], Singles], thumbnails: NDArray[np.uint8]) -> Singles:
    """Describe thumbnails, a block at a time: (N, D)."""
    described = np.empty((len(thumbnails), describe(thumbnails[:1]).shape[1]), np.float32)
    for block in list_blocks(len(thumbnails)):
        described[block] = describe(thumbnails[block])
    return described


def _measure_rim(thumbnails: NDArray[np.uint8]) -> Singles:
    """Contrast of the outermost pixels, (N, 1)."""
    rim = thumbnails[:, _rim(1 / THUMBNAIL)].astype(np.float32) / 255
    contrast: Singles = rim.std(axis=1, keepdims=True)
    return contrast


def _describe_edges(thumbnails: NDArray[np.uint8]) -> Singles:
    """Pixels of the edges of images, (N, D), each image's standardised, as exposure reacts to opacities.

    Lungs and their opacities reach to a tenth of a squashed image's sides and lower edge, so the rim is narrow; upper
    corners show shoulders.
    """
    x, y = np.abs(_axis())[None, :], np.abs(_axis())[:, None]
    rim = thumbnails[:, (x / 0.94) ** 8 + (y / 0.94) ** 8 > 1].astype(np.float32)
    rim -= rim.mean(axis=1, keepdims=True)
    edges: Singles = rim / (rim.std(axis=1, keepdims=True) + 2)
    return edges


def _describe_marks(thumbnails: NDArray[np.uint8]) -> Singles:
    """Small marks in corners and edges, (N, D).

    A mark is smaller than 5 of 64 pixels and brighter or darker than its surroundings. The numbers say where marks are,
    in cells of 8 x 8, and how strong the strongest ones are, wherever they are.
    """
    from scipy.ndimage import grey_opening

    pixels = thumbnails.astype(np.float32)
    x, y = np.abs(_axis())[None, :], np.abs(_axis())[:, None]
    corners = _rim(0.06) | ((x > 0.56) & (y > 0.64))
    cells = (THUMBNAIL // 8, 8, THUMBNAIL // 8, 8)
    touched = corners.reshape(cells).any(axis=(1, 3))
    columns = []
    for image in (pixels, 255 - pixels):
        marks = np.where(corners, image - grey_opening(image, (1, 5, 5)), 0)
        strongest = np.log(marks.reshape(-1, *cells).max(axis=(2, 4))[:, touched] + 4)
        columns += [strongest, np.sort(strongest, axis=1)[:, -8:]]
    return np.hstack(columns)


_SURROUNDINGS: Mapping[str, Callable[[NDArray[np.uint8]], Singles]] = {
    "the edges of the image": _describe_edges,
    "small marks in corners and edges": _describe_marks,
}


def _axis() -> Floats:
    """Centres of a thumbnail's pixels, from -1 to 1."""
    return (np.arange(THUMBNAIL) + 0.5) * 2 / THUMBNAIL - 1


def _rim(share: float) -> NDArray[np.bool_]:
    """The outer pixels of a thumbnail, to a share of each side."""
    far = np.abs(_axis()) > 1 - 2 * share
    rim: NDArray[np.bool_] = far[None, :] | far[:, None]
    return rim


def _bin(values: Singles, clusters: Ints) -> Ints:
    """Number bins of about equally many images; a value that many patients share has its own bin, as has "unknown"."""
    levels, level = np.unique(values, return_inverse=True)
    if len(levels) <= BINS:
        return level
    patients = np.bincount(np.unique(np.stack([level, clusters]), axis=1)[0], minlength=len(levels))
    common = patients >= max(5, 0.02 * (clusters.max() + 1))
    others = ~common[level]
    bins = np.cumsum(common)[level]
    rest = level[others]
    bins[others] = len(levels) + np.searchsorted(np.sort(rest), rest) * BINS // max(len(rest), 1)
    packed: Ints = np.unique(bins, return_inverse=True)[1]
    return packed


def _predict_from_bins(bins: Ints, permuted: _Permuted) -> tuple[Floats, Floats]:
    """Predict the class by its share in an image's bin, in the other folds: AUROC (1 + P,), scores (N,)."""
    from scipy.sparse import csr_array

    count, n = int(bins.max()) + 1, len(bins)
    cell = permuted.folds * count + bins
    gather = csr_array((np.ones(n, np.float32), (cell, np.arange(n))), shape=(FOLDS * count, n))
    total = np.bincount(cell, minlength=FOLDS * count).reshape(FOLDS, count, 1).astype(np.float32)
    aurocs, scores = [], []
    for member in permuted.memberships():
        inside = (gather @ member).reshape(FOLDS, count, -1)
        outside = total - inside
        seen_inside, seen = inside.sum(0) - inside, total.sum(0) - total
        base = seen_inside.sum(1, keepdims=True) / np.maximum(seen.sum(1, keepdims=True), 1)
        share = np.round((seen_inside + base) / (seen + 1), 6)
        # Pairs of an image inside and one outside the class, within each fold, that the shares rank correctly.
        correct = np.zeros((FOLDS, inside.shape[-1]))
        for k in range(count):
            above = (share[:, k, None] > share) + 0.5 * (share[:, k, None] == share)
            correct += inside[:, k] * (above * outside).sum(1)
        aurocs.append(correct.sum(0) / np.maximum((inside.sum(1) * outside.sum(1)).sum(0), 1))
        scores.append((share - base)[permuted.folds, bins, 0])
    return np.mean(aurocs, axis=0), _take_own(scores, permuted.classes[0])


def _standardise_pixels(pixels: Singles) -> Singles:
    """Scale each pixel (N, D) to mean 0 and standard deviation 1; pixels that are equal in all images are left out."""
    pixels -= pixels.mean(axis=0)
    spread = pixels.std(axis=0)
    varied = pixels if (spread > 1e-4).all() else pixels[:, spread > 1e-4]
    varied /= spread[spread > 1e-4]
    return varied


def _predict_from_pixels(pixels: Singles, permuted: _Permuted) -> tuple[Floats, Floats, Floats]:
    """Predict the class by a ridge regression on pixels, and find the single best pixel.

    The regression adds up faint differences, but misses a marker that only a quarter of images carry. The pixel that
    holds it stands out: its correlation with the class is not cross-validated, nor is that of the permutations.

    Args:
        pixels: (N, D) from `_standardise_pixels`, D > 0.
        permuted: the classes.

    Returns:
        AUROC of the regression (1 + P,), greatest absolute correlation (1 + P,), scores (N,).
    """
    parts = [permuted.folds == fold for fold in range(FOLDS)]
    grams = [pixels[part].T @ pixels[part] for part in parts]
    ridge = len(pixels) * np.eye(pixels.shape[1], dtype=np.float32)
    inverses = [np.linalg.inv(sum(grams) - gram + ridge) for gram in grams]
    aurocs, correlations, scores = [], [], []
    for member in permuted.memberships():
        centred = member - member.mean(axis=0)
        moments = [pixels[part].T @ centred[part] for part in parts]
        whole = np.sum(moments, axis=0)
        correlations.append(np.abs(whole).max(axis=0) / (len(pixels) * np.maximum(centred.std(axis=0), 1e-6)))
        correct, pairs, score = np.zeros(member.shape[1]), np.zeros(member.shape[1]), np.zeros(len(pixels))
        for part, inverse, moment in zip(parts, inverses, moments, strict=True):
            predicted = pixels[part] @ (inverse @ (whole - moment))
            inside = member[part].sum(0, np.float64)
            correct += _sum_ranks(predicted, member[part]) - inside * (inside + 1) / 2
            pairs += inside * (len(predicted) - inside)
            score[part] = predicted[:, 0]
        aurocs.append(correct / np.maximum(pairs, 1))
        scores.append(score)
    return np.mean(aurocs, axis=0), np.max(correlations, axis=0), _take_own(scores, permuted.classes[0])


def _sum_ranks(predicted: Singles, member: Singles) -> Floats:
    """The sums of the members' ranks, (1 + P,); ties hardly occur."""
    rank = np.empty_like(predicted)
    order = predicted.argsort(axis=0)
    np.put_along_axis(rank, order, np.arange(1, len(order) + 1, dtype=np.float32)[:, None], axis=0)
    sums: Floats = (rank * member).sum(0, np.float64)
    return sums


def _take_own(scores: Sequence[NDArray[np.floating]], classes: NDArray[np.int16]) -> Floats:
    """Return the score of each image's own class, from one score per image or one per class."""
    if len(scores) == 1:
        return np.where(classes == 1, scores[0], -scores[0])
    own: Floats = np.choose(classes, scores)
    return own


def _make_clue(
    name: str, kind: Kind, aurocs: Floats, scores: Floats, permuted: _Permuted, measured: Property | None = None
) -> Clue:
    """Make a clue from an AUROC and those of the permutations; its p value needs the other clues and is set later."""
    chance_95, chance_99 = np.quantile(aurocs[1:], (0.95, 0.99)).tolist()
    truth = permuted.classes[0]
    patients = [len(np.unique(permuted.clusters[truth == label])) for label in range(truth.max() + 1)]
    few, rest = min(patients), sum(patients) - min(patients)
    auroc = float(aurocs[0])
    q1, q2 = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    variance = auroc * (1 - auroc) + (few - 1) * (q1 - auroc**2) + (rest - 1) * (q2 - auroc**2)
    low = max(auroc - 1.96 * math.sqrt(max(variance, 0) / (few * rest)), 0.0)
    return Clue(name, kind, auroc, low, chance_95, chance_99, 1.0, scores, measured)
