"""Evidence as DICOM objects: parametric maps and segmentations."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from archives import Archive, run_orthanc
from dicom_files import dicom
from evidence_cases import (
    ALGORITHM,
    BREAKABLE,
    DECIDED,
    HEADER,
    NEEDED,
    OPTIONAL,
    UNCERTAIN,
    UNLIKE,
    damage,
    make_evidence,
    make_image,
    make_source,
)
from highdicom.pm.sop import pmread
from highdicom.seg import segread
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from pneumoscope.datasets.phantoms import draw_phantom
from pneumoscope.dicomnet.algorithm import RESEARCH_USE, Algorithm, identify
from pneumoscope.dicomnet.evidence_maps import NOT_SEEN, make_map, make_segmentation
from pneumoscope.dicomnet.objects import finish
from pneumoscope.dicomnet.results import Answerer, ResultSettings, write_dicom_results
from pneumoscope.dicomnet.sources import Source, read_source
from pneumoscope.inference.predictor import load
from pneumoscope.training.train import Run

Maker = Callable[[Any, Source, Algorithm], Dataset | None]
MAKERS: dict[str, Maker] = {"map": make_map, "seg": make_segmentation}
CROPPED = make_evidence((90, 60), (0.0, 15.0, 60.0, 75.0))
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # highdicom's, of names of patients


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    with run_orthanc(tmp_path_factory.mktemp("orthanc-maps")) as running:
        yield running


def write(
    kind: str, prediction: Any = DECIDED, source: Source | None = None, algorithm: Algorithm = ALGORITHM
) -> bytes:
    made = MAKERS[kind](prediction, source or make_source(prediction.evidence.shape), algorithm)
    assert made is not None
    return finish(made, algorithm)


def read_map(content: bytes) -> tuple[Dataset, np.ndarray[Any, Any]]:
    """The object, and its values in logits, nan where there is padding."""
    made = pydicom.dcmread(io.BytesIO(content))
    values = made.pixel_array.astype(np.float64)
    if "FloatPixelPaddingValue" in made:
        values[made.pixel_array == np.float32(made.FloatPixelPaddingValue)] = np.nan
    return made, values


def read_shares(content: bytes, sop_uid: str = HEADER["SOPInstanceUID"]) -> np.ndarray[Any, Any]:
    read = segread(io.BytesIO(content))
    return np.asarray(read.get_pixels_by_source_instance([sop_uid], rescale_fractional=True))[0, ..., 0]


@pytest.mark.parametrize("shape", [(64, 80), (61, 43), (1024, 840), (1500, 1201)])
@pytest.mark.parametrize("cropped", [False, True])
def test_the_mean_of_a_map_and_the_bias_are_the_logit(shape: tuple[int, int], cropped: bool) -> None:
    height, width = shape
    evidence = make_evidence(shape, (0.0, height * 0.13, float(width), height * 0.91) if cropped else None)
    made, values = read_map(write("map", replace(DECIDED, evidence=evidence)))
    assert np.nanmean(values) + evidence.bias == pytest.approx(evidence.logit, abs=1e-5)
    assert f"bias {evidence.bias:+.6g}, logit {evidence.logit:+.6g}" in made.DerivationDescription
    assert f"logit {evidence.logit:+.3f}, bias {evidence.bias:+.3f} for PNEUMONIA" in made.ContentDescription
    assert np.isnan(values).any() == cropped
    (mapping,) = made.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)
    assert mapping.DoubleFloatRealWorldValueFirstValueMapped <= np.nanmin(values)
    assert mapping.DoubleFloatRealWorldValueLastValueMapped >= np.nanmax(values)
    assert not mapping.DoubleFloatRealWorldValueFirstValueMapped <= NOT_SEEN
    assert mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0].CodeValue == "130402"
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"


@pytest.mark.parametrize("place", [(10, 70), (55, 5), (33, 41)])
def test_a_place_of_the_image_is_the_same_place_of_both(place: tuple[int, int]) -> None:
    """One strong cell lies where its part of the image is, in maps of any size."""
    for shape in ((64, 80), (1600, 2000)):
        y, x = place[0] * shape[0] // 64, place[1] * shape[1] // 80
        cells = np.zeros((8, 10), np.float32)
        row, column = place[0] // 8, place[1] // 8
        cells[row, column] = 10
        evidence = replace(make_evidence(shape), cells=cells, logit=float(cells.mean()) + 0.25)
        prediction = replace(DECIDED, evidence=evidence)
        made, values = read_map(write("map", prediction))
        shares = read_shares(write("seg", prediction))
        assert shares.shape == shape
        # centre of mass of the evidence, as a fraction of the image: the cell's middle
        for each in (values, shares):
            weight = np.clip(each, 0.05, None) - 0.05
            rows, columns = ((np.arange(side) + 0.5) / side for side in each.shape)
            centre = (weight.sum(1) @ rows / weight.sum(), weight.sum(0) @ columns / weight.sum())
            if 0 < row < 7 and 0 < column < 9:  # cells at the edge are cut off by it
                assert centre == pytest.approx(((row + 0.5) / 8, (column + 0.5) / 10), abs=2e-3)
        # and pixel by pixel
        scale_y, scale_x = made.Rows / shape[0], made.Columns / shape[1]
        there = values[int((y + 0.5) * scale_y), int((x + 0.5) * scale_x)]
        assert there == pytest.approx(float(evidence.map()[y, x]), abs=0.1)
        assert shares[y, x] == pytest.approx(np.clip(evidence.map()[y, x] / evidence.limit, 0, 1), abs=1 / 255 + 1e-3)
        spacing = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
        field = float(spacing[0]) * made.Rows, float(spacing[1]) * made.Columns
        assert field == pytest.approx((0.2 * shape[0], 0.1 * shape[1]), rel=1e-6)


def test_a_map_is_never_larger_than_needed_and_says_whether_coordinates_are_the_same() -> None:
    for shape, stored, same in (((64, 80), (64, 80), "YES"), ((3000, 2500), (1024, 853), "NO")):
        made, _ = read_map(write("map", replace(DECIDED, evidence=make_evidence(shape))))
        assert (made.Rows, made.Columns) == stored
        reference = made.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
        assert reference.SpatialLocationsPreserved == same
        assert reference.ReferencedSOPInstanceUID == HEADER["SOPInstanceUID"]
    made = pydicom.dcmread(io.BytesIO(write("seg", replace(DECIDED, evidence=make_evidence((300, 250))))))
    assert (made.Rows, made.Columns) == (300, 250)


def test_what_the_network_did_not_see_is_padding() -> None:
    prediction = replace(DECIDED, evidence=CROPPED)
    made, values = read_map(write("map", prediction))
    assert np.isnan(values[:15]).all()
    assert np.isnan(values[75:]).all()
    assert not np.isnan(values[15:75]).any()
    assert made.FloatPixelPaddingValue == NOT_SEEN
    assert not read_shares(write("seg", prediction))[:15].any()
    assert "FloatPixelPaddingValue" not in read_map(write("map"))[0]


def test_a_segmentation_has_the_evidence_for_the_class_alone() -> None:
    evidence = make_evidence()
    shares = read_shares(write("seg"))
    against = evidence.map() < -0.1
    assert against.any()
    assert not shares[against].any()
    assert shares.max() > 0.5
    nothing = replace(evidence, cells=np.full((7, 7), -2, np.float32), logit=-1.75)
    assert not read_shares(write("seg", replace(DECIDED, evidence=nothing))).any()
    made = pydicom.dcmread(io.BytesIO(write("seg")))
    (segment,) = made.SegmentSequence
    assert (segment.SegmentAlgorithmType, segment.SegmentAlgorithmName) == ("AUTOMATIC", "model")
    assert segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == ALGORITHM.version
    assert (made.SegmentationType, made.SegmentationFractionalType) == ("FRACTIONAL", "OCCUPANCY")
    assert segment.SegmentLabel == "Evidence for PNEUMONIA"


@pytest.mark.parametrize("kind", MAKERS)
def test_an_image_out_of_distribution_has_no_evidence(kind: str) -> None:
    assert MAKERS[kind](UNLIKE, make_source(), ALGORITHM) is None
    assert MAKERS[kind](replace(DECIDED, evidence=None), make_source(), ALGORITHM) is None


def test_the_table_has_the_decision_of_an_image_without_evidence(tmp_path: Path) -> None:
    pixels = draw_phantom(1, pneumonia=True, size=224).pixels  # unlike what the pretrained model learned from
    (tmp_path / "a.dcm").write_bytes(dicom(np.rint(pixels * 4095).astype(np.uint16), **HEADER))
    (answer,) = write_dicom_results(tmp_path / "a.dcm", tmp_path / "out", kinds=("map", "seg"), progress=None)
    assert (answer.prediction.error, answer.results) == (None, ())
    (row,) = csv.DictReader((tmp_path / "out/results.csv").read_text(encoding="utf-8").splitlines())
    assert (row["decision"], row["kind"], row["error"]) == ("out_of_distribution", "", "")


@pytest.mark.parametrize("kind", MAKERS)
def test_an_object_belongs_to_study_and_patient_and_is_for_research(kind: str) -> None:
    made = pydicom.dcmread(io.BytesIO(write(kind)))
    for name in ("StudyInstanceUID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
                 "StudyDate"):  # fmt: skip
        assert str(made[name].value) == HEADER[name], name
    assert made.PatientID == "p1"
    assert made.SeriesInstanceUID != HEADER["SeriesInstanceUID"]
    assert made.ImageComments == RESEARCH_USE
    (series,) = made.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == HEADER["SeriesInstanceUID"]
    assert series.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == HEADER["SOPInstanceUID"]
    assert made.ContributingEquipmentSequence[-1].DeviceUID == ALGORITHM.device_uid
    assert made.get("FrameOfReferenceUID") != HEADER["FrameOfReferenceUID"]  # nothing is known of the place in it


@pytest.mark.parametrize("kind", MAKERS)
def test_uids_follow_from_image_model_and_settings(kind: str) -> None:
    def uids(content: bytes) -> list[str]:
        found: list[str] = []
        data = pydicom.dcmread(io.BytesIO(content))
        data.walk(lambda _, element: found.append(f"{element.tag} {element.value}") if element.VR == "UI" else None)
        return found

    assert uids(write(kind)) == uids(write(kind))
    first = pydicom.dcmread(io.BytesIO(write(kind))).SOPInstanceUID
    others = [
        write(kind, algorithm=replace(ALGORITHM, fingerprint="b" * 64)),
        write(kind, algorithm=replace(ALGORITHM, parameters=("threshold=0.6",))),
        write(kind, source=make_source(SOPInstanceUID="1.2.3.5")),
    ]
    assert first not in [pydicom.dcmread(io.BytesIO(each)).SOPInstanceUID for each in others]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    "header",
    [
        {},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "Modality": "CT"},  # demands a frame of reference
        {"SOPClassUID": "1.3.46.670589.2.3.1.1"},  # a private class
        {"frames": 2},  # of a class for single images
        {"frames": 2, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.3"},
        {"LossyImageCompression": "01", "LossyImageCompressionMethod": "ISO_10918_1"},
        {"ViewPosition": "LL", "PatientOrientation": None},
        {"PatientName": "Müller^Jörg", "SpecificCharacterSet": "ISO_IR 100"},
        dict.fromkeys(OPTIONAL),
    ],
    ids=["full", "SC", "DX", "CT", "private", "frames", "multi-frame", "lossy", "lateral", "latin", "bare"],
)
def test_dicom3tools_and_readers_find_no_error(kind: str, header: dict[str, Any], tmp_path: Path) -> None:
    if shutil.which("dciodvfy") is None or shutil.which("dcmdump") is None:
        pytest.skip("dicom3tools or DCMTK is not installed")
    source = make_source(**header)
    for number, prediction in enumerate((DECIDED, UNCERTAIN, replace(DECIDED, evidence=CROPPED))):
        own = source if number < 2 else make_source((90, 60), **header)
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(content := write(kind, prediction, own))
        found = subprocess.run(["dciodvfy", path], capture_output=True, errors="replace", check=False)
        said = (found.stdout + found.stderr).splitlines()
        assert not [line for line in said if line.startswith(("Error", "Abort"))]
        assert not subprocess.run(["dcmdump", path], capture_output=True, check=True).stderr
        read = {"map": pmread, "seg": segread}[kind](io.BytesIO(content))
        assert read.pixel_array.squeeze().shape == prediction.evidence.shape  # type: ignore[union-attr]
        references = read.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence
        assert (
            references[0].ReferencedSOPClassUID
            == source.sop_class_uid
            == read.SourceImageSequence[0].ReferencedSOPClassUID
        )
        assert references[0].get("ReferencedFrameNumber") == (1 if len(header) == 2 and "frames" in header else None)
        assert read.LossyImageCompression == ("01" if "LossyImageCompression" in header else "00")


@pytest.mark.parametrize(
    ("header", "directions"),
    [
        ({"PatientOrientation": ["L", "F"]}, [1, 0, 0, 0, 0, -1]),
        ({"PatientOrientation": ["PL", "FR"]}, [0, 1, 0, 0, 0, -1]),
        ({"PatientOrientation": ["R", "H"]}, [-1, 0, 0, 0, 0, 1]),
        ({"PatientOrientation": ["L", "R"]}, [1, 0, 0, 0, 0, -1]),  # contradicts itself
        ({"PatientOrientation": None}, [1, 0, 0, 0, 0, -1]),
        ({"PatientOrientation": None, "ViewPosition": "LL"}, [0, 1, 0, 0, 0, -1]),
    ],
)
def test_a_map_lies_as_the_header_says_or_as_images_are_shown(header: dict[str, Any], directions: list[int]) -> None:
    made, _ = read_map(write("map", source=make_source(**header)))
    orientation = made.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    assert [float(each) for each in orientation] == directions


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    missing=st.sets(st.sampled_from(OPTIONAL)),
    broken=st.dictionaries(
        st.sampled_from([*BREAKABLE, "Rows", "LossyImageCompression"]),
        st.one_of(
            st.just(""), st.text(st.characters(codec="latin-1"), max_size=20), st.just("9" * 70), st.just("0\\0")
        ),
        max_size=5,
    ),
)
def test_missing_empty_and_broken_attributes_never_stop_a_map(missing: set[str], broken: dict[str, str]) -> None:
    content = damage(make_image(SpecificCharacterSet="ISO_IR 100"), missing, broken)
    source = read_source(content, "image")
    for kind in MAKERS:
        written = pydicom.dcmread(io.BytesIO(write(kind, source=source)))
        assert written.pixel_array.shape == (64, 80)
        for name in NEEDED[1:2]:
            assert written[name].value == HEADER[name]
        for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
            assert name in written


def test_labels_of_other_scripts_survive() -> None:
    evidence = replace(make_evidence(), label="肺炎" * 40)
    for kind in MAKERS:
        made = pydicom.dcmread(io.BytesIO(write(kind, replace(DECIDED, evidence=evidence))))
        assert made.SpecificCharacterSet == "ISO_IR 192"
        assert "肺炎" in made.ContentDescription
        assert len(made.ContentDescription) <= 64


def test_orthanc_keeps_the_objects_as_they_are(archive: Archive, run: Run, tmp_path: Path) -> None:
    pixels = draw_phantom(1, pneumonia=True, size=128).pixels
    path = tmp_path / "a.dcm"
    path.write_bytes(dicom(np.rint(pixels * 4095).astype(np.uint16), **(HEADER | {"StudyInstanceUID": "1.2.78"})))
    predictor = load(run.model)
    answerer = Answerer(predictor, identify(predictor, run.model), ResultSettings(kinds=("map", "seg")))
    (answer,) = answerer.answer([path])
    assert [each.kind for each in answer.results] == ["map", "seg"]
    archive.store(path.read_bytes())
    stored = [archive.store(each.content) for each in answer.results]
    assert [each["Status"] for each in stored] == ["Success", "Success"]
    assert [archive.store(each.content)["Status"] for each in answer.results] == ["AlreadyStored"] * 2
    assert len({each["ParentStudy"] for each in stored}) == 1
    assert len(archive.ask(f"studies/{stored[0]['ParentStudy']}")["Series"]) == 3
    for each, result in zip(stored, answer.results, strict=True):
        assert archive.get(f"instances/{each['ID']}/file") == result.content


def test_real_images_have_the_map_that_explain_draws(real_data: Path) -> None:
    paths = sorted((real_data / "dicom").glob("*.dcm"))[:2]
    if not paths:
        pytest.skip("no real DICOM images")
    predictor = load()
    answerer = Answerer(predictor, identify(predictor), ResultSettings(kinds=("map", "seg")))
    for answer, explained in zip(answerer.answer(paths), predictor.run(paths, maps=True), strict=True):
        evidence = explained.evidence
        assert evidence is not None
        made, values = read_map(answer.results[0].content)
        assert np.abs(values - evidence.map((made.Rows, made.Columns))).max() < 1e-3
        assert values.mean() + evidence.bias == pytest.approx(evidence.logit, abs=1e-5)
        shares = read_shares(answer.results[1].content, str(explained.sop_uid))
        assert np.abs(shares - np.clip(evidence.map() / evidence.limit, 0, 1)).max() < 1 / 255 + 1e-3
