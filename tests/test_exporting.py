"""Exports, each run from its files on images that it has not seen."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import dicom
from PIL import Image

import pneumoscope
from pneumoscope.datasets.columns import Naming
from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.samples import Sample
from pneumoscope.errors import DataError, MissingExtraError, ModelError, UsageError
from pneumoscope.evaluation.conversion_check import compare
from pneumoscope.exporting import Format, export
from pneumoscope.images.dicom import Tags
from pneumoscope.images.read import Reading
from pneumoscope.inference.cache import FeatureCache
from pneumoscope.inference.engines import Kind, OnnxEngine, OpenVinoEngine, ProgramEngine, TorchEngine
from pneumoscope.inference.features import read_inputs
from pneumoscope.inference.prediction import Prediction
from pneumoscope.inference.predictor import Predictor, load
from pneumoscope.models.model_folder import GRAPH, load_model, load_weights, save_model
from pneumoscope.models.pretrained import find_pretrained
from pneumoscope.training.train import Run, train

KINDS: tuple[tuple[Format, type], ...] = (
    ("onnx", OnnxEngine),
    ("openvino", OpenVinoEngine),
    ("torch", ProgramEngine),
)


def open_export(folder: Path, to: Format) -> Predictor:
    return load(folder / to, engine="program" if to == "torch" else "auto")


@pytest.fixture(scope="module")
def exports(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    for to, _ in KINDS:
        export(folder / to, run.folder, to)
    return folder


@pytest.mark.parametrize(("to", "kind"), KINDS)
def test_an_export_decides_as_the_model_does(to: Format, kind: type, exports: Path, run: Run, images: Path) -> None:
    files = sorted((images / "test").rglob("*.png"))
    own, other = load(run.model, engine="torch"), open_export(exports, to)
    assert isinstance(other.engine, kind)
    assert not any(path.name == "weights.safetensors" and path.stat().st_size > 2e6 for path in exports.rglob("*"))
    for one, same in zip(own.predict(files), other.predict(files), strict=True):
        assert (one.decision, one.prediction_set) == (same.decision, same.prediction_set)
        assert one.raw_probability == pytest.approx(same.raw_probability, abs=1e-5)
        assert one.ood_score == pytest.approx(same.ood_score, rel=1e-4)
    report = json.loads((exports / to / "export.json").read_text())
    assert (report["to"], report["changed"], report["images"]) == (to, 0, 12)
    assert report["auroc"][0] == pytest.approx(report["auroc"][1])


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_every_engine_gives_the_same_answer_and_the_same_map(engine: str, run: Run, images: Path) -> None:
    files = sorted((images / "test").rglob("*.png"))[:4]
    plain, fast = load(run.model, engine="torch"), load(run.model, engine=engine)  # type: ignore[arg-type]
    for file in files:
        one, same = pneumoscope.explain(file, plain).evidence, pneumoscope.explain(file, fast).evidence
        assert one is not None
        assert same is not None
        np.testing.assert_allclose(one.cells, same.cells, atol=1e-4)
        assert same.cells.mean() + same.bias == pytest.approx(same.logit, abs=1e-5)


def test_real_images_get_the_same_answer_from_every_engine_and_export(real_data: Path, tmp_path: Path) -> None:
    images = [image for image in read_samples(real_data / "seed-400") if image.split == "test"][::5]
    own = load(engine="torch").predict(images)
    others = {engine: load(engine=engine) for engine in ("onnx", "openvino")}
    for to, _ in KINDS:
        export(tmp_path / to, find_pretrained(), to, real_data / "seed-400")
        others[f"exported, {to}"] = open_export(tmp_path, to)
    for name, predictor in others.items():
        for one, same in zip(own, predictor.predict(images), strict=True):
            assert (one.decision, one.prediction_set) == (same.decision, same.prediction_set), name
            assert one.raw_probability == pytest.approx(same.raw_probability, abs=1e-4), name
            assert one.ood_score == pytest.approx(same.ood_score, rel=1e-4), name


def test_a_processor_takes_the_graph_where_there_is_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(load(run.model, "cpu").engine, OpenVinoEngine)  # it runs this network faster
    assert isinstance(load(run.model, "cpu", engine="torch").engine, TorchEngine)
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert isinstance(load(run.model, "cpu").engine, OnnxEngine)
    assert (run.model / GRAPH).stat().st_size < 300_000  # its weights are the model's


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_threads_share_a_batch_and_keep_its_order(run: Run, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    engine = load(run.model, "cpu", engine=kind).engine
    size = load_model(run.model).input.size
    inputs = np.random.default_rng(0).normal(size=(7, 3, size, size)).astype(np.float32)
    alone = [engine.run(each[None], maps=True) for each in inputs]
    with ThreadPoolExecutor(4) as callers:
        for found in callers.map(lambda maps: engine.run(inputs, maps), [True, False] * 4):
            for name in ("features", "intermediate", *(["maps"] if found.maps is not None else [])):
                whole = getattr(found, name)
                parts = np.concatenate([getattr(one, name) for one in alone])
                np.testing.assert_allclose(whole, parts, rtol=1e-4, atol=1e-5 * float(np.abs(parts).max()))


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_threads_that_run_first_at_the_same_time_do_not_block_each_other(run: Run, kind: Kind) -> None:
    script = f"""if True:
        import threading
        from concurrent.futures import ThreadPoolExecutor
        import numpy as np
        import pneumoscope
        engine = pneumoscope.load({str(run.model)!r}, engine={kind!r}).engine
        done = threading.Event()
        def work():
            while not done.is_set():
                sum(range(200))
        for _ in range(2):
            threading.Thread(target=work, daemon=True).start()
        inputs = np.zeros((8, 3, 128, 128), np.float32)
        with ThreadPoolExecutor(4) as callers:
            print(sum(len(found.features) for found in callers.map(engine.run, [inputs] * 4)))
        done.set()
        """
    for _ in range(3):  # the threads do not always meet
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout == "32\n"


def test_the_metadata_of_a_graph_say_how_to_prepare_and_decide(exports: Path, images: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(exports / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    metadata = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    model = load_model(exports / "onnx")
    assert metadata["pneumoscope.labels"] == list(model.labels)
    assert metadata["pneumoscope.input"]["size"] == model.input.size
    assert metadata["pneumoscope.decisions"] == model.decisions
    image = pneumoscope.load(exports / "onnx").predict(file := next((images / "test" / "NORMAL").iterdir()))[0]
    (logits,) = session.run(["logits"], {"input": read_inputs(Sample(file, "NORMAL"), model.input)})
    assert logits[0, 0] == pytest.approx(image.logits[0], abs=1e-4)


GUIDE = Path(__file__).parents[1] / "docs" / "guide" / "export.md"


def read_guide(pads: bool = False, classes: int = 2, grouped: bool = False) -> str:
    """The guide's program for two classes, with the lines that the guide gives for other models."""
    blocks = re.findall(r"```(\w*)\n(.*?)```\n", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    code, *others, group = (block for language, block in blocks if language in ("python", ""))
    names = (("resized", "square"), ("positive", "predicted"))
    for lines, (first, last), needed in zip(others, names, (pads, classes > 2), strict=True):
        if needed:
            (replaced,) = re.findall(rf"^{first} = .*?^{last} = [^\n]*\n", code, re.DOTALL | re.MULTILINE)
            code = code.replace(replaced, lines)
    return str(
        code.replace("positive = 1 /", f'group = rules["groups"][0]\n{group}positive = 1 /') if grouped else code
    )


def test_the_program_of_the_guide_is_short_and_readable() -> None:
    lines = [line for line in read_guide().splitlines() if line and not line.startswith(("import", "from", "#"))]
    assert len(lines) <= 21
    assert not [line for line in lines if len(line) > 100 or ";" in line]


def craft(
    folder: Path, run: Run, fit: str, classes: int = 2, thresholds: Sequence[float] = (), **calibration: Any
) -> Path:
    """The run's model with another fit, calibration or number of classes."""
    import torch

    model = load_model(run.model)
    state = load_weights(run.model, model)
    labels = ("A", "B", "C")[:classes]
    decisions = {**model.decisions, "calibration": {"class_fractions": [1 / classes] * classes, **calibration}}
    for group, key in (("prediction_sets", "scores"), ("ood", "distances")):
        (first, second) = model.decisions[group][key].values()
        values = dict(zip(labels, (first, second, second), strict=False))
        decisions[group] = {**model.decisions[group], key: values}
    if classes > 2:
        decisions |= {"threshold": None, "class_thresholds": thresholds}
        state["head.weight"] = torch.cat([state["head.weight"] * scale for scale in (1.0, -0.5, 0.3)])
        state["head.bias"] = torch.tensor([0.1, 0.2, -0.3])
    changed = replace(
        model, labels=labels, positive="B" if classes == 2 else None, decisions=decisions,
        input=replace(model.input, fit=fit),  # type: ignore[arg-type]
    )  # fmt: skip
    save_model(folder, changed, state)
    return folder


@pytest.mark.parametrize(
    ("fit", "classes", "calibration"),
    [
        ("crop", 2, {"method": "platt", "slope": 0.7, "intercept": -0.2, "offset": [0.3, -0.4]}),
        ("pad", 2, {"method": "isotonic", "knots": [[-1, 0.1], [0, 0.4], [0.5, 0.9]]}),
        ("squash", 3, {"method": "temperature", "slope": 1.5, "offset": [0.1, 0.2, 0.3]}),
        ("pad", 3, {}),
        ("pad", 3, {"thresholds": [0.2, 0.7, 0.1]}),
        ("pad", 3, {"thresholds": [0.7, 0.1, 0.2]}),
    ],
)
def test_an_onnx_file_decides_alone_as_the_guide_shows(
    fit: str, classes: int, calibration: dict[str, Any], run: Run, images: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    export("runs/onnx", craft(tmp_path / "model", run, fit, classes, **calibration), data=images)
    code = read_guide(pads=fit == "pad", classes=classes)
    predictor = load("runs/onnx", engine="onnx")
    (image,) = [next((images / "test" / "PNEUMONIA").iterdir())]
    for shape in ((180, 133), (97, 301), (128, 128)):
        with Image.open(image) as opened:
            opened.convert("L").resize(shape[::-1]).save("scan.png")
        exec(code, found := dict[str, Any]())
        (prediction,) = predictor.predict("scan.png")
        probabilities = list((prediction.probabilities or {}).values())
        assert found["decision"] == prediction.decision, shape
        assert tuple(found["sets"]) == prediction.prediction_set
        assert found["predicted"] == prediction.predicted_label
        assert found["probabilities"].tolist() == pytest.approx(probabilities, abs=1e-6)
        assert found["score"] == pytest.approx(prediction.ood_score, abs=1e-6)


def test_an_onnx_file_decides_on_a_group_as_the_guide_shows(
    run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    labels = ("A", "B")
    sets = {"alpha": 0.1, "scores": dict.fromkeys(labels, (0.2, 0.4, 0.6, 0.8, *[0.9] * 8))}
    limits = {"method": "mahalanobis", "false_alarms": 0.05, "distances": dict.fromkeys(labels, (*[0.5] * 19, 9.0))}
    group = {
        "name": "adults", "scope": {"ages": [18, 120]}, "slope": 2.0, "intercept": -0.3, "prediction_sets": sets,
        "ood": limits, "images": {},
    }  # fmt: skip
    folder = craft(tmp_path / "model", run, "crop", method="platt", slope=0.7, intercept=-0.2)
    model = load_model(folder)
    save_model(folder, replace(model, decisions={**model.decisions, "groups": [group]}), load_weights(folder, model))
    export("runs/onnx", folder, data=images)
    shutil.copy(next((images / "test" / "PNEUMONIA").iterdir()), "scan.png")
    exec(read_guide(grouped=True), found := dict[str, Any]())
    (prediction,) = load("runs/onnx", engine="onnx").predict([Sample(Path("scan.png"), tags=Tags(age=40.0))])
    assert prediction.group == "adults"
    assert found["decision"] == prediction.decision
    assert tuple(found["sets"]) == prediction.prediction_set
    assert found["probabilities"].tolist() == pytest.approx(list((prediction.probabilities or {}).values()), abs=1e-6)
    assert found["score"] == pytest.approx(prediction.ood_score, abs=1e-6)


def test_an_export_is_a_public_function_with_the_defaults_of_the_command(run: Run, tmp_path: Path) -> None:
    done: pneumoscope.Export = pneumoscope.export(tmp_path / "out", run.folder)
    assert (done.folder / "model.onnx").is_file()
    assert done.check.changed == 0


def test_eight_bits_are_refused_where_they_change_too_much(run: Run, tmp_path: Path) -> None:
    try:
        done = export(tmp_path / "int8", run.folder, "int8")
    except DataError as problem:
        assert "Nothing was written" in str(problem)  # noqa: PT017 - either is right
        assert not (tmp_path / "int8").exists()
    else:
        assert done.check.changed <= 0.005 * done.check.images
        assert done.check.auroc is not None
        assert done.check.auroc[0] - done.check.auroc[1] <= 0.002
        assert isinstance(load(tmp_path / "int8").engine, OnnxEngine)


def test_an_export_that_decides_differently_is_not_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pneumoscope.models import onnx_graphs as graphs

    own = graphs.Description.forward
    monkeypatch.setattr(graphs.Description, "forward", lambda self, inputs: own(self, inputs * 0.5))
    with pytest.raises(DataError, match=r"decisions change.*Nothing was written"):
        export(tmp_path / "out", run.folder, "onnx")
    assert not (tmp_path / "out").exists()


def test_an_export_needs_images_and_a_model(run: Run, exports: Path, images: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(run.model, tmp_path / "alone"))
    with pytest.raises(UsageError, match="images like those it was trained on as `data`"):
        export(tmp_path / "a", alone, "onnx")
    assert export(tmp_path / "a", alone, "onnx", images).check.images == 12
    with pytest.raises(UsageError, match="already an export"):
        export(tmp_path / "b", exports / "onnx", "openvino", images)
    assert not (tmp_path / "b").exists()
    with pytest.raises(UsageError, match="overwrite=True"):
        export(tmp_path / "a", alone, "onnx", images)


def rewrite(folder: Path, **changes: Any) -> None:
    """Change a model's description, and its checksum with it."""
    path = folder / "model.json"
    values = json.loads(path.read_text()) | changes
    values.pop("checksum")
    values["checksum"] = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(values))


def test_an_export_never_replaces_its_model(run: Run, images: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(run.model, tmp_path / "model"))
    (model / GRAPH).unlink()
    rewrite(model, files={})
    held = {path.name: path.read_bytes() for path in model.iterdir()}
    with pytest.raises(UsageError, match="not an earlier output"):
        export(model, model, "onnx", images, overwrite=True)
    assert {path.name: path.read_bytes() for path in model.iterdir()} == held


def test_an_earlier_export_stays_until_a_better_one_is_there(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pneumoscope.models import onnx_graphs as graphs

    export(out := tmp_path / "out", run.folder, "onnx")
    held = {path.name: path.read_bytes() for path in out.iterdir()}
    own = graphs.Description.forward
    with monkeypatch.context() as patch:
        patch.setattr(graphs.Description, "forward", lambda self, inputs: own(self, inputs * 0.5))
        with pytest.raises(DataError, match="Nothing was written"):
            export(out, run.folder, "onnx", overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == held
    export(out, run.folder, "openvino", overwrite=True)
    assert (out / "model.xml").is_file()
    assert not (out / "model.onnx").exists()
    assert "Format: openvino. Checked on 12 images" in (out / "README.md").read_text()


def test_an_image_that_cannot_be_read_stops_no_export(
    run: Run, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = Path(shutil.copytree(images, tmp_path / "data"))
    for image in (*(data / "train" / "NORMAL").iterdir(), next((data / "test" / "NORMAL").iterdir())):
        image.write_bytes(b"no image")
    try:
        assert export(tmp_path / "int8", run.model, "int8", data).check.images == 11
    except DataError as problem:
        assert "of 11 decisions" in str(problem)  # noqa: PT017 - refused for what it changes
    assert "Images that cannot be read and are left out: 12." in caplog.text


def test_features_of_another_graph_are_not_taken_from_the_cache(run: Run, images: Path, tmp_path: Path) -> None:
    import onnx

    folder = Path(shutil.copytree(run.model, tmp_path / "crafted"))
    network = onnx.load(folder / GRAPH, load_external_data=False)
    for node in network.graph.node:
        node.output[:] = ["features.true" if name == "features" else name for name in node.output]
    network.graph.node.append(onnx.helper.make_node("Neg", ["features.true"], ["features"]))
    (folder / GRAPH).write_bytes(content := network.SerializeToString())
    rewrite(folder, files={GRAPH: hashlib.sha256(content).hexdigest()})
    image = next((images / "test" / "NORMAL").iterdir())
    expected = load(run.model, "cpu").predict(image)[0].logits
    with FeatureCache(tmp_path / "features.sqlite") as cache:
        assert load(folder, "cpu", cache).predict(image)[0].logits != pytest.approx(expected)
        assert load(run.model, "cpu", cache).predict(image)[0].logits == pytest.approx(expected)


def test_a_device_that_cannot_be_used_is_refused(run: Run) -> None:
    with pytest.raises(UsageError, match="auto, cpu or cuda"):
        load(run.model, "banana", engine="onnx")
    with pytest.raises(UsageError, match="on the processor only"):
        load(run.model, "cuda", engine="onnx")


def test_pytorch_is_left_as_it_was_by_engines_in_several_threads(run: Run) -> None:
    import torch

    def flags() -> tuple[bool, bool, bool]:
        cudnn = torch.backends.cudnn
        return cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32

    before = flags()
    engine = load(run.model, "cpu", engine="torch").engine
    size = load_model(run.model).input.size
    with ThreadPoolExecutor(4) as callers:
        list(callers.map(lambda _: engine.run(np.zeros((1, 3, size, size), np.float32)), range(20)))
    assert flags() == before


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "hf-hub:timm/resnet18.a1_in1k"},
        {"architecture": "no_such_network"},
        {"arguments": {"checkpoint_path": "/etc/hostname"}},
        {"arguments": {"pretrained": True}},
        {"arguments": {"head_norm_first": True}},  # of another network
        {"labels": ["NORMAL", "NORMAL"]},
        {"decisions": {"calibration": {"method": "platt", "intercept": float("nan")}}},
        {"decisions": {"calibration": {"slope": float("inf")}}},
    ],
    ids=str,
)
def test_a_model_with_invalid_values_is_refused(changes: dict[str, Any], run: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run.model, tmp_path / "crafted"))
    if "decisions" in changes:
        changes = {"decisions": load_model(run.model).decisions | changes["decisions"]}
    rewrite(folder, **changes)
    with pytest.raises(ModelError):
        load(folder, "cpu", engine="torch")


def test_weights_of_no_known_kind_are_refused(run: Run, tmp_path: Path) -> None:
    import safetensors.torch
    import torch

    for content in (b"no weights", safetensors.torch.save({"head.weight": torch.zeros(1, 4, dtype=torch.bfloat16)})):
        folder = Path(shutil.copytree(run.model, tmp_path / str(len(content))))
        (folder / "weights.safetensors").write_bytes(content)
        rewrite(folder, weights_sha256=hashlib.sha256(content).hexdigest())
        with pytest.raises(ModelError, match=r"weights\.safetensors: damaged"):
            load(folder)


def test_a_graph_that_takes_something_else_is_refused(run: Run) -> None:
    import onnx

    network = onnx.load(run.model / GRAPH)
    for node in network.graph.node:
        node.input[:] = ["x" if name == "input" else name for name in node.input]
    network.graph.input[0].name = "x"
    with pytest.raises(ModelError, match="not a graph made by pneumoscope"):
        OnnxEngine(network.SerializeToString(), "x")


def test_a_damaged_graph_is_found_and_another_one_refused(exports: Path, run: Run, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(exports / "onnx", tmp_path / "broken"))
    (broken / "model.onnx").write_bytes((broken / "model.onnx").read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"model\.onnx: damaged"):
        load(broken)
    with pytest.raises(ModelError, match="cannot open"):
        OnnxEngine(b"no graph", "x")
    with pytest.raises(UsageError, match="nothing that torch can run"):
        load(exports / "onnx", engine="torch")


def test_a_program_that_could_run_any_code_is_not_loaded_by_default(exports: Path) -> None:
    for engine in ("auto", "torch", "onnx"):
        with pytest.raises(UsageError, match="can run any code"):
            load(exports / "torch", engine=engine)


def test_a_graph_cannot_read_beyond_its_model(run: Run, tmp_path: Path) -> None:
    import onnx

    (tmp_path / "secret").write_bytes(bytes(5_000_000))
    folder = Path(shutil.copytree(run.model, tmp_path / "crafted"))
    network = onnx.load(folder / GRAPH, load_external_data=False)
    for tensor in network.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../secret"
            elif entry.key == "offset":
                entry.value = "0"
    (folder / GRAPH).write_bytes(network.SerializeToString())
    with pytest.raises(ModelError, match="cannot open"):
        OnnxEngine(folder / GRAPH, "x")


def test_a_crafted_openvino_model_is_refused_before_it_is_opened(exports: Path, run: Run, tmp_path: Path) -> None:
    import openvino
    from openvino import opset13

    folder = Path(shutil.copytree(exports / "openvino", tmp_path / "crafted"))
    size = load_model(folder).input.size
    image = opset13.parameter([-1, 3, size, size], np.float32, name="input")
    huge = opset13.broadcast(opset13.constant(np.float32(1)), opset13.constant(np.array([2**40], np.int64)))
    one = opset13.reduce_mean(huge, opset13.constant(np.array([0], np.int64)))
    features = opset13.add(opset13.reduce_mean(image, opset13.constant(np.array([2, 3], np.int64))), one)
    results = [opset13.result(each) for each in (features, image, features)]
    for result, name in zip(results, ("features", "map", "intermediate"), strict=True):
        result.output(0).tensor.names = {name}
    openvino.serialize(openvino.Model(results, [image]), folder / "model.xml")
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("model.xml", "model.bin")}
    rewrite(folder, files=digests)
    with pytest.raises(ModelError, match=r"operation Broadcast: its output has 1,099,511,627,776 numbers"):
        load(folder)
    whole = Path(shutil.copytree(exports / "openvino", tmp_path / "whole"))
    rewrite(whole, input=json.loads((whole / "model.json").read_text())["input"] | {"size": size + 32})
    with pytest.raises(ModelError, match="not 3 channels"):
        load(whole)


@pytest.mark.parametrize("to", ["onnx", "openvino", "torch"])
def test_an_export_is_read_from_regular_files(to: Format, exports: Path, tmp_path: Path) -> None:
    for name in load_model(exports / to).files:
        folder = Path(shutil.copytree(exports / to, tmp_path / name))
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(ModelError, match=f"{name}: not a regular file"):
            load(folder, engine="program" if to == "torch" else "auto")


def test_networks_with_attention_are_left_to_pytorch(images: Path, tmp_path: Path) -> None:
    import timm
    import torch

    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    torch.save(network.state_dict(), tmp_path / "vit.pth")
    run = train(images, tmp_path / "run", backbone="vit_tiny_patch16_224", weights=str(tmp_path / "vit.pth"),
                epochs=1, audit=False, resamples=10)  # fmt: skip
    assert isinstance(load(run.model, "cpu").engine, TorchEngine)
    assert export(tmp_path / "out", run.folder, "onnx").check.changed == 0
    # Its map mixes places, and the export gives no gradients: no explanation is better than a misleading one.
    image = next((images / "test" / "NORMAL").iterdir())
    with pytest.raises(UsageError, match="Integrated gradients need PyTorch"):
        pneumoscope.explain(image, load(tmp_path / "out"))
    explained = pneumoscope.explain(image, load(tmp_path / "out"), method="cam")
    assert explained.evidence is not None
    assert explained.evidence.method == "cam"


def test_a_trained_model_runs_where_torch_cannot_be_imported(run: Run, exports: Path, images: Path) -> None:
    image = next((images / "test" / "PNEUMONIA").iterdir())
    script = f"""if True:
        import sys
        for name in ("torch", "timm", "torchvision", "captum"):
            sys.modules[name] = None
        import pneumoscope
        for folder in {[str(run.model), str(exports / "onnx"), str(exports / "openvino")]}:
            predictor = pneumoscope.load(folder)
            (prediction,) = predictor.predict({str(image)!r})
            print(*prediction.logits, pneumoscope.explain({str(image)!r}, predictor).evidence.logit)
        """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    (expected,) = load(run.model, engine="torch").predict(image)
    for line in done.stdout.splitlines():
        assert [float(word) for word in line.split()] == pytest.approx([expected.logits[0]] * 2, abs=1e-4)
    assert len(done.stdout.splitlines()) == 3


def test_without_torch_nothing_is_begun_that_needs_it(
    run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pneumoscope.reports.audit_page import audit

    for name in ("torch", "timm", "pneumoscope.models.onnx_graphs", "pneumoscope.models.classifier"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match="quick=True"):
        audit(images, tmp_path / "audit")
    with pytest.raises(MissingExtraError, match=r"pneumoscope\[train\]"):
        export(tmp_path / "export", run.model, "onnx")
    assert not list(tmp_path.iterdir())


def test_what_needs_torch_says_how_to_get_it(images: Path, tmp_path: Path) -> None:
    script = f"""if True:
        import sys
        sys.modules["torch"] = None
        from pneumoscope.cli.main import main
        sys.argv = ["pneumoscope", "train", {str(images)!r}, "--out", {str(tmp_path / "run")!r}]
        main()
        """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 6
    assert 'pip install "pneumoscope[train]"' in done.stderr


def test_batches_of_any_size_are_run(run: Run) -> None:
    content = io.BytesIO()
    Image.fromarray(np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)).save(content, "PNG")
    alone = load(run.model, "cpu").predict([content.getvalue()])
    many = load(run.model, "cpu").predict([content.getvalue()] * 19)
    assert len(many) == 19
    for one in many:
        assert one.logits == pytest.approx(alone[0].logits, abs=1e-5)
    assert load(run.model, "cpu").predict([]) == []


def test_the_images_of_the_check_are_read_as_the_options_say(run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("NORMAL", "PNEUMONIA"):
        (tmp_path / "ct" / label).mkdir(parents=True)
        for i in range(2):
            levels = rng.integers(0, 4000, (80, 80)).astype(np.uint16)
            (tmp_path / "ct" / label / f"{i}.dcm").write_bytes(dicom(levels, Modality="CT"))
    with pytest.raises(DataError, match="None of the 4 images can be read"):
        export(tmp_path / "out", run.folder, "onnx", tmp_path / "ct")
    done = export(tmp_path / "out", run.folder, "onnx", tmp_path / "ct", reading=Reading(any_modality=True))
    assert (done.check.images, done.check.changed) == (4, 0)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"reading": Reading(invert=True)}, "invert"),
        ({"reading": Reading(any_modality=True)}, "any_modality"),
        ({"naming": Naming(label_column="finding")}, "label_column"),
        ({"naming": Naming(map="A=B")}, "map"),
    ],
)
def test_options_of_data_without_data_are_refused(options: dict[str, Any], name: str, run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"^{name}: no effect on the run's own images\. Pass `data` too"):
        export(tmp_path / "out", run.folder, "onnx", **options)
    assert not (tmp_path / "out").exists()


def test_a_decision_on_a_limit_that_rounding_changes_is_not_counted() -> None:
    def predict(probability: float, decision: str, error: str | None = None) -> Prediction:
        shares = None if error else {"NORMAL": 1 - probability, "PNEUMONIA": probability}
        return Prediction(path=Path("a.png"), probabilities=shares, decision=decision, ood_score=0.5, error=error)

    labels, samples = ("NORMAL", "PNEUMONIA"), [Sample(Path("a.png"))] * 2
    before = [predict(0.7, "PNEUMONIA"), predict(0.2, "NORMAL")]
    rounded = compare(before, [predict(0.7 - 6e-8, "uncertain"), predict(0.2, "NORMAL")], samples, labels)
    moved = compare(before, [predict(0.7 - 2e-5, "uncertain"), predict(0.2, "NORMAL")], samples, labels)
    assert (rounded.changed, moved.changed) == (0, 1)
    with pytest.raises(DataError, match="does not predict an image that the model predicts: not finite"):
        compare(before, [before[0], predict(0, "", "not finite")], samples, labels)
