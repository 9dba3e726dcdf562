"""The folds of a cross-validation: dividing the images, and training one fold as a run of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch

from pneumoscope.auditing.intake import MEASUREMENT
from pneumoscope.config import Progress, silent
from pneumoscope.datasets.duplicates import group_identical
from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.samples import Sample, format_samples
from pneumoscope.datasets.splits import REDRAW, find_shared_patients, fold_samples
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.evaluate import Plan, measure
from pneumoscope.evaluation.validation import measure_validation
from pneumoscope.files import lock_folder, remove_partial, write_text
from pneumoscope.images.read import Reading
from pneumoscope.inference.cache import FeatureCache
from pneumoscope.inference.features import Wanted, extract_features
from pneumoscope.inference.predictor import load
from pneumoscope.inference.runtimes import count_threads
from pneumoscope.text import counted
from pneumoscope.training.data import Computing, Setup, check_classes, check_stated, prepare_computing, read
from pneumoscope.training.record import RECORD, check_files, load_remarks
from pneumoscope.training.run_folder import CHECKPOINTS, hush, log_to, open_run, resume_settings
from pneumoscope.training.settings import DataSettings, Settings
from pneumoscope.training.train import make_model

FOLDS = "folds"  # the folder of their runs and tables


@dataclass(frozen=True)
class Design:
    """How images are divided, as `crossval.yaml` records it."""

    folds: int
    repeats: int
    include_test: bool  # whether the images of a split test are divided, too


@dataclass(frozen=True)
class Division:
    """The images of a dataset, divided into folds."""

    design: Design
    samples: Sequence[Sample]  # N images that were divided, as the data list them
    held_out: Sequence[Sample]  # images of the split test, which no fold sees
    folds: Mapping[tuple[int, int], Sequence[Sample]]  # by repeat and fold: all N images with their splits there


@dataclass(frozen=True)
class Job:
    """One fold to train."""

    name: tuple[int, int]  # repeat and fold, from 1 on
    folder: Path  # of its run
    settings: Settings  # with its table of samples as data


@dataclass(frozen=True, eq=False)
class Shared:
    """What folds in one process share while their training leaves the backbone as it is."""

    setup: Setup  # of the first fold
    computing: Computing


def divide(settings: Settings, design: Design) -> Division:
    """Read the samples and divide them, whatever train and val splits they have; each repeat has its own seed.

    Raises:
        UsageError, DataError: the data cannot be used, or have too few patients.
    """
    check_stated(settings)
    data = settings.data
    samples = read_samples(Path(data.path), data.patient_pattern, Reading(data.invert, data.any_modality), data)
    held_out = [] if design.include_test else [sample for sample in samples if sample.split == "test"]
    chosen = [sample for sample in samples if design.include_test or sample.split != "test"]
    if not chosen:
        raise DataError(
            f"{data.path}: all {len(samples):,} images are in the split test, which stays out. Divide them too with "
            "`include_test=True`."
        )
    check_classes(settings, chosen)
    groups = group_identical(chosen)
    divided: dict[tuple[int, int], Sequence[Sample]] = {}
    for repeat in range(design.repeats):
        drawn = fold_samples(
            chosen, design.folds, val_fraction=data.val_fraction, groups=groups, seed=settings.run.seed + repeat
        )
        divided |= {(repeat + 1, fold + 1): each for fold, each in enumerate(drawn)}
    return Division(design, chosen, held_out, divided)


def find_leak(division: Division) -> str | None:
    """Say how many patients of the images that stay out are also among those divided, if any."""
    apart = [replace(sample, split="train") for sample in division.samples]
    shared = len(find_shared_patients([*apart, *division.held_out]))
    if not shared:
        return None
    return (
        f"{counted(shared, 'patient')} of the split test, which stays out, also {'has' if shared == 1 else 'have'} "
        f"images in the folds: a model that learned from the folds knows them. Re-split with {REDRAW}."
    )


def prepare_jobs(settings: Settings, division: Division, folder: Path) -> list[Job]:
    """Name the runs and tables of the folds, and write the tables, or check those of an earlier start.

    Raises:
        DataError: the data, or the content of images, changed since then.
    """
    jobs: list[Job] = []
    for (repeat, fold), samples in division.folds.items():
        run = folder / FOLDS / f"repeat-{repeat}-fold-{fold}"
        table = run.with_suffix(".csv")
        content = format_samples(samples, table.parent)
        if table.exists() and table.read_bytes() != content.encode():
            raise DataError(
                f"{settings.data.path}: the data have changed since the cross-validation in {folder} began ({table}). "
                "Start a new one."
            )
        table.parent.mkdir(exist_ok=True)
        write_text(table, content)
        if (run / RECORD).exists():
            check_files(run, samples)
        data = _name_columns(settings.data, table, any(sample.patient for sample in samples))
        if jobs:  # the images are the same, so one check of the data is enough
            data = replace(data, audit=False, strict=False)
        own = replace(
            settings,
            data=data,
            run=replace(settings.run, seed=settings.run.seed + repeat - 1),
        )
        jobs.append(Job((repeat, fold), run, own))
    return jobs


def _name_columns(data: DataSettings, table: Path, patients: bool) -> DataSettings:
    """The settings that read a table of `write_samples`, in which all else has already taken effect."""
    return DataSettings(
        path=str(table), positive=data.positive, intended_use=data.intended_use, audit=data.audit, strict=data.strict,
        path_column="path", label_column="label", patient_column="patient" if patients else "none",
        split_column="split",
    )  # fmt: skip


def extract_all(setup: Setup, cache: FeatureCache, progress: Progress) -> Computing:
    """Compute what every fold needs of every image, once, and keep it in the cache; give what computes it."""
    computing = prepare_computing(setup)
    wanted = Wanted(mirror=True, measurement=MEASUREMENT if setup.settings.data.audit else None)
    extracting = extract_features(setup.samples, computing.engine, setup.input, wanted, cache)
    for done, _ in enumerate(extracting, start=1):
        progress("Features", done, len(setup.samples))
    return computing


def is_finished(job: Job) -> bool:
    """Whether a fold's run has a model and its test predictions."""
    if not (job.folder / RECORD).exists() or not (job.folder / "metrics.json").exists():
        return False
    return load_remarks(job.folder) is not None


def train_folds(jobs: Sequence[Job], cache: Path, workers: int, shared: Shared, progress: Progress) -> None:
    """Train the folds that are not finished, several at a time with more than one worker.

    Raises:
        UsageError: a process cannot be started, or ended early.
    """
    waiting = [job for job in jobs if not is_finished(job)]
    done = len(jobs) - len(waiting)
    progress("Folds", done, len(jobs))
    if workers == 1:
        finished = _train_in_turn(waiting, cache, shared, progress)
    else:
        finished = _train_at_once(waiting, cache, workers)
    for number, _ in enumerate(finished, start=done + 1):
        progress("Folds", number, len(jobs))


def _train_in_turn(jobs: Sequence[Job], cache: Path, shared: Shared, progress: Progress) -> Iterator[None]:
    for job in jobs:
        if shared.setup.changes_backbone:
            train_fold(job, cache, progress=_prefix(progress, "{}.{}".format(*job.name)))
        else:
            train_fold(job, cache, shared)
        yield


def _prefix(progress: Progress, name: str) -> Progress:
    """Progress within a fold that takes long."""
    return lambda task, done, total: progress(f"Fold {name}: {task}", done, total)


def _train_at_once(jobs: Sequence[Job], cache: Path, workers: int) -> Iterator[None]:
    threads = max(1, count_threads() // workers)
    # `spawn`: a copy of a process with threads of PyTorch may hang.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _limit_threads, (threads,))
    try:
        for future in as_completed([pool.submit(train_fold, job, cache) for job in jobs]):
            future.result()
            yield
    except BrokenProcessPool:
        raise UsageError(
            "a process ended early. In a script, call this below `if __name__ == '__main__':`; if memory ran out, use "
            "fewer. Continue with `resume=True`.",
            "workers",
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _limit_threads(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for the engines
    torch.set_num_threads(threads)


def train_fold(
    job: Job, cache: Path | FeatureCache, shared: Shared | None = None, progress: Progress = silent,
    patience: float = 0.0,
) -> None:  # fmt: skip
    """Train one fold, or continue its training, and measure it on its test images.

    Its folder is that of a run without a report, which `pneumoscope train --out FOLDER --resume` adds. `patience`:
    seconds to wait until another process releases the folder.
    """
    folder = job.folder
    with hush():
        opening = nullcontext(cache) if isinstance(cache, FeatureCache) else FeatureCache(cache)
        with lock_folder(folder, patience), opening as opened:
            began = (folder / "config.yaml").exists()
            remove_partial(folder)
            settings = resume_settings(folder, {}) if began else job.settings
            if job.settings.run.device != "auto":  # a fold may have begun on another kind of device
                settings = replace(settings, run=replace(settings.run, device=job.settings.run.device))
            setup = read(settings, shared.setup if shared else None)
            open_run(folder, setup, resume=began, overwrite=False)
            with log_to(folder / "log.txt"):
                remarks, engine = load_remarks(folder), None
                if remarks is None:
                    setup, remarks, engine = make_model(
                        setup, folder, opened, progress, shared.computing if shared else None
                    )
                predictor = load(folder / "model", setup.device.type, opened, engine=engine or "auto")
                run = setup.settings.run
                plan = Plan("test", resamples=run.resamples, seed=run.seed, patient_ids=run.patient_ids)
                measure(
                    predictor, setup.select("test"), folder, replace(plan, excel=run.excel), notes=remarks.notes,
                    validation=measure_validation(predictor, setup.select("val"), plan),
                    progress=lambda _, done, total: progress("Test", done, total),
                )  # fmt: skip
                shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
