"""The node in a process, images for it, and DCMTK to send them."""

from __future__ import annotations

import shutil
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from archives import Archive, find_port
from node_process import READY, run_with_stand_in
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity

from pneumoscope.dicomnet.receiver import SYNTAXES
from processes import Started, start

DICOM_WEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def require(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program, path="/usr/bin:/usr/sbin:/bin") is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")


def wait_until(met: Callable[[], Any], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)


def write_image(path: Path, study: int, number: int, size: int = 32, **elements: Any) -> Path:
    """Write a CR image of noise; its UIDs follow from the numbers."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = ComputedRadiographyImageStorage
    made.StudyInstanceUID, made.SeriesInstanceUID = f"1.2.3.{study}", f"1.2.3.{study}.1"
    made.SOPInstanceUID = f"1.2.3.{study}.1.{number}"
    made.PatientID, made.PatientName, made.AccessionNumber = f"SECRET{study}", f"Secret^Name{study}", f"ACC{study}"
    made.StudyDate, made.Modality, made.BodyPartExamined, made.ViewPosition = "20260102", "CR", "CHEST", "PA"
    made.Rows = made.Columns = size
    made.BitsAllocated, made.BitsStored, made.HighBit = 16, 12, 11
    made.PixelRepresentation, made.SamplesPerPixel, made.PhotometricInterpretation = 0, 1, "MONOCHROME2"
    rng = np.random.default_rng((study, number))
    made.PixelData = rng.integers(0, 4096, (size, size)).astype("<u2").tobytes()
    made["PixelData"].VR = "OW"
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    made.save_as(path, enforce_file_format=True)
    return path


@dataclass
class NodeProcess:
    """A node with the stand-in for results; it can be killed and started again on the same ports."""

    config: Path
    settings: dict[str, Any]
    started: list[Started] = field(default_factory=list)
    process: Started | None = None

    @property
    def lines(self) -> list[str]:
        """What it has printed, from its first start on."""
        return [line for each in self.started for line in each.shown.splitlines(keepends=True)]

    @property
    def port(self) -> int:
        return int(self.settings["port"])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings['http_port']}"

    def start(self, **changes: Any) -> None:
        self.settings |= changes
        self.config.write_text(yaml.safe_dump(self.settings))
        log = self.config.with_name(f"log-{len(self.started)}.txt")
        process = self.process = start(run_with_stand_in, self.config, log=log)
        self.started.append(process)
        wait_until(lambda: READY in process.shown or not process.runs)
        assert READY in process.shown, process.shown

    def end(self, how: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.end(how)
        code = self.process.wait(60)
        self.process = None
        return code


@contextmanager
def run_node(folder: Path, **settings: Any) -> Iterator[NodeProcess]:
    """A node whose spool, database and log lie in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "port": find_port(), "http_port": find_port(), "spool": str(folder / "spool"),
        "database": str(folder / "node.sqlite"), "quiet": 0.3, "limits": {"free_bytes": 0}, **settings,
    }  # fmt: skip
    node = NodeProcess(folder / "node.yaml", values)
    try:
        node.start()
        yield node
    finally:
        if node.process is not None:
            node.end()


def storescu(
    port: int, files: Sequence[Path], *options: str, called: str = "PNEUMOSCOPE"
) -> subprocess.CompletedProcess[str]:
    """Send files over one association by DCMTK."""
    require("storescu")
    command = ["/usr/bin/storescu", "-v", "-aet", "MODALITY", "-aec", called, *options, "127.0.0.1", str(port)]
    return subprocess.run([*command, *map(str, files)], capture_output=True, text=True, timeout=120, check=False)


def make_certificate(folder: Path, name: str, authority: tuple[Path, Path] | None = None) -> tuple[Path, Path]:
    """A certificate and its key, signed by an authority or by itself."""
    require("openssl")
    key, certificate = folder / f"{name}.key", folder / f"{name}.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", str(key)]
    command += ["-out", str(certificate), "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    if authority is not None:
        command += ["-CA", str(authority[0]), "-CAkey", str(authority[1]), "-addext", "basicConstraints=CA:FALSE"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return certificate, key


@contextmanager
def run_http(handler: type[BaseHTTPRequestHandler], context: ssl.SSLContext | None = None) -> Iterator[str]:
    """An HTTP server on loopback; gives its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"{'http' if context is None else 'https'}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass(frozen=True)
class Received:
    """An object that `run_picky` has received, byte by byte."""

    sop_uid: str
    syntax: str
    content: bytes

    def decode(self) -> Dataset:
        return dcmread(BytesIO(self.content))


@contextmanager
def run_picky(
    port: int, sop_classes: Sequence[str], context: ssl.SSLContext | None = None, syntaxes: Sequence[str] = SYNTAXES
) -> Iterator[list[Received]]:
    """An AE that accepts some SOP classes and transfer syntaxes only; gives what it has received, repeats too."""
    received: list[Received] = []

    def store(event: Any) -> int:
        uid, syntax = str(event.request.AffectedSOPInstanceUID), str(event.context.transfer_syntax)
        received.append(Received(uid, syntax, event.encoded_dataset()))
        return 0

    entity = ApplicationEntity("ORTHANC")
    for uid in sop_classes:
        entity.add_supported_context(uid, list(syntaxes))
    handlers: Any = [(evt.EVT_C_STORE, store)]
    server = entity.start_server(("127.0.0.1", port), block=False, ssl_context=context, evt_handlers=handlers)
    assert server is not None
    try:
        yield received
    finally:
        server.shutdown()


def to_dicom(archive: Archive, **more: Any) -> dict[str, Any]:
    """The archive as a destination, by C-STORE."""
    return {"host": "127.0.0.1", "port": archive.dicom_port, "title": archive.title, **more}


def to_web(archive: Archive, **more: Any) -> dict[str, Any]:
    """The archive as a destination, by STOW-RS."""
    return {"url": f"{archive.address}/dicom-web", **more}
