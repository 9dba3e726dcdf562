"""The only way from a file to a probability and a decision."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.samples import Sample
from pneumoscope.errors import BundleError, UsageError
from pneumoscope.inference.decisions import (
    calibrate,
    check_decisions,
    decide,
    find_limits,
    move_threshold,
    require_shares,
    restate,
)
from pneumoscope.inference.engines import Array, Engine, Kind, open_engine
from pneumoscope.inference.features import FeatureCache, Source, extract_features
from pneumoscope.inference.novelty import Guard, choose_limit
from pneumoscope.models.bundle import Bundle, load_arrays, load_bundle
from pneumoscope.models.shipped import find_shipped


@dataclass(frozen=True)
class Prediction:
    """What the classifier says of one radiograph.

    Attributes:
        path: the file, or None where bytes were given.
        probability: of the positive class; of the likeliest where there are more than two. None on error, and for a
            film unlike those trained on: the network has a number for it all the same, but knows nothing.
        decision: a label, `uncertain`, `neither`, `foreign` (see `inference.decisions.decide`), or None on error.
        call: the label that the threshold (or the highest probability) alone gives, whatever the guard says.
        label_set: the classes it may belong to; the truth is missed with the bundle's error rate at most.
        novelty: how unlike the training films it is; above 1 is foreign. None where the bundle can't tell.
        probabilities: of every class by name, whatever the guard says: for those who measure. None on error.
        logits: what the head gives, (1,) or (C,), before calibration.
        error: why the file could not be read.
        digest: SHA-256 of the file's content, empty on error.
    """

    path: Path | None
    probability: float | None = None
    decision: str | None = None
    call: str | None = None
    label_set: tuple[str, ...] = ()
    novelty: float | None = None
    probabilities: dict[str, float] | None = None
    logits: tuple[float, ...] = ()
    error: str | None = None
    digest: str = ""

    @property
    def unguarded(self) -> float | None:
        """The probability as it would be if no film were foreign."""
        shares = list((self.probabilities or {}).values())
        return None if not shares else shares[1] if len(shares) == 2 else max(shares)


class Predictor:
    """A trained classifier, ready for files; made by `load`.

    Args:
        bundle: its description.
        weight: float32 (1, D) or (C, D), the head's.
        bias: float32 (1,) or (C,), the head's.
        engine: runs its backbone.
        cache: keeps features between calls.
        guard: tells films unlike those trained on.
        prevalence: state probabilities for this share of the positive class (two classes), not the training films'.
        error_rate: of label sets, instead of the bundle's.
        false_alarms: of the guard, instead of the bundle's.

    Attributes:
        threshold: from which probability on the positive class of two is called, as restated.
        error_rate: of label sets, None where the bundle has none.
        false_alarms: that the guard can promise, likewise.

    Raises:
        UsageError: a prevalence is asked of a bundle that has none, or of more than two classes.
    """

    def __init__(
        self,
        bundle: Bundle,
        weight: Array,
        bias: Array,
        engine: Engine,
        cache: FeatureCache | None = None,
        *,
        guard: Guard | None = None,
        prevalence: float | None = None,
        error_rate: float | None = None,
        false_alarms: float | None = None,
    ) -> None:
        self.bundle = bundle
        self.weight = weight
        self.bias = bias
        self.engine = engine
        self.cache = cache
        self.guard = guard
        self._state_for(prevalence)
        self.error_rate = self.false_alarms = self._limits = self._foreign_from = None
        if (conformal := bundle.conformal) is not None:
            self.error_rate = error_rate or conformal.error_rate
            self._limits = find_limits(conformal, bundle.labels, self.error_rate)
        if guard is not None and (novelty := bundle.novelty) is not None:
            rate = false_alarms or novelty.false_alarms
            films = [(far, label) for label, each in novelty.distances.items() for far in each]
            distances, of_class = (np.array(column) for column in zip(*films, strict=True))
            self._foreign_from = choose_limit(distances, rate, of_class)
            self.false_alarms = novelty.promise(rate)

    def _state_for(self, prevalence: float | None) -> None:
        require_shares(self.bundle, prevalence)
        self.prevalence = prevalence
        self.threshold = self.bundle.thresholds.get("decision", 0.5)
        self._stated = self._wanted = self.bundle.calibration.shares
        if prevalence is not None:
            self._wanted = (1 - prevalence, prevalence)
            self.threshold = move_threshold(self.bundle, prevalence)

    def at_prevalence(self, prevalence: float) -> Predictor:
        """The same classifier, stating probabilities for another share of the positive class.

        Raises:
            UsageError: no share, or a bundle that can't be asked for one.
        """
        other = copy.copy(self)
        other._state_for(prevalence)
        return other

    def predict(
        self, sources: Source | str | Iterable[Source | str], progress: Callable[[int], None] | None = None
    ) -> list[Prediction]:
        """Predict files, in input order; one that cannot be read gives a prediction with its `error`.

        Args:
            sources: a path, a file's content as bytes, a sample (which may say how to read it), or several of them.
            progress: called with the number of files done so far.
        """
        several = [sources] if isinstance(sources, str | bytes | Path | Sample) else sources
        predictions = []
        for prediction in self.stream(several):
            predictions.append(prediction)
            if progress is not None:
                progress(len(predictions))
        return predictions

    def stream(self, sources: Iterable[Source | str]) -> Iterator[Prediction]:
        """Predict any number of files in bounded memory."""
        paths: dict[int, Path | None] = {}

        def remember() -> Iterator[Source]:
            for index, source in enumerate(sources):
                known = Path(source) if isinstance(source, str) else source
                path = known.path if isinstance(known, Sample) else known
                paths[index] = path if isinstance(path, Path) else None
                yield known

        for extract in extract_features(remember(), self.engine, self.bundle.input, cache=self.cache):
            path = paths.pop(extract.index)
            if extract.features is None:
                yield Prediction(path, error=extract.error)
            else:
                yield replace(self.judge(extract.features[:1], extract.stages), path=path, digest=extract.digest)

    def judge(self, features: Array, stages: Array | None = None) -> Prediction:
        """Decide on one film by its features, float32 (1, D), and what the guard looks at, `Extract.stages` (E,)."""
        labels = self.bundle.labels
        logits = score(features, self.weight, self.bias)
        reference = calibrate(logits, self.bundle.calibration)
        chances = np.exp(restate(reference, self._stated, self._wanted) if self.prevalence else reference)[0]
        # Label sets are drawn by class, so that another prevalence does not touch them.
        fits = None if self._limits is None else np.exp(reference[0]) >= self._limits
        novelty = None
        if self.guard is not None and self._foreign_from is not None and stages is not None:
            novelty = float(self.guard.distance(stages[None])[0] / self._foreign_from)
        best = int(chances.argmax()) if len(labels) > 2 else int(chances[1] >= self.threshold)
        call, probability = labels[best], float(chances[best if len(labels) > 2 else 1])
        label_set = (call,) if fits is None else tuple(name for name, fit in zip(labels, fits, strict=True) if fit)
        foreign = novelty is not None and novelty > 1
        return Prediction(
            None,
            probability=None if foreign else probability,
            decision=decide(label_set, call, foreign),
            call=call,
            label_set=label_set,
            novelty=novelty,
            probabilities=dict(zip(labels, chances.tolist(), strict=True)),
            logits=tuple(logits[0].tolist()),
        )


def score(features: Array, weight: Array, bias: Array) -> NDArray[np.float64]:
    """Features (N, D) -> logits (N, 1) or (N, C); in float64, so that the sum's order does not show."""
    logits: NDArray[np.float64] = features.astype(np.float64) @ weight.T.astype(np.float64) + bias
    return logits


def load(
    bundle: str | Path | None = None,
    device: str = "auto",
    cache: FeatureCache | None = None,
    *,
    engine: Kind | Engine = "auto",
    guarded: bool = True,
    prevalence: float | None = None,
    threshold: float | None = None,
    error_rate: float | None = None,
    false_alarms: float | None = None,
) -> Predictor:
    """Load a trained bundle, or the bundle of a run.

    Args:
        bundle: its folder, or the name of one that ships; by default `models.shipped.DEFAULT`.
        device: `auto`, `cpu` or `cuda`.
        cache: keeps features between calls, and shares them with training.
        engine: what runs the network: `torch`, `onnx` (ONNX Runtime), `openvino`, or what is fastest here; `program`,
            of `torch.export`, can run any code and is for files whose source you trust. Or an engine at hand that
            runs the same network.
        guarded: whether films unlike those trained on are told, and get no probability.
        prevalence: state probabilities for this share of the positive class, such as that of your clinic.
        threshold: the positive class of two is called from this probability on, instead of the bundle's; as stated.
        error_rate: of label sets, instead of the bundle's.
        false_alarms: of the guard, instead of the bundle's.

    Raises:
        BundleError: missing, damaged, incomplete or written by a newer version.
        MissingExtraError: what runs it is not installed.
        UsageError: a rate, threshold or prevalence that is none, or that the bundle can't be asked for; no bundle is
            given, and none ships.
    """
    for name, share in (("threshold", threshold), ("error-rate", error_rate), ("false-alarms", false_alarms)):
        if share is not None and not 0 < share < 1:
            raise UsageError(f"--{name} {share}: it has to lie between 0 and 1.")
    folder = find_shipped() if bundle is None else Path(bundle)
    description = load_bundle(folder)
    if threshold is not None:
        if description.positive is None:
            raise UsageError("--threshold: this model knows more than two classes, and calls the likeliest.")
        description = replace(description, thresholds={"decision": threshold}, threshold_rule=str(threshold))
    arrays = load_arrays(folder, description)
    try:
        running = open_engine(folder, description, arrays, device, engine) if isinstance(engine, str) else engine
        weight, bias = arrays["head.weight"], arrays["head.bias"]
        guard = None
        if guarded and description.novelty is not None:
            guard = Guard.from_arrays(
                {k.removeprefix("novelty."): v for k, v in arrays.items() if k.startswith("novelty.")}
            )
        check_decisions(description, weight, bias, running.width)
    except (RuntimeError, KeyError, ValueError) as problem:
        raise BundleError(
            f"{folder}: its weights do not fit its description ({problem}). Copy the bundle again from its source."
        ) from None
    return Predictor(
        description,
        weight,
        bias,
        running,
        cache,
        guard=guard,
        prevalence=prevalence,
        error_rate=error_rate,
        false_alarms=false_alarms,
    )
