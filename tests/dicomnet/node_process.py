"""A node in a process of its own, whose results need no network: for tests that kill it."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import BasicTextSRStorage, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from pneumoscope.dicomnet.identifiers import derive_uid
from pneumoscope.dicomnet.node import Node, run_node
from pneumoscope.dicomnet.node_settings import read_settings
from pneumoscope.dicomnet.results import Answer, Result
from pneumoscope.errors import ImageError
from pneumoscope.images.read import read_radiograph
from pneumoscope.inference.prediction import Prediction

READY = "The node is ready:"
CLASSES = {"sr": BasicTextSRStorage, "sc": SecondaryCaptureImageStorage}


class StandIn:
    """Answers with a short report and a tiny capture, whose UIDs follow from the image and whose times do not."""

    def answer(self, paths: Iterable[Path]) -> Iterator[Answer]:
        for path in paths:
            try:
                read_radiograph(path)
            except ImageError as problem:
                yield Answer(path, Prediction(path=path, error=str(problem)))
                continue
            image = dcmread(path)
            time.sleep(0.005)
            prediction = Prediction(path=path, decision="NORMAL", predicted_label="NORMAL")
            yield Answer(path, prediction, tuple(make_result(kind, uid, image) for kind, uid in CLASSES.items()))


def make_result(kind: str, sop_class: str, image: Dataset) -> Result:
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "StudyDate", "AccessionNumber"):
        setattr(made, keyword, image.get(keyword))
    made.SeriesInstanceUID = derive_uid("series", kind, str(image.StudyInstanceUID))
    made.SOPClassUID, made.SOPInstanceUID = sop_class, derive_uid(kind, str(image.SOPInstanceUID))
    made.Modality = "SR" if kind == "sr" else "OT"
    made.ContentTime = time.strftime("%H%M%S") + f".{time.time_ns() // 1000 % 10**6:06d}"
    if kind == "sc":
        made.Rows = made.Columns = made.BitsAllocated = made.BitsStored = 8
        made.HighBit, made.PixelRepresentation, made.SamplesPerPixel = 7, 0, 1
        made.PhotometricInterpretation, made.PixelData = "MONOCHROME2", bytes(64)
        made["PixelData"].VR = "OB"
    stream = io.BytesIO()
    made.save_as(stream, enforce_file_format=True)
    return Result(kind, str(sop_class), str(made.SOPInstanceUID), stream.getvalue())


def announce(node: Node) -> None:
    print(READY, node.port, node.http_port, flush=True)


def run_with_stand_in(config: Path) -> None:
    """Run a node until a signal ends it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    run_node(read_settings(config, {}), StandIn(), announce)
