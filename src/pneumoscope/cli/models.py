"""The commands that list networks: those to start from, and the trained ones that ship."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pneumoscope.cli.output import open_console
from pneumoscope.models.pretrained import DEFAULT
from pneumoscope.text import printable

if TYPE_CHECKING:
    from pneumoscope.datasets.kermany import Source
    from pneumoscope.models.model_folder import Model

_USES = {"train": "to train", "val": "to decide on"}
_NAMES = {"auroc": "AUROC", "accuracy": "accuracy", "sensitivity": "sensitivity", "specificity": "specificity"}

ModelOption = Annotated[
    Path | None,
    typer.Option(help=f"A model, a run that holds one, or the name of a model that ships. [default: {DEFAULT}]"),
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

    from pneumoscope.models.model_folder import load_model
    from pneumoscope.models.pretrained import find_pretrained, list_pretrained, pretrained_folder

    names = list_pretrained()
    for name in names:
        folder = find_pretrained(name)
        size = sum(path.stat().st_size for path in folder.iterdir())
        facts = {**_describe(load_model(folder)), "size": f"{size / 1e6:.1f} MB"}
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
    said = f"For research; not a medical device. Model cards: {pretrained_folder() / 'NAME' / 'README.md'}"
    typer.echo(said if names else "No model ships with this installation.", err=True)


def introduce(name: str, model: Model) -> str:
    """Say in a line which model it is, what it knows, and what it is not for."""
    source = _find_source(model)
    images = sum(model.data["counts"].get("train", {}).values())
    shown = f": {source.population}" if source else ""
    return f"Model: {name}, trained on {images:,} images{shown}. For research; not a medical device."


def _describe(model: Model) -> dict[str, str]:
    counts, source = model.data["counts"], _find_source(model)
    trained = [_count(counts[split], f"images {use}") for split, use in _USES.items() if split in counts]
    said = {
        "classes": ", ".join(f"{label} (positive)" if label == model.positive else label for label in model.labels),
        "network": model.backbone,
        "input": f"{model.input.size} × {model.input.size} pixels, {model.input.fit}",
        "trained": "; ".join(trained),
    }
    if model.positive is not None:
        said["called"] = f"{model.positive} from a probability of {model.thresholds['decision']:.3g} on"
    if source is not None:
        said["images"] = source.population
    if test := model.training.get("test"):
        figures = ", ".join(
            f"{_NAMES[name]} {_show(test['metrics'][name])}" for name in _NAMES if name in test["metrics"]
        )
        said["test"] = f"{figures}; {test['n']:,} images"
        if decisions := test.get("decisions"):
            answered, ood = decisions["answered"], sum(decisions["out_of_distribution"].values())
            said["decided"] = f"{answered['value']:.0%} of them; {ood} called ood" + "".join(
                f"; {label} in its prediction set {_show(one)}" for label, one in decisions.get("coverage", {}).items()
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


def _find_source(model: Model) -> Source | None:
    """The public data set that a model was trained on, where its model names one that is known here."""
    from pneumoscope.datasets.kermany import list_sources

    return next((source for source in list_sources() if source.name == model.data.get("source")), None)
