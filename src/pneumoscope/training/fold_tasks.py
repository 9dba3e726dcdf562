"""The folds of a cross-validation as tasks of a Ray cluster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import Progress
from pneumoscope.errors import DataError
from pneumoscope.inference.cache import CollectingCache, FeatureCache, unpack_cache
from pneumoscope.tasks.ray_tasks import Handed, Pool, open_tasks
from pneumoscope.tasks.reach import check_places, describe_places
from pneumoscope.training.data import Setup
from pneumoscope.training.folds import Job, Shared, extract_all, is_finished, train_fold

_PATIENCE = 120.0  # seconds until the worker of a killed command has ended, and files on a shared disk are visible


def train_folds_on_ray(
    jobs: Sequence[Job], setup: Setup, cache: FeatureCache, pool: Pool, progress: Progress
) -> Shared:
    """Compute features here once, and train the folds that are not finished on the machines of a cluster.

    Raises:
        DataError: a machine does not reach the data or the output folder.
        ServiceError: the cluster cannot be used.
    """
    waiting = [job for job in jobs if not is_finished(job)]
    if not waiting:
        return Shared(setup, extract_all(setup, cache, progress))
    table = jobs[0].folder.with_suffix(".csv")
    with open_tasks(pool, gpus=int(setup.device.type == "cuda")) as tasks, CollectingCache(cache) as collected:
        tasks.check(check_places, describe_places(table.parent, table, [each.path for each in setup.samples]))
        shared = Shared(setup, extract_all(setup, collected, progress))
        features = tasks.share(collected.pack())
        done = len(jobs) - len(waiting)
        progress("Folds", done, len(jobs))
        calls = [(_pin_device(job, setup), features) for job in waiting]
        for number, place in enumerate(tasks.run(_train, calls), start=done + 1):
            _wait_for(waiting[place])
            progress("Folds", number, len(jobs))
    return shared


def _pin_device(job: Job, setup: Setup) -> Job:
    """All folds are trained on the same kind of device, for which the task reserves a GPU or none."""
    return replace(job, settings=replace(job.settings, run=replace(job.settings.run, device=setup.settings.run.device)))


def _train(job: Job, features: Handed[NDArray[np.uint8]]) -> None:
    with unpack_cache(features.get()) as cache:
        train_fold(job, cache, patience=_PATIENCE)


def _wait_for(job: Job) -> None:
    """Wait until what another machine wrote is visible here.

    Raises:
        DataError: it does not appear.
    """
    end = time.monotonic() + _PATIENCE
    while not is_finished(job):
        if time.monotonic() > end:
            raise DataError(
                f"{job.folder}: a machine of the cluster has trained this fold, but the result is not here. Choose an "
                "output folder on a disk that all machines share."
            )
        _refresh(job.folder)
        time.sleep(0.5)


def _refresh(folder: Path) -> None:
    """List a folder, so that a network drive looks for new files."""
    for each in (folder.parent, folder):
        if each.is_dir():
            list(each.iterdir())
