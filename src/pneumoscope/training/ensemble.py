"""The models of all folds as one: with a frozen backbone, the mean of their logits is that of a single head."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pneumoscope import __version__
from pneumoscope.datasets.samples import Sample, count_samples, fingerprint_samples
from pneumoscope.datasets.sources import find_sources, recognise_sources
from pneumoscope.decisions import groups, ood, scope
from pneumoscope.decisions.decisions import Decisions, to_json
from pneumoscope.errors import UsageError
from pneumoscope.evaluation.results import Evaluation
from pneumoscope.inference.engines import build_engine
from pneumoscope.inference.features import extract_features
from pneumoscope.inference.prediction import SHORT, Prediction
from pneumoscope.inference.predictor import Predictor
from pneumoscope.models.classifier import round_to_half, to_half
from pneumoscope.models.model_folder import Model, save_model
from pneumoscope.models.onnx_graphs import try_graph
from pneumoscope.reports.model_card import write_model_card
from pneumoscope.training.data import Setup
from pneumoscope.training.decisions import (
    find_class_fractions,
    find_known,
    find_weak_promises,
    fit_groups,
    fit_to_logits,
)
from pneumoscope.training.fold_results import Results, Trained
from pneumoscope.training.settings import Settings
from pneumoscope.training.summaries import select_settings

NOTE = (
    "The metrics are those of the folds' models, each on images that it did not learn from. The ensemble itself was "
    "not measured, as its members learned from all of these images; measure it on other ones."
)


@dataclass(frozen=True, eq=False)
class _Images:
    """What is known of N images from predictions by models that did not learn from them."""

    samples: Sequence[Sample]
    digests: Sequence[str]
    targets: NDArray[np.int64]  # (N,) class indices
    logits: NDArray[np.float64]  # (N, 1) or (N, C), as the networks give them, the mean over repeats
    distances: NDArray[np.float64]  # (N,) from the training images, as the OOD detector of the fold measures it


def check_ensemble(settings: Settings) -> None:
    """Refuse settings whose models cannot be united in one.

    Raises:
        UsageError: the backbones differ, or the decisions are fitted on augmented copies.
    """
    if settings.network.train_backbone:
        raise UsageError(
            "fine-tuned networks differ from fold to fold, so no single one gives the mean of their outputs. Leave it "
            "out and average what `pneumoscope predict` says with the model of each fold, or train one model on all "
            "images; or choose a recipe with a frozen backbone, `recipe='head'`.",
            "ensemble",
        )
    if settings.decisions.augmented_copies:
        raise UsageError(
            "is decided by predictions of the images as they are. Leave out `augmented_copies`.", "ensemble"
        )


def save_ensemble(folder: Path, trained: Trained, results: Results, evaluation: Evaluation) -> Model:
    """Write the model whose head is the mean of the folds' heads, so that its logit is the mean of theirs.

    It decides by what the images' out-of-fold logits tell: calibration, threshold, prediction sets and OOD limit come
    from predictions by models that did not learn from the image's patient. The evaluation is for its model card.
    """
    setup, settings = trained.setup, trained.settings
    members = [trained.load(job.name) for job in trained.jobs]
    head = {name: _average(members, name) for name in ("weight", "bias")}
    half = settings.network.half_precision
    if half:
        round_to_half(setup.backbone)
        head = {name: to_half(tensor).float() for name, tensor in head.items()}
    images = _gather(results, {job.name: member for job, member in zip(trained.jobs, members, strict=True)})
    detector = ood.fit_mahalanobis(_extract(trained, images.samples))
    decisions = _decide(setup, settings, images)
    state = {f"backbone.{name}": tensor for name, tensor in setup.backbone.state_dict().items()}
    state |= {f"head.{name}": tensor for name, tensor in head.items()}
    state |= {name: torch.tensor(array) for name, array in detector.to_arrays().items()}
    model = _describe(trained, members[0].model, decisions, images)
    graph = try_graph(setup.backbone, setup.input.size)
    model = save_model(folder, model, state, half=half, graph=graph)
    notes = [*evaluation.notes, NOTE, *find_weak_promises(decisions, images.targets, setup.classes, "images")]
    notes += groups.find_gaps(decisions.groups, decisions, "image")
    write_model_card(
        folder, model, evaluation, notes=notes, sources=find_sources(model.data["sources"]),
        backbone_licence=setup.spec.licence,
    )  # fmt: skip
    return model


def _average(members: Sequence[Predictor], name: str) -> torch.Tensor:
    mean = np.mean([getattr(member, name).astype(np.float64) for member in members], axis=0)
    return torch.from_numpy(mean.astype(np.float32))


def _gather(results: Results, members: Mapping[tuple[int, int], Predictor]) -> _Images:
    """The readable images, with means over repeats."""
    found: defaultdict[Path, list[tuple[Sample, Prediction, NDArray[np.float64], float]]] = defaultdict(list)
    for sample, prediction, place in zip(results.samples, results.predictions, results.places, strict=True):
        if prediction.error is None:
            fitted = members[place].decisions
            group = next((each for each in fitted.groups if each.name == prediction.group), None)
            limits = fitted.for_group(group).ood
            distance = (prediction.ood_score or 0.0) * (limits.limit if limits else 0.0)
            logits = groups.restore(np.array(prediction.logits), group)
            found[sample.path].append((sample, prediction, logits, distance))
    classes = next(iter(members.values())).model.labels
    each = list(found.values())
    return _Images(
        [replace(one[0][0], split="train") for one in each],
        [one[0][1].sha256 for one in each],
        np.array([classes.index(str(one[0][0].label)) for one in each]),
        np.array([np.mean([logits for *_, logits, _ in one], axis=0) for one in each]),
        np.array([np.mean([distance for *_, distance in one]) for one in each]),
    )


def _extract(trained: Trained, samples: Sequence[Sample]) -> NDArray[np.float32]:
    """Intermediate features (N, E) of images, from the backbone as it is stored."""
    setup, engine = trained.setup, trained.engine
    if setup.changes_backbone:
        engine = build_engine(setup.backbone, setup.input.size, setup.device.type)
    extracts = extract_features(samples, engine, setup.input, cache=trained.cache)
    return np.stack([each.intermediate for each in extracts if each.intermediate is not None])


def _decide(setup: Setup, settings: Settings, images: _Images) -> Decisions:
    fractions = find_class_fractions(images.targets, len(setup.classes), settings)
    patients = [sample.patient for sample in images.samples]
    every = np.arange(len(images.samples))
    fitted = fit_to_logits(images.logits, images.targets, every, patients, setup.classes, fractions, settings)
    by_class = {name: ood.pool_copies(images.distances[images.targets == i]) for i, name in enumerate(setup.classes)}
    limits = ood.OOD("mahalanobis", settings.decisions.false_alarms, by_class)
    known = find_known(images.samples)
    fitted = replace(fitted, ood=limits, scope=scope.state(settings.data.intended_use, scope.fit(known)))
    whole = groups.Images(images.logits, images.targets, images.distances, patients)
    return replace(fitted, groups=fit_groups(known, whole, fitted, setup.classes, fractions[0], settings))


def _describe(trained: Trained, first: Model, decisions: Decisions, images: _Images) -> Model:
    """The description of the ensemble: that of the first fold's model, with its own settings, data and decisions."""
    setup, initial = trained.setup, trained.setup.initial
    data = replace(trained.settings.data, positive=setup.settings.data.positive)  # a fold reads a table of its own
    seen = {digest[:SHORT] for digest in images.digests} | (initial.seen if initial is not None else frozenset())
    design = trained.division.design
    members = {"models": len(trained.jobs), "folds": design.folds, "repeats": design.repeats}
    return replace(
        first,
        decisions=to_json(decisions),
        training={
            **first.training,
            "settings": select_settings(replace(setup.settings, data=data)),
            "ensemble": members,
        },
        data={
            "fingerprint": fingerprint_samples(images.samples, images.digests),
            "counts": count_samples(images.samples),
            "sources": [source.name for source in recognise_sources(images.samples)],
            "seen": sorted(seen),
        },
        files={},
        version=__version__,
    )
