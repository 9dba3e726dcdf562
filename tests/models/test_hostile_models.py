"""A model folder may come from anywhere: what contradicts itself, hangs or gives no finite numbers is refused."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pneumoscope.errors import ModelError
from pneumoscope.inference.predictor import load
from pneumoscope.models.model_folder import load_model
from pneumoscope.training.train import Run

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def model(run: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run.model, tmp_path / "model"))


@pytest.fixture(scope="module")
def image(images: Path) -> Path:
    return next((images / "test" / "PNEUMONIA").iterdir())


def rewrite(folder: Path, values: dict[str, Any]) -> None:
    """Write a model's description with the right checksum."""
    values.pop("checksum", None)
    values["checksum"] = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    (folder / "model.json").write_text(json.dumps(values))


def read(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "model.json").read_text())
    return values


def rewrite_weights(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a model's arrays in place, and its checksums with them."""
    arrays = safetensors.numpy.load_file(folder / "weights.safetensors")
    change(arrays)
    content = safetensors.numpy.save(arrays)
    (folder / "weights.safetensors").write_bytes(content)
    rewrite(folder, {**read(folder), "weights_sha256": hashlib.sha256(content).hexdigest()})


def list_places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value inside a JSON value; of a long list only its ends."""
    if place:
        yield place
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        if not isinstance(value, list) or key < 2 or key == len(value) - 1:
            yield from list_places(each, (*place, key))


WRONG: tuple[Any, ...] = (
    None, True, 0, 1, -1, 2, 7, 10**30, 10**400, 0.5, -0.0, 1e-320, 1e300, -1e300, math.nan, math.inf, -math.inf, "",
    "x", "0.5", "nan", "uncertain", "out_of_distribution", "PNEUMONIA", "../../etc/passwd", "\ud800", "\x1b[2J",
    "x" * 5000, [], [0.5, 0.1], [1, 1], [None], ["NORMAL", "NORMAL"], [[0, 1], [0, 0]], {}, {"x": 1},
    {"x": {"y": [{}]}},
)  # fmt: skip
TURNS: tuple[Callable[[Any], Any], ...] = (
    lambda value: value[::-1] if isinstance(value, list | str) else value,
    lambda value: [*value, *value] if isinstance(value, list) else value,
    lambda value: [value],
    lambda value: -value if isinstance(value, int | float) else value,
    lambda value: value * 1e12 if isinstance(value, int | float) else value,
    lambda value: str(value),
    lambda value: {**value, "surplus": 1} if isinstance(value, dict) else value,
    lambda value: dict(list(value.items())[1:]) if isinstance(value, dict) else value,
)


@settings(max_examples=int(os.environ.get("EXAMPLES", "60")), deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(data=st.data())
def test_any_changed_value_is_refused_or_gives_finite_numbers(data: st.DataObject, run: Run, image: Path,
                                                             tmp_path: Path) -> None:  # fmt: skip
    folder = tmp_path / "model"
    if not folder.exists():
        shutil.copytree(run.model, folder)
    original = read(run.model)
    groups: dict[Any, list[tuple[Any, ...]]] = {}
    for place in list_places(original):
        groups.setdefault(place[:3] if place[0] == "decisions" else place[:1], []).append(place)
    values = copy.deepcopy(original)
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(groups[data.draw(st.sampled_from(sorted(groups, key=str)))]))
        holder = values
        try:
            for key in place[:-1]:
                holder = holder[key]
            turn = data.draw(st.none() | st.sampled_from(TURNS))
            wrong = copy.deepcopy(data.draw(st.sampled_from(WRONG)))
            holder[place[-1]] = wrong if turn is None else turn(holder[place[-1]])
        except (KeyError, IndexError, TypeError):  # the first change took this place away
            continue
    rewrite(folder, values)
    try:
        predictor = load(folder, "cpu", engine="onnx")
    except ModelError:
        return
    (prediction,) = predictor.predict(image)
    assert prediction.error is None
    assert prediction.decision in (*predictor.model.labels, "uncertain", "out_of_distribution")
    numbers = [prediction.ood_score, *(prediction.probabilities or {}).values(), *(prediction.logits or ())]
    assert np.isfinite([number for number in numbers if number is not None]).all()
    assert sum((prediction.probabilities or {}).values()) == pytest.approx(1)


def change_in(place: str, value: Any) -> Change:
    """Return a change of one value, by its place such as `decisions.threshold.value`."""

    def change(values: dict[str, Any]) -> None:
        *holders, last = place.split(".")
        for key in holders:
            values = values[key]
        values[last] = value(values[last]) if callable(value) else value

    return change


def falling(values: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: each[::-1] for name, each in values.items()}


CONTRADICTIONS = {
    "the positive label is the first": (change_in("positive", "NORMAL"), "positive: 'NORMAL'.*must be 'PNEUMONIA'"),
    "no label is positive": (change_in("positive", None), "positive: None"),
    "a label is not the positive one": (change_in("labels", ["NORMAL", "uncertain"]), "positive"),
    "a label is there twice": (change_in("labels", ["PNEUMONIA", "PNEUMONIA"]), "labels: one is there twice"),
    "a label is empty": (change_in("labels", ["", "PNEUMONIA"]), "labels.0: .*at least 1 char"),
    "a class of share 0": (change_in("decisions.calibration.class_fractions", [0, 1]), "class_fractions.0"),
    "shares beyond 1": (change_in("decisions.calibration.class_fractions", [0.7, 0.7]), "add up to 1.4, not 1"),
    "a slope of none": (change_in("decisions.calibration", {"slope": 2, "class_fractions": [0.5, 0.5]}), "no slope"),
    "knots that fall": (
        change_in("decisions.calibration", {"method": "isotonic", "class_fractions": [0.5, 0.5],
                                            "knots": [[0, 0.5], [1, 0.1]]}), "knots do not rise",
    ),
    "knots at one logit": (
        change_in("decisions.calibration", {"method": "isotonic", "class_fractions": [0.5, 0.5],
                                            "knots": [[0, 0.1], [0, 0.5]]}), "knots do not rise",
    ),
    "a threshold beside its rule": (change_in("decisions.threshold", {"value": 0.9, "rule": "0.5"}), "its rule says"),
    "a threshold of no cost": (change_in("decisions.threshold", {"value": 0.9, "rule": "cost=5"}), "its rule says"),
    "a threshold of NaN": (change_in("decisions.threshold.value", math.nan), "finite"),
    "scores that fall": (change_in("decisions.prediction_sets.scores", falling), "prediction sets.*must rise"),
    "distances that fall": (change_in("decisions.ood.distances", falling), "OOD detector.*must rise"),
    "distances of NaN": (change_in("decisions.ood.distances.NORMAL", [math.nan]), "finite"),
    "distances of other classes": (change_in("decisions.ood.distances", {"A": [1]}), "for other classes"),
    "ages from 5 to 1": (change_in("decisions.scope.ages", [5, 1]), "ages from 5 to 1"),
    "a mean of NaN": (change_in("input.mean", [0.5, math.nan, 0.5]), "finite"),
    "a scale of 0": (change_in("input.std", [0.5, 0, 0.5]), r"std\.1"),
    "a file elsewhere": (change_in("files", {"../network.onnx": "0" * 64}), "not a file of a model"),
    "half an OpenVINO model": (change_in("files", {"model.xml": "0" * 64}), "belong together"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_model_that_contradicts_itself_is_refused(name: str, model: Path) -> None:
    change, message = CONTRADICTIONS[name]
    values = read(model)
    change(values)
    rewrite(model, values)
    with pytest.raises(ModelError, match=message):
        load(model)


@pytest.mark.parametrize("word", ["uncertain", "out_of_distribution"])
def test_a_class_cannot_have_the_name_of_a_decision(word: str, model: Path) -> None:
    rewrite(model, json.loads(json.dumps(read(model)).replace('"PNEUMONIA"', f'"{word}"')))
    with pytest.raises(ModelError, match=f"the class {word} has the name of a decision"):
        load(model)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "name", ["head.weight", "head.bias", "backbone.network.conv_stem.weight", "ood.mean", "ood.rest"]
)
def test_weights_that_are_not_finite_are_refused(name: str, value: float, model: Path) -> None:
    def change(arrays: dict[str, Any]) -> None:
        arrays[name] = arrays[name].copy()
        arrays[name].flat[-1] = value

    rewrite_weights(model, change)
    with pytest.raises(ModelError, match=f"{name}.*not finite"):
        load(model)


@pytest.mark.parametrize("part", ["features", "intermediate"])
def test_a_number_that_is_not_finite_makes_an_error_row(part: str, run: Run, image: Path) -> None:
    predictor = load(run.model, engine="onnx")
    own = predictor.engine.run

    class Broken:
        """An engine whose features, or the intermediate ones alone, overflow."""

        fingerprint, batch_size, width = "broken", 8, predictor.engine.width

        def run(self, inputs: Any, maps: bool = False) -> Any:
            found = own(inputs, maps)
            getattr(found, part)[:] = np.nan
            return found

    broken = load(run.model, engine=Broken())
    for prediction in (*broken.predict([image, image]), *broken.run([image], maps=True)):
        assert "not finite" in str(prediction.error)
        assert (prediction.decision, prediction.probability, prediction.ood_score) == (None, None, None)


@pytest.mark.parametrize("file", ["model.json", "weights.safetensors", "network.onnx"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_only_regular_files_are_read(file: str, kind: str, model: Path) -> None:
    (model / file).unlink()
    if kind == "pipe":
        os.mkfifo(model / file)
    elif kind == "device":
        (model / file).symlink_to("/dev/zero")
    else:
        (model / file).mkdir()
    with pytest.raises(ModelError, match=file):
        load(model, engine="onnx")


@pytest.mark.parametrize("file", ["model.json", "weights.safetensors", "network.onnx"])
def test_a_file_of_any_size_is_not_read(file: str, model: Path) -> None:
    with (model / file).open("r+b") as sparse:
        sparse.truncate(2**40)
    with pytest.raises(ModelError, match=r"1,099,511,627,776 bytes; the limit is"):
        load(model, engine="onnx")


def test_a_link_to_a_regular_file_is_followed(model: Path, tmp_path: Path, run: Run) -> None:
    (model / "model.json").rename(tmp_path / "elsewhere.json")
    (model / "model.json").symlink_to(tmp_path / "elsewhere.json")
    assert load_model(model) == load_model(run.model)
