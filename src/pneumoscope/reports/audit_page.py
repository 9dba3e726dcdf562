"""One page that shows what an audit found, image by image: audit.html.

The page needs no script, no network and no other file, and its content-security policy says so.
"""

from __future__ import annotations

import base64
import io
import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from pneumoscope import __version__
from pneumoscope.auditing.findings import SEVERITIES, Audit, Finding, Severity
from pneumoscope.datasets.samples import Sample
from pneumoscope.errors import PneumoscopeError
from pneumoscope.files import write_text
from pneumoscope.images.read import read_radiograph

SIDE = 240  # pixels of a thumbnail's longer side; it is shown at about 160, which may be more on a sharp screen
SHOWN = 24  # images of a finding at most
OPEN = 12  # of them without a click
TOTAL = 400  # images of the page: with `LARGEST` they bound its size
LARGEST = 9_000  # bytes of a thumbnail
_QUALITIES = (80, 50, 20, 1)
_READERS = 4
_NAMES = {"auroc": "AUROC", "p": "p value", "low": "lower limit", "high": "upper limit", "limit": "by chance"}
_SHARES = {"share", "difference", "prevalence"}

MEANINGS: Mapping[Severity, str] = {
    "error": "Results would be wrong.",
    "warning": "Results may be wrong.",
    "note": "Worth knowing.",
}


@dataclass(frozen=True)
class Check:
    """One of the audit's checks.

    Attributes:
        title: what to call it.
        looks_for: what it finds.
        left_out: what a quick audit leaves out of it.
        quick: whether a quick audit runs it at all.
    """

    title: str
    looks_for: str
    left_out: str = ""
    quick: bool = True


CHECKS: Mapping[str, Check] = {
    "reading": Check("Reading", "Files that are missing, damaged, truncated, or no image."),
    "leaks": Check("Leaks", "Patients in more than one split."),
    "patients": Check("Patients", "Patients with images of several classes."),
    "studies": Check("Studies", "DICOM studies in more than one split, where patients are not known."),
    "duplicates": Check(
        "Duplicates",
        "Images that are identical or look the same: across splits, across classes, and elsewhere.",
        "images cropped out of others",
    ),
    "quality": Check(
        "Image quality",
        "Blank, tiny, faint, burnt-out, coloured, inverted, turned and lateral images, and what is no chest image.",
    ),
    "balance": Check("Balance", "Few images, uneven classes, classes mixed differently in the splits."),
    "shortcuts": Check(
        "Shortcuts",
        "Anything but the lungs that tells the class: format, size, compression, borders, brightness, markers.",
        "the image with its lungs blanked",
    ),
    "shifts": Check("Shifts", "Files that differ between the splits in something medicine has no part in."),
    "labels": Check(
        "Labels", "Images whose label is contradicted by a model that was not trained on them.", quick=False
    ),
}


def write_page(path: Path, audit: Audit, samples: Mapping[Path, Sample]) -> None:
    """Write an audit as one HTML file of bounded size; the same input gives the same bytes.

    Args:
        path: the file.
        audit: what was found.
        samples: the images, by path.

    Raises:
        UsageError: the file cannot be written.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader("pneumoscope.reports"), PackageLoader("pneumoscope.reports")]),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("audit.html").render(
        audit=audit,
        severities=[(severity, audit.count(severity), MEANINGS[severity]) for severity in SEVERITIES],
        cards=_make_cards(audit.findings, samples),
        table=_count_images(audit, samples),
        checks={**{f.check: Check(f.check, "") for f in audit.findings}, **CHECKS},
        found=Counter((finding.check, finding.severity) for finding in audit.findings),
        command=_repeat(audit),
        version=__version__,
    )
    write_text(path, page)  # a folder's name may not be UTF-8


@dataclass(frozen=True)
class _Image:
    """One image of a finding. `name` may be broken between its parts; `picture` is a data URI, or `reason` says why."""

    path: str
    name: Sequence[str]
    place: str
    remark: str
    picture: str
    reason: str


@dataclass(frozen=True)
class _Group:
    """Images side by side: indices of a finding's files, and how many there would be.

    `number` counts from 1 where they belong together.
    """

    number: int | None
    members: Sequence[int]
    size: int


@dataclass(frozen=True)
class _Card:
    """A finding as the page shows it: some images at once, `more` on a click, and `left` not at all."""

    finding: Finding
    figures: Mapping[str, str]
    images: Mapping[int, _Image]
    open: Sequence[_Group]
    folded: Sequence[_Group]

    @property
    def more(self) -> int:
        return sum(len(group.members) for group in self.folded)

    @property
    def left(self) -> int:
        return len(self.finding.files) - len(self.images)


def _make_cards(findings: Sequence[Finding], samples: Mapping[Path, Sample]) -> list[_Card]:
    """Deal the page's room for images out evenly, draw each chosen image once, and fill the cards."""
    ranked = sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
    most = next(n for n in range(SHOWN, -1, -1) if sum(min(n, len(f.files)) for f in ranked) <= TOTAL)
    chosen = [(finding, _choose(finding, most)) for finding in ranked]
    paths = dict.fromkeys(f.files[i] for f, groups in chosen for group in groups for i in group.members)
    with ThreadPoolExecutor(_READERS) as readers:
        drawn = readers.map(lambda path: _draw(samples.get(path, Sample(path))), paths)
        pictures = dict(zip(paths, drawn, strict=True))
    return [_make_card(finding, groups, samples, pictures) for finding, groups in chosen]


def _make_card(
    finding: Finding,
    groups: Sequence[_Group],
    samples: Mapping[Path, Sample],
    pictures: Mapping[Path, tuple[str, str]],
) -> _Card:
    images = {i: _describe(finding, i, samples, pictures) for group in groups for i in group.members}
    totals = accumulate(len(group.members) for group in groups)
    shown = max(1, sum(total <= OPEN for total in totals))
    figures = {_NAMES.get(name, name.replace("_", " ")): _format(name, value) for name, value in finding.values.items()}
    return _Card(finding, figures, images, groups[:shown], groups[shown:])


def _choose(finding: Finding, most: int) -> list[_Group]:
    """Up to so many images, in whole groups; only the first group may be cut."""
    if not finding.groups:
        shown = range(min(most, len(finding.files)))
        return [_Group(None, part, len(part)) for part in (shown[:OPEN], shown[OPEN:]) if part]
    together: dict[int, list[int]] = {}
    for i, group in enumerate(finding.groups):
        together.setdefault(group, []).append(i)
    groups: list[_Group] = []
    for number, members in enumerate(together.values(), start=1):
        if most < len(members) and (groups or not most):
            break
        groups.append(_Group(number, members[:most], len(members)))
        most -= len(groups[-1].members)
    return groups


def _describe(
    finding: Finding, i: int, samples: Mapping[Path, Sample], pictures: Mapping[Path, tuple[str, str]]
) -> _Image:
    path = finding.files[i]
    sample = samples.get(path, Sample(path))
    picture, reason = pictures[path]
    place = "/".join(part for part in (sample.split, sample.label) if part)
    remark = finding.remarks[i] if i < len(finding.remarks) else ""
    if remark in reason:
        remark = ""
    return _Image(
        path.as_posix(), _split(_shorten(path.name)), "" if place in remark else place, remark, picture, reason
    )


def _draw(sample: Sample) -> tuple[str, str]:
    """An image's thumbnail as a data URI, or nothing and the reason."""
    from PIL import Image

    try:
        image = read_radiograph(sample.path, reading=sample.reading, min_side=SIDE)
    except PneumoscopeError as problem:
        return "", str(problem).removeprefix(f"{sample.path}: ")
    step = max(1, min(image.pixels.shape) // (4 * SIDE))  # enough, of a large image
    picture = Image.fromarray(np.rint(image.pixels[::step, ::step] * 255).astype(np.uint8))
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    content = b""
    for quality in _QUALITIES:
        file = io.BytesIO()
        picture.save(file, "WEBP", quality=quality, method=2)
        content = file.getvalue()
        if len(content) <= LARGEST:
            break
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}", ""


def _count_images(audit: Audit, samples: Mapping[Path, Sample]) -> dict[str, dict[str, int]]:
    """Images as `{class: {split: images}}`, with those that have no split, and without splits that have no images."""
    unsplit = Counter(str(sample.label) for sample in samples.values() if not sample.split)
    counts = {split: classes for split, classes in audit.counts.items() if any(classes.values())}
    if unsplit:
        counts["no split" if counts else "images"] = dict(unsplit)
    labels = sorted({label for classes in counts.values() for label in classes})
    return {label: {split: classes.get(label, 0) for split, classes in counts.items()} for label in labels}


def _repeat(audit: Audit) -> str:
    """The command that does the same again."""
    words = ["pneumoscope", "audit", audit.data, "--out", "NEW_FOLDER", "--seed", str(audit.seed)]
    words += ["--quick"] * audit.quick
    words += ["--patient-pattern", audit.patient_pattern] if audit.patient_pattern else []
    words += ["--invert"] * audit.reading.invert + ["--any-modality"] * audit.reading.any_modality
    return shlex.join(words)


def _shorten(name: str, length: int = 36) -> str:
    """Leave out the middle: names tell by how they begin and end."""
    return name if len(name) <= length else f"{name[: length // 2]}…{name[-(length - 1) // 2 :]}"


def _split(name: str) -> list[str]:
    """The parts of a name between which a line may be broken."""
    return re.findall(r"[^_…-]*[_…-]|[^_…-]+", name)


def _format(name: str, value: float) -> str:
    if not math.isfinite(value):
        return "–"
    if name == "p":
        return "< 0.001" if value < 0.001 else f"{value:.3f}"
    if name in _SHARES:
        return f"{100 * value:.3g} %"
    if float(value).is_integer() and (abs(value) > 1 or name == "n" or name.endswith("s")):
        return f"{value:,.0f}"
    return (f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}").replace("-", "−")
