"""The only way from a file to a probability and a decision."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.samples import Sample
from pneumoscope.decisions.decide import (
    calibrate,
    check_decisions,
    decide,
    find_limits,
    move_threshold,
    require_shares,
    restate,
)
from pneumoscope.decisions.ood import OODDetector, choose_limit
from pneumoscope.errors import ModelError, UsageError
from pneumoscope.inference.engines import Array, Engine, Kind, open_engine
from pneumoscope.inference.features import FeatureCache, Source, extract_features
from pneumoscope.models.model_folder import Model, load_arrays, load_model
from pneumoscope.models.pretrained import find_pretrained


@dataclass(frozen=True)
class Prediction:
    """What the classifier says of one radiograph.

    Attributes:
        path: the file, or None where bytes were given.
        probability: of the positive class; of the likeliest where there are more than two. None on error, and for a
            image unlike those trained on: the network has a number for it all the same, but knows nothing.
        decision: a label, `uncertain`, `neither`, `ood` (see `inference.decisions.decide`), or None on error.
        predicted_label: the label that the threshold (or the highest probability) alone gives, whatever the detector says.
        prediction_set: the classes it may belong to; the truth is missed with the model's alpha at most.
        ood_score: how unlike the training images it is; above 1 is ood. None where the model can't tell.
        probabilities: of every class by name, whatever the detector says: for those who measure. None on error.
        logits: what the head gives, (1,) or (C,), before calibration.
        error: why the file could not be read.
        digest: SHA-256 of the file's content, empty on error.
    """

    path: Path | None
    probability: float | None = None
    decision: str | None = None
    predicted_label: str | None = None
    prediction_set: tuple[str, ...] = ()
    ood_score: float | None = None
    probabilities: dict[str, float] | None = None
    logits: tuple[float, ...] = ()
    error: str | None = None
    digest: str = ""

    @property
    def raw_probability(self) -> float | None:
        """The probability as it would be if no image were ood."""
        shares = list((self.probabilities or {}).values())
        return None if not shares else shares[1] if len(shares) == 2 else max(shares)


class Predictor:
    """A trained classifier, ready for files; made by `load`.

    Args:
        model: its description.
        weight: float32 (1, D) or (C, D), the head's.
        bias: float32 (1,) or (C,), the head's.
        engine: runs its backbone.
        cache: keeps features between calls.
        detector: tells images unlike those trained on.
        prevalence: state probabilities for this share of the positive class (two classes), not the training images'.
        alpha: of prediction sets, instead of the model's.
        false_alarms: of the detector, instead of the model's.

    Attributes:
        threshold: from which probability on the positive class of two is called, as restated.
        alpha: of prediction sets, None where the model has none.
        false_alarms: that the detector can promise, likewise.

    Raises:
        UsageError: a prevalence is asked of a model that has none, or of more than two classes.
    """

    def __init__(
        self,
        model: Model,
        weight: Array,
        bias: Array,
        engine: Engine,
        cache: FeatureCache | None = None,
        *,
        detector: OODDetector | None = None,
        prevalence: float | None = None,
        alpha: float | None = None,
        false_alarms: float | None = None,
    ) -> None:
        self.model = model
        self.weight = weight
        self.bias = bias
        self.engine = engine
        self.cache = cache
        self.detector = detector
        self._state_for(prevalence)
        self.alpha = self.false_alarms = self._limits = self._ood_limit = None
        if (conformal := model.conformal) is not None:
            self.alpha = alpha or conformal.alpha
            self._limits = find_limits(conformal, model.labels, self.alpha)
        if detector is not None and (ood := model.ood) is not None:
            rate = false_alarms or ood.false_alarms
            images = [(far, label) for label, each in ood.distances.items() for far in each]
            distances, of_class = (np.array(column) for column in zip(*images, strict=True))
            self._ood_limit = choose_limit(distances, rate, of_class)
            self.false_alarms = ood.promise(rate)

    def _state_for(self, prevalence: float | None) -> None:
        require_shares(self.model, prevalence)
        self.prevalence = prevalence
        self.threshold = self.model.thresholds.get("decision", 0.5)
        self._stated = self._wanted = self.model.calibration.shares
        if prevalence is not None:
            self._wanted = (1 - prevalence, prevalence)
            self.threshold = move_threshold(self.model, prevalence)

    def at_prevalence(self, prevalence: float) -> Predictor:
        """The same classifier, stating probabilities for another share of the positive class.

        Raises:
            UsageError: no share, or a model that can't be asked for one.
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

        for extract in extract_features(remember(), self.engine, self.model.input, cache=self.cache):
            path = paths.pop(extract.index)
            if extract.features is None:
                yield Prediction(path, error=extract.error)
            else:
                yield replace(self.judge(extract.features[:1], extract.stages), path=path, digest=extract.digest)

    def judge(self, features: Array, stages: Array | None = None) -> Prediction:
        """Decide on one image by its features, float32 (1, D), and what the detector looks at, `Extract.stages` (E,)."""
        labels = self.model.labels
        logits = score(features, self.weight, self.bias)
        reference = calibrate(logits, self.model.calibration)
        chances = np.exp(restate(reference, self._stated, self._wanted) if self.prevalence else reference)[0]
        # Prediction sets are drawn by class, so that another prevalence does not touch them.
        fits = None if self._limits is None else np.exp(reference[0]) >= self._limits
        ood_score = None
        if self.detector is not None and self._ood_limit is not None and stages is not None:
            ood_score = float(self.detector.distance(stages[None])[0] / self._ood_limit)
        best = int(chances.argmax()) if len(labels) > 2 else int(chances[1] >= self.threshold)
        call, probability = labels[best], float(chances[best if len(labels) > 2 else 1])
        prediction_set = (call,) if fits is None else tuple(name for name, fit in zip(labels, fits, strict=True) if fit)
        ood = ood_score is not None and ood_score > 1
        return Prediction(
            None,
            probability=None if ood else probability,
            decision=decide(prediction_set, call, ood),
            predicted_label=call,
            prediction_set=prediction_set,
            ood_score=ood_score,
            probabilities=dict(zip(labels, chances.tolist(), strict=True)),
            logits=tuple(logits[0].tolist()),
        )


def score(features: Array, weight: Array, bias: Array) -> NDArray[np.float64]:
    """Features (N, D) -> logits (N, 1) or (N, C); in float64, so that the sum's order does not show."""
    logits: NDArray[np.float64] = features.astype(np.float64) @ weight.T.astype(np.float64) + bias
    return logits


def load(
    model: str | Path | None = None,
    device: str = "auto",
    cache: FeatureCache | None = None,
    *,
    engine: Kind | Engine = "auto",
    detect_ood: bool = True,
    prevalence: float | None = None,
    threshold: float | None = None,
    alpha: float | None = None,
    false_alarms: float | None = None,
) -> Predictor:
    """Load a trained model, or the model of a run.

    Args:
        model: its folder, or the name of one that ships; by default `models.pretrained.DEFAULT`.
        device: `auto`, `cpu` or `cuda`.
        cache: keeps features between calls, and shares them with training.
        engine: what runs the network: `torch`, `onnx` (ONNX Runtime), `openvino`, or what is fastest here; `program`,
            of `torch.export`, can run any code and is for files whose source you trust. Or an engine at hand that
            runs the same network.
        detect_ood: whether images unlike those trained on are told, and get no probability.
        prevalence: state probabilities for this share of the positive class, such as that of your clinic.
        threshold: the positive class of two is called from this probability on, instead of the model's; as stated.
        alpha: of prediction sets, instead of the model's.
        false_alarms: of the detector, instead of the model's.

    Raises:
        ModelError: missing, damaged, incomplete or written by a newer version.
        MissingExtraError: what runs it is not installed.
        UsageError: a rate, threshold or prevalence that is none, or that the model can't be asked for; no model is
            given, and none ships.
    """
    for name, share in (("threshold", threshold), ("alpha", alpha), ("false-alarms", false_alarms)):
        if share is not None and not 0 < share < 1:
            raise UsageError(f"--{name} {share}: it has to lie between 0 and 1.")
    folder = find_pretrained() if model is None else Path(model)
    description = load_model(folder)
    if threshold is not None:
        if description.positive is None:
            raise UsageError("--threshold: this model knows more than two classes, and calls the likeliest.")
        description = replace(description, thresholds={"decision": threshold}, threshold_rule=str(threshold))
    arrays = load_arrays(folder, description)
    try:
        running = open_engine(folder, description, arrays, device, engine) if isinstance(engine, str) else engine
        weight, bias = arrays["head.weight"], arrays["head.bias"]
        detector = None
        if detect_ood and description.ood is not None:
            detector = OODDetector.from_arrays(
                {k.removeprefix("ood."): v for k, v in arrays.items() if k.startswith("ood.")}
            )
        check_decisions(description, weight, bias, running.width)
    except (RuntimeError, KeyError, ValueError) as problem:
        raise ModelError(
            f"{folder}: its weights do not fit its description ({problem}). Copy the model again from its source."
        ) from None
    return Predictor(
        description,
        weight,
        bias,
        running,
        cache,
        detector=detector,
        prevalence=prevalence,
        alpha=alpha,
        false_alarms=false_alarms,
    )
