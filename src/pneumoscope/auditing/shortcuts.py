"""Shortcuts: anything but the lungs that gives the class away, found by measuring how well it does.

A network takes whatever separates the classes: markers, borders, compression (Zech et al. 2018; DeGrave et al. 2021).
So a simple model predicts the class from one clue at a time, cross-validated by patient, and is held against the same
after the classes have been dealt out anew between patients. Many clues are tried on one set, so one counts only where
it beats the best of all clues by chance (max T, Westfall & Young 1993).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pneumoscope.auditing.findings import Finding, Severity
from pneumoscope.auditing.intake import COMPRESSIONS, FORMATS, MODALITIES, MODES, RECORD, THUMBNAIL, VIEWS, Images
from pneumoscope.datasets.samples import SPLITS, Sample, cluster_by_patient

Kind: TypeAlias = Literal["file", "view", "border", "picture", "look"]
Numbers: TypeAlias = NDArray[np.float32]
Reals: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Groups: TypeAlias = Sequence[int | None]

FOLDS = 5
ENOUGH = 10  # patients of each class
SHOWN = 12  # images listed with a finding
NOTED, WARNED = 0.05, 0.01  # family-wise p
BINS = 8
TELLING: dict[Kind, float] = {
    "file": 0.55,
    "view": 0.55,
    "border": 0.58,
    "picture": 0.58,
    "look": 1.0,
}  # a warning from here on
# An error from here on. The edges of real images tell their class with up to 0.95, and nothing was planted there.
CERTAIN: dict[Kind, float] = {"file": 0.9, "border": 0.9, "picture": 0.97}
_ADVICE: dict[Kind, str] = {
    "file": (
        "This is a property of the file, not of the patient, and a network can learn it instead of the disease. Make "
        "it the same in all classes: get the images from one source, or convert all of them alike."
    ),
    "view": (
        "Who is imageed in bed, and so from the front, was thought to be ill: a network can learn that instead of the "
        "disease. Train and test on one view, or show that the result holds in each."
    ),
    "border": (
        "What surrounds the patient should not know the class, and a network can learn it instead of the disease. "
        "Look at the images listed; crop borders away in all images alike, and ask how each class was collected."
    ),
    "picture": (
        "The image with the lungs blanked should not know the class. Look at the corners and edges of the images listed "
        "for markers, text, tubes or collimation, mask or crop them in all images alike, and ask how each class was "
        "collected: other patients, another machine, another position."
    ),
    "look": (
        "Disease itself changes how an image looks, so this may be honest; so does the machine, and that would not be. A "
        "result of the network should be clearly better than this figure to mean more than this. Test on images of "
        "another source."
    ),
}


@dataclass(frozen=True)
class Property:
    """Something measured of each image: `numbers` (N,), or names for them where they stand for categories."""

    name: str
    kind: Kind
    label: str
    numbers: Numbers
    names: tuple[str, ...] = ()

    def describe(self, i: int) -> str:
        """What it is for an image, in words."""
        number = float(self.numbers[i])
        if self.names:
            return self.names[int(number)]
        return f"{self.label} {'unknown' if math.isnan(number) else f'{number:.4g}'}"


@dataclass(frozen=True)
class Clue:
    """How well one thing about the images, other than the lungs, predicts the class.

    Attributes:
        name: what was looked at.
        kind: `file`, `view` and `border`: disease has no part in it; `picture`: the image without the lungs; `look`:
            disease changes it too.
        auroc: cross-validated by patient; of more than two classes, each against the rest, averaged.
        low: lower limit of its 95 % interval (Hanley & McNeil 1982, counting patients).
        limit: 95th percentile of the AUROC with permuted classes.
        limit99: 99th percentile of it.
        p: how often any clue at all is as telling with permuted classes, (0, 1].
        sureness: (N,) how surely it gives away each image's class, out of fold; compare within a clue only.
        measured: the property behind it; None for a picture.
    """

    name: str
    kind: Kind
    auroc: float
    low: float
    limit: float
    limit99: float
    p: float
    sureness: Reals
    measured: Property | None = None


@dataclass(frozen=True)
class _Trial:
    """The classes and their permutations, and the images' clusters and folds."""

    labels: NDArray[np.int16]  # (1 + P, N), the truth first
    clusters: Ints  # (N,)
    folds: Ints  # (N,)

    def members(self) -> Iterator[Numbers]:
        """Who is in each class, (N, 1 + P); of two classes the second alone."""
        for one in [1] if self.labels.max() == 1 else range(int(self.labels.max()) + 1):
            yield np.ascontiguousarray((self.labels == one).T, np.float32)


def find_shortcuts(
    images: Images, *, seed: int = 0, quick: bool = False, groups: Groups | None = None
) -> list[Finding]:
    """Find what gives the class away without the lungs, and how the test files differ from the others.

    Args:
        images: measured; those unreadable or without a label are left out.
        seed: fixes folds and permutations.
        quick: properties of file and image only, with few permutations; not the pictures.
        groups: (N,) each image's group of near-duplicates, which no fold divides, or None.
    """
    kept = [i for i, sample in enumerate(images.samples) if images.errors[i] is None and sample.label is not None]
    samples = [images.samples[i] for i in kept]
    labels = sorted({str(sample.label) for sample in samples})
    if len(labels) < 2:
        return []
    records = images.records if len(kept) == len(images.samples) else images.records[kept]
    classes = np.array([labels.index(str(sample.label)) for sample in samples])
    clusters = join_clusters(samples, None if groups is None else [groups[i] for i in kept])
    findings = _find_strays(samples, records)
    patients = min(len(np.unique(clusters[classes == one])) for one in range(len(labels)))
    if patients < ENOUGH:
        title = f"Too few patients to look for shortcuts: one class has {patients}, and {ENOUGH} are needed"
        advice = "Add images, or see for yourself that formats, sizes and borders don't tell the class."
        return [*findings, Finding("shortcuts", "note", title, advice)]
    clues = measure_clues(records, classes, clusters, seed=seed, quick=quick)
    findings += [_report(clue, samples, classes, labels) for clue in clues if clue.p <= NOTED]
    tested = np.array([sample.split == "test" for sample in samples], np.int64)
    if min(len(np.unique(clusters[tested == one])) for one in (0, 1)) >= ENOUGH:
        shifts = measure_clues(records, tested, clusters, seed=seed, quick=True)
        findings += [_report_shift(clue, tested) for clue in shifts if clue.p <= WARNED and clue.auroc >= 0.6]
    return findings


def measure_clues(
    records: NDArray[np.void],
    classes: Ints,
    clusters: Ints,
    *,
    seed: int = 0,
    quick: bool = False,
    permutations: int | None = None,
) -> list[Clue]:
    """Measure how well each clue predicts the class; clues that never vary are left out.

    Args:
        records: (N,) of `RECORD`.
        classes: (N,) from 0 without a gap.
        clusters: (N,) from `join_clusters`.
        seed: fixes folds and permutations.
        quick: without the pictures.
        permutations: how many; None for 1000, or 200 in a quick audit and of more than 20,000 images.

    Returns:
        One clue for each name, the most telling first.
    """
    rng = np.random.default_rng(seed)
    few = quick or len(classes) > 20_000  # so that memory stays bounded
    labels = _deal(classes, clusters, permutations or (200 if few else 1000), rng)
    trial = _Trial(labels, clusters, (rng.permutation(clusters.max() + 1) % FOLDS)[clusters])
    clues, heights = [], []
    for one in _list_properties(records):
        if np.ptp(bins := _bin(one.numbers, clusters)):
            aurocs, sureness = _judge_bins(bins, trial)
            clues.append(_weigh(one.name, one.kind, aurocs, sureness, trial, one))
            heights.append(_scale(aurocs))
    starts = () if quick else range(0, len(records), 4096)  # in blocks, so that memory stays bounded
    blocks = [dict(_list_pictures(records[start : start + 4096])) for start in starts]
    for name in blocks[0] if blocks else ():
        pixels = np.vstack([block[name] for block in blocks])
        aurocs, strongest, sureness = _judge_pixels(pixels, trial)
        clues.append(_weigh(name, "picture", aurocs, sureness, trial))
        heights.append(np.maximum(_scale(aurocs), _scale(strongest)))
    best = np.max([height[1:] for height in heights], axis=0) if heights else np.zeros(0)
    found: dict[str, Clue] = {}
    for i in sorted(range(len(clues)), key=lambda i: -heights[i][0]):
        p = (1 + int(np.sum(best >= heights[i][0]))) / (1 + len(best))
        found.setdefault(clues[i].name, replace(clues[i], p=p))
    return list(found.values())


def join_clusters(samples: Sequence[Sample], groups: Groups | None = None) -> Ints:
    """Number the clusters of images that share a patient or a group of near-duplicates, directly or through others.

    Args:
        samples: N images; one without a patient is nobody else's.
        groups: (N,) each image's group, or None.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(samples)
    patients = cluster_by_patient([sample.patient for sample in samples], n)
    others = n + cluster_by_patient([None if one is None else str(one) for one in groups or [None] * n], n)
    links = coo_array((np.ones(n), (patients, others)), shape=(2 * n, 2 * n))
    joined: Ints = np.unique(connected_components(links)[1][patients], return_inverse=True)[1]
    return joined


def _deal(classes: Ints, clusters: Ints, permutations: int, rng: np.random.Generator) -> NDArray[np.int16]:
    """The classes, and as dealt out anew between patients, (1 + P, N).

    Each gets those of another with as many images: where a class has more images a patient, that itself would tell it.
    """
    order = np.argsort(clusters, kind="stable")
    size = np.bincount(clusters)
    start = np.cumsum(size) - size
    owner = clusters[order]
    place = np.arange(len(classes)) - start[owner]
    ranked, dealt = classes[order], np.tile(classes.astype(np.int16), (1 + permutations, 1))
    alike = [np.flatnonzero(size == images) for images in np.unique(size)]
    donor = np.arange(len(size))
    for row in dealt[1:]:
        for some in alike:
            donor[some] = rng.permutation(some)
        row[order] = ranked[start[donor][owner] + place]
    return dealt


def _scale(statistics: Reals) -> Reals:
    """In standard deviations of the null; where all images but one are alike, there is none to speak of."""
    null = statistics[1:]
    scaled: Reals = (statistics - null.mean()) / max(float(null.std()), 1e-3)
    return scaled


def _list_properties(records: NDArray[np.void]) -> Iterator[Property]:
    numbers = {name: records[name].astype(np.float32) for name in RECORD.names or () if not RECORD[name].shape}
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
        yield Property("border", "border", f"brightness at the {side}", records["border"][:, i])
    rim = records["thumbnail"][:, _rim(1 / THUMBNAIL)].astype(np.float32) / 255
    yield Property("border", "border", "contrast of the outermost pixels", rim.std(axis=1))
    yield Property("file size", "look", "bytes per pixel", numbers["bytes"] / (height * width))
    yield Property("brightness", "look", "mean", numbers["mean"])
    yield Property("brightness", "look", "1st percentile", numbers["low"])
    yield Property("brightness", "look", "99th percentile", numbers["high"])
    yield Property("contrast", "look", "standard deviation", numbers["spread"])
    yield Property("share of black or white", "look", "share of black", numbers["black"])
    yield Property("share of black or white", "look", "share of white", numbers["white"])
    yield Property("sharpness", "look", "mean step between pixels", numbers["sharpness"])


def _list_pictures(records: NDArray[np.void]) -> Iterator[tuple[str, Numbers]]:
    """Pictures of the images without the lungs, (N, D).

    Lungs and their opacities reach to a tenth of a squashed image's sides and lower edge, so the rim is narrow; upper
    corners hold shoulders. Each image's rim is standardised: exposure reacts to opacities.
    """
    from scipy.ndimage import grey_opening

    thumbnails = records["thumbnail"].astype(np.float32)
    x, y = np.abs(_axis())[None, :], np.abs(_axis())[:, None]
    rim = thumbnails[:, (x / 0.94) ** 8 + (y / 0.94) ** 8 > 1]
    rim -= rim.mean(axis=1, keepdims=True)
    yield "the edges of the image", rim / (rim.std(axis=1, keepdims=True) + 2)
    # What is smaller than 5 of 64 pixels and stands out from its surroundings, bright or dark, in cells of 8 x 8: where
    # it is, and how strong the strongest are, wherever they are.
    corners = _rim(0.06) | ((x > 0.56) & (y > 0.64))
    cells = (THUMBNAIL // 8, 8, THUMBNAIL // 8, 8)
    touched = corners.reshape(cells).any(axis=(1, 3))
    columns = []
    for picture in (thumbnails, 255 - thumbnails):
        standing = np.where(corners, picture - grey_opening(picture, (1, 5, 5)), 0)
        strongest = np.log(standing.reshape(-1, *cells).max(axis=(2, 4))[:, touched] + 4)
        columns += [strongest, np.sort(strongest, axis=1)[:, -8:]]
    yield "small marks in corners and edges", np.hstack(columns)


def _axis() -> Reals:
    return (np.arange(THUMBNAIL) + 0.5) * 2 / THUMBNAIL - 1


def _rim(share: float) -> NDArray[np.bool_]:
    far = np.abs(_axis()) > 1 - 2 * share
    rim: NDArray[np.bool_] = far[None, :] | far[:, None]
    return rim


def _bin(numbers: Numbers, clusters: Ints) -> Ints:
    """Bins with about equally many images; a value that many patients share has its own, and so has "unknown"."""
    levels, level = np.unique(numbers, return_inverse=True)
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


def _judge_bins(bins: Ints, trial: _Trial) -> tuple[Reals, Reals]:
    """How well the other folds' share of the class in each bin predicts it: AUROC (1 + P,), sureness (N,)."""
    from scipy.sparse import csr_array

    count, n = int(bins.max()) + 1, len(bins)
    cell = trial.folds * count + bins
    gather = csr_array((np.ones(n, np.float32), (cell, np.arange(n))), shape=(FOLDS * count, n))
    total = np.bincount(cell, minlength=FOLDS * count).reshape(FOLDS, count, 1).astype(np.float32)
    aurocs, scores = [], []
    for member in trial.members():
        inside = (gather @ member).reshape(FOLDS, count, -1)
        outside = total - inside
        seen_inside, seen = inside.sum(0) - inside, total.sum(0) - total
        base = seen_inside.sum(1, keepdims=True) / np.maximum(seen.sum(1, keepdims=True), 1)
        share = np.round((seen_inside + base) / (seen + 1), 6)
        # Pairs of an image inside and one outside the class, within each fold, that the shares rank rightly.
        right = np.zeros((FOLDS, inside.shape[-1]))
        for k in range(count):
            above = (share[:, k, None] > share) + 0.5 * (share[:, k, None] == share)
            right += inside[:, k] * (above * outside).sum(1)
        aurocs.append(right.sum(0) / np.maximum((inside.sum(1) * outside.sum(1)).sum(0), 1))
        scores.append((share - base)[trial.folds, bins, 0])
    return np.mean(aurocs, axis=0), _own(scores, trial)


def _judge_pixels(pixels: Numbers, trial: _Trial) -> tuple[Reals, Reals, Reals]:
    """Judge pictures by a ridge regression and by their most telling number.

    The regression adds up faint differences; a marker that a quarter of the images carry is lost in it, but stands out
    in the one number that holds it (its correlation with the class, not cross-validated: the null is not either).

    Args:
        pixels: (N, D).
        trial: the classes.

    Returns:
        AUROC of the regression (1 + P,), greatest absolute correlation (1 + P,), sureness (N,).
    """
    pixels = pixels - pixels.mean(axis=0)
    spread = pixels.std(axis=0)
    pixels = (pixels[:, spread > 1e-4] / spread[spread > 1e-4]).astype(np.float32)
    parts = [trial.folds == fold for fold in range(FOLDS)]
    grams = [pixels[part].T @ pixels[part] for part in parts]
    ridge = len(pixels) * np.eye(pixels.shape[1], dtype=np.float32)
    inverses = [np.linalg.inv(sum(grams) - gram + ridge) for gram in grams]
    aurocs, strongest, scores = [], [], []
    for member in trial.members():
        centred = member - member.mean(axis=0)
        moments = [pixels[part].T @ centred[part] for part in parts]
        whole = np.sum(moments, axis=0)
        strongest.append(np.abs(whole).max(axis=0) / (len(pixels) * np.maximum(centred.std(axis=0), 1e-6)))
        right, pairs = np.zeros(member.shape[1]), np.zeros(member.shape[1])
        score = np.zeros(len(pixels))
        for part, inverse, moment in zip(parts, inverses, moments, strict=True):
            predicted = pixels[part] @ (inverse @ (whole - moment))
            rank = np.empty_like(predicted)
            order = predicted.argsort(axis=0)
            np.put_along_axis(rank, order, np.arange(1, len(order) + 1, dtype=np.float32)[:, None], axis=0)
            inside = member[part].sum(0, np.float64)
            right += (rank * member[part]).sum(0, np.float64) - inside * (inside + 1) / 2
            pairs += inside * (len(order) - inside)
            score[part] = predicted[:, 0]
        aurocs.append(right / np.maximum(pairs, 1))
        scores.append(score)
    return np.mean(aurocs, axis=0), np.max(strongest, axis=0), _own(scores, trial)


def _own(scores: Sequence[NDArray[np.floating]], trial: _Trial) -> Reals:
    """How surely each image's own class is given away, from one score or one a class."""
    truth = trial.labels[0]
    if len(scores) == 1:
        return np.where(truth == 1, scores[0], -scores[0])
    own: Reals = np.choose(truth, scores)
    return own


def _weigh(
    name: str, kind: Kind, aurocs: Reals, sureness: Reals, trial: _Trial, measured: Property | None = None
) -> Clue:
    """Make a clue of an AUROC and its null; p needs the other clues."""
    limit, limit99 = np.quantile(aurocs[1:], (0.95, 0.99))
    patients = [len(np.unique(trial.clusters[trial.labels[0] == one])) for one in range(trial.labels.max() + 1)]
    few, rest = min(patients), sum(patients) - min(patients)
    area = float(aurocs[0])
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (few - 1) * (q1 - area**2) + (rest - 1) * (q2 - area**2)
    low = max(area - 1.96 * math.sqrt(max(variance, 0) / (few * rest)), 0.0)
    return Clue(name, kind, area, low, float(limit), float(limit99), 1.0, sureness, measured)


def _grade(clue: Clue) -> Severity:
    if clue.p > WARNED or (clue.low < 0.85 if clue.kind == "look" else clue.auroc < TELLING[clue.kind]):
        return "note"
    return "error" if clue.low >= CERTAIN.get(clue.kind, math.inf) else "warning"


def _report(clue: Clue, samples: Sequence[Sample], classes: Ints, labels: Sequence[str]) -> Finding:
    who = f"With the lungs left out, {clue.name} tell" if clue.kind == "picture" else f"The {clue.name} alone tells"
    title = f"{who} the class: AUROC {clue.auroc:.2f}, by chance up to {clue.limit:.2f}"
    title += _describe(clue, classes, labels)
    shown = np.argsort(-clue.sureness, kind="stable")[:SHOWN].tolist()
    paths = tuple(samples[i].path for i in shown)
    values = [f", {clue.measured.describe(i)}" if clue.measured else "" for i in shown]
    remarks = tuple(f"{samples[i].label}{value}" for i, value in zip(shown, values, strict=True))
    return Finding("shortcuts", _grade(clue), title, _ADVICE[clue.kind], paths, remarks, values=_list_values(clue))


def _report_shift(clue: Clue, tested: Ints) -> Finding:
    return Finding(
        "shifts",
        "warning" if clue.kind == "file" and clue.auroc >= 0.7 else "note",
        f"The {clue.name} alone tells test images from the others: AUROC {clue.auroc:.2f}, by chance up to "
        f"{clue.limit:.2f}{_describe(clue, tested, ('train and val', 'test'))}",
        "The test images come from elsewhere, or were treated otherwise. Results on them say how the model does there, "
        "not on images like those it learnt from. Find out whether that is meant; else convert all images alike.",
        values=_list_values(clue),
    )


def _find_strays(samples: Sequence[Sample], records: NDArray[np.void]) -> list[Finding]:
    """Formats and colour modes that some splits have and others don't."""
    findings = []
    splits = np.array([sample.split or "" for sample in samples])
    present = [split for split in SPLITS if np.any(splits == split)]
    for key, names in (("format", FORMATS), ("mode", MODES)):
        for value in np.unique(records[key]) if len(present) > 1 else ():
            found = np.flatnonzero(records[key] == value).tolist()
            where = [split for split in present if np.any(splits[found] == split)]
            if len(where) == len(present):
                continue
            counts = Counter(str(samples[i].label) for i in found)
            classes = ", ".join(f"{count} {label}" for label, count in sorted(counts.items()))
            missing = " and ".join(split for split in present if split not in where)
            findings.append(
                Finding(
                    "shifts",
                    "note",
                    f"{len(found)} of {len(samples)} files are {names[value]} ({classes}): all in "
                    f"{' and '.join(where)}, none in {missing}",
                    "The splits differ in something that medicine has no part in, so a result on one may not hold on "
                    "the other. Convert all files alike.",
                    tuple(samples[i].path for i in found),
                )
            )
    return findings


def _describe(clue: Clue, classes: Ints, labels: Sequence[str]) -> str:
    """The value that says most, and of which class; or each class's median."""
    if (measured := clue.measured) is None:
        return ""
    levels, level = np.unique(measured.numbers, return_inverse=True)
    if len(levels) > BINS:
        medians = (f"{np.nanmedian(measured.numbers[classes == i]):.3g} in {label}" for i, label in enumerate(labels))
        return f" ({measured.label}, median: {', '.join(medians)})"
    counts = np.array([np.bincount(classes[level == i], minlength=len(labels)) for i in range(len(levels))])
    total = counts.sum(axis=1, keepdims=True)
    surplus = (counts - total * counts.sum(axis=0) / len(level)) / np.sqrt(total)
    i, one = divmod(int(surplus.argmax()), len(labels))
    value = measured.describe(int(np.argmax(level == i)))
    share = np.mean(classes == one)
    return f" ({value}: {counts[i, one]} of {total[i, 0]} are {labels[one]}, of all images {share:.0%})"


def _list_values(clue: Clue) -> dict[str, float]:
    return {"auroc": clue.auroc, "low": clue.low, "chance_95": clue.limit, "chance_99": clue.limit99, "p": clue.p}
