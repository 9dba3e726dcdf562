"""An audit as one page that shows the images behind each finding: audit.html."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import TypeAlias

from pneumoscope.auditing.audit import find_faults, measure_samples
from pneumoscope.auditing.findings import SEVERITIES, Audit, Finding, Severity, sort_findings
from pneumoscope.auditing.losses import find_losses
from pneumoscope.config import Progress, Seed, checked
from pneumoscope.datasets.columns import Naming
from pneumoscope.datasets.reading import read_dataset
from pneumoscope.datasets.samples import Sample, count_samples, fingerprint_samples, number_patients
from pneumoscope.errors import MissingExtraError, PneumoscopeError, require_extra
from pneumoscope.files import check_folder, claim_folder, lock_folder, write_text
from pneumoscope.images.read import Reading
from pneumoscope.inference.cache import FeatureCache, open_cache
from pneumoscope.notebook import notebook_progress
from pneumoscope.reports.pages import format_command, format_number, format_p, format_percent, render
from pneumoscope.reports.pictures import draw_thumbnail
from pneumoscope.text import shorten, tell_apart

OUTPUTS = ("audit.json", "audit.html")
SIDE = 240  # pixels of a thumbnail's longer side; it is shown at about 160, which a sharp screen has more pixels for
SHOWN = 24  # images of a finding at most
OPEN = 12  # of them without a click
TOTAL = 400  # images of the page: with `LARGEST` they bound its size
LARGEST = 9_000  # bytes of a thumbnail
_READERS = 4
_NAME = 40  # characters of a file's name
_NAMES = {
    "n": "images", "auroc": "AUROC", "p": "p value", "low": "interval from", "high": "to",
    "chance_95": "by chance, 95% below", "chance_99": "by chance, 99% below",
}  # fmt: skip
_SHARES = {"share", "difference", "prevalence"}
_Pictures: TypeAlias = Mapping[Path, tuple[str, str]]  # data URI, or nothing and the reason, of each file

MEANINGS: Mapping[Severity, str] = {
    "error": "Results would be wrong.",
    "warning": "Results may be wrong.",
    "note": "Worth knowing.",
}


@dataclass(frozen=True)
class Check:
    """One of the audit's checks: what a quick audit leaves out of it, and whether it runs it at all."""

    title: str
    looks_for: str
    left_out: str = ""
    quick: bool = True


CHECKS: Mapping[str, Check] = {
    "reading": Check("Reading", "Files that are missing, damaged, truncated or not images."),
    "leaks": Check("Leaks", "Patients in more than one split."),
    "patients": Check("Patients", "Patients with images of several classes."),
    "studies": Check("Studies", "DICOM studies in more than one split, where patients are unknown."),
    "duplicates": Check(
        "Duplicates",
        "Images that are identical or look the same: in different splits, in different classes, or elsewhere.",
        "images cropped out of others",
    ),
    "quality": Check(
        "Image quality",
        "Images that are blank, tiny, low in contrast, overexposed, coloured, inverted, rotated or lateral, or do not "
        "show a chest.",
    ),
    "balance": Check("Balance", "Few images, unequal classes, and class proportions that differ between the splits."),
    "shortcuts": Check(
        "Shortcuts",
        "Anything other than the lungs that gives the class away: format, size, compression, borders, brightness, "
        "markers.",
        "images with the lungs blanked out",
    ),
    "shifts": Check("Shifts", "Non-medical differences between the files of the splits."),
    "labels": Check(
        "Labels", "Images whose label contradicts the prediction of a model that was not trained on them.", quick=False
    ),
}


@checked
def audit(
    data: str | Path,
    out: str | Path | None = None,
    *,
    quick: bool = False,
    seed: Seed = 0,
    patient_pattern: str | None = None,
    reading: Reading = Reading(),
    naming: Naming = Naming(),
    device: str = "auto",
    cache: FeatureCache | bool = True,
    patient_ids: bool = False,
    overwrite: bool = False,
    progress: Progress = notebook_progress,
) -> Audit:
    """Look for anything in labelled radiographs that would distort a result. Nothing is changed or removed.

    Args:
        data: a folder of classes, or a table.
        out: folder for `audit.json` and `audit.html`; None writes nothing.
        quick: skip what needs a network: label errors, outliers, surroundings and cropped copies.
        seed: fixes every random choice.
        patient_pattern: regular expression that finds the patient in the path of a file.
        reading: how to read images, unless a table says otherwise.
        naming: what columns and classes are called.
        device: `auto`, `cpu` or `cuda`.
        cache: keeps measurements and features between calls: the user's on disk, none for False, or a given one.
        patient_ids: whether findings may name patients; otherwise they number them.
        overwrite: whether to replace an earlier audit in `out`.
        progress: called as the work goes on; by default a bar in a notebook.

    Raises:
        DataError: the data cannot be used at all.
        UsageError: `out` exists.
    """
    require_extra("evaluate")
    _check_options(out, overwrite, quick, device)
    dataset = read_dataset(Path(data), patient_pattern, reading, naming)
    samples = dataset.samples if patient_ids else number_patients(dataset.samples)
    with nullcontext() if out is None else lock_folder(Path(out)):
        with open_cache(cache) as opened:
            images = measure_samples(samples, quick=quick, device=device, cache=opened, progress=progress)
        findings = find_faults(images, seed=seed, progress=progress) + find_losses(dataset, images.errors)
        result = Audit(
            data=str(data),
            findings=sort_findings(findings),
            images=len(samples),
            counts=count_samples(samples),
            patients=len({sample.patient for sample in samples if sample.patient}),
            quick=quick,
            seed=seed,
            fingerprint=fingerprint_samples(samples, images.digests),
            patient_pattern=patient_pattern,
            reading=reading,
            naming=naming,
        )
        if out is not None:
            claim_folder(Path(out), OUTPUTS, overwrite)
            write_audit(Path(out) / OUTPUTS[1], result, {sample.path: sample for sample in samples})
    return result


def _check_options(out: str | Path | None, overwrite: bool, quick: bool, device: str) -> None:
    """Check that PyTorch is there and the output can be written, and warn of options that have no effect."""
    if not quick and find_spec("torch") is None:
        raise MissingExtraError(
            'torch is not installed: pip install "pneumoscope[train]". Or pass `quick=True`, which does without it.'
        )
    if out is not None:
        check_folder(Path(out), OUTPUTS, overwrite)
    elif overwrite:
        logging.getLogger("pneumoscope").warning("`overwrite` has no effect without `out`.")
    if quick and device != "auto":
        logging.getLogger("pneumoscope").warning("`device` has no effect with `quick`, which uses no network.")


def write_audit(path: Path, audit: Audit, samples: Mapping[Path, Sample]) -> None:
    """Write an audit of these images, by path, as one HTML file of bounded size, and as audit.json beside it."""
    page = render(
        "audit.html",
        title="Data audit",
        audit=audit,
        severities=[(severity, audit.count(severity), MEANINGS[severity]) for severity in SEVERITIES],
        cards=_make_cards(audit.findings, samples),
        table=_count_images(audit, samples),
        checks={**{f.check: Check(f.check, "") for f in audit.findings}, **CHECKS},
        found=Counter((finding.check, finding.severity) for finding in audit.findings),
        command=format_command(
            "audit", audit.data, out="NEW_FOLDER", seed=audit.seed, quick=audit.quick,
            patient_pattern=audit.patient_pattern, **audit.naming.to_options(), **asdict(audit.reading),
        ),
    )  # fmt: skip
    write_text(path, page)
    write_text(path.with_name(OUTPUTS[0]), json.dumps(audit.to_json(), indent=2, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class _Image:
    """One image of a finding; `picture` is a data URI, or empty, and `reason` says why."""

    path: str
    name: str  # as much of the path's end as tells it from the others of the finding
    place: str
    remark: str
    picture: str
    reason: str


@dataclass(frozen=True)
class _Group:
    """Files of a finding, by index, `size` of which belong together under a number, as duplicates do."""

    number: int | None
    members: Sequence[int]
    size: int


@dataclass(frozen=True)
class _Card:
    """A finding as the page shows it: some images at once, `more` on a click, and `left` not at all."""

    finding: Finding
    values: Mapping[str, str]
    images: Mapping[int, _Image]
    open: Sequence[_Group]
    folded: Sequence[_Group]
    more: int
    left: int


def _make_cards(findings: Sequence[Finding], samples: Mapping[Path, Sample]) -> list[_Card]:
    """Choose images, the same number for each finding, draw each once, and make the cards."""
    ranked = sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
    most = next(n for n in range(SHOWN, -1, -1) if sum(min(n, len(f.files)) for f in ranked) <= TOTAL)
    chosen = [(finding, _choose(finding, most)) for finding in ranked]
    paths = dict.fromkeys(f.files[i] for f, groups in chosen for group in groups for i in group.members)
    with ThreadPoolExecutor(_READERS) as readers:
        drawn = readers.map(lambda path: _draw(samples.get(path, Sample(path))), paths)
        pictures = dict(zip(paths, drawn, strict=True))
    return [_make_card(finding, groups, samples, pictures) for finding, groups in chosen]


def _make_card(
    finding: Finding, groups: Sequence[_Group], samples: Mapping[Path, Sample], pictures: _Pictures
) -> _Card:
    names = tell_apart([path.as_posix() for path in finding.files])
    images = {i: _describe(finding, i, names[i], samples, pictures) for group in groups for i in group.members}
    totals = accumulate(len(group.members) for group in groups)
    shown = max(1, sum(total <= OPEN for total in totals))
    values = {_NAMES.get(name, name.replace("_", " ")): _format(name, value) for name, value in finding.values.items()}
    more = sum(len(group.members) for group in groups[shown:])
    return _Card(finding, values, images, groups[:shown], groups[shown:], more, len(finding.files) - len(images))


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


def _describe(finding: Finding, i: int, name: str, samples: Mapping[Path, Sample], pictures: _Pictures) -> _Image:
    path = finding.files[i]
    sample = samples.get(path, Sample(path))
    picture, reason = pictures[path]
    place = "/".join(part for part in (sample.split, sample.label) if part)
    remark = finding.remarks[i] if i < len(finding.remarks) else ""
    if remark in reason or remark in place:
        remark = ""
    return _Image(
        path.as_posix(), shorten(name, _NAME, middle=True), "" if place in remark else place, remark, picture, reason
    )


def _draw(sample: Sample) -> tuple[str, str]:
    """An image's thumbnail as a data URI, or nothing and the reason."""
    try:
        return draw_thumbnail(sample, SIDE, LARGEST), ""
    except PneumoscopeError as problem:
        return "", str(problem).removeprefix(f"{sample.path}: ")


def _count_images(audit: Audit, samples: Mapping[Path, Sample]) -> dict[str, dict[str, int]]:
    """Images as `{class: {split: images}}`, with those that have no split, and without splits that have no images."""
    unsplit = Counter(str(sample.label) for sample in samples.values() if not sample.split)
    counts = {split: classes for split, classes in audit.counts.items() if any(classes.values())}
    if unsplit:
        counts["no split" if counts else "images"] = dict(unsplit)
    labels = sorted({label for classes in counts.values() for label in classes})
    return {label: {split: classes.get(label, 0) for split, classes in counts.items()} for label in labels}


def _format(name: str, value: float) -> str:
    if not math.isfinite(value):
        return "–"
    if name == "p":
        return format_p(value)
    if name in _SHARES:
        return format_percent(value)
    if float(value).is_integer() and (abs(value) > 1 or name == "n" or name.endswith("s")):
        return f"{value:,.0f}"
    return format_number(value) if abs(value) < 10 else f"{value:,.1f}".replace("-", "−")
