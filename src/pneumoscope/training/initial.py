"""The model that a run continues from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from pneumoscope import __version__
from pneumoscope.errors import UsageError
from pneumoscope.models.backbones import BackboneSpec, find_backbone, rebuild_backbone
from pneumoscope.models.lineage import TRAINED, Parent, Step
from pneumoscope.models.model_folder import Model, load_model, load_weights, name_model, to_parent
from pneumoscope.models.pretrained import find_pretrained
from pneumoscope.models.references import locate_model

if TYPE_CHECKING:
    from pneumoscope.models.classifier import Backbone
    from pneumoscope.training.settings import NetworkSettings


@dataclass(frozen=True)
class InitialModel:
    """A model that a run continues from, except its backbone."""

    lineage: tuple[Step, ...]  # of a model that continues from it
    labels: tuple[str, ...]  # its classes
    head: Mapping[str, Tensor]  # weight and bias of its last layer
    seen: frozenset[str]  # digests of the images that it learned from

    @property
    def parent(self) -> Parent:
        """What a model that continues from it states about it."""
        return self.lineage[-1].parent


def load_initial(settings: NetworkSettings) -> tuple[InitialModel, BackboneSpec, Backbone]:
    """Load the model that `init` names, and say what its backbone is.

    Raises:
        UsageError: `weights` or another `backbone` is given too, or it is an export, which cannot be trained.
        ModelError: there is no model, or it is damaged.
    """
    folder = locate_model(str(settings.init), "init")
    model = load_model(folder)
    usual = type(settings)().backbone
    if settings.weights is not None or settings.backbone not in (usual, model.backbone):
        other = "weights" if settings.weights is not None else "backbone"
        raise UsageError(f"the model names its own network, {model.backbone}. Leave out `{other}`.", "init")
    weights = load_weights(folder, model)
    if not any(name.startswith("backbone.") for name in weights):
        raise UsageError(
            f"{folder}: an exported model cannot be trained. Name the model that it was made from.", "init"
        )
    spec = replace(
        find_backbone(model.backbone), architecture=model.architecture, arguments=model.arguments, input=model.input
    )
    head = {name.removeprefix("head."): tensor for name, tensor in weights.items() if name.startswith("head.")}
    return _describe(name_model(folder), model, head), spec, rebuild_backbone(model, weights)


def describe_backbone(pretrained: str) -> InitialModel:
    """What is known about a backbone that is that of a pretrained model, whose head is not used."""
    return replace(_describe(pretrained, load_model(find_pretrained(pretrained)), {}), labels=())


def _describe(name: str, model: Model, head: Mapping[str, Tensor]) -> InitialModel:
    step = Step(to_parent(name, model), TRAINED, __version__)
    return InitialModel((*model.lineage, step), model.labels, head, frozenset(model.data.get("seen", ())))
