"""`train` and `demo`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from pneumoscope.cli.options import NoCache, Out, Overwrite, Seed, open_cache
from pneumoscope.cli.output import print_run, show_progress


def _plain(hint: Any) -> Any:
    """The bare type of an annotated field, without None."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    options = [each for each in get_args(hint) if each is not type(None)]
    return _plain(options[0]) if type(None) in get_args(hint) else hint


def settings_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for every field of `Settings` in place of its `**options`."""
    from pneumoscope.training.settings import DEFAULT, Settings, find_recipe

    usual = {"recipe": DEFAULT, **find_recipe(DEFAULT)}
    hints = get_type_hints(Settings, include_extras=True)
    parameters = [
        parameter
        for parameter in inspect.signature(function, eval_str=True).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    for name, hint in hints.items():
        if name == "data":
            continue
        kind = _plain(hint)
        default = usual.get(name, Settings.__dataclass_fields__[name].default)
        shown = "" if default in (None, "") else f" [default: {f'{default:.3g}' if kind is float else default}]"
        flag = f"--{name.replace('_', '-')}"
        option = typer.Option(
            f"{flag}/--no-{flag[2:]}" if kind is bool else flag, help=hint.__metadata__[-1].documentation + shown
        )
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
            )
        )

    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return function


@settings_options
def train(
    data: Annotated[
        Path | None,
        typer.Argument(help="Folder with a subfolder per class, or a table (.csv, .parquet).", metavar="DATA"),
    ] = None,
    out: Out = Path("runs/latest"),
    config: Annotated[Path | None, typer.Option(help="YAML file of settings, such as a run's config.yaml.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    overwrite: Overwrite = False,
    no_cache: NoCache = False,
    **options: Any,
) -> None:
    """Train a classifier on labelled radiographs, and evaluate it."""
    hint = f" Continue it with: pneumoscope train --out {out} --resume"
    with show_progress(hint) as progress, open_cache(no_cache) as cache:
        from pneumoscope.training import train as job

        run = job.train(
            data, out, config=config, resume=resume, overwrite=overwrite, cache=cache, progress=progress, **options
        )
    print_run(run)


def demo(
    out: Out = Path("runs/demo"),
    images: Annotated[int, typer.Option(min=40, help="Number of simulated radiographs.")] = 600,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Draw simulated radiographs, train on them and report, offline."""
    from pneumoscope.datasets.phantom_sets import write_phantoms
    from pneumoscope.files import claim_folder

    data = out.parent / f"{out.name or 'demo'}-images"
    with show_progress() as progress:
        from pneumoscope.training import train as job

        claim_folder(out, job.RUN_FILES, overwrite)
        claim_folder(data, ("truth.csv", "masks", "train", "val", "test"), overwrite)
        write_phantoms(data, count=images, seed=seed, progress=progress)
        note = "Simulated radiographs: the metrics show that the pipeline works, and nothing about patients."
        run = job.train(data, out, recipe="head", seed=seed, progress=progress, notes=[note])
    print_run(run)
