"""The report of an evaluation, report.html and plots/: how good a model is, how certain this is, and where it fails.

One small script moves the threshold; a table also shows what it starts with.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pneumoscope.auditing.findings import SEVERITIES, Finding
from pneumoscope.decisions.calibration import NAMES as CALIBRATIONS
from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION, UNCERTAIN
from pneumoscope.decisions.threshold import Threshold, parse_rule
from pneumoscope.evaluation.before_after import Evidence
from pneumoscope.evaluation.curves import LISTED, OperatingPoints, count_points, predictive_values
from pneumoscope.evaluation.evaluate import Measured
from pneumoscope.evaluation.intervals.proportions import wilson_interval
from pneumoscope.evaluation.metrics import NAMES
from pneumoscope.evaluation.out_of_fold import Folds
from pneumoscope.evaluation.results import Evaluation, Interval
from pneumoscope.evaluation.subgroups import by_kind, choose_metrics, count_differences
from pneumoscope.files import write_text
from pneumoscope.reports.figures import make_figures, save_figures
from pneumoscope.reports.gallery import Draw, choose_images
from pneumoscope.reports.pages import format_level, group_methods, render

HEADLINE = ("auroc", "sensitivity", "specificity", "accuracy", "f1")
GROUPS = {
    "Predicted labels": ("accuracy", "f1", "sensitivity", "specificity", "ppv", "npv", "mcc"),
    "Ranking": ("auroc", "average_precision"),
    "Probabilities (lower is better)": ("brier", "ece"),
}
MEANINGS_OF_TWO = {
    "accuracy": "Proportion of images whose predicted label is correct.",
    "f1": "Harmonic mean of sensitivity and PPV; ignores true negatives.",
    "sensitivity": "Of the {positive} images, the proportion predicted as {positive}.",
    "specificity": "Of the {negative} images, the proportion predicted as {negative}.",
    "ppv": "Of the images predicted as {positive}, the proportion that are; depends on the prevalence.",
    "npv": "Of the images predicted as {negative}, the proportion that are; depends on the prevalence.",
    "mcc": "Correlation of predicted and true labels, from −1 to 1; balanced between the classes.",
    "auroc": "Probability that a random {positive} image scores higher than a random {negative} one.",
    "average_precision": "Area under the precision-recall curve: PPV averaged over all sensitivities.",
    "brier": "Mean squared difference between probability and truth; reflects ranking and calibration.",
    "ece": "Mean gap between predicted and observed frequency over 10 bins; too high in small samples.",
}
MEANINGS_OF_MORE = {
    "accuracy": "Proportion of images whose predicted label is correct.",
    "f1": "Harmonic mean of sensitivity and PPV, averaged over the classes.",
    "sensitivity": "Of the images of a class, the proportion predicted as it, averaged over the classes.",
    "specificity": "Of the images of other classes, the proportion not predicted as it, averaged over the classes.",
    "ppv": "Of the images predicted as a class, the proportion that are, averaged over the classes.",
    "npv": "Of the images not predicted as a class, the proportion that are not, averaged over the classes.",
    "mcc": "Correlation of predicted and true labels, up to 1; balanced between the classes.",
    "auroc": "Probability that an image of a class scores higher than one of another, averaged over the classes.",
    "average_precision": "Area under the precision-recall curve, averaged over the classes.",
    "brier": "Squared difference between probabilities and truth, summed over the classes; from 0 to 2.",
    "ece": "Mean gap between the highest probability and the proportion correct, over 10 bins.",
}
PREVALENCES = (0.001, 0.002, 0.005, *(i / 100 for i in range(1, 100)))  # the second slider's stops
SHOWN_ERRORS = 50


@dataclass(frozen=True)
class Policy:
    """How validation data were turned into decisions: rule of the threshold, method of calibration on so many images.

    `alpha` is None without prediction sets; `augmented` copies of each validation image took part. `groups` describe
    those that have decisions of their own.
    """

    threshold_rule: str = ""
    calibration: str = ""
    images: int = 0
    alpha: float | None = None
    augmented: int = 0
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Provenance:
    """Where a result comes from: rows of `history.csv`, findings of the audit, other warnings.

    `facts` are what a reader needs to understand and repeat the run, in order: data, fingerprint, command and so on.
    `adaptation` says how the model was adapted to the images, if it was, and `folds` what each fold of a
    cross-validation found.
    """

    history: Sequence[Mapping[str, Any]] = ()
    findings: Sequence[Finding] = ()
    notes: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    adaptation: Evidence | None = None
    folds: Folds | None = None


def write_report(
    folder: Path,
    measured: Measured,
    *,
    title: str,
    policy: Policy = Policy(),
    provenance: Provenance = Provenance(),
    draw: Draw | None = None,
    explained: bool = True,
    plot_formats: str = "svg",
) -> None:
    """Write `folder`/report.html, complete in itself, and its plots into `folder`/plots.

    `draw` makes its pictures; `explained` says whether these hold evidence maps.

    Raises:
        DataError: predictions that do not fit the evaluation.
        UsageError: an unknown format of plots, or a file that cannot be written.
    """
    evaluation = measured.evaluation
    calibration = CALIBRATIONS.get(policy.calibration, "")
    figures = make_figures(measured, calibration, provenance.history)
    elements = save_figures(figures, folder / "plots", plot_formats)
    explorer = _fill_explorer(measured, "mean" if provenance.folds else "model")
    page = render(
        "report.html",
        script="explorer.js" if explorer else "",
        title=title,
        evaluation=evaluation,
        level=format_level(evaluation.confidence),
        figures={name: (figure, elements[name]) for name, figure in figures.items()},
        policy=policy,
        calibration=calibration,
        rule=describe_rule(policy.threshold_rule),
        threshold_moves=bool(policy.threshold_rule) and Threshold(0.5, policy.threshold_rule).follows_prevalence,
        decisions=count_decisions(measured, policy),
        explorer=explorer,
        subgroups=by_kind(evaluation.subgroups),
        differences=count_differences(evaluation.subgroups, evaluation.n),
        metrics_of_subgroups=choose_metrics(evaluation),
        galleries=choose_images(measured.predictions, measured.cut, draw),
        drawn=draw is not None,
        explained=explained,
        methods=group_methods(evaluation.methods),
        provenance=provenance,
        findings=sorted(provenance.findings, key=lambda finding: SEVERITIES.index(finding.severity)),
        errors=measured.errors[:SHOWN_ERRORS],
        more_errors=len(measured.errors) - SHOWN_ERRORS,
        **_describe_metrics(evaluation),
    )  # fmt: skip
    write_text(folder / "report.html", page)


def leave_images_out(page: str) -> str:
    """A report without images and without what may name files and patients: images to review, audit and warnings."""
    for name in ("images", "audit", "errors"):
        page = re.sub(rf'<section aria-labelledby="{name}">.*?</section>', "", page, flags=re.DOTALL)
        page = re.sub(rf'<a href="#{name}">[^<]*</a>', "", page)
    return re.sub(r'<ul class="notes".*?</ul>', "", page, flags=re.DOTALL)


def _describe_metrics(evaluation: Evaluation) -> dict[str, Any]:
    """Return what the page says about each metric: groups, meanings, scales and chance level."""
    two = evaluation.positive is not None
    negative, positive = evaluation.classes[:2]
    return {
        "headline": HEADLINE,
        "groups": GROUPS,
        "meanings": {  # str.format would take a brace in a class's name for one of its own
            name: meaning.replace("{positive}", positive).replace("{negative}", negative)
            for name, meaning in (MEANINGS_OF_TWO if two else MEANINGS_OF_MORE).items()
        },
        "scales": dict.fromkeys(NAMES, (0, 1)) | {"mcc": (-1, 1), "brier": (0, 1 if two else 2)},
        "chance": find_chance_level(evaluation),
    }


@dataclass(frozen=True)
class DecisionCounts:
    """Decisions by true class (classes first), images without a label by reason, and coverage of prediction sets."""

    columns: tuple[str, ...]
    rows: Mapping[str, tuple[int, ...]]
    totals: Mapping[str, int]
    labelled: Interval
    accuracy: Interval
    coverage: Mapping[str, Interval]


def count_decisions(measured: Measured, policy: Policy) -> DecisionCounts | None:
    """Count decisions by true class; None for a model that labels every image."""
    predictions, summary = measured.predictions, measured.evaluation.decisions
    classes, made = measured.evaluation.classes, {each.decision for each in predictions}
    possible = {
        UNCERTAIN: policy.alpha is not None or UNCERTAIN in made,
        OUT_OF_DISTRIBUTION: any(each.ood_score is not None for each in predictions) or OUT_OF_DISTRIBUTION in made,
    }
    shown = tuple(name for name in possible if possible[name])
    if not shown or not summary:
        return None
    columns = (*classes, *shown)
    rows = {
        label: tuple(sum((each.label, each.decision) == (label, made) for each in predictions) for made in columns)
        for label in classes
    }
    return DecisionCounts(
        columns, rows, {name: summary["counts"][name] for name in shown}, _to_interval(summary["answered"]),
        _to_interval(summary["accuracy_of_answered"]),
        {
            label: _to_interval(rate)
            for label, rate in summary.get("coverage", {}).items()
            if policy.alpha and rate["n"]
        },
    )  # fmt: skip


def describe_rule(rule: str) -> str:
    """Say in words how a threshold was chosen."""
    if not rule:
        return ""
    goal = parse_rule(rule)
    return {
        "youden": "maximises sensitivity + specificity on validation data",
        "likelihood": "where an image is equally likely under both classes (logistic fit to validation data)",
        "f1": "maximises F1 on validation data",
        "sensitivity": f"reaches a sensitivity of {goal.value:g} on validation data",
        "specificity": f"reaches a specificity of {goal.value:g} on validation data",
        "cost": f"a missed positive costs as much as {goal.value:g} false alarms",
        "fixed": "set in advance",
    }[goal.kind]


@dataclass(frozen=True)
class ThresholdRow:
    """Rates at one threshold; `in_use` marks the model's."""

    threshold: float
    sensitivity: Interval
    specificity: Interval
    ppv: float
    npv: float
    in_use: bool


def tabulate_thresholds(points: OperatingPoints, prevalence: float, confidence: float) -> list[ThresholdRow]:
    """Rates at a few thresholds, the model's among them, with Wilson's intervals."""
    rows = []
    for i, threshold in enumerate(points.thresholds):
        if i == points.start or threshold in LISTED:
            hits, rejections = points.tp[i], points.negatives - points.fp[i]
            rates = [
                Interval(count / n, *wilson_interval(count / n, n, confidence))
                for count, n in ((hits, points.positives), (rejections, points.negatives))
            ]
            ppv, npv = predictive_values(rates[0].value, rates[1].value, prevalence)
            rows.append(ThresholdRow(threshold, rates[0], rates[1], ppv, npv, in_use=i == points.start))
    return rows


def _fill_explorer(measured: Measured, mark: str) -> dict[str, Any]:
    """Return what the explorer of thresholds and prevalences starts with; nothing if it has no meaning.

    `mark` says whose threshold that of the evaluation is: the model's, or the mean of several models.
    """
    evaluation = measured.evaluation
    if evaluation.positive is None or not 0 < evaluation.prevalence < 1:
        return {}
    points = count_points(measured.labels, measured.probabilities, evaluation.threshold)
    stops = sorted({*PREVALENCES, evaluation.prevalence})
    data = {**asdict(points), "prevalences": stops, "positive": evaluation.positive, "mark": mark}
    return {
        "mark": mark,
        "points": points,
        "rows": tabulate_thresholds(points, evaluation.prevalence, evaluation.confidence),
        "data": json.dumps(data, separators=(",", ":")),
        "stop": stops.index(evaluation.prevalence),
        "stops": len(stops),
    }


def find_chance_level(evaluation: Evaluation) -> dict[str, float]:
    """The best value of each metric that is possible without looking at the image, where that means something."""
    shares = list(evaluation.shares.values())
    common = {"accuracy": max(shares), "auroc": 0.5, "mcc": 0.0}
    if evaluation.positive is None:
        return common | {"brier": 1 - sum(share**2 for share in shares)}
    share = evaluation.prevalence
    return common | {
        "f1": 2 * share / (1 + share), "ppv": share, "npv": 1 - share, "average_precision": share,
        "brier": share * (1 - share),
    }  # fmt: skip


def _to_interval(rate: Mapping[str, float | int | None]) -> Interval:
    return Interval(*(math.nan if (end := rate[key]) is None else end for key in ("value", "low", "high")))
