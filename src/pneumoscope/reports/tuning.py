"""The page of a search for settings: its history, which settings matter, the best ones, and their honest test."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pneumoscope.errors import DataError
from pneumoscope.evaluation.metrics import NAMES
from pneumoscope.evaluation.results import Interval, without_nan
from pneumoscope.files import write_rows, write_text
from pneumoscope.reports.environment import describe_environment
from pneumoscope.reports.figures import Figure, save_figures
from pneumoscope.reports.pages import format_level, format_number, render
from pneumoscope.reports.plots import BLUE, INK, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pneumoscope.reports.plots import Draw

RESULT, TABLE, PAGE = "tuning.json", "trials.csv", "report.html"
HEADLINE = ("auroc", "sensitivity", "specificity", "accuracy", "f1")
_SHOWN = 20  # trials on the page


@dataclass(frozen=True)
class TrialResult:
    """One trial: settings, and how good they are on validation images."""

    number: int  # from 0 on
    state: str  # `complete`, `stopped early`, `interrupted`, `running` or `waiting`
    score: float | None  # mean of the metric over the folds; None unless complete
    folds: tuple[float, ...]  # the metric of each fold that was trained
    settings: Mapping[str, Any]  # those that were tuned, by name
    seconds: float | None
    repeats: int | None = None  # the number of the trial whose process died, which this one runs again
    remark: str = ""  # why it was stopped, if not by its score


@dataclass(frozen=True)
class Test:
    """The one measurement on the test split."""

    n: int  # images
    patients: int | None
    metrics: Mapping[str, Interval]  # by name
    confidence: float  # of the intervals


FEWEST = 10  # complete trials for importances: the first ten cover the space, before the search narrows


@dataclass(frozen=True)
class Search:
    """What a search for settings found.

    Attributes:
        metric: what a trial is judged by, on validation images.
        lower: whether lower is better.
        folds: how many folds each trial has; 1: the validation split.
        seed: fixes all draws.
        trials: all of them.
        best: the number of the best one.
        importance: the share of the differences between scores that each setting explains; they sum to 1. Empty where
            too little is known.
        usual: the number of the trial with the settings of the recipe; None if there is none.
        test: how the best settings do on the test split; None where it was not read.
        notes: what a reader must know.
    """

    metric: str
    lower: bool
    folds: int
    seed: int
    trials: tuple[TrialResult, ...]
    best: int
    importance: Mapping[str, float]
    usual: int | None = None
    test: Test | None = None
    notes: tuple[str, ...] = ()

    @property
    def best_trial(self) -> TrialResult:
        """The trial with the best score."""
        return self.trials[self.best]

    @property
    def usual_trial(self) -> TrialResult | None:
        """The trial with the recipe's own settings."""
        return None if self.usual is None else self.trials[self.usual]

    def count(self, state: str) -> int:
        """How many trials are in this state."""
        return sum(each.state == state for each in self.trials)

    def list_stopped(self) -> list[tuple[TrialResult, str]]:
        """The trials that were stopped early, each with the reason."""
        return [(each, self._explain(each)) for each in self.trials if each.state == "stopped early"]

    def _explain(self, trial: TrialResult) -> str:
        if trial.remark or not trial.folds:
            return trial.remark
        mean = format_number(math.fsum(trial.folds) / len(trial.folds))
        return f"after {len(trial.folds)} of {self.folds} folds, its mean of {mean} was in the worst quarter"

    @property
    def unimportant(self) -> str:
        """Why no importance is given; empty where it is."""
        if self.importance:
            return ""
        if (complete := self.count("complete")) < FEWEST:
            return f"Importance of the settings is not shown: {FEWEST} complete trials are needed, {complete} exist."
        return "Importance of the settings is not shown: all complete trials have the same score."

    def rank(self) -> list[TrialResult]:
        """The complete trials, the best first."""
        sign = 1 if self.lower else -1
        complete = [each for each in self.trials if each.score is not None]
        return sorted(complete, key=lambda each: (sign * (each.score or 0), each.number))

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a row for each trial; what it does not have is None."""
        names = list(dict.fromkeys(name for each in self.trials for name in each.settings))
        return [
            {"trial": each.number, "state": each.state, "score": each.score}
            | {f"fold {i + 1}": each.folds[i] if i < len(each.folds) else None for i in range(self.folds)}
            | {name: each.settings.get(name) for name in names}
            | {"seconds": each.seconds, "repeats": each.repeats, "remark": each.remark}
            for each in self.trials
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the content of tuning.json."""
        plain: dict[str, Any] = without_nan(asdict(self))
        return plain


def read_search(path: Path) -> Search:
    """Read what `Search.to_json` gave.

    Raises:
        DataError: the file is damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        trials = tuple(TrialResult(**{**each, "folds": tuple(each["folds"])}) for each in values.pop("trials"))
        test, notes = values.pop("test"), tuple(values.pop("notes"))
        if test is not None:
            metrics = {
                name: Interval(*(math.nan if (end := each[key]) is None else end for key in ("value", "low", "high")))
                for name, each in test.pop("metrics").items()
            }
            test = Test(metrics=metrics, **test)
        return Search(trials=trials, test=test, notes=notes, **values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise DataError(f"{path}: missing or damaged. Start the search again with `overwrite=True`.") from None


def write_search(folder: Path, search: Search, facts: Mapping[str, str], plot_formats: str, excel: bool) -> None:
    """Write `trials.csv`, `plots`, `report.html` and, last, `tuning.json` into a folder."""
    write_rows(folder / TABLE, search.to_rows(), excel)
    figures = {each.name: each for each in _make_figures(search)}
    elements = save_figures(figures, folder / "plots", plot_formats)
    page = render(
        "tuning.html",
        title="Tuning",
        search=search,
        ranked=search.rank()[:_SHOWN],
        stopped=search.list_stopped()[:_SHOWN],
        tuned=list(dict.fromkeys(name for each in search.trials for name in each.settings)),
        figures={name: (figure, elements[name]) for name, figure in figures.items()},
        headline=[name for name in HEADLINE if search.test and name in search.test.metrics],
        level=format_level(search.test.confidence) if search.test else "",
        facts=facts,
        environment=describe_environment(),
    )
    write_text(folder / PAGE, page)
    write_text(folder / RESULT, json.dumps(search.to_json(), indent=2) + "\n")


def _make_figures(search: Search) -> list[Figure]:
    name = NAMES[search.metric]
    figures = [
        Figure(
            "history", "History",
            "Dot: a complete trial. Cross: one stopped early. Line: the best so far.",
            f"{name} of {len(search.trials)} trials; the best, {format_number(search.best_trial.score or 0)}, is trial "
            f"{search.best}.",
            plot_history(search),
        ),
    ]  # fmt: skip
    if search.importance:
        words = "; ".join(f"{key} {value:.0%}" for key, value in search.importance.items())
        figures.append(
            Figure(
                "importance", "Importance",
                "Share of the differences between complete trials that each setting explains (fANOVA).",
                f"Importance of settings: {words}.", plot_importance(search.importance),
            )
        )  # fmt: skip
    return figures


def plot_history(search: Search) -> Draw:
    """Plot the score of each trial in order, and the best so far."""
    complete = [each for each in search.trials if each.score is not None]
    stopped = [each.number for each in search.trials if each.state == "stopped early"]
    from matplotlib.ticker import MaxNLocator

    def draw(axes: Axes) -> None:
        # Their means are over fewer folds, and cannot be compared with those of complete trials.
        across = axes.get_xaxis_transform()
        axes.plot(stopped, [0.03] * len(stopped), "x", color=INK, alpha=0.5, ms=5, transform=across)
        scores = [each.score or 0.0 for each in complete]
        axes.plot([each.number for each in complete], scores, "o", color=BLUE, alpha=0.7, ms=5, mew=0)
        choose = min if search.lower else max
        so_far = [choose(scores[: i + 1]) for i in range(len(scores))]
        axes.step([each.number for each in complete], so_far, where="post", color=ORANGE, lw=1.6)
        axes.set(xlabel="Trial", ylabel=f"{NAMES[search.metric]} (validation)")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        _leave_out_outliers(axes, scores, search.lower)

    return draw


def _leave_out_outliers(axes: Axes, values: Sequence[float], lower: bool) -> None:
    """Leave a few very bad trials outside the plot, as they would squeeze all others into one line."""
    ordered = sorted(values, reverse=not lower)  # the best first
    best, limit = ordered[0], ordered[int(0.9 * (len(ordered) - 1))]
    reach = abs(limit - best) or 0.01
    ends = (best - 0.08 * reach, best + 1.3 * reach) if lower else (best - 1.3 * reach, best + 0.08 * reach)
    axes.set_ylim(*ends)


def plot_importance(importance: Mapping[str, float]) -> Draw:
    """Plot a bar for each setting, the most important at the top."""
    names = sorted(importance, key=lambda name: importance[name])

    def draw(axes: Axes) -> None:
        axes.barh(range(len(names)), [importance[name] for name in names], color=BLUE, height=0.6)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", length=0)
        axes.set(xlabel="Importance", xlim=(0, 1))

    return draw
