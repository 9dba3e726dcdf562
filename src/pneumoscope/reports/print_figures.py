"""`pneumoscope.plot`: figures for print, with the curves of one run or of several."""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import checked
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.curves import DecisionCurve, decision_curve, roc_band
from pneumoscope.evaluation.metrics import precision_recall_curve, reliability_curve, roc_curve
from pneumoscope.evaluation.pairing import Predictions, read_predictions
from pneumoscope.evaluation.results import Interval
from pneumoscope.files import claim_folder, lock_folder, write_bytes
from pneumoscope.inference.prediction import index_labels
from pneumoscope.reports.figures import FORMATS, UNDATED, make_style, parse_formats
from pneumoscope.reports.pages import format_estimate
from pneumoscope.reports.plots import COLOURS, INK, STYLES
from pneumoscope.text import counted, printable_line, shorten, tell_apart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT, DPI = 3.5, 3.4, 600  # inches of one column of a journal; dots per inch
_MARKERS = "osD^vPX"
_THIN: Mapping[str, Any] = MappingProxyType({"color": INK, "alpha": 0.4, "lw": 0.8, "zorder": 1})
_NAME, _LINE = 36, 46  # characters of a run's name in the legend, and of a line of it


@dataclass(frozen=True)
class _Curve:
    """A run as a figure shows it."""

    name: str
    predictions: Predictions
    auroc: Interval
    average_precision: Interval
    ece: Interval
    seed: int
    look: Mapping[str, Any]  # colour and line style
    marker: str

    @property
    def _rows(self) -> list[Any]:
        return [row for row in self.predictions.rows if row.probabilities]

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(N,) 1 for the positive class."""
        return index_labels(self._rows, self.predictions.classes)

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """(N,) of the positive class."""
        return np.array([row.probabilities[self.predictions.positive] for row in self._rows], np.float64)

    @property
    def patients(self) -> list[str | None]:
        """(N,) patients; where one is not known, copies and repeats of a file certainly show one patient."""
        return [row.patient or row.sha256 or None for row in self._rows]

    def label(self, title: str, estimate: Interval) -> str:
        """The text of the legend, in two lines where one would be wider than the figure."""
        metric = f"{title} {format_estimate(estimate)}"
        return f"{self.name}: {metric}" if len(self.name + metric) < _LINE else f"{self.name}:\n{metric}"


@checked
def plot(
    runs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    kind: str = "roc",
    format: str = "pdf",  # noqa: A002 - as the option is called
    names: str | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Draw figures for print: a curve for each run in one figure of each kind.

    Fonts are embedded, lines differ in style as well as in colour, and the legend gives the metric that belongs to
    the curve with its interval. Runs may have been evaluated on different images.

    Args:
        runs: a run or an evaluation, or several, of two classes.
        out: folder for the figures.
        kind: `roc`, `pr` (precision-recall), `calibration` or `dca` (decision curve), or several: `roc,dca`.
        format: `pdf`, `svg` or `png` (600 dots per inch), or several.
        names: of the runs in the legend, separated by commas; by default those of their folders.
        overwrite: whether to replace earlier figures in `out`.

    Returns:
        The files.

    Raises:
        DataError: a folder without predictions, or with more than two classes.
        UsageError: no such kind or format, another number of names, or `out` exists.
    """
    folders = [Path(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    kinds = list(dict.fromkeys(each.strip() for each in kind.split(",")))
    if unknown := [each for each in kinds if each not in KINDS]:
        raise UsageError(f"no such kind: {', '.join(unknown)}. Choose from {', '.join(KINDS)}.", "kind")
    formats = parse_formats(format, "format")
    curves = _read_curves(folders, names)
    contents = {f"{each}.{form}": data for each in kinds for form, data in _render(each, curves, formats).items()}
    folder = Path(out)
    with lock_folder(folder):
        # Any of these may be the only one of an earlier output, which the first marks.
        possible = [f"{each}.{form}" for each in KINDS for form in FORMATS]
        claim_folder(folder, sorted(possible, key=lambda name: not (folder / name).exists()), overwrite)
        for file, data in contents.items():
            write_bytes(folder / file, data)
    return [folder / file for file in contents]


def draw_curve(kind: str, folder: Path) -> Figure:
    """The figure of one of `KINDS` of a single run."""
    with _use_style(kind):
        return _draw(kind, [_read_curve(folder, shorten(printable_line(folder.resolve().name), _NAME), 0)])


def _read_curves(folders: Sequence[Path], names: str | None) -> list[_Curve]:
    if not folders:
        raise UsageError("Give a run, or several.", "runs")
    shown = tell_apart([folder.resolve().as_posix() for folder in folders])
    if names is not None:
        shown = [each.strip() for each in names.split(",")]
        if len(shown) != len(folders):
            raise UsageError(f"there are {counted(len(shown), 'name')} for {counted(len(folders), 'run')}.", "names")
    return [_read_curve(folder, shorten(printable_line(name), _NAME), i)
            for i, (folder, name) in enumerate(zip(folders, shown, strict=True))]  # fmt: skip


def _read_curve(folder: Path, name: str, place: int) -> _Curve:
    predictions = read_predictions(folder)
    if predictions.positive is None:
        raise DataError(f"{folder}: these figures need two classes, and this run has {len(predictions.classes)}.")
    path = folder / "metrics.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        metrics = values["metrics"]
        auroc, average_precision, ece = (
            Interval(*(math.nan if metrics[metric][end] is None else float(metrics[metric][end])
                       for end in ("value", "low", "high")))
            for metric in ("auroc", "average_precision", "ece")
        )  # fmt: skip
        seed = int(values["seed"])
    except (LookupError, TypeError, ValueError) as problem:
        raise DataError(f"{path}: damaged: {type(problem).__name__} {problem}. Evaluate again.") from None
    look = {"color": COLOURS[place % len(COLOURS)], "ls": STYLES[place % len(STYLES)], "lw": 1.5}
    marker = _MARKERS[place % len(_MARKERS)]
    return _Curve(name, predictions, auroc, average_precision, ece, seed, MappingProxyType(look), marker)


def _draw_roc(axes: Axes, curves: Sequence[_Curve]) -> None:
    axes.plot([0, 1], [0, 1], **_THIN)
    for curve in curves:
        fpr, tpr, _ = roc_curve(curve.labels, curve.probabilities)
        if np.isfinite([fpr, tpr]).all():
            axes.plot(fpr, tpr, label=curve.label("AUROC", curve.auroc), **curve.look)
    if len(curves) == 1 and 0 < curves[0].labels.mean() < 1:
        band = roc_band(curves[0].labels, curves[0].probabilities, curves[0].patients, seed=curves[0].seed)
        axes.fill_between(*band, color=curves[0].look["color"], alpha=0.2, lw=0)
    _frame(axes, "1 − specificity", "Sensitivity")


def _draw_precision_recall(axes: Axes, curves: Sequence[_Curve]) -> None:
    for prevalence in sorted({float(curve.labels.mean()) for curve in curves}):
        axes.axhline(prevalence, **_THIN)
    for curve in curves:
        precision, recall, _ = precision_recall_curve(curve.labels, curve.probabilities)
        if np.isfinite(recall).all():
            label = curve.label("average precision", curve.average_precision)
            axes.step(recall, precision, where="post", label=label, **curve.look)
    _frame(axes, "Recall (sensitivity)", "Precision (PPV)")


def _draw_calibration(axes: Axes, curves: Sequence[_Curve]) -> None:
    axes.plot([0, 1], [0, 1], **_THIN)
    for curve in curves:
        predicted, observed, _ = reliability_curve(curve.labels, curve.probabilities)
        axes.plot(predicted, observed, marker=curve.marker, ms=4, label=curve.label("ECE", curve.ece), **curve.look)
    _frame(axes, "Mean predicted probability", "Observed proportion")


def _draw_decision_curve(axes: Axes, curves: Sequence[_Curve]) -> None:
    top, everybody = 0.02, dict[float, DecisionCurve]()
    for curve in curves:
        found = decision_curve(curve.labels, curve.probabilities, curve.patients)
        top = max(top, float(curve.labels.mean()), float(found.model.max()))
        axes.plot(found.thresholds, found.model, label=curve.name, **curve.look)
        everybody[float(curve.labels.mean())] = found  # one line for each prevalence
    for i, found in enumerate(everybody.values()):
        label = "" if i else "treat all"
        axes.plot(found.thresholds, found.everybody, color=INK, lw=0.8, ls=(0, (1, 1)), label=label)
    axes.axhline(0, **_THIN, label="treat none")
    _frame(axes, "Threshold probability", "Net benefit")
    axes.set_ylim(-0.1 * top, 1.08 * top)


KINDS: Mapping[str, Callable[[Axes, Sequence[_Curve]], None]] = MappingProxyType(
    {
        "roc": _draw_roc,
        "pr": _draw_precision_recall,
        "calibration": _draw_calibration,
        "dca": _draw_decision_curve,
    }
)


def _frame(axes: Axes, across: str, up: str) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=across, ylabel=up)
    axes.set_box_aspect(1)


def _render(kind: str, curves: Sequence[_Curve], formats: Sequence[str]) -> dict[str, bytes]:
    """Draw a figure, with its legend below the axes, and give its file in each format."""
    contents = {}
    with _use_style(kind), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        canvas = _draw(kind, curves)
        for form in formats:
            file = io.BytesIO()
            canvas.savefig(file, format=form, dpi=DPI, metadata=dict.fromkeys(UNDATED[form]))
            contents[form] = file.getvalue()
    return contents


def _use_style(kind: str) -> AbstractContextManager[None]:
    import matplotlib.style

    style = {**make_style(kind), "svg.fonttype": "path", "font.size": 9, "legend.fontsize": 8}
    return matplotlib.style.context(["default", style])


def _draw(kind: str, curves: Sequence[_Curve]) -> Figure:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = canvas.subplots()
    KINDS[kind](axes, curves)
    if labels := axes.get_legend_handles_labels()[1]:
        canvas.set_figheight(HEIGHT + 0.16 * len("\n".join(labels).splitlines()))
        canvas.legend(loc="outside lower left", handlelength=2.6, borderaxespad=0)
    return canvas
