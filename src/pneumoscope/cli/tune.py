"""`tune`: search for settings on validation images. Its options include all settings of training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pneumoscope.cli.options import COMPUTING, Address, Cache, CpusPerWorker, On, Out, Overwrite, option
from pneumoscope.cli.output import count_images, echo, make_table, open_console, show_interval
from pneumoscope.cli.progress import show_progress

if TYPE_CHECKING:
    from pneumoscope.training.tuning import Tuning

_SEARCH = "Search"  # panel of --help


def tune(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Argument(help="Folder with a subfolder per class, or a table (.csv, .parquet).", metavar="DATA"),
    ] = None,
    out: Out = Path("runs/tune"),
    trials: Annotated[
        int | None, option("Number of trials, in all processes together. [default: 50]", _SEARCH, least=1)
    ] = None,
    timeout: Annotated[float | None, option("Begin no more trials after this many seconds.", _SEARCH)] = None,
    space: Annotated[
        str | None,
        option("What to change: head, finetune, or a YAML file of settings with their values or ranges.", _SEARCH),
    ] = None,
    folds: Annotated[
        int | None,
        option("Folds by patient; 1 measures on the validation split. [default: 5]", _SEARCH, least=1, most=100),
    ] = None,
    metric: Annotated[
        str | None,
        option("Metric to search by: auroc, average_precision, accuracy, f1, mcc or brier. [default: auroc]", _SEARCH),
    ] = None,
    storage: Annotated[
        str | None, option("URL of a SQLite or PostgreSQL database. [default: a file in the folder]", _SEARCH)
    ] = None,
    test: Annotated[bool, option("Measure the best settings on the test split at the end, once.", _SEARCH)] = True,
    on: On = "local",
    address: Address = None,
    workers: Annotated[
        int | None,
        option("With --on ray: trials at the same time. [default: as many as there are cores]", COMPUTING, least=1),
    ] = None,
    cpus_per_worker: CpusPerWorker = None,
    config: Annotated[Path | None, option("YAML file of settings, such as a run's config.yaml.")] = None,
    resume: Annotated[bool, option("Continue an interrupted search.", None, "--resume")] = False,
    overwrite: Overwrite = False,
    cache: Cache = True,
) -> None:
    """Search for better settings on validation images, and test the best ones once.

    Start it several times with the same --out to share the trials among processes.
    """
    again = f"pneumoscope tune --out {out} --resume{'' if test else ' --no-test'}"
    with show_progress(f" Continue it with: {again}") as progress:
        from pneumoscope.training import tuning as job

        result = job.tune(
            data, out, trials=trials, timeout=timeout, space=space, folds=folds, metric=metric, storage=storage,
            test=test, on=on, address=address, workers=workers, cpus_per_worker=cpus_per_worker, config=config,
            resume=resume, overwrite=overwrite, cache=cache, progress=progress, **context.obj,
        )  # fmt: skip
    print_tuning(result)


def print_tuning(result: "Tuning") -> None:
    """Print the best settings, their validation score, and the test metrics."""
    from pneumoscope.evaluation.metrics import NAMES
    from pneumoscope.training.search_space import show

    search, usual = result.search, result.search.usual_trial
    complete, stopped = search.count("complete"), search.count("stopped early")
    echo(f"{len(search.trials)} trials: {complete} complete, {stopped} stopped early\n")
    other = [] if usual is None or search.usual == search.best else ["recipe"]
    shares = ["importance"] if search.importance else []
    table = make_table(["setting"], ["best", *other, *shares])
    for name, value in search.best_trial.settings.items():
        cells = [show(value), *([show(usual.settings.get(name))] if other and usual else [])]
        cells += [f"{search.importance[name]:.0%}" if name in search.importance else ""] if shares else []
        table.add_row(name, *cells)
    open_console().print(table)
    if search.unimportant:
        echo(search.unimportant)
    name = NAMES[search.metric]
    where = f"{search.folds} folds" if search.folds > 1 else "the validation split"
    recipe = f"; recipe: {usual.score:.3f}" if other and usual and usual.score is not None else ""
    echo(f"\n{name} on {where}: {search.best_trial.score:.3f}{recipe}. It is optimistic, as the best of many.")
    if search.test is not None:
        echo(f"\nTest of the best settings: {count_images(search.test.n, search.test.patients)}\n")
        metrics = make_table(["metric"], ["value", "95% interval"])
        for metric, interval in search.test.metrics.items():
            metrics.add_row(metric.replace("_", " "), *show_interval(interval))
        open_console().print(metrics)
    else:
        echo("The test split was not read.")
    echo(f"\nBest:   {result.config}\nReport: {result.report}")
