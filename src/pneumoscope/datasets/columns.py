"""Which column of a table holds what: the exact names, usual synonyms, and names that are nearly right."""

from __future__ import annotations

import csv
import difflib
import io
import logging
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_doc import Doc

from pneumoscope.datasets.folder_names import seems_split
from pneumoscope.errors import DataError, UsageError
from pneumoscope.text import shorten

NONE = "none"  # as the name of a column: there is no such column
ROLES = ("path", "label", "patient", "split", "invert", "any_modality")
# By role, names that mean the same, without case, spaces and punctuation. Those of a later group are looked for only if
# none of an earlier one is there. They are those of NIH, RSNA, CheXpert, MIMIC, VinDr, COVID-19 sets of Kaggle, and
# of what people write themselves.
_SYNONYMS: Mapping[str, Sequence[Sequence[str]]] = {
    "path": (
        (
            "filepath", "filename", "file", "files", "fname", "imagepath", "imagefile", "imagefilename", "imagename",
            "imageindex", "image", "images", "img", "imgpath", "imgname", "relativepath", "relpath", "fullpath",
            "dicompath", "dicomfile", "pngpath", "jpgpath", "xrayimagename",
        ),
        ("imageid", "dicomid", "sopinstanceuid", "instanceuid"),
        (  # German, French, Spanish
            "datei", "dateiname", "dateipfad", "bild", "bilder", "bildname", "bilddatei", "bildpfad", "pfad",
            "fichier", "nomfichier", "nomdufichier", "chemin", "cheminimage", "chemindefichier", "nomimage",
            "archivo", "fichero", "nombrearchivo", "nombredearchivo", "imagen", "ruta", "rutaimagen",
        ),
        ("id", "ids", "imageuid"),
    ),
    "label": (
        (
            "labels", "labelname", "class", "classname", "classlabel", "target", "diagnosis", "category", "finding",
            "findings", "findinglabel", "findinglabels", "pathology", "groundtruth", "imagelabel", "truth",
            "truelabel", "trueclass", "ytrue", "actual",
        ),
        (  # German, French, Spanish
            "befund", "befunde", "diagnose", "klasse", "etikett", "zielklasse", "etiquette", "classe", "diagnostic",
            "categorie", "etiqueta", "clase", "diagnostico", "categoria", "hallazgo", "hallazgos",
        ),
    ),
    "patient": (
        (
            "patientid", "patients", "patientno", "patientnr", "patientnumber", "patientcode", "patientkey",
            "patientuid", "patienthash", "patientname", "patientindex", "subject", "subjectid", "participant",
            "participantid", "person", "personid", "pid", "mrn",
        ),
    ),
    "split": (
        ("splits", "datasplit", "set", "subset", "partition", "datasettype", "phase", "traintest", "trainvaltest"),
        ("aufteilung", "teilmenge", "repartition", "particion", "conjunto"),
    ),
}  # fmt: skip
AGE = ("age", "patientage", "ageyears", "ageinyears", "patientageyears", "anchorage", "alter", "edad")
SEX = ("sex", "gender", "patientsex", "patientgender")
VIEW = ("view", "viewposition", "appa", "projection", "frontallateral")  # the first with a value counts
_SIMILAR = 0.82  # ratio of difflib
_SHOWN = 12  # columns in a message
_SIMILAR_SHOWN = 4
# Keys of columns that seem to tell persons apart: `anonymized_patient_id`, `PAT_ID`, `MRN Number`, `Fallnummer`.
_PERSON = re.compile(
    r".*(?:patient|patienten|subject|person|participant|paciente|paziente)(?:id|nr|num|nummer|code|key|uid|hash|name).*"
    r"|(?:pat|pt|subj|mrn|case|anon|fall|client|individual)(?:id|no|nr|num|number|nummer|code|key|uid|name)"
    r"|(?:id|identifiant|identificador)(?:du|de|del)?(?:patient|paciente|paziente)"
    r"|patientin|patienten|paciente|paziente"
)


@dataclass(frozen=True)
class Naming:
    """The names that a dataset gives its columns and classes; None where they are the usual ones."""

    path_column: Annotated[str | None, Doc("Column of a table that holds the file.")] = None
    label_column: Annotated[str | None, Doc("Column of a table that holds the class.")] = None
    patient_column: Annotated[str | None, Doc("Column of a table that holds the patient; none: no column does.")] = None
    split_column: Annotated[str | None, Doc("Column of a table that holds the split; none: no column does.")] = None
    map: Annotated[
        str | dict[str, str] | None,
        Doc("Classes to merge, rename or leave out, such as 'No Finding=NORMAL,Pneumonia=PNEUMONIA,*='."),
    ] = None

    def to_options(self) -> dict[str, str | None]:
        """The options of a command that say the same."""
        text = self.map
        if isinstance(text, dict):
            line = io.StringIO()
            csv.writer(line, lineterminator="").writerow([f"{label}={name}" for label, name in text.items()])
            text = line.getvalue()
        return {**{name: getattr(self, name) for name in COLUMN_NAMES}, "map": text}


COLUMN_NAMES = ("path_column", "label_column", "patient_column", "split_column")  # fields of Naming


def to_key(name: str) -> str:
    """A column's name without case, accents, spaces, punctuation and invisible characters."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKD", name.casefold())))


def find_columns(
    names: Sequence[str], table: str, naming: Naming = Naming(), labelled: bool = True, flags: Sequence[str] = ()
) -> dict[str, str]:
    """Find the column of each role (see `ROLES`) among the names of a table's columns.

    A column is taken by the name that `naming` gives, else by its exact name, else by a synonym. A choice between two
    columns is logged.

    Args:
        names: of the columns.
        table: the table's name, for messages.
        naming: what the user says.
        labelled: whether there must be labels, and patients and splits matter.
        flags: columns that hold only 0, 1 and -1, as of findings that are present or not.

    Returns:
        The column of each role that has one.

    Raises:
        DataError: there is none for a path or label, several that mean the same, or one that looks like the patient or
            the split.
        UsageError: `naming` names a column that does not exist.
    """
    found: dict[str, str] = {}
    for role in ROLES:
        given = getattr(naming, f"{role}_column", None)
        if given is not None:
            if given.casefold() != NONE or given in names:
                found[role] = _find_given(given, names, table, f"{role}_column")
        elif (name := _find_usual(role, names, table, labelled)) is not None:
            found[role] = name
    keys = {to_key(name): name for name in names}
    if "path" not in found and "patientid" in keys and keys.keys() & {"target", "class"}:
        found["path"] = keys["patientid"]  # RSNA: one image for each patient, which has its name
    if missing := [role for role in ("path", "label")[: 1 + labelled] if role not in found]:
        others = [name for name in flags if name not in found.values() and to_key(name) not in {*AGE, *SEX, *VIEW}]
        raise DataError(
            f"{table}: no column {' or '.join(missing)}; found {_list(names)}. "
            f"{_suggest(missing, names, others)}A table has the columns path,label[,patient,split]. If yours have "
            f"other names, pass {' and '.join(f'`{role}_column`' for role in missing)}."
        )
    if labelled:
        _refuse_similar(found, names, table, naming)
    return found


def _find_given(given: str, names: Sequence[str], table: str, parameter: str) -> str:
    matching = [name for name in names if name == given] or [name for name in names if to_key(name) == to_key(given)]
    if len(matching) == 1:
        return matching[0]
    what = f"has {len(matching)} columns {given!r}" if matching else f"has no column {given!r}"
    close = difflib.get_close_matches(given, names, 3)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close and not matching else ""
    raise UsageError(f"{table} {what}; found {_list(names)}.{hint}", parameter)


def _find_usual(role: str, names: Sequence[str], table: str, strict: bool) -> str | None:
    same = [name for name in names if name == role] or [name for name in names if to_key(name) == to_key(role)]
    groups = [same, *([name for name in names if to_key(name) in group] for group in _SYNONYMS.get(role, ()))]
    candidates = next(filter(None, groups), [])
    if len(candidates) > 1:
        if role != "path" and not strict:
            return None
        raise DataError(
            f"{table}: the columns {' and '.join(map(repr, candidates))} may both hold the {role}. "
            f"Choose one with `{role}_column`."
        )
    if same and (others := groups[1] if len(groups) > 1 else []):
        logging.getLogger("pneumoscope").warning(
            "%s: the %s is read from the column %s, not from %s, which is kept as metadata.",
            table, role, same[0], " or ".join(others),
        )  # fmt: skip
    return candidates[0] if candidates else None


def _list(names: Sequence[str]) -> str:
    """The first names, and how many others there are: a table may have thousands."""
    others = f" and {len(names) - _SHOWN:,} others" if len(names) > _SHOWN else ""
    return ", ".join(shorten(name, 40) for name in names[:_SHOWN]) + others or "none"


def _suggest(roles: Sequence[str], names: Sequence[str], flags: Sequence[str]) -> str:
    if "label" in roles and flags:
        shown = ", ".join(map(repr, flags[:3])) + (", …" if len(flags) > 3 else "")
        name = next((flag for flag in flags if to_key(flag) == "pneumonia"), flags[-1])
        classes = "1=PNEUMONIA,0=NORMAL" if to_key(name) == "pneumonia" else "1=POSITIVE,0=NEGATIVE"
        return (
            f"If {shown} say with 1 and 0 whether a finding is there, choose one: `label_column={name!r}` and "
            f"`map='{classes},*='`. "
        )
    pairs = [(role, name) for role in roles for name in names if _is_similar(role, name)][:_SIMILAR_SHOWN]
    return f"Did you mean {' and '.join(f'`{role}_column={name!r}`' for role, name in pairs)}? " if pairs else ""


def _refuse_similar(found: Mapping[str, str], names: Sequence[str], table: str, naming: Naming) -> None:
    """Refuse to ignore a column that probably holds the patient or the split: test images could be trained on."""
    for role in ("patient", "split"):
        if role in found or getattr(naming, f"{role}_column") is not None:
            continue
        for name in names:
            if name not in found.values() and (_is_similar(role, name) or _seems(role, name)):
                raise DataError(
                    f"{table}: does the column {name!r} hold the {role}? If so, pass `{role}_column={name!r}`; if not, "
                    f"pass `{role}_column='{NONE}'`."
                )


def _seems(role: str, name: str) -> bool:
    """Whether a column's name says that it tells persons apart, or splits, such as `is_test` or `fold`."""
    return seems_split(name) if role == "split" else _PERSON.fullmatch(to_key(name)) is not None


def _is_similar(role: str, name: str) -> bool:
    key = to_key(name)
    if not key or key in {*AGE, *SEX, *VIEW}:
        return False
    usual = {role, *(each for group in _SYNONYMS[role] for each in group if len(each) > 4)}
    return any(
        sorted(key) == sorted(each) or difflib.SequenceMatcher(None, key, each).ratio() > _SIMILAR for each in usual
    )
