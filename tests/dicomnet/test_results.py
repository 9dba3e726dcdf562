"""Predictions of DICOM images as structured reports and secondary captures."""

from __future__ import annotations

import csv
import datetime
import io
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from archives import Archive, run_orthanc
from dicom_files import dicom
from highdicom.sr import Comprehensive3DSR
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from pneumoscope.datasets.phantoms import draw_phantom
from pneumoscope.datasets.samples import Sample
from pneumoscope.dicomnet.algorithm import RESEARCH_USE, Algorithm, identify
from pneumoscope.dicomnet.objects import finish
from pneumoscope.dicomnet.results import Answerer, ResultSettings, write_dicom_results
from pneumoscope.dicomnet.secondary_capture import draw_capture, make_capture
from pneumoscope.dicomnet.sources import read_source
from pneumoscope.dicomnet.structured_report import ReportClass, make_report
from pneumoscope.errors import DataError, UsageError
from pneumoscope.images.read import Reading
from pneumoscope.inference.prediction import Prediction
from pneumoscope.inference.predictor import Predictor, load

HEADER = {
    "PatientName": "Doe^Jane", "PatientBirthDate": "19700203", "PatientSex": "F", "PatientAge": "055Y",
    "AccessionNumber": "A17", "StudyID": "S1", "StudyDate": "20260102", "StudyTime": "101112", "InstanceNumber": "3",
    "ReferringPhysicianName": "Who^Doctor", "PatientOrientation": ["L", "F"], "ImagerPixelSpacing": ["0.2", "0.1"],
    "ViewPosition": "PA", "BodyPartExamined": "CHEST", "Manufacturer": "Maker", "FrameOfReferenceUID": "1.2.9",
    "SOPInstanceUID": "1.2.3.4", "StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.1",
}  # fmt: skip
DEFAULT = {"SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID"}  # that `dicom` sets
ALGORITHM = Algorithm("model", "a" * 64, ("NORMAL", "PNEUMONIA"), "PNEUMONIA", ("threshold=0.5", "alpha=0.05"), 0.5)
DECIDED = Prediction(
    predicted_label="PNEUMONIA", probability=0.8, probabilities={"NORMAL": 0.2, "PNEUMONIA": 0.8},
    prediction_set=("PNEUMONIA",), ood_score=0.4, decision="PNEUMONIA",
    pixels=np.linspace(0, 1, 64 * 80, dtype=np.float32).reshape(64, 80),
)  # fmt: skip
UNCERTAIN = replace(DECIDED, decision="uncertain", prediction_set=("NORMAL", "PNEUMONIA"))
UNLIKE = replace(DECIDED, decision="out_of_distribution", probability=None, ood_score=1.7)


def make_image(**header: Any) -> bytes:
    """A small CR image; a header of None leaves an attribute out."""
    chosen = {name: value for name, value in (HEADER | header).items() if value is not None or name in DEFAULT}
    return dicom(np.zeros((64, 80), np.uint16), **chosen)


def write_image(path: Path, seed: int = 1, **header: Any) -> Path:
    """A simulated radiograph as a CR image; a header of None leaves an attribute out."""
    pixels = draw_phantom(seed, pneumonia=bool(seed % 2), size=224).pixels
    path.write_bytes(dicom(np.rint(pixels * 4095).astype(np.uint16), **(HEADER | header)))
    return path


@pytest.fixture(scope="session")
def predictor() -> Predictor:
    return load()


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    with run_orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


def answer(predictor: Predictor, *paths: Path, **options: Any) -> list[Dataset]:
    answers = Answerer(predictor, identify(predictor), ResultSettings(**options)).answer(paths)
    return [
        pydicom.dcmread(io.BytesIO(result.content)) for each in answers for result in each.results
    ]  # fmt: skip


def report(prediction: Prediction, algorithm: Algorithm = ALGORITHM, **header: Any) -> Dataset:
    return make_report(prediction, read_source(make_image(**header), "image"), algorithm)


def list_items(dataset: Dataset) -> Iterator[Dataset]:
    """All content items of a report."""
    for item in dataset.get("ContentSequence", []):
        yield item
        yield from list_items(item)


def name_of(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeMeaning) if "ConceptNameCodeSequence" in item else ""


def read_values(dataset: Dataset) -> dict[str, list[str]]:
    """Numbers and codes of the measurement groups, by name."""
    found: dict[str, list[str]] = {}
    for item in list_items(dataset):
        if item.ValueType == "NUM":
            value = str(item.MeasuredValueSequence[0].NumericValue)
        elif item.ValueType == "CODE":
            value = item.ConceptCodeSequence[0].CodeMeaning
        elif item.ValueType == "TEXT":
            value = item.TextValue
        else:
            continue
        found.setdefault(name_of(item), []).append(value)
    return found


def test_a_report_says_what_was_found_by_what_and_how_sure_it_is() -> None:
    values = read_values(report(DECIDED))
    assert values["Pneumonia"] == ["Present"]
    assert float(values["Probability"][0]) == pytest.approx(0.8)
    assert float(values["Threshold Value"][0]) == 0.5
    assert float(values["Out-of-distribution score"][0]) == pytest.approx(0.4)
    assert values["Possible class (prediction set)"] == ["Pneumonia"]
    assert values["Algorithm Name"] == ["model"]
    assert values["Algorithm Version"][0].endswith("+" + "a" * 12)
    assert values["Algorithm Parameters"] == ["threshold=0.5", "alpha=0.05"]
    assert values["Comment"] == [RESEARCH_USE, "Examined for PNEUMONIA alone: nothing else was assessed."]
    assert values["Finding Site"] == ["Lung"]


def test_an_uncertain_prediction_says_so_and_names_all_possible_classes() -> None:
    values = read_values(report(UNCERTAIN))
    assert values["Pneumonia"] == ["Undetermined"]
    assert values["Possible class (prediction set)"] == ["NORMAL", "Pneumonia"]


def test_an_image_out_of_distribution_gets_no_probability_and_no_classes() -> None:
    values = read_values(report(UNLIKE))
    assert values["Pneumonia"] == ["Out of distribution"]
    assert "Probability" not in values
    assert "Possible class (prediction set)" not in values
    assert float(values["Out-of-distribution score"][0]) == pytest.approx(1.7)


def test_three_classes_have_a_group_each() -> None:
    algorithm = replace(ALGORITHM, labels=("NORMAL", "PNEUMONIA", "肺结核"), positive=None, threshold=None)
    prediction = replace(
        DECIDED, probabilities={"NORMAL": 0.1, "PNEUMONIA": 0.7, "肺结核": 0.2}, prediction_set=("PNEUMONIA", "肺结核")
    )
    values = read_values(made := report(prediction, algorithm))
    assert [float(each) for each in values["Probability"]] == pytest.approx([0.1, 0.7, 0.2])
    assert (values["NORMAL"], values["Pneumonia"], values["肺结核"]) == (["Absent"], ["Present"], ["Absent"])
    assert made.SpecificCharacterSet == "ISO_IR 192"


def test_results_belong_to_the_study_and_patient_of_their_image(predictor: Predictor, tmp_path: Path) -> None:
    made = answer(predictor, write_image(tmp_path / "a.dcm"))
    assert [each.Modality for each in made] == ["SR", "OT"]
    for each in made:
        assert each.StudyInstanceUID == HEADER["StudyInstanceUID"]
        assert each.SeriesInstanceUID != HEADER["SeriesInstanceUID"]
        for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
                     "StudyDate", "StudyTime", "ReferringPhysicianName"):  # fmt: skip
            assert str(each[name].value) == (HEADER | {"PatientID": "p1"})[name], name
    sr, sc = made
    evidence = sr.CurrentRequestedProcedureEvidenceSequence[0]
    reference = evidence.ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert evidence.StudyInstanceUID == HEADER["StudyInstanceUID"]
    assert reference.ReferencedSOPInstanceUID == HEADER["SOPInstanceUID"]
    assert sc.SourceImageSequence[0].ReferencedSOPInstanceUID == HEADER["SOPInstanceUID"]
    assert made[0].SeriesInstanceUID != made[1].SeriesInstanceUID


def test_a_report_is_never_verified_and_never_final() -> None:
    made = report(DECIDED)
    assert (made.VerificationFlag, made.PreliminaryFlag, made.CompletionFlag) == (
        "UNVERIFIED",
        "PRELIMINARY",
        "COMPLETE",
    )


def test_what_viewers_stumble_over_is_right() -> None:
    made = report(UNCERTAIN)
    assert made.ConceptNameCodeSequence[0].CodeValue == "126000"  # OHIF shows no other root
    assert made.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    names = [name_of(each) for each in made.ContentSequence]
    assert names.index("Image Library") < names.index("Imaging Measurements")
    assert "Tracking Unique Identifier" in [name_of(each) for each in list_items(made)]
    measured = next(each for each in made.ContentSequence if name_of(each) == "Imaging Measurements")
    for item in list_items(measured):
        if item.ValueType == "NUM":  # OHIF fails on a number without a place
            region = item.ContentSequence[0]
            assert region.ValueType == "SCOORD"
            assert list(region.GraphicData) == [0, 0, 80, 0, 80, 64, 0, 64, 0, 0]
    assert made.SOPClassUID == pydicom.uid.Comprehensive3DSRStorage
    content = make_image()
    plain = make_report(DECIDED, read_source(content, "image"), ALGORITHM, "comprehensive", "%")
    assert plain.SOPClassUID == pydicom.uid.ComprehensiveSRStorage  # the only one that Orthanc's Stone viewer shows
    assert float(read_values(plain)["Probability"][0]) == pytest.approx(80)
    assert plain.SOPInstanceUID != made.SOPInstanceUID


def test_equipment_and_private_codes_are_declared() -> None:
    made = report(DECIDED)
    (scheme,) = made.CodingSchemeIdentificationSequence
    private = {
        str(code.CodingSchemeDesignator)
        for item in list_items(made)
        for name in ("ConceptNameCodeSequence", "ConceptCodeSequence")
        for code in item.get(name, [])
    } - {"DCM", "SCT", "UCUM", "LN", "RFC5646"}
    assert private == {scheme.CodingSchemeDesignator}
    retrained = report(DECIDED, replace(ALGORITHM, fingerprint="b" * 64))
    devices = [
        next(item.UID for item in list_items(each) if name_of(item) == "Device Observer UID")
        for each in (made, retrained)
    ]
    assert devices[0] != devices[1]
    assert made.SOPInstanceUID != retrained.SOPInstanceUID


def test_the_same_image_model_and_settings_give_the_same_uids(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.dcm")
    first, again = (load() for _ in range(2))
    uids = [[each.SOPInstanceUID for each in answer(one, path)] for one in (first, again)]
    assert uids[0] == uids[1]
    stricter = load(threshold=0.9)
    assert not set(uids[0]) & {each.SOPInstanceUID for each in answer(stricter, path)}
    other = write_image(tmp_path / "b.dcm", SOPInstanceUID="1.2.3.5")
    assert not set(uids[0]) & {each.SOPInstanceUID for each in answer(first, other)}


def test_what_a_result_says_and_whom_it_is_about_make_its_uid(predictor: Predictor, tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.dcm")
    answerer = Answerer(predictor, identify(predictor))

    def list_uids(*images: Path | Sample) -> list[set[str]]:
        return [{result.sop_uid for result in each.results} for each in answerer.answer(images)]

    implicit = pydicom.dcmread(path)
    implicit.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    implicit.save_as(tmp_path / "implicit.dcm", implicit_vr=True)
    other_patient = write_image(tmp_path / "b.dcm", PatientID="p2")
    other_pixels = write_image(tmp_path / "c.dcm", seed=2)
    uids = list_uids(
        path, tmp_path / "implicit.dcm", other_patient, other_pixels, Sample(path, reading=Reading(invert=True))
    )
    assert uids[0] == uids[1]
    assert len(set.union(*uids[1:])) == 8


def test_an_identifier_that_cannot_be_copied_exactly_is_refused() -> None:
    for name, value in (("PatientID", "AB\\CD"), ("PatientID", "9" * 70), ("StudyInstanceUID", "1.2.3\\1.2.4")):
        with pydicom.config.disable_value_validation():
            content = make_image(**{name: value})
        with pytest.raises(DataError, match=f"its {name} is not valid DICOM"):
            read_source(content, "image")


def test_times_are_those_of_the_time_zone_that_the_header_states() -> None:
    for offset, hours in (("-0500", -5), ("+0530", 5.5)):
        made = report(DECIDED, TimezoneOffsetFromUTC=offset)
        stated = datetime.datetime.strptime(made.ContentDate + made.ContentTime, "%Y%m%d%H%M%S")
        utc = stated - datetime.timedelta(hours=hours)
        assert abs(utc - datetime.datetime.now(datetime.UTC).replace(tzinfo=None)) < datetime.timedelta(minutes=5)
        assert made.TimezoneOffsetFromUTC == offset


def test_of_several_frames_results_refer_to_the_one_that_was_read() -> None:
    source = read_source(make_image(NumberOfFrames="5", SOPClassUID="1.2.840.10008.5.1.4.1.1.7.3"), "image")
    made = make_report(DECIDED, source, ALGORITHM)
    references = [item.ReferencedSOPSequence[0] for item in list_items(made) if item.ValueType == "IMAGE"]
    assert len(references) == 5
    assert all(each.ReferencedFrameNumber == 1 for each in references)
    assert make_capture(DECIDED, source, ALGORITHM).SourceImageSequence[0].ReferencedFrameNumber == 1


def test_words_fit_into_the_picture_of_a_narrow_image() -> None:
    narrow = replace(DECIDED, pixels=np.ones((3000, 300), np.float32))
    picture = draw_capture(narrow, ALGORITHM)
    assert picture.shape[1] >= 400
    assert picture[-1, :100].max() < 60
    assert picture[-1, 200].min() == 255


def test_a_capture_has_the_image_and_says_that_it_is_for_research() -> None:
    source = read_source(make_image(), "image")
    made = make_capture(DECIDED, source, ALGORITHM)
    assert made.SOPClassUID == pydicom.uid.SecondaryCaptureImageStorage
    assert (made.BurnedInAnnotation, made.ImageType[0], made.ConversionType) == ("YES", "DERIVED", "WSD")
    assert list(made.PatientOrientation) == ["L", "F"]
    pixels = np.frombuffer(made.PixelData[: made.Rows * made.Columns * 3], np.uint8).reshape(made.Rows, made.Columns, 3)
    below = pixels[-410:]  # of 512 x 410: the image, scaled up, without a map
    assert made.Columns == 512
    assert np.ptp(below, axis=2).max() == 0
    assert np.corrcoef(below[::8, ::8, 0].ravel(), np.arange(below[::8, ::8, 0].size))[0, 1] > 0.99
    assert pixels[: made.Rows - 410].max() > 200  # words


def test_captures_differ_with_what_they_say() -> None:
    source = read_source(make_image(), "image")
    drawn = {make_capture(each, source, ALGORITHM).PixelData for each in (DECIDED, UNCERTAIN, UNLIKE)}
    warned = make_capture(replace(DECIDED, warnings=("view LL",)), source, ALGORITHM)
    assert len(drawn | {warned.PixelData}) == 4


def test_an_image_once_lossy_stays_lossy() -> None:
    source = read_source(make_image(LossyImageCompression="01"), "image")
    assert make_capture(DECIDED, source, ALGORITHM).LossyImageCompression == "01"


@pytest.mark.parametrize("kind", ["sr", "sc"])
@pytest.mark.parametrize("prediction", [DECIDED, UNCERTAIN, UNLIKE], ids=["decided", "uncertain", "unlike"])
def test_dicom3tools_find_no_error(kind: str, prediction: Prediction, tmp_path: Path) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dicom3tools are not installed")
    for bare in (False, True):
        header = (
            dict.fromkeys(set(HEADER) - {"SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"}) if bare else {}
        )
        source = read_source(make_image(**header), "image")
        make = {"sr": make_report, "sc": make_capture}[kind]
        path = tmp_path / f"{kind}-{bare}.dcm"
        path.write_bytes(finish(make(prediction, source, ALGORITHM), ALGORITHM))
        found = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
        assert not [line for line in (found.stdout + found.stderr).splitlines() if line.startswith(("Error", "Abort"))]


def test_dcmtk_reads_reports(tmp_path: Path) -> None:
    if shutil.which("dsrdump") is None:
        pytest.skip("DCMTK is not installed")
    classes: tuple[ReportClass, ...] = ("comprehensive", "comprehensive-3d")
    for report_class in classes:
        path = tmp_path / "sr.dcm"
        made = make_report(DECIDED, read_source(make_image(), "image"), ALGORITHM, report_class)
        path.write_bytes(finish(made, ALGORITHM))
        shown = subprocess.run(["dsrdump", "+Pl", path], capture_output=True, text=True, check=True)
        assert re.search(r'contains NUM:\(,,"Probability"\)="[\d.e-]+" \(1,UCUM,"no units"\)', shown.stdout)
        assert "UNVERIFIED" in shown.stdout
        assert RESEARCH_USE in shown.stdout
        assert not shown.stderr


def test_highdicom_reads_reports_back() -> None:
    made = pydicom.dcmread(io.BytesIO(finish(report(DECIDED), ALGORITHM)))
    read = Comprehensive3DSR.from_dataset(made)
    (group,) = read.content.get_image_measurement_groups()  # type: ignore[attr-defined]
    assert group.finding_type == Code("233604007", "SCT", "Pneumonia")
    assert {each.name.meaning for each in group.get_measurements()} >= {"Probability", "Threshold Value"}
    found = {each.name.meaning: each.value.meaning for each in group.get_qualitative_evaluations()}
    assert found["Pneumonia"] == "Present"


def test_orthanc_keeps_results_in_the_study_of_their_image(
    predictor: Predictor, archive: Archive, tmp_path: Path
) -> None:
    path = write_image(tmp_path / "a.dcm", StudyInstanceUID="1.2.77")
    archive.store(path.read_bytes())
    answers = list(Answerer(predictor, identify(predictor)).answer([path]))
    stored = [archive.store(result.content) for each in answers for result in each.results]
    assert [each["Status"] for each in stored] == ["Success", "Success"]
    again = [archive.store(result.content) for each in answers for result in each.results]
    assert [each["Status"] for each in again] == ["AlreadyStored", "AlreadyStored"]
    assert len({each["ParentStudy"] for each in stored}) == 1
    study = archive.ask(f"studies/{stored[0]['ParentStudy']}")
    assert study["MainDicomTags"]["StudyInstanceUID"] == "1.2.77"
    assert len(study["Series"]) == 3
    for each, result in zip(stored, answers[0].results, strict=True):
        assert archive.get(f"instances/{each['ID']}/file") == result.content


OPTIONAL = sorted(set(HEADER) - {"SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"})


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    missing=st.sets(st.sampled_from(OPTIONAL)),
    broken=st.dictionaries(
        st.sampled_from(
            [name for name in OPTIONAL if name not in ("FrameOfReferenceUID", "InstanceNumber", "PatientID")]
        ),
        st.one_of(st.just(""), st.text(st.characters(codec="latin-1"), max_size=20), st.just("9" * 70)),
        max_size=4,
    ),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_missing_empty_and_broken_attributes_never_stop_a_result(missing: set[str], broken: dict[str, str]) -> None:
    content = make_image(SpecificCharacterSet="ISO_IR 100")
    data = pydicom.dcmread(io.BytesIO(content))
    with pydicom.config.disable_value_validation():
        for name in missing:
            data.pop(pydicom.tag.Tag(name), None)
        for name, text in broken.items():
            vr = pydicom.datadict.dictionary_VR(name)
            tag = pydicom.tag.Tag(name)
            data._dict[tag] = pydicom.dataelem.RawDataElement(
                tag, vr, len(text), text.encode("latin-1"), 0, False, True
            )
        stream = io.BytesIO()
        data.save_as(stream)
    source = read_source(stream.getvalue(), "image")
    for make in (make_report, make_capture):
        written = pydicom.dcmread(io.BytesIO(finish(make(DECIDED, source, ALGORITHM), ALGORITHM)))
        assert written.StudyInstanceUID == HEADER["StudyInstanceUID"]
        for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
            assert name in written


@pytest.mark.parametrize(
    ("age", "written"), [("23", "023Y"), ("45Y", "045Y"), ("6M", "006M"), ("012D", "012D"), ("old", None)]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_ages_are_written_as_dicom_wants_them(age: str, written: str | None) -> None:
    with pydicom.config.disable_value_validation():
        content = make_image(PatientAge=age)
    source = read_source(content, "image")
    assert source.header.get("PatientAge") == written
    assert source.left_out == (() if written else ("PatientAge",))


def test_names_of_other_scripts_survive(tmp_path: Path) -> None:
    content = make_image(PatientName="Müller^Jörg", SpecificCharacterSet="ISO_IR 100")
    made = make_report(DECIDED, read_source(content, "image"), ALGORITHM)
    made.save_as(tmp_path / "sr.dcm", enforce_file_format=True)
    read = pydicom.dcmread(tmp_path / "sr.dcm")
    assert (read.SpecificCharacterSet, str(read.PatientName)) == ("ISO_IR 192", "Müller^Jörg")


def test_an_image_without_a_study_is_refused() -> None:
    content = make_image(StudyInstanceUID=None)
    with pytest.raises(DataError, match="has no StudyInstanceUID"):
        read_source(content, "image")


def test_results_are_written_with_a_table_and_files_at_fault_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    write_image(folder / "a.dcm")
    (folder / "b.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"rubbish")
    (folder / "c.png").write_bytes(b"no picture")
    write_image(folder / "d.dcm", StudyInstanceUID=None)
    answers = write_dicom_results(folder, tmp_path / "out", progress=None)
    assert [bool(each.prediction.error) for each in answers] == [False, True, True, True]
    with (tmp_path / "out/results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == ["sr", "sc", "", "", ""]
    for row in rows[:2]:
        assert pydicom.dcmread(tmp_path / "out" / row["file"]).SOPInstanceUID == row["sop_uid"]
    assert all(row["error"] for row in rows[2:])
    with pytest.raises(UsageError, match="overwrite"):
        write_dicom_results(folder, tmp_path / "out")
    write_dicom_results(folder, tmp_path / "out", kinds=("sr",), overwrite=True, progress=None)
    assert len(list((tmp_path / "out/objects").iterdir())) == 1


def test_real_images_get_valid_results(predictor: Predictor, real_data: Path, tmp_path: Path) -> None:
    """They have an age without a unit, and empty birth date, accession number, study ID and orientation."""
    made = answer(predictor, *sorted((real_data / "dicom").glob("*.dcm"))[:4])
    assert len(made) == 8
    assert all(each.PatientAge[-1] == "Y" for each in made)
    if shutil.which("dciodvfy"):
        for each in made:
            each.save_as(tmp_path / "result.dcm")
            found = subprocess.run(["dciodvfy", tmp_path / "result.dcm"], capture_output=True, text=True, check=False)
            assert not re.search("^(Error|Abort)", found.stdout + found.stderr, re.MULTILINE)
