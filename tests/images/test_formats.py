"""Adding an image format touches one place: folders and uploads accept what `images.read.SUFFIXES` lists."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pneumoscope.datasets.reading import read_samples
from pneumoscope.images.read import FORMATS, MEDIA_TYPES, SUFFIXES

# Written out, so that a suffix that gets lost is noticed.
ACCEPTED = [
    ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx", ".png", ".tif", ".tiff",
    ".webp",
]  # fmt: skip


def test_every_suffix_is_accepted_in_folders_without_a_look_at_the_content(tmp_path: Path) -> None:
    assert sorted(suffix for several in SUFFIXES.values() for suffix in several) == ACCEPTED
    (tmp_path / "A").mkdir()
    for suffix in ACCEPTED:
        (tmp_path / "A" / f"image{suffix}").touch()
    assert sorted(sample.path.suffix for sample in read_samples(tmp_path)) == ACCEPTED


def test_suffixes_and_media_types_are_those_of_pillow() -> None:
    Image.init()
    assert [Image.registered_extensions()[usual] for usual, *_ in SUFFIXES.values()] == list(FORMATS)
    assert tuple(Image.MIME[name] for name in FORMATS) == MEDIA_TYPES


def test_the_service_accepts_every_format_as_raw_bytes() -> None:
    pytest.importorskip("starlette")
    from pneumoscope.server.uploads import RAW_TYPES

    assert set(RAW_TYPES) == {"application/dicom", "application/octet-stream", *MEDIA_TYPES}
