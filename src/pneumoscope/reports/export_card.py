"""The card of an exported model: that of the model, with a section about the export."""

from __future__ import annotations

from pathlib import Path

from pneumoscope.decisions.decisions import read_decisions
from pneumoscope.files import write_text
from pneumoscope.models.model_folder import Model, find_model
from pneumoscope.reports.model_card import FILE


def read_card(model: Path) -> str:
    """The card of a model by its folder or run; empty if it has none."""
    path = find_model(model) / FILE
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def write_export_card(path: Path, card: str, model: Model, about: str) -> None:
    """Write the card of a model (empty if it has none), with a section that says `about`."""
    write_text(path, f"{card}\n## Export\n\n{about}{_describe_groups(model)}\n".lstrip())


def _describe_groups(model: Model) -> str:
    """Say that the network alone knows nothing of groups; empty where the model has none."""
    if not (groups := read_decisions(model).groups):
        return ""
    names = ", ".join(group.name for group in groups)
    return (
        f" The network's file gives logits and OOD scores of all images alike. The groups of the model ({names}) are "
        "applied by pneumoscope. Other programs find them under `decisions` in `model.json`, and under "
        "`pneumoscope.rules` in the metadata of `model.onnx`."
    )
