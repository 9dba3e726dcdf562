"""Label errors: images whose features clearly indicate another class than their label."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.auditing.duplicates import Groups, join_clusters
from pneumoscope.auditing.findings import Finding
from pneumoscope.auditing.intake import Features, Images
from pneumoscope.auditing.measurements import MANY as LARGE
from pneumoscope.auditing.measurements import list_blocks
from pneumoscope.datasets.samples import Sample
from pneumoscope.evaluation.intervals.proportions import Floats, Ints
from pneumoscope.evaluation.metrics import measure
from pneumoscope.inference.engines import Array

FOLDS = 5
SHUFFLES = 3
ENOUGH = 20  # patients of each class
MIN_AUROC = 0.75  # with good features, 10% of swapped labels still leave 0.8
# Of 200 phantoms without swapped labels 1 to 7% are suspects, with 5% swapped 4 to 11%. So a share below MANY needs
# a second sign. Among fewer images than ENOUGH_TO_ALARM, hard images alone may be 13%.
MANY, SOME, ENOUGH_TO_ALARM = 0.08, 1 / 30, 200


@dataclass(frozen=True)
class Suspicion:
    """Labels that contradict the features."""

    probabilities: Floats  # (N, C) out of fold
    suspects: Ints  # indices of images that are likely mislabelled, or hard, the clearest first
    swapped: float  # share of swapped labels, [0, 0.25], estimated from the most confident predictions
    p: float  # p value of no swapped label
    auroc: float  # how well the features predict the given labels

    @property
    def alarming(self) -> bool:
        """Whether there are more suspects than hard images usually explain."""
        share = len(self.suspects) / len(self.probabilities)
        if len(self.probabilities) < ENOUGH_TO_ALARM:
            return False
        return share >= MANY or (share >= SOME and self.p <= 0.01)


def find_label_errors(images: Images, *, seed: int = 0, groups: Groups | None = None) -> list[Finding]:
    """List images that are likely mislabelled, for a person to check.

    Without features there is no finding. `groups` (N,) numbers the groups of near-duplicates, which no fold divides.
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
        return [Finding("labels", "note", title, "Add images, or have all images labelled twice.")]
    features = images.features if len(kept) == len(images.features) else images.features[kept]
    if (features.max(axis=0) == features.min(axis=0)).all():
        title = "Cannot look for label errors: to a network, all images look the same"
        return [Finding("labels", "note", title, "Look at some of the images: they may all be blank.")]
    suspicion = suspect_labels(features, classes, clusters, seed=seed)
    if suspicion.auroc < MIN_AUROC:
        title = f"Cannot look for label errors: features predict the labels with an AUROC of only {suspicion.auroc:.2f}"
        advice = "Either the classes look alike to a network trained on photographs, or many labels are wrong."
        return [Finding("labels", "note", title, advice, values={"auroc": suspicion.auroc})]
    return [_report(suspicion, samples, labels)] if len(suspicion.suspects) else []


def _report(suspicion: Suspicion, samples: Sequence[Sample], labels: Sequence[str]) -> Finding:
    suspects = suspicion.suspects.tolist()
    given, alarming = Counter(str(samples[i].label) for i in suspects), suspicion.alarming
    remarks = []
    for i in suspects:
        likely = int(suspicion.probabilities[i].argmax())
        probability = suspicion.probabilities[i, likely]
        remarks.append(f"labelled {samples[i].label}, looks like {labels[likely]} ({probability:.0%})")
    return Finding(
        "labels",
        "warning" if alarming else "note",
        f"{len(suspects)} of {len(samples)} images are likely mislabelled or hard "
        f"({', '.join(f'{count} labelled {label}' for label, count in sorted(given.items()))})",
        "A general-purpose network assigns them to another class. Either the label is wrong or the image is hard. Have "
        "a radiologist read them in this order, without seeing the labels. Correct wrong labels, but keep hard images. "
        + ("Hard images alone seldom explain so many." if alarming else "With so few, all may simply be hard images."),
        files=tuple(samples[i].path for i in suspects),
        remarks=tuple(remarks),
        values={
            "suspects": len(suspects) / len(samples),
            "swapped": suspicion.swapped,
            "p": suspicion.p,
            "auroc": suspicion.auroc,
        },
    )


def suspect_labels(features: Features, classes: Ints, clusters: Ints, *, seed: int = 0) -> Suspicion:
    """Find labels that contradict the features, by confident learning (Northcutt et al. 2021).

    An image is suspect if it is predicted to be of another class, with the confidence that this class's own images have
    on average. That is true of hard images too, but seldom of the most confident predictions. The mistakes among these
    tell the share of swapped labels, which is tested against none (Bootkrajang & Kabán 2012).

    Args:
        features: (N, D).
        classes: (N,) from 0 without a gap.
        clusters: (N,) from `join_clusters`; no fold divides one.
        seed: fixes the folds.
    """
    probabilities = _predict(features, classes, clusters, seed)
    rows = np.arange(len(classes))
    count = probabilities.shape[1]
    thresholds = np.array([probabilities[classes == label, label].mean() for label in range(count)])
    confident = np.where(probabilities >= thresholds, probabilities, -1)
    predicted = np.where(confident.max(axis=1) >= 0, confident.argmax(axis=1), classes)
    own = probabilities[rows, classes]
    suspects = np.flatnonzero((predicted != classes) & (probabilities[rows, predicted] > own))
    margin = own - np.where(np.eye(count, dtype=bool)[classes], -1, probabilities).max(axis=1)
    suspects = suspects[np.argsort(margin[suspects], kind="stable")]
    if count == 2:
        swapped, p = _fit_swaps(probabilities[:, 1], classes == 1)
    else:
        swapped, p = _fit_swaps(probabilities.max(axis=1), probabilities.argmax(axis=1) == classes)
    auroc = measure(classes, probabilities[:, 1] if count == 2 else probabilities)["auroc"][0]
    return Suspicion(probabilities, suspects, swapped, p, float(auroc))


def _predict(features: Features, classes: Ints, clusters: Ints, seed: int) -> Floats:
    """Out-of-fold probabilities (N, C) of a logistic regression, averaged over shuffles of the folds."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(seed)
    if len(features) > LARGE:  # a sample is enough, and bounds the memory
        sampled = np.random.default_rng(seed).choice(len(features), LARGE, replace=False)
        few = features[np.sort(sampled)].astype(np.float32)
    else:
        few = np.asarray(features, np.float32)
    mean, spread = few.mean(axis=0), few.std(axis=0)

    def scale(some: Features) -> Array:
        scaled: Array = (some - mean)[:, spread > 0] / spread[spread > 0]
        return scaled

    # PCA does not see the labels, so it may see held-out images.
    scaled = scale(few)
    components = PCA(min(256, *scaled.shape), svd_solver="covariance_eigh", random_state=seed).fit(scaled)
    reduced = np.concatenate([components.transform(scale(features[block])) for block in list_blocks(len(features))])
    reduced /= np.sqrt((reduced**2).sum(axis=1).mean())
    total = np.zeros((len(classes), int(classes.max()) + 1))
    for _ in range(SHUFFLES):
        folds = (rng.permutation(clusters.max() + 1) % FOLDS)[clusters]
        for fold in range(FOLDS):
            held = folds == fold
            # Strongly regularised, so that it cannot fit single wrong labels.
            model = LogisticRegression(C=1.0, max_iter=500).fit(reduced[~held], classes[~held])
            total[np.ix_(held, model.classes_)] += model.predict_proba(reduced[held])
    probabilities: Floats = total / total.sum(axis=1, keepdims=True)
    return probabilities


def _fit_swaps(probabilities: Floats, true: NDArray[np.bool_]) -> tuple[float, float]:
    """Estimate the share of swapped labels, which keep a logistic curve away from 0 and 1; test it against none."""
    from scipy.optimize import minimize

    probabilities = np.clip(probabilities, 1e-9, 1 - 1e-9)  # that of an outlier can be 0 or 1
    score = np.log(probabilities / (1 - probabilities))
    score /= max(float(score.std()), 1e-9)
    signs = np.where(true, 1.0, -1.0)

    def cost(curve: Floats) -> float:
        swaps, slope, offset = curve
        correct = 1 / (1 + np.exp(-np.clip(signs * (slope * score + offset), -40, 40)))
        return -float(np.log(swaps + (1 - 2 * swaps) * correct + 1e-12).mean())

    def fit(most: float) -> tuple[float, float]:
        bounds = [(0.0, most), (0.0, 40.0), (-20.0, 20.0)]
        fits = [minimize(cost, [start * most, 2.0, 0.0], bounds=bounds) for start in (0, 0.2, 0.6)]
        best = min(fits, key=lambda result: result.fun)
        return float(best.x[0]), float(best.fun)

    (swapped, with_swaps), (_, without) = fit(0.25), fit(0.0)
    gain = max(without - with_swaps, 0.0) * len(score)  # in log-likelihood; half of a chi-squared, at a boundary
    return swapped, 0.5 * math.erfc(math.sqrt(gain))
