"""The model card: Mitchell's sections, valid Markdown, true figures, and nobody's name."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt

from pneumoscope.datasets.samples import Sample
from pneumoscope.datasets.sources import KERMANY, NIH, RSNA, recognise_sources
from pneumoscope.decisions.calibration import Calibration
from pneumoscope.decisions.decisions import Decisions, to_json
from pneumoscope.decisions.prediction_sets import PredictionSets
from pneumoscope.decisions.threshold import Threshold
from pneumoscope.evaluation.intervals.all_metrics import evaluate_predictions
from pneumoscope.evaluation.results import Evaluation, Subgroup
from pneumoscope.evaluation.subgroups import measure_subgroups
from pneumoscope.inference.prediction import Prediction
from pneumoscope.inference.predictor import load
from pneumoscope.models.lineage import Parent, Step
from pneumoscope.models.model_folder import Model, load_model
from pneumoscope.reports.model_card import write_model_card
from pneumoscope.training.train import Run

SECTIONS = [
    "Model details", "Intended use", "Factors", "Metrics", "Evaluation data", "Training data",
    "Quantitative analyses", "Ethical considerations", "Caveats and recommendations",
]  # fmt: skip


def make_model(classes: tuple[str, ...] = ("NORMAL", "PNEUMONIA"), **more: Any) -> Model:
    from pneumoscope.images.prepare import InputSpec

    two = len(classes) == 2
    fractions = (1 / len(classes),) * len(classes)
    decisions = Decisions(Calibration(class_fractions=fractions), Threshold(0.25, "0.25") if two else None)
    values = {
        "backbone": "efficientnet_lite0", "architecture": "tf_efficientnet_lite0", "arguments": {}, "labels": classes,
        "positive": classes[1] if two else None, "input": InputSpec(), "decisions": to_json(decisions),
        "training": {"recipe": "head", "epochs": 9, "best": {"epoch": 7}},
        "data": {"fingerprint": "f00", "counts": {"train": dict.fromkeys(classes, 11)}}, "version": "1",
        "weights_sha256": "abc",
    }  # fmt: skip
    return Model(**{**values, **more})


def make_evaluation(classes: tuple[str, ...] = ("NORMAL", "PNEUMONIA"), **more: Any) -> Evaluation:
    rng = np.random.default_rng(0)
    labels, shares = rng.integers(0, len(classes), 60), rng.dirichlet(np.ones(len(classes)), 60)
    two = len(classes) == 2
    found = evaluate_predictions(labels, shares[:, 1] if two else shares, classes=classes, resamples=20)
    return dataclasses.replace(found, **more)


def written(folder: Path, model: Model, evaluation: Evaluation, **more: Any) -> tuple[dict[str, Any], str, str]:
    """Front matter, Markdown, and the HTML that it becomes."""
    path = write_model_card(folder, model, evaluation, **more)
    assert path == folder / "README.md"
    _, front, card = path.read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), card, MarkdownIt("commonmark").enable("table").render(card)


def test_the_card_of_a_run_has_every_section_and_the_runs_figures(run: Run, tmp_path: Path) -> None:
    front, card, page = written(tmp_path, load_model(run.model), run.evaluation, backbone_licence="Apache-2.0")
    assert [line[3:] for line in card.splitlines() if line.startswith("## ")][:9] == SECTIONS
    auroc = run.evaluation.metrics["auroc"]
    assert f'<td>AUROC</td>\n<td style="text-align:right">{auroc.value:.3f}</td>' in page
    assert page.count("<table>") == 2
    assert "not stated" in card
    assert "Apache-2.0" in card
    assert front["metrics"] == ["accuracy", "f1", "roc_auc"]
    assert "license" not in front
    assert "\n\n\n" not in card
    assert not [line for line in card.splitlines() if "{{" in line or "{%" in line]


def test_a_model_loads_the_same_with_and_without_its_card(run: Run, images: Path, tmp_path: Path) -> None:
    image = min((images / "test").rglob("*.png"))
    model = Path(shutil.copytree(run.model, tmp_path / "model"))
    (model / "README.md").unlink()
    without = load(model).predict(image)
    write_model_card(model, load_model(model), run.evaluation)
    assert load(model).predict(image) == without


def test_names_of_files_and_patients_stay_out(tmp_path: Path) -> None:
    notes = [
        "2 patients are in more than one split, as the data's own folders have it: Smith (train and test).",
        "Warning: the format tells the class (smith.png, jones.jpeg…). Convert all images.",
        "Simulated radiographs: the figures say nothing about patients.",
        "More findings, with pictures: pneumoscope audit /home/smith",
    ]
    _, card, _ = written(tmp_path, make_model(), make_evaluation(), notes=notes)
    assert "mith" not in card
    assert "2 patients are in more than one split" in card
    assert "the format tells the class. Convert all images." in card
    assert "say nothing about patients" in card


def test_what_notes_quote_and_code_in_them_stay_whole(tmp_path: Path) -> None:
    notes = ["1 image has the warning 'outside the intended use: age 86 (meant for 3 to 83 years)'.",
             "Identify patients with `patient_pattern`, or `<b>`; `a` *b*."]  # fmt: skip
    _, card, page = written(tmp_path, make_model(), make_evaluation(), notes=notes)
    assert "- 1 image has the warning 'outside the intended use'.\n" in card
    assert "Identify patients with <code>patient_pattern</code>, or <code>&lt;b&gt;</code>; <code>a</code> *b*." in page


def test_the_card_of_three_classes_says_how_each_is_recognised(tmp_path: Path) -> None:
    evaluation = make_evaluation(("A|1", "B", "C"))
    _, card, page = written(tmp_path, make_model(("A|1", "B", "C")), evaluation)
    found = evaluation.per_class["A|1"]
    row = next(line for line in card.splitlines() if line.startswith(r"| A\|1 |"))
    assert row.startswith(rf"| A\|1 | {found.support} | {found.precision.value:.3f} (")
    assert f"| {found.recall.value:.3f} (" in row
    assert f"| {found.f1.value:.3f} (" in row
    assert "<td>A|1</td>" in page
    counts = [evaluation.per_class[name].support for name in ("A|1", "B", "C")]
    assert r"({} A\|1, {} B, {} C images)".format(*counts) in card
    _, two, _ = written(tmp_path, make_model(), make_evaluation())
    assert "| class | images |" not in two


def test_hostile_class_names_are_shown_and_do_nothing(tmp_path: Path) -> None:
    classes = ("a|b *x*", "<script>\n# [y](z) `q`")
    _, card, page = written(tmp_path, make_model(classes), make_evaluation(classes))
    assert "<script" not in page
    assert '<a href="z"' not in page
    assert "<em>x</em>" not in page
    assert page.count("<h1>") == 1
    row = next(line for line in card.splitlines() if line.startswith("| train"))
    assert row == "| train | 11 | 11 | 22 |"
    assert "a|b *x*" in page


@pytest.mark.parametrize("classes", [("NORMAL", "PNEUMONIA"), ("A", "B", "C")])
def test_what_a_model_lacks_is_said_to_lack(tmp_path: Path, classes: tuple[str, ...]) -> None:
    metrics = {name: dataclasses.replace(one, value=math.nan, low=math.nan, high=math.nan)
               for name, one in make_evaluation(classes).metrics.items()}  # fmt: skip
    front, card, _ = written(tmp_path, make_model(classes), make_evaluation(classes, metrics=metrics))
    assert "no OOD detector" in card
    assert "no prediction sets" in card
    assert "**Calibration**: none" in card
    assert "could not be divided" in card
    assert ("PPV is lower" in card) == (len(classes) == 2)
    assert front["model-index"][0]["results"][0]["metrics"] == []


def test_calibration_prediction_sets_and_groups_are_told_with_their_intervals(tmp_path: Path) -> None:
    evaluation = make_evaluation()
    one = evaluation.metrics["brier"]
    coverage = {"NORMAL": {"value": 0.6, "low": 0.4, "high": 0.8, "n": 30}}
    evaluation = dataclasses.replace(
        evaluation, uncalibrated={"brier": dataclasses.replace(one, value=0.777)},
        decisions={"coverage": coverage, "counts": {"out_of_distribution": 4}},
    )  # fmt: skip
    decisions = Decisions(
        Calibration("platt", images=50, class_fractions=(0.5, 0.5)), Threshold(0.25, "youden"),
        PredictionSets(0.1, {"NORMAL": (0.2,), "PNEUMONIA": (0.3,)}),
    )  # fmt: skip
    model = make_model(decisions=to_json(decisions))
    groups = tuple(Subgroup("Sex", name, 30, {}, {"auroc": evaluation.metrics["auroc"]}) for name in ("female", "male"))
    evaluation = dataclasses.replace(evaluation, subgroups=groups)
    _, card, page = written(tmp_path, model, evaluation)
    assert (
        "Platt scaling, fitted on 50 validation images. On the test images it changed the Brier score from 0.777"
        in card
    )
    assert "Of 30 NORMAL images, the sets contained the true class for 60%" in card
    assert "None is a copy of an image that was used for training" in card
    _, card, _ = written(tmp_path, model, dataclasses.replace(evaluation, seen=3))
    assert "3 of them were also used in training" in card
    assert "None is a copy" not in card
    assert "rule: `youden`, applied to validation images" in card
    assert page.count("<table>") == 3
    assert "Sex: female" in page


def test_what_validation_images_had_a_part_in_is_told(tmp_path: Path) -> None:
    def card(**settings: object) -> str:
        model = make_model()
        return written(
            tmp_path, dataclasses.replace(model, training={**model.training, "settings": settings}), make_evaluation()
        )[1]

    tuned = card(train_backbone=True, schedule="cosine", warmup_epochs=50, augmented_copies=4)
    assert "validation images only decided when the warm-up of the head ended" in tuned
    assert "Each took part with 4 augmented copies" in tuned
    assert "of epoch 7, the last." in tuned
    assert "In training, validation images were not used" in card(
        train_backbone=True, schedule="cosine", warmup_epochs=0
    )
    plain = card(train_backbone=False, schedule="plateau", augmented_copies=0)
    assert "In training, validation images decided when to stop" in plain
    assert "augmented copies" not in plain
    assert "of epoch 7, the best on validation images." in plain


def test_the_kermany_data_are_recognised_by_their_names_and_cited(tmp_path: Path) -> None:
    names = (("IM-0001-0001.jpeg", "NORMAL"), ("person1_virus_6.jpeg", "PNEUMONIA"))
    samples = [Sample(Path("x") / name, label=label) for name, label in names]
    sources = recognise_sources(samples)
    assert sources == (KERMANY,)
    _, card, _ = written(tmp_path, make_model(), make_evaluation(), sources=sources)
    assert "CC BY 4.0" in card
    assert "children" in card
    assert "by file names" in card
    assert "10.17632/rscbjbr9sj.2" in card
    assert recognise_sources([*samples, Sample(Path("scan.png"), label="NORMAL")]) == ()
    assert recognise_sources([Sample(Path("IM-0001-0001.jpeg"), label="TB")]) == ()
    assert recognise_sources([]) == ()


def test_a_column_names_the_sources_and_the_initial_model_its_own(tmp_path: Path) -> None:
    samples = [Sample(Path(f"{name}.png"), label="NORMAL", metadata={"source": name}) for name in ("nih", "kermany")]
    assert recognise_sources(samples) == (KERMANY, NIH)
    assert recognise_sources([Sample(Path("x.png"), label="NORMAL", metadata={"source": " NIH"})]) == (NIH,)
    named = [Sample(Path("person1_virus_6.jpeg"), label="PNEUMONIA", metadata={"source": "ours"})]
    assert recognise_sources(named) == ()  # the column counts more than names of files
    assert recognise_sources([*samples, Sample(Path("x.png"), label="NORMAL", metadata={"source": "ours"})]) == ()
    model = make_model()
    first = Step(Parent("first", "0" * 64, sources=("rsna",)), "train")
    second = Step(Parent("second", "1" * 64, sources=("rsna", "nih")), "train")
    model = dataclasses.replace(model, lineage=(first, second))
    _, card, _ = written(tmp_path, model, make_evaluation(), sources=(KERMANY, NIH))
    assert "2. Training continued from the model `second`" in card
    assert "Before that**, the network learned from NIH ChestX-ray14 (licence: free" in card
    assert card.count("Data: ") == 3
    assert "Shih G" in card
    assert RSNA.licence_url in card


@pytest.mark.parametrize("classes", [("NORMAL", "PNEUMONIA"), ("A", "B", "C")])
def test_the_subgroups_have_the_metrics_that_are_measured(tmp_path: Path, classes: tuple[str, ...]) -> None:
    shares = np.random.default_rng(0).dirichlet(np.ones(len(classes)), 60)
    predictions = [
        Prediction(
            path=Path(f"{i}.png"), label=classes[i % len(classes)], predicted_label=classes[int(each.argmax())],
            probabilities=dict(zip(classes, each, strict=True)), sex="FM"[i // 30],
        )
        for i, each in enumerate(shares)
    ]  # fmt: skip
    evaluation = make_evaluation(classes)
    parts = tuple(measure_subgroups(predictions, evaluation))
    _, card, _ = written(tmp_path, make_model(classes), dataclasses.replace(evaluation, subgroups=parts))
    rows = [line for line in card.splitlines() if line.startswith("| Sex: ")]
    assert len(rows) == 2
    assert "–" not in "".join(rows)
    for row, part in zip(rows, parts, strict=True):
        assert all(f"{metric.value:.3f}" in row for metric in part.metrics.values())
