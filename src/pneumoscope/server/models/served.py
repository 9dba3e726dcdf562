"""A model that the service has opened, and what it says of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pneumoscope import __version__
from pneumoscope.decisions.scope import describe
from pneumoscope.inference.evidence import mixes_places
from pneumoscope.inference.overlays import list_colours
from pneumoscope.inference.predictor import Predictor, load
from pneumoscope.models.model_folder import find_model
from pneumoscope.models.pretrained import DESCRIPTION
from pneumoscope.models.references import locate_model
from pneumoscope.server.messages.predictions import ModelMessage
from pneumoscope.server.monitoring.evidence_scale import find_limit
from pneumoscope.server.settings import Settings

INTENDED_USE = "For research and teaching. Not a medical device: not for diagnosis or treatment."


@dataclass(frozen=True)
class ServedModel:
    """A model with its name and fingerprint.

    Attributes:
        name: for people.
        fingerprint: of its description, which has the digests of its other files.
        predictor: runs it.
        evidence_limit: the evidence at the ends of the colour scale.
        message: what the API says of it.
    """

    name: str
    fingerprint: str
    predictor: Predictor
    evidence_limit: float
    message: ModelMessage


def open_model(reference: str | Path | None, settings: Settings) -> ServedModel:
    """Open a model.

    Raises:
        PneumoscopeError: it cannot be used.
    """
    folder = find_model(locate_model(reference))
    predictor = load(folder, settings.device, refuse_out_of_scope=settings.refuse_out_of_scope)
    name = folder.parent.name if folder.name == "model" else folder.name
    fingerprint = hashlib.sha256((folder / DESCRIPTION).read_bytes()).hexdigest()
    message = _describe(name, fingerprint, predictor)
    return ServedModel(name, fingerprint, predictor, find_limit(predictor.model), message)


def _describe(name: str, fingerprint: str, predictor: Predictor) -> ModelMessage:
    model, threshold = predictor.model, predictor.decisions.threshold
    intended = describe(predictor.decisions.scope)
    return ModelMessage(
        name=name,
        fingerprint=fingerprint,
        labels=list(model.labels),
        positive=model.positive,
        threshold=predictor.threshold if threshold else None,
        threshold_rule=threshold.rule if threshold else "",
        thresholds=dict(zip(model.labels, predictor.decisions.class_thresholds, strict=False)),
        alpha=predictor.alpha,
        false_alarms=predictor.false_alarms,
        backbone=model.backbone,
        input_size=model.input.size,
        training_images=sum(model.data.get("counts", {}).get("train", {}).values()),
        version=__version__,
        heatmaps=not mixes_places(model, predictor.engine),
        colours=list_colours(),
        intended_use=f"{INTENDED_USE} Meant for {intended}." if intended else INTENDED_USE,
        intended_population=intended,
    )
