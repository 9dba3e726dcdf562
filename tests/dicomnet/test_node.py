"""The node between real senders (DCMTK) and a real archive (Orthanc), killed, refused and lied to."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from archives import Archive, find_port, run_orthanc
from node_process import CLASSES
from peers import NodeProcess, run_node, run_picky, storescu, to_dicom, wait_until, write_image
from pydicom import dcmread

from pneumoscope.datasets.phantom_sets import write_phantoms
from pneumoscope.dicomnet.identifiers import derive_uid

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    with run_orthanc(tmp_path_factory.mktemp("orthanc")) as orthanc:
        yield orthanc


@pytest.fixture(autouse=True)
def _empty(request: pytest.FixtureRequest) -> None:
    if "archive" in request.fixturenames:
        request.getfixturevalue("archive").clear()


def results_of(files: dict[str, Path]) -> Counter[tuple[str, str]]:
    """What has to be in the archive: a report and a capture for each image, by SOP class and UID."""
    return Counter((str(sop_class), derive_uid(kind, uid)) for uid in files for kind, sop_class in CLASSES.items())


def stored_in(archive: Archive) -> Counter[tuple[str, str]]:
    return Counter((each["SOPClassUID"], each["SOPInstanceUID"]) for each in archive.list_tags())


def write_images(folder: Path, count: int, per_study: int = 2, size: int = 32) -> dict[str, Path]:
    """Images by SOP Instance UID."""
    folder.mkdir(exist_ok=True)
    numbers = ((number // per_study, number) for number in range(count))
    return {
        f"1.2.3.{study}.1.{number}": write_image(folder / f"{number}.dcm", study, number, size)
        for study, number in numbers
    }


def test_every_image_has_a_report_and_a_capture_in_its_study(archive: Archive, tmp_path: Path) -> None:
    files = write_images(tmp_path / "images", 6)
    with run_node(tmp_path / "node", destinations=[to_dicom(archive, verify="find")]) as node:
        sent = storescu(node.port, list(files.values()))
        assert sent.returncode == 0, sent.stderr
        wait_until(lambda: archive.count() == 12)
        assert stored_in(archive) == results_of(files)
        studies = Counter(each["StudyInstanceUID"] for each in archive.list_tags())
        assert studies == {"1.2.3.0": 4, "1.2.3.1": 4, "1.2.3.2": 4}


def send_until_acknowledged(node: NodeProcess, files: list[Path]) -> None:
    """Send each file again until it is acknowledged, as modalities do."""
    waiting = files
    while waiting:
        sent = storescu(node.port, waiting, "-ta", "5", "-td", "5")
        accepted = sent.stderr.count("Received Store Response (Success)") + sent.stdout.count(
            "Received Store Response (Success)"
        )
        waiting = waiting[accepted:]
        if waiting:
            time.sleep(0.2)


def test_nothing_acknowledged_is_lost_if_the_node_is_killed_and_what_comes_twice_is_the_same(tmp_path: Path) -> None:
    files, kills, unsaved = write_images(tmp_path / "images", 40), 2, 17  # 16 results, and one that is on its way
    draw, port = random.Random(5), find_port()
    to = {"host": "127.0.0.1", "port": port, "title": "ORTHANC"}
    with (
        run_picky(port, list(CLASSES.values())) as received,
        run_node(tmp_path / "node", destinations=[to]) as node,
        ThreadPoolExecutor(4) as pool,
    ):
        senders = [pool.submit(send_until_acknowledged, node, list(files.values())[k::4]) for k in range(4)]
        for _ in range(kills):
            time.sleep(draw.uniform(0.3, 1.5))
            node.end(signal.SIGKILL)
            node.start()
        for sender in senders:
            sender.result(60)
        wait_until(lambda: len({each.sop_uid for each in received}) >= 80)
        time.sleep(1.5)  # anything else would have come by now
    assert {each.sop_uid for each in received} == {uid for _, uid in results_of(files)}
    assert len({each.content for each in received}) == 80  # their times differ if they are made anew
    assert len(received) <= 80 + kills * unsaved


def test_the_pretrained_model_answers_through_the_command(archive: Archive, tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_phantoms(images, count=8, seed=3, size=256, form="dicom")
    files = sorted(path for path in images.rglob("*.dcm") if "masks" not in path.parts)
    port = find_port()
    command = [sys.executable, "-m", "pneumoscope", "dicom", "node", "--port", str(port), "--http-port", "0"]
    command += ["--spool", str(tmp_path / "spool"), "--database", str(tmp_path / "node.sqlite"), "--quiet", "0.5"]
    command += ["--to", f"dicom://{archive.title}@127.0.0.1:{archive.dicom_port}", "--verify", "find"]
    command += ["--log-format", "json"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        while "listens on" not in (line := process.stderr.readline()):
            assert line, "the node has ended"
        assert storescu(port, files).returncode == 0
        wait_until(lambda: archive.count() == 16, 60)
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
    assert process.returncode == 0
    found = archive.list_tags()
    assert Counter(each["Modality"] for each in found) == {"SR": 8, "OT": 8}
    studies = {str(dcmread(file).StudyInstanceUID) for file in files}
    assert {each["StudyInstanceUID"] for each in found} == studies
    assert all(json.loads(line)["message"] for line in log.splitlines())
    assert not [uid for uid in studies if uid in log]
