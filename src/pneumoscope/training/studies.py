"""The study behind `tune`: Optuna's sampler, pruner and storage. Only this and `trial_tasks` import Optuna."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import sqlalchemy as sql
from optuna.pruners import BasePruner
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages._rdb.models import TrialHeartbeatModel, TrialModel
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from pneumoscope.config import Progress
from pneumoscope.errors import DataError, MissingExtraError, UsageError
from pneumoscope.reports.tuning import FEWEST, TrialResult
from pneumoscope.training.search_space import Choices, Space, apply, contains, has_effect, is_whole
from pneumoscope.training.settings import Settings
from pneumoscope.training.trials import Trainer

HEARTBEAT, GRACE = 5, 30  # seconds between signs of life of a trial, and without one until it is given up
RETRIES = 3  # of a trial whose process died
_STARTUP = 10  # trials drawn at random before the sampler learns from them
_PRUNED_FROM = 10  # trials with a fold before one may be stopped after it
_STATES = {
    TrialState.COMPLETE: "complete", TrialState.PRUNED: "stopped early", TrialState.FAIL: "interrupted",
    TrialState.RUNNING: "running", TrialState.WAITING: "waiting",
}  # fmt: skip
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


class SeededSampler(TPESampler):
    """Tree-structured Parzen estimator (Bergstra et al. 2011) whose draws depend on seed, trial and earlier trials.

    An interrupted study continues with the same trials as without the interruption. Processes draw different ones.
    """

    def __init__(self, seed: int) -> None:
        self._base = seed
        super().__init__(seed=seed, n_startup_trials=_STARTUP)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Seed this trial: by its place among those that did not fail, as a failed one is drawn again."""
        failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        place = trial.number - sum(each.number < trial.number for each in failed)
        seed = int(np.random.SeedSequence([self._base, place]).generate_state(1)[0])
        super().__init__(seed=seed, n_startup_trials=_STARTUP)
        super().before_trial(study, trial)


class FoldPruner(BasePruner):
    """Stops a trial whose mean over the folds so far is in the worst quarter of all trials that had these folds.

    Optuna's own pruners compare a trial's best value at any step, but folds differ in difficulty. They also compare
    with complete trials alone. As only good ones become complete, their median rises, and good trials are stopped, too:
    so the best settings of the small task were missed in 8 of 19 searches (docs/log.md).
    """

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether to stop."""
        step = trial.last_step
        others = study.get_trials(deepcopy=False, states=FINISHED)
        values = [each.intermediate_values[step] for each in others if step in each.intermediate_values]
        if step is None or len(values) < _PRUNED_FROM:
            return False
        lower = study.direction == optuna.study.StudyDirection.MINIMIZE
        value, limit = trial.intermediate_values[step], float(np.quantile(values, 0.75 if lower else 0.25))
        return value > limit if lower else value < limit


class _Storage(RDBStorage):
    """Optuna's, but a trial whose process died before its first sign of life is given up, too."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._silent: dict[int, float] = {}

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        now = time.monotonic()
        with Session(self.engine) as session:
            query = (
                sql.select(TrialModel.trial_id)
                .outerjoin(TrialHeartbeatModel, TrialHeartbeatModel.trial_id == TrialModel.trial_id)
                .where(TrialModel.study_id == study_id, TrialModel.state == TrialState.RUNNING)
                .where(TrialHeartbeatModel.trial_id.is_(None))
            )
            self._silent = {each: self._silent.get(each, now) for each in session.scalars(query)}
        for each, since in self._silent.items():
            if now - since > GRACE:
                self.record_heartbeat(each)  # the last one, unless the process lives after all
        return super()._get_stale_trial_ids(study_id)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Optuna's messages, because ours say the same."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


def hide_password(url: str) -> str:
    """A database's URL as it may be shown and stored.

    Raises:
        UsageError: it is not a URL, or it is of another kind of database.
    """
    try:
        parsed = make_url(url)
    except (SQLAlchemyError, ValueError):
        parsed = None
    if parsed is None or parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise UsageError(
            "must be the URL of a SQLite or PostgreSQL database, such as sqlite:///study.db or "
            "postgresql+pg8000://user@host/database.",
            "storage",
        )
    if "password" in parsed.query:
        raise UsageError("has a password after the `?`, which would be stored: write user:password@host.", "storage")
    return parsed.render_as_string(hide_password=True)


def check_storage(url: str) -> None:
    """Connect to a database once.

    Raises:
        UsageError: it cannot be reached.
        MissingExtraError: its driver is not installed.
    """
    with _translate(url):
        engine = sql.create_engine(_choose_driver(url))
        try:
            engine.connect().close()
        finally:
            engine.dispose()


def _choose_driver(url: str) -> sql.URL:
    parsed = make_url(url)
    return parsed.set(drivername="postgresql+pg8000") if parsed.drivername == "postgresql" else parsed


@contextmanager
def _translate(url: str) -> Iterator[None]:
    """Turn errors of the database and its driver into ours."""
    shown = hide_password(url)
    try:
        yield
    except ImportError as problem:
        raise MissingExtraError(
            f'{shown}: its driver is not installed: pip install "pneumoscope[serve]". ({problem})', "storage"
        ) from None
    except (OSError, SQLAlchemyError, optuna.exceptions.StorageInternalError) as problem:
        reason = str(getattr(problem, "orig", None) or problem).splitlines()[0][:200]
        raise UsageError(f"{shown}: cannot be opened: {reason}.", "storage") from None


@contextmanager
def open_study(
    url: str, name: str, lower: bool, seed: int, begin: Mapping[str, Any], *, renew: bool = False
) -> Iterator[Study]:
    """Open a study, and make it if it is new.

    Args:
        url: of the database.
        name: of the study in it.
        lower: whether lower scores are better.
        seed: of the sampler.
        begin: the settings of the first trial of a new study; if empty, they are drawn, too.
        renew: whether to delete an earlier study of this name.

    Raises:
        UsageError: the database cannot be reached.
        MissingExtraError: its driver is not installed.
    """
    address = _choose_driver(url)
    sqlite = address.get_backend_name() == "sqlite"
    with _translate(url):
        storage = _Storage(
            address.render_as_string(hide_password=False),
            {"connect_args": {"timeout": 60} if sqlite else {}, "pool_pre_ping": not sqlite},
            heartbeat_interval=HEARTBEAT,
            grace_period=GRACE,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=RETRIES),
        )
        if sqlite:  # a writer waits for another one from its beginning on, instead of failing later
            sql.event.listen(storage.engine, "connect", _set_up_sqlite)
            sql.event.listen(storage.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
            storage.engine.dispose()
        if renew and name in optuna.get_all_study_names(storage):
            optuna.delete_study(study_name=name, storage=storage)
        study = optuna.create_study(
            storage=storage, study_name=name, direction="minimize" if lower else "maximize", load_if_exists=True,
            sampler=SeededSampler(seed), pruner=FoldPruner(),
        )  # fmt: skip
    trials = study.get_trials(deepcopy=False)
    if begin and all(each.state == TrialState.FAIL for each in trials):
        study.enqueue_trial(dict(begin))
    try:
        yield study
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _set_up_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # the driver would begin transactions by itself, and later


def find_usual(space: Space, base: Settings) -> dict[str, Any]:
    """The values of `base` for the settings of a space, or nothing if one of them is not in the space."""
    values = {name: value for group in vars(base).values() for name, value in vars(group).items() if name in space}
    values = {name: values[name] for name in space if has_effect(name, values, base)}
    return values if all(contains(space[name], value) for name, value in values.items()) else {}


def suggest(trial: Trial, space: Space, base: Settings) -> dict[str, Any]:
    """Draw the settings of a trial, and leave out those that have no effect beside the others."""
    chosen: dict[str, Any] = {}
    for name, domain in space.items():
        if not has_effect(name, chosen, base):
            continue
        if isinstance(domain, Choices):
            chosen[name] = trial.suggest_categorical(name, domain.values)
        elif is_whole(name):
            low, high = int(domain.low), int(domain.high)
            chosen[name] = trial.suggest_int(name, low, high, log=domain.log, step=int(domain.step or 1))
        else:
            chosen[name] = trial.suggest_float(name, domain.low, domain.high, log=domain.log, step=domain.step)
    return chosen


def make_objective(trainer: Trainer, space: Space, base: Settings) -> Callable[[Trial], float]:
    """What a trial does: draw settings, and train and measure part by part, until all are done or it is stopped."""

    def objective(trial: Trial) -> float:
        settings = apply(base, suggest(trial, space, base))
        score, scores = None, list[float]()
        while score is None:
            try:
                found: float | DataError = trainer.score(settings, len(scores))
            except DataError as problem:  # such as a learning rate with which the loss is not finite
                found = problem
            score = add_score(trial, scores, found, len(trainer.parts.samples))
        return score

    return objective


def add_score(trial: Trial, scores: list[float], found: float | DataError, parts: int) -> float | None:
    """Add what a trial scored on its next part; give its score after the last one.

    Raises:
        TrialPruned: the trial stops here.
    """
    if isinstance(found, DataError) or math.isnan(found):
        remark = f"fold {len(scores) + 1}: the metric is not defined" if isinstance(found, float) else str(found)
        trial.set_user_attr("remark", remark)
        raise optuna.TrialPruned
    scores.append(found)
    trial.set_user_attr("folds", scores)
    trial.report(mean := math.fsum(scores) / len(scores), len(scores) - 1)
    if len(scores) == parts:
        return mean
    if trial.should_prune():
        raise optuna.TrialPruned
    return None


def run_trials(
    study: Study, objective: Callable[[Trial], float], trials: int, timeout: float | None,
    on_trial: Callable[[FrozenTrial], None], progress: Progress,
) -> None:  # fmt: skip
    """Run trials until the study has this many, over all processes; then wait for those of other processes.

    A trial of a process that died is run again.

    Args:
        study: as `open_study` gives it.
        objective: gives the score of a trial.
        trials: how many must be finished, including earlier ones.
        timeout: seconds after which this process begins no more trials.
        on_trial: called after each trial of this process.
        progress: called as `progress("Trials", done, trials)`.
    """
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        optuna.storages.fail_stale_trials(study)
        states = [each.state for each in study.get_trials(deepcopy=False)]
        done = sum(state in FINISHED for state in states)
        progress("Trials", min(done, trials), trials)
        over = done >= trials or (end is not None and time.monotonic() >= end)
        running = states.count(TrialState.RUNNING)
        if over and not running:
            return
        if over or (done + running >= trials and TrialState.WAITING not in states):
            time.sleep(1)  # for other processes, whose trials may have to be run again
            continue
        try:
            study.optimize(objective, n_trials=1, callbacks=[lambda _, trial: on_trial(trial)])
        except optuna.exceptions.UpdateFinishedTrialError:  # this process slept so long that it was given up
            continue


def count_finished(study: Study) -> int:
    """How many trials are complete, or were stopped early."""
    return len(study.get_trials(deepcopy=False, states=FINISHED))


def find_importance(study: Study, seed: int) -> dict[str, float]:
    """The share of the differences between complete trials that each setting explains (fANOVA, Hutter et al. 2014).

    The shares sum to 1. Empty where there are too few trials, or all scores are equal.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < FEWEST or len({each.value for each in complete}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(value) for name, value in found.items()}


def list_trials(study: Study) -> tuple[TrialResult, ...]:
    """All trials, as page and tables need them."""
    return tuple(
        TrialResult(
            number=each.number,
            state=_STATES[each.state],
            score=each.value if each.state == TrialState.COMPLETE else None,
            folds=tuple(each.user_attrs.get("folds", ())),
            settings=dict(each.params),
            seconds=None if each.duration is None else each.duration.total_seconds(),
            repeats=each.system_attrs.get("failed_trial"),
            remark=each.user_attrs.get("remark", ""),
        )
        for each in study.get_trials(deepcopy=False)
    )


def open_file(path: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite:///{path.resolve().as_posix()}"
