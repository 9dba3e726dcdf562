"""Files arrive under their names, however a client writes name and type."""

from __future__ import annotations

import json
import logging

import httpx
import pytest
from services import Process, draw
from typer.testing import CliRunner

from pneumoscope.cli.main import app

NAMES = [
    ("filename*=UTF-8''Thorax%20p.a.%20M%C3%BCller.png", "Thorax p.a. Müller.png"),
    ("filename*=utf-8'de'%E8%83%B8%E9%83%A8.png", "胸部.png"),
    ("filename*=ISO-8859-1''M%FCller.png", "Müller.png"),
    ("filename=\"plain.png\"; filename*=UTF-8''better.png", "better.png"),
    ("filename*=UTF-8''better.png; filename=\"plain.png\"", "better.png"),
    ("FILENAME* = UTF-8''spaced.png", "spaced.png"),
    ("filename=\"a; filename*=UTF-8''b.png\"", "a; filename*=UTF-8''b.png"),
    ('filename="M\u00fcller.png"', "Müller.png"),
    ("filename*=UTF-8''..%2F..%2Fetc%2Fpasswd", "passwd"),
    ("filename*=UTF-8''a%00%0d%0ab.png", None),  # whatever it is called, it is one printable line
    ("filename*=UTF-8''", "image"),
    ("filename*=UTF-8''%1B%5B2J%1B%5D0%3Bowned%07.png", "[2J]0;owned.png"),
    ("filename*=UTF-8''%E2%80%AEgnp.exe%C2%9B2J.png", "gnp.exe2J.png"),  # text from right to left, and a C1 control
    ("filename*=UTF-8''2026-01-01%0A2026-01-01%2000:00:00%20forged.png", "2026-01-012026-01-01 00:00:00 forged.png"),
    ('filename="\x1b[31mred.png"', "[31mred.png"),
]


def send(service: Process, content: bytes, disposition: str, form: bool) -> httpx.Response:
    """Send an image as a form or as the body, with this header."""
    value = f"{'form-data; name=f' if form else 'attachment'}; {disposition}".encode()
    if form:
        body = b"--frontier\r\nContent-Disposition: " + value + b"\r\n\r\n" + content + b"\r\n--frontier--\r\n"
        headers = [(b"content-type", b"multipart/form-data; boundary=frontier")]
    else:
        body, headers = content, [(b"content-type", b"image/png"), (b"content-disposition", value)]
    return httpx.post(f"{service.url}/v1/predictions", content=body, headers=headers, timeout=60)


@pytest.mark.parametrize("form", [True, False])
@pytest.mark.parametrize(("disposition", "expected"), NAMES)
def test_a_file_keeps_its_name_in_any_writing(
    service: Process, disposition: str, expected: str | None, form: bool
) -> None:
    answer = send(service, draw(3), disposition, form)
    assert answer.status_code == 201, answer.text
    (found,) = answer.json()["predictions"]
    assert found["decision"]
    assert found["name"].isprintable()
    assert expected is None or found["name"] == expected


@pytest.mark.parametrize("form", [True, False])
@pytest.mark.parametrize("coded", ["utf-16''%ff%fe", "UTF-8''%ff", "''a.png", "klingon''a.png"])
def test_a_name_in_another_character_set_is_refused_with_a_reason(service: Process, coded: str, form: bool) -> None:
    answer = send(service, draw(3), f"filename*={coded}", form)
    assert answer.status_code == 422
    assert "UTF-8" in json.dumps(answer.json())


@pytest.mark.parametrize("disposition", ['filename="' + 30_000 * '\\"', f"filename*={60_000 * ' '}x"])
def test_a_long_header_keeps_nobody_waiting(service: Process, disposition: str) -> None:
    headers = {"content-type": "image/png", "content-disposition": f"attachment; {disposition}"}
    answer = httpx.post(f"{service.url}/v1/predictions", content=draw(3), headers=headers, timeout=15)
    assert answer.status_code == 201, answer.text


@pytest.mark.parametrize("media_type", ["image/jpg", "image/pjpeg", "image/x-png", "IMAGE/JPG", "image/png; q=1"])
def test_unregistered_names_of_types_are_accepted(service: Process, media_type: str) -> None:
    headers = {"content-type": media_type}
    answer = httpx.post(f"{service.url}/v1/predictions", content=draw(3), headers=headers, timeout=60)
    assert answer.status_code == 201, answer.text


def test_other_types_are_refused(service: Process) -> None:
    answer = httpx.post(f"{service.url}/v1/predictions", content=draw(3), headers={"content-type": "image/svg+xml"})
    assert answer.status_code == 415


@pytest.mark.parametrize("form", [True, False])
def test_the_log_of_a_service_holds_nothing_of_the_names_of_files(service: Process, form: bool) -> None:
    for disposition, content, status in (
        ("filename*=UTF-8''%1B%5B2J%0A2026-01-01%20forged.png", draw(3), 201),
        ("filename*=UTF-8''%1B%5B2J%0A2026-01-01%20forged.png", b"no image", 415),
        ('filename="\x1b[2J forged.png"', b"no image", 415),
        ("filename*=forged%1B''%1B.png", draw(3), 422),
    ):
        answer = send(service, content, disposition, form)
        assert answer.status_code == status, answer.text
        assert "\x1b" not in answer.text
        assert "\\u001b" not in answer.text
    assert all(line.rstrip("\n").isprintable() and "forged" not in line for line in service.lines)


@pytest.mark.parametrize("logger", ["pneumoscope.server", "pneumoscope", "uvicorn.error", "asyncio"])
def test_nothing_that_is_logged_controls_the_terminal_or_forges_an_entry(
    logger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "a\x1b[2J\x9b31m\u202egnp.png\n2026-01-01 00:00:00,000 POST /forged 200 1 ms\r2026 b"

    server, level = logging.getLogger("uvicorn.error"), logging.getLogger("uvicorn.error").level

    def serve(*_: object) -> None:
        server.setLevel(logging.ERROR)  # as `serve` does; services of other tests in this process are quieter
        logging.getLogger(logger).error("%s cannot be read", name)
        try:
            raise ValueError(name)
        except ValueError:
            logging.getLogger(logger).exception("failed")

    monkeypatch.setattr("pneumoscope.server.app.serve", serve)
    logged = CliRunner().invoke(app, ["serve"]).stderr
    server.setLevel(level)
    first, *others = logged.split("\n")[:-1]
    assert first.endswith(" a\ufffd[2J\ufffd31m\ufffdgnp.png")
    assert all(line.isprintable() for line in (first, *others))
    entries = [line for line in others if not line.startswith("    ")]
    assert [line.rpartition(" ")[2] for line in entries] == ["failed"]
    assert "ValueError: a\ufffd[2J" in logged
