"""The trained bundles that ship, in `zoo/` beside this module: a name stands for each."""

from __future__ import annotations

from pathlib import Path

from pneumoscope.errors import UsageError

DEFAULT = "pneumonia-lite0"
DESCRIPTION = "bundle.json"


def zoo() -> Path:
    """The folder that holds a folder for every bundle that ships; it may be missing."""
    return Path(__file__).with_name("zoo")


def list_shipped() -> tuple[str, ...]:
    """Names of the bundles that ship with this installation, the default first."""
    return tuple(
        sorted((path.parent.name for path in zoo().glob(f"*/{DESCRIPTION}")), key=lambda name: (name != DEFAULT, name))
    )


def find_shipped(name: str = DEFAULT) -> Path:
    """The folder of a bundle that ships.

    Raises:
        UsageError: there is none of that name.
    """
    names = list_shipped()
    if name in names:
        return zoo() / name
    if names:
        raise UsageError(f"No model {name!r} ships with this installation. There are: {', '.join(names)}.")
    raise UsageError(
        "No model ships with this installation. Train one (pneumoscope train DATA --out RUN) and give it: --model RUN, "
        'or pneumoscope.load("RUN").'
    )
