"""Measurements of many images, whose pictures lie in a file, give the same findings as those in memory."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.auditing import intake, labels
from pneumoscope.auditing.audit import find_faults, measure_samples
from pneumoscope.auditing.measurements import FIELDS, Measurements
from pneumoscope.datasets.phantom_sets import write_phantoms
from pneumoscope.datasets.reading import read_samples
from pneumoscope.errors import DataError


def test_measurements_on_disk_are_read_like_an_array() -> None:
    rng = np.random.default_rng(0)
    rows = np.frombuffer(rng.integers(0, 100, (10, FIELDS.itemsize), np.uint8).tobytes(), FIELDS)
    stored = Measurements(len(rows))
    for i in rng.permutation(10).tolist():
        stored[i] = rows[i]
    assert len(stored) == 10
    chosen = [7, 2, 2, 9]
    for name in FIELDS.names or ():
        assert len(stored[name]) == 10
        assert np.array_equal(stored[name][2:5], rows[name][2:5], equal_nan=name not in ("hash", "thumbnail"))
        assert np.array_equal(stored[chosen][name][1:], rows[chosen][name][1:], equal_nan=name != "thumbnail")
    assert stored[chosen]["hash"].shape == (4, *FIELDS["hash"].shape)


def test_too_little_space_for_measurements_is_said_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    with pytest.raises(DataError, match=r"No space left on device.*TMPDIR"):
        Measurements(1_000_000)


def test_many_images_have_the_findings_of_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_phantoms(tmp_path, count=60, seed=3, size=96)
    samples = read_samples(tmp_path)
    few = find_faults(measure_samples(samples, device="cpu"))
    monkeypatch.setattr(intake, "MANY", 10)
    monkeypatch.setattr(labels, "LARGE", 50)
    measured = measure_samples(samples, device="cpu")
    assert isinstance(measured.measured, Measurements)
    assert measured.features is not None
    assert measured.features.dtype == np.float16
    many = find_faults(measured)
    assert [(each.check, each.severity, each.files) for each in many] == [
        (each.check, each.severity, each.files) for each in few
    ]
    assert len(few) > 1
