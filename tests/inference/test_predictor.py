from __future__ import annotations

import io
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dicom_files import dicom, image
from PIL import Image

import pneumoscope
from pneumoscope.datasets.samples import Sample
from pneumoscope.decisions.decisions import read_decisions
from pneumoscope.decisions.scope import Scope
from pneumoscope.errors import MissingExtraError, UsageError
from pneumoscope.images.prepare import prepare
from pneumoscope.images.read import ImageBytes, read_bytes, read_pixels, read_radiograph
from pneumoscope.inference import features
from pneumoscope.inference.cache import FeatureCache
from pneumoscope.inference.engines import Array, TorchEngine
from pneumoscope.inference.features import Extract, Wanted, extract_features
from pneumoscope.inference.formats import write_predictions
from pneumoscope.inference.overlays import OverlayFolder
from pneumoscope.inference.prediction import count_warnings
from pneumoscope.inference.predictor import Predictor, load
from pneumoscope.inference.runtimes import choose_device
from pneumoscope.models.backbones import find_backbone, load_backbone
from pneumoscope.models.classifier import Classifier, build_head
from pneumoscope.models.model_folder import load_model, load_weights
from pneumoscope.training.train import Run


@pytest.fixture
def files(images: Path) -> list[Path]:
    return sorted((images / "test").rglob("*.png"))


def test_predictions_are_those_of_the_plain_network(run: Run, files: list[Path]) -> None:
    model = load_model(run.model)
    backbone = load_backbone(find_backbone(model.backbone))
    network = Classifier(backbone, build_head(backbone.width, 2)).eval()
    state = load_weights(run.model, model)
    network.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith("ood.")})
    with torch.inference_mode():
        inputs = torch.from_numpy(np.stack([prepare(read_pixels(file), model.input) for file in files]))
        logits = network(inputs)[:, 0]
    predictions = load(run.folder).predict(files)
    np.testing.assert_allclose([one.logits[0] for one in predictions], logits.numpy(), atol=1e-5)
    fitted = read_decisions(model).calibration
    assert fitted.method == "temperature"
    expected = torch.sigmoid(fitted.slope * logits).numpy()
    np.testing.assert_allclose([float(one.raw_probability or 0) for one in predictions], expected, atol=1e-5)
    for one, logit in zip(predictions, logits, strict=True):
        assert one.predicted_label == model.labels[int(logit >= 0)]
        assert one.probabilities is not None
        assert sum(one.probabilities.values()) == pytest.approx(1)


def test_one_path_many_paths_and_bytes_are_the_same(run: Run, files: list[Path]) -> None:
    predictor = pneumoscope.load(run.folder)
    (alone,) = predictor.predict(files[0])
    assert predictor.predict(str(files[0])) == [alone]
    among = predictor.predict(files)[0]
    # In a batch of another size the network's sums may be taken in another order.
    assert among.raw_probability == pytest.approx(alone.raw_probability, abs=1e-6)
    assert (among.path, among.decision, among.sha256) == (alone.path, alone.decision, alone.sha256)
    (from_bytes,) = predictor.predict(files[0].read_bytes())
    assert (from_bytes.path, from_bytes.probability) == (None, alone.probability)


def test_one_bad_file_never_stops_the_others(run: Run, files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"not an image")
    mixed: list[Path | bytes] = [files[0], tmp_path / "bad.png", tmp_path / "missing.png", files[1], b"", tmp_path]
    predictions = pneumoscope.load(run.folder).predict(mixed)
    assert [one.error is None for one in predictions] == [True, False, False, True, False, False]
    assert "bad.png" in str(predictions[1].error)
    assert predictions[1].probability is None
    assert [one.path for one in predictions][:4] == mixed[:4]


def test_order_is_kept_over_many_batches(run: Run, files: list[Path]) -> None:
    many = [files[i % len(files)] for i in range(50)]
    predictions = pneumoscope.load(run.folder).predict(many)
    assert [one.path for one in predictions] == many
    assert predictions[0].raw_probability == predictions[len(files)].raw_probability


def test_features_from_the_cache_are_the_computed_ones(images: Path, files: list[Path], tmp_path: Path) -> None:
    spec = find_backbone("efficientnet_lite0")
    engine = TorchEngine(load_backbone(spec), spec.input.size)
    path = tmp_path / "sub" / "features.sqlite"
    plain = [_features(one) for one in extract_features(files, engine, spec.input, Wanted(mirror=True))]
    for _ in range(2):
        with FeatureCache(path) as cache:
            cached = [_features(one) for one in extract_features(files, engine, spec.input, Wanted(mirror=True), cache)]
        for one, other in zip(plain, cached, strict=True):
            np.testing.assert_array_equal(one, other)
    mirrored = [np.ascontiguousarray(prepare(read_pixels(file), spec.input)[..., ::-1]) for file in files]
    np.testing.assert_allclose(engine.run(np.stack(mirrored)).features, np.stack(plain)[:, 1], atol=1e-5)


def test_a_threshold_of_one_s_own_moves_calls_and_nothing_else(run: Run, files: list[Path]) -> None:
    own = load(run.model, ood=False)
    before = own.predict(files)
    cut = sorted(one.raw_probability or 0.0 for one in before)[1]
    other = load(run.model, ood=False, threshold=cut)
    after = other.predict(files)
    assert [one.raw_probability for one in after] == [one.raw_probability for one in before]
    assert [one.prediction_set for one in after] == [one.prediction_set for one in before]
    assert [one.predicted_label for one in after] == [
        own.model.labels[(one.raw_probability or 0.0) >= cut] for one in before
    ]
    assert other.at_prevalence(0.01).threshold == cut  # a number is meant as a probability
    for wrong in (0.0, 1.0, 2.0):
        with pytest.raises(UsageError, match=r"^threshold: "):
            load(run.model, threshold=wrong)


def test_a_new_cache_that_another_program_is_making_is_waited_for(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "new.sqlite", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")  # under which SQLite refuses a change of journal at once, whatever its timeout
    with closing(other):
        release = threading.Timer(0.3, other.execute, ["COMMIT"])
        release.start()
        with FeatureCache(tmp_path / "new.sqlite") as cache:
            cache.put("network", [("image", np.ones((1, 2), np.float32))])
            np.testing.assert_array_equal(cache.get("image", "network"), np.ones((1, 2)))
        release.join()


def test_a_cache_is_looked_up_by_content_not_by_name(files: list[Path], tmp_path: Path) -> None:
    spec = find_backbone("efficientnet_lite0")
    engine = TorchEngine(load_backbone(spec), 64)
    look = type(spec.input)(64)
    copy = tmp_path / "image.png"
    with FeatureCache(tmp_path / "c.sqlite") as cache:
        found = []
        for file in (files[0], files[1], files[0]):
            shutil.copy(file, copy)
            found += [_features(one) for one in extract_features([copy], engine, look, cache=cache)]
    assert np.array_equal(found[0], found[2])
    assert not np.array_equal(found[0], found[1])


def test_a_damaged_entry_is_computed_again_and_a_damaged_file_is_named(files: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    with FeatureCache(path) as cache:
        cache.put("engine", [("digest", vectors)])
        kept = cache.get("digest", "engine")
        assert kept is not None
        np.testing.assert_array_equal(kept, vectors)
        assert cache.get("digest", "other engine") is None
    database = sqlite3.connect(path)
    database.execute("UPDATE features SET vectors = zeroblob(24)")
    database.commit()
    database.close()
    with FeatureCache(path) as cache:
        assert cache.get("digest", "engine") is None
    path.write_bytes(b"damaged" * 1000)
    with pytest.raises(UsageError, match=r"c\.sqlite cannot be opened.*`cache=False`"):
        FeatureCache(path)


def test_a_cache_stays_within_its_bounds_and_the_oldest_go(tmp_path: Path) -> None:
    vectors = np.zeros((1, 256), np.float32)
    with FeatureCache(tmp_path / "c.sqlite", max_bytes=20 * 1024) as cache:
        for number in range(50):
            cache.put("engine", [(str(number), vectors)])
    with FeatureCache(tmp_path / "c.sqlite") as cache:
        known = [number for number in range(50) if cache.get(str(number), "engine") is not None]
    assert 10 <= len(known) <= 20
    assert known == list(range(50 - len(known), 50))


def test_an_image_unlike_those_trained_on_is_ood(run: Run, files: list[Path]) -> None:
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200), np.uint8)).save(content, "PNG")
    (noise,) = load(run.folder).predict(content.getvalue())
    assert (noise.decision, noise.probability) == ("out_of_distribution", None)
    assert noise.ood_score is not None
    assert noise.ood_score > 1
    (raw_probability,) = load(run.folder, ood=False).predict(content.getvalue())
    assert raw_probability.probability == noise.raw_probability
    assert (raw_probability.ood_score, raw_probability.predicted_label) == (None, noise.predicted_label)
    known = [one.ood_score for one in load(run.folder).predict(files) if one.ood_score is not None]
    assert np.median(known) < 1


def test_cuda_is_refused_where_there_is_none() -> None:
    if torch.cuda.is_available():
        assert choose_device("cuda").type == "cuda"
    else:
        with pytest.raises(UsageError, match=r"^device: .*cpu or auto"):
            choose_device("cuda")


def test_intermediate_features_are_kept_with_the_features(
    run: Run, images: Path, files: list[Path], tmp_path: Path
) -> None:
    predictor = load(run.model)
    with FeatureCache(tmp_path / "features.sqlite") as cache:
        first, again = (
            list(extract_features(files[:3], predictor.engine, predictor.model.input, cache=cache)) for _ in range(2)
        )
    expected = predictor.engine.run(
        np.stack([prepare(read_pixels(file), predictor.model.input) for file in files[:3]])
    ).intermediate
    assert expected is not None
    assert expected.shape[1] == 16 + 24 + 40 + 112 + 320
    for before, after, computed in zip(first, again, expected, strict=True):
        assert before.intermediate is not None
        assert after.intermediate is not None
        np.testing.assert_array_equal(before.intermediate, after.intermediate)
        np.testing.assert_allclose(before.intermediate, computed, atol=1e-5)


def test_a_photograph_is_ood_to_a_trained_classifier(run: Run, files: list[Path]) -> None:
    skimage_data = pytest.importorskip("skimage.data")
    content = io.BytesIO()
    Image.fromarray(skimage_data.coffee()).save(content, "PNG")
    photograph, *others = load(run.folder).predict([content.getvalue(), *files])
    assert photograph.ood_score is not None
    assert photograph.ood_score > 2
    assert (photograph.decision, photograph.probability) == ("out_of_distribution", None)
    assert sum(one.decision == "out_of_distribution" for one in others) < len(others) / 2


def test_loading_leaves_the_callers_random_state_alone(run: Run) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    pneumoscope.load(run.folder)
    assert torch.equal(torch.rand(3), expected)


def _features(extract: Extract) -> Array:
    assert extract.features is not None
    return extract.features


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_runtimes_report_nothing_to_their_makers(run: Run, files: list[Path], tmp_path: Path, engine: str) -> None:
    """Both keep a number of the device or the user, for a server of their makers', unless they are kept from it."""
    script = f"import pneumoscope; pneumoscope.load({str(run.model)!r}, engine={engine!r}).predict({str(files[0])!r})"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=120)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and "matplotlib" not in path.parts] == []


def test_maps_pixels_and_rows_take_one_look_at_each_file(
    run: Run, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`predict --heatmaps` opens, decodes and runs each file once."""
    counts = {"opened": 0, "decoded": 0, "run": 0}

    def count(name: str, function: Any, size: Any = lambda *_: 1) -> Any:
        def counted(*arguments: Any, **options: Any) -> Any:
            counts[name] += size(*arguments)
            return function(*arguments, **options)

        return counted

    predictor = load(run.folder)
    monkeypatch.setattr(features, "read_bytes", count("opened", read_bytes))
    monkeypatch.setattr(features, "read_radiograph", count("decoded", read_radiograph))
    monkeypatch.setattr(predictor.engine, "run", count("run", predictor.engine.run, len))
    samples = [Sample(file) for file in files]
    overlays = OverlayFolder(tmp_path / "maps", len(samples))
    assert write_predictions(predictor, samples, "csv", tmp_path / "rows.csv", overlays) == []
    assert counts == dict.fromkeys(counts, len(files))
    assert len(list((tmp_path / "maps" / "overlays").iterdir())) == len(files)
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == len(files) + 1


def test_a_dicom_file_keeps_its_identity_and_warns_outside_the_intended_use(run: Run) -> None:
    content = dicom(image(), ViewPosition="LL", PatientAge="045Y", PatientSex="F", PatientID="0815")
    predictor = load(run.folder)
    scope = Scope(ages=(1.0, 5.0), views=("AP",))
    decisions = replace(predictor.decisions, scope=scope)
    predictor.decider = replace(predictor.decider, decisions=decisions)
    (prediction,) = predictor.predict(content)
    assert (prediction.patient, prediction.age, prediction.sex, prediction.view) == ("0815", 45.0, "F", "LL")
    assert prediction.study_uid
    assert prediction.series_uid
    assert prediction.sop_uid
    assert prediction.warnings == (
        "outside the intended use: age 45 (meant for 1 to 5 years)",
        "outside the intended use: view LL (meant for AP)",
    )
    assert prediction.to_row(predictor.model.labels)["warnings"] == "; ".join(prediction.warnings)


def test_few_images_keep_their_pixels_at_a_time(run: Run, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = load(run.folder)
    decoded: list[str] = []

    def read(*arguments: Any, **options: Any) -> Any:
        decoded.append(arguments[1])
        return read_radiograph(*arguments, **options)

    monkeypatch.setattr(features, "read_radiograph", read)
    for done, _ in enumerate(predictor.run(files, pixels=True), start=1):
        assert len(decoded) <= done + 4


def test_a_missing_package_is_an_error_of_the_installation_and_not_of_a_file(
    run: Run, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: Any, **__: Any) -> Any:
        raise MissingExtraError("not installed")

    predictor = load(run.folder)
    monkeypatch.setattr(features, "read_radiograph", read)
    for source in (files[0], ImageBytes(files[0].read_bytes(), "image.png")):
        with pytest.raises(MissingExtraError):
            predictor.predict(source)


def test_a_lateral_view_has_a_warning_whatever_the_model_knows_of_its_training(run: Run) -> None:
    (prediction,) = load(run.folder).predict(dicom(image(), ViewPosition="RL"))
    assert prediction.warnings == ("outside the intended use: view RL (meant for frontal views)",)


def refusing(run: Run, scope: Scope) -> Predictor:
    predictor = load(run.folder, refuse_out_of_scope=True)
    decisions = replace(predictor.decisions, scope=scope)
    predictor.decider = replace(predictor.decider, decisions=decisions)
    return predictor


def test_images_outside_the_intended_use_may_be_refused(run: Run, files: list[Path]) -> None:
    predictor = refusing(run, Scope(ages=(1.0, 5.0), views=("AP",)))
    outside, inside = dicom(image(), PatientAge="045Y"), dicom(image(), PatientAge="005Y", ViewPosition="AP")
    refused, answered, unknown = predictor.run([ImageBytes(outside, "a.dcm"), inside, files[0]], maps=True)
    reason = "outside the intended use: age 45 (meant for 1 to 5 years)"
    assert refused.error == f"a.dcm: {reason}. Such images get no prediction because of `refuse_out_of_scope=True`."
    assert refused.warnings == (reason,)
    assert refused.age == 45
    row = refused.to_row(predictor.model.labels)
    empty = ("probability", "predicted_label", "decision", "ood_score")
    assert [row[name] for name in empty] == [None] * 4
    assert row["prediction_set"] in ("", None)
    assert refused.evidence is None
    for prediction in (answered, unknown):  # of which nothing is known that speaks against it
        assert prediction.error is None
        assert prediction.probabilities is not None


def test_warnings_come_with_cached_features_too(run: Run, tmp_path: Path) -> None:
    levels = image(64, 64)
    faulty = dicom(levels, WindowCenter=100, WindowWidth=50, ViewPosition="LL", frames=2)
    found = []
    for _ in range(2):
        with FeatureCache(tmp_path / "features.sqlite") as cache:
            found.append(load(run.folder, cache=cache).predict([faulty, dicom(levels)]))
    computed, cached = found
    assert computed[0].size == (64, 64)
    assert cached[0].size is None  # it was not decoded again
    assert [each.warnings for each in computed] == [each.warnings for each in cached]
    assert [warning.split(" makes")[0] for warning in cached[0].warnings] == [
        "outside the intended use: view LL (meant for frontal views)",
        "the file has 2 frames (the first was read)",
        "the window of the file",
    ]
    np.testing.assert_array_equal(computed[0].logits, cached[0].logits)


def test_warnings_are_counted_by_kind_whatever_their_numbers() -> None:
    lines = count_warnings([("age 45", "view LL"), (), ("age 1.5",), ("age 7",), ("view LL",)])
    assert lines == ["3 images have a warning such as 'age 45'.", "2 images have the warning 'view LL'."]
    assert count_warnings([(), ("one",)]) == ["1 image has the warning 'one'."]


def test_a_batch_with_one_file_that_lacks_a_package_predicts_the_others(
    run: Run, files: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    predictor, content = load(run.folder), dicom(image())
    path = tmp_path / "c.dcm"
    path.write_bytes(content)
    for name in [name for name in sys.modules if name.split(".")[0] == "pydicom"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    first, second = predictor.predict([ImageBytes(content, "a.dcm"), files[0]])
    assert str(first.error).startswith("a.dcm: reading DICOM needs an extra: pip install")
    assert second.error is None
    first, second = predictor.predict([path, files[0]])
    assert str(first.error).startswith(f"{path}: reading DICOM needs an extra")
    assert second.error is None
    with pytest.raises(MissingExtraError, match=r"a\.dcm: reading DICOM needs an extra"):
        predictor.predict([ImageBytes(content, "a.dcm"), ImageBytes(content, "b.dcm")])


def test_a_name_that_is_not_utf_8_gets_a_row_with_an_error(run: Run, images: Path, tmp_path: Path) -> None:
    good = next((images / "test" / "NORMAL").iterdir())
    bad = Path(os.fsdecode(bytes(tmp_path) + b"/image\xff.png"))
    shutil.copy(good, bad)
    first, second = load(run.model).predict([bad, good])
    assert first.error == rf"{tmp_path}/image\xff.png: its name is not valid UTF-8. Rename the file."
    assert first.to_row(("NORMAL", "PNEUMONIA"))["path"] == rf"{tmp_path}/image\xff.png"
    assert (second.error, second.path) == (None, good)
