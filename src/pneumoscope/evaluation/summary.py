"""Summarises many runs: groups them by their settings, averages over seeds, and compares groups on the same images."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.config import read_mapping
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.intervals.bootstrap import jackknife
from pneumoscope.evaluation.intervals.differences import TINY, Difference, adjust_holm
from pneumoscope.evaluation.intervals.proportions import CONFIDENCE, Floats, t_quantile, t_tails
from pneumoscope.evaluation.metrics import METRICS, measure
from pneumoscope.evaluation.pairing import Pairing, pair_predictions, read_predictions
from pneumoscope.evaluation.results import without_nan
from pneumoscope.models.about import About
from pneumoscope.models.references import hide_signature, is_name
from pneumoscope.notebook import Drawn, to_frame, to_html
from pneumoscope.text import counted

HEADLINE = ("auroc", "sensitivity", "specificity")  # as many as a terminal has space for
SEED = "seed"
# Settings by which no runs are grouped unless they are named: they change nothing about a model, or are its seed.
_NEVER = (
    SEED, "device", "resamples", "plot_formats", "patient_ids", "excel", "audit", "strict", "precision",
    *(each.name for each in fields(About)),
)  # fmt: skip
# Settings that name files; `init` may be a name or an address instead.
_FILES = ("path", "intended_use", "weights", "init", "groups")
SPLIT = "split"  # the measured split, which stands among the settings: `train --no-test` measures another one
METHOD = (
    "Difference of the means over seeds. Its variance is the sum of that between seeds and that between patients "
    "(infinitesimal jackknife); interval and p value by Student's t with Satterthwaite's degrees of freedom. Holm's "
    "correction is for the number of groups compared with the first."
)


@dataclass(frozen=True)
class Run:
    """One run: where it is, its settings by name, and its metrics."""

    folder: Path
    settings: Mapping[str, Any]
    metrics: Mapping[str, float]  # by name; nan where undefined


@dataclass(frozen=True)
class Spread:
    """A metric over the runs of a group."""

    mean: float
    sd: float  # standard deviation between runs; nan of a single run
    low: float  # of a group of several: the interval of the mean by Student's t, for other seeds on the same data
    high: float


@dataclass(frozen=True)
class Group:
    """Runs that are alike in the settings they are grouped by."""

    name: str  # those settings in words
    values: Mapping[str, Any]  # the same by name
    runs: tuple[str, ...]  # their folders
    seeds: tuple[Any, ...]
    metrics: Mapping[str, Spread]  # by name


@dataclass(frozen=True)
class Contrast:
    """One group against the first, on the same images."""

    group: str
    differences: Mapping[str, Difference]  # by metric
    paired: bool  # whether both have the same seeds, and are compared seed by seed


@dataclass(frozen=True)
class Summary(Drawn):
    """Many runs, by group.

    Attributes:
        by: the settings that they are grouped by.
        groups: in the order of their first runs.
        contrasts: each group but the first against the first; none where runs have different test images.
        images: number of test images that all runs share; None without contrasts.
        patients: number of their patients, where known.
        notes: what a reader must know.
        method: behind the contrasts.
        confidence: of the intervals.
    """

    by: tuple[str, ...]
    groups: tuple[Group, ...]
    contrasts: tuple[Contrast, ...] = ()
    images: int | None = None
    patients: int | None = None
    notes: tuple[str, ...] = ()
    method: str = METHOD
    confidence: float = CONFIDENCE
    runs: tuple[Run, ...] = field(default=(), repr=False)

    def __repr__(self) -> str:
        return f"Summary({self.describe()})"

    def describe(self) -> str:
        """What is summarised, in a line."""
        by = f" by {', '.join(self.by)}" if self.by else ""
        return f"{counted(sum(len(group.runs) for group in self.groups), 'run')}{by}"

    def _repr_html_(self) -> str:
        rows = [
            {"group": group.name, "n": len(group.runs)}
            | {name: format_spread(group.metrics[name]) for name in HEADLINE if name in group.metrics}
            for group in self.groups
        ]
        return to_html(self.describe(), rows)

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a row for each group and metric; undefined values are None."""
        return [
            {"group": group.name, **group.values, "n": len(group.runs), "metric": name, **without_nan(asdict(spread))}
            for group in self.groups
            for name, spread in group.metrics.items()
        ]

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each group and metric.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return to_frame(self.to_rows())

    def to_json(self) -> dict[str, Any]:
        """Return plain values; undefined ones are None."""
        plain: dict[str, Any] = without_nan(asdict(replace(self, runs=())))
        plain["runs"] = [
            {"folder": str(run.folder), "settings": dict(run.settings), "metrics": without_nan(run.metrics)}
            for run in self.runs
        ]
        return plain


def format_spread(spread: Spread) -> str:
    """A mean and standard deviation, such as `0.951 ± 0.004`."""
    if math.isnan(spread.mean):
        return "–"
    return f"{spread.mean:.3f}" + ("" if math.isnan(spread.sd) else f" ± {spread.sd:.3f}")


def summarise_runs(folders: Sequence[str | Path], by: Sequence[str] | None = None) -> Summary:
    """Group runs by settings, average over each group, and compare the groups with the first.

    Args:
        folders: runs, with `config.yaml`, `metrics.json` and `predictions.csv`.
        by: names of settings; by default all in which the runs differ, apart from the seed.

    Raises:
        UsageError: no run, or no such setting.
        DataError: a file is missing or damaged.
    """
    if not folders:
        raise UsageError("none was given. Name the folders of runs.", "runs")
    runs = tuple(_read_run(Path(folder)) for folder in folders)
    by = _find_differing(runs) if by is None else tuple(by)
    known = dict.fromkeys(name for run in runs for name in run.settings)
    if unknown := [name for name in by if name not in known]:
        raise UsageError(f"no run has a setting {unknown[0]!r}. The settings are {', '.join(known)}.", "by")
    members: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        members.setdefault(_name_group(run, by), []).append(i)
    groups = tuple(_average(name, [runs[i] for i in places], by) for name, places in members.items())
    summary = Summary(by, groups, notes=_find_notes(runs, groups, by), runs=runs)
    return summary if len(groups) < 2 else _compare(summary, list(members.values()))


def find_repeats(folders: Sequence[str | Path]) -> str | None:
    """Say which runs differ in nothing but their seed, and how to compare groups of them; None if there are none."""
    runs = []
    for folder in folders:
        with suppress(UsageError, DataError):  # a table, or an evaluation, is no run and has no seed
            runs.append(_read_run(Path(folder)))
    members: dict[str, list[Run]] = {}
    for run in runs:
        alike = str({name: value for name, value in run.settings.items() if name not in _NEVER})
        members.setdefault(alike, []).append(run)
    repeated = next((group for group in members.values() if len({run.settings[SEED] for run in group}) > 1), None)
    if repeated is None:
        return None
    names = ", ".join(str(run.folder) for run in repeated)
    by = ",".join(_find_differing(runs))
    how = f"`pneumoscope compare RUN… --by {by}`" if by else "`pneumoscope summarize RUN…`"
    return f"Runs that differ only in their seed are compared one by one: {names}. For means over seeds, use {how}."


def _read_run(folder: Path) -> Run:
    config, metrics = folder / "config.yaml", folder / "metrics.json"
    for path in (config, metrics):
        if not path.is_file():
            raise DataError(f"{folder}: {path.name} is missing. Give finished runs of `pneumoscope train`.")
    settings: dict[str, Any] = {}
    for group in read_mapping(config).values():
        settings |= group if isinstance(group, dict) else {}
    if (division := folder / "crossval.yaml").is_file():  # of a cross-validation
        settings |= read_mapping(division)
    if SEED not in settings:
        raise DataError(
            f"{config}: has no seed, so it is not that of a run. Give finished runs of `pneumoscope train`."
        )
    for name in _FILES:  # the same file has the same name everywhere
        if isinstance(value := settings.get(name), str):
            named = name == "init" and is_name(value)
            settings[name] = hide_signature(value) if named else str((folder / value).resolve())
    try:
        content = json.loads(metrics.read_text(encoding="utf-8"))
        found, settings[SPLIT] = content["metrics"], str(content["split"])
        values = {name: math.nan if found[name]["value"] is None else float(found[name]["value"]) for name in METRICS}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
        raise DataError(f"{metrics}: damaged: {problem!r}. Evaluate again.") from None
    return Run(folder, settings, values)


def _find_differing(runs: Sequence[Run]) -> tuple[str, ...]:
    """The settings in which runs differ, in the order of the file; the recipe stands for all that it sets."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    differing = [name for name in names if len({str(run.settings.get(name)) for run in runs}) > 1]
    differing = [name for name in differing if name not in _NEVER]
    if "recipe" in differing:
        parts: dict[str, set[str]] = {}
        for name in differing:
            for run in runs:
                parts.setdefault(name, set()).add(f"{run.settings.get('recipe')}\0{run.settings.get(name)}")
        recipes = len(parts["recipe"])
        differing = [name for name in differing if name == "recipe" or len(parts[name]) > recipes]
    return tuple(differing)


def _name_group(run: Run, by: Sequence[str]) -> str:
    texts = [(name, "–" if run.settings.get(name) is None else str(run.settings[name])) for name in by]
    return ", ".join(text if name in ("recipe", "backbone", "path") else f"{name} {text}" for name, text in texts)


def _average(name: str, runs: Sequence[Run], by: Sequence[str]) -> Group:
    n = len(runs)
    spreads = {}
    for metric in METRICS:
        values = np.array([run.metrics[metric] for run in runs])
        mean, sd = float(values.mean()), float(values.std(ddof=1)) if n > 1 else math.nan
        half = t_quantile(CONFIDENCE, n - 1) * sd / math.sqrt(n) if n > 1 else math.nan
        spreads[metric] = Spread(mean, sd, mean - half, mean + half)
    return Group(
        name or "all runs",
        {each: runs[0].settings.get(each) for each in by},
        tuple(str(run.folder) for run in runs),
        tuple(run.settings[SEED] for run in runs),
        spreads,
    )


def _find_notes(runs: Sequence[Run], groups: Sequence[Group], by: Sequence[str]) -> tuple[str, ...]:
    notes = []
    mixed = [name for name in _find_differing(runs) if name not in by]
    inside = [
        name
        for name in mixed
        if any(len({str(run.settings.get(name)) for run in runs if str(run.folder) in g.runs}) > 1 for g in groups)
    ]
    if inside:
        notes.append(
            f"Runs of one group also differ in {', '.join(inside)}: the spread is not that of seeds alone. Group by "
            "these settings, too."
        )
    repeated = [(group.name, seed) for group in groups for seed, count in Counter(group.seeds).items() if count > 1]
    if repeated and not inside:
        notes.append("{}: several runs have the seed {}, and count as different ones.".format(*repeated[0]))
    if small := [group.name for group in groups if len(group.runs) == 1]:
        notes.append(f"A single run says nothing about the spread between seeds: {', '.join(small)}.")
    return tuple(notes)


def _compare(summary: Summary, members: Sequence[Sequence[int]]) -> Summary:
    """Add the contrasts of each group with the first, if all runs have the same test images."""
    try:
        pairing = pair_predictions([read_predictions(run.folder) for run in summary.runs])
    except DataError as problem:
        note = f"The groups are not compared, because their runs do not have the same test images. {problem}"
        return replace(summary, notes=(*summary.notes, note))
    first, *others = members
    contrasts = []
    for group, other in zip(summary.groups[1:], others, strict=True):
        paired = _pair_seeds(summary.runs, first, other)
        pairs = paired or (list(first), list(other))
        differences = measure_differences(pairing, *pairs, paired=paired is not None)
        contrasts.append(Contrast(group.name, differences, paired is not None))
    for metric in contrasts[0].differences:
        adjusted = adjust_holm([contrast.differences[metric].p for contrast in contrasts])
        contrasts = [
            replace(each, differences={**each.differences, metric: replace(each.differences[metric], adjusted=p)})
            for each, p in zip(contrasts, adjusted, strict=True)
        ]
    notes = summary.notes
    if any(len(each) == 1 for each in members):
        notes += ("Where a group is a single run, its comparison does not include the spread between seeds.",)
    if pairing.patients is None:
        notes += (
            "Patients are unknown: if some have several images, intervals are too narrow and p values too small.",
        )
    return replace(
        summary, contrasts=tuple(contrasts), images=len(pairing.labels), patients=pairing.patients, notes=notes
    )


def _pair_seeds(runs: Sequence[Run], first: Sequence[int], other: Sequence[int]) -> tuple[list[int], list[int]] | None:
    """The runs of two groups in the order of their seeds, if these are the same, each once."""
    seeds = [sorted((str(runs[i].settings[SEED]), i) for i in group) for group in (first, other)]
    names = [[seed for seed, _ in group] for group in seeds]
    if names[0] != names[1] or len(set(names[0])) < len(names[0]):
        return None
    return [i for _, i in seeds[0]], [i for _, i in seeds[1]]


def measure_differences(
    pairing: Pairing, first: Sequence[int], other: Sequence[int], *, paired: bool
) -> dict[str, Difference]:
    """Measure how the means over two groups of runs differ; see `METHOD`."""

    def contrast(weights: Floats) -> dict[str, Floats]:
        found = [[measure_run(pairing, i, weights) for i in group] for group in (first, other)]
        return {
            name: np.mean([each[name] for each in found[1]], 0) - np.mean([each[name] for each in found[0]], 0)
            for name in found[0][0]
        }

    errors = jackknife(contrast, pairing.clusters)
    whole = np.ones((1, len(pairing.labels)))
    values = [[measure_run(pairing, i, whole) for i in group] for group in (first, other)]
    patients = len(np.unique(pairing.clusters))
    differences = {}
    for name in values[0][0]:
        a, b = (np.array([float(each[name][0]) for each in group]) for group in values)
        parts = [(b - a,)] if paired else [(a,), (b,)]
        seeds = [(each.var(ddof=1) / len(each), len(each) - 1) for (each,) in parts if len(each) > 1]
        terms = [*seeds, (errors[name] ** 2, patients - 1)]
        differences[name] = find_difference(float(a.mean()), float(b.mean()), terms)
    return differences


def find_difference(first: float, other: float, terms: Sequence[tuple[float, int]]) -> Difference:
    """A difference whose variance is the sum of terms, each with its degrees of freedom."""
    value, variance = other - first, sum(term for term, _ in terms)
    if math.isnan(value) or not variance > TINY**2:
        p = 1.0 if value == 0 else math.nan
        return Difference(first, other, value, p=p, adjusted=p)
    degrees = variance**2 / sum(term**2 / max(1, free) for term, free in terms)
    half = t_quantile(CONFIDENCE, degrees) * math.sqrt(variance)
    p = t_tails(value / math.sqrt(variance), degrees)
    return Difference(first, other, value, value - half, value + half, p, p)


def measure_run(pairing: Pairing, run: int, weights: Floats) -> dict[str, Floats]:
    """Metrics of one run for weights (b, N): rates by its own predicted labels, which are of its own threshold."""
    correct, labels = pairing.predicted[run] == pairing.labels, pairing.labels
    found = measure(labels, pairing.probabilities[run], weights=weights)
    sides = {"accuracy": np.ones_like(correct)}
    if len(pairing.classes) == 2:
        sides |= {"sensitivity": labels == 1, "specificity": labels == 0}
    rates = {}
    with np.errstate(invalid="ignore"):
        for name, side in sides.items():
            rates[name] = weights @ (correct & side) / (weights @ side)
    return rates | {name: found[name] for name in ("auroc", "brier")}
