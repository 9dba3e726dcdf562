"""A comparison of runs as one page: comparison.html.

The page needs no script, no network and no other file, and its content-security policy says so.
"""

from __future__ import annotations

import json
import math
import posixpath
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pneumoscope import __version__
from pneumoscope.evaluation.compare import Comparison, Pairing, compare_runs
from pneumoscope.evaluation.intervals.differences import Difference
from pneumoscope.evaluation.metrics import NAMES
from pneumoscope.files import check_folder, claim_folder, write_text
from pneumoscope.reports import plots

OUTPUTS = ("comparison.json", "comparison.html")
SHOWN = 12  # images that are decided differently
REACHES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)  # of the scale that differences are drawn on


@dataclass(frozen=True)
class _Case:
    """An image that two runs decide differently, with the probabilities behind it."""

    path: str
    truth: str
    run: str
    first: str
    stated: float
    other: str
    adjusted: float


def compare(
    runs: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
    overwrite: bool = False,
) -> Comparison:
    """Compare runs, or evaluations, on the same images; all with the first.

    Args:
        runs: two or more folders with `metrics.json` and `predictions.csv`.
        out: folder for `comparison.html` and `comparison.json`; None writes nothing.
        resamples: bootstrap resamples.
        seed: fixes them.
        overwrite: whether to replace an earlier comparison in `out`.

    Raises:
        UsageError: fewer than two runs, or `out` exists.
        DataError: different images, labels or classes; the message names the first.
    """
    if out is not None:
        check_folder(Path(out), OUTPUTS, overwrite)
    comparison, pairing = compare_runs(runs, resamples=resamples, seed=seed)
    if out is not None:
        claim_folder(Path(out), OUTPUTS, overwrite)
        write_text(Path(out) / OUTPUTS[0], json.dumps(comparison.to_json(), indent=2) + "\n")
        write_page(Path(out) / OUTPUTS[1], comparison, pairing)
    return comparison


def write_page(path: Path, comparison: Comparison, pairing: Pairing) -> None:
    """Write a comparison as one HTML file; the same input gives the same bytes.

    Args:
        path: the file.
        comparison: what was found.
        pairing: what it was found in.

    Raises:
        UsageError: the file cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("pneumoscope.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"figure": _figure, "signed": _signed, "span": _span, "chance": format_chance}
    two = len(comparison.classes) == 2
    cases, differing = _find_cases(comparison, pairing)
    reach = _choose_reach(comparison)
    areas = {comparison.runs[0]: comparison.contrasts[0].differences["auroc"].first} | {
        contrast.run: contrast.differences["auroc"].other for contrast in comparison.contrasts
    }
    shown = [_printable(run) for run in comparison.runs]
    drawn = plots.compare_roc(shown, pairing.labels, pairing.probabilities, pairing.predicted) if two else ""
    page = environment.get_template("comparison.html").render(
        title=f"Comparison of {len(comparison.runs)} classifiers",
        comparison=comparison,
        level=f"{100 * comparison.confidence:g} %",
        two=two,
        names=NAMES,
        reach=f"{reach:g}",
        strips={
            contrast.run: {name: _place(one, reach) for name, one in contrast.differences.items()}
            for contrast in comparison.contrasts
        },
        roc=Markup(drawn),  # noqa: S704 (matplotlib has escaped the names in it)
        told="; ".join(f"{run}: AUROC {_figure(area)}" for run, area in areas.items()),
        methods={
            method: ", ".join(NAMES[name] for name, other in comparison.methods.items() if other == method)
            for method in comparison.methods.values()
        },
        cases=cases,
        differing=differing,
        command=_repeat(comparison),
        version=__version__,
    )
    write_text(path, _printable(page))


def _printable(words: str) -> str:
    """Words that may hold a folder's name, which need not be UTF-8."""
    return words.encode("utf-8", "backslashreplace").decode("utf-8")


def format_chance(p: float) -> str:
    """A p value as it is printed: none is ever 0."""
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _find_cases(comparison: Comparison, pairing: Pairing) -> tuple[list[_Case], int]:
    """The images that a run decides otherwise than the first, those with the furthest probabilities first."""
    predicted, stated = pairing.predicted, pairing.probabilities
    apart = []
    for i in range(1, len(predicted)):
        for j in np.flatnonzero(predicted[i] != predicted[0]):
            gap = stated[i, j] - stated[0, j]
            pair = (stated[0, j], stated[i, j])
            if stated.ndim == 3:
                gap, pair = (
                    gap[predicted[i, j]] - gap[predicted[0, j]],
                    (stated[0, j, predicted[0, j]], stated[i, j, predicted[i, j]]),
                )
            apart.append((-abs(float(gap)), i, int(j), pair))
    name = pairing.classes.__getitem__
    start = 0
    if len({path.startswith("/") for path in pairing.paths}) == 1:  # the folder that all images are in is left out
        start = len(posixpath.join(posixpath.commonpath([posixpath.dirname(path) for path in pairing.paths]), ""))
    return [
        _Case(
            pairing.paths[j][start:], name(pairing.labels[j]), comparison.runs[i], name(predicted[0, j]), float(pair[0]),
            name(predicted[i, j]), float(pair[1]),
        )
        for _, i, j, pair in sorted(apart, key=lambda each: each[:3])[:SHOWN]
    ], len(apart)  # fmt: skip


def _choose_reach(comparison: Comparison) -> float:
    """The shortest of the round scales that holds all intervals."""
    ends = [
        abs(end)
        for contrast in comparison.contrasts
        for one in contrast.differences.values()
        for end in (one.value, one.low, one.high)
        if not math.isnan(end)
    ]
    return next((reach for reach in REACHES if reach >= max(ends, default=0)), 1.0)


def _place(one: Difference, reach: float) -> Mapping[str, float]:
    """Place value and limits, as far as there are any, in percent of the scale."""
    places = {"value": one.value, "low": one.low, "high": one.high}
    return {key: round(50 + 50 * place / reach, 2) for key, place in places.items() if not math.isnan(place)}


def _repeat(comparison: Comparison) -> str:
    options = ["--out", "NEW_FOLDER", "--resamples", str(comparison.resamples), "--seed", str(comparison.seed)]
    return shlex.join(["pneumoscope", "compare", *comparison.runs, *options])


def _figure(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _signed(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "0.000" if abs(value) < 0.0005 else f"{value:+.3f}".replace("-", "−")


def _span(one: Difference) -> str:
    if math.isnan(one.value):
        return "not defined"
    return "no interval" if math.isnan(one.low) else f"{_signed(one.low)} to {_signed(one.high)}"
