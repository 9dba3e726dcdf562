"""`models`, `backbones` and `export`: which networks there are, and models for other runtimes."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pneumoscope.cli import options
from pneumoscope.cli.app import PanelCommand, make_group
from pneumoscope.cli.options import option
from pneumoscope.cli.output import echo, make_table, open_console
from pneumoscope.cli.progress import show_progress
from pneumoscope.models.pretrained import DEFAULT
from pneumoscope.text import printable, printable_line

if TYPE_CHECKING:
    from pneumoscope.datasets.sources import Source
    from pneumoscope.models.model_folder import Model

_METRICS = {"auroc": "AUROC", "accuracy": "accuracy", "sensitivity": "sensitivity", "specificity": "specificity"}

_Model = Annotated[str, typer.Argument(help=options.MODEL, metavar="MODEL")]
models_app = make_group("List, describe and share trained models.")


@models_app.command("list", cls=PanelCommand)
def list_models() -> None:
    """List the pretrained models and whom each is meant for; `models show` has the test results."""
    from pneumoscope.decisions.decisions import read_decisions
    from pneumoscope.decisions.scope import Scope, describe
    from pneumoscope.models.model_folder import load_model
    from pneumoscope.models.pretrained import find_pretrained, list_pretrained

    names = list_pretrained()
    if not names:
        echo("This installation has no pretrained models.", err=True)
        return
    table = make_table(["model", "classes", "meant for"], ["size"])
    for name in names:
        folder = find_pretrained(name)
        model = load_model(folder)
        patients = describe(Scope(read_decisions(model).scope.ages))  # views and others do not fit 80 columns
        table.add_row(name, printable_line(", ".join(model.labels)), patients, _show_size(folder))
    open_console().print(table)
    echo(f"Default: {DEFAULT}. Test results and more: pneumoscope models show NAME.", err=True)


@models_app.command("show", cls=PanelCommand)
def show_model(
    model: _Model = DEFAULT,
) -> None:
    """Show what a model was trained on, how good it is, what to cite, and its card."""
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.table import Table
    from rich.text import Text

    from pneumoscope.models.model_folder import find_model, load_model
    from pneumoscope.models.references import locate_model

    folder = find_model(locate_model(model))
    card = _read_card(folder)
    facts = {**_describe(load_model(folder), folder), "size": _show_size(folder), "card": str(folder / "README.md")}
    if not sys.stdout.isatty():  # whole lines for a pipe
        echo("\n".join(f"{name}: {printable_line(value)}" for name, value in facts.items()))
        echo(f"\n{card}" if card else "", end="")
        return
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(Text(name, "bold"), Text(printable_line(value)))
    console = Console(highlight=False)
    console.print(table)
    if card:
        console.print("", Markdown(card, hyperlinks=False))


def _read_card(folder: Path) -> str:
    """The text of a model's card without the metadata before it; empty where there is none."""
    from pneumoscope.files import read_regular
    from pneumoscope.models.sharing import divide_card

    try:
        text = read_regular(folder / "README.md", 1 << 20).decode("utf-8", "replace")
    except OSError:
        return ""
    return printable(divide_card(text)[1])


@models_app.command("push", cls=PanelCommand)
def push_model(
    model: _Model,
    name: Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face hub.", metavar="NAME")],
    private: Annotated[bool, option("Only you, and people you invite, can see it.", None, "--private")] = False,
    message: Annotated[str | None, option("What to say about the change in the history on the hub.")] = None,
    licence: Annotated[
        str | None, option("Licence as the hub calls it, such as apache-2.0. [default: what the card says]")
    ] = None,
    yes: Annotated[bool, option("Do not ask first.", None, "--yes")] = False,
) -> None:
    """Publish a model on the Hugging Face hub: its files and card, and no images.

    Log in first: hf auth login. On a terminal, the command shows what it will upload and asks first.
    """
    from pneumoscope.models import sharing

    folder, files = sharing.list_shared(model)
    whom = "visible to you and people you invite" if private else "public if the name is new"
    echo(f"{folder} goes to {name}, {whom}:\n{_list_files(files)}", err=True)
    if sys.stdin.isatty() and not yes and not typer.confirm("Upload?", err=True):
        raise typer.Exit(130)  # as when it is interrupted: nothing was uploaded
    pushed = sharing.push(model, name, private=private, message=message, licence=licence)
    echo(f"{pushed.page}: commit {pushed.commit}")


@models_app.command("pull", cls=PanelCommand)
def pull_model(
    name: Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face hub.", metavar="NAME")],
    out: options.Out,
    revision: Annotated[str | None, option("Branch, tag or commit. [default: the main branch]")] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Fetch a model from the Hugging Face hub into a folder, and check every file."""
    from pneumoscope.models import sharing

    pulled = sharing.pull(name, out, revision=revision, overwrite=overwrite)
    echo(f"{pulled.page}: commit {pulled.commit}\n{_list_files(pulled.files)}", err=True)
    echo(out)


def _list_files(files: Mapping[str, int]) -> str:
    return "\n".join(f"  {name}  {size / 1e6:.1f} MB" for name, size in files.items())


def backbones() -> None:
    """List the backbones known by name, their weights and licences."""
    from pneumoscope.models.backbones import is_available, list_backbones

    table = make_table(["backbone", "input", "weights", "here", "licence"])
    for spec in list_backbones():
        source = "with the installation" if spec.package or spec.model else spec.source
        table.add_row(spec.name, f"{spec.input.size} px", source, "yes" if is_available(spec) else "no", spec.licence)
    open_console().print(table)
    echo("Any other timm name works too. If the hub is out of reach: pneumoscope train --weights FILE.", err=True)


def export(
    context: typer.Context,
    out: options.Out,
    model: options.Model = None,
    to: Annotated[
        Literal["onnx", "openvino", "int8", "torch", "monai"],
        option("ONNX, OpenVINO, ONNX in 8 bits, a torch.export program, or a MONAI bundle."),
    ] = "onnx",
    data: Annotated[
        Path | None, option("Images for the check and for the int8 ranges. [default: those of the run]")
    ] = None,
    invert: options.Invert = False,
    any_modality: options.AnyModality = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Convert a model for another runtime, and check it on images.

    Nothing is written if the converted model decides differently.
    """
    from pneumoscope import exporting as job
    from pneumoscope.evaluation.conversion_check import describe_check
    from pneumoscope.images.read import Reading

    reading = Reading(invert, any_modality)
    with show_progress() as progress:
        result = job.export(
            out, choose_model(model), to, data, reading=reading, naming=context.obj, overwrite=overwrite,
            progress=progress,
        )  # fmt: skip
    echo(f"{result.folder}: {result.size / 1e6:.1f} MB\n{describe_check(result.check)}")


def choose_model(model: str | None) -> str | Path:
    """The model given, or else the pretrained default, which is introduced on standard error.

    Raises:
        ModelError: the default is damaged.
        UsageError: no model is given, and there is no pretrained one.
    """
    if model is not None:
        return model
    from pneumoscope.datasets.sources import find_sources
    from pneumoscope.models.model_folder import load_model
    from pneumoscope.models.pretrained import find_pretrained

    folder = find_pretrained()
    description = load_model(folder)
    images = sum(description.data.get("counts", {}).get("train", {}).values())
    population = _join_populations(find_sources(description.data.get("sources", ())))
    population = f": {population}" if population else ""
    text = f"Model: {DEFAULT}, trained on {images:,} images{population}. For research; not a medical device."
    echo(text, err=True)
    return folder


def _read_test(folder: Path) -> dict[str, Any]:
    """What the run around a model measured on its test split; nothing where there is no run."""
    import json

    path = folder.parent / "metrics.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        values = json.loads(path.read_text(encoding="utf-8"))
        if folder.name == "model" and (folder.parent / "samples.csv").is_file() and values["split"] == "test":
            return {name: values.get(name) for name in ("metrics", "n", "decisions")}
    return {}


def _describe(model: "Model", folder: Path) -> dict[str, str]:
    from pneumoscope.datasets.sources import find_sources
    from pneumoscope.decisions.decisions import read_decisions
    from pneumoscope.decisions.groups import describe as describe_group
    from pneumoscope.decisions.scope import describe
    from pneumoscope.models import lineage

    counts, sources = model.data.get("counts", {}), find_sources(model.data.get("sources", ()))
    earlier = find_sources(lineage.name_earlier_sources(model.lineage))
    splits = (("train", "to train"), ("val", "to validate"))
    facts = {
        "classes": ", ".join(f"{label} (positive)" if label == model.positive else label for label in model.labels),
        **_list_statements(model),
        "network": model.backbone,
        "input": f"{model.input.size} × {model.input.size} pixels, {model.input.fit}",
        "trained on": "; ".join(
            _show_counts(counts[split], f"images {use}") for split, use in splits if any(counts.get(split, {}).values())
        ),
    }
    if ensemble := model.training.get("ensemble"):
        repeats = f", {ensemble['repeats']} times" if ensemble["repeats"] > 1 else ""
        folds = f"cross-validation with {ensemble['folds']} folds{repeats}"
        facts["ensemble"] = f"its head is the mean of {ensemble['models']} heads ({folds})"
    if model.lineage:
        facts["lineage"] = lineage.describe_lineage(model.lineage)
    if (threshold := read_decisions(model).threshold) is not None:
        facts["threshold"] = f"{threshold.value:.3g} for {model.positive}"
    if by_class := read_decisions(model).class_thresholds:
        named = zip(model.labels, by_class, strict=True)
        facts["thresholds"] = ", ".join(f"{value:.3g} for {name}" for name, value in named)
    if intended := describe(read_decisions(model).scope):
        facts["meant for"] = intended
    if groups := read_decisions(model).groups:
        adapted = bool(lineage.find_adaptations(model.lineage))
        facts["groups"] = "; ".join(describe_group(group, adapted=adapted) for group in groups)
    if sources:
        facts["images"] = _join_populations(sources)
    if test := model.training.get("test") or _read_test(folder):
        metrics = [
            f"{shown} {_show(test['metrics'][name])}" for name, shown in _METRICS.items() if name in test["metrics"]
        ]
        facts["test"] = f"{', '.join(metrics)}; {test['n']:,} images"
        if decisions := test.get("decisions"):
            answered, ood = decisions["answered"], sum(decisions["out_of_distribution"].values())
            facts["decisions"] = f"{answered['value']:.0%} of test images get a label; {ood} are out of distribution"
            if coverage := decisions.get("coverage"):
                shares = (f"{label} {_show(share)}" for label, share in coverage.items())
                facts["decisions"] += f"; true class in the prediction set: {', '.join(shares)}"
        if test.get("note"):
            facts["about the test"] = test["note"]
    if cited := [*sources, *(each for each in earlier if each not in sources)]:
        facts["data"] = "; ".join(
            f"{each.licence} ({each.licence_url}): {each.citation.partition(' With: ')[0]}" for each in cited
        )
    return facts


def _list_statements(model: "Model") -> dict[str, str]:
    """What the makers of a model stated."""
    about = model.about
    stated = {
        "author": about.author, "licence": about.terms, "data source": about.data_source, "consent": about.consent,
        "funding": about.funding,
    }  # fmt: skip
    return {name: text for name, text in stated.items() if text}


def _show_counts(counts: dict[str, int], use: str) -> str:
    return f"{sum(counts.values()):,} {use} ({', '.join(f'{count:,} {label}' for label, count in counts.items())})"


def _show(interval: dict[str, Any]) -> str:
    low, high = interval.get("low"), interval.get("high")
    bounds = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
    return f"{interval['value']:.3f}{bounds}"


def _show_size(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.iterdir()) / 1e6:.1f} MB"


def _join_populations(sources: "Sequence[Source]") -> str:
    return "; ".join(dict.fromkeys(each.population for each in sources))
