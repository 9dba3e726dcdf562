"""The plots: each function returns a function that draws one into axes; `figures.render` makes the files.

In a page, everything that is not data has the colour of the text, so that it suits light and dark pages. Data
colours follow Okabe & Ito (2008), which colour-blind readers can tell apart, and classes differ in line style too, for
print. Equal data give equal bytes. Where data are missing, a plot says so and does not fail.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.evaluation.curves import precision_recall_band, roc_band
from pneumoscope.evaluation.intervals.proportions import wilson_interval
from pneumoscope.evaluation.metrics import NAMES, precision_recall_curve, predict_classes, reliability_curve, roc_curve
from pneumoscope.evaluation.results import Evaluation
from pneumoscope.evaluation.subgroups import by_kind
from pneumoscope.text import printable, shorten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.ticker import Locator

    from pneumoscope.evaluation.curves import DecisionCurve, SelectiveCurve
    from pneumoscope.evaluation.results import Subgroup

    Draw = Callable[[Axes], None]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

INK = "#1d2733"  # of axes and text; in a page it becomes `currentColor`
BLUE, ORANGE = "#2a83c4", "#d55e00"
COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#8c6bb1")
STYLES = ("-", "--", "-.", ":")
_THIN_LINE: Mapping[str, Any] = {"color": INK, "alpha": 0.35, "lw": 0.8}
_ABOVE: Mapping[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2, "columnspacing": 1.2}
_DOT: Mapping[str, Any] = {"ms": 6, "clip_on": False, "zorder": 5}


def plot_roc(
    evaluation: Evaluation, labels: Ints, probabilities: Floats, patients: Sequence[str | None] | None = None
) -> Draw:
    """Plot the ROC curve with its band for two classes, or a curve for each of more classes."""
    curves = list(_one_vs_rest(evaluation, labels, probabilities))
    band = None
    if has_band(evaluation, patients) and 0 < labels.mean() < 1:
        band = roc_band(labels, probabilities, patients, seed=evaluation.seed)

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], **_THIN_LINE)
        for name, colour, style, truth, scores in curves:
            fpr, tpr, _ = roc_curve(truth, scores)
            if not np.isfinite([fpr, tpr]).all():
                continue
            axes.plot(*_thin(fpr, tpr), color=colour, ls=style, lw=1.8, label=name, clip_on=False)
            if band is not None:
                axes.fill_between(*band, color=colour, alpha=0.18, lw=0)
            if evaluation.positive:
                positive = scores >= evaluation.threshold
                point = positive[truth == 0].mean(), positive[truth == 1].mean()
                axes.plot(*point, "o", color=colour, **_DOT)
                side, shift = ("left", 9) if point[0] < 0.6 else ("right", -4)
                _annotate(axes, f"threshold {evaluation.threshold:.2f}", point, (shift, -12), side)
        _finish_square(axes, "False-positive rate", "Sensitivity", missing="needs both classes")

    return draw


def has_band(evaluation: Evaluation, patients: Sequence[str | None] | None) -> bool:
    """Whether a curve gets its band: not if patients matter but were not given, because it would be too narrow."""
    return evaluation.positive is not None and (evaluation.patients is None or patients is not None)


def plot_roc_of_runs(names: Sequence[str], labels: Ints, probabilities: Floats, predicted: Ints) -> Draw:
    """Plot the ROC curves of M models on N images, and the threshold of each.

    Labels (N,) are 0 and 1, as are predicted labels (M, N); probabilities (M, N) are those of class 1.
    """

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], **_THIN_LINE)
        for i, (name, scores, positive) in enumerate(zip(names, probabilities, predicted, strict=True)):
            fpr, tpr, _ = roc_curve(labels, scores)
            if not np.isfinite([fpr, tpr]).all():
                continue
            colour, style = COLOURS[i % len(COLOURS)], STYLES[i % len(STYLES)]
            label = printable(name if len(name) <= 30 else f"…{name[-29:]}")
            label = f" {label}" if label.startswith("_") else label  # which matplotlib would leave out
            axes.plot(*_thin(fpr, tpr), color=colour, ls=style, lw=1.8, label=label, clip_on=False)
            axes.plot(positive[labels == 0].mean(), positive[labels == 1].mean(), "o", color=colour, **_DOT)
        _finish_square(axes, "False-positive rate", "Sensitivity", missing="needs both classes")

    return draw


def plot_precision_recall(
    evaluation: Evaluation, labels: Ints, probabilities: Floats, patients: Sequence[str | None] | None = None
) -> Draw:
    """Plot precision against recall; for two classes, with its band and the prevalence, which is the chance level."""
    curves = list(_one_vs_rest(evaluation, labels, probabilities))
    band = None
    if has_band(evaluation, patients) and labels.any():
        band = precision_recall_band(labels, probabilities, patients, seed=evaluation.seed)

    def draw(axes: Axes) -> None:
        for name, colour, style, truth, scores in curves:
            precision, recall, _ = precision_recall_curve(truth, scores)
            if not np.isfinite(recall).all():
                continue
            steps = _thin(recall, precision)
            axes.step(*steps, where="post", color=colour, ls=style, lw=1.8, label=name, clip_on=False)
            if band is not None:
                axes.fill_between(*band, color=colour, alpha=0.18, lw=0)
            if evaluation.positive:
                axes.axhline(evaluation.prevalence, **_THIN_LINE)
                positive = scores >= evaluation.threshold
                if positive.any():
                    axes.plot(positive[truth == 1].mean(), truth[positive].mean(), "o", color=colour, **_DOT)
        _finish_square(axes, "Recall (sensitivity)", "Precision (PPV)", missing="needs the positive class")

    return draw


def plot_confusion_matrix(evaluation: Evaluation) -> Draw:
    """Plot the confusion matrix: counts, and proportions of each true class as shade."""
    from matplotlib.patches import Rectangle

    counts = count_confusion(evaluation)
    classes = len(counts)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)

    def draw(axes: Axes) -> None:
        for (row, column), share in np.ndenumerate(shares):
            colour = BLUE if row == column else ORANGE
            box = (column - 0.48, row - 0.48)
            axes.add_patch(Rectangle(box, 0.96, 0.96, facecolor=colour, alpha=0.06 + 0.5 * share, lw=0))
            large = max(7.0, 19 - 2.5 * classes)
            middle = row - (0.08 if classes <= 4 else 0)
            axes.text(column, middle, f"{counts[row, column]:,}", ha="center", va="center", fontsize=large)
            if classes <= 4:
                axes.text(column, row + 0.24, f"{share:.0%}", ha="center", va="center", fontsize=8.5, alpha=0.75)
        names = [_show(name, 14) for name in evaluation.classes]
        slanted = classes > 3 or max(map(len, names)) > 14
        axes.set_xticks(range(classes), names, rotation=35 if slanted else 0, ha="right" if slanted else "center")
        axes.set_yticks(range(classes), names, rotation=0 if classes > 2 else 90, va="center")
        axes.set(xlim=(-0.5, classes - 0.5), ylim=(classes - 0.5, -0.5))
        axes.set(xlabel="Predicted label", ylabel="True class")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_box_aspect(1)

    return draw


def plot_reliability(
    evaluation: Evaluation, labels: Ints, probabilities: Floats, uncalibrated: Floats | None = None
) -> Draw:
    """Plot observed against predicted frequencies with Wilson's intervals (1927); larger points hold more images.

    `uncalibrated` are the probabilities before calibration, drawn behind.
    """
    predicted, observed, counts = reliability_curve(labels, probabilities)
    intervals = np.array(
        [wilson_interval(share, n, evaluation.confidence) for share, n in zip(observed, counts, strict=True)]
    )  # fmt: skip
    positive = evaluation.positive

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], **_THIN_LINE)
        if uncalibrated is not None:
            raw, share, _ = reliability_curve(labels, uncalibrated)
            look: dict[str, Any] = {"color": ORANGE, "lw": 1.2, "ls": "--", "marker": "s", "ms": 4.5, "mfc": "none"}
            axes.plot(raw, share, label="uncalibrated", clip_on=False, **look)
        axes.vlines(predicted, *intervals.T, color=BLUE, alpha=0.4, lw=1.4)
        label = "" if uncalibrated is None else "calibrated"
        axes.plot(predicted, observed, color=BLUE, lw=1.4, clip_on=False, label=label)
        axes.scatter(predicted, observed, s=12 + 160 * counts / counts.sum(), color=BLUE, clip_on=False, zorder=3)
        if uncalibrated is not None:
            axes.legend(ncols=2, **_ABOVE)
        observed_label = f"Proportion {_show(positive, 18)}" if positive else "Proportion correct"
        _finish_square(axes, "Mean predicted probability", observed_label)

    return draw


def plot_risk_coverage(curve: SelectiveCurve, point: tuple[float, float] | None = None) -> Draw:
    """Plot accuracy against coverage; `point` is where the model's own decisions lie."""

    def draw(axes: Axes) -> None:
        axes.fill_between(curve.grid, curve.low, curve.high, color=BLUE, alpha=0.18, lw=0)
        coverage, accuracy = _thin(curve.coverage, curve.accuracy)
        axes.plot(coverage, accuracy, color=BLUE, lw=1.8)  # the few surest images may lie below what is shown
        lowest = min(float(curve.low[9:].min()), float(accuracy[coverage >= 0.1].min()), *(point or (1.0,))[1:])
        bottom = max(0.0, math.floor((lowest - 0.02) * 20) / 20)
        if point is not None:
            axes.plot(*point, "D", color=ORANGE, **_DOT)
            side, shift = ("right", -9) if point[0] > 0.45 else ("left", 9)
            up = 7 if point[1] < (bottom + 1) / 2 else -13
            _annotate(axes, f"{point[1]:.3f} at {point[0]:.0%}", point, (shift, up), side)
        axes.axhline(accuracy[-1], **_THIN_LINE)
        axes.set(xlim=(0, 1), xlabel="Coverage, most certain images first", ylabel="Accuracy")
        axes.set_ylim(bottom, 1 + 0.01 * (1 - bottom))  # half of a line at 1 is above it
        axes.set_box_aspect(1)

    return draw


def plot_net_benefit(evaluation: Evaluation, curve: DecisionCurve) -> Draw:
    """Plot the decision curve against treating all and none (Vickers & Elkin 2006)."""
    top = max(evaluation.prevalence, float(curve.model.max()), 0.02)

    def draw(axes: Axes) -> None:
        axes.fill_between(curve.thresholds, curve.low, curve.high, color=BLUE, alpha=0.18, lw=0)
        axes.plot(curve.thresholds, curve.everybody, color=ORANGE, lw=1.4, ls="--", label="all")
        axes.plot([0, 1], [0, 0], color=INK, lw=1, alpha=0.6, ls=":", label="none")
        axes.plot(curve.thresholds, curve.model, color=BLUE, lw=1.8, label="by the model")
        axes.axvline(evaluation.threshold, color=INK, lw=1, alpha=0.7, ls=(0, (3, 2)))
        axes.set(xlim=(0, 1), xlabel="Threshold probability", ylabel="Net benefit")
        axes.set_ylim(-0.12 * top, 1.08 * top)
        axes.legend(ncols=3, **_ABOVE)

    return draw


def plot_probabilities(evaluation: Evaluation, labels: Ints, probabilities: Floats) -> Draw:
    """Plot how probabilities are distributed: by class with the threshold, or by correctness for more than two."""
    if evaluation.positive:
        values, groups = probabilities, labels
        names, meaning = evaluation.classes, f"Probability of {_show(evaluation.positive, 18)}"
    else:
        values, groups = (
            probabilities.max(1),
            (predict_classes(probabilities, evaluation.cut) != labels).astype(np.int64),
        )
        names, meaning = ("correct", "wrong"), "Highest probability"

    def draw(axes: Axes) -> None:
        edges = np.linspace(0, 1, 21)
        for i, (name, colour) in enumerate(zip(names, (BLUE, ORANGE), strict=True)):
            counts = np.histogram(values[groups == i], edges)[0].astype(float)
            counts[counts == 0] = np.nan  # nothing is drawn, rather than a line on the axis
            axes.stairs(counts, edges, fill=True, color=colour, alpha=0.3)
            axes.stairs(counts, edges, color=colour, lw=1.6, ls=STYLES[i], label=_show(name, 30))
        if evaluation.positive:
            axes.axvline(evaluation.threshold, color=INK, lw=1, alpha=0.7, ls=(0, (3, 2)))
        axes.set(xlim=(0, 1), xlabel=meaning, ylabel="Images")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(_integers())
        axes.legend(ncols=1 if sum(map(len, names)) > 26 else 2, **_ABOVE)

    return draw


def plot_forest(evaluation: Evaluation, names: Sequence[str]) -> Draw:
    """Plot metrics of each subgroup with their intervals, one panel for each metric, and a line for all images."""
    rows: list[tuple[str, Subgroup | None]] = []
    for kind, members in by_kind(evaluation.subgroups).items():
        rows += [(kind, None), *((part.name, part) for part in members)]
    groups = [(row, part) for row, (_, part) in enumerate(rows) if part is not None]
    labels = [f"{_show(name, 30)} ({part.n:,})" if part else _show(name, 40) for name, part in rows]

    def draw(axes: Axes) -> None:
        grid = axes.get_subplotspec()
        if grid is None:
            raise ValueError("a forest plot needs axes in a grid")
        axes.set_axis_off()
        inner = grid.subgridspec(1, len(names))
        panels = [axes.figure.add_subplot(inner[0, i]) for i in range(len(names))]
        for panel, name in zip(panels, names, strict=True):
            panel.axvline(evaluation.metrics[name].value, color=INK, lw=1, alpha=0.6)
            for row, part in groups:
                if (found := part.metrics.get(name)) is not None:
                    panel.plot([found.low, found.high], [row, row], color=BLUE, lw=1.8, alpha=0.55)
                    panel.plot(found.value, row, "s", color=BLUE, ms=4.5)
            panel.set(xlim=(0, 1.02), ylim=(len(rows) - 0.4, -0.8), xlabel=NAMES[name])
            panel.set_yticks(range(len(rows)), labels if panel is panels[0] else [""] * len(rows))
            panel.tick_params(axis="y", length=0)
            panel.spines["left"].set_visible(False)
        for tick, (_, member) in zip(panels[0].get_yticklabels(), rows, strict=True):
            tick.set_fontweight("bold" if member is None else "normal")

    return draw


def plot_learning(history: Sequence[Mapping[str, Any]]) -> Draw:
    """Plot loss by epoch, with the lowest validation loss marked and a line where a new phase begins."""
    epochs = np.arange(1, len(history) + 1)

    def draw(axes: Axes) -> None:
        for i, (key, name) in enumerate((("train_loss", "training"), ("val_loss", "validation"))):
            losses = np.array([math.nan if row.get(key) in (None, "") else float(row[key]) for row in history])
            if not np.isfinite(losses).any():
                continue
            if key == "val_loss":
                best = int(np.nanargmin(losses))
                name += f", best {losses[best]:.3f}"
                axes.plot(epochs[best], losses[best], "o", color=COLOURS[i], **_DOT)
            marker = "." if len(epochs) == 1 else ""
            axes.plot(epochs, losses, color=COLOURS[i], lw=1.8, ls=STYLES[i], label=name, marker=marker)
        phases = [row.get("phase") for row in history]
        for i in range(1, len(phases)):
            if phases[i] != phases[i - 1]:
                axes.axvline(i + 0.5, **_THIN_LINE)
        axes.set(xlabel="Epoch", ylabel="Loss", xlim=(0.5, len(epochs) + 0.5))
        axes.set_ylim(0, 1.06 * axes.dataLim.y1 if axes.dataLim.y1 > 0 else 1)
        axes.xaxis.set_major_locator(_integers())
        if axes.get_legend_handles_labels()[0]:
            axes.legend(ncols=2, **_ABOVE)

    return draw


def count_confusion(evaluation: Evaluation) -> Ints:
    """The confusion matrix (C, C), a row for each true class, for two classes too."""
    counts = evaluation.confusion
    return np.array(counts.get("matrix") or [[counts["tn"], counts["fp"]], [counts["fn"], counts["tp"]]])


def _one_vs_rest(
    evaluation: Evaluation, labels: Ints, probabilities: Floats
) -> Iterator[tuple[str, str, str, Ints, Floats]]:
    """Name, colour, line style, labels and probabilities of each curve."""
    if evaluation.positive:
        yield "", BLUE, "-", labels, probabilities
        return
    for i, name in enumerate(evaluation.classes):
        colour, style = COLOURS[i % len(COLOURS)], STYLES[i % len(STYLES)]
        yield _show(name, 16), colour, style, (labels == i) * 1, probabilities[:, i]


def _thin(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Keep at most 600 points: more cannot be seen and make a page large."""
    keep = np.unique(np.linspace(0, len(x) - 1, 600).round().astype(int))
    return x[keep], y[keep]


def _show(name: str, length: int) -> str:
    return shorten(printable(name), length)


def _annotate(axes: Axes, text: str, point: tuple[float, float], shift: tuple[int, int], side: str) -> None:
    axes.annotate(text, point, shift, textcoords="offset points", ha=side, fontsize=8.5)


def _integers() -> Locator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=6, integer=True, min_n_ticks=1)


def _finish_square(axes: Axes, across: str, up: str, missing: str = "") -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=across, ylabel=up)
    axes.set_box_aspect(1)
    if axes.get_legend():
        return
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", handlelength=2.4)
    elif missing and len(axes.lines) <= 1:
        for line in axes.lines:
            line.remove()
        axes.text(0.5, 0.48, f"not defined: {missing}", ha="center", alpha=0.75)
