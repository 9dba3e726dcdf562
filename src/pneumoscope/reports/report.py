"""One page that says how good a model is, how sure that is, and where it fails: report.html and plots/.

The page needs no network and no other file, and its content-security policy says so. One small script moves the
threshold; whatever it shows at first stands in a table, too.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION, UNCERTAIN
from pneumoscope.decisions.threshold import Threshold, parse_rule
from pneumoscope.errors import DataError
from pneumoscope.evaluation.cases import Case, index_labels, stack_probabilities
from pneumoscope.evaluation.curves import (
    LISTED,
    OperatingPoints,
    count_points,
    predictive_values,
)
from pneumoscope.evaluation.decision_summary import summarise_decisions
from pneumoscope.evaluation.intervals.proportions import wilson_interval
from pneumoscope.evaluation.metrics import NAMES, check_predictions
from pneumoscope.evaluation.results import Evaluation, Interval
from pneumoscope.evaluation.subgroups import by_kind
from pneumoscope.files import write_text
from pneumoscope.reports.figures import draw_figures, draw_learning
from pneumoscope.reports.gallery import Draw, hang

HEADLINE = ("auroc", "sensitivity", "specificity", "accuracy", "f1")
GROUPS = (
    ("Calls", ("accuracy", "f1", "sensitivity", "specificity", "ppv", "npv", "mcc")),
    ("Ranking", ("auroc", "average_precision")),
    ("Probabilities: lower is better", ("brier", "ece")),
)
MEANINGS_OF_TWO = {
    "accuracy": "Share of images called rightly.",
    "f1": "Harmonic mean of sensitivity and PPV; blind to true negatives.",
    "sensitivity": "Of the images that are {positive}, the share called so.",
    "specificity": "Of the images that are {negative}, the share called so.",
    "ppv": "Share of {positive} among the images called so; moves with the prevalence.",
    "npv": "Share of {negative} among the images called so; moves with the prevalence.",
    "mcc": "Correlation of call and truth, from −1 to 1; fair to both classes.",
    "auroc": "Chance that a random {positive} image scores above a random {negative} one; needs no threshold.",
    "average_precision": "PPV averaged over all sensitivities: the area under the precision-recall steps.",
    "brier": "Mean squared distance of probability and truth; rewards ranking and calibration together.",
    "ece": "Mean gap between stated probability and observed share, over 10 bins. Small samples inflate it.",
}
MEANINGS_OF_MORE = {
    "accuracy": "Share of images called rightly.",
    "f1": "Harmonic mean of sensitivity and PPV, averaged over the classes.",
    "sensitivity": "Of the images of a class, the share called so, averaged over the classes.",
    "specificity": "Of the images not of a class, the share not called so, averaged over the classes.",
    "ppv": "Of the images called a class, the share that are of it, averaged over the classes.",
    "npv": "Of the images not called a class, the share that are not of it, averaged over the classes.",
    "mcc": "Correlation of call and truth, up to 1; fair to all classes.",
    "auroc": "Chance that an image of a class scores above one that is not, averaged over the classes.",
    "average_precision": "Area under the precision-recall steps, averaged over the classes.",
    "brier": "Squared distance of probabilities and truth, summed over the classes; from 0 to 2.",
    "ece": "Mean gap between the highest probability and the share of right calls, over 10 bins.",
}
CALIBRATIONS = {"temperature": "temperature scaling", "platt": "Platt scaling", "isotonic": "isotonic regression"}
SEVERITIES = ("error", "warning", "note")
PREVALENCES = (0.001, 0.002, 0.005, *(i / 100 for i in range(1, 100)))  # the second slider's stops
SHOWN_ERRORS = 50


@dataclass(frozen=True)
class Policy:
    """How probabilities become decisions.

    Attributes:
        threshold_rule: what chose the threshold on validation data, such as `youden`.
        calibration: `temperature`, `platt`, `isotonic`; empty or `none` for none.
        images: how many validation images that was fitted on.
        alpha: what conformal prediction sets promise to miss at most, of each class; None without them.
        views: how many random views of each validation image took part in all of this.
    """

    threshold_rule: str = ""
    calibration: str = ""
    images: int = 0
    alpha: float | None = None
    views: int = 0


@dataclass(frozen=True)
class ReportFinding:
    """What an audit found: `severity` is `error`, `warning` or `note`; `files` names some of those concerned."""

    severity: str
    title: str
    advice: str = ""
    files: str = ""


@dataclass(frozen=True)
class Record:
    """How a result came about, and what a reader has to know of it.

    Attributes:
        history: a row for each epoch, with `train_loss`, `val_loss` and `phase` where there are.
        findings: of the audit.
        notes: other warnings.
        errors: path and reason of each file that could not be read.
        facts: what it takes to know and repeat the run, in order: data, fingerprint, command and so on.
        environment: versions and machine, see `environment.describe_environment`.
    """

    history: Sequence[Mapping[str, Any]] = ()
    findings: Sequence[ReportFinding] = ()
    notes: Sequence[str] = ()
    errors: Sequence[tuple[str, str]] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


def write_report(
    folder: Path,
    evaluation: Evaluation,
    cases: Sequence[Case],
    *,
    title: str,
    policy: Policy = Policy(),
    record: Record = Record(),
    draw: Draw | None = None,
) -> Path:
    """Write `folder`/report.html, complete in itself, and its plots as `folder`/plots/*.svg.

    Args:
        folder: where to write; made if need be.
        evaluation: of these cases.
        cases: the images that could be read.
        title: heading of the page.
        policy: how their probabilities became decisions.
        record: how all this came about.
        draw: draws the picture of a case, by index, for the gallery.

    Returns:
        The path of report.html.

    Raises:
        DataError: cases that do not fit the evaluation.
        UsageError: the page cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    if len(cases) != evaluation.n:
        raise DataError(f"a report on {evaluation.n} images got {len(cases)} cases")
    y, p = check_predictions(index_labels(cases, evaluation.classes), stack_probabilities(cases))
    two = evaluation.positive is not None
    threshold = evaluation.threshold if two else 0.5
    figures = draw_figures(evaluation, cases, y, p, CALIBRATIONS.get(policy.calibration, ""))
    if record.history:
        figures["learning"] = draw_learning(record.history)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    for figure in figures.values():
        write_text(folder / "plots" / f"{figure.name}.svg", figure.svg)
    both = two and 0 < evaluation.prevalence < 1
    points = count_points(y, p, threshold, evaluation.confidence) if both else None
    script = (Path(__file__).parent / "templates" / "explorer.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

    environment = Environment(
        loader=PackageLoader("pneumoscope.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"figure": _figure, "span": _span, "percent": _percent, "breakable": _break, "name": _name}
    negative, positive = evaluation.classes[:2]
    chance = no_skill(evaluation)
    page = environment.get_template("report.html").render(
        title=title,
        evaluation=evaluation,
        level=f"{100 * evaluation.confidence:g}\u00a0%",
        headline=HEADLINE,
        groups=GROUPS,
        names=NAMES,
        # str.format would take a brace in a class's name for one of its own
        meanings={
            name: meaning.replace("{positive}", positive).replace("{negative}", negative)
            for name, meaning in (MEANINGS_OF_TWO if two else MEANINGS_OF_MORE).items()
        },
        no_skill=chance,
        place=lambda name, interval, tick=None: _place(name, interval, tick, two),
        figures={  # matplotlib has escaped the names in it
            name: (figure, Markup(figure.svg)) for name, figure in figures.items()  # noqa: S704
        },
        policy=policy,
        rule=describe_rule(policy.threshold_rule),
        moves=bool(policy.threshold_rule) and Threshold(0.5, policy.threshold_rule).follows_prevalence,
        calibration=CALIBRATIONS.get(policy.calibration, ""),
        decisions=count_decisions(cases, evaluation, policy),
        points=points,
        start=_describe_start(points, evaluation),
        rows=tabulate_points(points, evaluation.prevalence, evaluation.confidence) if points else [],
        script=Markup(script) if points else None,  # noqa: S704
        digest=digest,
        subgroups=by_kind(evaluation.subgroups),
        walls=hang(cases, threshold, draw),
        drawn=draw is not None,
        methods=_group_methods(evaluation),
        record=record,
        findings=sorted(record.findings, key=lambda finding: SEVERITIES.index(finding.severity)),
        errors=record.errors[:SHOWN_ERRORS],
        more_errors=len(record.errors) - SHOWN_ERRORS,
    )  # fmt: skip
    path = folder / "report.html"
    write_text(path, page)
    return path


@dataclass(frozen=True)
class Decisions:
    """How the images of each class were decided.

    Attributes:
        columns: decisions that can occur, classes first.
        rows: for each true class its count of each decision.
        totals: how many are not answered, by why.
        answered: share that got a class.
        accuracy: of them.
        coverage: how often prediction sets held the truth, by class; empty without prediction sets.
    """

    columns: tuple[str, ...]
    rows: Mapping[str, tuple[int, ...]]
    totals: Mapping[str, int]
    answered: Interval
    accuracy: Interval
    coverage: Mapping[str, Interval]


def count_decisions(cases: Sequence[Case], evaluation: Evaluation, policy: Policy) -> Decisions | None:
    """Count decisions by true class; None where neither prediction sets nor a detector could leave one out."""
    detector = any(case.ood_score is not None for case in cases)
    found = {case.decision for case in cases}
    due = {UNCERTAIN: policy.alpha is not None, OUT_OF_DISTRIBUTION: detector}
    shown = tuple(name for name in due if due[name] or name in found)
    if not shown:
        return None
    summary = evaluation.decisions or summarise_decisions(
        [case.label for case in cases],
        [case.decision for case in cases],
        [case.prediction_set for case in cases],
        evaluation.classes,
        evaluation.confidence,
    )
    columns = (*evaluation.classes, *shown)
    rows = {
        label: tuple(sum(case.label == label and case.decision == one for case in cases) for one in columns)
        for label in evaluation.classes
    }
    return Decisions(
        columns, rows, {name: summary["counts"][name] for name in shown}, _interval(summary["answered"]),
        _interval(summary["accuracy_of_answered"]),
        {
            label: _interval(rate)
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
        "youden": "the highest sum of sensitivity and specificity on validation data",
        "likelihood": "where an image is as likely under either class, by a logistic curve through validation data",
        "f1": "the highest F1 on validation data",
        "sensitivity": f"a sensitivity of at least {goal.value:g} on validation data",
        "specificity": f"a specificity of at least {goal.value:g} on validation data",
        "cost": f"a miss costs as much as {goal.value:g} false alarms",
        "fixed": "fixed beforehand",
    }[goal.kind]


@dataclass(frozen=True)
class PointRow:
    """Rates at one threshold; `own` marks the model's."""

    threshold: float
    sensitivity: Interval
    specificity: Interval
    ppv: float
    npv: float
    own: bool


def tabulate_points(points: OperatingPoints, prevalence: float, confidence: float) -> list[PointRow]:
    """Say what a few thresholds would give, the model's among them, with Wilson's limits."""
    rows = []
    for i, threshold in enumerate(points.thresholds):
        if i == points.start or threshold in LISTED:
            right, rejected = points.tp[i], points.negatives - points.fp[i]
            rates = [
                Interval(count / n, *wilson_interval(count / n, n, confidence))
                for count, n in ((right, points.positives), (rejected, points.negatives))
            ]
            ppv, npv = predictive_values(rates[0].value, rates[1].value, prevalence)
            rows.append(PointRow(threshold, rates[0], rates[1], ppv, npv, own=i == points.start))
    return rows


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


def _group_methods(evaluation: Evaluation) -> dict[str, list[str]]:
    """What limits come from, with the metrics whose they are."""
    grouped: dict[str, list[str]] = {}
    for name in NAMES:
        if (method := evaluation.methods.get(name, "none")) != "none":
            grouped.setdefault(method, []).append(NAMES[name])
    return grouped


def _describe_start(points: OperatingPoints | None, evaluation: Evaluation) -> dict[str, Any]:
    """What the page's script needs."""
    if points is None:
        return {}
    stops = sorted({*PREVALENCES, evaluation.prevalence})
    return {
        "data": json.dumps(
            {**points.to_json(), "prevalences": stops, "positive": evaluation.positive}, separators=(",", ":")
        ),
        "stop": stops.index(evaluation.prevalence),
        "stops": len(stops),
        "threshold": evaluation.threshold,
        "prevalence": evaluation.prevalence,
    }


def _place(name: str, interval: Interval, tick: float | None, two: bool) -> dict[str, float]:
    """Place value, limits and a tick, as far as there are any, in percent of the metric's range."""
    start, end = {"mcc": (-1, 1), "brier": (0, 1 if two else 2)}.get(name, (0, 1))
    places = {"value": interval.value, "low": interval.low, "high": interval.high}
    places["tick"] = math.nan if tick is None else tick
    return {
        key: round(100 * (place - start) / (end - start), 2) for key, place in places.items() if not math.isnan(place)
    }


def _interval(rate: Mapping[str, float | int | None]) -> Interval:
    return Interval(*(math.nan if (one := rate[key]) is None else one for key in ("value", "low", "high")))


def _figure(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}".replace("-", "−")


def _percent(value: float) -> str:
    if 0 < value < 5e-4 or 1 - 5e-4 < value < 1:  # no digits beyond what is known
        return "under 0.1\u00a0%" if value < 0.5 else "over 99.9\u00a0%"
    return "–" if math.isnan(value) else f"{100 * value:.3g}\u00a0%"


def _span(interval: Interval) -> str:
    if math.isnan(interval.value):
        return "not defined"
    return "no interval" if math.isnan(interval.low) else f"{_figure(interval.low)} to {_figure(interval.high)}"


def _name(path: str) -> str:
    """A file's name without its folder; its middle is left out where it is long."""
    name = PurePath(path).name
    return name if len(name) <= 40 else f"{name[:20]}…{name[-19:]}"


def _break(name: str) -> list[str]:
    """The parts of a name between which a line may be broken."""
    return re.findall(r"[^_…-]*[_…-]|[^_…-]+", name)
