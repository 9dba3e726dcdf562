"""The pretrained models, each in a folder beside this module; its name can be given wherever a model is expected."""

from __future__ import annotations

from pathlib import Path

from pneumoscope.errors import UsageError

DEFAULT = "all-ages-lite0"
DESCRIPTION = "model.json"


def pretrained_folder() -> Path:
    """The folder that holds a folder for every pretrained model."""
    return Path(__file__).parent


def list_pretrained() -> tuple[str, ...]:
    """Names of the pretrained models of this installation, the default first."""
    names = (path.parent.name for path in pretrained_folder().glob(f"*/{DESCRIPTION}"))
    return tuple(sorted(names, key=lambda name: (name != DEFAULT, name)))


def find_pretrained(name: str = DEFAULT) -> Path:
    """The folder of a pretrained model.

    Raises:
        UsageError: there is none of that name.
    """
    names = list_pretrained()
    if name in names:
        return pretrained_folder() / name
    if names:
        raise UsageError(f"There is no pretrained model {name!r}. Available: {', '.join(names)}.", "model")
    raise UsageError(
        "This installation has no pretrained model. Train one (pneumoscope train DATA --out RUN) and name its folder.",
        "model",
    )
