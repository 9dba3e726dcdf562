"""The trained models that ship, in `pretrained_models/` beside this module: a name stands for each."""

from __future__ import annotations

from pathlib import Path

from pneumoscope.errors import UsageError

DEFAULT = "pneumonia-lite0"
DESCRIPTION = "model.json"


def pretrained_folder() -> Path:
    """The folder that holds a folder for every model that ships; it may be missing."""
    return Path(__file__).with_name("pretrained_models")


def list_pretrained() -> tuple[str, ...]:
    """Names of the models that ship with this installation, the default first."""
    return tuple(
        sorted(
            (path.parent.name for path in pretrained_folder().glob(f"*/{DESCRIPTION}")),
            key=lambda name: (name != DEFAULT, name),
        )
    )


def find_pretrained(name: str = DEFAULT) -> Path:
    """The folder of a model that ships.

    Raises:
        UsageError: there is none of that name.
    """
    names = list_pretrained()
    if name in names:
        return pretrained_folder() / name
    if names:
        raise UsageError(f"No model {name!r} ships with this installation. There are: {', '.join(names)}.")
    raise UsageError(
        "No model ships with this installation. Train one (pneumoscope train DATA --out RUN) and give it: --model RUN, "
        'or pneumoscope.load("RUN").'
    )
