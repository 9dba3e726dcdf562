"""Labels that are likely wrong: images whose features speak clearly for another class than their label."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pneumoscope.auditing.findings import Finding
from pneumoscope.auditing.intake import Images
from pneumoscope.auditing.shortcuts import Groups, join_clusters
from pneumoscope.evaluation.metrics import measure
from pneumoscope.inference.engines import Array

Reals: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

FOLDS = 5
SHUFFLES = 3
ENOUGH = 20  # images of each class
TELLING = 0.75  # AUROC; swaps of 10 % still leave 0.8 where the features are good
# 200 phantoms without a swap have 1 to 7 % of suspects, with swaps of 5 % 4 to 11 %. So fewer than MANY need a second
# sign; and of fewer images than SURE, hard ones alone may be 13 %.
MANY, SOME, SURE = 0.08, 1 / 30, 200


@dataclass(frozen=True)
class Suspicion:
    """What the features say of the labels.

    Attributes:
        probabilities: (N, C) out of fold.
        suspects: indices of images that are likely mislabelled, or hard, the clearest first.
        swapped: share of swapped labels, [0, 0.25], as estimated from the surest predictions.
        p: of so many mistakes among the surest predictions without a swap.
        auroc: how well the features tell the given labels.
    """

    probabilities: Reals
    suspects: Ints
    swapped: float
    p: float
    auroc: float

    @property
    def alarming(self) -> bool:
        """Whether these are more suspects than hard images explain as a rule."""
        share = len(self.suspects) / len(self.probabilities)
        if len(self.probabilities) < SURE:
            return False
        return share >= MANY or (share >= SOME and self.p <= 0.01)


def find_label_errors(images: Images, *, seed: int = 0, groups: Groups | None = None) -> list[Finding]:
    """List images that are likely mislabelled, for a person to look at.

    Args:
        images: measured, with features.
        seed: fixes the folds.
        groups: (N,) each image's group of near-duplicates, which no fold divides, or None.
    """
    kept = [i for i, sample in enumerate(images.samples) if images.errors[i] is None and sample.label is not None]
    samples = [images.samples[i] for i in kept]
    labels = sorted({str(sample.label) for sample in samples})
    if images.features is None or len(labels) < 2:
        return []
    classes = np.array([labels.index(str(sample.label)) for sample in samples])
    clusters = join_clusters(samples, None if groups is None else [groups[i] for i in kept])
    sizes = {label: len(np.unique(clusters[classes == i])) for i, label in enumerate(labels)}
    if min(sizes.values()) < ENOUGH:
        few = min(sizes, key=lambda label: sizes[label])
        title = f"Too few images to look for label errors: {few} has {sizes[few]} patients, and {ENOUGH} are needed"
        return [Finding("labels", "note", title, "Add images, or have all labels read twice.")]
    found = suspect_labels(images.features[kept], classes, clusters, seed=seed)
    if found.auroc < TELLING:
        title = f"Too hard to look for label errors: features tell the labels with an AUROC of {found.auroc:.2f} only"
        advice = "Either the classes look alike to a network that has seen no radiograph, or many labels are wrong."
        return [Finding("labels", "note", title, advice, values={"auroc": found.auroc})]
    if not len(found.suspects):
        return []
    suspects, given = found.suspects.tolist(), Counter(str(samples[i].label) for i in found.suspects.tolist())
    likely = [int(found.probabilities[i].argmax()) for i in suspects]
    title = f"{len(suspects)} of {len(samples)} images are likely mislabelled or hard"
    return [
        Finding(
            "labels",
            "warning" if found.alarming else "note",
            f"{title} ({', '.join(f'{count} labelled {label}' for label, count in sorted(given.items()))})",
            "By what a general network sees, they look like another class. A hard image is no label error: have a "
            "radiologist read them without the label, the first ones first; correct what is wrong and remove nothing "
            + (
                "else. They are more than hard images explain as a rule."
                if found.alarming
                else "else. So few may be hard."
            ),
            tuple(samples[i].path for i in suspects),
            tuple(
                f"labelled {samples[i].label}, looks like {labels[other]} ({found.probabilities[i, other]:.0%})"
                for i, other in zip(suspects, likely, strict=True)
            ),
            values={
                "suspects": len(suspects) / len(samples),
                "swapped": found.swapped,
                "p": found.p,
                "auroc": found.auroc,
            },
        )
    ]


def suspect_labels(features: Array, classes: Ints, clusters: Ints, *, seed: int = 0) -> Suspicion:
    """Find labels that contradict the features, by confident learning (Northcutt et al. 2021).

    An image is suspect when it is taken for another class, and as surely as that class's own images are on average. Hard
    images are so too, but seldom among the surest predictions; from their mistakes the share of swapped labels is
    estimated, and tested against none (Bootkrajang & Kabán 2012).

    Args:
        features: float32 (N, D).
        classes: (N,) from 0 without a gap.
        clusters: (N,) images that must not be divided, from `join_clusters`.
        seed: fixes the folds.
    """
    probabilities = _predict(features, classes, clusters, seed)
    rows = np.arange(len(classes))
    count = probabilities.shape[1]
    thresholds = np.array([probabilities[classes == one, one].mean() for one in range(count)])
    confident = np.where(probabilities >= thresholds, probabilities, -1)
    taken = np.where(confident.max(axis=1) >= 0, confident.argmax(axis=1), classes)
    own = probabilities[rows, classes]
    suspects = np.flatnonzero((taken != classes) & (probabilities[rows, taken] > own))
    margin = own - np.where(np.eye(count, dtype=bool)[classes], -1, probabilities).max(axis=1)
    suspects = suspects[np.argsort(margin[suspects], kind="stable")]
    if count == 2:
        judged = probabilities[:, 1]
        swapped, p = _fit_swaps(judged, classes == 1)
    else:
        judged = probabilities
        swapped, p = _fit_swaps(probabilities.max(axis=1), probabilities.argmax(axis=1) == classes)
    return Suspicion(probabilities, suspects, swapped, p, float(measure(classes, judged)["auroc"][0]))


def _predict(features: Array, classes: Ints, clusters: Ints, seed: int) -> Reals:
    """Out-of-fold probabilities (N, C) of a logistic regression, averaged over shuffles of the folds."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression

    spread = features.std(axis=0)
    scaled = (features - features.mean(axis=0))[:, spread > 0] / spread[spread > 0]
    # Directions without labels: nothing of a held-out image's label gets in.
    components = min(256, *scaled.shape)
    reduced = PCA(components, svd_solver="covariance_eigh", random_state=seed).fit_transform(scaled)
    reduced /= np.sqrt((reduced**2).sum(axis=1).mean())
    rng = np.random.default_rng(seed)
    total = np.zeros((len(classes), int(classes.max()) + 1))
    for _ in range(SHUFFLES):
        folds = (rng.permutation(clusters.max() + 1) % FOLDS)[clusters]
        for fold in range(FOLDS):
            held = folds == fold
            # Strongly regularised: a model that can follow a wrong label does not contradict it.
            model = LogisticRegression(C=1.0, max_iter=500).fit(reduced[~held], classes[~held])
            total[np.ix_(held, model.classes_)] += model.predict_proba(reduced[held])
    probabilities: Reals = total / total.sum(axis=1, keepdims=True)
    return probabilities


def _fit_swaps(probabilities: Reals, true: NDArray[np.bool_]) -> tuple[float, float]:
    """The share of swapped labels in a logistic curve that swaps keep away from 0 and 1, and p of none."""
    from scipy.optimize import minimize

    score = np.log(probabilities / (1 - probabilities))
    score /= max(float(score.std()), 1e-9)
    signs = np.where(true, 1.0, -1.0)

    def cost(curve: Reals) -> float:
        swaps, slope, offset = curve
        right = 1 / (1 + np.exp(-np.clip(signs * (slope * score + offset), -40, 40)))
        return -float(np.log(swaps + (1 - 2 * swaps) * right + 1e-12).mean())

    def fit(most: float) -> tuple[float, float]:
        bounds = [(0.0, most), (0.0, 40.0), (-20.0, 20.0)]
        fits = [minimize(cost, [start * most, 2.0, 0.0], bounds=bounds) for start in (0, 0.2, 0.6)]
        best = min(fits, key=lambda one: one.fun)
        return float(best.x[0]), float(best.fun)

    (swapped, with_swaps), (_, without) = fit(0.25), fit(0.0)
    gain = max(without - with_swaps, 0.0) * len(score)  # in log-likelihood; half of a chi-squared, at a boundary
    return swapped, 0.5 * math.erfc(math.sqrt(gain))
