"""`adapt --finetune`: the whole network at a low learning rate, taken only where other patients gain by it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from scipy.special import log_softmax
from test_adaptation import make_local, make_parent
from typer.testing import CliRunner

import pneumoscope
from pneumoscope.cli.main import app
from pneumoscope.datasets.phantom_sets import write_phantoms
from pneumoscope.decisions import calibration
from pneumoscope.decisions.calibration import Calibration
from pneumoscope.errors import DataError, UsageError
from pneumoscope.inference.predictor import compute_logits
from pneumoscope.models.model_folder import load_model
from pneumoscope.training import adaptation_choice, finetuning
from pneumoscope.training.adapt import Adaptation
from pneumoscope.training.adaptation import Tuned, Wishes, check_wishes, describe_changes, fit
from pneumoscope.training.finetuning import FOLDS, draw_folds, merge_calibration
from pneumoscope.training.train import Run, train

QUICK = {**finetuning.SETTINGS, "epochs": 1, "min_steps": 1, "batch_size": 8}


@pytest.fixture(scope="module")
def parent(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose model is stored in half precision."""
    folder = tmp_path_factory.mktemp("half") / "run"
    return train(images, folder, recipe="baseline", epochs=2, size=64, half_precision=True, resamples=50)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """76 images of another source, of some 64 patients, without splits."""
    drawn = write_phantoms(tmp_path_factory.mktemp("drawn") / "all", count=76, seed=5, size=64)
    folder = tmp_path_factory.mktemp("data") / "ours"
    for path in sorted(drawn.rglob("*.png")):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path.parent.name)
    return folder


@pytest.fixture(scope="module")
def tuned(parent: Run, ours: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Adaptation, list[str]]:
    """The model of `parent` fine-tuned on `ours`, as if there were evidence for it, and the progress it showed."""
    tasks: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetuning, "SETTINGS", QUICK)
        patch.setattr(adaptation_choice, "WEAK", -1e9)
        new = pneumoscope.adapt(
            ours, tmp_path_factory.mktemp("tuned") / "new", model=parent.folder, finetune=True, resamples=100,
            progress=lambda task, done, total: tasks.append(task),
        )  # fmt: skip
    return new, tasks


def read_arrays(folder: Path) -> dict[str, Any]:
    return safetensors.numpy.load_file(folder / "weights.safetensors")


def test_a_fine_tuned_model_has_weights_and_a_graph_of_its_own(parent: Run, tuned: Any, ours: Path) -> None:
    new = tuned[0]
    assert new.evidence.chosen.step == "finetune"
    before, after = read_arrays(parent.model), read_arrays(new.model)
    assert {name: array.dtype for name, array in before.items()} == {name: each.dtype for name, each in after.items()}
    convolutions = [name for name in before if name.startswith("backbone.") and before[name].ndim == 4]
    assert not any(np.array_equal(before[name], after[name]) for name in (*convolutions, "ood.mean"))
    model = load_model(new.model)
    assert model.files["network.onnx"] != load_model(parent.model).files["network.onnx"]
    image = next(ours.rglob("*.png"))
    by_graph, by_torch = (pneumoscope.load(new.model, engine=kind).predict(image)[0] for kind in ("onnx", "torch"))
    assert by_graph.raw_probability == pytest.approx(by_torch.raw_probability, abs=1e-3)
    old = pneumoscope.load(parent.model).predict(image)[0]
    assert by_graph.logits != pytest.approx(old.logits, abs=1e-4)


def test_a_fine_tuned_model_says_how_it_was_made(parent: Run, tuned: Any) -> None:
    new, tasks = tuned
    (step,) = load_model(new.model).lineage
    assert step["step"] == "finetune"
    assert step["parent"]["weights_sha256"] == load_model(parent.model).weights_sha256
    assert step["finetuning"]["seed"] == 0
    assert step["finetuning"]["backbone_lr"] == QUICK["backbone_lr"]
    assert [each["step"] for each in step["candidates"]][-1] == "finetune"
    assert any(each.startswith("Fine-tuning: taken") and "standard error" in each for each in step["changes"])
    assert any("fitted anew, to features of the fine-tuned network" in each for each in step["changes"])
    assert {f"Fine-tuning (fold {fold} of {FOLDS})" for fold in range(1, FOLDS + 1)} < set(tasks)
    assert "Fine-tuning (all images)" in tasks
    assert "--finetune" in new.report.read_text(encoding="utf-8")


def test_a_fine_tuned_model_is_measured_out_of_fold(tuned: Any) -> None:
    evidence = json.loads((tuned[0].folder / "adaptation.json").read_text(encoding="utf-8"))
    assert tuned[0].evaluation.n == 76
    found = evidence["differences"]["out-of-fold"]["log_loss"]
    assert found["other"] == pytest.approx(evidence["chosen"]["log_loss"], rel=0.5)  # priors may differ by fold


def test_without_evidence_the_network_stays_as_it_is(
    parent: Run, ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetuning, "SETTINGS", QUICK)
    monkeypatch.setattr(adaptation_choice, "WEAK", 1e9)
    new = pneumoscope.adapt(ours, tmp_path / "new", model=parent.folder, finetune=True, resamples=100)
    assert new.evidence.chosen.step != "finetune"
    assert new.evidence.candidates[-1].step == "finetune"
    assert any(each.startswith("Fine-tuning: not taken") for each in new.evidence.changes)
    assert load_model(new.model).weights_sha256 == load_model(parent.model).weights_sha256


def test_too_few_images_to_fine_tune_on_are_refused(parent: Run, ours: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    for path in sorted(ours.rglob("*.png"))[::2]:
        (few / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, few / path.parent.name)
    with pytest.raises(DataError, match=r"\d+ patients in all. Fine-tuning needs at least 60 patients, and 20 images"):
        pneumoscope.adapt(few, tmp_path / "a", model=parent.folder, finetune=True)
    line = ["adapt", str(few), "--model", str(parent.folder), "--out", str(tmp_path / "b"), "--finetune"]
    refusal = CliRunner().invoke(app, line).exception
    assert isinstance(refusal, DataError)
    assert refusal.parameter == "finetune"


def test_models_that_cannot_be_fine_tuned_are_refused(parent: Run, ours: Path, tmp_path: Path) -> None:
    exported = pneumoscope.export(tmp_path / "exported", model=parent.folder, to="onnx")
    with pytest.raises(UsageError, match="an exported model cannot be trained") as refusal:
        pneumoscope.adapt(ours, tmp_path / "a", model=tmp_path / "exported", finetune=True)
    assert exported is not None
    assert refusal.value.parameter == "finetune"
    assert not (tmp_path / "a").exists()
    isotonic = Calibration("isotonic", knots=((-1.0, 0.1), (1.0, 0.9)), class_fractions=(0.5, 0.5))
    with pytest.raises(UsageError, match="finetune: does not follow isotonic"):
        check_wishes(make_parent(calibration=isotonic), Wishes(finetune=True))


def tune(local: Any, gain: float, seed: int = 7) -> Any:
    """The same images with logits of other networks, which know `gain` standard deviations more of the label."""
    rng = np.random.default_rng(seed)
    blurred = local.features[:, :1] / 3 + rng.normal(0, 0.3, (len(local.labels), 1))
    known = blurred + gain * (2 * local.labels[:, None] - 1)
    neutral = Calibration(class_fractions=(0.5, 0.5))
    folds = draw_folds(local, ("A", "B"), seed)
    return replace(local, tuned=Tuned(known, rng.uniform(0.5, 0.9, len(known)), folds, neutral))


def test_fine_tuning_is_taken_where_other_patients_gain_and_left_where_not() -> None:
    parent, local = make_parent(), make_local(120)
    better, worse = (fit(parent, tune(local, gain), Wishes(finetune=True)) for gain in (1.5, -1.0))
    assert better.choice.chosen.step == "finetune"
    assert "Fine-tuning: taken" in describe_changes(parent, better)[1]
    assert worse.choice.chosen.step != "finetune"
    assert "Fine-tuning: not taken" in describe_changes(parent, worse)[1]
    plain = fit(parent, local, Wishes())
    assert worse.decisions == plain.decisions
    few = tune(make_local(60), 1.5).take(np.arange(60) < 30)
    assert "finetune" not in {each.step for each in fit(parent, few, Wishes(finetune=True)).choice.candidates}


def test_fine_tuning_that_changes_nothing_is_not_taken() -> None:
    parent = make_parent()
    taken = [fit(parent, tune(make_local(80, seed=seed), 0.0, seed), Wishes()).choice.chosen.step for seed in range(20)]
    assert taken.count("finetune") <= 1


def test_probabilities_and_ood_limits_of_a_fine_tuned_network_are_those_of_its_own_outputs() -> None:
    parent, local = make_parent(), tune(make_local(150), 1.5)
    adapted = fit(parent, local, Wishes(finetune=True, false_alarms=0.05))
    fitted = calibration.apply(local.tuned.logits, adapted.decisions.calibration)
    assert -fitted[np.arange(150), local.labels].mean() == pytest.approx(adapted.choice.chosen.log_loss, abs=0.03)
    assert adapted.decisions.ood is not None
    for i, name in enumerate(parent.classes):
        distances = np.sort(local.tuned.distances[local.labels == i])
        assert adapted.decisions.ood.distances[name] == pytest.approx(distances)
    assert adapted.decisions.ood.limit < 0.9  # the parent's limit was by another detector


def test_a_fine_tuned_network_can_be_meant_for_another_prevalence() -> None:
    parent, local = make_parent(), tune(make_local(200), 1.0)
    adapted = fit(parent, local, Wishes(finetune=True, prevalence=0.1))
    assert adapted.choice.chosen.step == "finetune"
    found = np.exp(calibration.apply(local.tuned.logits, adapted.decisions.calibration))[:, 1]
    weights = np.where(local.labels == 1, 0.1 / (local.labels == 1).sum(), 0.9 / (local.labels == 0).sum())
    assert (found * weights).sum() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(
    "calibrated",
    [Calibration("platt", 1.4, -0.3, offset=(-0.5, 0.2)), Calibration("temperature", 0.8), Calibration()],
)
def test_training_starts_from_calibrated_probabilities(calibrated: Calibration) -> None:
    rng = np.random.default_rng(0)
    for outputs in (1, 3):
        if outputs == 3 and calibrated.method == "platt":
            calibrated = Calibration("temperature", 1.7, offset=(0.1, 0.0, -0.2))
        weight, bias = rng.normal(size=(outputs, 5)).astype(np.float32), rng.normal(size=outputs).astype(np.float32)
        features = rng.normal(size=(20, 5)).astype(np.float32)
        scores = compute_logits(features, *merge_calibration(weight, bias, calibrated))
        scores = np.hstack([np.zeros_like(scores), scores]) if outputs == 1 else scores
        wanted = calibration.apply(compute_logits(features, weight, bias), calibrated)
        np.testing.assert_allclose(log_softmax(scores, axis=1), wanted, atol=1e-5)


def test_folds_keep_patients_together_and_spread_each_class() -> None:
    local = make_local(300, prevalence=0.1)
    local = replace(local, clusters=np.arange(300) // 3)
    folds = draw_folds(local, ("A", "B"), 0)
    assert all(len(np.unique(folds[local.clusters == patient])) == 1 for patient in range(100))
    assert np.ptp(np.bincount(folds)) <= 9
    for label in (0, 1):
        assert np.unique(folds[local.labels == label]).tolist() == list(range(FOLDS))
