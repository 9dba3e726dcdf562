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
from pneumoscope.datasets.sources import KERMANY, find_sources
from pneumoscope.errors import DataError, ModelError, UsageError
from pneumoscope.models import pretrained
from pneumoscope.models.backbones import find_backbone
from pneumoscope.models.classifier import to_half
from pneumoscope.models.lineage import name_earlier_sources
from pneumoscope.models.model_folder import Model, find_file, load_model, load_weights, save_model
from pneumoscope.training.train import Run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def convert() -> Callable[..., Any]:
    script = ROOT / "benchmarks" / "quality" / "convert_pretrained.py"
    function: Callable[..., Any] = runpy.run_path(str(script))["convert"]
    return function


@pytest.fixture
def recognised(run: Run, tmp_path: Path) -> Path:
    """The run as if its images were those of the Kermany data, and its weights rounded to half precision."""
    folder = Path(shutil.copytree(run.folder, tmp_path / "recognised"))
    model = load_model(folder)
    model = replace(model, data={**model.data, "sources": [KERMANY.name]})
    state = load_weights(folder, model)
    store(folder, model, {k: v if k.startswith("ood.") else to_half(v).to(v.dtype) for k, v in state.items()})
    return folder


def store(folder: Path, model: Model, state: dict[str, Any]) -> None:
    """Write another model into a run, its checksum into the card, too."""
    card = folder / "model" / "README.md"
    before = load_model(folder).weights_sha256
    card.write_text(card.read_text().replace(before, save_model(folder / "model", model, state).weights_sha256))


def test_a_name_stands_for_a_pretrained_model(simulated_model: str, run: Run, images: Path) -> None:
    assert pretrained.list_pretrained() == (simulated_model,)
    assert load_model(Path(simulated_model)) == load_model(run.model)
    image = next((images / "test" / "PNEUMONIA").iterdir())
    ((expected,), (named,), (default,)) = (
        loaded.predict(image)
        for loaded in (pneumoscope.load(run.folder), pneumoscope.load(simulated_model), pneumoscope.load())
    )
    assert expected.logits == named.logits == default.logits


def test_a_path_that_exists_wins(simulated_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / simulated_model).mkdir()
    with pytest.raises(ModelError, match=rf"no model here.*pretrained model \({simulated_model}\)"):
        load_model(Path(simulated_model))


def test_without_a_pretrained_model_it_is_said_how_to_get_one(pretrained_models: Path) -> None:
    with pytest.raises(UsageError, match=r"no pretrained model.*pneumoscope train"):
        pneumoscope.load()
    with pytest.raises(UsageError, match=r"Give a model folder, a finished run, a \.zip of one"):
        pneumoscope.load("all-ages-lite0")
    (pretrained_models / "other").mkdir()
    (pretrained_models / "other" / "model.json").write_text("{}")
    with pytest.raises(UsageError, match=r"no pretrained model 'all-ages-lite0'.*Available: other"):
        pneumoscope.load()


def test_pretrained_models_are_installed_whole() -> None:
    package = ROOT / "src" / "pneumoscope"
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["pneumoscope"]
    installed = {path for pattern in patterns for path in package.glob(pattern)}
    files = {path for path in pretrained.pretrained_folder().rglob("*") if path.is_file()}
    assert {path for path in files if path.suffix not in (".py", ".pyc")} <= installed
    assert "models/pretrained/*/*" in patterns
    assert pretrained.DEFAULT in pretrained.list_pretrained()
    for name in pretrained.list_pretrained():
        folder = pretrained.find_pretrained(name)
        assert {path.name for path in folder.iterdir()} == {
            "model.json",
            "weights.safetensors",
            "network.onnx",
            "README.md",
        }
        assert sum(path.stat().st_size for path in folder.iterdir()) < 20e6
        model = load_model(folder)
        load_weights(folder, model)
        find_file(folder, model, "network.onnx")
        card = (folder / "README.md").read_text(encoding="utf-8")
        sources = find_sources([*model.data["sources"], *name_earlier_sources(model.lineage)])
        assert sources
        assert all(each.licence in card and each.homepage in card for each in sources)


def test_the_chest_backbone_has_seen_none_of_kermanys_images() -> None:
    model = load_model(Path("chest-lite0"))
    assert {*model.data["sources"], *name_earlier_sources(model.lineage)} == {"nih", "rsna"}
    assert find_backbone("chest_lite0").source == "model chest-lite0"


def test_a_converted_model_decides_as_the_run_did_and_is_attributed(
    convert: Callable[..., Any], recognised: Path, images: Path, pretrained_models: Path
) -> None:
    done = convert(recognised, images / "test")
    before, after = (load_model(folder) for folder in (recognised, done.folder))
    assert done.folder == pretrained_models / "all-ages-lite0"
    assert (done.images, done.size < 20e6) == (12, True)
    assert done.difference < 1e-6
    assert after.decisions == before.decisions
    measured = json.loads((recognised / "metrics.json").read_text())
    assert after.training["test"]["metrics"]["auroc"]["value"] == measured["metrics"]["auroc"]["value"]
    card = (done.folder / "README.md").read_text(encoding="utf-8")
    for words in (after.weights_sha256, "license: apache-2.0", "CC BY 4.0", "Kermany D, Zhang K", "not endorsed"):
        assert words in card
    assert before.weights_sha256 not in card
    with pytest.raises(UsageError, match="already exists"):
        convert(recognised, images / "test")


def test_a_model_that_would_decide_differently_is_refused(
    convert: Callable[..., Any], recognised: Path, images: Path, pretrained_models: Path
) -> None:
    model = load_model(recognised)
    state = load_weights(recognised, model)
    state["head.weight"] += state["head.weight"].abs() * 2**-13  # too little to be kept; no feature is negative
    store(recognised, model, state)
    highest = max(
        one.raw_probability or 0 for one in pneumoscope.load(recognised).predict((images / "test").rglob("*.png"))
    )
    decisions = {**model.decisions, "threshold": {"value": highest, "rule": "youden"}}
    store(recognised, replace(model, decisions=decisions), state)
    with pytest.raises(DataError, match="decided differently in half precision"):
        convert(recognised, images / "test")
    assert not list(pretrained_models.iterdir())


@pytest.mark.parametrize("trace", ["image", "path"])
def test_a_model_that_names_an_image_or_a_path_is_refused(
    trace: str, convert: Callable[..., Any], recognised: Path, images: Path, pretrained_models: Path
) -> None:
    word = next((images / "train" / "NORMAL").iterdir()).name if trace == "image" else str(Path.home())
    model = load_model(recognised)
    noted = replace(model, training={**model.training, "note": f"see {word}"})
    store(recognised, noted, load_weights(recognised, model))
    with pytest.raises(UsageError, match=rf"model\.json: holds .*{word.split('.')[0]}"):
        convert(recognised, images / "test")
    assert not list(pretrained_models.iterdir())


def test_a_model_that_cannot_be_attributed_is_refused(
    convert: Callable[..., Any], run: Run, images: Path, pretrained_models: Path
) -> None:
    with pytest.raises(UsageError, match="does not name all its public datasets"):
        convert(run.folder, images)


def test_a_model_that_is_too_large_is_refused(
    convert: Any, recognised: Path, images: Path, pretrained_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(convert.__globals__, "MAX_BYTES", 1_000_000)
    with pytest.raises(UsageError, match=r"MB in half precision; the limit is 1 MB"):
        convert(recognised, images / "test")
    assert not list(pretrained_models.iterdir())


def test_the_card_holds_the_note(
    recognised: Path, convert: Callable[..., Any], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "pretrained_folder", lambda: tmp_path / "pretrained_models")
    convert(recognised, images, note="Its test images were looked at before.")
    card = (tmp_path / "pretrained_models" / pretrained.DEFAULT / "README.md").read_text()
    assert "## About the test\n\nIts test images were looked at before." in card
    training = load_model(tmp_path / "pretrained_models" / pretrained.DEFAULT).training
    assert training["test"]["note"] == "Its test images were looked at before."
    convert(recognised, images, overwrite=True)
    assert "About the test" not in (tmp_path / "pretrained_models" / pretrained.DEFAULT / "README.md").read_text()
