"""PneumoniaMNIST arrives as folders of PNG files, checked, with its licence and where its children are known from."""

from __future__ import annotations

import functools
import hashlib
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pneumoscope import Run, evaluate
from pneumoscope.cli.main import app
from pneumoscope.datasets import archives
from pneumoscope.datasets.kermany import fetch
from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.samples import Sample
from pneumoscope.datasets.sources import (
    KERMANY,
    NIH,
    PNEUMONIAMNIST,
    PNEUMONIAMNIST_224,
    Source,
    describe_overlap,
    recognise_sources,
)
from pneumoscope.errors import DataError, DownloadError, PneumoscopeError
from pneumoscope.models.lineage import Parent, Step
from pneumoscope.models.model_folder import load_model, save_changed

SIZES = {"train": 6, "val": 2, "test": 4}


def make_arrays(side: int = 28) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, n in SIZES.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, side, side), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(n) % 2).astype(np.uint8)[:, None]
    return arrays


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    np.savez_compressed(tmp_path / "pneumoniamnist.npz", **make_arrays())
    return tmp_path / "pneumoniamnist.npz"


@pytest.fixture
def source(archive: Path) -> Source:
    """A small stand-in for the published file."""
    counts = {f"{split}/{label}": n // 2 for split, n in SIZES.items() for label in PNEUMONIAMNIST.labels}
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    return replace(PNEUMONIAMNIST, md5=md5, editions={"small": counts})


@pytest.fixture
def served(archive: Path, source: Source, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    """The stand-in, with the address of a local server."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
            pass

    handler = functools.partial(Quiet, directory=str(archive.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield replace(source, url=f"http://127.0.0.1:{server.server_address[1]}/{archive.name}")
        server.shutdown()
        thread.join()


def test_arrays_become_png_files_in_folders_and_all_is_said(
    served: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pneumoscope")
    out = fetch(served, tmp_path / "out")
    arrays = make_arrays()
    for split, n in SIZES.items():
        for i in range(n):
            with Image.open(out / split / PNEUMONIAMNIST.labels[i % 2] / f"pneumoniamnist_{split}_{i:05}.png") as image:
                assert np.array_equal(np.asarray(image), arrays[f"{split}_images"][i])
    notice = (out / "SOURCE.txt").read_text(encoding="utf-8")
    for text in (caplog.text, notice):
        for words in ("CC BY 4.0", "10.1038/s41597-022-01721-8", "10.17632/rscbjbr9sj.2", "same children", "published"):
            assert words in text
    caplog.clear()
    fetch(served, out)
    assert "Nothing to do" in caplog.text


def test_the_images_can_be_read_and_their_patients_are_unknown(source: Source, archive: Path, tmp_path: Path) -> None:
    samples = read_samples(fetch(source, tmp_path / "out", archive=archive))
    assert len(samples) == sum(SIZES.values())
    assert {sample.patient for sample in samples} == {None}
    assert {sample.split for sample in samples} == set(SIZES)
    assert recognise_sources(samples) == (PNEUMONIAMNIST,)


def test_lost_images_are_written_again(served: Source, tmp_path: Path) -> None:
    out = fetch(served, tmp_path / "out")
    victim = out / "test" / "NORMAL" / "pneumoniamnist_test_00000.png"
    content = victim.read_bytes()
    victim.unlink()
    fetch(served, out)
    assert victim.read_bytes() == content


def test_a_download_with_another_checksum_is_refused(served: Source, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"wrong checksum: MD5 is .* expected 0000"):
        fetch(replace(served, md5="0" * 32), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.png"))


def spoil(arrays: dict[str, Any], how: str) -> dict[str, Any]:
    if how == "missing":
        del arrays["val_images"]
    elif how == "colour":
        arrays["train_images"] = np.zeros((6, 28, 28, 3), np.uint8)
    elif how == "float":
        arrays["train_images"] = arrays["train_images"].astype(np.float32)
    elif how == "label":
        arrays["test_labels"] = arrays["test_labels"] + 7
    elif how == "few":
        arrays["test_labels"] = arrays["test_labels"][:1]
    else:
        arrays["test_images"] = np.array([{"a": 1}], dtype=object)
    return arrays


@pytest.mark.parametrize("how", ["missing", "colour", "float", "label", "few", "pickle"])
def test_another_archive_is_refused(how: str, source: Source, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", **spoil(make_arrays(), how))
    with pytest.raises(DataError, match=r"other\.npz"):
        fetch(source, tmp_path / "out", archive=tmp_path / "other.npz")
    assert not list((tmp_path / "out").rglob("*.png"))


def test_a_part_of_the_data_is_refused(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not this dataset"):
        fetch("pneumoniamnist", tmp_path / "out", archive=archive)


def test_out_of_reach_the_command_ends_in_exit_code_5_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "ATTEMPTS", 1)
    line = ["data", "fetch", "pneumoniamnist", "--out", str(tmp_path / "out"), "--url", "http://127.0.0.1:9/x.npz"]
    problem = CliRunner().invoke(app, line).exception
    assert isinstance(problem, PneumoscopeError)
    assert problem.exit_code == 5
    assert "download pneumoniamnist.npz with a browser from https://zenodo.org/records/10519652" in problem.message


def test_both_sizes_hold_the_images_of_the_kermany_data() -> None:
    for source in (PNEUMONIAMNIST, PNEUMONIAMNIST_224):
        counts = source.editions["MedMNIST"]
        totals = [sum(n for place, n in counts.items() if place.endswith(label)) for label in KERMANY.labels]
        assert totals == [1583, 4273]
        assert source.origin == KERMANY.name
        assert source.url.endswith(f"{source.file}?download=1")


def test_a_model_that_learned_from_the_same_children_is_pointed_out() -> None:
    assert "same children" in str(describe_overlap([PNEUMONIAMNIST], ["kermany", "nih"]))
    assert "same children" in str(describe_overlap([KERMANY], ["pneumoniamnist"]))
    assert "same children" in str(describe_overlap([PNEUMONIAMNIST], ["kermany", "pneumoniamnist"]))
    assert describe_overlap([KERMANY], ["kermany"]) is None  # files and patients are compared there
    assert describe_overlap([PNEUMONIAMNIST], ["nih"]) is None
    assert describe_overlap([NIH], ["kermany"]) is None
    assert recognise_sources([Sample(Path("pneumoniamnist_x.png"), "NORMAL")]) == ()


def test_evaluating_a_pretrained_model_on_them_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    for i in range(8):
        path = tmp_path / "images" / PNEUMONIAMNIST.labels[i % 2] / f"pneumoniamnist_test_{i:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(path)
    found = evaluate(tmp_path / "images", "pneumonia-lite0", split="all", resamples=20, cache=False)
    assert any("same children" in note for note in found.notes)
    assert "same children" in caplog.text


def test_a_model_that_continued_from_one_of_the_same_children_warns(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model(run.model)
    step = Step(Parent("first", "a" * 64, sources=("kermany",)), "train")
    save_changed(tmp_path / "model", run.model, replace(model, lineage=(step,)), {})
    rng = np.random.default_rng(0)
    for i in range(4):
        path = tmp_path / "images" / PNEUMONIAMNIST.labels[i % 2] / f"pneumoniamnist_test_{i:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(path)
    evaluate(tmp_path / "images", tmp_path / "model", split="all", resamples=10, cache=False)
    assert "same children" in caplog.text
