"""The report's plots as SVG text that suits a light and a dark page.

Everything that is not data is drawn in one ink, which becomes `currentColor`; the ground stays transparent. Data
colours follow Okabe & Ito (2008), which colour-blind readers can tell apart, and classes differ in line style too, for
print. The same data give the same bytes. No function here fails for want of data: what cannot be drawn says so.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.evaluation.curves import precision_recall_band, roc_band
from pneumoscope.evaluation.intervals.proportions import wilson_interval
from pneumoscope.evaluation.metrics import precision_recall_curve, reliability_curve, roc_curve
from pneumoscope.evaluation.results import Evaluation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.ticker import Locator

    from pneumoscope.evaluation.curves import DecisionCurve, SelectiveCurve

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

INK = "#123456"  # stands for currentColor until the SVG is written
BLUE, ORANGE = "#2a83c4", "#d55e00"
COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#8c6bb1")
STYLES = ("-", "--", "-.", ":")
STYLESHEET = (
    "<style>.plot{color-scheme:light dark;color:#1d2733}"
    "@media screen and (prefers-color-scheme:dark){.plot{color:#e3e8ee}}</style>"
)


def roc(
    evaluation: Evaluation, labels: Ints, probabilities: Floats, patients: Sequence[str | None] | None = None
) -> str:
    """Draw the ROC curve, with its bootstrap band for two classes and a curve for each class of more."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=INK, alpha=0.35, lw=0.8)
        for name, colour, style, truth, stated in _one_vs_rest(evaluation, labels, probabilities):
            fpr, tpr, _ = roc_curve(truth, stated)
            if not np.isfinite([fpr, tpr]).all():
                continue
            axes.plot(*_thin(fpr, tpr), color=colour, ls=style, lw=1.8, label=name, clip_on=False)
            if has_band(evaluation, patients):
                grid, low, high = roc_band(
                    truth, stated, patients=patients, confidence=evaluation.confidence, seed=evaluation.seed
                )
                axes.fill_between(grid, low, high, color=colour, alpha=0.18, lw=0)
            if evaluation.positive:
                called = stated >= evaluation.threshold
                point = called[truth == 0].mean(), called[truth == 1].mean()
                axes.plot(*point, "o", color=colour, ms=6, clip_on=False, zorder=5)
                side, shift = ("left", 9) if point[0] < 0.6 else ("right", -4)
                axes.annotate(
                    f"threshold {evaluation.threshold:.2f}", point, (shift, -12), textcoords="offset points",
                    ha=side, fontsize=8.5,
                )  # fmt: skip
        _square(axes, "False-positive rate", "Sensitivity", empty="needs both classes")

    return _svg("roc", draw)


def has_band(evaluation: Evaluation, patients: Sequence[str | None] | None) -> bool:
    """Say whether a curve gets its band: not where patients matter but were not given, it would be too narrow."""
    return evaluation.positive is not None and (evaluation.patients is None or patients is not None)


def compare_roc(names: Sequence[str], labels: Ints, probabilities: Floats, calls: Ints) -> str:
    """Draw the ROC curves of several models on the same images, and where each decides.

    Args:
        names: (M,) of the models.
        labels: (N,) of 0 and 1.
        probabilities: (M, N) of class 1.
        calls: (M, N) of 0 and 1.
    """

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=INK, alpha=0.35, lw=0.8)
        for i, (name, stated, called) in enumerate(zip(names, probabilities, calls, strict=True)):
            fpr, tpr, _ = roc_curve(labels, stated)
            if not np.isfinite([fpr, tpr]).all():
                continue
            colour, style = COLOURS[i % len(COLOURS)], STYLES[i % len(STYLES)]
            label = name if len(name) <= 30 else f"…{name[-29:]}"
            label = label if not label.startswith("_") else f" {label}"  # which matplotlib would leave out
            axes.plot(*_thin(fpr, tpr), color=colour, ls=style, lw=1.8, label=label, clip_on=False)
            axes.plot(called[labels == 0].mean(), called[labels == 1].mean(), "o", color=colour, ms=6, clip_on=False)
        _square(axes, "False-positive rate", "Sensitivity", empty="needs both classes")

    return _svg("compared", draw)


def precision_recall(
    evaluation: Evaluation, labels: Ints, probabilities: Floats, patients: Sequence[str | None] | None = None
) -> str:
    """Draw precision against recall, for two classes with its band and the prevalence that chance would reach."""

    def draw(axes: Axes) -> None:
        for name, colour, style, truth, stated in _one_vs_rest(evaluation, labels, probabilities):
            precision, recall, _ = precision_recall_curve(truth, stated)
            if not np.isfinite(recall).all():
                continue
            steps = _thin(recall, precision)
            axes.step(*steps, where="post", color=colour, ls=style, lw=1.8, label=name, clip_on=False)
            if has_band(evaluation, patients):
                grid, low, high = precision_recall_band(
                    truth, stated, patients=patients, confidence=evaluation.confidence, seed=evaluation.seed
                )
                axes.fill_between(grid, low, high, color=colour, alpha=0.18, lw=0)
            if evaluation.positive:
                axes.axhline(evaluation.prevalence, color=INK, alpha=0.35, lw=0.8)
                called = stated >= evaluation.threshold
                if called.any():
                    point = called[truth == 1].mean(), truth[called].mean()
                    axes.plot(*point, "o", color=colour, ms=6, clip_on=False, zorder=5)
        _square(axes, "Recall (sensitivity)", "Precision (PPV)", empty="needs the positive class")

    return _svg("precision-recall", draw)


def confusion_matrix(evaluation: Evaluation) -> str:
    """Draw the confusion matrix: counts, and each true class's shares as shade."""
    from matplotlib.patches import Rectangle

    counts = matrix(evaluation)
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
        names = [_short(name, 14) for name in evaluation.classes]
        upright = classes > 3 or max(map(len, names)) > 14
        axes.set_xticks(range(classes), names, rotation=35 if upright else 0, ha="right" if upright else "center")
        axes.set_yticks(range(classes), names, rotation=0 if classes > 2 else 90, va="center")
        axes.set(xlim=(-0.5, classes - 0.5), ylim=(classes - 0.5, -0.5), xlabel="Call", ylabel="Truth")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_box_aspect(1)

    return _svg("confusion", draw)


def reliability(evaluation: Evaluation, labels: Ints, probabilities: Floats, before: Floats | None = None) -> str:
    """Draw observed against stated frequencies with the interval of Wilson (1927), points growing with their images.

    `before` are the probabilities before calibration, which are drawn behind.
    """
    predicted, observed, counts = reliability_curve(labels, probabilities)
    limits = np.array(
        [wilson_interval(share, n, evaluation.confidence) for share, n in zip(observed, counts, strict=True)]
    )
    two = evaluation.positive is not None

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=INK, alpha=0.35, lw=0.8)
        if before is not None:
            raw, share, _ = reliability_curve(labels, before)
            axes.plot(
                raw, share, color=ORANGE, lw=1.2, ls="--", marker="s", ms=4.5, mfc="none", label="before calibration",
                clip_on=False,
            )  # fmt: skip
        axes.vlines(predicted, *limits.T, color=BLUE, alpha=0.4, lw=1.4)
        axes.plot(
            predicted, observed, color=BLUE, lw=1.4, clip_on=False, label="" if before is None else "after calibration"
        )
        axes.scatter(predicted, observed, s=12 + 160 * counts / counts.sum(), color=BLUE, clip_on=False, zorder=3)
        if before is not None:
            axes.legend(ncols=2, loc="lower left", bbox_to_anchor=(-0.1, 1), borderaxespad=0.2, columnspacing=1.2)
        _square(
            axes,
            "Mean probability in the bin",
            f"Share that is {_short(str(evaluation.positive), 18)}" if two else "Share of right calls",
        )

    return _svg("reliability", draw)


def risk_coverage(curve: SelectiveCurve, point: tuple[float, float] | None = None) -> str:
    """Draw accuracy among the answered against the share answered; `point` is where the decisions stand."""

    def draw(axes: Axes) -> None:
        axes.fill_between(curve.grid, curve.low, curve.high, color=BLUE, alpha=0.18, lw=0)
        coverage, accuracy = _thin(curve.coverage, curve.accuracy)
        axes.plot(coverage, accuracy, color=BLUE, lw=1.8, clip_on=False)
        lowest = min(float(curve.low[9:].min()), float(accuracy[coverage >= 0.1].min()), *(point or (1.0,))[1:])
        if point is not None:
            axes.plot(*point, "D", color=ORANGE, ms=7, clip_on=False, zorder=5)
            side, shift = ("right", -9) if point[0] > 0.45 else ("left", 9)
            axes.annotate(
                f"{point[1]:.3f} of {point[0]:.0%}", point, (shift, -13), textcoords="offset points", ha=side,
                fontsize=8.5,
            )  # fmt: skip
        axes.axhline(accuracy[-1], color=INK, alpha=0.35, lw=0.8)
        axes.set(xlim=(0, 1), xlabel="Share answered, the surest first", ylabel="Accuracy among them")
        axes.set_ylim(max(0.0, math.floor((lowest - 0.02) * 20) / 20), 1)
        axes.set_box_aspect(1)

    return _svg("risk-coverage", draw)


def net_benefit(evaluation: Evaluation, curve: DecisionCurve) -> str:
    """Draw the decision curve against treating everybody and nobody (Vickers & Elkin 2006)."""
    top = max(evaluation.prevalence, float(curve.model.max()), 0.02)

    def draw(axes: Axes) -> None:
        axes.fill_between(curve.thresholds, curve.low, curve.high, color=BLUE, alpha=0.18, lw=0)
        axes.plot(curve.thresholds, curve.everybody, color=ORANGE, lw=1.4, ls="--", label="all")
        axes.plot([0, 1], [0, 0], color=INK, lw=1, alpha=0.6, ls=":", label="none")
        axes.plot(curve.thresholds, curve.model, color=BLUE, lw=1.8, label="by the model")
        axes.axvline(evaluation.threshold, color=INK, lw=1, alpha=0.7, ls=(0, (3, 2)))
        axes.set(xlim=(0, 1), xlabel="Threshold probability", ylabel="Net benefit")
        axes.set_ylim(-0.12 * top, 1.08 * top)
        axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, columnspacing=1.2)

    return _svg("decision-curve", draw)


def histogram(evaluation: Evaluation, labels: Ints, probabilities: Floats) -> str:
    """Draw how probabilities are spread: by class with the threshold, or by right and wrong for more than two."""
    if evaluation.positive:
        values, groups = probabilities, labels
        names, meaning = evaluation.classes, f"Probability of {_short(evaluation.positive, 18)}"
    else:
        values, groups = probabilities.max(1), (probabilities.argmax(1) != labels).astype(np.int64)
        names, meaning = ("right", "wrong"), "Highest probability"

    def draw(axes: Axes) -> None:
        edges = np.linspace(0, 1, 21)
        for i, (name, colour) in enumerate(zip(names, (BLUE, ORANGE), strict=True)):
            counts = np.histogram(values[groups == i], edges)[0].astype(float)
            counts[counts == 0] = np.nan  # nothing is drawn, rather than a line on the axis
            axes.stairs(counts, edges, fill=True, color=colour, alpha=0.3)
            axes.stairs(counts, edges, color=colour, lw=1.6, ls=STYLES[i], label=_short(name, 30))
        if evaluation.positive:
            axes.axvline(evaluation.threshold, color=INK, lw=1, alpha=0.7, ls=(0, (3, 2)))
        axes.set(xlim=(0, 1), xlabel=meaning, ylabel="Images")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(_whole())
        axes.legend(
            ncols=1 if sum(map(len, names)) > 26 else 2, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2
        )

    return _svg("probabilities", draw)


def learning(history: Sequence[Mapping[str, Any]]) -> str:
    """Draw loss by epoch, with the epoch of the lowest validation loss marked, and bounds between phases."""
    epochs = np.arange(1, len(history) + 1)

    def column(name: str) -> Floats:
        return np.array([math.nan if row.get(name) in (None, "") else float(row[name]) for row in history])

    def draw(axes: Axes) -> None:
        for i, (key, name) in enumerate((("train_loss", "training"), ("val_loss", "validation"))):
            losses = column(key)
            if not np.isfinite(losses).any():
                continue
            if key == "val_loss":
                best = int(np.nanargmin(losses))
                name += f", best {losses[best]:.3f}"
                axes.plot(epochs[best], losses[best], "o", color=COLOURS[i], ms=6, zorder=5)
            marker = "." if len(epochs) == 1 else ""
            axes.plot(epochs, losses, color=COLOURS[i], lw=1.8, ls=STYLES[i], label=name, marker=marker)
        phases = [row.get("phase") for row in history]
        for i in range(1, len(phases)):
            if phases[i] != phases[i - 1]:
                axes.axvline(i + 0.5, color=INK, alpha=0.35, lw=0.8)
        axes.set(xlabel="Epoch", ylabel="Loss", xlim=(0.5, len(epochs) + 0.5))
        axes.set_ylim(0, 1.06 * axes.dataLim.y1 if axes.dataLim.y1 > 0 else 1)
        axes.xaxis.set_major_locator(_whole())
        if axes.get_legend_handles_labels()[0]:
            axes.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)

    return _svg("learning", draw)


def matrix(evaluation: Evaluation) -> Ints:
    """Return the confusion matrix (C, C), a row for each true class, for two classes too."""
    counts = evaluation.confusion
    return np.array(counts.get("matrix") or [[counts["tn"], counts["fp"]], [counts["fn"], counts["tp"]]])


def _one_vs_rest(
    evaluation: Evaluation, labels: Ints, probabilities: Floats
) -> list[tuple[str, str, str, Ints, Floats]]:
    """Name, colour, line style, labels and probabilities of each curve to draw."""
    if evaluation.positive:
        return [("", BLUE, "-", labels, probabilities)]
    return [
        (_short(name, 16), COLOURS[i % len(COLOURS)], STYLES[i % len(STYLES)], (labels == i) * 1, probabilities[:, i])
        for i, name in enumerate(evaluation.classes)
    ]


def _thin(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """At most 600 points: more cannot be seen, and make a page heavy."""
    keep = np.unique(np.linspace(0, len(x) - 1, 600).round().astype(int))
    return x[keep], y[keep]


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _whole() -> Locator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=6, integer=True, min_n_ticks=1)


def _square(axes: Axes, across: str, up: str, empty: str = "") -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=across, ylabel=up)
    axes.set_box_aspect(1)
    if axes.get_legend():
        return
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", handlelength=2.4)
    elif empty and len(axes.lines) <= 1:
        for line in axes.lines:
            line.remove()
        axes.text(0.5, 0.48, f"not defined: {empty}", ha="center", alpha=0.75)


def _svg(name: str, draw: Callable[[Axes], None]) -> str:
    """Set up one figure, let `draw` fill its axes, and return it as an SVG element that can stand in a page."""
    import matplotlib.style
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text: small, searchable, in the page's own type
        "svg.hashsalt": name,
        "text.parse_math": False,  # a class name may hold a $
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    }
    with matplotlib.style.context(["default", style]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # only measured here; the browser has the fonts
        figure = Figure(figsize=(3.5, 3.25), layout="constrained")
        draw(figure.subplots())
        text = io.StringIO()
        figure.savefig(
            text, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)  # several plots share a page's ids
    return svg.replace("<svg ", '<svg class="plot" ', 1).replace("<defs>", STYLESHEET + "<defs>", 1)
