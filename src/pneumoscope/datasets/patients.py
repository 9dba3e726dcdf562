"""Finds the patient of an image: by a table, a pattern, its DICOM header, or a file name as in known datasets."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pneumoscope.datasets.image_files import read_head
from pneumoscope.datasets.labels import look
from pneumoscope.datasets.samples import Sample
from pneumoscope.errors import UsageError
from pneumoscope.images.dicom import is_dicom
from pneumoscope.text import counted

_FOLDERS = "folders of patients"
# Names that identify patients, searched in the path below the dataset's folder, without suffix.
# Kermany: the numbers of bacteria and virus, and of IM and NORMAL2-IM, are separate series.
_KNOWN: Mapping[str, tuple[re.Pattern[str], ...]] = {
    "Kermany": (
        re.compile(r"(?P<number>person\d+)_(?P<series>bacteria|virus)_\d+[^/]*$"),
        re.compile(r"(?P<number>(?:NORMAL2-)?IM-\d+)-\d+[^/]*$"),
    ),
    "the phantoms": (re.compile(r"(?P<number>phantom\d+)_\d+[^/]*$"),),
    "CheXpert": (re.compile(r"(?:^|/)(?P<number>patient\d{3,7})/study\d+/[^/]+$"),),
    "MIMIC-CXR": (re.compile(r"(?:^|/)p\d\d/(?P<number>p\d{8})/s\d{6,9}/[^/]+$"),),
    _FOLDERS: (re.compile(r"(?:^|/)(?P<number>(?i:patient|pat|subject|subj|sub|pid)[-_ ]?\d+)/"),),
}
# NIH: eight digits alone could be anything, such as dates. The numbers go up to 30805, and most files look so.
_NIH = re.compile(r"(?:^|/)(?P<number>(?:000[0-2]\d{4}|0003(?:0[0-7]\d\d|080[0-5])))_\d{3}$")
_NIH_SHARE = 0.5  # of the images without another patient: names that only some of them have are a coincidence
_ROUNDED = re.compile(r"\d[.,]\d+E\+\d+", re.IGNORECASE)  # 1.23E+11, as Excel shows and exports long numbers
_VIEWERS = re.compile(r"(?:^|/)(?P<name>IM-\d+-\d+)$")  # viewers name everybody's first image IM-0001-0001
_REPEATED = 0.05  # share of repeated names above which they are a viewer's


def compile_pattern(patient_pattern: str | None) -> re.Pattern[str] | None:
    """Compile the pattern that finds a patient.

    Raises:
        UsageError: it is not a regular expression.
    """
    try:
        return None if patient_pattern is None else re.compile(patient_pattern)
    except re.error as problem:
        raise UsageError(f"{patient_pattern!r} is not a regular expression: {problem}.", "patient_pattern") from None


def find_patient(name: str) -> str | None:
    """Read the patient from a path or file name as in a known dataset; None if it is not like one.

    Names as in the NIH dataset are left out: one file alone does not show that they are meant.
    """
    return _find_known(Path(name).with_suffix("").as_posix())[0]


def identify_patients(
    samples: Sequence[Sample], root: Path, pattern: re.Pattern[str] | None = None, column: bool = False
) -> list[Sample]:
    """Find the patients of samples, and say how many images have one and from where.

    Args:
        samples: images, with patients where a table has a column for them.
        root: folder of the dataset or of its table; patterns see the path below it, with `/` and without suffix.
        pattern: its group `patient`, else its first (or the whole match) is the patient; where it matches nothing, the
            DICOM header counts.
        column: whether a table has a column of patients; nothing else is used then.

    Raises:
        UsageError: the pattern matches no path, or there is a column too.
    """
    if column:
        if pattern is not None:
            raise UsageError(
                "the table has a column of patients, so the pattern would not be used. Leave out one of the two.",
                "patient_pattern",
            )
        found = [(sample.patient, "the table") for sample in samples]
    elif pattern is not None:
        found = _match_pattern(samples, root, pattern)
    else:
        found = _recognise(samples, root)
    found = _join(found)
    _log(found)
    return [replace(sample, patient=patient) for sample, (patient, _) in zip(samples, found, strict=True)]


def name_patients(samples: Sequence[Sample], root: Path | None) -> list[Sample]:
    """Find patients for images that are to be predicted: by their names, where no table and no DICOM header can say.

    Args:
        samples: images whose headers are still to be read.
        root: folder that holds them, as for `identify_patients`; None for files that were named one by one, of which
            only the names are looked at.
    """
    places = [_below(sample.path, root or sample.path.parent) for sample in samples]
    names = _recognise_names(places, [sample.patient is None for sample in samples])
    named, found = [], list[tuple[str | None, str]]()
    for sample, (patient, dataset) in zip(samples, names, strict=True):
        if patient and sample.patient is None and not is_dicom(read_head(sample.path)):
            sample = replace(sample, patient=patient)
            found.append((patient, _describe(dataset)))
        named.append(sample)
    _log(found)
    return named


def _join(found: Sequence[tuple[str | None, str]]) -> list[tuple[str | None, str]]:
    """Take patients that look the same for one, so that no split separates them."""
    looks = {patient: _look_at_patient(patient) for patient, _ in found if patient}
    first: dict[str, str] = {}
    names = {patient: first.setdefault(each, patient) for patient, each in looks.items()}
    logger = logging.getLogger("pneumoscope")
    if others := [(name, patient) for patient, name in names.items() if name != patient]:
        logger.warning(
            "Patient names that differ only in case, spaces, punctuation or look-alike letters, or numbers that differ "
            "only in leading zeros, count as the same patient: %d, such as %s and %s.",
            len({name for name, _ in others}), *others[0],
        )  # fmt: skip
    if rounded := [patient for patient in names if _ROUNDED.fullmatch(patient)]:
        logger.warning(
            "Patient numbers that a spreadsheet has rounded: %d, such as %s. One of them may stand for several "
            "persons. Export the column as text.", len(rounded), rounded[0],
        )  # fmt: skip
    return [(names[patient] if patient else None, source) for patient, source in found]


def _look_at_patient(patient: str) -> str:
    """What a patient looks like; with letters, also without punctuation: `P-001` and `P 001` like `P001`."""
    words = re.findall(r"[^\W\d_]+|\d+", patient)
    letters = any(word.isalpha() for word in words)
    return "-".join(look(word) if word.isalpha() else word for word in words) if letters else look(patient)


def _match_pattern(samples: Sequence[Sample], root: Path, pattern: re.Pattern[str]) -> list[tuple[str | None, str]]:
    places = [_below(sample.path, root) for sample in samples]
    group: str | int = "patient" if "patient" in pattern.groupindex else min(pattern.groups, 1)
    found: list[tuple[str | None, str]] = []
    for sample, place in zip(samples, places, strict=True):
        match = pattern.search(place)
        patient = match.group(group) if match else None
        in_header = sample.tags.patient if sample.tags else None
        found.append((patient, "`patient_pattern`") if patient else (in_header, "DICOM headers"))
    if not any(patient and source == "`patient_pattern`" for patient, source in found):
        raise UsageError(
            f"{pattern.pattern!r} finds no patient in {len(places):,} paths such as {places[0]!r} (below {root}, "
            "without suffix). Correct it, or leave it out.",
            "patient_pattern",
        )
    if all(patient is None or patient == sample.label for sample, (patient, _) in zip(samples, found, strict=True)):
        raise UsageError(f"{pattern.pattern!r} finds the class ({found[0][0]}), not the patient.", "patient_pattern")
    return found


def _recognise(samples: Sequence[Sample], root: Path) -> list[tuple[str | None, str]]:
    """Patients from DICOM headers, which come first because of names that viewers give, else from known names."""
    headers = [sample.tags.patient if sample.tags else None for sample in samples]
    known = _recognise_names([_below(sample.path, root) for sample in samples], [header is None for header in headers])
    return [
        (header, "DICOM headers") if header else (patient, _describe(dataset))
        for header, (patient, dataset) in zip(headers, known, strict=True)
    ]


def _recognise_names(places: Sequence[str], unknown: Sequence[bool]) -> list[tuple[str | None, str]]:
    """The patient and the dataset that each place (see `_below`) names; `unknown`: whether nothing else tells."""
    known = [_find_known(place) for place in places]
    viewer = [_VIEWERS.search(place) if wanted else None for place, wanted in zip(places, unknown, strict=True)]
    names = [match["name"] for match in viewer if match]
    kermany = any(patient and "person" in patient for patient, _ in known)  # its other class
    if len(names) - len(set(names)) > _REPEATED * len(names) and not kermany:
        known = [(None, "") if match else each for match, each in zip(viewer, known, strict=True)]
    nih = [_NIH.search(place) for place in places]
    if sum(match is not None for match in nih) >= _NIH_SHARE * max(1, sum(patient is None for patient, _ in known)):
        known = [(match["number"], "NIH") if match else each for match, each in zip(nih, known, strict=True)]
    return known


def _describe(dataset: str) -> str:
    return dataset if dataset == _FOLDERS else f"file names as in {dataset}"


def _find_known(place: str) -> tuple[str | None, str]:
    """The patient that a path below a dataset names, and the dataset whose names are like that."""
    for dataset, patterns in _KNOWN.items():
        for pattern in patterns:
            if match := pattern.search(place):
                groups = match.groupdict()
                return "-".join(part for part in (groups.get("series"), groups["number"]) if part), dataset
    return None, ""


def _below(path: Path, root: Path) -> str:
    path = path.with_suffix("") if path.suffix else path
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _log(found: Sequence[tuple[str | None, str]]) -> None:
    sources: defaultdict[str, list[str]] = defaultdict(list)
    for patient, source in found:
        if patient:
            sources[source].append(patient)
    lines = []
    for source, patients in sources.items():
        number, example = counted(len(set(patients)), "patient"), f", such as {patients[0]}"
        shown = example if source == "`patient_pattern`" else ""
        lines.append(f"The patient of {counted(len(patients), 'image')} is known from {source}: {number}{shown}.")
    if unknown := sum(not patient for patient, _ in found):
        lines.append(f"The patient of {counted(unknown, 'image')} is unknown.")
    for line in lines:
        logging.getLogger("pneumoscope").info("%s", line)
