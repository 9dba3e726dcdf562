"""A file that is no image is called what it is."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest

from pneumoscope.errors import ImageError
from pneumoscope.images.read import read_pixels


def zipped() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a.txt", "text")
    return content.getvalue()


def tarred() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    return content.getvalue()


def array() -> bytes:
    content = io.BytesIO()
    np.save(content, np.zeros(4))
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"this is no picture\n", "a text file"),
        ("das Bild fehlt: für später, 影像".encode(), "a text file"),
        ("影" * 4000, "a text file"),
        ("text".encode("utf-16"), "a text file"),
        (b"path,label\r\na.png,NORMAL\r\n", "a text file"),
        (b"<!DOCTYPE html><html></html>", "an HTML page"),
        (b"\xef\xbb\xbf\n<HTML>", "an HTML page"),
        (b'<?xml version="1.0"?><svg></svg>', "an SVG drawing"),
        (b'<?xml version="1.0"?><a/>', "an XML file"),
        (b"%PDF-1.7\n\xe2\xe3", "a PDF document"),
        (zipped(), "a ZIP archive or an office document"),
        (tarred(), "a tar archive"),
        (array(), "a NumPy array"),
        (gzip.compress(b"x", mtime=0), "a gzip archive"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "a video"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "an HEIC image"),
        (b"RIFF\0\0\0\0AVI LIST", "a video"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a placeholder of Git LFS"),
        (bytes(600), "nothing but zero bytes"),
    ],
)
def test_what_is_no_image_is_named(content: bytes | str, kind: str) -> None:
    with pytest.raises(ImageError, match=rf"^scan\.png: unknown format: this is {kind}.*\. Supported are JPEG, PNG"):
        read_pixels(content.encode() if isinstance(content, str) else content, "scan.png")


@pytest.mark.parametrize("content", [b"\x01\x02\x80\xff" * 40, b"RIFF\0\0\0\0XXXX", b"a\0b\0\x01"])
def test_what_is_not_recognised_is_an_unknown_format(content: bytes) -> None:
    with pytest.raises(ImageError, match=r"^scan\.png: unknown format or pixel type\. Supported are"):
        read_pixels(content, "scan.png")
