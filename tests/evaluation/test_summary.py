"""Many runs summarised: grouped by settings, averaged over seeds, compared on the same images."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pneumoscope import Summary, compare, summarize
from pneumoscope.cli import main as cli
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.intervals.all_metrics import evaluate_predictions
from pneumoscope.reports.summary import escape_latex

CLASSES = ("NORMAL", "PNEUMONIA")


def write_run(folder: Path, seed: int, gain: float = 0.0, images: int = 120, **settings: Any) -> Path:
    """A run of two images a patient; the images are the same for every seed, the network's noise is not."""
    folder.mkdir(parents=True)
    patients = np.arange(images) // 2
    labels = patients % 2
    hardness = np.random.default_rng(99).standard_normal(patients.max() + 1)[patients]
    noise = np.random.default_rng([seed, round(100 * gain)]).standard_normal(images)
    p = 1 / (1 + np.exp(-(hardness + 0.6 * noise + (2 + gain) * (labels - 0.5))))
    names = [f"p{patient}" for patient in patients]
    evaluation = evaluate_predictions(labels, p, classes=CLASSES, patients=names, resamples=10)
    (folder / "metrics.json").write_text(json.dumps(evaluation.to_json()))
    values: dict[str, dict[str, Any]] = {
        "run": {"recipe": "head", "seed": seed},
        "data": {"path": "../images"},
        "network": {"backbone": "a"},
    }
    for group in values.values():
        group.update({name: value for name, value in settings.items() if name in group})
    values["network"] |= {name: value for name, value in settings.items() if name == "size"}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "probability", "predicted_label", "error", "patient", "sha256"])
        for i in range(images):
            row = [f"{i}.png", CLASSES[labels[i]], p[i], CLASSES[int(p[i] >= 0.5)], "", names[i], f"{i:012x}"]
            writer.writerow(row)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three backbones, one much better, with four seeds each."""
    return [
        write_run(tmp_path / f"{backbone}{seed}", seed, gain, backbone=backbone)
        for backbone, gain in (("a", 0.0), ("b", 1.5), ("c", 0.01))
        for seed in range(4)
    ]


def test_runs_are_grouped_by_what_differs_and_averaged_over_seeds(runs: list[Path]) -> None:
    summary = summarize(runs)
    assert summary.by == ("backbone",)
    assert [group.name for group in summary.groups] == ["a", "b", "c"]
    first = summary.groups[0]
    assert (len(first.runs), first.seeds) == (4, (0, 1, 2, 3))
    values = [json.loads((run / "metrics.json").read_text())["metrics"]["auroc"]["value"] for run in runs[:4]]
    assert first.metrics["auroc"].mean == pytest.approx(np.mean(values))
    assert first.metrics["auroc"].sd == pytest.approx(np.std(values, ddof=1))


def test_cross_validations_that_differ_only_in_their_division_are_groups_of_their_own(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"{name}", seed=0) for name in ("5x1", "10x1", "5x2")]
    for folder in folders:
        folds, repeats = folder.name.split("x")
        (folder / "crossval.yaml").write_text(f"folds: {folds}\nrepeats: {repeats}\ninclude_test: false\n")
    summary = summarize(folders)
    assert summary.by == ("folds", "repeats")
    assert [group.name for group in summary.groups] == [
        "folds 5, repeats 1",
        "folds 10, repeats 1",
        "folds 5, repeats 2",
    ]


def test_groups_are_compared_on_the_same_images_across_seeds_and_patients(runs: list[Path]) -> None:
    summary = summarize(runs, "backbone")
    assert (summary.images, summary.patients) == (120, 60)
    better, same = summary.contrasts
    assert better.paired
    assert better.differences["auroc"].low > 0
    assert better.differences["auroc"].adjusted < 0.05
    assert same.differences["auroc"].low < 0 < same.differences["auroc"].high
    assert same.differences["auroc"].p > 0.05
    spread = summary.groups[1].metrics["auroc"].mean - summary.groups[0].metrics["auroc"].mean
    assert better.differences["auroc"].value == pytest.approx(spread)


def test_more_seeds_do_not_make_the_patients_more(tmp_path: Path) -> None:
    few = [write_run(tmp_path / f"few{g}{s}", s, g, backbone=str(g)) for g in (0.0, 0.4) for s in range(3)]
    many = [write_run(tmp_path / f"many{g}{s}", s, g, backbone=str(g)) for g in (0.0, 0.4) for s in range(12)]
    widths = []
    for paths in (few, many):
        difference = summarize(paths).contrasts[0].differences["brier"]
        widths.append(difference.high - difference.low)
    assert 0.2 * widths[0] < widths[1] < widths[0]


def test_a_recipe_stands_for_the_settings_that_it_implies(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path / f"{recipe}{seed}", seed, recipe=recipe, size=size)
        for recipe, size in (("head", 224), ("best", 240))
        for seed in range(2)
    ]
    assert summarize(paths).by == ("recipe",)


def test_runs_on_other_images_are_summarised_but_not_compared(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / "a0", 0), write_run(tmp_path / "b0", 0, images=60, backbone="b")]
    summary = summarize(paths)
    assert (len(summary.groups), summary.contrasts, summary.images) == (2, (), None)
    assert any("do not have the same test images" in note for note in summary.notes)
    assert any("A single run says nothing about the spread" in note for note in summary.notes)


def test_what_is_mixed_in_a_group_is_said(runs: list[Path]) -> None:
    summary = summarize(runs, "recipe")
    assert len(summary.groups) == 1
    assert any("also differ in backbone" in note for note in summary.notes)


def test_metrics_of_another_split_are_not_averaged_with_the_others(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"a{seed}", seed) for seed in range(3)]
    path = folders[2] / "metrics.json"  # as `train --no-test` writes it
    path.write_text(json.dumps(json.loads(path.read_text()) | {"split": "val"}))
    summary = summarize(folders)
    assert [(group.name, len(group.runs)) for group in summary.groups] == [("split test", 2), ("split val", 1)]
    assert any("also differ in split" in note for note in summarize(folders, "recipe").notes)


def test_one_file_has_one_name_wherever_its_run_is(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a", 0), write_run(tmp_path / "deep" / "b", 1)]
    for folder, up in zip(folders, ("..", "../.."), strict=True):
        values = yaml.safe_load((folder / "config.yaml").read_text())
        values["data"]["path"] = f"{up}/images"
        values["decisions"] = {"groups": f"{up}/groups.yaml"}
        values["network"]["init"] = f"{up}/parent"
        (folder / "config.yaml").write_text(yaml.safe_dump(values))
    assert summarize(folders).by == ()
    for folder in folders:  # a name is not a file
        values = yaml.safe_load((folder / "config.yaml").read_text())
        values["network"]["init"] = "hf:owner/name"
        (folder / "config.yaml").write_text(yaml.safe_dump(values))
    assert summarize(folders).by == ()


def test_mistakes_are_explained(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="by: no run has a setting 'backbones'"):
        summarize(runs, "backbones")
    with pytest.raises(UsageError, match="metrics: no such metric: auc"):
        summarize(runs, metrics="auc")
    with pytest.raises(UsageError, match="runs: none was given"):
        summarize([])
    (runs[0] / "config.yaml").unlink()
    with pytest.raises(DataError, match=r"config.yaml is missing. Give finished runs"):
        summarize(runs)
    (runs[0] / "config.yaml").write_text("model: x\n")
    with pytest.raises(DataError, match="has no seed"):
        summarize(runs)


def test_tables_and_plots_are_written(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "summary"
    summary = summarize(runs, out=out, metrics="auroc,f1")
    lines = (out / "summary.md").read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["| backbone | n | AUROC | F1 |", "| --- | --- | --- | --- |"]
    latex = (out / "summary.tex").read_text(encoding="utf-8")
    assert latex.count(r"$\pm$") == 6
    assert r"\toprule" in latex
    rows = list(csv.DictReader(io.StringIO((out / "summary.csv").read_text(encoding="utf-8"))))
    assert len(rows) == len(summary.to_rows()) == 3 * 11
    assert {row["backbone"] for row in rows} == {"a", "b", "c"}
    assert sorted(path.name for path in (out / "plots").iterdir()) == ["auroc.svg", "f1.svg"]
    assert json.loads((out / "summary.json").read_text())["contrasts"][0]["group"] == "b"
    with pytest.raises(UsageError, match="already exists"):
        summarize(runs, out=out)


def test_latex_is_escaped() -> None:
    assert escape_latex("50% of a_b & c ± d") == r"50\% of a\_b \& c $\pm$ d"


def test_a_summary_shows_in_a_notebook(runs: list[Path]) -> None:
    summary = summarize(runs)
    assert isinstance(summary, Summary)
    assert "±" in summary._repr_html_()
    assert len(summary.to_rows()) == 33
    assert repr(summary) == "Summary(12 runs by backbone)"


def type_line(line: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(sys, "argv", ["pneumoscope", *line])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_compare_groups_runs_over_seeds_as_summarize_does(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(folder) for folder in runs]
    assert not type_line(["summarize", *names, "--by", "backbone"], monkeypatch)
    expected = capsys.readouterr().out
    out = tmp_path / "compared"
    assert not type_line(["compare", *names, "--by", "backbone", "--out", str(out)], monkeypatch)
    printed = capsys.readouterr().out
    assert printed.startswith(expected)
    assert "0.9" in printed
    assert len(json.loads((out / "summary.json").read_text())["contrasts"]) == 2
    assert type_line(["compare", *names, "--by", "backbone", "--seed", "1"], monkeypatch) == 2
    assert "--seed: no effect with --by. Leave it out." in " ".join(capsys.readouterr().err.split())


def test_compare_says_that_runs_differ_only_in_their_seed(runs: list[Path]) -> None:
    (note,) = [note for note in compare(runs[2:6], resamples=10).notes if "seed" in note]
    assert f"{runs[2]}, {runs[3]}" in note
    assert "`pneumoscope compare RUN… --by backbone`" in note
    (note,) = [note for note in compare(runs[:2], resamples=10).notes if "seed" in note]
    assert "`pneumoscope summarize RUN…`" in note
    assert not [note for note in compare(runs[::4], resamples=10).notes if "seed" in note]


@pytest.mark.parametrize("form", ["text", "csv", "markdown", "latex", "json"])
def test_the_command_prints_each_format(
    form: str, runs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["pneumoscope", "summarize", *map(str, runs), "--format", form])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr().out
    assert not ended.value.code
    marks = {"text": "±", "csv": "group,", "markdown": "| ---", "latex": "tabular", "json": '"contrasts"'}
    assert marks[form] in printed
    if form == "text":
        assert max(map(len, printed.splitlines())) <= 80
