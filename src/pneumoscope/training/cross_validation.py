"""`pneumoscope.cross_validate`: folds by patient, each a run of its own, measured together on unseen images."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from pneumoscope.config import Count, Progress, build, checked, read_mapping, write_mapping
from pneumoscope.errors import UsageError
from pneumoscope.evaluation.out_of_fold import Folds
from pneumoscope.evaluation.results import Evaluation
from pneumoscope.files import lock_folder
from pneumoscope.inference.cache import FeatureCache, open_cache
from pneumoscope.notebook import Drawn, notebook_progress, to_frame, to_html
from pneumoscope.reports.evaluation_report import OUTPUTS
from pneumoscope.tasks.ray_tasks import On, Pool, choose_pool
from pneumoscope.text import counted
from pneumoscope.training.data import Setup, read
from pneumoscope.training.distributed import refuse_several
from pneumoscope.training.ensemble import check_ensemble, save_ensemble
from pneumoscope.training.fold_results import RESULT, TABLE, Trained, predict_folds, write_results
from pneumoscope.training.fold_tasks import train_folds_on_ray
from pneumoscope.training.folds import FOLDS, Design, Division, Shared, divide, extract_all, prepare_jobs, train_folds
from pneumoscope.training.idle import log_idle
from pneumoscope.training.remarks import log_data
from pneumoscope.training.run_folder import claim_run, hush, log_to, write_settings
from pneumoscope.training.settings import Settings
from pneumoscope.training.train import resolve

DESIGN, CACHE, MODEL = "crossval.yaml", "cache", "model"
FILES = ("config.yaml", DESIGN, FOLDS, TABLE, RESULT, CACHE, MODEL, "log.txt", *OUTPUTS)


@dataclass(frozen=True)
class CrossValidation(Drawn):
    """A finished cross-validation.

    Attributes:
        folder: where it is.
        settings: those of each fold's training.
        folds: each fold's metrics, and their means with intervals.
        evaluation: metrics with intervals of the predictions of all folds together.
    """

    folder: Path
    settings: Settings
    folds: Folds
    evaluation: Evaluation

    def __repr__(self) -> str:
        return f"CrossValidation({self._describe()})"

    def _describe(self) -> str:
        return f"{self.folder}; {counted(len(self.folds.folds), 'fold')}, {self.evaluation.summary}"

    def _repr_html_(self) -> str:
        return to_html(self._describe(), self.to_rows())

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a row for each fold, with its metrics; undefined values are None."""
        return self.folds.to_rows()

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each fold.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return to_frame(self.to_rows())

    @property
    def runs(self) -> tuple[Path, ...]:
        """The folders of the folds' runs."""
        return tuple(self.folder / FOLDS / f"repeat-{each.repeat}-fold-{each.fold}" for each in self.folds.folds)

    @property
    def model(self) -> Path | None:
        """The folder of the model that was made of those of all folds, if it was."""
        return self.folder / MODEL if (self.folder / MODEL).is_dir() else None

    @property
    def report(self) -> Path:
        """The report's file."""
        return self.folder / "report.html"


@checked
def cross_validate(
    data: str | Path | None = None, out: str | Path = "runs/crossval", *, folds: Annotated[int, Ge(2)] | None = None,
    repeats: Count | None = None, include_test: bool = False, ensemble: bool = False, workers: Count | None = None,
    on: On = "local", address: str | None = None, cpus_per_worker: Count | None = None, resume: bool = False,
    config: Settings | str | Path | None = None, overwrite: bool = False, cache: FeatureCache | bool = True,
    progress: Progress = notebook_progress, **options: Any,
) -> CrossValidation:  # fmt: skip
    """Train on all folds but one and measure on that one, fold by fold, and report on all folds together.

    The folds are drawn by patient and stratified by class. Within each, validation images are drawn from its other
    images, and choose threshold, calibration and when training stops; its test images choose nothing. Images of
    the splits train and val are divided, whatever split they are in. Those of a split test stay out, unseen, for one
    final measurement.

    Args:
        data: folder or table; None if `config` or the cross-validation to resume names it.
        out: folder to write; each fold is a run below `folds`.
        folds: their number, by default 5.
        repeats: how often the images are divided, each time with the next seed; by default once.
        include_test: divide the images of a split test too.
        ensemble: also make one model of those of all folds, in `out`/model; for a frozen backbone.
        workers: folds trained at the same time; by default 1, on a cluster as many as it has cores for.
        on: `local`, or `ray` for a Ray cluster, whose machines must reach data and `out` under the same paths.
        address: of the cluster, `HOST:PORT` or `auto`; by default `$RAY_ADDRESS`, else one on this machine.
        cpus_per_worker: cores for each fold on the cluster, by default 1.
        config: settings, or a YAML file of them, such as a run's `config.yaml`.
        resume: continue an interrupted cross-validation; finished folds are kept.
        overwrite: whether to replace an earlier cross-validation in `out`.
        cache: keeps features: True for the user's on disk, False for none, or a given one. Folds always share them.
        progress: called as `progress(task, done, total)`; by default bars in a notebook.
        **options: any setting of `pneumoscope.training.settings` by its name, such as `recipe="finetune"`.

    Raises:
        UsageError, DataError, DownloadError: settings, data or weights that cannot be used, or `out` exists.
        ServiceError, MissingExtraError: the cluster cannot be used, or Ray is not installed.
    """
    folder, pool = Path(out), _choose_pool(on, address, workers, cpus_per_worker)
    options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    options["path"] = None if data is None else str(data)
    if options.get("test_fraction") is not None:
        raise UsageError("no effect: the folds are the test splits. Choose their number with `folds`.", "test_fraction")
    settings = resolve(options, folder, config, resume, overwrite)
    if ensemble:
        check_ensemble(settings)
    given = {"folds": folds, "repeats": repeats, "include_test": include_test or None}
    design = _read_design(folder, given) if resume else Design(folds or 5, repeats or 1, include_test)
    division = divide(settings, design)
    with lock_folder(folder):
        if not resume:
            claim_run(folder, FILES, overwrite)
            write_settings(folder / "config.yaml", settings)
            write_mapping(folder / DESIGN, design)
        with log_to(folder / "log.txt"), _share_cache(cache, folder) as shared:
            named = [name for name, value in options.items() if value is not None and name != "val_fraction"]
            trained = _train(folder, settings, division, named, shared, workers or 1, pool, progress)
            results = predict_folds(trained, progress)
            found, measured = write_results(trained, results)
            if ensemble:
                save_ensemble(folder / MODEL, trained, results, measured.evaluation)
    return CrossValidation(folder, settings, found, measured.evaluation)


def _choose_pool(on: On, address: str | None, workers: int | None, cpus_per_worker: int | None) -> Pool | None:
    """The pool that options describe; also checks that this process is alone."""
    refuse_several("cross_validate")
    return choose_pool(on, address, workers, cpus_per_worker)


def _train(
    folder: Path, settings: Settings, division: Division, named: Collection[str], cache: FeatureCache, workers: int,
    pool: Pool | None, progress: Progress,
) -> Trained:  # fmt: skip
    """Say how the images are divided, compute their features once, and train the folds."""
    jobs = prepare_jobs(settings, division, folder)
    with hush():
        setup = read(jobs[0].settings)
    _log_division(division, setup)
    log_idle(setup, named)
    if pool is not None:
        shared = train_folds_on_ray(jobs, setup, cache, pool, progress)
    else:
        shared = Shared(setup, extract_all(setup, cache, progress))
        train_folds(jobs, cache.path, workers, shared, progress)
    return Trained(folder, settings, setup, division, jobs, cache, shared.computing.engine)


def _read_design(folder: Path, given: Mapping[str, int | None]) -> Design:
    """How the cross-validation to resume divides the images.

    Raises:
        UsageError: there is none, or something else is given.
    """
    path = folder / DESIGN
    if not path.is_file():
        raise UsageError(f"{folder}: no cross-validation to resume. Start it without `resume=True`.")
    design = build(Design, read_mapping(path), str(path))
    for name, value in given.items():
        if value is not None and value != (began := getattr(design, name)):
            raise UsageError(
                f"the cross-validation in {folder} began with {began!r}, not {value!r}. Resume it without this option, "
                "or start another one.",
                name,
            )
    return design


@contextmanager
def _share_cache(cache: FeatureCache | bool, folder: Path) -> Iterator[FeatureCache]:
    """A cache on disk, which all folds share; without the user's or a given one, it is deleted at the end."""
    with open_cache(cache) as opened:
        if opened is not None and opened.path.name != ":memory:":
            yield opened
            return
    with FeatureCache(folder / CACHE / "features.sqlite") as own:
        yield own
    shutil.rmtree(folder / CACHE, ignore_errors=True)


def _log_division(division: Division, setup: Setup) -> None:
    design = division.design
    splits = sorted({str(sample.split) for sample in division.samples if sample.split})
    if splits:
        _logger().info("The images of %s are divided into folds, whatever split they are in.", " and ".join(splits))
    if division.held_out:
        _logger().info(
            "%s of the split test %s out: no fold sees them. Measure a final model on them, once, or divide them too "
            "with `include_test=True`.",
            counted(len(division.held_out), "image"),
            "stays" if len(division.held_out) == 1 else "stay",
        )
    times = f", {design.repeats} times" if design.repeats > 1 else ""
    _logger().info(
        "%s are divided into %d folds%s. The first:", f"{len(division.samples):,} images", design.folds, times
    )
    log_data(setup)


def _logger() -> logging.Logger:
    return logging.getLogger("pneumoscope")
