"""One rule for ages: a DICOM header and a table that say the same give the same years."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dicom_files import dicom

from pneumoscope.datasets.reading import read_samples
from pneumoscope.images.ages import parse_age
from pneumoscope.images.dicom import read_tags

CASES = [
    ("045Y", 45), ("045M", 3.75), ("003W", 21 / 365.25), ("010D", 10 / 365.25), ("3", 3), ("3.5", 3.5), ("3,5", 3.5),
    ("63Y", 63), ("63 years", 63), ("63 yrs old", 63), ("63 yo", 63), ("18 months", 1.5), ("6 mo", 0.5), ("000Y", 0),
    ("0", 0), ("120", 120), ("120Y", 120), ("1440M", 120), ("121", None), ("121Y", None), ("155", None), ("999Y", None),
    ("1453M", None), ("-5", None), ("-05Y", None), ("adult", None), ("45X", None), ("Y", None), ("1e2", None),
    ("90+", 90), (">89", 89), ("nan", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "years"), CASES)
def test_an_age_is_read_from_a_text(text: str, years: float | None) -> None:
    assert parse_age(text) == (None if years is None else pytest.approx(years))


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's own, as it writes what it shouldn't
@pytest.mark.parametrize("text", [text for text, _ in CASES])
def test_headers_and_tables_agree(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "t.csv").write_text(f'path,label,age\na.png,NORMAL,"{text}"\n', encoding="utf-8")
    (sample,) = read_samples(tmp_path / "t.csv")
    header = read_tags(dicom(np.zeros((4, 4), np.uint16), PatientAge=text))
    assert (sample.tags.age if sample.tags else None) == header.age == parse_age(text)


@pytest.mark.parametrize(("age", "years"), [("000Y", 63), ("999Y", 63), ("", 63), ("041Y", 41)])
def test_dates_say_what_an_age_of_0_years_or_an_impossible_one_does_not(age: str, years: float) -> None:
    content = dicom(np.zeros((4, 4), np.uint16), PatientAge=age, PatientBirthDate="19570301", StudyDate="20200302")
    assert read_tags(content).age == years


def test_an_impossible_age_in_a_table_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [f"a{i}.png,NORMAL,{age}" for i, age in enumerate(["45", "-3", "148", "unknown"])]
    for i in range(4):
        (tmp_path / f"a{i}.png").write_bytes(b"")
    (tmp_path / "t.csv").write_text("\n".join(["path,label,age", *rows]), encoding="utf-8")
    read_samples(tmp_path / "t.csv")
    assert "2 cells were not understood (age)." in caplog.text
