"""Classes that look the same are refused; a map merges, renames and leaves out, and says what became of each label."""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.datasets.columns import Naming
from pneumoscope.datasets.labels import name_classes, parse_map
from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.samples import Sample
from pneumoscope.errors import DataError, PneumoscopeError, UsageError


def labelled(*labels: str) -> list[Sample]:
    return [Sample(Path(f"{i}.png"), label) for i, label in enumerate(labels)]


def classes(labels: list[str], text: str | dict[str, str] | None = None) -> list[str | None]:
    return [sample.label for sample in name_classes(labelled(*labels), text).samples]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("NORMAL", "Normal"),
        ("No Finding", "No\xa0Finding"),
        ("No Finding", "NoFinding"),
        ("No Finding", "no_finding"),
        ("PNEUMONIA", "PNEUM\u041eNIA"),  # Cyrillic O
        ("NORMAL", "\u039dORMAL"),  # Greek Nu
        ("COVID", "CO\u200bVID"),
        ("COVID", "\uff23\uff2f\uff36\uff29\uff24"),  # full width
    ],
)
def test_classes_that_look_the_same_are_an_error_that_names_both(one: str, other: str, tmp_path: Path) -> None:
    for label in (one, other):
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.png").touch()
    with pytest.raises(DataError, match=r"The classes .* differ only in case, spaces, punctuation or letters"):
        read_samples(tmp_path)
    with pytest.raises(DataError) as caught:
        name_classes(labelled(one, one, other))
    assert f"{one!r} (2 images)" in str(caught.value)
    assert (repr(other) if other.isascii() else ascii(other)) in str(caught.value)
    merged = read_samples(tmp_path, naming=Naming(map={other: one}))
    assert Counter(sample.label for sample in merged) == {one: 2}


def test_forms_of_unicode_and_spaces_outside_make_no_other_class() -> None:
    assert classes(["\u00e9", "e\u0301", " \u00e9\xa0", "\u200b\u00e9\ufeff"]) == ["\u00e9"] * 4


@pytest.mark.parametrize("labels", [["1", "-1", "0"], ["+", "-"], ["grade 1", "grade 2"], ["A", "\u00c4"], ["_", "__"]])
def test_classes_that_differ_visibly_stay(labels: list[str]) -> None:
    assert classes(labels) == labels


NIH = ["No Finding", "Pneumonia", "Effusion|Pneumonia", "Effusion", "Mass|Nodule"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No Finding=NORMAL,Pneumonia=PNEUMONIA,*=", ["NORMAL", "PNEUMONIA", "PNEUMONIA", None, None]),
        ("No Finding=NORMAL, Pneumonia=PNEUMONIA, *=OTHER", ["NORMAL", "PNEUMONIA", "PNEUMONIA", "OTHER", "OTHER"]),
        (
            "No Finding=NORMAL,Pneumonia=PNEUMONIA,Effusion|Pneumonia=,*=",
            ["NORMAL", "PNEUMONIA", None, None, None],
        ),
        ("Effusion=,Mass=,Nodule=", ["No Finding", "Pneumonia", "?", None, None]),
        ("Effusion=,Pneumonia=P,Mass=M,Nodule=M", ["No Finding", "P", "P", None, "M"]),
        ("*=SICK,No Finding=", [None, "SICK", "SICK", "SICK", "SICK"]),
    ],
)
def test_a_map_merges_renames_and_leaves_out(text: str, expected: list[str | None]) -> None:
    if "?" in expected:  # a finding of several that the map does not name
        with pytest.raises(DataError, match=r"1 labels contain \|, such as 'Effusion\|Pneumonia'"):
            classes(NIH, text)
    else:
        assert classes(NIH, text) == [label for label in expected if label is not None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Pneumona=P", r"map: no image has the label 'Pneumona'\. The labels are 'No Finding', 'Pneumonia', .*"),
        ("no finding=N", r"map: no image has the label 'no finding'\. Did you mean 'No Finding'\?"),
        ("Pneumonia", r"map: 'Pneumonia' is not LABEL=CLASS"),
        ("=X", r"map: '=X' is not LABEL=CLASS"),
        ("Effusion=A,Effusion=B", r"map: 'Effusion' is named twice"),
        (
            "Effusion=E,Pneumonia=P,*=",
            r"map: makes 'Effusion\|Pneumonia' both E and P\. Add 'Effusion\|Pneumonia=CLASS'",
        ),
        ("*=", r"map: leaves out every image"),
        ("a=b\rc=d", r"map: 'a=b\\rc=d' cannot be read"),
        ("*=A|B", r"labels contain \|"),
        ("No Finding=Normal,*=NORMAL", r"differ only in case"),
    ],
)
def test_a_map_that_is_not_valid_is_an_error(text: str, message: str) -> None:
    with pytest.raises((UsageError, DataError), match=message):
        classes(NIH, text)


def test_what_becomes_of_each_label_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pneumoscope")
    classes([*NIH, "Effusion"], "No Finding=NORMAL,Pneumonia=PNEUMONIA,*=")
    assert [record.getMessage() for record in caplog.records] == [
        "The map gives the class NORMAL 1 image of 'No Finding' (1).",
        "The map gives the class PNEUMONIA 2 images of 'Pneumonia' (1), 'Effusion|Pneumonia' (1).",
        "The map leaves out 3 images of 'Effusion' (2), 'Mass|Nodule' (1).",
    ]


def test_labels_with_commas_and_equals_signs_are_mapped() -> None:
    assert parse_map('"A, b=X",grade>=3=SEVERE') == {"A, b": "X", "grade>=3": "SEVERE"}
    assert parse_map(None) == {}
    given_ = {"A, b": "X", 'say "c"': ""}
    assert parse_map(Naming(map=given_).to_options()["map"]) == given_


@given(st.lists(st.text(max_size=4), min_size=1, max_size=5), st.text(max_size=12))
def test_any_labels_and_maps_give_clean_classes_or_our_error(labels: list[str], text: str) -> None:
    try:
        found = classes(labels, text)
    except PneumoscopeError:
        return
    for label in found:
        assert label is not None
        assert label == unicodedata.normalize("NFC", label).strip()
        assert "|" not in label


def test_a_class_that_a_map_names_may_list_findings() -> None:
    merged = {"COVID": "COVID/PNEUMONIA", "PNEUMONIA": "COVID/PNEUMONIA"}
    assert classes(["COVID", "PNEUMONIA", "NORMAL"], merged) == ["COVID/PNEUMONIA"] * 2 + ["NORMAL"]
    assert classes(["A/B", "A", "B"], {"A/B": "A/B"}) == ["A/B", "A", "B"]
