"""Says what a file is that is no supported image, so that a message can name it."""

from __future__ import annotations

import codecs

_HEAD = 4096  # bytes that are looked at
_SIGNATURES = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive or an office document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\0", "an xz archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"\x1a\x45\xdf\xa3", "a video"),
    (b"ID3", "an audio file"),
    (b"OggS", "an audio or video file"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"PAR1", "a Parquet table"),
    (b"8BPS", "a Photoshop image"),
    (b"\0\0\x01\0", "an icon"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"\xd0\xcf\x11\xe0", "an office document"),
    (b"MZ", "a program"),
    (b"\x7fELF", "a program"),
    (b"{\\rtf", "a text document"),
    (b"version https://git-lfs", "a placeholder of Git LFS: fetch the file itself with git lfs pull"),
)
_BRANDS = {b"heic": "an HEIC image", b"heix": "an HEIC image", b"mif1": "an HEIC image", b"avif": "an AVIF image"}
_MARKUP = (("<!doctype html", "an HTML page"), ("<html", "an HTML page"), ("<svg", "an SVG drawing"))


def describe_content(content: bytes) -> str | None:
    """Say what a file's content is, in a few words; None where it is not recognised."""
    head = content[:_HEAD]
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "a video")
    if head.startswith(b"RIFF"):
        return {b"AVI ": "a video", b"WAVE": "an audio file"}.get(head[8:12])
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head[344:348] in (b"n+1\0", b"ni1\0"):
        return "a NIfTI volume"
    if (known := next((kind for start, kind in _SIGNATURES if head.startswith(start)), None)) is not None:
        return known
    if not any(head):
        return "nothing but zero bytes"
    text = _decode(head)
    if text is None:
        return None
    start = text.lstrip("\ufeff \t\r\n").lower()
    for tag, kind in _MARKUP:
        if start.startswith(tag) or (start.startswith("<?xml") and tag in start):
            return kind
    return "an XML file" if start.startswith("<?xml") else "a text file"


def _decode(head: bytes) -> str | None:
    """The beginning of a text in UTF-8 or UTF-16, perhaps cut within a character; None if it is no text."""
    wide = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = codecs.getincrementaldecoder("utf-16" if wide else "utf-8")().decode(head)
    except UnicodeDecodeError:
        return None
    return text if all(each.isprintable() or each in "\ufeff\t\r\n\f" for each in text) else None
