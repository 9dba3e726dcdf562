"""What the system does not let us read: chmod means nothing to root, so root becomes somebody else for a moment."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pneumoscope.datasets.reading import find_images, read_samples
from pneumoscope.errors import DataError, ImageError, UsageError
from pneumoscope.files import claim_folder
from pneumoscope.images.read import read_pixels


@contextmanager
def nobody() -> Iterator[None]:
    import scipy.stats  # noqa: F401 - nobody may not read where Python lies, if that is root's home

    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def locked(images: Path) -> Iterator[Path]:
    """A copy of the images that everybody may enter, outside pytest's own folder, which nobody else may."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(shutil.copytree(images, Path(folder) / "images"))


def test_a_class_folder_that_may_not_be_read_is_an_error_that_names_it(locked: Path) -> None:
    folder = locked / "train" / "NORMAL"
    folder.chmod(0)
    with nobody(), pytest.raises(DataError, match=r"train/NORMAL: cannot be read: Permission denied\. Check"):
        read_samples(locked)
    folder.chmod(0o755)
    (locked / "train").chmod(0)
    with nobody(), pytest.raises(DataError, match=r"train: cannot be read: Permission denied\. Check"):
        read_samples(locked)
    (locked / "train").chmod(0o755)


def test_a_locked_folder_below_does_not_stop_the_others(locked: Path, caplog: pytest.LogCaptureFixture) -> None:
    inner = locked / "train" / "NORMAL" / "more"
    inner.mkdir(0)
    with nobody():
        assert len(read_samples(locked)) == 48
        assert "1 folder that cannot be read was left out (1 NORMAL): train/NORMAL/more." in caplog.text
        assert find_images([locked])
        assert "1 folder that cannot be read was left out: train/NORMAL/more." in caplog.text
    inner.chmod(0o755)


def test_a_file_that_may_not_be_read_is_an_error_of_that_file(locked: Path) -> None:
    image = next((locked / "test" / "NORMAL").iterdir())
    image.chmod(0)
    with nobody(), pytest.raises(ImageError, match=f"{image.name}: cannot be read: Permission denied"):
        read_pixels(image)


def test_a_place_that_may_not_be_written_is_named(locked: Path) -> None:
    locked.chmod(0o555)
    with nobody(), pytest.raises(UsageError, match=r"run: cannot be written: Permission denied\. Choose another path"):
        claim_folder(locked / "run", ("config.yaml",))
