"""`adapt --finetune`: the whole network at a low learning rate, taken only where other patients gain by it."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray
from scipy.special import log_softmax, logit
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
from pneumoscope.training.adaptation_data import Data
from pneumoscope.training.data import Split, extract_split
from pneumoscope.training.finetuning import NETWORKS, Network, draw_folds, merge_calibration
from pneumoscope.training.phases import run_phases
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


@dataclass
class Watch:
    """What the networks of the folds learned from, and what they then predicted."""

    data: list[Data] = field(default_factory=list)
    trained: list[tuple[NDArray[np.bool_], Network]] = field(default_factory=list)
    learned: list[set[Path]] = field(default_factory=list)  # images of each training, also of the last on all images
    predicted: list[Split] = field(default_factory=list)  # after each training of a fold, with features

    def start(self, patch: pytest.MonkeyPatch) -> None:
        """Record calls while they do what they did."""
        train_network = finetuning.finetune_network

        def train_watched(setup: Any, parent: Any, data: Data, wishes: Any, chosen: Any, *rest: Any) -> Network:
            network = train_network(setup, parent, data, wishes, chosen, *rest)
            self.data.append(data)
            self.trained.append((chosen, network))
            return network

        def extract_watched(split: Split, engine: Any, *rest: Any, **more: Any) -> Split:
            found = extract_split(split, engine, *rest, **more)
            if any(engine is network.engine for _, network in self.trained):  # not while it is trained
                assert engine is self.trained[-1][1].engine
                self.predicted.append(found)
            return found

        def run_watched(setup: Any, head: Any, splits: Any, *rest: Any) -> Any:
            self.learned.append({sample.path for split in splits.values() for sample in split.samples})
            return run_phases(setup, head, splits, *rest)

        patch.setattr(finetuning, "finetune_network", train_watched)
        patch.setattr(finetuning, "extract_split", extract_watched)
        patch.setattr(finetuning, "run_phases", run_watched)


@pytest.fixture(scope="module")
def tuned(parent: Run, ours: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Adaptation, list[str], Watch]:
    """The model of `parent` fine-tuned on `ours`, as if there were evidence for it, and how that went."""
    tasks: list[str] = []
    watch = Watch()
    with pytest.MonkeyPatch.context() as patch:
        watch.start(patch)
        patch.setattr(finetuning, "SETTINGS", QUICK)
        patch.setattr(adaptation_choice, "WEAK", -1e9)
        new = pneumoscope.adapt(
            ours, tmp_path_factory.mktemp("tuned") / "new", model=parent.folder, finetune=True, resamples=100,
            progress=lambda task, done, total: tasks.append(task),
        )  # fmt: skip
    return new, tasks, watch


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
    new, tasks, _ = tuned
    (step,) = load_model(new.model).lineage
    assert step.step == "finetune"
    assert step.parent.weights_sha256 == load_model(parent.model).weights_sha256
    assert step.finetuning is not None
    assert step.finetuning["seed"] == 0
    assert step.finetuning["backbone_lr"] == QUICK["backbone_lr"]
    assert [each["step"] for each in step.candidates][-1] == "finetune"
    assert any(each.startswith("Fine-tuning: taken") and "standard error" in each for each in step.changes)
    assert any("fitted anew, to features of the fine-tuned network" in each for each in step.changes)
    assert {f"Fine-tuning (fold {fold} of {NETWORKS})" for fold in range(1, NETWORKS + 1)} < set(tasks)
    assert "Fine-tuning (all images)" in tasks
    report = new.report.read_text(encoding="utf-8")
    assert "--finetune" in report
    assert "by a network that did not learn from its patient (out of fold), with a threshold and limits" in report


def test_the_card_of_a_fine_tuned_model_says_that_its_frozen_network_was_trained(parent: Run, tuned: Any) -> None:
    before, after = ((each.model / "README.md").read_text(encoding="utf-8") for each in (parent, tuned[0]))
    assert "frozen, only the head was trained" in before
    assert "frozen" not in after
    assert "all its layers were trained further, in the adaptation" in after
    assert "The network was trained as described here, then fine-tuned on images of another source" in after
    assert "its features are further from those of the images that it was fine-tuned on" in after
    assert "predicted by a network that did not learn from its patient" in after
    assert "adapted to other patients" not in after
    assert "only a test split gives unbiased ones" in after


def test_no_network_predicts_a_patient_that_it_learned_from(tuned: Any) -> None:
    watch = tuned[2]
    assert len(watch.trained) == len(watch.predicted) == NETWORKS
    parts = zip(watch.data, watch.trained, watch.learned[:NETWORKS], watch.predicted, strict=True)
    for data, (chosen, _), learned, predicted in parts:
        patients = {each.path: int(i) for each, i in zip(data.samples, data.local.clusters, strict=True)}
        assert len(set(patients.values())) < len(patients)  # some have several images
        assert {patients[path] for path in learned} == set(data.local.clusters[chosen].tolist())
        asked = {patients[each.path] for each in predicted.samples}
        assert asked
        assert asked.isdisjoint(data.local.clusters[chosen].tolist())
    asked_in_all = [sample.path for split in watch.predicted for sample in split.samples]
    assert sorted(asked_in_all) == sorted(each.path for each in watch.data[0].samples)


def test_a_fine_tuned_model_is_measured_out_of_fold(tuned: Any) -> None:
    evidence = json.loads((tuned[0].folder / "adaptation.json").read_text(encoding="utf-8"))
    assert tuned[0].evaluation.n == 76
    rows = list(csv.DictReader((tuned[0].folder / "predictions.csv").read_text(encoding="utf-8").splitlines()))
    probabilities = {Path(row["path"]).name: float(row["probability"]) for row in rows}
    watch = tuned[2]
    for (_, network), split in zip(watch.trained, watch.predicted, strict=True):
        logits = compute_logits(split.features[:, 0], network.readout.weight, network.readout.bias)[:, 0]
        shown = logit(np.array([probabilities[each.path.name] for each in split.samples]))
        slope, intercept = np.polyfit(logits, shown, 1)
        assert slope > 0
        np.testing.assert_allclose(shown, slope * logits + intercept, atol=0.01)
    named = zip((row["label"] for row in rows), probabilities.values(), strict=True)
    losses = [-np.log(p if label == tuned[0].evaluation.positive else 1 - p) for label, p in named]
    found = evidence["differences"]["out-of-fold"]["log_loss"]
    assert found["other"] == pytest.approx(np.mean(losses), abs=1e-3)


def test_without_evidence_the_network_stays_as_it_is(
    parent: Run, ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetuning, "SETTINGS", QUICK)
    monkeypatch.setattr(adaptation_choice, "WEAK", 1e9)
    new = pneumoscope.adapt(ours, tmp_path / "new", model=parent.folder, finetune=True, resamples=100)
    assert new.evidence.chosen.step != "finetune"
    assert new.evidence.candidates[-1].step == "finetune"
    assert any(each.startswith("Fine-tuning: not taken") for each in new.evidence.changes)
    model = load_model(new.model)
    assert model.weights_sha256 == load_model(parent.model).weights_sha256
    assert model.lineage[-1].finetuning is None
    card = (new.model / "README.md").read_text(encoding="utf-8")
    assert "frozen, only the head was trained" in card
    assert "what it decides by was then adapted" in card


def test_too_few_images_to_fine_tune_on_are_refused(parent: Run, ours: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    for path in sorted(ours.rglob("*.png"))[::2]:
        (few / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, few / path.parent.name)
    with pytest.raises(DataError, match=r"38 patients in all, .* needs at least 60 patients, and 20 images"):
        pneumoscope.adapt(few, tmp_path / "a", model=parent.folder, finetune=True)
    line = ["adapt", str(few), "--model", str(parent.folder), "--out", str(tmp_path / "b"), "--finetune"]
    refusal = CliRunner().invoke(app, line).exception
    assert isinstance(refusal, DataError)
    assert refusal.parameter == "finetune"


def test_models_that_cannot_be_fine_tuned_are_refused(parent: Run, ours: Path, tmp_path: Path) -> None:
    pneumoscope.export(tmp_path / "exported", model=parent.folder, to="onnx")
    with pytest.raises(UsageError, match="an exported model cannot be trained") as refusal:
        pneumoscope.adapt(ours, tmp_path / "a", model=tmp_path / "exported", finetune=True)
    assert refusal.value.parameter == "finetune"
    assert not (tmp_path / "a").exists()
    isotonic = Calibration("isotonic", knots=((-1.0, 0.1), (1.0, 0.9)), class_fractions=(0.5, 0.5))
    with pytest.raises(UsageError, match="finetune: does not follow isotonic"):
        check_wishes(make_parent(calibration=isotonic), Wishes(finetune=True))


def tune(local: Any, gain: float, seed: int = 7, luck: float = 0.0) -> Any:
    """The same images with logits of other networks, which know `gain` standard deviations more of the label.

    What the network of a fold knows varies by chance, with the standard deviation `luck`.
    """
    rng = np.random.default_rng(seed)
    blurred = local.features[:, :1] / 3 + rng.normal(0, 0.3, (len(local.labels), 1))
    distances, folds = rng.uniform(0.5, 0.9, len(blurred)), draw_folds(local, ("A", "B"), seed)
    gains = gain + luck * rng.normal(size=NETWORKS)
    known = blurred + (gains[folds] * (2 * local.labels - 1))[:, None]
    return replace(local, tuned=Tuned(known, distances, folds, Calibration(class_fractions=(0.5, 0.5))))


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


def test_chance_in_the_training_of_each_network_does_not_pass_for_evidence() -> None:
    parent, gains, errors, taken = make_parent(), [], [], 0
    for seed in range(30):
        choice = fit(parent, tune(make_local(300, seed=seed), 0.0, seed, luck=0.5), Wishes()).choice
        gains.append(choice.candidates[-1].gain)
        errors.append(choice.candidates[-1].standard_error)
        taken += choice.chosen.step == "finetune"
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(gains), rel=0.25)  # by patient, a sixth of it
    assert taken <= 2


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
        assert np.unique(folds[local.labels == label]).tolist() == list(range(NETWORKS))


def test_a_class_that_is_not_spread_over_the_folds_is_refused() -> None:
    labels = np.repeat([0, 1], [240, 60])
    clusters = np.concatenate([np.arange(240) % 6, np.arange(60)])  # all patients of A have images of B, too
    local = replace(make_local(300), labels=labels, clusters=clusters)
    with pytest.raises(DataError, match=r"60 B of 60 patients .* as few as 1 of a class in a fold"):
        draw_folds(local, ("A", "B"), 0)
