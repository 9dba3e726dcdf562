"""A real archive for tests: Orthanc on loopback, with its database in a temporary folder."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ORTHANC = shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin:/usr/bin")


@dataclass(frozen=True)
class Archive:
    """A running Orthanc."""

    dicom_port: int
    http_port: int
    title: str = "ORTHANC"

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def ask(self, path: str, data: bytes | None = None) -> Any:
        request = urllib.request.Request(f"{self.address}/{path}", data)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read())

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self.address}/{path}", timeout=20) as answer:
            return bytes(answer.read())

    def count(self) -> int:
        """How many objects there are."""
        return int(self.ask("statistics")["CountInstances"])

    def list_tags(self) -> list[dict[str, Any]]:
        """All tags of all objects, by keyword."""
        return [self.ask(f"instances/{number}/simplified-tags") for number in self.ask("instances")]

    def clear(self) -> None:
        """Delete everything."""
        for number in self.ask("patients"):
            request = urllib.request.Request(f"{self.address}/patients/{number}", method="DELETE")
            with urllib.request.urlopen(request, timeout=20):
                pass

    def store(self, content: bytes) -> dict[str, Any]:
        """Store an object over HTTP; the answer has its ID and Status."""
        return dict(self.ask("instances", content))

    def list_instances(self) -> list[dict[str, Any]]:
        """The main tags of all objects."""
        return [each["MainDicomTags"] | {"ID": each["ID"]} for each in self.ask("instances?expand")]


def find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def run_orthanc(folder: Path, **settings: Any) -> Iterator[Archive]:
    """Start Orthanc with an empty database; `settings` are those of its configuration file."""
    if ORTHANC is None:
        pytest.skip("Orthanc is not installed")
    archive = Archive(settings.get("DicomPort") or find_port(), settings.get("HttpPort") or find_port())
    folder.mkdir(parents=True, exist_ok=True)
    configuration = {
        "Name": "test", "StorageDirectory": str(folder / "storage"), "IndexDirectory": str(folder / "storage"),
        "DicomAet": archive.title, "DicomPort": archive.dicom_port, "HttpPort": archive.http_port,
        "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "DicomCheckCalledAet": False,
        "DicomAlwaysAllowEcho": True, "DicomAlwaysAllowStore": True, "DicomAlwaysAllowFind": True, "Plugins": [],
        "DicomThreadsCount": 4,
    } | settings  # fmt: skip
    path = folder / "orthanc.json"
    path.write_text(json.dumps(configuration))
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen([ORTHANC, str(path)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                archive.ask("system")
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((folder / "log.txt").read_text()[-2000:])
            time.sleep(0.1)
        yield archive
    finally:
        process.terminate()
        process.wait(30)
