"""The names of classes: cleaned, compared, and merged or left out as a map says."""

from __future__ import annotations

import csv
import difflib
import io
import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from pneumoscope.datasets.left_out import MAPPED, NO_LABEL, Dataset, LeftOut
from pneumoscope.datasets.samples import Sample
from pneumoscope.errors import DataError, UsageError
from pneumoscope.text import counted

SEPARATOR = "|"  # between the findings of a cell, as in NIH's tables, and between the classes of a prediction set
REST = "*"  # in a map: every label that nothing else of it names
_SHOWN = 5  # labels in a message
_NUMBER = re.compile(r"(?P<sign>-?)\+?0*(?P<whole>\d+?)(?:[.,](?P<part>\d*?)0*)?", re.ASCII)
_COPY = re.compile(r"(?P<of>.+?)(?: *-? *(?:copy|kopie|copie|copia|cópia)(?: *\(\d+\))?| *\(\d+\))", re.IGNORECASE)
_LISTED = re.compile(r"[,;/+&]|\b(?:and|und|et|y)\b", re.IGNORECASE)  # between findings in a cell
_COMPARED = 50  # classes that are compared with each other
_NEAR = 0.85  # ratio of difflib from which one of two names may be misspelt
# Folders whose images belong to no class, and what stands in a table where nobody knows it.
_NO_CLASSES = {
    "-", "--", "---", "–", "—", "?", "??", "???", ".", "...", "…", "/", "#ref!", "#value!", "not available",
    "not known", "not labelled", "missing", "no label", "none", "nil", "undefined", "unknown", "unbekannt", "inconnu",
    "desconocido",
    "backup", "bad", "discard", "discarded", "duplicates", "exclude", "excluded", "ignore", "new folder", "old",
    "other files", "rejected", "temp", "tmp", "todo", "trash", "unlabeled", "unlabelled", "unsorted", "unusable",
}  # fmt: skip
# Lower-case Cyrillic and Greek letters that look like Latin ones in either case (confusables of Unicode TS 39).
_ALIKE = str.maketrans("авекмнорстухіјѕԁӏһαβεζηικμνορτυχı", "abekmhopctyxijsdlhabezhikmnoptyxi")


def clean(text: str) -> str:
    """Text in Unicode's composed form (NFC), without spaces and invisible characters at its ends."""
    text = text.strip()
    if text.isascii() and text.isprintable():
        return text
    text = unicodedata.normalize("NFC", text).strip()
    while text and (_is_invisible(text[0]) or _is_invisible(text[-1])):
        text = (text[1:] if _is_invisible(text[0]) else text[:-1]).strip()
    return text


@lru_cache(1024)  # the same few labels for every image
def look(text: str) -> str:
    """What a text looks like: without case, spaces, invisible characters, the alphabet of letters and kinds of dashes.

    A number looks like its value: `1.0` and `01` like `1`.
    """
    folded = unicodedata.normalize("NFKC", text).casefold().translate(_ALIKE)
    shown = "".join(
        "-" if unicodedata.category(each) == "Pd" else each
        for each in folded
        if not each.isspace() and not _is_invisible(each)
    )
    if number := _NUMBER.fullmatch(shown):
        shown = number["sign"] + number["whole"] + (f".{number['part']}" if number["part"] else "")
    return shown


def parse_map(text: str | Mapping[str, str] | None) -> dict[str, str]:
    """Read a map such as `No Finding=NORMAL,Pneumonia=PNEUMONIA,*=`; a label with nothing after it is left out.

    A label that contains a comma needs quotes around its part of the map: `"A, B=C",D=E`.

    Raises:
        UsageError: a part has no `=`, or a label is named twice.
    """
    if text is None:
        return {}
    if isinstance(text, str):
        try:
            parts = next(csv.reader(io.StringIO(text.strip()), skipinitialspace=True), [])
        except csv.Error as problem:  # such as a line break inside a label
            raise UsageError(f"{text!r} cannot be read: {problem}.", "map") from None
        if wrong := next((part for part in parts if not part.rpartition("=")[0].strip()), None):
            raise UsageError(f"{wrong!r} is not LABEL=CLASS, or LABEL= to leave a label out.", "map")
        given = [(label, name) for label, _, name in (part.rpartition("=") for part in parts)]
    else:
        given = [(str(label), "" if name is None else str(name)) for label, name in text.items()]
    pairs = [(clean(label), clean(name)) for label, name in given]
    if twice := [label for label, count in Counter(label for label, _ in pairs).items() if count > 1]:
        raise UsageError(f"{twice[0]!r} is named twice.", "map")
    return dict(pairs)


def name_classes(samples: Sequence[Sample], text: str | Mapping[str, str] | None = None) -> Dataset:
    """Clean the labels of samples, merge and leave out what a map says, and check the classes that result.

    What becomes of each label is logged. What is left out keeps the label that it had.

    Args:
        samples: with labels.
        text: a map, see `parse_map`.

    Raises:
        DataError: a class contains `|` or lists other labels, or two classes look the same.
        UsageError: the map is not valid, names an unknown label, gives a label two classes, or leaves no image.
    """
    rules = parse_map(text)
    counts = Counter(clean(sample.label or "") for sample in samples)
    classes = {label: _find_class(label, rules) for label in counts}
    if rules:
        _require_known(rules, counts)
        _log_map(classes, counts)
    kept, left_out = list[Sample](), list[LeftOut]()
    for sample in samples:
        label = clean(sample.label or "")
        if name := classes[label]:
            kept.append(replace(sample, label=name))
        else:
            left_out.append(LeftOut(sample.path, MAPPED if label else NO_LABEL, label))
    if not kept:
        raise UsageError(f"leaves out every image. The labels are {_list(counts)}.", "map")
    named = Counter(str(sample.label) for sample in kept)
    _check_classes(named)
    written = set(rules.values())  # a class that the map names is meant
    _refuse_lists({name: count for name, count in named.items() if name not in written}, {*counts, *named})
    return Dataset(kept, left_out)


def _find_class(label: str, rules: Mapping[str, str]) -> str | None:
    """The class that rules give a label; None leaves it out. Of several findings, those that are named decide."""
    rest = rules.get(REST)
    if label not in rules and _NUMBER.fullmatch(label):
        label = next((rule for rule in rules if _NUMBER.fullmatch(rule) and look(rule) == look(label)), label)
    if label in rules:
        return rules[label] or None
    findings = [clean(part) for part in label.split(SEPARATOR)]
    if len(findings) > 1 and (rest is not None or all(finding in rules for finding in findings)):
        named = sorted({rules[finding] for finding in findings if rules.get(finding)})
        if len(named) > 1:
            raise UsageError(f"makes {label!r} both {' and '.join(named)}. Add '{label}=CLASS', or '{label}='.", "map")
        if named or all(finding in rules for finding in findings):
            return named[0] if named else None
    return label if rest is None else rest or None


def _require_known(rules: Mapping[str, str], labels: Iterable[str]) -> None:
    known = {
        REST,
        *labels,
        *map(look, filter(_NUMBER.fullmatch, labels)),
        *(clean(part) for label in labels for part in label.split(SEPARATOR)),
    }
    if unknown := [label for label in rules if label not in known]:
        close = [label for label in known if look(label) == look(unknown[0])]
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"no image has the label {unknown[0]!r}.{hint} The labels are {_list(labels)}.", "map")


def _log_map(classes: Mapping[str, str | None], counts: Mapping[str, int]) -> None:
    origins: dict[str | None, list[str]] = defaultdict(list)
    for label, name in classes.items():
        origins[name].append(label)
    for name, labels in sorted(origins.items(), key=lambda item: (item[0] is None, item[0] or "")):
        images = sum(counts[label] for label in labels)
        what = "leaves out" if name is None else f"gives the class {name}"
        logging.getLogger("pneumoscope").info(
            "The map %s %s of %s.", what, counted(images, "image"), _list(labels, counts)
        )


def _check_classes(counts: Mapping[str, int]) -> None:
    if several := [name for name in counts if SEPARATOR in name]:
        raise DataError(
            f"{len(several)} labels contain {SEPARATOR}, such as {several[0]!r}. They name several findings, but an "
            "image has one class. Say with `map` which findings make which class, and which to leave out. For "
            "example, `map='No Finding=NORMAL,Pneumonia=PNEUMONIA,*='` leaves out images with neither finding."
        )
    alike: dict[str, str] = {}
    for name in counts:
        other = alike.setdefault(_look_bare(name) or name, name)
        copy = _COPY.fullmatch(name)
        if copy and copy["of"] in counts:
            other = copy["of"]
        if other != name:
            pair = " and ".join(f"{_show(each)} ({counts[each]} images)" for each in (other, name))
            how = "in case, spaces, punctuation or letters that look the same"
            raise DataError(
                f"The classes {pair} differ only {'as copies do' if copy else how}. If they are one class, rename one, "
                f"or pass `map='{name}={other}'`."
            )
    _warn_doubtful(counts)


def _refuse_lists(counts: Mapping[str, int], labels: Iterable[str]) -> None:
    """Refuse a class such as `Effusion, Pneumonia` where other images have the labels that it lists."""
    known = {look(label) for label in labels}
    for name in counts:
        parts = [part.strip() for part in _LISTED.split(name) if part.strip()]
        if sum(look(part) in known for part in parts) > 1:
            quoted = f'"{name}=CLASS"' if "," in name else f"{name}=CLASS"
            raise DataError(
                f"The class {name!r} ({counted(counts[name], 'image')}) seems to list several findings, as "
                f"{' and '.join(map(repr, parts))} are labels too, but an image has one class. Say which it is with "
                f"`map='{quoted}'`, or leave such images out with nothing after the `=`."
            )


def _look_bare(name: str) -> str:
    """What the name of a class looks like without punctuation: `COVID-19` like `COVID_19`; numbers keep their sign."""
    shown = look(name)
    if _NUMBER.fullmatch(shown):
        return shown
    return "".join(each for each in shown if not unicodedata.category(each).startswith("P"))


def _warn_doubtful(counts: Mapping[str, int]) -> None:
    """Warn of classes that may be none, or misspelt."""
    logger = logging.getLogger("pneumoscope")
    for name in counts:
        if name.casefold().replace("_", " ") in _NO_CLASSES:
            logger.warning(
                "Is %r (%d images) a class? If not, leave it out with `map='%s='`.", name, counts[name], name
            )
    names = sorted(counts, key=lambda name: -counts[name])[:_COMPARED]
    for i, name in enumerate(names):
        for other in names[i + 1 :]:
            one, two = (re.sub(r"[\W\d_]+", "", each.casefold()) for each in (name, other))
            if one != two and difflib.SequenceMatcher(None, one, two).ratio() >= _NEAR:
                logger.warning(
                    "The classes %r (%d images) and %r (%d) have nearly the same name. If one is misspelt, pass "
                    "`map='%s=%s'`.", name, counts[name], other, counts[other], other, name,
                )  # fmt: skip


def _show(name: str) -> str:
    return repr(name) if name.isascii() and "  " not in name else f"{name!r}, written {name!a}"


def _list(labels: Iterable[str], counts: Mapping[str, int] | None = None) -> str:
    """The most frequent labels, or the first, and how many others there are."""
    ordered = sorted(labels, key=lambda label: -counts[label]) if counts else list(labels)
    shown = [f"{label!r} ({counts[label]})" if counts else repr(label) for label in ordered[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(ordered) - _SHOWN} others" if len(ordered) > _SHOWN else "")


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) in ("Cf", "Cc")
