"""A folder, a zip archive, an https:// address or a name names a model; what comes from elsewhere is checked."""

from __future__ import annotations

import hashlib
import shutil
import stat
import threading
import zipfile
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import urllib3

from pneumoscope.datasets import archives
from pneumoscope.errors import DownloadError, ModelError, UsageError
from pneumoscope.models import fetched_models
from pneumoscope.models.model_folder import name_model
from pneumoscope.models.pretrained import find_pretrained
from pneumoscope.models.references import hide_signature, locate_model


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in find_pretrained("pneumonia-lite0").iterdir()}


def pack(path: Path, members: Mapping[str, bytes], below: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(below + name, content)
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("below", "name"), [("", "my-zip"), ("chest/", "chest"), ("runs/chest/model/", "chest"), ("model/", "my-zip")]
)
def test_a_model_is_found_anywhere_in_a_zip(below: str, name: str, files: dict[str, bytes], tmp_path: Path) -> None:
    folder = locate_model(pack(tmp_path / "my-zip.zip", files, below))
    assert files_of(folder) == files
    assert name_model(folder) == name
    assert locate_model(str(tmp_path / "my-zip.zip")) == folder
    shutil.rmtree(folder.parent)
    (tmp_path / "my-zip.zip").rename(tmp_path / "model.zip")
    assert name_model(locate_model(tmp_path / "model.zip")) == ("shared-model" if name == "my-zip" else name)


def test_nothing_but_the_model_is_unpacked(files: dict[str, bytes], tmp_path: Path, empty_cache: Path) -> None:
    others = {
        "run/samples.csv": b"path,label\n", "run/predictions.csv": b"", "run/image.png": b"",
        "__MACOSX/run/model/model.json": b"", "run/folds/fold-1/model/model.json": b"{}", "run/model/own.py": b"",
    }  # fmt: skip
    members = {**others, **{f"run/model/{name}": content for name, content in files.items()}}
    assert files_of(locate_model(pack(tmp_path / "run.zip", members))) == files
    assert {path.name for path in empty_cache.rglob("*") if path.is_file()} == set(files)


def test_a_damaged_copy_in_the_cache_is_unpacked_again(files: dict[str, bytes], tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", files)
    folder = locate_model(archive)
    (folder / "weights.safetensors").write_bytes(b"damaged")
    assert files_of(locate_model(archive)) == files


def test_a_zip_that_holds_no_model_or_several_is_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.zip: holds no model \(model\.json is missing\)"):
        locate_model(pack(tmp_path / "none.zip", {"a.txt": b""}))
    both = {f"{folder}/{name}": content for folder in "ab" for name, content in files.items()}
    with pytest.raises(ModelError, match=r"two\.zip: holds several models: a/, b/"):
        locate_model(pack(tmp_path / "two.zip", both))
    (tmp_path / "no.zip").write_bytes(b"<html>")
    with pytest.raises(ModelError, match=r"no\.zip: cannot be read as a zip archive"):
        locate_model(tmp_path / "no.zip")
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"model\.onnx: no model here"):
        locate_model(tmp_path / "model.onnx")
    damaged = {**files, "weights.safetensors": b"x"}
    with pytest.raises(ModelError, match=r"weights\.safetensors: damaged: its checksum does not match"):
        locate_model(pack(tmp_path / "damaged.zip", damaged))


def test_an_unsafe_zip_is_refused(files: dict[str, bytes], tmp_path: Path, empty_cache: Path) -> None:
    with pytest.raises(ModelError, match="points outside its folder"):
        locate_model(pack(tmp_path / "a.zip", {**files, "../evil": b""}))
    with zipfile.ZipFile(pack(tmp_path / "b.zip", files), "a") as archive:
        link = zipfile.ZipInfo("weights")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ModelError, match="is a link or a device"):
        locate_model(tmp_path / "b.zip")
    with pytest.raises(ModelError, match="would unpack to"):
        locate_model(pack(tmp_path / "c.zip", {"model.json": bytes(100_000_000)}))
    assert not list(empty_cache.rglob("*.json"))


def test_a_path_that_exists_is_taken_as_such(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(find_pretrained("pneumonia-lite0"), tmp_path / "hf:owner" / "name")
    assert locate_model("hf:owner/name") == Path("hf:owner/name")
    assert caplog.messages == ["hf:owner/name: using the file or folder of this name."]
    with pytest.raises(UsageError, match=r"init: runs/first: there is no such folder or model.* hf:OWNER/NAME"):
        locate_model("runs/first", "init")


class Server(ThreadingHTTPServer):
    """Serves one file; `moved` redirects to another address instead."""

    daemon_threads = True
    content, moved, asked = b"", "", 0

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server_address[1]}/models/chest.zip"


class Answer(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        pass

    def do_GET(self) -> None:
        self.server.asked += 1
        self.send_response(302 if self.server.moved else 200)
        if self.server.moved:
            self.send_header("Location", self.server.moved)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)


@pytest.fixture
def server(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server whose https:// addresses are answered without encryption."""
    schemes = urllib3.poolmanager.pool_classes_by_scheme
    monkeypatch.setitem(schemes, "https", schemes["http"])
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in (("ATTEMPTS", 2), ("PAUSE", 0)):
        monkeypatch.setattr(archives, name, value)
    with Server(("127.0.0.1", 0), Answer) as running:
        running.content = pack(tmp_path / "published.zip", files, "chest/").read_bytes()
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_an_address_is_downloaded_once_and_the_copy_is_named(
    server: Server, files: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    digest = hashlib.sha256(server.content).hexdigest()
    folder = locate_model(f"{server.url}?signature=secret")
    assert files_of(folder) == files
    assert caplog.messages == [
        f"{server.url}: downloading",
        f"{server.url}: SHA-256 {digest}. To accept only this file from now on: {server.url}#sha256={digest}",
    ]
    caplog.clear()
    assert locate_model(f"{server.url}?signature=secret") == folder
    (message,) = caplog.messages
    assert "using the copy of 20" in message
    assert f"(SHA-256 {digest})" in message
    assert server.asked == 1
    assert "secret" not in caplog.text
    Path(message.partition("delete ")[2].rstrip(".")).unlink()
    assert locate_model(f"{server.url}?signature=secret") == folder
    assert server.asked == 2


def test_an_address_with_a_checksum_accepts_that_file_alone(
    server: Server, files: dict[str, bytes], tmp_path: Path
) -> None:
    digest = hashlib.sha256(server.content).hexdigest()
    assert files_of(locate_model(f"{server.url}#sha256={digest.upper()}")) == files
    other = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(ModelError, match=f"its SHA-256 is {digest}, not {other}"):
        locate_model(f"{server.url}#sha256={other}")
    server.content = pack(tmp_path / "newer.zip", files, "newer/").read_bytes()
    newer = hashlib.sha256(server.content).hexdigest()
    assert locate_model(f"{server.url}#sha256={newer}").name == "newer"
    with pytest.raises(UsageError, match="64 hexadecimal digits"):
        locate_model(f"{server.url}#sha256=12")


@pytest.mark.parametrize("name", ["..", "a" * 300, ""])
def test_an_address_may_end_in_anything(name: str, server: Server, files: dict[str, bytes]) -> None:
    assert files_of(locate_model(server.url.replace("chest.zip", name))) == files


def test_a_signature_is_not_for_reports() -> None:
    address = "https://user:secret@host/m.zip?signature=secret#sha256=12"
    assert hide_signature(address) == hide_signature(str(Path(address))) == "https://host/m.zip#sha256=12"
    assert [hide_signature(each) for each in ("runs/a?b", "hf:owner/name@v1")] == ["runs/a?b", "hf:owner/name@v1"]


def test_only_encrypted_addresses_are_followed(server: Server) -> None:
    with pytest.raises(UsageError, match="fetched only from an https:// address"):
        locate_model("http://127.0.0.1/model.zip")
    server.moved = server.url.replace("https", "http")
    with pytest.raises(DownloadError, match=r"redirects to http://.*, which is not followed"):
        locate_model(server.url)


def test_a_file_that_is_too_large_or_no_model_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetched_models, "MAX_ARCHIVE", 1000)
    with pytest.raises(DownloadError, match=r"has \d,\d{3},\d{3} bytes, the limit is 1,000"):
        locate_model(server.url)
    server.content = b"<html>log in</html>"
    with pytest.raises(ModelError, match=r"^https://127\.0\.0\.1:\d+/models/chest\.zip: .* It is a web page"):
        locate_model(server.url)


def test_an_address_out_of_reach_is_an_error(server: Server) -> None:
    address = server.url.replace(f":{server.server_address[1]}", ":9")
    with pytest.raises(DownloadError, match="failed 2 times in a row"):
        locate_model(address)
