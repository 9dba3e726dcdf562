"""`tune`: settings are chosen on validation images by patient, and the test split is read once, at the end."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from services import create_database, wait_until

from pneumoscope import DataError, Tuning, UsageError, train, tune
from pneumoscope.cli import main as cli
from pneumoscope.cli.tune import print_tuning
from pneumoscope.datasets.reading import read_samples
from pneumoscope.models.model_folder import load_model
from pneumoscope.reports.tuning import Search, TrialResult, write_search
from pneumoscope.training import studies
from pneumoscope.training.trials import Trainer
from processes import start

FAST: dict[str, Any] = {"recipe": "head", "size": 128, "epochs": 4, "resamples": 50, "audit": False}
SPACE = {"lr": {"low": 1e-4, "high": 1e-1, "log": True}, "balance": ["none", "weights"]}


@pytest.fixture
def damaged(images: Path, tmp_path: Path) -> Path:
    """The same images, but what is in the split test cannot be decoded."""
    folder = tmp_path / "damaged"
    shutil.copytree(images, folder)
    for path in find_tests(folder):
        path.write_bytes(b"no image")
    return folder


@pytest.fixture(scope="session")
def tuned(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Tuning:
    """A finished search; tests read it and change nothing."""
    return tune(images, tmp_path_factory.mktemp("runs") / "tune", trials=8, folds=2, space=SPACE, seed=3, **FAST)


def list_settings(result: Tuning) -> list[dict[str, Any]]:
    return [dict(each.settings) for each in result.search.trials if each.state != "interrupted"]


def find_tests(images: Path) -> list[Path]:
    return [each.path for each in read_samples(images) if each.split == "test"]


def test_the_best_settings_are_those_of_the_best_trial_and_train_takes_them(tuned: Tuning, tmp_path: Path) -> None:
    scores = [each.score for each in tuned.search.trials if each.score is not None]
    best = tuned.search.best_trial
    assert best.score == max(scores)
    assert best.score == pytest.approx(sum(best.folds) / 2)
    assert tuned.settings.optimisation.lr == best.settings["lr"]
    run = train(config=tuned.config, out=tmp_path / "run")
    assert run.settings.optimisation == tuned.settings.optimisation
    assert tuned.search.test is not None
    assert run.evaluation.metrics == tuned.search.test.metrics


def test_the_first_trial_has_the_settings_of_the_recipe(tuned: Tuning) -> None:
    assert tuned.search.usual == 0
    assert tuned.search.trials[0].settings == {"lr": 1e-3, "balance": "weights"}


def test_a_worse_trial_is_stopped_after_a_fold(tuned: Tuning) -> None:
    stopped = [each for each in tuned.search.trials if each.state == "stopped early"]
    assert all(len(each.folds) == 1 and each.score is None for each in stopped)
    assert len(stopped) + tuned.search.count("complete") == 8


def test_a_trial_is_stopped_where_it_is_among_the_worst_quarter_after_the_same_folds() -> None:
    study = optuna.create_study(pruner=studies.FoldPruner(), direction="maximize")
    with studies.quiet():
        for score in range(12):
            trial = study.ask()
            trial.report(score, 0)
            study.tell(trial, score)
        stopped = []
        for score, fold in ((1, 0), (6, 0), (0, 1)):
            trial = study.ask()
            trial.report(score, fold)
            stopped.append(trial.should_prune())
    assert stopped == [True, False, False]


def test_the_test_is_that_of_one_run_and_the_page_says_what_is_optimistic(tuned: Tuning) -> None:
    assert tuned.run is not None
    metrics = json.loads((tuned.run / "metrics.json").read_text())
    written = json.loads((tuned.folder / "tuning.json").read_text())
    assert metrics["split"] == "test"
    assert written["test"]["metrics"]["auroc"] == metrics["metrics"]["auroc"]
    page = tuned.report.read_text(encoding="utf-8")
    assert "The validation score of the best trial is optimistic" in page
    assert "measured once on" in page
    assert '<figure class="sheet plot-history">' in page
    rows = list(csv.DictReader((tuned.folder / "trials.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["trial"] for row in rows] == [str(i) for i in range(8)]
    assert "lr" in rows[0]


@pytest.mark.parametrize(("trials", "spread"), [(9, 1.0), (10, 1.0), (12, 0.0)])
def test_importance_is_shared_among_the_settings_of_enough_trials(trials: int, spread: float, tuned: Tuning) -> None:
    import optuna

    study = optuna.create_study(direction="maximize")
    kinds = {"lr": optuna.distributions.FloatDistribution(0, 1), "size": optuna.distributions.IntDistribution(1, 9)}
    for i in range(trials):
        study.add_trial(optuna.trial.create_trial(
            params={"lr": i / trials, "size": 1 + i % 9}, distributions=kinds, value=0.5 + spread * i / trials / 2
        ))  # fmt: skip
    found = studies.find_importance(study, 0)
    complete = tuple(replace(tuned.search.best_trial, number=i, state="complete") for i in range(trials))
    search = replace(tuned.search, trials=complete, importance=found)
    if trials >= 10 and spread:
        assert sum(found.values()) == pytest.approx(1)
        assert set(found) == {"lr", "size"}
        assert search.unimportant == ""
    else:
        assert found == {}
        assert ("the same score" if trials >= 10 else "10 complete trials are needed, 9 exist") in search.unimportant


def test_too_few_trials_have_no_importance_and_say_why(tuned: Tuning, capsys: pytest.CaptureFixture[str]) -> None:
    assert not tuned.search.importance
    print_tuning(tuned)
    for text in (capsys.readouterr().out, tuned.report.read_text(encoding="utf-8")):
        assert "10 complete trials are needed" in " ".join(text.split())
        assert "0%" not in text or "Importance</th>" not in text
    assert "plot-importance" not in tuned.report.read_text(encoding="utf-8")


def test_the_result_shows_in_a_notebook(tuned: Tuning) -> None:
    assert len(tuned.to_rows()) == 8
    assert "<table>" in tuned._repr_html_()
    assert repr(tuned).startswith("Tuning(")


def test_test_images_are_not_decoded_without_a_test(damaged: Path, tmp_path: Path) -> None:
    result = tune(damaged, tmp_path / "out", trials=2, folds=2, space=SPACE, test=False, **FAST)
    assert result.search.test is None
    assert not (tmp_path / "out" / "run").exists()
    assert "Before you rely on the model" in result.report.read_text(encoding="utf-8")
    assert "cannot be read" not in (tmp_path / "out" / "log.txt").read_text(encoding="utf-8")


def test_test_images_are_decoded_after_the_last_trial(damaged: Path, images: Path, tmp_path: Path) -> None:
    def repair(task: str, done: int, total: int) -> None:
        if task == "Trials" and done == total:
            for path in find_tests(damaged):
                shutil.copy(images / path.relative_to(damaged), path)

    result = tune(damaged, tmp_path / "out", trials=1, folds=1, space=SPACE, progress=repair, **FAST)
    assert result.search.test is not None
    assert result.search.test.n == len(find_tests(images))


def test_one_seed_gives_the_same_trials_even_after_an_interruption(images: Path, tmp_path: Path) -> None:
    def interrupt(task: str, done: int, total: int) -> None:
        if (task, done) == ("Trials", 2):
            raise KeyboardInterrupt

    how: dict[str, Any] = {"trials": 4, "folds": 1, "space": SPACE, "test": False, "seed": 5, **FAST}
    first = tune(images, tmp_path / "a", **how)
    with pytest.raises(KeyboardInterrupt):
        tune(images, tmp_path / "b", progress=interrupt, **how)
    second = tune(out=tmp_path / "b", resume=True, test=False)
    assert list_settings(second) == list_settings(first)
    assert [each.score for each in second.search.trials] == [each.score for each in first.search.trials]
    other = tune(images, tmp_path / "c", **{**how, "seed": 6, "trials": 2})
    assert list_settings(other)[1] != list_settings(first)[1]
    assert json.loads((tmp_path / "c" / "tuning.json").read_text())["seed"] == 6


def test_a_trial_that_was_interrupted_is_drawn_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how: dict[str, Any] = {"trials": 3, "folds": 1, "space": SPACE, "test": False, **FAST}
    calls: list[int] = []
    score = Trainer.score

    def stop(trainer: Any, settings: Any, part: int) -> float:
        calls.append(part)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(trainer, settings, part)

    monkeypatch.setattr(Trainer, "score", stop)
    with pytest.raises(KeyboardInterrupt):
        tune(images, tmp_path / "out", **how)
    result = tune(out=tmp_path / "out", resume=True, test=False)
    states = [each.state for each in result.search.trials]
    assert states == ["complete", "interrupted", "complete", "complete"]
    assert result.search.trials[2].settings == result.search.trials[1].settings


def hang_in_a_trial(images: Path, out: Path, started: Path, url: str, silent: bool) -> None:
    """Begin a search, and stay in its first trial; if `silent`, before its first sign of life."""

    def hang(*_: object) -> float:
        started.touch()
        time.sleep(600)
        return 0.0

    studies.HEARTBEAT, studies.GRACE = 1, 2
    if silent:
        optuna.storages.RDBStorage.record_heartbeat = lambda *_: time.sleep(600)  # type: ignore[method-assign]
    Trainer.score = hang  # type: ignore[assignment]
    tune(images, out, trials=2, folds=1, test=False, space={"lr": [0.001, 0.01]}, storage=url or None, **FAST)


@pytest.mark.parametrize(("kind", "silent"), [("sqlite", False), ("sqlite", True), ("postgresql", False)])
def test_the_trial_of_a_killed_process_is_run_again(
    kind: str,
    silent: bool,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    # Its own database: the reading room refuses one that has the tables of others.
    url = create_database(request.getfixturevalue("postgresql")) if kind == "postgresql" else ""
    started, out = tmp_path / "started", tmp_path / "out"
    child = start(hang_in_a_trial, images, out, started, url, silent, log=tmp_path / "log")
    try:
        wait_until(lambda: started.exists() or not child.runs, 240)
    finally:
        child.end(signal.SIGKILL)
        child.wait(60)
    assert started.exists(), child.shown
    monkeypatch.setattr(studies, "HEARTBEAT", 1)
    monkeypatch.setattr(studies, "GRACE", 2)
    result = tune(out=out, resume=True, test=False)
    states = [each.state for each in result.search.trials]
    assert states.count("interrupted") == 1
    assert states.count("complete") == 2
    again = next(each for each in result.search.trials if each.repeats == 0)
    assert again.settings == result.search.trials[0].settings
    assert (out / "study.db").exists() == (kind == "sqlite")


def test_a_second_start_with_the_same_arguments_joins_and_another_one_is_refused(images: Path, tmp_path: Path) -> None:
    out, how = tmp_path / "out", {"folds": 1, "space": SPACE, "test": False, **FAST}
    tune(images, out, trials=1, **how)
    assert len(tune(images, out, trials=2, **how).search.trials) == 2
    with pytest.raises(UsageError, match=r"space: the search in .* began with"):
        tune(images, out, **{**how, "space": {"lr": [0.1, 0.2]}})
    with pytest.raises(UsageError, match=r"folds: the search in .* began with 1, not 2"):
        tune(images, out, **{**how, "folds": 2})
    with pytest.raises(UsageError, match=r"weight_decay: the run in .* began with"):
        tune(images, out, weight_decay=0.5, **how)


def test_a_finished_search_has_no_second_test(tuned: Tuning, images: Path) -> None:
    before = (tuned.folder / "tuning.json").read_bytes()
    again = tune(out=tuned.folder, resume=True)
    assert again.search == tuned.search
    assert again.settings.optimisation == tuned.settings.optimisation
    with pytest.raises(UsageError, match=r"trials: .* would need a second test"):
        tune(out=tuned.folder, resume=True, trials=9)
    assert (tuned.folder / "tuning.json").read_bytes() == before


def test_training_that_diverges_ends_the_trial_alone(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    space = {"lr": [1e-3, 1e30], "optimizer": ["sgd"]}
    result = tune(images, tmp_path / "out", trials=4, folds=1, space=space, test=False, optimizer="sgd", seed=1, **FAST)
    bad = [each for each in result.search.trials if each.settings["lr"] == 1e30]
    assert bad
    assert all("the loss is not finite" in each.remark for each in bad)
    assert [each.remark in caplog.text for each in bad] == [True] * len(bad)
    assert result.settings.optimisation.lr == 1e-3
    with pytest.raises(DataError, match=r"No trial was completed \(1 tried\)\. .*not finite"):
        tune(images, tmp_path / "bad", trials=1, folds=1, space={"lr": [1e30]}, test=False, optimizer="sgd", **FAST)


def test_a_setting_without_effect_beside_the_others_is_not_drawn(images: Path, tmp_path: Path) -> None:
    space = {"momentum": [0.0, 0.9], "optimizer": ["adamw", "sgd"]}
    result = tune(images, tmp_path / "out", trials=6, folds=1, space=space, test=False, **FAST)
    for each in result.search.trials:
        assert ("momentum" in each.settings) == (each.settings["optimizer"] == "sgd")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"lrr": [1]}, r"s\.yaml: lrr: no such setting\. Do you mean lr"),
        ({"zzzz": [1]}, r"s\.yaml: zzzz: no such setting\. These can be tuned: backbone, "),
        ({"network.lr": [1]}, r"s\.yaml: network\.lr: no such setting\. It belongs under `optimisation:`"),
        ({"lr": [1e-3], "optimisation": {"lr": [1e-3]}}, r"s\.yaml: optimisation\.lr: given twice"),
        ({"seed": [1, 2]}, r"s\.yaml: seed: cannot be tuned"),
        ({"data.val_fraction": [0.1]}, r"s\.yaml: data\.val_fraction: cannot be tuned"),
        ({"lr": []}, r"s\.yaml: lr: the list must hold .* but it is empty"),
        ({"lr": [1e-3, 1e-3]}, r"s\.yaml: lr: 0\.001 is listed twice"),
        ({"lr": 3}, r"s\.yaml: lr: must be a list of values"),
        ({"lr": [-1.0]}, r"s\.yaml: lr: must be greater than 0, found -1\.0"),
        ({"lr": {"low": 1, "high": 1}}, r"s\.yaml: lr: the range is empty"),
        ({"lr": {"low": 0, "high": 1, "log": True}}, r"s\.yaml: lr: with log, low must be above 0"),
        ({"lr": {"low": 1, "high": 2, "log": True, "step": 1}}, r"s\.yaml: lr: has both log and step"),
        ({"lr": {"low": 1, "high": 2, "step": 0.3}}, r"s\.yaml: lr: high is not a whole number of steps"),
        ({"lr": {"low": 1}}, r"s\.yaml: lr\.high: is missing"),
        ({"lr": {"low": 1, "hihg": 2}}, r"s\.yaml: lr\.hihg: unknown key"),
        ({"batch_size": {"low": 1.5, "high": 3}}, r"s\.yaml: batch_size: is a whole number"),
        ({"balance": {"low": 1, "high": 3}}, r"s\.yaml: balance: is not a number"),
        ({"balance": ["none", "some"]}, r"s\.yaml: balance: must be 'none', 'weights' or 'sampling', found 'some'"),
        ({"backbone_lr": [1e-3, 1e-4]}, r"s\.yaml: backbone_lr: no effect while the backbone is frozen"),
        ({"optimisation": 3}, r"s\.yaml: optimisation: must be a mapping"),
        ({}, r"s\.yaml: no setting to tune"),
    ],
)
def test_a_faulty_space_is_refused(space: dict[str, Any], message: str, images: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(space))
    with pytest.raises(UsageError, match=message):
        tune(images, tmp_path / "out", space=path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": "hed"}, "hed: no such file, and no space of this name"),
        ({"metric": "auc"}, "metric: must be one of auroc"),
        ({"storage": "mysql://a@b/c"}, "storage: must be the URL of a SQLite or PostgreSQL database"),
        (
            {"storage": "postgresql://a@b/c?password=secret"},
            r"storage: has a password after the `\?`, which would be stored",
        ),
        ({"storage": "postgresql://a:secret@127.0.0.1:1/none"}, r"storage: postgresql://a:\*\*\*@.* cannot be opened"),
        ({"storage": "sqlite:////none/study.db"}, r"storage: sqlite:////none/study\.db: cannot be opened"),
        ({"resume": True}, "no run to resume"),
    ],
)
def test_faulty_arguments_are_refused_and_leave_nothing_behind(
    options: dict[str, Any], message: str, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        tune(
            None if "resume" in options else images,
            tmp_path / "out",
            **options,
            **({} if "resume" in options else FAST),
        )
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_database_that_cannot_be_reached_changes_nothing_in_the_folder(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="cannot be opened"):
            tune(images, out, storage="postgresql://a@127.0.0.1:1/none", overwrite=overwrite, **FAST)
        assert list(out.iterdir()) == []


def test_settings_without_effect_on_any_trial_are_said(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    space = {"lr": [1e-3, 1e-2], "optimizer": ["adamw", "sgd"]}
    given = {"momentum": 0.8, "precision": "float32", "test_fraction": 0.3, "val_fraction": 0.3, "lr": 0.5}
    tune(images, tmp_path / "out", trials=1, folds=2, test=False, space=space, **(FAST | given))
    said = [message for message in caplog.messages if "has no effect" in message]
    assert sorted(said) == [  # nothing of momentum, which trials with sgd use, nor of val_fraction, which folds use
        "`lr` has no effect: the space sets it in every trial.",
        "`precision` has no effect: the backbone is frozen.",
        "`test_fraction` has no effect: the data have a test split.",
    ]


def test_the_page_says_why_a_trial_was_stopped(tmp_path: Path) -> None:
    scores = [(0.9, 0.8), (0.5,), ()]
    states = ["complete", "stopped early", "stopped early"]
    trials = tuple(
        TrialResult(i, state, 0.85 if len(folds) == 2 else None, folds, {"lr": 0.1 * (i + 1)}, 1.0,
                    remark="" if folds else "the loss is not finite <b>")
        for i, (folds, state) in enumerate(zip(scores, states, strict=True))
    )  # fmt: skip
    write_search(tmp_path, Search("auroc", False, 2, 0, trials, 0, {}), {}, "svg", False)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "After 1 of 2 folds, its mean of 0.500 was in the worst quarter" in page
    assert "The loss is not finite &lt;b&gt;" in page
    table = page.split("Trials that were stopped early")[1].split("</table>")[0]
    assert [table.count(f">{value}<") for value in ("0.1", "0.2", "0.3")] == [0, 1, 1]


def test_a_class_without_a_readable_image_is_named_before_the_first_trial(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")
    for path in (tmp_path / "images").glob("*/PNEUMONIA/*.png"):
        path.write_bytes(f"no image {path.name}".encode())
    with pytest.raises(DataError, match=r"'train' has no image of class PNEUMONIA after .* unreadable images"):
        tune(tmp_path / "images", tmp_path / "out", trials=3, test=False, **FAST)


def test_strict_is_refused_where_no_test_will_audit_the_data(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="strict: has no effect without the test"):
        tune(images, tmp_path / "out", trials=1, test=False, strict=True)
    assert not (tmp_path / "out").exists()


def test_named_spaces_suit_their_recipes(images: Path) -> None:
    from pneumoscope.training.search_space import SPACES, read_space
    from pneumoscope.training.settings import resolve_settings

    for recipe, name in (("head", "head"), ("finetune", "finetune"), ("best", "finetune")):
        found = read_space(None, resolve_settings({"path": "x", "recipe": recipe}, {}))
        assert set(found) == set(SPACES[name])


def test_without_optuna_the_command_names_the_extra(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setattr(sys, "argv", ["pneumoscope", "tune", str(images), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 6
    assert 'optuna is not installed: pip install "pneumoscope[tune]"' in capsys.readouterr().err


def test_the_command_prints_the_best_settings_and_where_they_are(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({"optimisation.lr": [1e-3, 1e-2]}))
    line = ["tune", images, "--out", tmp_path / "out", "--trials", 2, "--folds", 1, "--space", path, "--no-test",
            "--size", 128, "--epochs", 4]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["pneumoscope", *map(str, line)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert "The test split was not read." in shown
    assert "It is optimistic, as the best of many." in shown
    assert str(tmp_path / "out" / "best.yaml") in shown


def test_train_without_a_test_decodes_no_test_image_and_can_test_later(
    images: Path, damaged: Path, tmp_path: Path
) -> None:
    run = train(damaged, tmp_path / "run", test=False, **FAST)
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert metrics["split"] == run.evaluation.split == "val"
    assert "validation" not in metrics
    assert metrics["n"] == sum(each.split == "val" for each in read_samples(images))
    assert any("The test split was not read" in note for note in metrics["notes"])
    assert not any("12 images" in note for note in metrics["notes"])
    assert "The test split was not read" in run.report.read_text(encoding="utf-8")
    for path in find_tests(damaged):
        shutil.copy(images / path.relative_to(damaged), path)
    tested = train(out=run.folder, resume=True)
    whole = train(images, tmp_path / "whole", **FAST)
    assert tested.evaluation.split == "test"
    assert tested.evaluation.validation is not None
    assert tested.evaluation.validation.metrics["auroc"] == run.evaluation.metrics["auroc"]
    assert tested.evaluation.metrics == whole.evaluation.metrics
    assert not any("The test split was not read" in note for note in tested.evaluation.notes)
    assert load_model(tested.model) == load_model(whole.model)  # also what it says of its data


def test_a_test_that_is_added_later_is_checked_like_any_other(images: Path, tmp_path: Path) -> None:
    data = tmp_path / "images"
    shutil.copytree(images, data)
    test, learned = ([each.path for each in read_samples(data) if each.split == split] for split in ("test", "train"))
    shutil.copy(learned[0], test[0])
    options = FAST | {"audit": True, "epochs": 2}
    run = train(data, tmp_path / "run", test=False, **options)
    assert "identical across splits" not in run.report.read_text(encoding="utf-8")
    assert "identical across splits" in train(out=run.folder, resume=True).report.read_text(encoding="utf-8")
