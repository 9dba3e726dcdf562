"""Files arrive under their names, however a client writes name and type."""

from __future__ import annotations

import json

import httpx
import pytest
from services import Process, draw

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
    assert answer.status_code == 200, answer.text
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


@pytest.mark.parametrize("media_type", ["image/jpg", "image/pjpeg", "image/x-png", "IMAGE/JPG", "image/png; q=1"])
def test_unregistered_names_of_types_are_accepted(service: Process, media_type: str) -> None:
    headers = {"content-type": media_type}
    answer = httpx.post(f"{service.url}/v1/predictions", content=draw(3), headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text


def test_other_types_are_refused(service: Process) -> None:
    answer = httpx.post(f"{service.url}/v1/predictions", content=draw(3), headers={"content-type": "image/svg+xml"})
    assert answer.status_code == 415
