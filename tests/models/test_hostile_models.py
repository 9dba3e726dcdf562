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


FUZZ = settings(
    max_examples=int(os.environ.get("EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def copy_once(run: Run, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    if not folder.exists():
        shutil.copytree(run.model, folder)
    return folder


@FUZZ
@given(data=st.data())
def test_any_changed_value_is_refused_or_gives_finite_numbers(data: st.DataObject, run: Run, image: Path,
                                                             tmp_path: Path) -> None:  # fmt: skip
    folder = copy_once(run, tmp_path)
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
    "a label occurs twice": (change_in("labels", ["PNEUMONIA", "PNEUMONIA"]), "labels: one occurs twice"),
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
    "thresholds by class of two": (change_in("decisions.class_thresholds", [0.5, 0.5]), "more than two classes"),
    "a threshold by class of 0": (change_in("decisions.class_thresholds", [0, 0.5, 0.5]), "class_thresholds.0"),
    "scores that fall": (change_in("decisions.prediction_sets.scores", falling), "prediction sets.*must be sorted"),
    "distances that fall": (change_in("decisions.ood.distances", falling), "OOD detector.*must be sorted"),
    "distances of NaN": (change_in("decisions.ood.distances.NORMAL", [math.nan]), "finite"),
    "distances of other classes": (change_in("decisions.ood.distances", {"A": [1]}), "its classes are "),
    "ages from 5 to 1": (change_in("decisions.scope.ages", [5, 1]), "the youngest"),
    "a mean of NaN": (change_in("input.mean", [0.5, math.nan, 0.5]), "finite"),
    "a scale of 0": (change_in("input.std", [0.5, 0, 0.5]), r"std\.1"),
    "a file elsewhere": (change_in("files", {"../network.onnx": "0" * 64}), "not a file of a model"),
    "counts that are text": (change_in("data.counts", {"train": {"NORMAL": "many"}}), "data.counts"),
    "digests that are numbers": (change_in("data.seen", [1]), "data.seen"),
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


Parts = list[tuple[str, list[str], list[str], dict[str, Any]]]

# Operations that lead from `input` to `x`, which is then added to the features; every one takes or makes too much.
BOMBS: dict[str, tuple[Parts, dict[str, list[int] | float], str]] = {
    "a tensor of 2^62 numbers": ([("ConstantOfShape", ["n"], ["x"], {})], {"n": [2**62]}, "numbers"),
    "a tensor that doubles 60 times": (
        [("Concat", [f"x{i}", f"x{i}"], [f"x{i + 1}" if i < 59 else "x"], {"axis": 0}) for i in range(60)],
        {"x0": [1, 2]}, "numbers",
    ),
    "an image that doubles 60 times": (
        [("Concat", [f"x{i}" if i else "input"] * 2, [f"x{i + 1}" if i < 59 else "x"], {"axis": 2}) for i in range(60)],
        {}, "numbers",
    ),
    "a tile of 2^40": ([("Tile", ["input", "n"], ["x"], {})], {"n": [1, 1, 2**20, 2**20]}, "numbers"),
    "an expansion": ([("Expand", ["one", "n"], ["x"], {})], {"one": 1.0, "n": [2**31, 2**31]}, "numbers"),
    "a range": ([("Range", ["a", "n", "b"], ["x"], {})], {"a": [0], "n": [2**40], "b": [1]}, "numbers"),
    "a frame": ([("Pad", ["input", "n"], ["x"], {})], {"n": [0, 0, 2**30, 2**30, 0, 0, 0, 0]}, "numbers"),
    "an enlargement": ([("Resize", ["input", "", "", "n"], ["x"], {})], {"n": [1, 3, 2**20, 2**20]}, "numbers"),
    "a square of the batch": (
        [("Shape", ["input"], ["s"], {}), ("Mul", ["s", "s"], ["q"], {}), ("Mul", ["q", "q"], ["r"], {}),
         ("ConstantOfShape", ["r"], ["x"], {})], {}, "numbers",
    ),
    "a size that the image says": (
        [("Cast", ["input"], ["i"], {"to": 7}), ("ConstantOfShape", ["i"], ["x"], {})], {}, "depends on the image",
    ),
    "numbers that overflow": (
        [("Mul", ["n", "n"], ["m"], {}), ("ConstantOfShape", ["m"], ["x"], {})], {"n": [2**32 + 1]},
        "depends on the image",
    ),
    "a thousand products": (
        [("MatMul", ["input" if i == 0 else f"x{i}", "input"], [f"x{i + 1}" if i < 19_999 else "x"], {})
         for i in range(20_000)], {}, "operations; the limit|multiplications|numbers",
    ),
    "an operation that nobody knows": ([("NonZero", ["input"], ["x"], {})], {}, "'NonZero' is not known"),
    "a division by 0": ([("Div", ["n", "m"], ["x"], {})], {"n": [1], "m": [0]}, "division by 0"),
}  # fmt: skip


def rewrite_graph(folder: Path, change: Callable[[Any], None]) -> None:
    """Change a model's graph in place, and its checksums with it."""
    import onnx

    network = onnx.load(folder / "network.onnx", load_external_data=False)
    change(network.graph)
    content = network.SerializeToString()
    (folder / "network.onnx").write_bytes(content)
    rewrite(folder, {**read(folder), "files": {"network.onnx": hashlib.sha256(content).hexdigest()}})


def add_to_features(graph: Any, parts: Parts, constants: dict[str, list[int] | float]) -> None:
    from onnx import TensorProto, helper

    for node in graph.node:
        node.output[:] = ["own" if name == "features" else name for name in node.output]
    for name, value in constants.items():
        array = np.asarray(value)
        number = TensorProto.INT64 if array.dtype.kind == "i" else TensorProto.FLOAT
        graph.initializer.append(helper.make_tensor(name, number, array.shape, array.ravel()))
    for kind, inputs, outputs, attributes in parts:
        graph.node.append(helper.make_node(kind, inputs, outputs, **attributes))
    graph.node.append(helper.make_node("Cast", ["x"], ["c"], to=TensorProto.FLOAT))
    graph.node.append(helper.make_node("ReduceMean", ["c"], ["r"], keepdims=0))
    graph.node.append(helper.make_node("Add", ["own", "r"], ["features"]))


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
@pytest.mark.parametrize("name", BOMBS)
def test_a_graph_that_takes_too_much_is_refused_before_it_is_opened(
    name: str, engine: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pneumoscope.inference import engines

    parts, constants, message = BOMBS[name]
    rewrite_graph(model, lambda graph: add_to_features(graph, parts, constants))
    for runtime in ("OnnxEngine", "OpenVinoEngine"):
        monkeypatch.setattr(engines, runtime, None)
    with pytest.raises(ModelError, match=f"this graph is not run: .*({message})"):
        load(model, engine=engine)


def test_a_loop_a_branch_and_a_function_are_refused(model: Path) -> None:
    from onnx import TensorProto, helper

    def add_loop(graph: Any) -> None:
        inside = helper.make_graph(
            [helper.make_node("Identity", ["on"], ["again"])], "inside",
            [helper.make_tensor_value_info("i", TensorProto.INT64, []),
             helper.make_tensor_value_info("on", TensorProto.BOOL, [])],
            [helper.make_tensor_value_info("again", TensorProto.BOOL, [])],
        )  # fmt: skip
        graph.initializer.append(helper.make_tensor("n", TensorProto.INT64, [], [2**62]))
        graph.node.append(helper.make_node("Loop", ["n", ""], [], body=inside))

    rewrite_graph(model, add_loop)
    with pytest.raises(ModelError, match="a graph or a function"):
        load(model, engine="onnx")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "/etc/passwd"}, "reads '/etc/passwd'"),
        ({"location": "pipe"}, "reads 'pipe'"),
        ({"location": "../model/weights.safetensors"}, "reads '../model"),
        ({"offset": str(2**40)}, "bytes of weights.safetensors"),
        ({"offset": "-8"}, "reads 'weights.safetensors'"),
        ({"length": str(2**40)}, "bytes of weights.safetensors"),
    ],
)
def test_a_graph_reads_only_the_weights_beside_it(entries: dict[str, str], message: str, model: Path) -> None:
    def change(graph: Any) -> None:
        for tensor in graph.initializer:
            for entry in tensor.external_data:
                entry.value = entries.get(entry.key, entry.value)

    os.mkfifo(model / "pipe")
    rewrite_graph(model, change)
    with pytest.raises(ModelError, match=message):
        load(model, engine="onnx")


def test_shapes_larger_than_their_content_are_refused(model: Path) -> None:
    def change(graph: Any) -> None:
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name == "value" and attribute.t.dims:
                    attribute.t.dims[0] = 2**62

    rewrite_graph(model, change)
    with pytest.raises(ModelError, match=r"(bytes|numbers) for the shape"):
        load(model, engine="onnx")


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_an_input_of_another_size_than_the_graphs_is_refused(engine: Any, model: Path) -> None:
    values = read(model)
    values["input"]["size"] = 160
    rewrite(model, values)
    with pytest.raises(ModelError, match="not 3 channels of 160 x 160"):
        load(model, engine=engine)


def test_a_detector_of_other_features_is_refused(model: Path) -> None:
    def change(arrays: dict[str, Any]) -> None:
        arrays["ood.mean"] = arrays["ood.mean"][1:].copy()
        arrays["ood.directions"] = arrays["ood.directions"][:, 1:].copy()

    rewrite_weights(model, change)
    with pytest.raises(ModelError, match="intermediate features"):
        load(model, engine="onnx")


@FUZZ
@given(data=st.data())
def test_any_changed_byte_of_a_graph_is_refused_or_gives_numbers(data: st.DataObject, run: Run, image: Path,
                                                                tmp_path: Path) -> None:  # fmt: skip
    folder = copy_once(run, tmp_path)
    content = bytearray((run.model / "network.onnx").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "network.onnx").write_bytes(content)
    rewrite(folder, {**read(run.model), "files": {"network.onnx": hashlib.sha256(content).hexdigest()}})
    try:
        (prediction,) = load(folder, "cpu", engine="onnx").predict(image)
    except ModelError:
        return
    assert prediction.error is None or "not finite" in prediction.error


def test_a_network_that_timm_knows_but_the_weights_do_not_is_not_built(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pneumoscope.models import backbones

    monkeypatch.setattr(backbones, "build_backbone", None)
    rewrite(model, {**read(model), "architecture": "vit_gigantic_patch14_clip_224"})
    with pytest.raises(ModelError, match="they are not those of vit_gigantic"):
        load(model, engine="torch")
