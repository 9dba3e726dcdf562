"""A prediction as FHIR resources."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evidence_cases import (
    ALGORITHM,
    BREAKABLE,
    DECIDED,
    HEADER,
    OPTIONAL,
    UNCERTAIN,
    UNLIKE,
    damage,
    make_image,
    make_source,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pneumoscope.dicomnet.algorithm import RESEARCH_USE
from pneumoscope.dicomnet.fhir import Release, encode_transaction, identify_report, make_transaction
from pneumoscope.dicomnet.results import write_dicom_results
from pneumoscope.dicomnet.sources import read_source
from pneumoscope.inference.prediction import Prediction

RELEASES: tuple[Release, ...] = ("r4", "r5")
DCM = "http://dicom.nema.org/resources/ontology/DCM"


def check(bundle: dict[str, Any], release: Release) -> None:
    """Read a bundle with the models of the standard: R4B's, which has the same resources as R4 here, or R5's."""
    pytest.importorskip("fhir.resources", reason="fhir.resources is not installed")
    if release == "r4":
        from fhir.resources.R4B.bundle import Bundle as OldBundle

        OldBundle.model_validate(bundle)
    else:
        from fhir.resources.bundle import Bundle

        Bundle.model_validate(bundle)


def make(prediction: Prediction = DECIDED, release: Release = "r5", algorithm: Any = ALGORITHM, **header: Any) -> Any:
    """A bundle as it is sent, valid."""
    bundle = json.loads(encode_transaction(make_transaction(prediction, make_source(**header), algorithm, release)))
    check(bundle, release)
    return bundle


def list_kind(bundle: Any, kind: str) -> list[Any]:
    return [each["resource"] for each in bundle["entry"] if each["resource"]["resourceType"] == kind]


def code_of(concept: Any) -> str:
    return str(concept["coding"][0]["code"])


def measure(observation: Any) -> dict[str, float]:
    """The numbers of an observation by code."""
    return {
        code_of(each["code"]): each["valueQuantity"]["value"]
        for each in observation.get("component", [])
        if "valueQuantity" in each
    }


@pytest.mark.parametrize("release", RELEASES)
def test_a_finding_is_present_with_its_numbers(release: Release) -> None:
    bundle = make(release=release)
    (observation,) = list_kind(bundle, "Observation")
    assert observation["code"]["coding"][0] == {
        "system": "http://snomed.info/sct", "code": "233604007", "display": "Pneumonia",
    }  # fmt: skip
    assert code_of(observation["valueCodeableConcept"]) == "52101004"  # present
    assert measure(observation) == {"122157": 0.8, "122411": 0.5, "OODSCORE": 0.4}
    possible = [each for each in observation["component"] if "valueCodeableConcept" in each]
    assert [code_of(each["valueCodeableConcept"]) for each in possible] == ["233604007"]
    assert "dataAbsentReason" not in observation


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("prediction", "code"),
    [
        (replace(DECIDED, decision="NORMAL", predicted_label="NORMAL", prediction_set=("NORMAL",)), "272519000"),
        (UNCERTAIN, "373068000"),
    ],
    ids=["absent", "uncertain"],
)
def test_a_finding_is_absent_or_uncertain(release: Release, prediction: Prediction, code: str) -> None:
    (observation,) = list_kind(make(prediction, release), "Observation")
    assert code_of(observation["valueCodeableConcept"]) == code
    assert "122157" in measure(observation)


@pytest.mark.parametrize("release", RELEASES)
def test_an_image_out_of_distribution_has_no_value_and_no_probability(release: Release) -> None:
    bundle = make(UNLIKE, release)
    (observation,) = list_kind(bundle, "Observation")
    assert code_of(observation["dataAbsentReason"]) == "unsupported"
    assert "valueCodeableConcept" not in observation
    assert measure(observation) == {"122411": 0.5, "OODSCORE": 1.7}
    (report,) = list_kind(bundle, "DiagnosticReport")
    assert "Out of distribution" in report["conclusion"]
    assert "0.8" not in json.dumps(report)


@pytest.mark.parametrize("release", RELEASES)
def test_three_classes_have_an_observation_each(release: Release) -> None:
    algorithm = replace(ALGORITHM, labels=("NORMAL", "PNEUMONIA", "肺结核"), positive=None, threshold=None)
    prediction = replace(
        DECIDED, probabilities={"NORMAL": 0.1, "PNEUMONIA": 0.7, "肺结核": 0.2}, prediction_set=("PNEUMONIA", "肺结核")
    )
    observations = list_kind(make(prediction, release, algorithm), "Observation")
    assert [measure(each)["122157"] for each in observations] == [0.1, 0.7, 0.2]
    assert [code_of(each["valueCodeableConcept"]) for each in observations] == ["272519000", "52101004", "272519000"]
    assert observations[2]["code"]["coding"][0]["display"] == "肺结核"


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("prediction", [DECIDED, UNCERTAIN, UNLIKE], ids=["decided", "uncertain", "unlike"])
def test_nothing_is_final_and_all_says_that_it_is_for_research(release: Release, prediction: Prediction) -> None:
    bundle = make(replace(prediction, warnings=("view LL",)), release)
    for resource in (*list_kind(bundle, "DiagnosticReport"), *list_kind(bundle, "Observation")):
        assert resource["status"] == "preliminary"
        assert RESEARCH_USE in json.dumps(resource)
        assert "view LL" in json.dumps(resource)
    assert RESEARCH_USE in json.dumps(list_kind(bundle, "Device"))


@pytest.mark.parametrize("release", RELEASES)
def test_patient_order_and_study_are_those_of_the_image(release: Release) -> None:
    bundle = make(release=release)
    study = {"system": "urn:dicom:uid", "value": f"urn:oid:{HEADER['StudyInstanceUID']}"}
    for resource in (*list_kind(bundle, "DiagnosticReport"), *list_kind(bundle, "Observation")):
        assert resource["subject"] == {
            "type": "Patient", "identifier": {"value": "p1", "assigner": {"display": "Hospital"}},
        }  # fmt: skip
        assert resource["basedOn"][0]["identifier"]["value"] == "A17"
        assert resource["effectiveDateTime"] == "2026-01-02T10:11:12+01:00"
        (found,) = resource.get("derivedFrom", resource.get("imagingStudy", resource.get("study")))[:1]
        assert study.items() <= found["identifier"].items()
    text = json.dumps(bundle)
    assert "Doe" not in text
    assert "1970" not in text
    if release == "r5":
        (selection,) = list_kind(bundle, "ImagingSelection")
        assert selection["instance"][0]["uid"] == HEADER["SOPInstanceUID"]
    else:
        assert HEADER["SOPInstanceUID"] in text  # in a note


@pytest.mark.parametrize("release", RELEASES)
def test_what_the_header_does_not_say_is_not_made_up(release: Release) -> None:
    bundle = make(release=release, PatientID=None, AccessionNumber=None, StudyDate=None)
    for each in bundle["entry"]:
        assert not {"subject", "basedOn", "effectiveDateTime"} & set(each["resource"])
    day = make(release=release, TimezoneOffsetFromUTC=None)
    assert list_kind(day, "Observation")[0]["effectiveDateTime"] == "2026-01-02"  # a time would need its zone


@pytest.mark.parametrize("release", RELEASES)
def test_the_device_is_the_model_with_version_and_settings(release: Release) -> None:
    (device,) = list_kind(make(release=release), "Device")
    assert device["identifier"] == [{"system": "urn:dicom:uid", "value": f"urn:oid:{ALGORITHM.device_uid}"}]
    assert device["modelNumber"] == "model"
    assert {each["value"] for each in device["version"]} == {ALGORITHM.version, ALGORITHM.fingerprint}
    assert all(each in json.dumps(device["property"]) for each in ALGORITHM.parameters)
    (retrained,) = list_kind(make(release=release, algorithm=replace(ALGORITHM, fingerprint="b" * 64)), "Device")
    assert retrained["identifier"] != device["identifier"]


@pytest.mark.parametrize("release", RELEASES)
def test_a_repeat_replaces_what_was_stored(release: Release) -> None:
    first, again = make(release=release), make(release=release)
    assert [each["fullUrl"] for each in first["entry"]] == [each["fullUrl"] for each in again["entry"]]
    assert len({each["fullUrl"] for each in first["entry"]}) == len(first["entry"])
    for each in first["entry"]:
        assert uuid.UUID(each["fullUrl"]).version == 5
        assert each["request"]["method"] == "PUT"  # by its identifier
        value = each["resource"]["identifier"][0]["value"]
        assert each["request"]["url"] == f"{each['resource']['resourceType']}?identifier=urn:dicom:uid|{value}"
    stricter = make(release=release, algorithm=replace(ALGORITHM, parameters=("threshold=0.9",)))
    reports = [list_kind(each, "DiagnosticReport")[0]["identifier"] for each in (first, stricter)]
    assert reports[0] != reports[1]
    assert identify_report(make_source(), ALGORITHM, release) in reports[0][0]["value"]


@pytest.mark.parametrize("release", RELEASES)
def test_every_reference_within_leads_to_an_entry(release: Release) -> None:
    bundle = make(release=release)
    urls = {each["fullUrl"] for each in bundle["entry"]}
    references = set(re.findall(r'"reference": "([^"]+)"', json.dumps(bundle)))
    assert references
    assert references == urls - {bundle["entry"][0]["fullUrl"]}  # nothing refers to the report


def test_codes_of_private_classes_and_of_dicom_have_their_systems() -> None:
    systems = set(re.findall(r'"system": "([^"]+)"', json.dumps(make())))
    assert {DCM, "http://snomed.info/sct", "http://loinc.org", "http://unitsofmeasure.org", "urn:dicom:uid"} <= systems
    assert all(each.startswith(("http://", "urn:")) for each in systems)


@pytest.mark.parametrize("release", RELEASES)
def test_text_is_escaped_and_other_scripts_survive(release: Release) -> None:
    bundle = make(release=release, algorithm=replace(ALGORITHM, name="<b>模型</b>"))
    (report,) = list_kind(bundle, "DiagnosticReport")
    assert "&lt;b&gt;模型" in report["text"]["div"]
    assert "<b>" not in report["text"]["div"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_image_whose_uids_fhir_cannot_hold_is_named_in_a_note() -> None:
    bundle = make(SOPInstanceUID="1.2.3_4")
    assert not list_kind(bundle, "ImagingSelection")
    assert "1.2.3_4" in json.dumps(list_kind(bundle, "Observation")[0]["note"])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    missing=st.sets(st.sampled_from(OPTIONAL)),
    broken=st.dictionaries(
        st.sampled_from(BREAKABLE),
        st.one_of(st.just(""), st.text(st.characters(codec="latin-1"), max_size=20), st.just("9" * 70)),
        max_size=5,
    ),
    release=st.sampled_from(RELEASES),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_missing_empty_and_broken_attributes_never_stop_a_bundle(
    missing: set[str], broken: dict[str, str], release: Release
) -> None:
    content = damage(make_image(SpecificCharacterSet="ISO_IR 100"), missing, broken)
    check(
        json.loads(encode_transaction(make_transaction(DECIDED, read_source(content, "image"), ALGORITHM, release))),
        release,
    )


@pytest.mark.parametrize("release", RELEASES)
def test_bundles_are_written_as_json_beside_dicom(release: Release, tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(make_image((224, 224)))
    kind: Any = f"fhir-{release}"
    (answer,) = write_dicom_results(tmp_path / "a.dcm", tmp_path / "out", kinds=(kind,), progress=None)
    assert answer.prediction.error is None
    (written,) = (tmp_path / "out/objects").iterdir()
    assert written.suffix == ".json"
    check(json.loads(written.read_text(encoding="utf-8")), release)
    assert answer.results[0].sop_class_uid == ""
