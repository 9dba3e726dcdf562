"""The DICOM node between DCMTK's storescu and Orthanc: killed while it works, and how fast it is.

    python benchmarks/dicom_node.py [--images 1000] [--associations 8] [--kills 5] [--spread 12] [--timed 200]

The node is killed every 1 to `spread` seconds. Needs the Debian packages dcmtk and orthanc. Images are simulated; every
number is of this machine and its load.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian

from pneumoscope.datasets.phantoms import draw_phantom
from pneumoscope.dicomnet.algorithm import identify
from pneumoscope.dicomnet.results import Answerer
from pneumoscope.inference.predictor import load

SIZES = (224, 512, 1024)
ACCEPTED = "Received Store Response (Success)"
Files = dict[str, Path]  # by SOP Instance UID


def write_images(folder: Path, count: int, seed: int) -> Files:
    """Simulated CR images of several sizes, two in each study; all differ."""
    folder.mkdir()
    drawn = {
        (size, number): np.rint(draw_phantom(seed + number, pneumonia=bool(number % 2), size=size).pixels * 4095)
        for size in SIZES
        for number in range(4)
    }
    files = {}
    for number in range(count):
        levels = drawn[SIZES[number % len(SIZES)], number % 4].astype("<u2")
        levels[0, :2] = number % 4096, number // 4096
        made = Dataset()
        made.file_meta = FileMetaDataset()
        made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made.SOPClassUID, made.SOPInstanceUID = ComputedRadiographyImageStorage, f"1.2.826.0.1.{seed}.1.{number}"
        made.StudyInstanceUID, made.SeriesInstanceUID = (f"1.2.826.0.1.{seed}.{k}.{number // 2}" for k in (2, 3))
        made.PatientID, made.PatientName, made.StudyDate = f"P{number // 2}", f"Simulated^{number // 2}", "20260102"
        made.Modality, made.BodyPartExamined, made.ViewPosition, made.PatientAge = "CR", "CHEST", "PA", "003Y"
        made.Rows, made.Columns = levels.shape
        made.BitsAllocated, made.BitsStored, made.HighBit = 16, 12, 11
        made.PixelRepresentation, made.SamplesPerPixel, made.PhotometricInterpretation = 0, 1, "MONOCHROME2"
        made.PixelData = levels.tobytes()
        made["PixelData"].VR = "OW"
        files[str(made.SOPInstanceUID)] = folder / f"{number}.dcm"
        made.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return files


class Archive:
    """An Orthanc on loopback."""

    def __init__(self, dicom: int, http: int) -> None:
        self.dicom, self.address = dicom, f"http://127.0.0.1:{http}"

    def ask(self, path: str) -> Any:
        """Get JSON from an address."""
        with urllib.request.urlopen(f"{self.address}/{path}", timeout=60) as answer:
            return json.loads(answer.read())

    def count(self) -> int:
        """How many objects there are."""
        return int(self.ask("statistics")["CountInstances"])

    def count_results(self) -> Counter[tuple[str, str]]:
        """How many objects of each modality refer to each image."""
        found: Counter[tuple[str, str]] = Counter()
        for number in self.ask("instances"):
            tags = self.ask(f"instances/{number}/simplified-tags")
            for uid in set(find_references(tags)):
                found[uid, tags["Modality"]] += 1
        return found


def find_references(tags: Any) -> Iterator[str]:
    if isinstance(tags, dict):
        for key, value in tags.items():
            if key == "ReferencedSOPInstanceUID":
                yield value
            else:
                yield from find_references(value)
    elif isinstance(tags, list):
        for each in tags:
            yield from find_references(each)


def find_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def run_archive(folder: Path) -> Iterator[Archive]:
    folder.mkdir()
    archive = Archive(find_port(), find_port())
    settings = {
        "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"), "DicomAet": "ARCHIVE",
        "DicomPort": archive.dicom, "HttpPort": int(archive.address.rpartition(":")[2]), "Plugins": [],
        "AuthenticationEnabled": False, "DicomAlwaysAllowStore": True, "DicomAlwaysAllowFind": True,
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(["/usr/sbin/Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        for _ in range(100):
            try:
                archive.ask("system")
                break
            except OSError:
                time.sleep(0.2)
        yield archive
    finally:
        process.terminate()
        process.wait(30)


class Node:
    """The command, which can be killed and started again."""

    def __init__(self, folder: Path, archive: Archive) -> None:
        self.folder, self.archive, self.port = folder, archive, find_port()
        folder.mkdir()
        self.start()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        command = [sys.executable, "-m", "pneumoscope", "dicom", "node", "--port", str(self.port), "--no-http"]
        command += ["--to", f"dicom://ARCHIVE@127.0.0.1:{self.archive.dicom}", "--verify", "find", "--quiet", "1"]
        command += ["--spool", str(self.folder / "spool"), "--database", str(self.folder / "node.sqlite")]
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log)
        while self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.1)
        raise SystemExit((self.folder / "log.txt").read_text())

    def kill(self) -> None:
        """End it without warning."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        """End it as a service is ended."""
        self.process.terminate()
        self.process.wait(120)


def send(port: int, files: Sequence[Path], acknowledged: list[Path]) -> None:
    """Send over one association, and again what has not been acknowledged, as a modality does."""
    command = ["/usr/bin/storescu", "-v", "-aec", "PNEUMOSCOPE", "-ta", "10", "-td", "10", "127.0.0.1", str(port)]
    waiting = list(files)
    while waiting:
        done = subprocess.run([*command, *map(str, waiting)], capture_output=True, text=True, check=False)
        accepted = (done.stdout + done.stderr).count(ACCEPTED)
        acknowledged += waiting[:accepted]
        waiting = waiting[accepted:]
        if waiting:
            time.sleep(0.5)


def wait_for(archive: Archive, objects: int, patience: float = 180) -> None:
    """Wait until so many objects are there, or none has come for a while."""
    last, since = archive.count(), time.monotonic()
    while last < objects and time.monotonic() - since < patience:
        time.sleep(0.2)
        if (now := archive.count()) != last:
            last, since = now, time.monotonic()


def show_kills(folder: Path, given: argparse.Namespace) -> None:
    """Send while the node is killed again and again; every acknowledged image has exactly one report and capture."""
    images, associations = given.images, given.associations
    files = write_images(folder / "images", images, given.seed)
    paths, draw = list(files.values()), random.Random(given.seed)
    acknowledged: list[Path] = []
    start = time.monotonic()
    with run_archive(folder / "archive") as archive, ThreadPoolExecutor(associations) as pool:
        node = Node(folder / "node", archive)
        senders = [pool.submit(send, node.port, paths[k::associations], acknowledged) for k in range(associations)]
        for _ in range(given.kills):
            time.sleep(draw.uniform(1, given.spread))
            there = archive.count()
            node.kill()
            node.start()
            print(f"killed; {there} results were at the archive")
        for sender in senders:
            sender.result()
        sending = time.monotonic() - start
        wait_for(archive, 2 * images)
        time.sleep(5)  # for what might be sent twice
        took = time.monotonic() - start
        node.end()
        found = archive.count_results()
    by_path = {path: uid for uid, path in files.items()}
    right = sum(found[by_path[path], "SR"] == found[by_path[path], "OT"] == 1 for path in acknowledged)
    print("\n| images sent | acknowledged | with exactly one SR and one SC | results in all | sending | all |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(f"| {images} | {len(acknowledged)} | {right} | {sum(found.values())} | {sending:.0f} s | {took:.0f} s |\n")


def show_speed(folder: Path, images: int, associations: int, seed: int) -> None:
    """Time from the first image sent to the last result at the archive, and what the parts take alone."""
    files = list(write_images(folder / "images", images, seed).values())
    predictor = load()
    rates = {}
    for name, work in (
        ("predict", predictor.run),
        ("predict and make SR and SC", Answerer(predictor, identify(predictor)).answer),
    ):
        list(work(files[:8]))
        start = time.monotonic()
        list(work(files))
        rates[name] = images / (time.monotonic() - start)
    with run_archive(folder / "archive") as archive, ThreadPoolExecutor(associations) as pool:
        node = Node(folder / "node", archive)
        start = time.monotonic()
        list(pool.map(lambda k: send(node.port, files[k::associations], []), range(associations)))
        rates["the node: received and acknowledged"] = images / (time.monotonic() - start)
        wait_for(archive, 2 * images)
        rates["the node: until the last result is at the archive"] = images / (time.monotonic() - start)
        node.end()
    print("| what | images a second | of `predict` |\n| --- | --- | --- |")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.1f} | {rate / rates['predict']:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("images", 1000),
        ("associations", 8),
        ("kills", 5),
        ("timed", 200),
        ("spread", 12),
        ("seed", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before; images of {SIZES} pixels in height")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.timed:
            (folder / "speed").mkdir()
            show_speed(folder / "speed", given.timed, given.associations, given.seed + 100)
        if given.images:
            (folder / "kills").mkdir()
            show_kills(folder / "kills", given)
    print(f"load {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
