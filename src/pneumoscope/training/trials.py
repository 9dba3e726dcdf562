"""One trial of `tune`: networks trained with some settings, fold by fold, and measured on unseen patients."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pneumoscope.auditing.intake import Images
from pneumoscope.auditing.measurements import FIELDS
from pneumoscope.config import Progress, silent
from pneumoscope.datasets.duplicates import group_identical
from pneumoscope.datasets.left_out import describe_unusable
from pneumoscope.datasets.samples import Sample
from pneumoscope.datasets.splits import fold_samples, require_classes
from pneumoscope.decisions import groups
from pneumoscope.decisions.decisions import Decider
from pneumoscope.evaluation.metrics import measure
from pneumoscope.inference.cache import FeatureCache
from pneumoscope.inference.engines import build_engine
from pneumoscope.inference.features import Wanted, extract_features
from pneumoscope.inference.predictor import compute_logits
from pneumoscope.text import were
from pneumoscope.training.data import (
    Computing,
    Extracted,
    Setup,
    Split,
    extract_split,
    prepare_computing,
    prepare_setup,
    stack_features,
)
from pneumoscope.training.run_folder import hush
from pneumoscope.training.settings import Settings
from pneumoscope.training.train import choose_precision, decide, fit

_KEPT = 2  # networks and input sizes whose features stay in memory


@dataclass(frozen=True)
class Parts:
    """How images are divided for tuning."""

    measured: str  # the split of each part that is measured: `test` of a fold, or `val`
    samples: Sequence[Sequence[Sample]]  # for each part its images, with their splits there; none of the split test
    held_out: Sequence[Sample]  # the split test


def divide(samples: Sequence[Sample], settings: Settings, folds: int) -> Parts:
    """Divide images into folds by patient, or for one fold by the splits they have. Test images are set aside."""
    learned = [sample for sample in samples if sample.split != "test"]
    held_out = [sample for sample in samples if sample.split == "test"]
    if folds == 1:
        return Parts("val", [learned], held_out)
    parts = fold_samples(
        learned, folds, val_fraction=settings.data.val_fraction, groups=group_identical(learned),
        seed=settings.run.seed,
    )  # fmt: skip
    return Parts("test", parts, held_out)


@dataclass(frozen=True, eq=False)
class _Pool:
    """The features of all images by one pretrained backbone."""

    setup: Setup
    computing: Computing
    whole: Split  # of all readable images, with those of mirror images
    places: Mapping[Path, int]  # of the images in it

    def split(self, samples: Iterable[Sample], mirrored: bool) -> Split:
        """The part of some images."""
        own = [sample for sample in samples if sample.path in self.places]
        places = [self.places[sample.path] for sample in own]
        features = self.whole.features[places] if mirrored else self.whole.features[places, :1]
        return Split(own, self.whole.targets[places], features, self.whole.intermediate[places])


class Trainer:
    """Trains on all but one part and measures on it; features of a pretrained backbone are computed once.

    Args:
        parts: the images.
        metric: a name of `evaluation.metrics.METRICS`.
        cache: keeps features between processes.
        progress: called while features are computed.
    """

    def __init__(self, parts: Parts, metric: str, cache: FeatureCache, progress: Progress = silent) -> None:
        self.parts = parts
        self._metric = metric
        self._cache = cache
        self._progress = progress
        self._pools: dict[str, _Pool] = {}

    def prepare(self, settings: Settings) -> Setup:
        """Compute the features that settings need, so that faults of the data or the backbone show early."""
        return self._find_pool(settings).setup

    def score(self, settings: Settings, part: int) -> float:
        """Train without one part, and measure on it; nan where the metric is not defined.

        Raises:
            DataError: training diverged.
        """
        pool = self._find_pool(settings)
        samples = [sample for sample in self.parts.samples[part] if sample.path in pool.places]
        with hush():
            changes = settings.network.train_backbone or settings.network.half_precision
            setup = prepare_setup(_without_audit(settings), samples, None if changes else pool.setup)
            splits = {
                name: pool.split((each for each in samples if each.split == name), mirrored=name == "train")
                for name in ("train", "val", self.parts.measured)
            }
            nothing = Images((), (), (), np.zeros(0, FIELDS))
            extracted = Extracted(splits, nothing, pool.computing.engine, pool.computing.graph, ())
            setup = choose_precision(setup, extracted)
            trained = fit(setup, extracted, silent)
            decisions = decide(setup, extracted, trained, None, silent).decisions
            measured = splits[self.parts.measured]
            if setup.changes_backbone:
                engine = build_engine(setup.backbone, setup.input.size, setup.device.type, trained.graph)
                measured = extract_split(measured, engine, setup.input)
        weight, bias = (part.detach().cpu().numpy() for part in (trained.head.weight, trained.head.bias))
        logits = compute_logits(measured.features[:, 0], weight, bias)
        for i, sample in enumerate(measured.samples):
            logits[i] = groups.align(logits[i], decisions.find_group(sample.tags))
        decider = Decider(setup.classes, decisions)
        probabilities = decider.apply(logits).probabilities
        two = len(setup.classes) == 2
        cut = decisions.threshold.value if decisions.threshold else decisions.class_thresholds or 0.5
        found = measure(measured.targets, probabilities[:, 1] if two else probabilities, threshold=cut)
        return float(found[self._metric][0])

    def _find_pool(self, settings: Settings) -> _Pool:
        network = settings.network
        key = repr((network.backbone, network.init, network.weights, network.size, network.fit))
        if key not in self._pools:
            while len(self._pools) >= _KEPT:
                del self._pools[next(iter(self._pools))]
            self._pools[key] = self._compute(settings)
        return self._pools[key]

    def _compute(self, settings: Settings) -> _Pool:
        samples = [replace(sample, split="train") for sample in self.parts.samples[0]]
        setup = prepare_setup(_without_audit(settings), samples)
        computing = prepare_computing(setup)
        extracts = []
        for extract in extract_features(samples, computing.engine, setup.input, Wanted(mirror=True), self._cache):
            extracts.append(extract)
            self._progress("Features", len(extracts), len(samples))
        for note in describe_unusable(samples, [each.error for each in extracts]):
            logging.getLogger("pneumoscope").warning("%s", note)
        readable = [i for i, each in enumerate(extracts) if not each.error]
        own = [samples[i] for i in readable]
        if left_out := len(samples) - len(own):
            require_classes(own, f"after {were(left_out, 'unreadable image')} left out", ("train",), setup.classes)
        targets = np.array([setup.classes.index(str(sample.label)) for sample in own])
        whole = Split(own, targets, *stack_features([extracts[i] for i in readable]))
        return _Pool(setup, computing, whole, {sample.path: i for i, sample in enumerate(own)})


def _without_audit(settings: Settings) -> Settings:
    return replace(settings, data=replace(settings.data, audit=False, strict=False))
