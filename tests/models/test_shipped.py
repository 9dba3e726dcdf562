from __future__ import annotations

import json
import runpy
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pneumoscope
from pneumoscope.datasets.sources import find_source
from pneumoscope.errors import BundleError, DataError, UsageError
from pneumoscope.models import shipped
from pneumoscope.models.bundle import Bundle, find_file, load_bundle, load_weights, save_bundle
from pneumoscope.models.classifier import to_half
from pneumoscope.training.train import Run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def ship() -> Callable[..., Any]:
    function: Callable[..., Any] = runpy.run_path(str(ROOT / "benchmarks" / "quality" / "ship.py"))["ship"]
    return function


@pytest.fixture
def recognised(run: Run, tmp_path: Path) -> Path:
    """The run as if its films were those of the Kermany data, and its weights rounded to half precision."""
    folder = Path(shutil.copytree(run.folder, tmp_path / "recognised"))
    card = folder / "bundle" / "README.md"
    text = card.read_text().replace("**Source**: not stated", f"**Source**: {find_source('kermany').title}")
    card.write_text(text)
    bundle = load_bundle(folder)
    state = load_weights(folder, bundle)
    store(folder, bundle, {k: v if "novelty" in k else to_half(v).to(v.dtype) for k, v in state.items()})
    return folder


def store(folder: Path, bundle: Bundle, state: dict[str, Any]) -> None:
    """Write another bundle into a run, its checksum into the card, too."""
    card = folder / "bundle" / "README.md"
    before = load_bundle(folder).weights_sha256
    card.write_text(card.read_text().replace(before, save_bundle(folder / "bundle", bundle, state).weights_sha256))


def test_a_name_stands_for_the_bundle_that_ships(simulated_model: str, run: Run, films: Path) -> None:
    assert shipped.list_shipped() == (simulated_model,)
    assert load_bundle(Path(simulated_model)) == load_bundle(run.bundle)
    film = next((films / "test" / "PNEUMONIA").iterdir())
    ((expected,), (named,), (default,)) = (
        loaded.predict(film)
        for loaded in (pneumoscope.load(run.folder), pneumoscope.load(simulated_model), pneumoscope.load())
    )
    assert expected.logits == named.logits == default.logits


def test_a_path_that_exists_wins(simulated_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / simulated_model).mkdir()
    with pytest.raises(BundleError, match=rf"no bundle here.*one that ships \({simulated_model}\)"):
        load_bundle(Path(simulated_model))


def test_without_a_shipped_bundle_it_is_said_how_to_get_one(zoo: Path) -> None:
    with pytest.raises(UsageError, match=r"No model ships.*pneumoscope train"):
        pneumoscope.load()
    with pytest.raises(BundleError, match=r"Give a bundle, a finished run\."):
        pneumoscope.load("pneumonia-lite0")
    (zoo / "other").mkdir()
    (zoo / "other" / "bundle.json").write_text("{}")
    with pytest.raises(UsageError, match=r"No model 'pneumonia-lite0'.*There are: other"):
        pneumoscope.load()


def test_what_ships_is_installed_whole() -> None:
    house = ROOT / "src" / "pneumoscope"
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["pneumoscope"]
    installed = {path for pattern in patterns for path in house.glob(pattern)}
    assert {path for path in shipped.zoo().rglob("*") if path.is_file()} <= installed
    assert "models/zoo/*/*" in patterns
    assert shipped.DEFAULT in shipped.list_shipped()
    for name in shipped.list_shipped():
        folder = shipped.find_shipped(name)
        assert {path.name for path in folder.iterdir()} == {
            "bundle.json",
            "weights.safetensors",
            "network.onnx",
            "README.md",
        }
        assert sum(path.stat().st_size for path in folder.iterdir()) < 20e6
        assert "CC BY 4.0" in (folder / "README.md").read_text(encoding="utf-8")
        load_weights(folder, load_bundle(folder))
        find_file(folder, load_bundle(folder), "network.onnx")


def test_what_ships_decides_as_the_run_did_and_is_attributed(
    ship: Callable[..., Any], recognised: Path, films: Path, zoo: Path
) -> None:
    done = ship(recognised, films / "test")
    before, after = (load_bundle(folder) for folder in (recognised, done.folder))
    assert done.folder == zoo / "pneumonia-lite0"
    assert (done.films, done.size < 20e6) == (12, True)
    assert done.difference < 1e-6
    assert (after.thresholds, after.calibration, after.conformal) == (
        before.thresholds,
        before.calibration,
        before.conformal,
    )
    measured = json.loads((recognised / "metrics.json").read_text())
    assert after.training["test"]["metrics"]["auroc"]["value"] == measured["metrics"]["auroc"]["value"]
    card = (done.folder / "README.md").read_text(encoding="utf-8")
    for said in (after.weights_sha256, "license: apache-2.0", "CC BY 4.0", "Kermany D, Zhang K", "not endorsed"):
        assert said in card
    assert before.weights_sha256 not in card
    with pytest.raises(UsageError, match="exists already"):
        ship(recognised, films / "test")


def test_nothing_ships_that_decides_otherwise(
    ship: Callable[..., Any], recognised: Path, films: Path, zoo: Path
) -> None:
    bundle = load_bundle(recognised)
    state = load_weights(recognised, bundle)
    state["head.weight"] += state["head.weight"].abs() * 2**-13  # too little to be kept; no feature is negative
    store(recognised, bundle, state)
    highest = max(one.unguarded or 0 for one in pneumoscope.load(recognised).predict((films / "test").rglob("*.png")))
    store(recognised, replace(bundle, thresholds={"decision": highest}), state)
    with pytest.raises(DataError, match="decided otherwise in half precision"):
        ship(recognised, films / "test")
    assert not list(zoo.iterdir())


@pytest.mark.parametrize("trace", ["film", "path"])
def test_nothing_ships_that_names_a_film_or_a_place(
    trace: str, ship: Callable[..., Any], recognised: Path, films: Path, zoo: Path
) -> None:
    word = next((films / "train" / "NORMAL").iterdir()).name if trace == "film" else str(Path.home())
    bundle = load_bundle(recognised)
    noted = replace(bundle, training={**bundle.training, "note": f"see {word}"})
    store(recognised, noted, load_weights(recognised, bundle))
    with pytest.raises(UsageError, match=rf"bundle\.json: holds .*{word.split('.')[0]}"):
        ship(recognised, films / "test")
    assert not list(zoo.iterdir())


def test_nothing_ships_that_cannot_be_attributed(ship: Callable[..., Any], run: Run, films: Path, zoo: Path) -> None:
    with pytest.raises(UsageError, match="no public data set"):
        ship(run.folder, films)


def test_nothing_ships_that_is_too_big(
    ship: Any, recognised: Path, films: Path, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ship.__globals__, "MOST", 1_000_000)
    with pytest.raises(UsageError, match=r"MB in half precision; 1 MB may ship"):
        ship(recognised, films / "test")
    assert not list(zoo.iterdir())


def test_a_note_stands_in_the_card(
    recognised: Path, ship: Callable[..., Any], films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "zoo", lambda: tmp_path / "zoo")
    ship(recognised, films, note="Its test films were looked at before.")
    card = (tmp_path / "zoo" / shipped.DEFAULT / "README.md").read_text()
    assert "## About the test\n\nIts test films were looked at before." in card
    training = load_bundle(tmp_path / "zoo" / shipped.DEFAULT).training
    assert training["test"]["note"] == "Its test films were looked at before."
    ship(recognised, films, overwrite=True)
    assert "About the test" not in (tmp_path / "zoo" / shipped.DEFAULT / "README.md").read_text()
