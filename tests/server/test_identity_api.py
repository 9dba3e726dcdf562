"""Answers, database and exported reviews say which study an image is of, so that results find their way home."""

from __future__ import annotations

import csv
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from dicom_files import dicom
from dicom_files import image as levels
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from services import draw, run_thread

from pneumoscope.datasets.reading import read_samples
from pneumoscope.reports.evaluation_report import evaluate
from pneumoscope.server.storage.reviews import export_reviews
from pneumoscope.server.storage.store import Store

if TYPE_CHECKING:
    from services import Process

    from pneumoscope.server.settings import Settings

HEADER: dict[str, Any] = {
    "PatientID": "MRN-4711", "PatientAge": "018M", "PatientSex": "F", "ViewPosition": "AP", "ImageLaterality": "U",
    "StudyDate": "20240229", "AccessionNumber": "ACC-815", "StudyInstanceUID": "1.2.840.1",
    "SeriesInstanceUID": "1.2.840.2", "SOPInstanceUID": "1.2.840.3",
}  # fmt: skip
FACTS = {"age": 1.5, "sex": "F", "view": "AP", "laterality": "U", "date": "2024-02-29"}
IDENTIFIERS = {
    "accession_number": "ACC-815", "study_uid": "1.2.840.1", "series_uid": "1.2.840.2", "sop_uid": "1.2.840.3",
}  # fmt: skip


def send(url: str, *files: tuple[str, bytes]) -> list[dict[str, Any]]:
    answer = httpx.post(f"{url}/v1/predictions", files=[("files", each) for each in files], timeout=60)
    assert answer.status_code == 201, answer.text
    return list(answer.json()["predictions"])


def pick(prediction: dict[str, Any], *more: str) -> dict[str, Any]:
    return {name: prediction[name] for name in (*FACTS, *IDENTIFIERS, *more)}


def test_an_answer_says_of_which_study_it_is(settings: Settings) -> None:
    with run_thread(settings) as url:
        known, unknown, broken = send(url, ("a.dcm", dicom(levels(), **HEADER)), ("b.png", draw(1)), ("c.png", b"no"))
        listed = httpx.get(f"{url}/v1/predictions").json()["predictions"]
    assert pick(known) == FACTS | IDENTIFIERS
    assert len(known["patient"]) == 16
    nothing = dict.fromkeys((*FACTS, *IDENTIFIERS, "patient"))
    assert pick(unknown, "patient") == pick(broken, "patient") == nothing
    assert {each["id"]: pick(each, "patient") for each in listed} == {
        each["id"]: pick(each, "patient") for each in (known, unknown)
    }
    assert "MRN-4711" not in str(known) + str(listed)


def test_identifiers_are_in_the_answer_but_not_kept_where_they_must_not_be(settings: Settings) -> None:
    with run_thread(replace(settings, keep_uids=False)) as url:
        (answer,) = send(url, ("a.dcm", dicom(levels(), **HEADER)))
        (listed,) = httpx.get(f"{url}/v1/predictions").json()["predictions"]
    assert pick(answer) == FACTS | IDENTIFIERS
    assert pick(listed) == FACTS | dict.fromkeys(IDENTIFIERS)
    assert listed["patient"] == answer["patient"]
    stored = b"".join(path.read_bytes() for path in Path(str(settings.database)).parent.glob("predictions.sqlite*"))
    assert b"ACC-815" not in stored
    assert b"1.2.840.1" not in stored
    assert b"2024-02-29" in stored


@examples(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15, deadline=None)
@given(st.binary(min_size=8, max_size=8), st.sampled_from(["AccessionNumber", "StudyDate", "Laterality"]))
def test_no_bytes_in_a_header_break_the_service(service: Process, value: bytes, keyword: str) -> None:
    elements: dict[str, Any] = {keyword: "ZZYYXXWW"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's own, as it writes what it shouldn't
        content = dicom(levels(), **elements)
    (prediction,) = send(service.url, ("a.dcm", content.replace(b"ZZYYXXWW", value)))
    assert prediction["decision"]
    assert prediction["date"] is None or len(prediction["date"]) == 10
    assert prediction["sop_uid"] == "1.2.3"


def test_exported_reviews_have_it_and_divide_no_images_by_it(settings: Settings, tmp_path: Path) -> None:
    kept, table = tmp_path / "kept", tmp_path / "reviews.csv"
    with run_thread(replace(settings, keep_images=kept)) as url:
        files = []
        for i in range(6):
            own = {"SOPInstanceUID": f"1.2.{i}", "AccessionNumber": f"A{i % 2}", "PatientID": f"p{i}"}
            files.append((f"{i}.dcm", dicom(levels(), **{**HEADER, **own, "PatientSex": "FM"[i % 2]})))
        for i, each in enumerate(send(url, *files)):
            label = "NORMAL" if i < 3 else "PNEUMONIA"
            body = {"agrees": each["decision"] == label, "label": label}
            assert httpx.post(f"{url}/v1/predictions/{each['id']}/reviews", json=body).status_code == 201
    with Store(settings.database) as store:
        export_reviews(store, table, [kept])
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert {row["accession_number"] for row in rows} == {"A0", "A1"}
    assert {row["sop_uid"] for row in rows} == {f"1.2.{i}" for i in range(6)}
    assert {(row["age"], row["date"]) for row in rows} == {("1.5", "2024-02-29")}
    assert len({row["patient"] for row in rows}) == 6
    assert {sample.patient for sample in read_samples(table)} == {row["patient"] for row in rows}
    found = evaluate(table, settings.model, resamples=10)
    assert {part.kind for part in found.subgroups} >= {"Sex"}
    assert not {part.kind for part in found.subgroups} & {*IDENTIFIERS, "date"}


def test_the_api_describes_the_fields(service: Process) -> None:
    document = httpx.get(f"{service.url}/openapi.json").json()
    fields = document["components"]["schemas"]["PredictionMessage"]["properties"]
    for name in (*FACTS, *IDENTIFIERS, "patient"):
        assert fields[name]["description"]
    assert "pseudonym" in fields["patient"]["description"]


@pytest.mark.parametrize("field", ["accession_number", "sop_uid"])
def test_the_page_shows_nothing_new(service: Process, field: str) -> None:
    assert field not in httpx.get(service.url).text
