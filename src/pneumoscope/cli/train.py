"""`train` and `demo`. The options of `train` are the settings of training, in one panel of `--help` for each group."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pneumoscope.cli.app import PanelCommand, make_options
from pneumoscope.cli.options import OUTPUT, Cache, Out, Overwrite, Seed, option
from pneumoscope.cli.output import print_run
from pneumoscope.cli.progress import show_progress
from pneumoscope.training.distributed import find_rank

if TYPE_CHECKING:
    from typer._click import Context, Parameter


class SettingsCommand(PanelCommand):
    """A command with an option for every setting; the options are made when it is called, not on import."""

    def get_params(self, ctx: "Context") -> "list[Parameter]":
        """All parameters: its own, and the settings."""
        return [*super().get_params(ctx), *_make_options()]

    def parse_args(self, ctx: "Context", args: list[str]) -> list[str]:
        """Parse the command line; the settings go to `ctx.obj`, all else to the function."""
        rest = super().parse_args(ctx, args)
        ctx.obj = {str(option.name): ctx.params.pop(str(option.name)) for option in _make_options()}
        return rest


@functools.cache
def _make_options() -> "tuple[Parameter, ...]":
    """An option for every setting; its value is None where it is not given."""
    from pneumoscope.training.settings import list_options

    options = []
    for setting in list_options():
        shown = f"{setting.default:.3g}" if isinstance(setting.default, float) else setting.default
        text = setting.help + ("" if shown in (None, "") else f" [default: {shown}]")
        options.append((setting.name, setting.kind, text, setting.panel))
    return make_options(options)


def train(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Argument(help="Folder with a subfolder per class, or a table (.csv, .parquet).", metavar="DATA"),
    ] = None,
    out: Out = Path("runs/latest"),
    config: Annotated[Path | None, option("YAML file of settings, such as a run's config.yaml.")] = None,
    test: Annotated[
        bool, option("Read the test split and measure on it; --no-test measures on the validation split instead.", None)
    ] = True,
    resume: Annotated[bool, option("Continue an interrupted run.", None, "--resume")] = False,
    overwrite: Overwrite = False,
    cache: Cache = True,
    log_to: Annotated[str, option("Also log to mlflow, tensorboard, or both: mlflow,tensorboard.", OUTPUT)] = "",
) -> None:
    """Train a classifier on labelled radiographs, and evaluate it. `torchrun` starts it in several processes."""
    again = f"pneumoscope train --out {out} --resume{'' if test else ' --no-test'}"
    with show_progress(f" Continue it with: {again}") as progress:
        from pneumoscope.training import train as job

        run = job.train(
            data, out, config=config, test=test, resume=resume, overwrite=overwrite, cache=cache, log_to=log_to,
            progress=progress,
            **context.obj,
        )  # fmt: skip
    if find_rank() == 0:  # the first of several processes shows the result
        print_run(run)


def demo(
    out: Out = Path("runs/demo"),
    images: Annotated[int, option("Number of simulated radiographs.", least=40)] = 600,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Draw simulated radiographs, train on them and write a report, offline."""
    from pneumoscope.datasets.phantom_sets import write_phantoms
    from pneumoscope.files import claim_folder, lock_folder

    data = out.parent / f"{out.name or 'demo'}-images"
    with show_progress() as progress:
        from pneumoscope.training import train as job
        from pneumoscope.training.run_folder import RUN_FILES

        with lock_folder(out), lock_folder(data):
            claim_folder(out, RUN_FILES, overwrite)
            claim_folder(data, ("truth.csv", "masks", "train", "val", "test"), overwrite)
        write_phantoms(data, count=images, seed=seed, progress=progress)
        run = job.train(data, out, recipe="head", seed=seed, cache=False, progress=progress)
    print_run(run)
