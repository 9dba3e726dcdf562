"""Datasets arrive complete or not at all, whatever the server or archive does; a second call finishes a first."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import urllib3

from pneumoscope.datasets import archives
from pneumoscope.datasets.kermany import SOURCE_FILES, fetch
from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.sources import KERMANY, Source, list_sources
from pneumoscope.errors import DataError, DownloadError, UsageError
from pneumoscope.files import lock_folder

COUNTS = {"train/NORMAL": 3, "train/PNEUMONIA": 4, "test/NORMAL": 1, "test/PNEUMONIA": 2}
WITH_VAL = {"train/NORMAL": 2, "train/PNEUMONIA": 4, "val/NORMAL": 1, "test/NORMAL": 1, "test/PNEUMONIA": 2}


def draw_images(counts: dict[str, int], size: int = 20_000) -> dict[str, bytes]:
    rng = random.Random(0)
    names = {"NORMAL": "IM-{:04}-0001.jpeg", "PNEUMONIA": "person{}_virus_1.jpeg"}
    return {
        f"{folder}/{names[folder.split('/')[1]].format(number)}": rng.randbytes(size)
        for folder, count in counts.items()
        for number in range(count)
    }


def make_zip(images: dict[str, bytes], folder: str = "chest_xray/") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in images.items():
            archive.writestr(zipfile.ZipInfo(folder + name), content)
    return buffer.getvalue()


IMAGES = draw_images(COUNTS)
ZIP = make_zip(IMAGES)
OTHER_ZIP = make_zip(draw_images(WITH_VAL))


def images_in(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.glob("*/*/*"))}


def assert_complete(out: Path) -> None:
    assert images_in(out) == IMAGES
    assert sorted(path.name for path in out.iterdir()) == sorted([*SOURCE_FILES[:2], "train", "test"])


class Server(ThreadingHTTPServer):
    """Serves one file as well-kept servers do; each trick in `tricks` spoils one answer before."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.content, self.tag = ZIP, '"one"'
        self.tricks: list[Callable[[Answer], None]] = []
        self.ranges: list[tuple[str | None, str | None]] = []
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/files/ChestXRay2017.zip"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class Answer(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        pass

    def do_GET(self) -> None:
        self.server.ranges.append((self.headers["Range"], self.headers["If-Range"]))
        if self.server.tricks:
            self.server.tricks.pop(0)(self)
        else:
            self.serve()

    def serve(self, *, sent: int | None = None, announced: int = 0, ranges: bool = True, **headers: str) -> None:
        """Answer; break off after `sent` bytes; announce some more or fewer than there are."""
        content, start = self.server.content, 0
        if ranges and self.headers["Range"] and self.headers["If-Range"] == self.server.tag:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start + announced))
        for name, value in {"ETag": self.server.tag, **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[start:] if sent is None else content[start : start + sent])

    def wait(self) -> None:
        self.server.closing.wait()


def breaking_off(sent: int, **options: Any) -> Callable[[Answer], None]:
    return lambda answer: answer.serve(sent=sent, **options)


def status(code: int, **headers: str) -> Callable[[Answer], None]:
    def act(answer: Answer) -> None:
        answer.send_response(code)
        for name, value in headers.items():
            answer.send_header(name.replace("_", "-"), value)
        answer.send_header("Content-Length", "0")
        answer.end_headers()

    return act


def range_of_another_file(span: str, tag: str = "") -> Callable[[Answer], None]:
    def act(answer: Answer) -> None:
        came, size = int(answer.headers["Range"].removeprefix("bytes=").removesuffix("-")), len(ZIP)
        answer.send_response(206)
        answer.send_header("Content-Range", span.format(came=came, last=size - 1, size=size, more=size + 1))
        answer.send_header("Content-Length", str(size - came))
        if tag:
            answer.send_header("ETag", tag)
        answer.end_headers()
        answer.wfile.write(bytes(size - came))

    return act


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Change how long servers are waited for; at first 3 attempts without a pause."""

    def change(attempts: int = 3, timeout: float = 20, pause: float = 0) -> None:
        for name, value in (("ATTEMPTS", attempts), ("TIMEOUT", timeout), ("PAUSE", pause)):
            monkeypatch.setattr(archives, name, value)

    change()
    return change


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with Server() as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving
        serving.closing.set()
        serving.shutdown()
        thread.join()


@pytest.fixture
def source(server: Server) -> Source:
    return make_source(server.url)


def make_source(url: str = "http://127.0.0.1:9/files/ChestXRay2017.zip") -> Source:
    return replace(
        KERMANY,
        name="small",
        url=url,
        size=len(ZIP),
        sha256=hashlib.sha256(ZIP).hexdigest(),
        editions={"whole": COUNTS, "with val": WITH_VAL},
    )


# What is known


def test_every_source_can_be_fetched() -> None:
    fetched = [source for source in list_sources() if source.url]
    assert [source.name for source in fetched] == ["kermany", "pneumoniamnist", "pneumoniamnist_224"]
    for source in fetched:
        assert source.url.startswith("https://")
        assert source.licence
        assert source.licence_url.startswith("https://")
        assert "doi:" in source.citation
        assert len(source.sha256 or "") == 64 or len(source.md5 or "") == 32


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"No dataset is named .chexpert.\. Known: kermany, pneumoniamnist"):
        fetch("chexpert", Path("out"))


def test_both_editions_of_the_kermany_data_hold_the_same_number_of_each_class() -> None:
    totals = [
        {
            label: sum(count for folder, count in counts.items() if folder.endswith(label))
            for label in ("NORMAL", "PNEUMONIA")
        }
        for counts in KERMANY.editions.values()
    ]
    assert totals == [{"NORMAL": 1583, "PNEUMONIA": 4273}] * 2


def test_the_users_own_archive_of_the_kermany_data_is_recognised_by_its_contents(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pneumoscope")
    images = draw_images(dict(KERMANY.editions["Kaggle"]), size=30)
    copies = {f"chest_xray/{name}": content for name, content in images.items()}
    (tmp_path / "archive.zip").write_bytes(make_zip({**copies, **images}))
    out = fetch("kermany", tmp_path / "out", archive=tmp_path / "archive.zip")
    assert images_in(out) == dict(sorted(images.items()))
    assert "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/" in caplog.text
    assert "5,856 images (Kaggle). The archive had no known checksum" in caplog.text
    notice = (out / "SOURCE.txt").read_text(encoding="utf-8")
    assert all(message in notice for message in ("CC BY 4.0", "10.17632/rscbjbr9sj.2", "archive.zip", "Kaggle"))
    assert len(read_samples(out)) == 5856


@pytest.mark.parametrize(
    ("counts", "message"),
    [({"train/NORMAL": 3, "train/PNEUMONIA": 4}, "3 train/NORMAL, 4 train/PNEUMONIA; expected"), (COUNTS, "other")],
)
def test_a_part_of_the_data_or_another_version_is_refused(counts: dict[str, int], message: str, tmp_path: Path) -> None:
    images = draw_images(counts, size=9)
    if message == "other":
        images = {name.replace("IM-", "NORMAL-"): content for name, content in images.items()}
        message = "names such as test/NORMAL/NORMAL-0000-0001.jpeg, which belong to another version"
    (tmp_path / "a.zip").write_bytes(make_zip(images))
    with pytest.raises(DataError, match=message):
        fetch(make_source(), tmp_path / "out", archive=tmp_path / "a.zip")
    assert images_in(tmp_path / "out") == {}


# Servers of all kinds


def test_a_download_is_shown_checked_and_arranged(
    server: Server, source: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pneumoscope")
    seen: list[tuple[int, int]] = []
    out = tmp_path / "a" / "b"
    assert fetch(source, out, progress=lambda _, done, total: seen.append((done, total))) == out
    assert_complete(out)
    assert seen[-1] == (len(ZIP), len(ZIP))
    assert seen == sorted(seen)
    assert len(seen) > 2
    assert "The checksum of the archive is the published one." in caplog.text
    assert json.loads((out / "SOURCE.json").read_text(encoding="utf-8"))["sha256"] == source.sha256


def test_a_broken_connection_is_resumed_where_it_ended(
    server: Server, source: Source, tmp_path: Path, impatient: Callable[..., None]
) -> None:
    server.tricks = [breaking_off(70_000), breaking_off(50_000), status(503), breaking_off(30_000)]
    impatient(attempts=5)
    fetch(source, tmp_path / "out")
    assert_complete(tmp_path / "out")
    assert server.ranges == [
        (None, None),
        ("bytes=70000-", '"one"'),
        ("bytes=120000-", '"one"'),
        ("bytes=120000-", '"one"'),
        ("bytes=150000-", '"one"'),
    ]


def test_another_call_resumes_where_one_gave_up(
    server: Server, source: Source, tmp_path: Path, impatient: Callable[..., None]
) -> None:
    impatient(attempts=1)
    server.tricks = [breaking_off(70_000)]
    with pytest.raises(
        DownloadError, match=r"connection closed at 70,000 of 201,\d\d\d bytes.*\n.*same command again to resume"
    ):
        fetch(source, tmp_path / "out")
    fetch(source, tmp_path / "out")
    assert_complete(tmp_path / "out")
    assert server.ranges[1] == ("bytes=70000-", '"one"')


def test_attempts_that_bring_much_do_not_count(
    server: Server, source: Source, tmp_path: Path, impatient: Callable[..., None]
) -> None:
    server.content = make_zip({**IMAGES, "more.bin": random.Random(1).randbytes(5 << 20)}, folder="")
    server.tricks = [breaking_off(1 << 20)] * 5
    large = replace(source, size=len(server.content), sha256=hashlib.sha256(server.content).hexdigest())
    impatient(attempts=1)
    fetch(large, tmp_path / "out")
    assert_complete(tmp_path / "out")


@pytest.mark.parametrize(
    "then",
    [
        lambda answer: answer.serve(ranges=False),  # does not know ranges
        range_of_another_file("bytes {came}-{last}/{size}", tag='"two"'),
        range_of_another_file("bytes {came}-{last}/{more}"),
        range_of_another_file("bytes 0-{last}/{size}"),
        range_of_another_file(""),
        status(416),
    ],
)
def test_bytes_that_cannot_be_resumed_from_are_discarded(
    then: Callable[[Answer], None], server: Server, source: Source, tmp_path: Path
) -> None:
    server.tricks = [breaking_off(70_000), then]
    fetch(source, tmp_path / "out")
    assert_complete(tmp_path / "out")


def test_a_file_that_changes_between_attempts_starts_over(server: Server, source: Source, tmp_path: Path) -> None:
    def change(answer: Answer) -> None:
        server.content, server.tag = ZIP, '"two"'
        answer.serve()

    server.content = bytes(len(ZIP))
    server.tricks = [breaking_off(70_000), change]
    fetch(source, tmp_path / "out")
    assert_complete(tmp_path / "out")
    assert server.ranges[1] == ("bytes=70000-", '"one"')


@pytest.mark.parametrize("tag", ["", 'W/"weak"'])
def test_without_a_strong_validator_no_range_is_requested(
    tag: str, server: Server, source: Source, tmp_path: Path
) -> None:
    server.tag = tag
    server.tricks = [breaking_off(70_000)]
    fetch(source, tmp_path / "out")
    assert_complete(tmp_path / "out")
    assert server.ranges == [(None, None), (None, None)]


def test_a_date_is_a_validator_too(server: Server, source: Source, tmp_path: Path) -> None:
    date = "Tue, 06 Mar 2018 07:00:00 GMT"
    server.tricks = [breaking_off(70_000, ETag="", **{"Last-Modified": date})]
    server.tag = date  # held against If-Range
    fetch(source, tmp_path / "out")
    assert_complete(tmp_path / "out")
    assert server.ranges[1] == ("bytes=70000-", date)


def test_another_address_never_continues_a_file(
    server: Server, source: Source, tmp_path: Path, impatient: Callable[..., None]
) -> None:
    impatient(attempts=1)
    server.tricks = [breaking_off(70_000)]
    with pytest.raises(DownloadError):
        fetch(source, tmp_path / "out")
    fetch(source, tmp_path / "out", url=server.url.replace("/files/", "/mirror/"))
    assert_complete(tmp_path / "out")
    assert server.ranges[1] == (None, None)


@pytest.mark.parametrize("more", [1000, -1000])
def test_another_length_than_the_known_one_is_refused_before_the_download(
    more: int, server: Server, source: Source, tmp_path: Path
) -> None:
    server.tricks = [lambda answer: answer.serve(announced=more)] * 9
    with pytest.raises(DownloadError, match=r"the file there has 20\d,\d{3} bytes, expected 201,\d{3}"):
        fetch(source, tmp_path / "out")
    assert len(server.ranges) == 1
    assert images_in(tmp_path / "out") == {}


@pytest.mark.parametrize(
    ("more", "message"), [(1000, "connection closed|416|a different range"), (-1000, "wrong checksum")]
)
def test_a_wrong_announced_length_is_noticed(
    more: int, message: str, server: Server, source: Source, tmp_path: Path
) -> None:
    server.tricks = [lambda answer: answer.serve(announced=more, ranges=False)] * 9
    with pytest.raises(DownloadError, match=message):
        fetch(replace(source, size=None), tmp_path / "out")
    server.tricks = []
    fetch(source, tmp_path / "out")
    assert_complete(tmp_path / "out")


def test_no_length_is_fine_if_the_size_is_known(server: Server, source: Source, tmp_path: Path) -> None:
    def serve_without(answer: Answer, sent: int | None) -> None:
        answer.send_response(200)
        answer.end_headers()
        answer.wfile.write(ZIP[:sent])

    server.tricks = [lambda answer: serve_without(answer, 70_000), lambda answer: serve_without(answer, None)]
    fetch(source, tmp_path / "out")
    assert_complete(tmp_path / "out")


def test_a_wrong_checksum_is_reported_and_the_file_deleted(server: Server, source: Source, tmp_path: Path) -> None:
    server.content = bytes(len(ZIP))
    with pytest.raises(
        DownloadError, match=r"wrong checksum: SHA-256 is \w{64}, expected \w{64}.*\n.*pass it as `archive`"
    ):
        fetch(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()  # it was empty
    server.content = ZIP
    fetch(source, tmp_path / "out")
    assert_complete(tmp_path / "out")


def test_an_archive_with_the_published_checksum_is_accepted_whatever_its_counts(
    server: Server, source: Source, tmp_path: Path
) -> None:
    fetch(replace(source, editions={}), tmp_path / "out")
    assert_complete(tmp_path / "out")


def test_a_given_checksum_replaces_the_published_one(server: Server, source: Source, tmp_path: Path) -> None:
    server.content = OTHER_ZIP
    sha256 = hashlib.sha256(OTHER_ZIP).hexdigest()
    with pytest.raises(DownloadError, match="bytes, expected"):
        fetch(source, tmp_path / "out")
    fetch(source, tmp_path / "out", sha256=f" {sha256.upper()}\n")
    assert "(with val). The checksum of the archive is the given one" in (tmp_path / "out/SOURCE.txt").read_text()


@pytest.mark.parametrize("code", [401, 403, 404, 410, 501])
def test_a_refusal_ends_at_once_and_suggests_a_manual_download(
    code: int, server: Server, source: Source, tmp_path: Path
) -> None:
    server.tricks = [status(code)]
    with pytest.raises(DownloadError, match=rf"refused: status {code}") as error:
        fetch(source, tmp_path / "out")
    assert len(server.ranges) == 1
    assert source.homepage in str(error.value)
    assert "pass it as `archive`" in str(error.value)


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_a_transient_error_is_retried_after_a_pause(
    code: int,
    server: Server,
    source: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    impatient: Callable[..., None],
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    server.tricks = [status(code), status(code, Retry_After="7"), status(code, Retry_After="100000")]
    impatient(attempts=4, pause=1)
    fetch(source, tmp_path / "out")
    assert_complete(tmp_path / "out")
    assert waited == [1, 7, 60]


def test_a_server_that_hangs_ends_in_an_error(
    server: Server, source: Source, tmp_path: Path, impatient: Callable[..., None]
) -> None:
    impatient(timeout=0.2)
    server.tricks = [Answer.wait, breaking_off(70_000), Answer.wait]
    with pytest.raises(DownloadError, match=r"failed 3 times in a row: .*timed out.* \(70,000 bytes received\)"):
        fetch(source, tmp_path / "out")


def test_an_unreachable_server_suggests_a_manual_download(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"failed 3 times in a row: .*[Rr]efused.*\n.*pass it as `archive`"):
        fetch(make_source(), tmp_path / "out")


@pytest.mark.parametrize("scheme", ["", "http://user:pass%20word@"])
def test_the_proxy_of_the_environment_is_used(
    scheme: str, server: Server, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str | None]] = []

    def act(answer: Answer) -> None:
        seen.append((answer.path, answer.headers["Proxy-Authorization"]))
        answer.serve()

    monkeypatch.setenv("http_proxy", f"{scheme}127.0.0.1:{server.server_address[1]}")
    server.tricks = [act]
    fetch(source, tmp_path / "out", url="http://elsewhere.invalid/a.zip")
    assert_complete(tmp_path / "out")
    assert seen == [("http://elsewhere.invalid/a.zip", "Basic dXNlcjpwYXNzIHdvcmQ=" if scheme else None)]


def test_a_proxy_of_an_unknown_kind_is_named_as_the_cause(
    server: Server, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("all_proxy", "socks5://user:secret@127.0.0.1:1080")
    with pytest.raises(DownloadError, match=r"[^ ]+a\.zip: .*proxy.*ProxySchemeUnknown") as error:
        fetch(source, tmp_path / "out", url="http://elsewhere.invalid/a.zip")
    assert "secret" not in str(error.value)
    assert server.ranges == []  # not even asked


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "http://[", "gopher://x/"])
def test_a_redirection_to_anything_but_http_is_not_followed(
    place: str, server: Server, source: Source, tmp_path: Path
) -> None:
    server.tricks = [status(302, Location=place)] * 9
    with pytest.raises(DownloadError):
        fetch(source, tmp_path / "out")
    assert images_in(tmp_path / "out") == {}


def test_a_redirection_from_https_to_http_is_not_followed(
    server: Server, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schemes = urllib3.poolmanager.pool_classes_by_scheme
    monkeypatch.setitem(schemes, "https", schemes["http"])
    server.tricks = [status(302, Location=f"{server.url}?signature=secret")]
    address = server.url.replace("http://", "https://")
    with pytest.raises(DownloadError, match=r"redirects to http://.*/ChestXRay2017\.zip, which is not followed"):
        fetch(source, tmp_path / "out", url=address)
    fetch(source, tmp_path / "out", url=address)
    assert_complete(tmp_path / "out")


def test_a_redirection_is_followed_with_its_range(server: Server, source: Source, tmp_path: Path) -> None:
    moved = status(302, Location=f"{server.url}?signature=secret")
    server.tricks = [moved, breaking_off(70_000), moved]
    fetch(source, tmp_path / "out")
    assert_complete(tmp_path / "out")
    assert server.ranges[-1] == ("bytes=70000-", '"one"')


def test_a_secret_in_an_address_is_neither_shown_nor_kept(server: Server, source: Source, tmp_path: Path) -> None:
    server.tricks = [breaking_off(70_000), status(403)]
    with pytest.raises(DownloadError) as error:
        fetch(source, tmp_path / "out", url=f"{server.url}?token=secret1")
    assert not any(b"secret" in path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    fetch(source, tmp_path / "out", url=f"{server.url}?token=secret2")
    assert server.ranges[-1] == ("bytes=70000-", '"one"')
    assert "secret" not in str(error.value) + "".join(
        (tmp_path / "out" / name).read_text() for name in SOURCE_FILES[:2]
    )


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://x/y", "x.zip", "http://", "http:///x", "http://a b/c", ""]
)
def test_an_invalid_address_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="url: "):
        fetch(make_source(), tmp_path / "out", url=url)


# What is there already


@dataclass
class Place:
    """A folder that was fetched into, and the archive it came from."""

    source: Source = field(default_factory=make_source)
    out: Path = Path()
    archive: Path = Path()

    def fetch(self, **options: Any) -> Path:
        return fetch(self.source, self.out, **{"archive": self.archive, **options})


@pytest.fixture
def fetched(tmp_path: Path) -> Place:
    place = Place(out=tmp_path / "out", archive=tmp_path / "mine.zip")
    place.archive.write_bytes(ZIP)
    place.fetch()
    assert_complete(place.out)
    return place


def test_a_second_call_does_nothing_and_says_so(fetched: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pneumoscope")
    before = {path: path.stat() for path in fetched.out.rglob("*")}
    fetched.archive.unlink()
    fetched.fetch()
    fetched.fetch(archive=None)  # the address is out of reach
    assert {path: path.stat() for path in fetched.out.rglob("*")} == before
    assert "complete, 10 images of small (whole). Nothing to do." in caplog.text
    assert "Licence" not in caplog.text


@pytest.mark.parametrize(
    "harm",
    [
        lambda out: (out / "train/NORMAL/IM-0001-0001.jpeg").unlink(),
        lambda out: (out / "train/NORMAL/IM-0001-0001.jpeg").write_bytes(b"cut"),
        lambda out: (out / "test").rename(out.parent / "elsewhere"),
        lambda out: (out / "test/NORMAL").rename(out.parent / "elsewhere"),
    ],
)
def test_missing_and_damaged_images_are_repaired_and_the_others_left(
    harm: Callable[[Path], object], fetched: Place
) -> None:
    kept = fetched.out / "train/NORMAL/IM-0000-0001.jpeg"
    before = kept.stat()
    harm(fetched.out)
    fetched.fetch()
    assert_complete(fetched.out)
    assert kept.stat().st_mtime_ns == before.st_mtime_ns
    assert kept.stat().st_ino == before.st_ino


def test_editions_are_never_mixed(fetched: Place) -> None:
    (fetched.out / "train/NORMAL/IM-0001-0001.jpeg").unlink()
    (fetched.archive.with_name("other.zip")).write_bytes(OTHER_ZIP)
    with pytest.raises(UsageError, match=r"its images \(whole\) are not those of other.zip \(with val\)"):
        fetched.fetch(archive=fetched.archive.with_name("other.zip"))
    assert len(images_in(fetched.out)) == len(IMAGES) - 1
    fetched.fetch(archive=fetched.archive.with_name("other.zip"), overwrite=True)
    assert images_in(fetched.out) == dict(sorted(draw_images(WITH_VAL).items()))


def test_unknown_images_are_reported_and_left_alone(fetched: Place, caplog: pytest.LogCaptureFixture) -> None:
    (fetched.out / "train/NORMAL/mine.jpeg").write_bytes(b"mine")
    (fetched.out / "train/NORMAL/.DS_Store").write_bytes(b"")
    fetched.fetch()
    assert "1 files do not belong to small, such as train/NORMAL/mine.jpeg" in caplog.text
    assert (fetched.out / "train/NORMAL/mine.jpeg").exists()


def test_another_checksum_or_dataset_than_the_present_one_is_refused(fetched: Place) -> None:
    fetched.fetch(sha256=hashlib.sha256(ZIP).hexdigest())
    with pytest.raises(UsageError, match=r"contains small .* replace it with `overwrite=True`"):
        fetched.fetch(sha256="0" * 64)
    with pytest.raises(UsageError, match="contains small"):
        fetch("kermany", fetched.out, archive=fetched.archive)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"name": 1}', "\xff"])
def test_an_unreadable_manifest_is_an_error_that_says_what_to_do(text: str, fetched: Place) -> None:
    (fetched.out / "SOURCE.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"SOURCE\.json"):
        fetched.fetch()
    fetched.fetch(overwrite=True)
    assert_complete(fetched.out)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_anything_else_in_it_is_left_alone(overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "out/train").mkdir(parents=True)
    (tmp_path / "out/train/mine.jpeg").write_bytes(b"mine")
    (tmp_path / "a.zip").write_bytes(ZIP)
    with pytest.raises(UsageError, match="Choose another path"):
        fetch(make_source(), tmp_path / "out", archive=tmp_path / "a.zip", overwrite=overwrite)
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["train", "mine.jpeg"]


def test_invalid_arguments_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(ZIP)
    for options, error, message in (
        ({"archive": tmp_path / "none.zip"}, DataError, "none.zip: no such file"),
        ({"archive": tmp_path}, DataError, "no such file"),
        ({"archive": tmp_path / "a.zip", "url": "http://127.0.0.1:9/x"}, UsageError, "not both"),
        ({"sha256": "12ab"}, UsageError, "64 hexadecimal digits"),
    ):
        with pytest.raises(error, match=message):
            fetch(make_source(), tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()


def test_a_local_archive_with_a_fault_is_left_alone(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(ZIP[:-40_000])
    with pytest.raises(DataError, match="wrong checksum"):
        fetch(make_source(), tmp_path / "out", archive=archive, sha256=make_source().sha256)
    with pytest.raises(DataError, match="truncated"):
        fetch(make_source(), tmp_path / "out", archive=archive)
    assert archive.stat().st_size == len(ZIP) - 40_000
    archive.write_bytes(ZIP)
    fetch(make_source(), tmp_path / "out", archive=archive)
    assert_complete(tmp_path / "out")


# Killed

CHILD = """
import json, os, signal, sys
from pathlib import Path
from pneumoscope.datasets.kermany import fetch
from pneumoscope.datasets.sources import Source
source = Source(**json.loads(sys.argv[1]))
"""


def run_child(source: Source, script: str, *arguments: str) -> subprocess.Popen[str]:
    from dataclasses import asdict

    command = [sys.executable, "-W", "error", "-c", CHILD + script, json.dumps(asdict(source)), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_download_is_finished_by_a_second_call(server: Server, source: Source, tmp_path: Path) -> None:
    out, sent = tmp_path / "out", threading.Event()

    def serve_half(answer: Answer) -> None:
        answer.serve(sent=100_000)
        answer.wfile.flush()
        sent.set()
        answer.wait()

    server.tricks = [serve_half]
    with run_child(source, "fetch(source, Path(sys.argv[2]))", str(out)) as child:
        part = out / ".fetch.part" / "ChestXRay2017.zip"
        deadline = time.monotonic() + 60
        while not (part.is_file() and part.stat().st_size > 60_000) and time.monotonic() < deadline:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    came = part.stat().st_size
    assert 60_000 < came <= 100_000
    fetch(source, out)
    assert_complete(out)
    assert server.ranges[1] == (f"bytes={came}-", '"one"')


KILL_AT_EVERY_STEP = """
base, archive = Path(sys.argv[2]), Path(sys.argv[3])
OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}

def fetch_and_die(out, step):
    count = 0
    def watch(event, arguments):
        nonlocal count
        count += event in OPERATIONS
        if event in OPERATIONS and count > step:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)
    fetch(source, out, archive=archive)

fetch(source, base / "warm", archive=archive)  # so that all modules are loaded
for step in range(10_000):
    out = base / str(step)
    if (pid := os.fork()) == 0:
        fetch_and_die(out, step)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    fetch(source, out, archive=archive)
    if status == 0:
        break
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
print(step)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_file_operation_a_second_call_finishes_the_work(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(ZIP)
    with run_child(make_source(), KILL_AT_EVERY_STEP, str(tmp_path), str(tmp_path / "a.zip")) as child:
        printed, _ = child.communicate(timeout=200)
    assert child.returncode == 0
    steps = int(printed)
    assert steps > len(IMAGES)
    for step in range(steps + 1):
        assert_complete(tmp_path / str(step))


def test_a_login_page_in_place_of_the_file_does_not_discard_what_has_come(
    server: Server, source: Source, tmp_path: Path
) -> None:
    def ask_to_log_in(answer: Answer) -> None:
        answer.send_response(200)
        answer.send_header("Content-Length", "18")
        answer.end_headers()
        answer.wfile.write(b"<html>login</html>")

    server.tricks = [breaking_off(100_000), ask_to_log_in]
    with pytest.raises(DownloadError, match="the file there has 18 bytes"):
        fetch(source, tmp_path / "out")
    fetch(source, tmp_path / "out")
    assert_complete(tmp_path / "out")
    assert server.ranges[-1][0] == "bytes=100000-"


def test_a_second_process_is_kept_out_of_the_folder(tmp_path: Path) -> None:
    archive = tmp_path / "mine.zip"
    archive.write_bytes(ZIP)
    with lock_folder(tmp_path / "out"):
        with pytest.raises(UsageError, match="another process is writing into this folder"):
            fetch(make_source(), tmp_path / "out", archive=archive)
        assert list((tmp_path / "out").iterdir()) == []
    fetch(make_source(), tmp_path / "out", archive=archive)
    assert_complete(tmp_path / "out")
