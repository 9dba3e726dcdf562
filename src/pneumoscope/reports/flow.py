"""The flow of images through a run as STARD wants it drawn: exclusions, splits, decisions by true class; in SVG."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION, UNCERTAIN
from pneumoscope.reports.plots import INK
from pneumoscope.reports.study import SPLIT_NAMES, Study
from pneumoscope.text import counted, printable_line

WIDTH = 760
_LINE, _PAD, _GAP, _FONT = 15, 9, 26, 12
_ACROSS = 4  # boxes in a row of decisions
_CHARACTER = 6.4  # mean width in pixels
_STYLE = f"<style>.flow{{color:{INK}}}@media screen and (prefers-color-scheme:dark){{.flow{{color:#e3e8ee}}}}</style>"


@dataclass(frozen=True)
class _Box:
    """A box with lines of text; the first is bold."""

    x: float
    y: float
    width: float
    lines: Sequence[str]

    @property
    def height(self) -> float:
        return 2 * _PAD + _LINE * len(self.lines)

    @property
    def middle(self) -> float:
        return self.x + self.width / 2

    @property
    def bottom(self) -> float:
        return self.y + self.height

    def draw(self) -> str:
        bold = ' font-weight="bold"'
        text = "".join(
            f'<text x="{self.x + _PAD:g}" y="{self.y + _PAD + _LINE * (i + 0.78):g}"{"" if i else bold}>'
            f"{escape(line)}</text>"
            for i, line in enumerate(self.lines)
        )
        return (
            f'<rect x="{self.x:g}" y="{self.y:g}" width="{self.width:g}" height="{self.height:g}" fill="none" '
            f'stroke="currentColor"/>{text}'
        )


def draw_flow(study: Study) -> str:
    """Draw the flow of a run's images as an SVG element that can also be placed in a page."""
    half, third = 330.0, (WIDTH - 2 - 2 * _GAP) / 3
    boxes, arrows = [], []
    y = 1.0
    if files := study.count_left_out().total():
        top = _make_box(1, y, half, [f"Files found: {len(study.samples) + files:,}"])
        aside = _make_box(WIDTH - half, y + top.height + 4, half - 1, _list_left_out(study))
        boxes += [top, aside]
        y = max(top.bottom, aside.bottom) + _GAP
        arrows += [_down(top.middle, top.bottom, y), _right(top.middle, aside.y + aside.height / 2, aside.x)]
    dataset = _make_box(1, y, half, _describe_dataset(study))
    boxes.append(dataset)
    y = dataset.bottom + _GAP
    if excluded := _list_unusable(study):
        aside = _make_box(WIDTH - half, dataset.bottom + 4, half - 1, excluded)
        boxes.append(aside)
        y = aside.bottom + _GAP
        arrows.append(_right(dataset.middle, aside.y + aside.height / 2, aside.x))
    bus = y - _GAP / 2
    splits = [_make_box(1 + i * (third + _GAP), y, third, lines) for i, lines in enumerate(_describe_splits(study))]
    arrows += [_path(dataset.middle, dataset.bottom, dataset.middle, bus)]
    arrows += [_path(splits[0].middle, bus, splits[-1].middle, bus), *(_down(each.middle, bus, y) for each in splits)]
    boxes += splits
    y = max(each.bottom for each in splits) + _GAP
    drawn, lines, bottom = _draw_decisions(study, splits[-1], y)
    boxes += drawn
    return _finish(boxes, arrows + lines, bottom)


def _draw_decisions(study: Study, test: _Box, y: float) -> tuple[list[_Box], list[str], float]:
    """A box for each decision on the test images, with the true classes in it."""
    decisions = [*study.model.labels, UNCERTAIN, OUT_OF_DISTRIBUTION]
    counts = study.count_decisions()
    width = (WIDTH - 2 - (_ACROSS - 1) * _GAP / 2) / _ACROSS
    title = _make_box(1, y, WIDTH - 2, ["Index test: decision of the model on the test images, by reference standard"])
    boxes, lines = [title], [_down(test.middle, test.bottom, y)]
    top = title.bottom + _GAP
    for start in range(0, len(decisions), _ACROSS):
        row = [
            _make_box(1 + i * (width + _GAP / 2), top, width, _describe_decision(name, counts))
            for i, name in enumerate(decisions[start : start + _ACROSS])
        ]
        if start == 0:
            lines += [_down(each.middle, title.bottom, top) for each in row]
        boxes += row
        top = max(each.bottom for each in row) + _GAP / 2
    return boxes, lines, top


def _describe_decision(name: str, counts: Mapping[str, Counter[str]]) -> list[str]:
    total = sum(each[name] for each in counts.values())
    return [f"{name.replace('_', ' ') if name == OUT_OF_DISTRIBUTION else name}: {total:,}"] + [
        f"truly {label}: {each[name]:,}" for label, each in counts.items()
    ]


def _list_left_out(study: Study) -> list[str]:
    reasons = study.count_left_out()
    return [f"Left out before reading: {reasons.total():,}", *(f"{why}: {n:,}" for why, n in reasons.items())]


def _describe_dataset(study: Study) -> list[str]:
    patients = len({each.patient for each in study.samples if each.patient})
    unknown = sum(not each.patient for each in study.samples)
    lines = [f"Images of the dataset: {len(study.samples):,}"]
    if patients:
        lines.append(f"of {counted(patients, 'known patient')}")
    if unknown:
        lines.append(f"patient not known: {unknown:,}")
    if study.copies:
        lines.append(f"identical to another one, and kept: {study.copies:,}")
    return lines


def _list_unusable(study: Study) -> list[str]:
    if not study.unreadable:
        return []
    rest = [f"{SPLIT_NAMES[split]}, {label}: {n:,}" for (split, label), n in sorted(study.unreadable.items())]
    return [f"File could not be used: {study.unreadable.total():,}", *rest]


def _describe_splits(study: Study) -> list[list[str]]:
    counts = study.model.data["counts"]
    return [
        [
            f"{SPLIT_NAMES[split].capitalize()}: {sum(counts[split].values()):,}",
            *(f"{label}: {n:,}" for label, n in counts[split].items()),
        ]
        for split in study.splits
    ]


def _make_box(x: float, y: float, width: float, lines: Sequence[str]) -> _Box:
    most = int((width - 2 * _PAD) / _CHARACTER)
    wrapped = [part for line in lines for part in textwrap.wrap(printable_line(line), most) or [""]]
    return _Box(x, y, width, wrapped)


def _path(x: float, y: float, to_x: float, to_y: float, end: str = "") -> str:
    return f'<path d="M{x:g} {y:g}L{to_x:g} {to_y:g}" stroke="currentColor" fill="none"{end}/>'


def _down(x: float, y: float, to: float) -> str:
    return _path(x, y, x, to, ' marker-end="url(#flow-arrow)"')


def _right(x: float, y: float, to: float) -> str:
    return _path(x, y, to, y, ' marker-end="url(#flow-arrow)"')


def _finish(boxes: Sequence[_Box], arrows: Sequence[str], height: float) -> str:
    marker = (
        '<defs><marker id="flow-arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L8 4L0 8z" fill="currentColor"/></marker></defs>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="flow" viewBox="0 0 {WIDTH} {height:g}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="{_FONT}" fill="currentColor">{_STYLE}{marker}'
        f"{''.join(arrows)}{''.join(each.draw() for each in boxes)}</svg>\n"
    )
