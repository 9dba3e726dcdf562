"""Ranks many tables of predictions by labels that their authors do not know.

Nothing that is written shows the label of one image: no curve, no image by its result, and numbers of three decimals.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.joining import join_names
from pneumoscope.datasets.prediction_tables import PredictionTable, read_prediction_table
from pneumoscope.datasets.samples import Sample, cluster_by_patient
from pneumoscope.errors import DataError, PneumoscopeError, UsageError
from pneumoscope.evaluation.external_tables import Choices, find_positive
from pneumoscope.evaluation.intervals.all_metrics import evaluate_predictions, measure_some
from pneumoscope.evaluation.intervals.bootstrap import resample
from pneumoscope.evaluation.intervals.proportions import CONFIDENCE
from pneumoscope.evaluation.intervals.ranks import find_better, find_places, find_ties
from pneumoscope.evaluation.metrics import METRICS, NAMES, measure
from pneumoscope.evaluation.results import Interval, without_nan
from pneumoscope.notebook import Drawn, to_frame, to_html
from pneumoscope.text import counted, tell_apart

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LOWER_IS_BETTER = ("brier", "ece")
_QUICK = ("accuracy", "f1", "sensitivity", "specificity", "ppv", "npv", "auroc")  # intervals without resampling
_DECIMALS = 3
_NAMED = 3  # images in a reason
_FEW = 10  # different probabilities: below, equal orders are no coincidence to speak of


@dataclass(frozen=True)
class Graded:
    """A submission with its place; places of equal values are equal."""

    place: int
    best_place: int  # simultaneous 95% interval of the places of all submissions
    worst_place: int
    submission: str
    value: Interval  # of the metric that decides
    metrics: Mapping[str, float]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class NotRanked:
    """A submission that cannot be ranked, and why."""

    submission: str
    reason: str


@dataclass(frozen=True)
class Grading(Drawn):
    """Submissions, ranked by a metric.

    Attributes:
        metric: that decides.
        split: of the labels.
        n: number of images.
        patients: number of distinct known patients; None if none is known.
        classes: their names; if there are two, the second is positive.
        ranked: the submissions in order.
        not_ranked: those that cannot be used.
        ties: first and last position in `ranked`, from 1, of the longest runs in which no two are distinguished.
        notes: what a reader must know.
        resamples: bootstrap resamples.
        seed: fixes them.
        confidence: of the intervals, and of all places together.
    """

    metric: str
    split: str
    n: int
    patients: int | None
    classes: tuple[str, ...]
    ranked: tuple[Graded, ...]
    not_ranked: tuple[NotRanked, ...]
    ties: tuple[tuple[int, int], ...]
    notes: tuple[str, ...]
    resamples: int
    seed: int
    confidence: float = CONFIDENCE

    def __repr__(self) -> str:
        return f"Grading({self.metric}: {len(self.ranked)} ranked, {len(self.not_ranked)} not)"

    def _repr_html_(self) -> str:
        return to_html(f"{NAMES[self.metric]} on {counted(self.n, 'image')}", self.to_rows())

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each submission; it needs pandas."""
        return to_frame(self.to_rows())

    def to_json(self) -> dict[str, Any]:
        """Return the content of grading.json; undefined values are None, as JSON has no nan."""
        plain: dict[str, Any] = without_nan(asdict(self))
        return plain

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a row for each submission, those that are not ranked last."""
        names = list(dict.fromkeys((self.metric, *METRICS)))
        rows: list[dict[str, Any]] = [
            {"place": each.place, "best_place": each.best_place, "worst_place": each.worst_place,
             "submission": each.submission, "low": each.value.low, "high": each.value.high,
             **{name: each.metrics[name] for name in names}, "remarks": " ".join(each.remarks), "not_ranked": ""}
            for each in self.ranked
        ]  # fmt: skip
        columns = ("place", "best_place", "worst_place", "submission", "low", "high", *names, "remarks", "not_ranked")
        rows += [
            dict.fromkeys(columns) | {"submission": bad.submission, "not_ranked": bad.reason} for bad in self.not_ranked
        ]
        plain: list[dict[str, Any]] = without_nan(rows)
        return plain

    def describe_ties(self) -> list[str]:
        """Say which places cannot be distinguished."""
        return [f"Places {first} to {last} cannot be distinguished." for first, last in self.ties]


@dataclass(frozen=True, eq=False)
class _Truth:
    """The N labelled images, those of all splits included."""

    names: list[str]  # without what tells the class
    flat: bool  # whether file names alone identify images
    chosen: Ints  # indices of those that are graded
    labels: Ints  # of the chosen ones
    patients: list[str | None]
    classes: tuple[str, ...]
    positive: str | None


def grade_submissions(
    truth: Sequence[Sample],
    submissions: Sequence[Path],
    choices: Choices,
    *,
    root: Path = Path(),
    metric: str = "auroc",
    split: str | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Grading:
    """Rank tables of predictions by a metric; what is wrong with one does not stop the others.

    Args:
        truth: labelled images.
        submissions: tables with a probability for each image; a folder stands for the tables in it.
        choices: how to read them, and the positive class.
        root: the folder that the images of `truth` are in.
        metric: one of `METRICS`, at a threshold of 0.5 or of the likeliest class where it needs labels.
        split: of the images to grade, or `all`; by default `test` if there is one.
        resamples: bootstrap resamples.
        seed: fixes them.

    Raises:
        UsageError: the metric or the split does not exist, or there are no submissions.
        DataError: the labels cannot be used, or no submission can.
    """
    if metric not in METRICS:
        raise UsageError(f"no metric is named {metric!r}. Known: {', '.join(METRICS)}.", "metric")
    if not submissions:
        raise UsageError("none was given. Name tables of predictions, or a folder of them.", "submissions")
    known, split = _prepare(truth, root, choices, split)
    names = tell_apart([path.as_posix() for path in submissions])
    found, refused = {}, []
    for path, name in zip(submissions, names, strict=True):
        try:
            found[name] = _read(path, known, choices)
        except PneumoscopeError as problem:
            refused.append(NotRanked(name, problem.message.removeprefix(f"{path}: ")))
    values = {name: _measure(known, p, metric, resamples, seed) for name, p in found.items()}
    for name in [name for name, (value, _) in values.items() if math.isnan(value.value)]:
        refused.append(NotRanked(name, f"{NAMES[metric]} is not defined for these predictions."))
        del values[name], found[name]
    if not found:
        raise DataError(f"No submission can be ranked. {refused[0].submission}: {refused[0].reason}")
    ranked, ties, notes = _rank(known, found, values, metric, resamples, seed)
    order = {name: i for i, name in enumerate(names)}
    return Grading(
        metric, split, len(known.labels), len({each for each in known.patients if each}) or None, known.classes, ranked,
        tuple(sorted(refused, key=lambda each: order[each.submission])), ties, notes, resamples, seed,
    )  # fmt: skip


def _prepare(truth: Sequence[Sample], root: Path, choices: Choices, split: str | None) -> tuple[_Truth, str]:
    """Choose the images, and name them so that a name does not tell the class."""
    classes, positive = find_positive(truth, choices.positive)
    present = {sample.split for sample in truth}
    split = split or ("test" if "test" in present else "all")
    chosen = [i for i, sample in enumerate(truth) if split in ("all", sample.split)]
    if not chosen:
        found = ", ".join(sorted(str(each or "no split") for each in present))
        raise UsageError(f"no split {split!r}; the labels have {found}. Use `all` for all.", "split")
    labels = np.array([classes.index(str(truth[i].label)) for i in chosen])
    if lacking := [name for i, name in enumerate(classes) if i not in labels]:
        raise DataError(f"No image of the class {lacking[0]} is in the split {split}, so nothing can be graded.")
    paths = [each.path.relative_to(root) if each.path.is_relative_to(root) else each.path for each in truth]
    flat = len({path.stem for path in paths}) == len(paths)
    names = [_name(path.as_posix(), classes, flat) for path in paths]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(
            f"{counted(len(repeated), 'name')} belong to several images, such as {repeated[0]!r}. Class folders cannot "
            "tell them apart, as a submission must not need the class. Rename the images."
        )
    patients = [truth[i].patient for i in chosen]
    return _Truth(names, flat, np.array(chosen), labels, patients, classes, positive), split


def _name(path: str, classes: Sequence[str], flat: bool) -> str:
    """An image's name for joining, without folders that are named like a class."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    folders = [] if flat else [part for part in parts[:-1] if part not in classes]
    return "/".join([*folders, *parts[-1:]])


def _read(path: Path, truth: _Truth, choices: Choices) -> Floats:
    """Probabilities (N,), or (N, C) of more than two classes, of all graded images.

    Raises:
        PneumoscopeError: they cannot be used; the message says all that is wrong with the images.
    """
    table = read_prediction_table(path, truth.classes, truth.positive, choices.columns)
    names = [_name(name, truth.classes, truth.flat) for name in table.names]
    partners = join_names(names, truth.names, str(path)).partners
    rows = {place: row for row, place in enumerate(partners) if place is not None}
    if problems := _find_problems(table, names, partners, truth):
        raise DataError(" ".join(problems))
    probabilities = table.probabilities[[rows[i] for i in truth.chosen.tolist()]]
    return probabilities[:, 1] if len(truth.classes) == 2 else probabilities


def _find_problems(
    table: PredictionTable, names: Sequence[str], partners: Sequence[int | None], truth: _Truth
) -> list[str]:
    """Say all that is wrong with the images of a submission; names of the truth do not tell the class."""
    counts = Counter(place if place is not None else name for name, place in zip(names, partners, strict=True))
    present = {place for place in partners if place is not None}
    repeated = [
        name for name, place in zip(names, partners, strict=True) if counts[name if place is None else place] > 1
    ]
    missing = [truth.names[i] for i in truth.chosen.tolist() if i not in present]
    unknown = [name for name, place in zip(names, partners, strict=True) if place is None]
    broken = np.flatnonzero(~np.isfinite(table.probabilities).all(axis=1)).tolist()
    problems = []
    if missing:
        problems.append(f"Missing: {counted(len(missing), 'image')} of {len(truth.chosen):,}{_list(missing)}.")
    if unknown:
        problems.append(f"Unknown: {counted(len(unknown), 'image')}{_list(unknown)}.")
    if repeated:
        problems.append(f"Repeated: {counted(len(repeated), 'row')}{_list(list(dict.fromkeys(repeated)))}.")
    if broken:
        where = f"{table.table.unit} {table.table.numbers[broken[0]]}"
        problems.append(
            f"Not a number: the probability in {counted(len(broken), 'row')}, such as {table.texts[broken[0]]} in "
            f"{where}."
        )
    return problems


def _list(names: Sequence[str]) -> str:
    return f", such as {', '.join(names[:_NAMED])}"


def _measure(
    truth: _Truth, probabilities: Floats, metric: str, resamples: int, seed: int
) -> tuple[Interval, dict[str, float]]:
    """The metric that decides with its interval, and all metrics."""
    if metric in _QUICK:
        value = measure_some(truth.labels, probabilities, [metric], patients=truth.patients)[metric]
    else:
        value = evaluate_predictions(
            truth.labels, probabilities, classes=truth.classes, patients=truth.patients, resamples=resamples, seed=seed
        ).metrics[metric]
    return value, {name: float(each[0]) for name, each in measure(truth.labels, probabilities).items()}


def _rank(
    truth: _Truth,
    found: Mapping[str, Floats],
    values: Mapping[str, tuple[Interval, dict[str, float]]],
    metric: str,
    resamples: int,
    seed: int,
) -> tuple[tuple[Graded, ...], tuple[tuple[int, int], ...], tuple[str, ...]]:
    """The submissions in order, the runs of them that are not distinguished, and notes."""
    sign = -1 if metric in LOWER_IS_BETTER else 1
    order = sorted(found, key=lambda name: (-sign * values[name][0].value, name))
    scores = np.array([sign * values[name][0].value for name in order])
    drawn = sign * _resample(truth, [found[name] for name in order], metric, resamples, seed)
    defined = np.isfinite(drawn).all(axis=0)
    notes = []
    better = find_better(scores, drawn[:, defined])
    if defined.mean() < 0.5:
        better[:] = False
        notes.append(f"{NAMES[metric]} is not defined in most resamples, so no places are distinguished.")
    if not any(truth.patients):
        notes.append("Patients are unknown: if some have several images, intervals are too narrow.")
    best, worst = find_places(better)
    alike = _find_alike([found[name] for name in order], order)
    ranked = tuple(
        Graded(
            1 + int((scores > scores[i]).sum()), int(best[i]), int(worst[i]), name, _round_interval(values[name][0]),
            {each: round(number, _DECIMALS) for each, number in values[name][1].items()}, alike[name],
        )
        for i, name in enumerate(order)
    )  # fmt: skip
    return ranked, tuple((first + 1, last + 1) for first, last in find_ties(better)), tuple(notes)


def _resample(truth: _Truth, found: Sequence[Floats], metric: str, resamples: int, seed: int) -> Floats:
    """The metric of each submission (M, B) in resamples of the patients, which are the same for all."""
    clusters = cluster_by_patient(truth.patients, len(truth.labels))
    chunks = [
        [measure(truth.labels, probabilities, weights=weights)[metric] for probabilities in found]
        for weights in resample(clusters, resamples, seed)
    ]
    return np.concatenate(chunks, axis=1)


def _round_interval(value: Interval) -> Interval:
    return Interval(*(round(each, _DECIMALS) for each in (value.value, value.low, value.high)))


def _find_alike(found: Sequence[Floats], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Remarks on submissions that are identical to others, or put all images in the same order."""
    remarks: dict[str, list[str]] = {name: [] for name in names}
    for what, keys in (
        ("Identical to", [each.tobytes() for each in found]),
        ("Other probabilities, but the same order of all images as", [_find_order(each) for each in found]),
    ):
        groups: dict[bytes, list[int]] = {}
        for i, key in enumerate(keys):
            groups.setdefault(key, []).append(i)
        for key, members in groups.items():
            for i in members if key else ():
                others = [names[j] for j in members if j != i and (what[0] == "I" or (found[i] != found[j]).any())]
                if others:
                    remarks[names[i]].append(f"{what} {', '.join(others)}.")
    return {name: tuple(each) for name, each in remarks.items()}


def _find_order(probabilities: Floats) -> bytes:
    """What submissions share that put all images in the same order; empty where that means little."""
    if probabilities.ndim > 1 or len(np.unique(probabilities)) < _FEW:
        return b""
    return np.unique(probabilities, return_inverse=True)[1].astype(np.int64).tobytes()
