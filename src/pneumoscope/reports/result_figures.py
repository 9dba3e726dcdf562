"""What `plot()` of a run, an evaluation, a prediction and so on draws, as a figure of matplotlib."""

from __future__ import annotations

import csv
import functools
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from pneumoscope.auditing.findings import Audit
from pneumoscope.errors import UsageError
from pneumoscope.evaluation.compare import Comparison
from pneumoscope.evaluation.grading import Grading
from pneumoscope.evaluation.metrics import METRICS, NAMES
from pneumoscope.evaluation.results import Evaluation
from pneumoscope.evaluation.subgroups import by_kind, choose_metrics
from pneumoscope.evaluation.summary import Summary
from pneumoscope.images.read import read_pixels
from pneumoscope.inference.overlays import draw_overlay
from pneumoscope.inference.prediction import Prediction
from pneumoscope.reports import plots
from pneumoscope.reports.checklist import Checklist
from pneumoscope.reports.figures import make_style
from pneumoscope.reports.print_figures import KINDS, draw_curve
from pneumoscope.reports.summary import plot_groups
from pneumoscope.reports.tuning import Search, plot_history, plot_importance
from pneumoscope.text import printable, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pneumoscope.reports.plots import Draw

Drawings: TypeAlias = Mapping[str, Callable[[], "Figure"]]
_DPI = 110  # of a figure in a notebook


def draw_result(result: object, kind: str | None = None) -> Figure:
    """Draw a result.

    Args:
        result: what a public function returned.
        kind: one of the figures that there are for it; by default the first.

    Raises:
        UsageError: there is no such figure.
    """
    drawings = _list_drawings(result)
    chosen = kind or next(iter(drawings))
    if chosen not in drawings:
        raise UsageError(f"this result has no figure {chosen!r}. Choose from {', '.join(drawings)}.", "kind")
    figure = drawings[chosen]()
    # A notebook shows what has this method, whether or not pyplot was imported.
    setattr(figure, "_repr_png_", functools.partial(_render_png, figure))  # noqa: B010 - no attribute of the class
    return figure


def _render_png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI, bbox_inches="tight")
    return file.getvalue()


def _list_drawings(result: Any) -> Drawings:
    """The figures of a result by name, the usual one first."""
    match result:
        case Prediction():
            return {"evidence": lambda: _draw_prediction(result)}
        case Evaluation():
            return _list_of_evaluation(result)
        case Comparison():
            return {name: functools.partial(_draw_comparison, result, name) for name in _compared(result)}
        case Summary():
            names = [name for name in METRICS if any(name in group.metrics for group in result.groups)]
            return {name: functools.partial(_draw_summary, result, name) for name in sorted(names, key="auroc".__ne__)}
        case Grading():
            return {"places": lambda: _draw_grading(result)}
        case Audit():
            return {"images": lambda: _draw_audit(result)}
        case Checklist():
            return {"items": lambda: _draw_checklist(result)}
    search = getattr(result, "search", None)
    return _list_of_search(search) if isinstance(search, Search) else _list_of_folder(result)


def _list_of_search(search: Search) -> dict[str, Callable[[], Figure]]:
    found = {"history": lambda: _draw(plot_history(search), (3.5, 3.25))}
    if search.importance:
        found["importance"] = lambda: _draw_rows(plot_importance(search.importance), len(search.importance))
    return found


def _list_of_evaluation(evaluation: Evaluation) -> dict[str, Callable[[], Figure]]:
    found = {
        "metrics": lambda: _draw_metrics(evaluation),
        "confusion": lambda: _draw(plots.plot_confusion_matrix(evaluation), (3.5, 3.25)),
    }
    if evaluation.subgroups:
        names = choose_metrics(evaluation)
        rows = len(evaluation.subgroups) + len(by_kind(evaluation.subgroups)) + 1
        found["subgroups"] = lambda: _draw(plots.plot_forest(evaluation, names), (7.2, 0.9 + 0.21 * rows))
    return found


def _list_of_folder(result: Any) -> Drawings:
    """Of a run, a cross-validation or an adaptation: what its evaluation has, and what its folder allows."""
    folder, evaluation = Path(result.folder), result.evaluation
    found: dict[str, Callable[[], Figure]] = {}
    if hasattr(result, "evidence"):
        found["changes"] = lambda: _draw_changes(result.to_rows())
    if evaluation.positive and (folder / "predictions.csv").exists():
        found |= {kind: functools.partial(draw_curve, kind, folder) for kind in KINDS}
    found |= _list_of_evaluation(evaluation)
    if hasattr(result, "folds"):
        found["folds"] = lambda: _draw_folds(result)
    if (folder / "history.csv").exists():
        found["learning"] = lambda: _draw_learning(folder / "history.csv")
    return found


def _draw(draw: Draw, size: tuple[float, float]) -> Figure:
    """Draw into the axes of a new figure of this size in inches."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", make_style("result")]):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
    return figure


def _plot_intervals(
    names: Sequence[str], values: Sequence[Sequence[float | None]], across: str, line: float | None = None
) -> Draw:
    """Plot N values as dots with intervals, from the top down; `values` are value, low and high, None if undefined."""
    numbers = np.array([[math.nan if each is None else each for each in row] for row in values], np.float64)
    numbers = numbers.reshape(-1, 3)
    rows = np.arange(len(names))

    def draw(axes: Axes) -> None:
        if line is not None:
            axes.axvline(line, color=plots.INK, lw=0.8, alpha=0.5)
        axes.hlines(rows, numbers[:, 1], numbers[:, 2], color=plots.BLUE, lw=1.8, alpha=0.55)
        axes.plot(numbers[:, 0], rows, "s", color=plots.BLUE, ms=4.5)
        axes.set_yticks(rows, [_show(name) for name in names])
        axes.set(ylim=(len(names) - 0.4, -0.6), xlabel=across)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)

    return draw


def _plot_counts(names: Sequence[str], counts: Sequence[Mapping[str, int]], across: str) -> Draw:
    """Plot counts as bars, with a segment of its own colour for each key."""
    keys = list(dict.fromkeys(key for row in counts for key in row))

    def draw(axes: Axes) -> None:
        left = np.zeros(len(names))
        for key, colour in zip(keys, plots.COLOURS * (1 + len(keys) // len(plots.COLOURS)), strict=False):
            widths = np.array([row.get(key, 0) for row in counts], np.float64)
            axes.barh(np.arange(len(names)), widths, left=left, height=0.6, color=colour, label=_show(key))
            left += widths
        axes.set_yticks(range(len(names)), [_show(name) for name in names])
        axes.set(ylim=(len(names) - 0.4, -0.6), xlabel=across)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)

    return draw


def _draw_rows(draw: Draw, rows: int) -> Figure:
    return _draw(draw, (5.5, 0.9 + 0.28 * max(2, rows)))


def _draw_metrics(evaluation: Evaluation) -> Figure:
    metrics = evaluation.metrics
    values = [(each.value, each.low, each.high) for each in metrics.values()]
    level = f"{evaluation.confidence:.0%} interval"
    draw = _plot_intervals([NAMES[name] for name in metrics], values, f"{_show(evaluation.summary, 60)}; {level}")
    return _draw_rows(draw, len(metrics))


def _compared(comparison: Comparison) -> list[str]:
    """The metrics that were compared, the main one first."""
    names = dict.fromkeys(name for contrast in comparison.contrasts for name in contrast.differences)
    return sorted(names, key="auroc".__ne__)


def _draw_comparison(comparison: Comparison, metric: str) -> Figure:
    found = [(each.run, each.differences[metric]) for each in comparison.contrasts if metric in each.differences]
    values = [(each.value, each.low, each.high) for _, each in found]
    across = f"{_name(metric)}: difference from {_show(Path(comparison.runs[0]).name)}"
    return _draw_rows(_plot_intervals([run for run, _ in found], values, across, line=0), len(found))


def _draw_changes(rows: Sequence[Mapping[str, Any]]) -> Figure:
    names = [f"{_name(row['metric'])} ({row['images']})" for row in rows]
    values = [(row["difference"], row["low"], row["high"]) for row in rows]
    return _draw_rows(_plot_intervals(names, values, "Difference from the model before", line=0), len(rows))


def _draw_folds(result: Any) -> Figure:
    folds, metric = result.folds, "auroc" if "auroc" in result.folds.means else "accuracy"
    names = [f"fold {each.fold}" + f", repeat {each.repeat}" * (folds.repeats > 1) for each in folds.folds]
    values = [(each.metrics.get(metric), None, None) for each in folds.folds]
    mean = folds.means[metric]
    draw = _plot_intervals([*names, "mean"], [*values, (mean.value, mean.low, mean.high)], NAMES[metric])
    return _draw_rows(draw, len(names) + 1)


def _draw_grading(grading: Grading) -> Figure:
    names = [f"{each.place}. {each.submission}" for each in grading.ranked]
    values = [(each.value.value, each.value.low, each.value.high) for each in grading.ranked]
    return _draw_rows(_plot_intervals(names, values, NAMES[grading.metric]), len(names))


def _draw_summary(summary: Summary, metric: str) -> Figure:
    return _draw_rows(plot_groups(summary, metric), len(summary.groups))


def _draw_audit(audit: Audit) -> Figure:
    draw = _plot_counts(list(audit.counts), list(audit.counts.values()), f"Images; {audit.summary}")
    return _draw_rows(draw, len(audit.counts))


def _draw_checklist(checklist: Checklist) -> Figure:
    states = {"run": "filled from the run", "partly": "in part", "author": "open for the author"}
    counts = [
        {text: sum(item.state == state for item in items) for state, text in states.items()}
        for items in checklist.sections.values()
    ]
    return _draw_rows(_plot_counts(list(checklist.sections), counts, "Items"), len(counts))


def _draw_learning(path: Path) -> Figure:
    with path.open(encoding="utf-8", newline="") as file:
        return _draw(plots.plot_learning(list(csv.DictReader(file))), (3.5, 3.25))


def _draw_prediction(prediction: Prediction) -> Figure:
    """The image with its evidence, or the image alone where the prediction has none."""
    if prediction.evidence is not None and prediction.pixels is not None:
        return draw_overlay(prediction)
    if prediction.pixels is None and prediction.path is None:
        raise UsageError("This prediction has no file: it was made from bytes. `pneumoscope.explain` keeps the image.")
    pixels = read_pixels(str(prediction.path)) if prediction.pixels is None else prediction.pixels

    def draw(axes: Axes) -> None:
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()
        axes.set_title(_show(prediction.describe(), 60), fontsize=9)

    height, width = pixels.shape
    return _draw(draw, (4.5, 0.4 + 4.5 * height / width))


def _name(metric: str) -> str:
    return NAMES.get(metric, metric.replace("_", " "))


def _show(text: str, length: int = 36) -> str:
    return printable(shorten(re.sub(r"\s+", " ", text), length))
