"""`pneumoscope.tune`: search for settings on validation images, and measure the best ones once on the test split."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt

from pneumoscope.config import Count, Progress, checked
from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.samples import describe_counts
from pneumoscope.errors import DataError, MissingExtraError, UsageError
from pneumoscope.evaluation.metrics import NAMES
from pneumoscope.files import lock_folder
from pneumoscope.inference.cache import MEMORY, FeatureCache, open_cache
from pneumoscope.notebook import Drawn, notebook_progress, to_frame, to_html
from pneumoscope.reports.pages import format_command, format_number
from pneumoscope.reports.tuning import PAGE, RESULT, Search, Test, read_search, write_search
from pneumoscope.tasks.ray_tasks import On, Pool, choose_pool
from pneumoscope.tasks.reach import describe_places
from pneumoscope.text import counted
from pneumoscope.training.data import Setup, read_split_samples
from pneumoscope.training.distributed import refuse_several
from pneumoscope.training.idle import log_idle
from pneumoscope.training.run_folder import log_to, read_settings, write_settings
from pneumoscope.training.search_folder import BEST, RUN, SPACE, STORE, Design, find_storage, open_search
from pneumoscope.training.search_space import Space, apply, describe, list_variants, show
from pneumoscope.training.settings import Settings, resolve_settings
from pneumoscope.training.train import resolve, train
from pneumoscope.training.trials import Parts, Trainer, divide

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

LOWER_IS_BETTER = ("brier",)
_PATIENCE = 60.0  # seconds to wait for another process that begins the same search
_LONG = 86400.0  # for one that tests its best settings


@dataclass(frozen=True)
class Tuning(Drawn):
    """A finished search for settings.

    Attributes:
        folder: where it is.
        settings: the best ones.
        search: all trials, and the test of the best settings.
    """

    folder: Path
    settings: Settings
    search: Search

    def __repr__(self) -> str:
        return f"Tuning({self._describe()})"

    def _describe(self) -> str:
        search, name = self.search, NAMES[self.search.metric]
        test = "" if search.test is None else f", test {format_number(search.test.metrics[search.metric].value)}"
        best = format_number(search.best_trial.score or math.nan)
        return f"{self.folder}; {len(search.trials)} trials, {name}: best on validation {best}{test}"

    def _repr_html_(self) -> str:
        return to_html(self._describe(), self.to_rows())

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a row for each trial, with its settings and score; what it does not have is None."""
        return self.search.to_rows()

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each trial.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return to_frame(self.to_rows())

    @property
    def config(self) -> Path:
        """The file of the best settings, which `train` takes as `config`."""
        return self.folder / BEST

    @property
    def run(self) -> Path | None:
        """The run with the best settings, if they were tested."""
        return None if self.search.test is None else self.folder / RUN

    @property
    def report(self) -> Path:
        """The report's file."""
        return self.folder / PAGE


@checked
def tune(
    data: str | Path | None = None, out: str | Path = "runs/tune", *, trials: Count | None = None,
    timeout: Annotated[float, Gt(0)] | None = None, space: str | Path | dict[str, Any] | None = None,
    folds: Annotated[int, Ge(1)] | None = None, metric: str | None = None, storage: str | None = None,
    test: bool = True, on: On = "local", address: str | None = None, workers: Count | None = None,
    cpus_per_worker: Count | None = None, config: Settings | str | Path | None = None, resume: bool = False,
    overwrite: bool = False, cache: FeatureCache | bool = True, progress: Progress = notebook_progress, **options: Any,
) -> Tuning:  # fmt: skip
    """Search for the settings with the best metric on validation images, then measure them once on the test split.

    The images of the splits train and val are divided into folds by patient. A trial trains on all folds but one and is
    measured on that one, fold by fold; it stops early where others did better. The test split is read only after the
    search. Several processes with the same arguments share the trials; the last one tests the best settings.

    Args:
        data: folder or table; None if `config` or the search to resume names it.
        out: folder to write.
        trials: how many trials, counting all processes and earlier starts; by default 50.
        timeout: seconds after which this process begins no more trials.
        space: what to change: `head`, `finetune`, a YAML file, or its content; by default as the recipe needs.
        folds: their number, by default 5; 1 measures on the validation split, which also stops training.
        metric: auroc (the default), average_precision, accuracy, f1, mcc or brier; the mean over the folds counts.
        storage: URL of a database, SQLite or PostgreSQL; by default a SQLite file in `out`.
        test: whether to train with the best settings and measure on the test split at the end.
        on: `local`, or `ray` for a Ray cluster, whose machines must reach data and `out` under the same paths.
        address: of the cluster, `HOST:PORT` or `auto`; by default `$RAY_ADDRESS`, else one on this machine.
        workers: trials at the same time on the cluster; by default one for each core.
        cpus_per_worker: cores for each of them, by default 1.
        config: settings, or a YAML file of them, such as a run's `config.yaml`.
        resume: continue an interrupted search.
        overwrite: whether to replace an earlier search in `out`.
        cache: keeps features: True for the user's on disk, False for none, or a given one.
        progress: called as `progress(task, done, total)`; by default bars in a notebook.
        **options: any setting of `pneumoscope.training.settings` by its name; `space` overrides it.

    Raises:
        UsageError, DataError, DownloadError: settings, space, data or database that cannot be used, or `out` exists.
        ServiceError, MissingExtraError: the cluster cannot be used; Optuna, Ray or a driver is missing.
    """
    folder, pool = Path(out), _choose_pool(on, address, workers, cpus_per_worker)
    options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    options["path"] = None if data is None else str(data)
    base = resolve(options, folder, config, resume, overwrite)
    if base.data.strict and not test:
        raise UsageError("has no effect without the test at the end, before which the data are audited.", "strict")
    samples, drawn = read_split_samples(base)
    with lock_folder(folder, _PATIENCE):
        given = {"metric": metric, "folds": folds, "trials": trials}
        design, domains = open_search(folder, base, samples, given, space, storage, resume, overwrite)
    with log_to(folder / "log.txt"), ExitStack() as stack:
        found = read_search(folder / RESULT) if (folder / RESULT).exists() else None
        if found is not None and found.test is not None:
            return _give_finished(folder, found, trials)
        features = stack.enter_context(open_cache(cache)) or stack.enter_context(FeatureCache(MEMORY))
        named, parts = [key for key, each in options.items() if each is not None], divide(samples, base, design.folds)
        job = _Job(folder, base, design, domains, parts, drawn, named, features, progress, pool)
        study = stack.enter_context(job.open(storage or find_storage(folder, design), overwrite))
        job.search(study, trials or design.trials, timeout)
        with lock_folder(folder, _LONG):
            return job.finish(study, test)


@dataclass(frozen=True, eq=False)
class _Job:
    """A search that runs."""

    folder: Path
    base: Settings
    design: Design
    space: Space
    parts: Parts
    drawn: Collection[str]  # splits that the data do not have
    named: Collection[str]  # settings that were given, even if with the value that they have anyway
    cache: FeatureCache
    progress: Progress
    pool: Pool | None  # of a cluster

    @contextmanager
    def open(self, url: str, renew: bool) -> Iterator[Study]:
        """The study in its database; `renew` deletes an earlier one."""
        from pneumoscope.training import studies

        lower, seed = self.design.metric in LOWER_IS_BETTER, self.base.run.seed
        usual = studies.find_usual(self.space, self.base)
        with studies.quiet(), studies.open_study(url, self.design.study, lower, seed, usual, renew=renew) as study:
            yield study

    def search(self, study: Study, trials: int, timeout: float | None) -> None:
        """Run trials in this process, or on the cluster while any are to be done."""
        from pneumoscope.training import studies, trial_tasks

        metric = self.design.metric
        self._log(trials)
        best: list[float] = []

        def report(trial: FrozenTrial) -> None:
            shown = ", ".join(f"{name} {show(value)}" for name, value in trial.params.items())
            if trial.value is None or trial.state.name != "COMPLETE":  # the value of others is of fewer folds
                level = logging.WARNING if (fault := trial.user_attrs.get("remark")) else logging.DEBUG
                _logger().log(level, "Trial %d was stopped early: %s", trial.number, fault or shown)
            elif not best or (trial.value < min(best) if metric in LOWER_IS_BETTER else trial.value > max(best)):
                best.append(trial.value)
                _logger().info("Trial %d: %s %.4f, %s", trial.number, NAMES[metric], trial.value, shown)

        if self.pool is not None and studies.count_finished(study) < trials:
            places = describe_places(self.folder, self.folder / "samples.csv", [s.path for s in self.parts.samples[0]])
            work = trial_tasks.Work(self.parts, metric, self.space, self.base, places)
            with trial_tasks.open_search(work, self.pool, self.cache, self.progress) as search:
                self._log_idle(search.setup)
                search.run(study, trials, timeout, report)
            return
        trainer = Trainer(self.parts, metric, self.cache, self.progress)
        self._log_idle(trainer.prepare(self.base))
        objective = studies.make_objective(trainer, self.space, self.base)
        studies.run_trials(study, objective, trials, timeout, report, self.progress)

    def finish(self, study: Study, test: bool) -> Tuning:
        """Write the best settings, test them once, and write the page; once for all processes.

        Raises:
            DataError: no trial was completed.
        """
        from pneumoscope.training import studies

        if (self.folder / RESULT).exists() and (found := read_search(self.folder / RESULT)).test is not None:
            return _give_finished(self.folder, found, None)
        trials = studies.list_trials(study)
        if not any(each.score is not None for each in trials):
            remark = next((each.remark for each in trials if each.remark), "")
            raise DataError(f"No trial was completed ({len(trials)} tried). {remark or 'Allow more time or trials.'}")
        importance = studies.find_importance(study, self.base.run.seed)
        usual = studies.find_usual(self.space, self.base)
        same = [each.number for each in trials if each.score is not None and usual and each.settings == usual]
        search = Search(
            self.design.metric, self.design.metric in LOWER_IS_BETTER, self.design.folds, self.base.run.seed, trials,
            study.best_trial.number, importance, same[0] if same else None,
        )  # fmt: skip
        settings = apply(self.base, search.best_trial.settings)
        write_settings(self.folder / BEST, settings)
        other = study.user_attrs.get("tested in")
        if other is not None and Path(other) != self.folder.resolve():
            search = replace(search, notes=(f"Another process measures the test split; see {other}.",))
        elif test:
            self._write(search, settings)  # in case the test is interrupted
            study.set_user_attr("tested in", str(self.folder.resolve()))
            search = replace(search, test=self._test(settings))
        self._write(search, settings)
        return Tuning(self.folder, settings, search)

    def _test(self, settings: Settings) -> Test:
        """Train with the best settings and measure on the test split."""
        out = self.folder / RUN
        _logger().info("Training with the best settings, and measuring on the test split.")
        begun = (out / "config.yaml").exists()
        run = train(out=out, config=None if begun else settings, resume=begun, cache=self.cache, progress=self.progress)
        held_out = {sample.path.resolve() for sample in self.parts.held_out}
        if held_out != {each.path.resolve() for each in read_samples(out / "samples.csv") if each.split == "test"}:
            raise DataError(f"{out}: the data changed during the search, so this test is not honest. Start again.")
        found = run.evaluation
        return Test(found.n, found.patients, found.metrics, found.confidence)

    def _log_idle(self, setup: Setup) -> None:
        """Warn of settings that have no effect on any trial."""
        from pneumoscope.training import studies

        settings = setup.settings
        replaced = [] if studies.find_usual(self.space, settings) else [n for n in self.named if n in self.space]
        for name in replaced:  # not even the first trial has it
            _logger().warning("`%s` has no effect: the space sets it in every trial.", name)
        drawn = {*self.drawn, "val"} if self.design.folds > 1 else self.drawn
        setup = replace(setup, samples=self.parts.samples[0], drawn=drawn)
        log_idle(setup, {*self.named} - {*replaced}, list_variants(self.space, settings))

    def _log(self, trials: int) -> None:
        learned = [sample for part in self.parts.samples[:1] for sample in part]
        count = len(self.parts.samples)
        _logger().info(
            "%d trials on %s images, %s. %s of the test split are not used until the end.",
            trials,
            f"{len(learned):,}",
            f"each in {count} folds by patient" if count > 1 else "each measured on the validation split",
            counted(len(self.parts.held_out), "image"),
        )

    def _write(self, search: Search, settings: Settings) -> None:
        folder, run = self.folder, settings.run
        facts = {
            "Data": settings.data.path,
            "Splits": describe_counts([*self.parts.samples[0], *self.parts.held_out])
            if self.design.folds == 1
            else f"{len(self.parts.samples[0]):,} images in {self.design.folds} folds by patient; "
            f"{len(self.parts.held_out):,} for the test",
            "Recipe": f"{run.recipe}, {'whole network' if settings.network.train_backbone else 'head only'}",
            "Space": "; ".join(f"{name}: {describe(domain)}" for name, domain in self.space.items()),
            "Seed": str(run.seed),
            "Storage": self.design.storage or STORE,
            "Command": format_command(
                "tune", config=str(folder / "config.yaml"), space=str(folder / SPACE), folds=self.design.folds,
                metric=self.design.metric, trials=self.design.trials, out="NEW_FOLDER",
            ),
            "Train again": format_command("train", config=str(folder / BEST), out="NEW_RUN"),
        }  # fmt: skip
        write_search(folder, search, facts, run.plot_formats, run.excel)


def _give_finished(folder: Path, search: Search, trials: int | None) -> Tuning:
    """The finished search of a folder, whose best settings were tested.

    Raises:
        UsageError: more trials are wanted, after the test.
    """
    if trials is not None and trials > search.count("complete") + search.count("stopped early"):
        raise UsageError(
            f"the search in {folder} is finished, and its best settings were measured on the test split. More trials "
            "would need a second test. Start another search, with `test=False` until the last one.",
            "trials",
        )
    _logger().info("The search in %s is finished.", folder)
    return Tuning(folder, resolve_settings({}, read_settings(folder / BEST), str(folder / BEST)), search)


def _choose_pool(on: On, address: str | None, workers: int | None, cpus_per_worker: int | None) -> Pool | None:
    """The pool that options describe; also checks that this process is alone and all packages are there."""
    refuse_several("tune")
    _require_optuna()
    if on == "local" and workers is not None:
        raise UsageError("has no effect without `on='ray'`. Start the command several times instead.", "workers")
    return choose_pool(on, address, workers, cpus_per_worker)


def _require_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError as problem:
        raise MissingExtraError(f'{problem.name} is not installed: pip install "pneumoscope[tune]".') from None


def _logger() -> logging.Logger:
    return logging.getLogger("pneumoscope")
