"""DICOM files sent to an archive, once."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import Archive, find_port, run_orthanc
from evidence_cases import write_evidence
from peers import DICOM_WEB, make_certificate, run_http, run_picky, write_image
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from pneumoscope.cli import main as cli
from pneumoscope.dicomnet.sending import send_files
from pneumoscope.errors import DataError, DownloadError, UsageError

# pynetdicom leaves the socket open where nothing listens.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    plugins = [str(DICOM_WEB)] if DICOM_WEB.exists() else []
    with run_orthanc(tmp_path_factory.mktemp("orthanc"), Plugins=plugins) as running:
        yield running


def stored(archive: Archive, study: int) -> set[str]:
    names = (each["SOPInstanceUID"] for each in archive.list_instances())
    return {name for name in names if name.startswith(f"1.2.3.{study}.")}


def test_all_files_of_a_folder_are_sent_and_found(archive: Archive, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write_image(tmp_path / f"{number}.dcm", 11, number)
    (tmp_path / "results.csv").write_text("path\n")
    for verify in ("none", "find"):
        sent = send_files([tmp_path], f"dicom://ORTHANC@127.0.0.1:{archive.dicom_port}", verify=verify)
        assert [each.error for each in sent] == [None] * 3
    assert len(stored(archive, 11)) == 3


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A parametric map, and a segmentation that is compressed with RLE."""
    folder = tmp_path_factory.mktemp("evidence")
    paths = [folder / "map.dcm", folder / "seg.dcm"]
    for path, content in zip(paths, write_evidence().values(), strict=True):
        path.write_bytes(content)
    assert dcmread(paths[1]).file_meta.TransferSyntaxUID == RLELossless
    return paths


def test_compressed_objects_arrive_as_they_are(archive: Archive, evidence: list[Path]) -> None:
    archive.clear()
    sent = send_files(evidence, f"dicom://ORTHANC@127.0.0.1:{archive.dicom_port}", verify="find")
    assert [each.error for each in sent] == [None, None]
    kept = {each["SOPInstanceUID"]: archive.get(f"instances/{each['ID']}/file") for each in archive.list_instances()}
    for path in evidence:
        mine, theirs = dcmread(path), dcmread(BytesIO(kept[str(dcmread(path).SOPInstanceUID)]))
        assert mine.file_meta.TransferSyntaxUID == theirs.file_meta.TransferSyntaxUID
        assert (mine == theirs, mine.PixelData if "PixelData" in mine else b"") == (True, theirs.get("PixelData", b""))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_they_are_decompressed_for_who_takes_nothing_else(syntax: str, evidence: list[Path]) -> None:
    port, classes = find_port(), [str(dcmread(path).SOPClassUID) for path in evidence]
    with run_picky(port, classes, syntaxes=[syntax]) as received:
        sent = send_files(evidence, f"dicom://ORTHANC@127.0.0.1:{port}")
    assert [each.error for each in sent] == [None, None]
    assert [each.sop_uid for each in received] == [str(dcmread(path).SOPInstanceUID) for path in evidence]
    assert {each.syntax for each in received} == {syntax}
    assert np.array_equal(received[1].decode().pixel_array, dcmread(evidence[1]).pixel_array)


def test_a_dicomweb_service_gets_them_too(archive: Archive, tmp_path: Path) -> None:
    if not DICOM_WEB.exists():
        pytest.skip("Orthanc's plugin for DICOMweb is not installed")
    path = write_image(tmp_path / "a.dcm", 12, 1)
    (sent,) = send_files([path], f"{archive.address}/dicom-web", verify="qido")
    assert (sent.error, len(stored(archive, 12))) == (None, 1)


def test_the_command_names_what_cannot_be_sent(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = write_image(tmp_path / "a.dcm", 13, 1), tmp_path / "b.dcm"
    bad.write_bytes(b"rubbish")
    to = f"dicom://ORTHANC@127.0.0.1:{archive.dicom_port}"
    monkeypatch.setattr("sys.argv", ["pneumoscope", "dicom", "send", str(good), str(bad), "--to", to])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 3
    shown = capsys.readouterr()
    assert shown.out == "1 file of 2: accepted\n"
    assert "b.dcm: cannot be sent" in shown.err


def test_a_token_is_sent_over_tls_of_an_authority_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            tokens.append(self.headers["Authorization"])
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            pass

    authority = make_certificate(tmp_path, "authority")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*make_certificate(tmp_path, "archive", authority))
    token = tmp_path / "token.txt"
    token.write_text("SECRET\n")
    path = write_image(tmp_path / "a.dcm", 15, 1)
    with run_http(Handler, context) as url:
        command = ["pneumoscope", "dicom", "send", str(path), "--to", f"{url}/dicom-web", "--token-file", str(token)]
        monkeypatch.setattr("sys.argv", [*command, "--authorities", str(authority[0])])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert not ended.value.code
    assert tokens == ["Bearer SECRET"]
    assert capsys.readouterr().out == "1 file of 1: accepted\n"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pynetdicom leaves the socket open
def test_an_archive_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.dcm", 14, 1)
    with pytest.raises(DownloadError, match="Send all again"):
        send_files([path], f"dicom://NOBODY@127.0.0.1:{find_port()}")


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no image")
    for paths, to, verify in (
        ([tmp_path / "none"], "dicom://A@127.0.0.1:104", "none"),
        ([tmp_path], "ftp://A@127.0.0.1", "none"),
        ([tmp_path], "dicom://A@127.0.0.1:104", "commitment"),
        ([tmp_path], "dicom://A@127.0.0.1:104", "qido"),
        ([tmp_path], "https://127.0.0.1/dicom-web", "find"),
        ([tmp_path], f"dicom://{'A' * 17}@127.0.0.1:104", "none"),
    ):
        with pytest.raises(UsageError):
            send_files(paths, to, verify=verify)  # type: ignore[arg-type]
    for token, authorities, to in (
        ("token.txt", None, "dicom://A@127.0.0.1:104"),
        ("token.txt", None, "http://10.0.0.1/dicom-web"),
        (None, "a.pem", "http://127.0.0.1/dicom-web"),
        (None, "a.pem", "dicom://A@127.0.0.1:104"),
    ):
        with pytest.raises(UsageError):
            send_files([tmp_path], to, token_file=token, authorities=authorities)
    with pytest.raises(DataError, match="none of these files"):
        send_files([tmp_path], "dicom://A@127.0.0.1:104")
