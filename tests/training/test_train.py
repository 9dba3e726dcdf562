from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image

import pneumoscope
from pneumoscope.datasets.phantom_sets import write_phantoms
from pneumoscope.datasets.phantoms import draw_phantom
from pneumoscope.datasets.samples import Sample
from pneumoscope.decisions.decisions import read_decisions
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.evaluate import Plan
from pneumoscope.evaluation.metrics import METRICS
from pneumoscope.evaluation.validation import OPTIMISTIC, measure_validation
from pneumoscope.models.model_folder import load_model
from pneumoscope.training.train import Run, train
from processes import start_command

SMALL: dict[str, Any] = {"recipe": "baseline", "size": 64, "epochs": 3}


def digest(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "log.txt"
    }


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_holds_what_the_design_says(run: Run) -> None:
    names = {path.name for path in run.folder.iterdir()}
    assert names == {
        "config.yaml", "samples.csv", "history.csv", "model", "metrics.json", "predictions.csv", "plots",
        "report.html", "log.txt", "resume.json", "errors.csv", "intake.json", "environment.json",
    }  # fmt: skip
    assert {path.name for path in run.model.iterdir()} == {
        "README.md",
        "model.json",
        "network.onnx",
        "weights.safetensors",
    }
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert set(metrics) >= {"split", "n", "prevalence", "threshold", "metrics", "confusion"}
    assert tuple(metrics["metrics"]) == METRICS
    assert set(metrics["metrics"]["auroc"]) == {"value", "low", "high"}
    assert set(metrics["confusion"]) == {"tp", "fp", "tn", "fn"}
    samples = rows(run.folder / "samples.csv")
    assert len(samples) == 48
    assert set(samples[0]) == {"path", "label", "patient", "split"}
    tested = [row["path"] for row in samples if row["split"] == "test"]
    predicted = rows(run.folder / "predictions.csv")
    assert [Path(row["path"]).name for row in predicted] == [Path(path).name for path in tested]
    history = rows(run.folder / "history.csv")
    assert [row["epoch"] for row in history] == ["1", "2", "3"]
    assert load_model(run.model).data["counts"]["train"] == {"NORMAL": 12, "PNEUMONIA": 12}


def test_metrics_of_the_validation_split_stand_beside_those_of_the_test(run: Run, images: Path, tmp_path: Path) -> None:
    metrics = json.loads((run.folder / "metrics.json").read_text())
    validation = metrics.pop("validation")
    assert (metrics["split"], metrics["n"], validation["split"], validation["n"]) == ("test", 12, "val", 12)
    assert set(validation) == set(metrics)
    assert validation["threshold"] == metrics["threshold"]
    evaluated = pneumoscope.evaluate(images, run.folder, tmp_path / "evaluated", split="val")
    again = json.loads((tmp_path / "evaluated" / "metrics.json").read_text())
    assert "validation" not in again
    for name in ("n", "patients", "prevalence", "confusion", "per_class"):
        assert validation[name] == again[name], name
    for name, interval in evaluated.metrics.items():
        assert validation["metrics"][name]["value"] == interval.value, name
        if name not in ("brier", "ece"):  # whose intervals have fewer resamples
            assert validation["metrics"][name] == again["metrics"][name], name
        else:
            assert validation["metrics"][name]["low"] <= interval.value <= validation["metrics"][name]["high"], name
    assert validation["notes"] == [OPTIMISTIC]
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert page.count(OPTIMISTIC) == 1
    table = page.split('<h2 id="validation">')[1].split("</section>")[0]
    assert OPTIMISTIC in table
    assert f"{validation['metrics']['auroc']['value']:.3f}" in table
    other = (tmp_path / "evaluated" / "report.html").read_text(encoding="utf-8")
    assert "Validation split" not in other


def test_validation_images_that_are_gone_are_said_and_not_measured(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = [Sample(tmp_path / "gone.png", "NORMAL", split="val")]
    assert measure_validation(pneumoscope.load(run.folder), gone, Plan()) is None
    assert "so it is not measured (1 image)" in caplog.text


def test_plots_are_saved_in_the_formats_of_the_settings(images: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("run: {plot_formats: 'svg, pdf'}\noptimisation: {epochs: 1}\n")
    for plot_formats, suffixes in ((None, {".svg", ".pdf"}), ("png", {".png"})):
        run = train(images, tmp_path / str(plot_formats), config=config, size=64, plot_formats=plot_formats)
        assert {path.suffix for path in (run.folder / "plots").iterdir()} == suffixes
    with pytest.raises(UsageError, match="plot_formats: no such format: gif"):
        train(images, tmp_path / "wrong", plot_formats="svg,gif")
    assert not (tmp_path / "wrong").exists()


def test_two_runs_give_identical_results_and_nothing_is_written_in_the_data(images: Path, tmp_path: Path) -> None:
    before = digest(images)
    for name in ("a", "b"):
        train(images, tmp_path / name, **SMALL)
    assert digest(tmp_path / "a" / "model") == digest(tmp_path / "b" / "model")
    for name in ("history.csv", "metrics.json", "predictions.csv", "samples.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert digest(images) == before


def test_another_seed_gives_another_model(images: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        train(images, tmp_path / str(seed), seed=seed, **SMALL)
    assert digest(tmp_path / "0" / "model") != digest(tmp_path / "1" / "model")


def test_the_config_of_a_run_reproduces_it(images: Path, tmp_path: Path) -> None:
    first = train(images, tmp_path / "a", seed=5, balance="sampling", lr=3e-3, fit="pad", **{**SMALL, "recipe": "head"})
    again = train(None, tmp_path / "b", config=first.folder / "config.yaml")
    assert again.settings == first.settings
    assert digest(first.model) == digest(again.model)


@pytest.mark.parametrize("balance", ["none", "weights", "sampling"])
def test_the_choice_of_balance_is_recorded(balance: str, images: Path, tmp_path: Path) -> None:
    run = train(images, tmp_path / "run", balance=balance, **SMALL)
    assert load_model(run.model).training["settings"]["balance"] == balance
    assert f"  balance: {balance}\n" in (run.folder / "config.yaml").read_text()


def test_a_run_is_never_overwritten_by_accident(images: Path, tmp_path: Path) -> None:
    train(images, tmp_path / "run", **SMALL)
    before = digest(tmp_path / "run")
    with pytest.raises(UsageError, match=r"already exists\. Choose another path, or pass `overwrite=True`"):
        train(images, tmp_path / "run", **SMALL)
    assert digest(tmp_path / "run") == before
    train(images, tmp_path / "run", overwrite=True, **SMALL)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(UsageError, match="not an earlier output"):
        train(images, tmp_path / "thesis", overwrite=True, **SMALL)
    assert (tmp_path / "thesis" / "chapter.tex").exists()


def test_patients_that_the_folders_share_are_named_in_the_run(tmp_path: Path) -> None:
    for number in range(24):
        for split in ("train", "val", "test"):
            label = ("NORMAL", "PNEUMONIA")[number % 2]
            patient = 7 if (number, split) in ((0, "train"), (0, "test")) else 100 * number + ord(split[0])
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True, exist_ok=True)
            _write_image(folder / f"phantom{patient:04d}_{split}{number}.png", number, label)
    run = train(tmp_path / "images", tmp_path / "run", patient_pattern=r"phantom\d+", **SMALL)
    assert "'phantom0007': ('test', 'train')" in (run.folder / "log.txt").read_text()
    report = (run.folder / "report.html").read_text()
    assert "24 patients are in more than one of the given splits" in report
    assert "phantom0007 (" not in report  # only on request


def test_three_classes_work_like_two(tmp_path: Path) -> None:
    for number in range(60):
        label = ("BACTERIA", "NORMAL", "VIRUS")[number % 3]
        folder = tmp_path / "images" / label
        folder.mkdir(parents=True, exist_ok=True)
        _write_image(folder / f"{number}.png", number, label)
    run = train(tmp_path / "images", tmp_path / "run", **SMALL)
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert metrics["threshold"] is None
    assert len(metrics["confusion"]["matrix"]) == 3
    row = rows(run.folder / "predictions.csv")[0]
    shares = {name: float(row[f"probability_{name}"]) for name in ("BACTERIA", "NORMAL", "VIRUS")}
    assert sum(shares.values()) == pytest.approx(1)
    assert row["predicted_label"] == max(shares, key=lambda name: shares[name])
    assert row["decision"] in ("BACTERIA", "NORMAL", "VIRUS", "uncertain", "out_of_distribution")
    assert set(metrics["decisions"]["coverage"]) == {"BACTERIA", "NORMAL", "VIRUS"}
    assert metrics["validation"]["thresholds"] == metrics["thresholds"]
    assert len(metrics["validation"]["confusion"]["matrix"]) == 3
    assert "PNEUMONIA" not in (run.folder / "report.html").read_text()


def test_unreadable_images_are_left_out_and_named(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")
    broken = []
    for split in ("train", "test"):
        broken.append(next((tmp_path / "images" / split / "NORMAL").iterdir()))
        broken[-1].write_bytes(broken[-1].read_bytes()[:100])
    run = train(tmp_path / "images", tmp_path / "run", **SMALL)
    log = (run.folder / "log.txt").read_text()
    assert "2 images that could not be read" in log
    assert all(path.name in log for path in broken)
    failed = [row for row in rows(run.folder / "predictions.csv") if row["error"]]
    assert [Path(row["path"]).name for row in failed] == [broken[1].name]
    assert run.evaluation.n == 11


def test_a_split_left_without_readable_images_is_an_error(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")
    for path in (tmp_path / "images" / "val" / "NORMAL").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="'val' has no image of class NORMAL after 6 unreadable images were left out"):
        train(tmp_path / "images", tmp_path / "run", **SMALL)
    for path in (tmp_path / "images").glob("*/NORMAL/*.png"):  # then no image shows that there is such a class
        path.write_bytes(b"")
    with pytest.raises(DataError, match="'train' has no image of class NORMAL after 24 unreadable images were left"):
        train(tmp_path / "images", tmp_path / "run", overwrite=True, **SMALL)
    for path in (tmp_path / "images").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"None of 48 images can be read\. The first: .*png"):
        train(tmp_path / "images", tmp_path / "run", overwrite=True, **SMALL)


def test_finetuning_changes_the_backbone_and_the_baseline_does_not(images: Path, run: Run, tmp_path: Path) -> None:
    from pneumoscope.models.backbones import find_backbone, load_backbone

    tuned = train(images, tmp_path / "run", recipe="finetune", size=64, epochs=1, warmup_epochs=0, batch_size=12)
    name = "network.conv_stem.weight"
    original = load_backbone(find_backbone("efficientnet_lite0")).state_dict()[name]
    baseline, finetuned = (safetensors.torch.load_file(each.model / "weights.safetensors") for each in (run, tuned))
    assert torch.equal(baseline[f"backbone.{name}"], original)
    assert not torch.equal(finetuned[f"backbone.{name}"], original)
    phases = [(row["phase"], row["epoch"]) for row in rows(tuned.folder / "history.csv")]
    assert phases == [("finetune", "1")]
    assert "precision: auto" not in (tuned.folder / "config.yaml").read_text()


@pytest.mark.parametrize("folded", [False, True])
def test_the_best_epoch_of_all_phases_is_the_model(folded: bool, images: Path, tmp_path: Path) -> None:
    # A rate this high ruins the backbone, so the best epoch is one of the warm-up.
    shared: dict[str, Any] = {"recipe": "baseline", "size": 64, "batch_size": 12, "precision": "float32"}
    tuning: dict[str, Any] = {"train_backbone": True, "epochs": 1, "warmup_epochs": 3, "backbone_lr": 1.0}
    run = train(images, tmp_path / "run", freeze_batchnorm=folded, **tuning, **shared)
    head = train(images, tmp_path / "head", epochs=3, **shared)
    history = rows(run.folder / "history.csv")
    assert [row["phase"] for row in history] == ["head"] * 3 + ["finetune"]
    best = load_model(run.model).training["best"]
    assert best["phase"] == "head"
    assert run.settings.optimisation.precision == "float32"
    assert best["val_loss"] == min(float(row["val_loss"]) for row in history)
    files = [run.model / "weights.safetensors", head.model / "weights.safetensors"]
    if folded:  # the same function, with rounding errors
        probabilities, expected = (
            [float(row["probability"]) for row in rows(each.folder / "predictions.csv")] for each in (run, head)
        )
        assert probabilities == pytest.approx(expected, abs=1e-3)
    else:
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("recipe", ["baseline", "finetune"])
def test_a_run_killed_at_any_moment_is_resumed_to_the_same_result(recipe: str, images: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"recipe": recipe, "size": 64, "batch_size": 6, "precision": "float32"}
    options |= {"epochs": 25, "patience": 25} if recipe == "baseline" else {"epochs": 3, "warmup_epochs": 2}
    train(images, tmp_path / "whole", **options)
    killed = tmp_path / "killed"
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    # Several moments: before training, which is the same for both, and when a checkpoint or the history is young.
    names = {
        "baseline": ["config.yaml", "samples.csv", "head.pt", "history.csv"],
        "finetune": ["head.pt", "finetune.pt"],
    }[recipe]
    moments = [killed / "checkpoints" / name if name.endswith(".pt") else killed / name for name in names]
    for number, moment in enumerate(moments):
        words = ["train", images, *flags, "--out", killed, *(["--resume"] if number else [])]
        process = start_command(words, tmp_path / "log")
        while not moment.exists() and process.runs:
            time.sleep(0.005)
        process.end(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL, process.shown
    assert not (killed / "report.html").exists()
    (killed / "checkpoints" / ".head.pt.0123abcd.part").write_text("{")  # of a killed process
    assert start_command(["train", "--out", killed, "--resume"], tmp_path / "log").wait(120) == 0
    whole, resumed = digest(tmp_path / "whole"), digest(killed)
    for name in ("model/model.json", "model/weights.safetensors", "history.csv", "metrics.json", "predictions.csv"):
        assert resumed[name] == whole[name], name
    assert set(resumed) == set(whole)


def test_a_run_records_the_software_and_machine_that_it_began_with(images: Path, tmp_path: Path) -> None:
    run = train(images, tmp_path / "run", **{**SMALL, "epochs": 1})
    path = run.folder / "environment.json"
    assert list(json.loads(path.read_text())) == ["Versions", "Python", "System", "Processor", "Threads"]
    path.write_text('{"System": "another one"}')
    train(None, run.folder, resume=True)
    assert json.loads(path.read_text()) == {"System": "another one"}
    train(images, run.folder, overwrite=True, **{**SMALL, "epochs": 1})
    assert f"pneumoscope {pneumoscope.__version__}" in json.loads(path.read_text())["Versions"]


def test_a_run_in_a_linked_folder_is_resumed_and_keeps_its_notes(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")
    next((tmp_path / "images" / "train" / "NORMAL").iterdir()).write_bytes(b"")
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "far" / "deep")
    whole = train(tmp_path / "images", tmp_path / "runs" / "whole", **SMALL)
    folder = tmp_path / "runs" / "killed"

    class KilledError(Exception):
        pass

    def kill(what: str, done: int, total: int) -> None:
        if what == "Test":  # the model is there, the report is not
            raise KilledError

    with pytest.raises(KilledError):
        train(tmp_path / "images", folder, progress=kill, **SMALL)
    assert not (folder / "report.html").exists()
    train(None, folder, resume=True)
    assert digest(folder)["predictions.csv"] == digest(whole.folder)["predictions.csv"]
    assert "1 image that could not be read" in (folder / "report.html").read_text()


def test_data_that_changed_since_a_run_began_are_refused(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")
    run = train(tmp_path / "images", tmp_path / "run", **SMALL)
    next((tmp_path / "images" / "train" / "NORMAL").iterdir()).unlink()
    with pytest.raises(DataError, match="changed since"):
        train(None, run.folder, resume=True)


@pytest.mark.parametrize("how", ["same size", "other size", "only the time"])
def test_images_whose_content_changed_since_a_run_began_are_refused(how: str, images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")
    image = next((tmp_path / "images" / "train" / "NORMAL").iterdir())

    class KilledError(Exception):
        pass

    def kill(what: str, done: int, total: int) -> None:
        if what.startswith("Training"):
            raise KilledError

    with pytest.raises(KilledError):
        train(tmp_path / "images", tmp_path / "run", progress=kill, **SMALL)
    content = image.read_bytes()
    if how == "only the time":
        os.utime(image, ns=(0, 0))
        assert train(None, tmp_path / "run", resume=True).report.is_file()
        return
    image.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if how == "same size" else content + b" ")
    os.utime(image, ns=(0, 0))
    with pytest.raises(DataError, match=f"1 image has changed since the run.*{image.name}"):
        train(None, tmp_path / "run", resume=True)


def test_resuming_a_finished_run_trains_nothing_and_keeps_its_caveats(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")
    next((tmp_path / "images" / "train" / "NORMAL").iterdir()).write_bytes(b"")
    run = train(tmp_path / "images", tmp_path / "run", **SMALL)
    before = digest(run.folder)
    trained = (run.model / "weights.safetensors").stat().st_mtime_ns
    seen = []

    class KilledError(Exception):
        pass

    def kill(what: str, done: int, total: int) -> None:
        seen.append(what)
        raise KilledError

    with pytest.raises(KilledError):
        train(None, run.folder, resume=True, progress=kill)
    train(None, run.folder, resume=True)
    assert seen == ["Test"]
    assert (run.model / "weights.safetensors").stat().st_mtime_ns == trained
    assert "is finished. Its model is kept" in (run.folder / "log.txt").read_text()
    after = digest(run.folder)
    for name in ("metrics.json", "predictions.csv", "model/README.md", "model/model.json"):
        assert after[name] == before[name], name
    assert "could not be read" in (run.folder / "report.html").read_text()


def test_remarks_belong_to_the_model_that_they_were_made_for(images: Path, tmp_path: Path) -> None:
    first, other = (train(images, tmp_path / name, seed=seed, **SMALL) for seed, name in enumerate("ab"))
    shutil.copy(other.folder / "resume.json", first.folder / "resume.json")
    seen: set[str] = set()
    train(None, first.folder, resume=True, progress=lambda what, done, total: seen.add(what))
    assert "Training (head)" in seen


def test_of_two_runs_into_one_folder_one_is_refused(images: Path, tmp_path: Path) -> None:
    command = ["train", images, "--size", "32", "--epochs", "1", "--no-cache", "--out", tmp_path / "run"]
    processes = [start_command(command, tmp_path / name) for name in ("a", "b")]
    assert sorted(process.wait(120) for process in processes) == [0, 2]
    assert load_model(tmp_path / "run" / "model").labels == ("NORMAL", "PNEUMONIA")


def test_a_run_of_a_file_with_a_carriage_return_in_its_name_is_resumed(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")
    image = next((tmp_path / "images" / "train" / "NORMAL").iterdir())
    image.rename(image.with_name(f"a\rb\r\n{image.name}"))
    run = train(tmp_path / "images", tmp_path / "run", **SMALL)
    whole = digest(run.folder)
    assert b"a\rb\r\n" in (run.folder / "samples.csv").read_bytes()
    train(None, run.folder, resume=True)
    assert digest(run.folder)["predictions.csv"] == whole["predictions.csv"]
    assert digest(run.folder)["samples.csv"] == whole["samples.csv"]


def test_two_finetuned_runs_are_identical_at_the_precision_that_was_chosen(images: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"recipe": "finetune", "size": 64, "epochs": 1, "warmup_epochs": 1, "batch_size": 12}
    first, second = (train(images, tmp_path / name, **options) for name in ("a", "b"))
    assert first.settings.optimisation.precision == second.settings.optimisation.precision != "auto"
    assert digest(first.model) == digest(second.model)


def test_decisions_are_fitted_on_augmented_copies_too_and_on_the_weights_as_stored(
    images: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "recipe": "best",
        "size": 64,
        "epochs": 1,
        "warmup_epochs": 1,
        "batch_size": 12,
        "precision": "float32",
    }
    run = train(images, tmp_path / "run", **options)
    plain = train(images, tmp_path / "plain", augmented_copies=0, **options)
    decisions, other = (read_decisions(load_model(each.model)) for each in (run, plain))
    val = sum(load_model(run.model).data["counts"]["val"].values())
    assert decisions.calibration.images == other.calibration.images == val
    assert decisions.calibration.before != other.calibration.before
    assert decisions.prediction_sets is not None
    assert other.prediction_sets is not None
    assert [len(each.scores["NORMAL"]) for each in (decisions.prediction_sets, other.prediction_sets)] == [val // 2] * 2
    assert decisions.prediction_sets != other.prediction_sets
    stored = safetensors.torch.load_file(plain.model / "weights.safetensors")
    assert stored["backbone.network.conv_stem.weight"].dtype == torch.float16
    kept = [row for row in rows(plain.folder / "samples.csv") if row["split"] == "val" and row["label"] == "NORMAL"]
    predicted = pneumoscope.load(plain.model).predict([plain.folder / row["path"] for row in kept])
    scores = sorted(each.probabilities["NORMAL"] for each in predicted if each.probabilities)
    assert tuple(scores) == other.prediction_sets.scores["NORMAL"]  # to the last bit


def test_giving_epochs_means_so_many_and_a_recipe_may_ask_for_steps(images: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "recipe": "finetune",
        "size": 64,
        "warmup_epochs": 0,
        "batch_size": 12,
        "augmented_copies": 0,
        "precision": "float32",
    }
    few = train(images, tmp_path / "few", epochs=2, **options)
    assert len(rows(few.folder / "history.csv")) == 2
    many = train(images, tmp_path / "many", min_steps=9, **options)
    steps = -(-sum(load_model(many.model).data["counts"]["train"].values()) // 12)
    assert len(rows(many.folder / "history.csv")) == -(-9 // steps)


def test_a_recipe_that_contradicts_the_config_is_refused(run: Run, images: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds the settings of the recipe baseline"):
        train(images, tmp_path / "run", config=run.folder / "config.yaml", recipe="finetune")
    with pytest.raises(UsageError, match="leave out `config`"):
        train(images, run.folder, resume=True, config=run.folder / "config.yaml")


def test_evaluating_training_images_gives_a_warning(run: Run, images: Path, tmp_path: Path) -> None:
    for split, known in (("test", False), ("all", True)):
        pneumoscope.evaluate(images, run.folder, tmp_path / split, split=split)
        report = (tmp_path / split / "report.html").read_text()
        assert ("36 of these images were used in training" in report) == known


def test_resuming_with_other_settings_or_nothing_to_resume_is_refused(run: Run, images: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^lr: .*began with 0\.001, not 0\.5"):
        train(images, run.folder, resume=True, lr=0.5)
    with pytest.raises(UsageError, match="no run to resume"):
        train(images, tmp_path / "nothing", resume=True)


def test_a_run_that_began_without_a_setting_is_not_resumed(run: Run, images: Path, tmp_path: Path) -> None:
    older = Path(shutil.copytree(run.folder, tmp_path / "older"))
    config = [line for line in (older / "config.yaml").read_text().splitlines() if not line.startswith("  crop:")]
    (older / "config.yaml").write_text("\n".join(config) + "\n")
    with pytest.raises(UsageError, match=r"config\.yaml: lacks crop.*Start a new run"):
        train(images, older, resume=True)


def test_the_published_split_trains_to_the_published_level(real_data: Path, tmp_path: Path) -> None:
    run = train(real_data / "seed-400", tmp_path / "run", recipe="baseline")
    assert run.evaluation.n == 100
    assert run.evaluation.metrics["auroc"].value > 0.9
    assert "2 patients are in more than one of the given splits" in (run.folder / "report.html").read_text()
    assert "bacteria-person336" in (run.folder / "log.txt").read_text()


def test_the_simulated_images_are_neither_a_toy_nor_noise(tmp_path: Path) -> None:
    run = train(write_phantoms(tmp_path / "images"), tmp_path / "run", recipe="baseline")
    assert 0.88 <= run.evaluation.metrics["auroc"].value <= 0.98


def test_the_public_functions_are_the_same_jobs(run: Run, images: Path) -> None:
    files = sorted((images / "test").rglob("*.png"))
    predictions = pneumoscope.load(run.folder).predict(files)
    recorded = {Path(row["path"]).name: float(row["probability"]) for row in rows(run.folder / "predictions.csv")}
    for file, prediction in zip(files, predictions, strict=True):
        assert prediction.probability == pytest.approx(recorded[file.name], abs=1e-6)


def _write_image(path: Path, seed: int, label: str) -> None:
    image = draw_phantom(seed, pneumonia=label not in ("NORMAL", "BACTERIA"), size=96)
    Image.fromarray((image.pixels * 255).astype("uint8")).save(path)


def test_a_frozen_backbone_can_decide_by_augmented_copies_too(images: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"recipe": "head", "size": 64, "epochs": 1, "resamples": 20}
    plain = train(images, tmp_path / "plain", **options)
    run = train(images, tmp_path / "run", augmented_copies=2, rotate=20.0, noise=0.1, **options)
    decisions, other = (read_decisions(load_model(each.model)) for each in (run, plain))
    assert decisions.ood is not None
    assert other.ood is not None
    assert decisions.ood.distances != other.ood.distances
    assert "Each took part with 2 augmented copies" in (run.model / "README.md").read_text(encoding="utf-8")
    before, after = (safetensors.torch.load_file(each.model / "weights.safetensors") for each in (plain, run))
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith(("backbone.", "head.")))
