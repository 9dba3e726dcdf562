"""The trials of a search as tasks of a Ray cluster: each fold of a trial is one.

Only the process of the command uses the study: it draws settings, records scores and stops trials. So a worker needs
no database, and one that dies costs a fold.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from pneumoscope.config import Progress
from pneumoscope.errors import DataError, PneumoscopeError
from pneumoscope.inference.cache import CollectingCache, FeatureCache, unpack_cache
from pneumoscope.inference.runtimes import choose_device
from pneumoscope.tasks.ray_tasks import Handed, Pool, RayTasks, open_tasks
from pneumoscope.tasks.reach import Places, check_places
from pneumoscope.training.data import Setup
from pneumoscope.training.search_space import Space, apply
from pneumoscope.training.settings import Settings
from pneumoscope.training.studies import FINISHED, HEARTBEAT, add_score, suggest
from pneumoscope.training.trials import Parts, Trainer


@dataclass(frozen=True)
class Work:
    """What is searched, on which images, and where they are."""

    parts: Parts
    metric: str
    space: Space
    base: Settings
    places: Places


@dataclass(frozen=True, eq=False)
class _Ground:
    """What each process needs for all trials."""

    parts: Parts
    metric: str
    features: NDArray[np.uint8]  # of the base settings' backbone, packed


@dataclass(frozen=True, eq=False)
class _Running:
    """A trial that runs."""

    trial: Trial
    settings: Settings
    scores: list[float]  # of its folds so far


@contextmanager
def open_search(work: Work, pool: Pool, cache: FeatureCache, progress: Progress) -> Iterator[SearchOnRay]:
    """Open a cluster for a search, check its machines, and compute features here once.

    Raises:
        DataError: a machine does not reach the data or the output folder.
        ServiceError: the cluster cannot be used.
    """
    device: Literal["cpu", "cuda"] = "cuda" if choose_device(work.base.run.device).type == "cuda" else "cpu"
    with open_tasks(pool, gpus=int(device == "cuda")) as tasks:
        tasks.check(check_places, work.places)
        with CollectingCache(cache) as collected:
            setup = Trainer(work.parts, work.metric, collected, progress).prepare(work.base)
            ground = tasks.share(_Ground(work.parts, work.metric, collected.pack()))
        base = replace(work.base, run=replace(work.base.run, device=device))
        yield SearchOnRay(replace(work, base=base), tasks, ground, setup, progress)


class SearchOnRay:
    """A search on an open cluster.

    Attributes:
        setup: of the base settings.
    """

    def __init__(self, work: Work, tasks: RayTasks, ground: Handed[_Ground], setup: Setup, progress: Progress) -> None:
        self.setup = setup
        self._work, self._tasks, self._ground, self._progress = work, tasks, ground, progress
        self._running: dict[int, _Running] = {}

    def run(self, study: Study, trials: int, timeout: float | None, on_trial: Callable[[FrozenTrial], None]) -> None:
        """Run trials until the study has so many, as `studies.run_trials` does in one process."""
        end = None if timeout is None else time.monotonic() + timeout
        try:
            while True:
                optuna.storages.fail_stale_trials(study)
                done, running = self._fill(study, trials, end)
                self._progress("Trials", min(done, trials), trials)
                if not running and (done >= trials or (end is not None and time.monotonic() >= end)):
                    return
                if not self._running:
                    time.sleep(1)  # for other processes, whose trials may have to be run again
                    continue
                for number, found in self._tasks.wait(HEARTBEAT):
                    self._add(study, number, found, on_trial)
                self._give_signs_of_life(study)
        finally:
            for each in self._running.values():
                with suppress(Exception):  # the database may have gone
                    study.tell(each.trial, state=TrialState.FAIL, skip_if_finished=True)

    def _fill(self, study: Study, trials: int, end: float | None) -> tuple[int, int]:
        """Begin trials while there are workers for them; give how many are finished, and how many run anywhere."""
        while True:
            states = [each.state for each in study.get_trials(deepcopy=False)]
            done, running = sum(state in FINISHED for state in states), states.count(TrialState.RUNNING)
            over = done >= trials or (end is not None and time.monotonic() >= end)
            wanted = done + running < trials or TrialState.WAITING in states
            if over or not wanted or len(self._running) >= self._tasks.slots:
                return done, running
            self._begin(study)

    def _begin(self, study: Study) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna asks for signs of life, which `run` gives
            trial = study.ask()
        settings = apply(self._work.base, suggest(trial, self._work.space, self._work.base))
        self._running[trial.number] = _Running(trial, settings, [])
        self._give_signs_of_life(study)
        self._submit(trial.number)

    def _submit(self, number: int) -> None:
        begun = self._running[number]
        self._tasks.submit(number, _score, self._ground, begun.settings, len(begun.scores))

    def _add(self, study: Study, number: int, found: Any, on_trial: Callable[[FrozenTrial], None]) -> None:
        """Add the score of a fold; then its trial goes on with the next one, or ends."""
        if isinstance(found, PneumoscopeError) and not isinstance(found, DataError):
            raise found
        begun = self._running[number]
        try:
            score = add_score(begun.trial, begun.scores, found, len(self._work.parts.samples))
            if score is None:
                self._submit(number)
                return
            study.tell(begun.trial, score)
        except optuna.TrialPruned:
            study.tell(begun.trial, state=TrialState.PRUNED)
        except UpdateFinishedTrialError:  # this process slept so long that the trial was given up
            del self._running[number]
            return
        del self._running[number]
        on_trial(study.trials[number])

    def _give_signs_of_life(self, study: Study) -> None:
        for each in self._running.values():  # Optuna itself does so only in a process that runs a trial
            study._storage.record_heartbeat(each.trial._trial_id)  # type: ignore[attr-defined]


def _score(ground: Handed[_Ground], settings: Settings, part: int) -> float:
    return _open_trainer(ground).score(settings, part)


@functools.lru_cache(maxsize=1)
def _open_trainer(ground: Handed[_Ground]) -> Trainer:
    """The trainer of a process, which keeps features in memory."""
    given = ground.get()
    return Trainer(given.parts, given.metric, unpack_cache(given.features))
