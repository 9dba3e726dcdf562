"""What made a result: the model with the settings that it decides by."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pneumoscope import __version__
from pneumoscope.dicomnet.identifiers import derive_uid
from pneumoscope.models.model_folder import find_model
from pneumoscope.models.pretrained import DESCRIPTION
from pneumoscope.models.references import locate_model

if TYPE_CHECKING:
    from pathlib import Path

    from pneumoscope.inference.predictor import Predictor

MANUFACTURER = "pneumoscope"
RESEARCH_USE = "Research use only: not for diagnosis or treatment. Not verified by a person."


@dataclass(frozen=True)
class Algorithm:
    """What identifies a model in results.

    Attributes:
        name: of the model.
        fingerprint: SHA-256 of its description, which holds that of its weights.
        labels: its classes.
        positive: the positive class; None for more than two.
        parameters: the settings that it decides by, as `name=value`.
        threshold: of the positive class; None for more than two.
    """

    name: str
    fingerprint: str
    labels: tuple[str, ...]
    positive: str | None
    parameters: tuple[str, ...]
    threshold: float | None

    @property
    def version(self) -> str:
        """The version of software and model; a retrained model has another version."""
        return f"{__version__}+{self.fingerprint[:12]}"

    @property
    def device_uid(self) -> str:
        """The UID of the observing device; a retrained model has a new one (IHE AI Results)."""
        return derive_uid("device", self.fingerprint, __version__)

    @property
    def limits(self) -> str:
        """What an image was examined for, in words; a label such as NORMAL does not say it."""
        classes = self.positive or ", ".join(self.labels)
        return f"Examined for {classes} alone: nothing else was assessed."

    @property
    def key(self) -> tuple[object, ...]:
        """Everything that a result depends on besides image and format."""
        return __version__, self.fingerprint, self.parameters


def identify(predictor: Predictor, model: str | Path | None = None) -> Algorithm:
    """Identify a predictor that was loaded from a model.

    Args:
        predictor: as loaded, with its settings.
        model: what it was loaded from, as in `load`.

    Raises:
        ModelError: there is no such model.
    """
    folder = find_model(locate_model(model))
    values = {
        "threshold": predictor.threshold if predictor.model.positive else None,
        "thresholds": predictor.decisions.class_thresholds or None,
        "alpha": predictor.alpha,
        "false alarms": predictor.false_alarms,
        "prevalence": predictor.decider.prevalence,
    }
    return Algorithm(
        name=folder.parent.name if folder.name == "model" else folder.name,
        fingerprint=hashlib.sha256((folder / DESCRIPTION).read_bytes()).hexdigest(),
        labels=predictor.model.labels,
        positive=predictor.model.positive,
        parameters=tuple(f"{name}={_format(value)}" for name, value in values.items() if value is not None),
        threshold=predictor.threshold if predictor.model.positive else None,
    )


def _format(value: object) -> str:
    return ",".join(map(_format, value)) if isinstance(value, tuple) else f"{value:.6g}"
