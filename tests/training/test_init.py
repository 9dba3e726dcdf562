"""Runs that continue from a model, and classes whose groups are drawn equally often."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import pneumoscope
from pneumoscope import Run
from pneumoscope.datasets.reading import read_samples
from pneumoscope.errors import DataError, UsageError
from pneumoscope.models.model_folder import load_model
from pneumoscope.reports.checklist import write_checklist
from pneumoscope.training import initial
from pneumoscope.training.batches import Draw

QUICK: dict[str, Any] = {"recipe": "baseline", "epochs": 1, "resamples": 20}


def read_weights(run: Run) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(run.model / "weights.safetensors")


def test_a_run_starts_from_the_network_and_last_layer_of_a_model(run: Run, images: Path, tmp_path: Path) -> None:
    later = pneumoscope.train(images, tmp_path / "later", init=run.folder, lr=1e-12, **QUICK)
    before, after = read_weights(run), read_weights(later)
    assert all(np.array_equal(before[name], after[name]) for name in before if name.startswith("backbone."))
    np.testing.assert_allclose(after["head.weight"], before["head.weight"], atol=1e-8)
    assert later.settings.network.init == str(run.folder)


def test_the_signature_of_an_address_stays_in_the_file_that_a_resumed_run_needs(
    run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = "https://somebody:pass-word@example.org/chest.zip?token=sig-nature"
    fetched: list[str | Path | None] = []

    def fetch(reference: str | Path | None = None, parameter: str = "model") -> Path:
        fetched.append(reference)
        return run.folder

    monkeypatch.setattr(initial, "locate_model", fetch)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    later = pneumoscope.train(images, tmp_path / "later", init=signed, log_to="mlflow,tensorboard", **QUICK)
    write_checklist(later.folder, "claim,tripod-ai,stard")
    other = pneumoscope.train(images, tmp_path / "other", init=signed.replace("nature", "ned"), **QUICK)
    pneumoscope.summarize([later.folder, other.folder], "init", tmp_path / "summary")
    assert "https://example.org/chest.zip" in (tmp_path / "summary" / "summary.csv").read_text()
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.name != "config.yaml":
            content = path.read_bytes()
            assert b"sig-n" not in content, path
            assert b"pass-word" not in content, path
    pneumoscope.train(out=later.folder, resume=True)
    assert fetched == [signed, signed.replace("nature", "ned"), signed]


def test_the_model_names_its_parent_and_the_images_of_both(run: Run, images: Path, tmp_path: Path) -> None:
    later = pneumoscope.train(images, tmp_path / "later", init=str(run.model), seed=7, **QUICK)
    parent, child = load_model(run.model), load_model(later.model)
    (step,) = child.lineage
    assert (step.step, step.parent.name, step.parent.weights_sha256) == (
        "train",
        run.folder.name,
        parent.weights_sha256,
    )
    assert f"Training continued from the model `{run.folder.name}`" in (later.model / "README.md").read_text()
    assert str(run.folder.parent) not in (later.model / "model.json").read_text(encoding="utf-8")  # it is passed on
    assert set(child.data["seen"]) >= set(parent.data["seen"])


def test_a_backbone_can_be_that_of_a_pretrained_model(
    run: Run, images: Path, pretrained_models: Path, tmp_path: Path
) -> None:
    (pretrained_models / "all-ages-lite0").symlink_to(run.model)
    later = pneumoscope.train(images, tmp_path / "later", backbone="all_ages_lite0", seed=3, **QUICK)
    before, after, child = read_weights(run), read_weights(later), load_model(later.model)
    assert all(np.array_equal(before[name], after[name]) for name in before if name.startswith("backbone."))
    assert not np.allclose(before["head.weight"], after["head.weight"])  # the head is a new one
    assert (child.backbone, child.lineage[0].parent.name) == ("all_ages_lite0", "all-ages-lite0")
    assert set(child.data["seen"]) >= set(load_model(run.model).data["seen"])


def test_another_network_beside_the_model_is_refused(run: Run, images: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Leave out `backbone`"):
        pneumoscope.train(images, tmp_path / "x", init=str(run.folder), backbone="resnet18")
    with pytest.raises(UsageError, match="Leave out `weights`"):
        pneumoscope.train(images, tmp_path / "x", init=str(run.folder), weights="weights.pth")


def test_a_model_that_is_not_there_is_a_mistake_in_init(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such folder or model") as refusal:
        pneumoscope.train(images, tmp_path / "x", init=str(tmp_path / "nowhere"))
    assert refusal.value.parameter == "init"


def test_a_resumed_run_notices_that_its_parent_is_another_model(run: Run, images: Path, tmp_path: Path) -> None:
    first = pneumoscope.train(images, tmp_path / "a", seed=1, **QUICK)
    shutil.copytree(run.model, tmp_path / "parent")
    pneumoscope.train(images, tmp_path / "later", init=str(tmp_path / "parent"), **QUICK)
    pneumoscope.train(None, tmp_path / "later", resume=True)
    shutil.rmtree(tmp_path / "parent")
    shutil.copytree(first.model, tmp_path / "parent")
    with pytest.raises(DataError, match="this model has changed"):
        pneumoscope.train(None, tmp_path / "later", resume=True)


def test_groups_of_a_class_are_drawn_equally_often() -> None:
    targets = np.repeat([0, 0, 1], [900, 100, 50])
    groups = np.repeat([0, 1, 1], [900, 100, 50])
    draw = Draw(targets, 32, 0.5, True, 0, groups)
    drawn = np.concatenate([order for number in range(1, 21) for order, _ in draw.epoch(number)])
    shares = Counter(zip(targets[drawn].tolist(), groups[drawn].tolist(), strict=True))
    expected = {(0, 0): 0.25, (0, 1): 0.25, (1, 1): 0.5}
    assert {key: shares[key] / len(drawn) for key in expected} == pytest.approx(expected, abs=0.015)


def test_a_column_that_the_data_lack_is_named(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no column 'hospital'"):
        pneumoscope.train(images, tmp_path / "x", balance="sampling", balance_by="hospital")
    with pytest.raises(UsageError, match="needs"):
        pneumoscope.train(images, tmp_path / "x", balance="weights", balance_by="hospital")


def test_columns_such_as_view_can_be_balanced(images: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "patient", "split", "view", "hospital"])
        for i, sample in enumerate(read_samples(images)):
            writer.writerow([sample.path, sample.label, sample.patient, sample.split, "PA" if i % 5 else "AP", i % 2])
    run = pneumoscope.train(table, tmp_path / "run", balance="sampling", balance_by="view, hospital", **QUICK)
    assert run.settings.optimisation.balance_by == "view, hospital"


def test_the_model_names_the_sources_of_the_images_that_it_learned_from(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def write(name: str, source: dict[str, str]) -> Path:
        table = tmp_path / name
        with table.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label", "patient", "split", "source"])
            samples = sorted(read_samples(images), key=lambda each: str(each.split), reverse=True)
            for i, each in enumerate(samples):  # val and train before test
                split = str(each.split)
                writer.writerow([each.path, each.label, each.patient, split, source[split] if i else source["first"]])
        return table

    table = write("a.csv", {"train": "rsna", "val": "NIH", "test": "kermany", "first": "nih"})
    run = pneumoscope.train(table, tmp_path / "a", **QUICK)
    assert set(load_model(run.model).data["sources"]) == {"nih", "rsna"}  # the test images taught it nothing
    later = pneumoscope.train(images, tmp_path / "b", init=str(run.folder), seed=5, **QUICK)
    assert set(load_model(later.model).lineage[0].parent.sources) == {"nih", "rsna"}
    assert "Shih G" in (later.model / "README.md").read_text(encoding="utf-8")
    mixed = write("c.csv", {"train": "rsna", "val": "rsna", "test": "rsna", "first": "ours"})
    with caplog.at_level("INFO", "pneumoscope"):
        run = pneumoscope.train(mixed, tmp_path / "c", **QUICK)
    assert load_model(run.model).data["sources"] == []
    assert "images only, so the model card cites none. Known: kermany, nih, rsna, pneumoniamnist" in caplog.text
