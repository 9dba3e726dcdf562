"""The only way from a file to a probability and a decision."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import Progress, checked, quote
from pneumoscope.datasets.reading import find_images
from pneumoscope.datasets.samples import Sample, merge_tags
from pneumoscope.decisions import groups, scope
from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION, Decider, Decisions, read_decisions
from pneumoscope.decisions.ood import restore
from pneumoscope.decisions.threshold import Threshold, require_number
from pneumoscope.errors import ModelError, UsageError
from pneumoscope.images.dicom import Tags
from pneumoscope.images.read import ImageBytes
from pneumoscope.inference.cache import FeatureCache
from pneumoscope.inference.engines import Array, Engine, Kind, open_engine
from pneumoscope.inference.evidence import Method, check_label, find_evidence
from pneumoscope.inference.features import Extract, Source, Wanted, extract_features
from pneumoscope.inference.prediction import Prediction, log_warnings
from pneumoscope.models.model_folder import Model, load_arrays, load_model
from pneumoscope.models.references import locate_model
from pneumoscope.notebook import notebook_progress

_NOT_FINITE = "The network gave a number that is not finite: the model is damaged."


class Predictor:
    """A trained classifier, ready for files; made by `load`.

    Args:
        model: its description.
        weight: float32 (1, D) or (C, D), the head's.
        bias: float32 (1,) or (C,), the head's.
        engine: runs its backbone.
        decider: turns logits into decisions.
        cache: keeps features between calls.
    """

    def __init__(
        self,
        model: Model,
        weight: Array,
        bias: Array,
        engine: Engine,
        decider: Decider,
        cache: FeatureCache | None = None,
    ) -> None:
        self.model = model
        self.weight = weight
        self.bias = bias
        self.engine = engine
        self.decider = decider
        self.cache = cache

    def __repr__(self) -> str:
        return f"Predictor({self.model.backbone}: {', '.join(self.model.labels)})"

    @property
    def decisions(self) -> Decisions:
        """The model's decisions, with the options of `load` applied."""
        return self.decider.decisions

    @property
    def threshold(self) -> float:
        """The positive class is predicted at or above this probability; with more than two classes, 0.5 and unused."""
        return self.decider.threshold.value if self.decider.threshold else 0.5

    @property
    def cut(self) -> float | tuple[float, ...]:
        """The threshold, or for more than two classes that of each (0.5 where there are none), as metrics need it."""
        return self.decisions.class_thresholds or self.threshold

    @property
    def alpha(self) -> float | None:
        """How often a prediction set may miss the true class; None if the model has no prediction sets."""
        return self.decisions.prediction_sets.alpha if self.decisions.prediction_sets else None

    @property
    def false_alarms(self) -> float | None:
        """The fraction of ordinary images that may be out of distribution; None without a detector."""
        if self.decider.detector is None or self.decisions.ood is None:
            return None
        return self.decisions.ood.promised_false_alarms

    @checked
    def at_prevalence(self, prevalence: float) -> Predictor:
        """The same classifier with probabilities for another prevalence.

        Raises:
            UsageError: not between 0 and 1, or more than two classes.
        """
        other = copy.copy(self)
        other.decider = self.decider.at_prevalence(prevalence)
        return other

    @checked
    def predict(
        self, images: Source | Iterable[Source], progress: Progress | None = notebook_progress
    ) -> list[Prediction]:
        """Predict files, in input order; one that cannot be read gives a prediction with its `error`.

        How many have each kind of warning is said through `logging`.

        Args:
            images: the path of a file, a folder or a table of images, a file's content, a sample (which may say how to
                read it), or several of them.
            progress: called with the number of files done; by default a bar in a notebook.

        Raises:
            DataError: a folder or table holds no images, or cannot be read.
            UsageError: something else was given.
        """
        given = [images] if isinstance(images, str | bytes | Path | ImageBytes | Sample) else list(images)
        wrong = [type(each).__name__ for each in given if not isinstance(each, get_args(Source))]
        if wrong:
            raise UsageError(f"each must be a path, a file's content (bytes) or a sample, found {wrong[0]}.", "images")
        several: list[Source] = []
        for are_paths, some in groupby(given, lambda each: isinstance(each, str | Path)):
            part = list(some)
            several += find_images(Path(each) for each in part if isinstance(each, str | Path)) if are_paths else part
        predictions = []
        for prediction in self.run(several):
            predictions.append(prediction)
            if progress is not None:
                progress("Predicting", len(predictions), len(several))
        log_warnings(each.warnings for each in predictions)
        return predictions

    def run(
        self,
        images: Iterable[Source | Extract],
        maps: bool = False,
        *,
        pixels: bool = False,
        label: str | None = None,
        method: Method = "auto",
        pool: Executor | None = None,
    ) -> Iterator[Prediction]:
        """Read, prepare, run and decide on any number of images in bounded memory, each file opened once.

        Args:
            images: paths, contents, samples, or what `read_source` gave.
            maps: also say where the evidence lies.
            pixels: also give the decoded image.
            label: the class whose evidence is wanted; by default the positive one if there are two, else the predicted.
            method: how evidence is found; see `explain`.
            pool: threads that read; by default new ones, one for every two cores and at least 2.

        Yields:
            One `Prediction` per image, in input order.

        Raises:
            UsageError: the classifier has no such class, or cannot be explained by that method.
        """
        check_label(self.model.labels, label)
        wanted = Wanted(maps=maps, pixels=pixels)
        for extract in extract_features(images, self.engine, self.model.input, wanted, self.cache, pool):
            prediction = self.decide(extract)
            if maps and prediction.error is None:
                shown = label or self.model.positive or prediction.predicted_label
                weight, bias = groups.align_head(self.weight, self.bias, self.find_group(extract))
                evidence = find_evidence(extract, self.model, weight, bias, self.engine, shown, method)
                damaged = None if np.isfinite(evidence.cells).all() else _NOT_FINITE
                prediction = replace(prediction, evidence=None if damaged else evidence, error=damaged)
            yield prediction

    def find_group(self, extract: Extract) -> groups.Group | None:
        """The group that decides on an image, by its DICOM header and its table; None where none does."""
        return self.decisions.find_group(_find_tags(extract))

    def decide(self, extract: Extract) -> Prediction:
        """Decide on one image by its features."""
        identity = _identify(extract)
        if extract.features is None:
            return Prediction(**identity, error=extract.error, lacks_extra=extract.lacks_extra)
        outside = scope.apply(_find_tags(extract), self.decisions.scope)
        warnings = outside + extract.warnings
        if outside and self.decider.refuse_out_of_scope:
            return Prediction(**identity, warnings=warnings, error=_refuse(extract.source, outside))
        group = self.find_group(extract)
        logits = groups.align(compute_logits(extract.features[:1], self.weight, self.bias), group)
        intermediate = None if extract.intermediate is None else extract.intermediate[None]
        outcome = self.decider.apply(logits, intermediate, group)
        found = (*logits[0], *outcome.probabilities[0], *(() if outcome.ood_scores is None else outcome.ood_scores))
        if not np.isfinite(found).all():
            return Prediction(**identity, warnings=warnings, error=_NOT_FINITE)
        labels = self.model.labels
        probabilities = outcome.probabilities[0].tolist()
        predicted, decision = int(outcome.predicted[0]), outcome.decisions[0]
        probability = probabilities[predicted if len(labels) > 2 else 1]
        return Prediction(
            **identity,
            predicted_label=labels[predicted],
            probability=None if decision == OUT_OF_DISTRIBUTION else probability,
            probabilities=dict(zip(labels, probabilities, strict=True)),
            prediction_set=tuple(name for name, inside in zip(labels, outcome.in_set[0], strict=True) if inside),
            ood_score=None if outcome.ood_scores is None else float(outcome.ood_scores[0]),
            decision=decision,
            logits=tuple(logits[0].tolist()),
            group=None if group is None else group.name,
            warnings=warnings,
        )


def _identify(extract: Extract) -> dict[str, Any]:
    """The fields of a prediction that say whose image it is."""
    source = extract.source
    sample = source if isinstance(source, Sample) else None
    tags = _find_tags(extract) or Tags()
    path = sample.path if sample else Path(source) if isinstance(source, str | Path) else None
    return {
        "path": path,
        "sha256": extract.sha256,
        "patient": (sample.patient if sample else None) or tags.patient,
        "label": sample.label if sample else None,
        "study_uid": tags.study,
        "series_uid": tags.series,
        "sop_uid": tags.instance,
        "accession_number": tags.accession,
        "date": tags.date,
        "age": tags.age,
        "sex": tags.sex,
        "view": tags.view,
        "laterality": tags.laterality,
        "size": extract.size,
        "format": extract.format,
        "pixels": extract.pixels,
    }


def _find_tags(extract: Extract) -> Tags | None:
    """What the DICOM header says, and where it says nothing, a table."""
    return merge_tags(extract.tags, extract.source.tags if isinstance(extract.source, Sample) else None)


def _refuse(source: Source, outside: Sequence[str]) -> str:
    name = source.name if isinstance(source, ImageBytes) else source.path if isinstance(source, Sample) else source
    name = "image" if isinstance(name, bytes) else name
    return f"{name}: {'; '.join(outside)}. Such images get no prediction because of `refuse_out_of_scope=True`."


def compute_logits(features: Array, weight: Array, bias: Array) -> NDArray[np.float64]:
    """Features (N, D) -> logits (N, 1) or (N, C); in float64, so that the order of summation does not matter."""
    logits: NDArray[np.float64] = features.astype(np.float64) @ weight.T.astype(np.float64) + bias
    return logits


@checked
def load(
    model: str | Path | None = None,
    device: str = "auto",
    cache: FeatureCache | None = None,
    *,
    engine: Kind | Engine = "auto",
    ood: bool = True,
    prevalence: float | None = None,
    threshold: float | str | None = None,
    alpha: float | None = None,
    false_alarms: float | None = None,
    refuse_out_of_scope: bool = False,
) -> Predictor:
    """Load a trained model.

    Args:
        model: a run, a model folder, a zip archive of one, the name of a pretrained model, an address that begins with
            `https://`, or `hf:OWNER/NAME` for one on the Hugging Face hub; `models.pretrained.DEFAULT` by default.
        device: `auto`, `cpu` or `cuda`.
        cache: keeps features between calls, and shares them with training.
        engine: what runs the network: `torch`, `onnx` (ONNX Runtime), `openvino`, `auto` (the fastest here), or an
            engine object. `program` runs a file of `torch.export`. It can run any code: trust its source first.
        ood: whether images unlike the training images are detected, and get no probability.
        prevalence: adjust probabilities to this share of the positive class, such as that of your clinic.
        threshold: for two classes, predict the positive one at or above this probability, instead of the model's.
        alpha: how often prediction sets may miss the true class, instead of the model's alpha.
        false_alarms: the share of ordinary images that the OOD detector may flag, instead of the model's.
        refuse_out_of_scope: give images outside the intended use an error and no probability, not only a warning.

    Raises:
        DownloadError: the model cannot be downloaded.
        ModelError: missing, damaged, incomplete or of another version.
        MissingExtraError: what runs it is not installed.
        UsageError: an option is not valid, does not suit the model or has no effect on it, or there is no pretrained
            model.
    """
    if not (isinstance(engine, str) or hasattr(engine, "width")):
        raise UsageError(f"must be a name or an engine, found {quote(engine)}.", "engine")
    folder = locate_model(model)
    description = load_model(folder)
    cut = None if threshold is None else require_number(threshold)
    decisions = _override(read_decisions(description), cut, alpha, false_alarms)
    if false_alarms is not None and not ood:
        raise UsageError("no effect without the OOD detector. Leave out `ood=False`.", "false_alarms")
    arrays = load_arrays(folder, description)
    try:
        running = open_engine(folder, description, arrays, device, engine) if isinstance(engine, str) else engine
        weight, bias = arrays["head.weight"], arrays["head.bias"]
        _check_head(description, weight, bias, running.width)
        detector = restore(decisions.ood, arrays) if ood and decisions.ood is not None else None
    except (RuntimeError, KeyError, ValueError, AssertionError) as problem:
        raise ModelError(
            f"{folder}: its weights do not fit its description ({problem}). Copy the model again from its source."
        ) from None
    decider = Decider(description.labels, decisions, detector, prevalence, refuse_out_of_scope)
    return Predictor(description, weight, bias, running, decider, cache)


def _override(
    decisions: Decisions, threshold: float | None, alpha: float | None, false_alarms: float | None
) -> Decisions:
    for name, value in (("threshold", threshold), ("alpha", alpha), ("false_alarms", false_alarms)):
        if value is not None and not 0 < value < 1:
            raise UsageError(f"{value} is not between 0 and 1.", name)
    if threshold is not None:
        if decisions.threshold is None:
            raise UsageError(
                "This model has more than two classes, and one threshold decides between two only.", "threshold"
            )
        decisions = replace(decisions, threshold=Threshold(threshold, str(threshold)))
    for name, value, part in (
        ("alpha", alpha, decisions.prediction_sets),
        ("false_alarms", false_alarms, decisions.ood),
    ):
        if value is not None and part is None:
            what = "prediction sets" if name == "alpha" else "OOD detector"
            raise UsageError(f"no effect: this model has no {what}. Leave the option out.", name)
    if decisions.prediction_sets is not None:
        decisions = replace(decisions, prediction_sets=decisions.prediction_sets.at(alpha))
    if decisions.ood is not None:
        decisions = replace(decisions, ood=decisions.ood.at(false_alarms))
    return replace(decisions, groups=tuple(group.at(alpha, false_alarms) for group in decisions.groups))


def _check_head(model: Model, weight: Array, bias: Array, width: int) -> None:
    """Check that the head fits classes and features.

    Raises:
        ValueError: it does not; the message says why.
    """
    if len(set(model.labels)) < len(model.labels):
        raise ValueError(f"labels twice: {', '.join(model.labels)}")
    outputs = 1 if len(model.labels) == 2 else len(model.labels)
    if weight.shape != (outputs, width) or bias.shape != (outputs,):
        raise ValueError(f"the head is {weight.shape} and {bias.shape}, not ({outputs}, {width}) and ({outputs},)")
