"""The commands that list networks: those to start from, and the trained ones that ship."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pneumoscope.models.shipped import DEFAULT
from pneumoscope.terminal import open_console, printable

if TYPE_CHECKING:
    from pneumoscope.datasets.sources import Source
    from pneumoscope.models.bundle import Bundle

_USES = {"train": "to train", "val": "to decide on"}
_NAMES = {"auroc": "AUROC", "accuracy": "accuracy", "sensitivity": "sensitivity", "specificity": "specificity"}

Model = Annotated[
    Path | None,
    typer.Option(help=f"A bundle, a run that holds one, or the name of a model that ships. [default: {DEFAULT}]"),
]


def backbones() -> None:
    """List the pretrained networks known by name: where their weights are, and under which licence."""
    from rich.table import Table

    from pneumoscope.models.backbones import is_available, list_backbones

    table = Table(box=None, pad_edge=False)
    for column in ("backbone", "input", "weights", "here", "licence"):
        table.add_column(column, no_wrap=True)
    for spec in list_backbones():
        source = "with the installation" if spec.package else spec.source
        table.add_row(spec.name, f"{spec.input.size} px", source, "yes" if is_available(spec) else "no", spec.licence)
    open_console().print(table)
    typer.echo("Any other timm name works too. Where the hub is out of reach: --weights FILE.", err=True)


def models() -> None:
    """List the trained models that ship: what they were trained on, how good they are, and what to cite."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pneumoscope.models.bundle import load_bundle
    from pneumoscope.models.shipped import find_shipped, list_shipped, zoo

    names = list_shipped()
    for name in names:
        folder = find_shipped(name)
        size = sum(path.stat().st_size for path in folder.iterdir())
        facts = {**_describe(load_bundle(folder)), "size": f"{size / 1e6:.1f} MB"}
        title = Text(name, "bold") + Text(" (default)" if name == DEFAULT else "", "not bold")
        if not sys.stdout.isatty():  # a pipe gets whole lines
            typer.echo("\n".join([title.plain, *(f"  {key}: {printable(value)}" for key, value in facts.items())]))
            continue
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column()
        for key, value in facts.items():
            table.add_row(Text(f"  {key}"), Text(printable(value)))
        console = Console(highlight=False)
        console.print(title)
        console.print(table)
    said = f"For research; not a medical device. Model cards: {zoo() / 'NAME' / 'README.md'}"
    typer.echo(said if names else "No model ships with this installation.", err=True)


def introduce(name: str, bundle: Bundle) -> str:
    """Say in a line which model it is, what it knows, and what it is not for."""
    source = _find_source(bundle)
    films = sum(bundle.data["counts"].get("train", {}).values())
    shown = f": {source.population}" if source else ""
    return f"Model: {name}, trained on {films:,} films{shown}. For research; not a medical device."


def _describe(bundle: Bundle) -> dict[str, str]:
    counts, source = bundle.data["counts"], _find_source(bundle)
    trained = [_count(counts[split], f"films {use}") for split, use in _USES.items() if split in counts]
    said = {
        "classes": ", ".join(f"{label} (positive)" if label == bundle.positive else label for label in bundle.labels),
        "network": bundle.backbone,
        "input": f"{bundle.input.size} × {bundle.input.size} pixels, {bundle.input.fit}",
        "trained": "; ".join(trained),
    }
    if bundle.positive is not None:
        said["called"] = f"{bundle.positive} from a probability of {bundle.thresholds['decision']:.3g} on"
    if source is not None:
        said["films"] = source.population
    if test := bundle.training.get("test"):
        figures = ", ".join(
            f"{_NAMES[name]} {_show(test['metrics'][name])}" for name in _NAMES if name in test["metrics"]
        )
        said["test"] = f"{figures}; {test['n']:,} films"
        if decisions := test.get("decisions"):
            answered, foreign = decisions["answered"], sum(decisions["foreign"].values())
            said["decided"] = f"{answered['value']:.0%} of them; {foreign} called foreign" + "".join(
                f"; {label} in its label set {_show(one)}" for label, one in decisions.get("coverage", {}).items()
            )
        if test.get("note"):
            said["about the test"] = test["note"]
    if source is not None:
        said["data"] = f"{source.licence} ({source.licence_url}): {source.citation.partition(' With: ')[0]}"
    return said


def _count(counts: dict[str, int], use: str) -> str:
    return f"{sum(counts.values()):,} {use} ({', '.join(f'{count:,} {label}' for label, count in counts.items())})"


def _show(interval: dict[str, Any]) -> str:
    limits = "" if interval["low"] is None else f" ({interval['low']:.3f} to {interval['high']:.3f})"
    return f"{interval['value']:.3f}{limits}"


def _find_source(bundle: Bundle) -> Source | None:
    """The public data set that a model was trained on, where its bundle names one that is known here."""
    from pneumoscope.datasets.sources import list_sources

    return next((source for source in list_sources() if source.name == bundle.data.get("source")), None)
