"""One page that says how good a model is, how sure that is, and where it fails: report.html and plots/.

The page needs no script, no network and no other file, and its content-security policy says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pneumoscope.errors import DataError
from pneumoscope.evaluation import plots
from pneumoscope.evaluation.metrics import checked, decide

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from pneumoscope.evaluation.intervals import Evaluation, Interval

HEADLINE = ("accuracy", "f1", "auroc", "sensitivity", "specificity")
NAMES = {
    "accuracy": "Accuracy", "f1": "F1", "sensitivity": "Sensitivity", "specificity": "Specificity",
    "ppv": "PPV", "npv": "NPV", "mcc": "MCC", "auroc": "AUROC", "average_precision": "Average precision",
    "brier": "Brier score", "ece": "Calibration error",
}  # fmt: skip
GROUPS = (
    ("Decisions", ("accuracy", "f1", "sensitivity", "specificity", "ppv", "npv", "mcc")),
    ("Ranking", ("auroc", "average_precision")),
    ("Probabilities: lower is better", ("brier", "ece")),
)
MEANINGS_OF_TWO = {
    "accuracy": "Share of images decided rightly.",
    "f1": "Harmonic mean of sensitivity and PPV; blind to true negatives.",
    "sensitivity": "Of the images that are {positive}, the share called so.",
    "specificity": "Of the images that are {negative}, the share called so.",
    "ppv": "Share of {positive} among the images called so; moves with the prevalence.",
    "npv": "Share of {negative} among the images called so; moves with the prevalence.",
    "mcc": "Correlation of decision and truth, from −1 to 1; fair to both classes.",
    "auroc": "Chance that a random {positive} image scores above a random {negative} one; needs no threshold.",
    "average_precision": "PPV averaged over all sensitivities: the area under the precision-recall steps.",
    "brier": "Mean squared distance of probability and truth; rewards ranking and calibration together.",
    "ece": "Mean gap between stated probability and observed share, over 10 bins. Small samples inflate it.",
}
MEANINGS_OF_MORE = {
    "accuracy": "Share of images decided rightly.",
    "f1": "Harmonic mean of sensitivity and PPV, averaged over the classes.",
    "sensitivity": "Of the images of a class, the share called so, averaged over the classes.",
    "specificity": "Of the images not of a class, the share not called so, averaged over the classes.",
    "ppv": "Of the images called a class, the share that are of it, averaged over the classes.",
    "npv": "Of the images not called a class, the share that are not of it, averaged over the classes.",
    "mcc": "Correlation of decision and truth, up to 1; fair to all classes.",
    "auroc": "Chance that an image of a class scores above one that is not, averaged over the classes.",
    "average_precision": "Area under the precision-recall steps, averaged over the classes.",
    "brier": "Squared distance of probabilities and truth, summed over the classes; from 0 to 2.",
    "ece": "Mean gap between the highest probability and the share of right decisions, over 10 bins.",
}
SHOWN_ERRORS = 50


@dataclass(frozen=True)
class ReportCase:
    """One image: its true label, and the probability behind the decision it got."""

    path: str
    label: str
    probability: float
    decision: str


def write_report(
    folder: Path,
    evaluation: Evaluation,
    *,
    title: str,
    labels: ArrayLike,
    probabilities: ArrayLike,
    paths: Sequence[str],
    patients: Sequence[str | None] | None = None,
    history: Sequence[Mapping[str, float | str | None]] = (),
    facts: Mapping[str, str] = {},
    notes: Sequence[str] = (),
    errors: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write `folder`/report.html, complete in itself, and its plots as `folder`/plots/*.svg.

    Args:
        folder: where to write; made if need be.
        evaluation: of these labels and probabilities.
        title: heading of the page.
        labels: (N,) indices into `evaluation.classes`.
        probabilities: (N,) of the positive class, or (N, C) with C > 2.
        paths: (N,) names of the images.
        patients: (N,) as given to `evaluate`; needed for the band of the ROC curve where patients are known.
        history: a row for each epoch, with `train_loss`, `val_loss` and `stage` where there are.
        facts: what it takes to know and repeat the run, in order.
        notes: warnings a reader has to know.
        errors: path and reason of each file that could not be read.

    Returns:
        The path of report.html.

    Raises:
        DataError: labels, probabilities and paths that do not fit each other or the evaluation.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    y, p = checked(labels, probabilities)
    if not len(y) == len(paths) == evaluation.n:
        raise DataError(f"a report on {evaluation.n} images got {len(y)} labels and {len(paths)} paths")
    drawn = _figures(evaluation, y, p, patients, history)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    for plot in drawn:
        (folder / "plots" / f"{plot.name}.svg").write_text(plot.svg, encoding="utf-8")

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"figure": _figure, "span": _span}
    two = evaluation.positive is not None
    negative, positive = evaluation.classes[:2]
    meanings = MEANINGS_OF_TWO if two else MEANINGS_OF_MORE
    chance = no_skill(evaluation)
    page = environment.get_template("report.html").render(
        title=title,
        evaluation=evaluation,
        level=f"{100 * evaluation.confidence:g} %",
        headline=[(NAMES[name], evaluation.metrics[name]) for name in HEADLINE],
        groups=GROUPS,
        names=NAMES,
        # str.format would take a brace in a class's name for one of its own
        meanings={
            name: meaning.replace("{positive}", positive).replace("{negative}", negative)
            for name, meaning in meanings.items()
        },
        no_skill=chance,
        strip={name: _strip(name, interval, chance.get(name), two) for name, interval in evaluation.metrics.items()},
        figures=[(plot, Markup(plot.svg)) for plot in drawn],  # noqa: S704 (matplotlib has escaped the names in it)
        mistakes=mistakes(evaluation, y, p, paths),
        wrong=int((decide(p, evaluation.threshold) != y).sum()),
        facts=facts,
        notes=notes,
        errors=errors[:SHOWN_ERRORS],
        more_errors=len(errors) - SHOWN_ERRORS,
    )  # fmt: skip
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def mistakes(
    evaluation: Evaluation, labels: ArrayLike, probabilities: ArrayLike, paths: Sequence[str], limit: int = 10
) -> list[ReportCase]:
    """List the wrong decisions, the surest first: by distance from the threshold, or by the highest probability."""
    y, p = checked(labels, probabilities)
    decided = decide(p, evaluation.threshold)
    stated, sureness = (p, np.abs(p - evaluation.threshold)) if p.ndim == 1 else (p.max(1), p.max(1))
    wrong = np.flatnonzero(decided != y)
    return [
        ReportCase(paths[i], evaluation.classes[y[i]], float(stated[i]), evaluation.classes[decided[i]])
        for i in wrong[np.argsort(-sureness[wrong], kind="stable")][:limit]
    ]


def no_skill(evaluation: Evaluation) -> dict[str, float]:
    """Say what the best rule that ignores the image reaches in each metric where that means something."""
    shares = list(evaluation.shares.values())
    common = {"accuracy": max(shares), "auroc": 0.5, "mcc": 0.0}
    if evaluation.positive is None:
        return common | {"brier": 1 - sum(share**2 for share in shares)}
    share = evaluation.prevalence
    return common | {
        "f1": 2 * share / (1 + share), "ppv": share, "npv": 1 - share, "average_precision": share,
        "brier": share * (1 - share),
    }  # fmt: skip


@dataclass(frozen=True)
class _Figure:
    """One plot of the page: `told` is what a reader who can't see it needs, `caption` what all do."""

    name: str
    svg: str
    told: str
    caption: str


def _figures(
    evaluation: Evaluation,
    y: NDArray[np.int64],
    p: NDArray[np.float64],
    patients: Sequence[str | None] | None,
    history: Sequence[Mapping[str, float | str | None]],
) -> list[_Figure]:
    two = evaluation.positive is not None
    level = f"{100 * evaluation.confidence:g} %"
    band = f" Band: {level} of the bootstrap, rate by rate." if plots.has_band(evaluation, patients) else ""
    of_each = "" if two else " One curve a class, against all others."
    point = " Dot: the threshold in use." if two else ""
    counts = plots.matrix(evaluation)
    told = "; ".join(
        f"{truth} called {decision}: {counts[i, j]}"
        for i, truth in enumerate(evaluation.classes)
        for j, decision in enumerate(evaluation.classes)
    )
    area, precision, error = (
        f"{NAMES[name]} {_figure(evaluation.metrics[name].value)}" for name in ("auroc", "average_precision", "ece")
    )
    figures = [
        _Figure(
            "confusion", plots.confusion_matrix(evaluation), f"Confusion matrix. {told}.",
            "Confusion matrix. A row is a true class; shade and percentage are shares of the row.",
        ),
        _Figure(
            "roc", plots.roc(evaluation, y, p, patients), f"ROC curve, {area}.",
            f"ROC curve.{band}{of_each}{point} Line: chance.",
        ),
        _Figure(
            "precision-recall", plots.precision_recall(evaluation, y, p), f"Precision-recall curve, {precision}.",
            f"Precision and recall.{of_each}{point}{' Line: chance, which is the prevalence.' if two else ''}",
        ),
        _Figure(
            "reliability", plots.reliability(evaluation, y, p), f"Reliability diagram, {error}.",
            "Reliability. On the line, probability and observed share agree. Larger dots hold more images; bars are "
            f"{level} intervals that leave patients aside.",
        ),
        _Figure(
            "probabilities", plots.histogram(evaluation, y, p), "Histogram of the probabilities.",
            "Spread of the probabilities, by true class. Dashed: the threshold." if two
            else "Spread of the highest probability, by whether the decision was right.",
        ),
    ]  # fmt: skip
    if history:
        figures.append(
            _Figure(
                "learning", plots.learning(history), f"Loss over {len(history)} epochs.",
                "Learning curve. Dot: the lowest validation loss; an upright line: a new stage.",
            )
        )  # fmt: skip
    return figures


def _strip(name: str, interval: Interval, chance: float | None, two: bool) -> dict[str, float]:
    """Place value, limits and chance, as far as there are any, in percent of the metric's range."""
    start, end = {"mcc": (-1, 1), "brier": (0, 1 if two else 2)}.get(name, (0, 1))
    places = {"value": interval.value, "low": interval.low, "high": interval.high}
    places["chance"] = math.nan if chance is None else chance
    return {
        key: round(100 * (place - start) / (end - start), 2) for key, place in places.items() if not math.isnan(place)
    }


def _figure(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}".replace("-", "−")


def _span(interval: Interval) -> str:
    if math.isnan(interval.value):
        return "not defined"
    return "no interval" if math.isnan(interval.low) else f"{_figure(interval.low)} to {_figure(interval.high)}"
