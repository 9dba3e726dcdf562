"""The figures of a report: plots with titles, captions and descriptions, as files and inside a page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import UsageError
from pneumoscope.evaluation.curves import confidence_of, decision_curve, selective_curve
from pneumoscope.evaluation.evaluate import Measured
from pneumoscope.evaluation.metrics import NAMES, measure
from pneumoscope.evaluation.results import Evaluation
from pneumoscope.evaluation.subgroups import by_kind, choose_metrics
from pneumoscope.files import write_bytes
from pneumoscope.reports import plots
from pneumoscope.reports.pages import format_level, format_number

if TYPE_CHECKING:
    from pneumoscope.reports.plots import Draw

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FORMATS = ("svg", "pdf", "png")
UNDATED: Mapping[str, tuple[str, ...]] = {  # metadata to leave out, so that equal data give equal files
    "svg": ("Date", "Creator", "Format", "Type"),
    "pdf": ("CreationDate", "Creator", "Producer"),
    "png": ("Software",),
}
_STYLESHEET = (
    f"<style>.plot{{color-scheme:light dark;color:{plots.INK}}}"
    "@media screen and (prefers-color-scheme:dark){.plot{color:#e3e8ee}}</style>"
)


@dataclass(frozen=True)
class Figure:
    """A plot with a name for its file, a heading, a caption on how to read it, and a description in words."""

    name: str
    title: str
    caption: str
    description: str
    draw: Draw
    size: tuple[float, float] = (3.5, 3.25)  # in inches


def make_figures(
    measured: Measured, calibration: str = "", history: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Figure]:
    """Every figure for which there are data, by name; `history` has a row for each epoch of training."""
    evaluation = measured.evaluation
    figures = [_make_confusion(evaluation), *_make_curves(measured), _make_spread(measured)]
    figures += [_make_reliability(measured, calibration), _make_risk_coverage(measured)]
    if evaluation.positive and 0 < evaluation.prevalence < 1:
        figures.append(_make_decision_curve(measured))
    if evaluation.subgroups:
        figures.append(_make_forest(evaluation))
    if history:
        figures.append(
            Figure(
                "learning", "Learning curve",
                "Dot: lowest validation loss. Vertical line: start of a new phase.",
                f"Loss over {len(history)} epochs.", plots.plot_learning(history),
            )
        )  # fmt: skip
    return {figure.name: figure for figure in figures}


def find_operating_point(measured: Measured) -> tuple[float, float] | None:
    """The share of images given a label and the accuracy among them; None where all or none of them are."""
    predictions = measured.predictions
    labelled = [each for each in predictions if each.decision in measured.evaluation.classes]
    if not labelled or len(labelled) == len(predictions):
        return None
    return len(labelled) / len(predictions), float(np.mean([each.decision == each.label for each in labelled]))


def _make_confusion(evaluation: Evaluation) -> Figure:
    counts = plots.count_confusion(evaluation)
    cells = "; ".join(
        f"{truth} predicted as {predicted}: {counts[i, j]}"
        for i, truth in enumerate(evaluation.classes)
        for j, predicted in enumerate(evaluation.classes)
    )
    return Figure(
        "confusion", "Confusion matrix", "Percentages and shades are proportions of the row.",
        f"Confusion matrix. {cells}.", plots.plot_confusion_matrix(evaluation),
    )  # fmt: skip


def _make_curves(measured: Measured) -> list[Figure]:
    evaluation = measured.evaluation
    data = (evaluation, measured.labels, measured.probabilities, measured.patients)
    common = "Dot: the threshold in use." if evaluation.positive else "One curve per class, against all others."
    if plots.has_band(evaluation, measured.patients):
        common = f"Band: {format_level(evaluation.confidence)} interval at each point. {common}"
    return [
        Figure(
            "roc", "ROC curve", f"{common} Thin line: chance level.",
            f"ROC curve, AUROC {_write(evaluation, 'auroc')}.", plots.plot_roc(*data),
        ),
        Figure(
            "precision-recall", "Precision-recall curve",
            common + (" Thin line: chance level (the prevalence)." if evaluation.positive else ""),
            f"Precision-recall curve, average precision {_write(evaluation, 'average_precision')}.",
            plots.plot_precision_recall(*data),
        ),
    ]  # fmt: skip


def _make_spread(measured: Measured) -> Figure:
    evaluation = measured.evaluation
    return Figure(
        "probabilities", "Distribution",
        "Predicted probabilities by true class. Dashed line: threshold." if evaluation.positive
        else "Highest probabilities, by whether the predicted label is correct.",
        "Histogram of the probabilities.",
        plots.plot_probabilities(evaluation, measured.labels, measured.probabilities),
    )  # fmt: skip


def _make_reliability(measured: Measured, calibration: str) -> Figure:
    evaluation = measured.evaluation
    before = measured.uncalibrated
    effect = ""
    if before is not None and np.allclose(before, measured.probabilities):
        before = None
    if before is not None:
        raw = measure(measured.labels, before, threshold=measured.cut)
        effect = (
            f" {calibration or 'Calibration'} changed the calibration error from {raw['ece'][0]:.3f} to "
            f"{_write(evaluation, 'ece')} and the Brier score from {raw['brier'][0]:.3f} to "
            f"{_write(evaluation, 'brier')} on these images."
        )
    return Figure(
        "reliability", "Reliability",
        f"On the line, predicted and observed frequencies agree.{effect} Larger dots hold more images. Bars: "
        f"{format_level(evaluation.confidence)} intervals, which treat images as independent.",
        f"Reliability diagram, calibration error {_write(evaluation, 'ece')}.",
        plots.plot_reliability(evaluation, measured.labels, measured.probabilities, before),
    )  # fmt: skip


def _make_risk_coverage(measured: Measured) -> Figure:
    evaluation = measured.evaluation
    curve = selective_curve(
        [each.predicted_label == each.label for each in measured.predictions],
        confidence_of(measured.probabilities, measured.cut),
        measured.patients, seed=evaluation.seed,
    )  # fmt: skip
    point = find_operating_point(measured)
    diamond = " Diamond: this model, which gives no label to uncertain and out-of-distribution images." if point else ""
    return Figure(
        "risk-coverage", "Risk-coverage curve",
        f"Accuracy if only the most certain images are given a label. Area under the risk-coverage curve (AURC): "
        f"{curve.area:.3f}.{diamond} Thin line: accuracy on all images. Band: {format_level(evaluation.confidence)} "
        "interval.",
        f"Risk-coverage curve, area {curve.area:.3f}.", plots.plot_risk_coverage(curve, point),
    )  # fmt: skip


def _make_decision_curve(measured: Measured) -> Figure:
    evaluation = measured.evaluation
    curve = decision_curve(measured.labels, measured.probabilities, measured.patients)
    better = np.flatnonzero(curve.model > np.maximum(curve.everybody, 0))
    where = "at no threshold"
    if len(better):
        gaps = len(better) < better[-1] - better[0] + 1
        where = (
            f"{'at most thresholds' if gaps else 'at thresholds'} from {curve.thresholds[better[0]]:.2f} to "
            f"{curve.thresholds[better[-1]]:.2f}"
        )
    return Figure(
        "decision-curve", "Decision curve",
        "Net benefit: true positives per image, minus false positives weighted by the odds of the threshold. The model "
        f"does better than treating all images as {evaluation.positive}, and better than treating none, {where}. "
        f"This holds at the prevalence of these images. Band: {format_level(evaluation.confidence)} interval.",
        f"Decision curve: the model does better than treating all or none {where}.",
        plots.plot_net_benefit(evaluation, curve),
    )  # fmt: skip


def _make_forest(evaluation: Evaluation) -> Figure:
    names = choose_metrics(evaluation)
    rows = len(evaluation.subgroups) + len(by_kind(evaluation.subgroups)) + 1
    shown = ", ".join(NAMES[name] for name in names)
    return Figure(
        "subgroups", "Subgroups",
        f"{shown} with {format_level(evaluation.confidence)} intervals. Line: all images.",
        f"Forest plot of subgroups: {shown}. The table beside it has the numbers.",
        plots.plot_forest(evaluation, names), (7.2, 0.9 + 0.21 * rows),
    )  # fmt: skip


def _write(evaluation: Evaluation, metric: str) -> str:
    return format_number(evaluation.metrics[metric].value)


def make_style(name: str) -> dict[Any, Any]:
    """The style of all plots, for matplotlib; the name tells the ids of SVGs apart."""
    return {
        "svg.fonttype": "none",  # text stays text: small, searchable, in the page's own type
        "svg.hashsalt": name,
        "pdf.fonttype": 42,
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
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), plots.INK),
    }


def render(
    name: str, draw: Draw, formats: Sequence[str] = ("svg",), size: tuple[float, float] = (3.5, 3.25)
) -> dict[str, bytes]:
    """Draw a plot once and return its files by format. Text stays text; the name tells the ids of SVGs apart."""
    import matplotlib.style
    from matplotlib.figure import Figure as Canvas

    contents = {}
    with matplotlib.style.context(["default", make_style(name)]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a browser has the fonts; elsewhere it is a box
        canvas = Canvas(figsize=size, layout="constrained")
        draw(canvas.subplots())
        layout = canvas.get_layout_engine()
        if layout is not None:  # laid out once: each file would otherwise be drawn twice
            layout.execute(canvas)
            canvas.set_layout_engine(None)
        for form in formats:
            file = io.BytesIO()
            metadata = dict.fromkeys(UNDATED[form])
            canvas.savefig(file, format=form, dpi=200, transparent=form == "svg", metadata=metadata)
            contents[form] = file.getvalue()
    if "svg" in contents:
        contents["svg"] = _make_element(name, contents["svg"].decode()).encode()
    return contents


def _make_element(name: str, svg: str) -> str:
    """Make an SVG element that can be placed in a page with others, light or dark."""
    svg = svg[svg.index("<svg") :].replace(plots.INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)  # several plots share a page's ids
    return svg.replace("<svg ", '<svg class="plot" ', 1).replace("<defs>", _STYLESHEET + "<defs>", 1)


def render_svg(name: str, draw: Draw) -> str:
    """Draw a plot as an SVG element; matplotlib escapes the names in it."""
    return render(name, draw)["svg"].decode()


def save_figures(figures: Mapping[str, Figure], folder: Path, plot_formats: str = "svg") -> dict[str, str]:
    """Write the figures into a folder, and return each one's SVG by name.

    Raises:
        UsageError: an unknown format, or a file that cannot be written.
    """
    formats = parse_formats(plot_formats)
    folder.mkdir(parents=True, exist_ok=True)
    elements = {}
    for figure in figures.values():
        contents = render(figure.name, figure.draw, tuple(dict.fromkeys(["svg", *formats])), figure.size)
        elements[figure.name] = contents["svg"].decode()
        for form in formats:
            write_bytes(folder / f"{figure.name}.{form}", contents[form])
    return elements


def parse_formats(text: str, parameter: str = "plot_formats") -> tuple[str, ...]:
    """Parse formats of plot files, such as `svg,pdf,png`; errors name the parameter.

    Raises:
        UsageError: an unknown format.
    """
    formats = tuple(form.strip() for form in text.split(","))
    if unknown := [form for form in formats if form not in FORMATS]:
        raise UsageError(f"no such format: {', '.join(unknown)}. Choose from {', '.join(FORMATS)}.", parameter)
    return formats
