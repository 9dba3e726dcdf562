"""Parts of a split: told apart as names and headers allow, and measured by what each defines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import recall_score, roc_auc_score

from pneumoscope import evaluate
from pneumoscope.cli.output import print_evaluation
from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.samples import write_samples
from pneumoscope.evaluation.intervals.all_metrics import evaluate_predictions
from pneumoscope.evaluation.subgroups import by_kind, find_kinds, measure_subgroups
from pneumoscope.inference.prediction import Prediction, index_labels, stack_probabilities
from pneumoscope.training.train import Run

CLASSES = ("NORMAL", "PNEUMONIA")


def predicted(path: str, label: str = "NORMAL", p: float = 0.5, **tags: Any) -> Prediction:
    probabilities = dict(zip(CLASSES, (1 - p, p), strict=True))
    return Prediction(path=Path(path), label=label, probabilities=probabilities, **tags)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("a/person23_bacteria_78.jpeg", {"Cause, by file name": "bacteria"}),
        ("person1_virus_12.jpeg", {"Cause, by file name": "virus"}),
        ("IM-0115-0001.jpeg", {"Series, by file name": "IM"}),
        ("NORMAL2-IM-0588-0001.jpeg", {"Series, by file name": "NORMAL2-IM"}),
        ("NORMAL2-IM-0173-0001-0001.jpeg", {"Series, by file name": "NORMAL2-IM"}),
        ("person_bacteria.jpeg", {}),
        ("scan.dcm", {}),
    ],
)
def test_names_of_the_kermany_data_tell(name: str, kinds: dict[str, str]) -> None:
    assert find_kinds(predicted(name)) == kinds


@pytest.mark.parametrize(
    ("age", "band"),
    [(0.5, "under 1 year"), (1.0, "1 to 5 years"), (5.9, "1 to 5 years"), (17.0, "6 to 17 years"),
     (18.0, "18 to 39 years"), (64.0, "40 to 64 years"), (65.0, "65 years and over"), (None, None)],
)  # fmt: skip
def test_headers_tell_age_sex_and_view(age: float | None, band: str | None) -> None:
    kinds = find_kinds(predicted("a.dcm", age=age, sex="F", view="AP"))
    assert kinds.get("Age") == band
    assert (kinds["Sex"], kinds["View"]) == ("female", "AP")
    assert "Sex" not in find_kinds(predicted("a.dcm", age=age, sex="", view=None))


def test_each_part_is_measured_by_what_it_defines() -> None:
    rng = np.random.default_rng(0)
    predictions = []
    for i in range(240):
        label = CLASSES[i % 2]
        p = float(np.clip(rng.normal(0.35 + 0.3 * (i % 2), 0.2), 0, 1))
        name = f"person{i}_{'virus' if i % 3 else 'bacteria'}_1.jpeg" if i % 2 else f"{i}.jpeg"
        predictions.append(predicted(name, label, p, sex="M" if i < 190 else "F", view="PA", age=float(i % 90)))
    evaluation = evaluate_predictions(
        index_labels(predictions, CLASSES), stack_probabilities(predictions), classes=CLASSES, resamples=100
    )
    groups = by_kind(measure_subgroups(predictions, evaluation))
    assert list(groups) == ["Cause, by file name", "Sex", "Age"]  # all views are the same
    assert [part.name for part in groups["Age"]] == [
        "under 1 year", "1 to 5 years", "6 to 17 years", "18 to 39 years", "40 to 64 years", "65 years and over",
    ]  # fmt: skip
    for part in groups["Sex"]:
        members = [each for each in predictions if each.sex == {"male": "M", "female": "F"}[part.name]]
        y, stated = index_labels(members, CLASSES), stack_probabilities(members)
        assert part.n == len(members) == sum(part.counts.values())
        assert part.metrics["auroc"].value == pytest.approx(roc_auc_score(y, stated))
        assert part.metrics["sensitivity"].value == pytest.approx(recall_score(y, stated >= 0.5))
        assert part.metrics["specificity"].value == pytest.approx(recall_score(y, stated >= 0.5, pos_label=0))
        alone = evaluate_predictions(y, stated, classes=CLASSES, resamples=50)
        assert part.metrics == {name: alone.metrics[name] for name in ("auroc", "sensitivity", "specificity")}
        assert part.small == (part.name == "female")
    assert {tuple(part.metrics) for part in groups["Cause, by file name"]} == {("sensitivity",)}
    assert sum(part.n for part in groups["Cause, by file name"]) == 120


def test_the_models_threshold_counts_and_more_classes_work() -> None:
    predictions = [predicted(f"{i}.dcm", CLASSES[i % 2], 0.3, sex="MF"[i // 5]) for i in range(10)]
    evaluation = evaluate_predictions([i % 2 for i in range(10)], [0.3] * 10, classes=CLASSES,
                          threshold=0.25, resamples=20)  # fmt: skip
    assert {part.metrics["sensitivity"].value for part in measure_subgroups(predictions, evaluation)} == {1.0}
    three = [
        replace(one, label="abc"[i % 3], probabilities={"a": 0.5, "b": 0.3, "c": 0.2})
        for i, one in enumerate(predictions)
    ]
    evaluation = evaluate_predictions([i % 3 for i in range(10)], [[0.5, 0.3, 0.2]] * 10, classes="abc", resamples=20)
    assert measure_subgroups(three, evaluation)[0].metrics["accuracy"].value == pytest.approx(2 / 5)


def measured(
    columns: Mapping[str, Sequence[str | None]], caplog: pytest.LogCaptureFixture
) -> tuple[dict[str, Any], str]:
    """The subgroups by kind of 200 images with these columns, and what is said of the columns."""
    rng = np.random.default_rng(1)
    predictions = [
        predicted(f"{i}.png", CLASSES[i % 2], float(np.clip(rng.normal(0.4 + 0.2 * (i % 2), 0.2), 0, 1)))
        for i in range(200)
    ]
    evaluation = evaluate_predictions(
        index_labels(predictions, CLASSES), stack_probabilities(predictions), classes=CLASSES, resamples=20
    )
    metadata = [{name: cell for name, cells in columns.items() if (cell := cells[i]) is not None} for i in range(200)]
    with caplog.at_level("INFO", "pneumoscope"):
        groups = by_kind(measure_subgroups(predictions, evaluation, metadata))
    return {kind: {part.name: part for part in parts} for kind, parts in groups.items()}, caplog.text


def test_a_column_divides_the_images_and_missing_cells_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    site = [["north", "south", None][i % 3] for i in range(200)]
    groups, said = measured({"site": site}, caplog)
    assert {name: part.n for name, part in groups["site"].items()} == {"north": 67, "south": 67, "not known": 66}
    assert list(groups["site"]) == ["north", "south", "not known"]
    assert all(set(part.metrics) == {"auroc", "sensitivity", "specificity"} for part in groups["site"].values())
    assert all(part.metrics["auroc"].low < part.metrics["auroc"].high for part in groups["site"].values())
    assert said == ""


def test_numbers_are_divided_by_quartile_unless_there_are_few(caplog: pytest.LogCaptureFixture) -> None:
    groups, _ = measured({
        "kv": [f"{i / 2}" for i in range(200)],
        "grid": [str(i % 3) for i in range(200)],
        "dose": [None if i % 4 == 0 else f"{i % 50}e-3" for i in range(200)],
    }, caplog)  # fmt: skip
    assert {name: part.n for name, part in groups["kv"].items()} == {
        "up to 24.5": 50, "over 24.5 to 49.5": 50, "over 49.5 to 74.5": 50, "over 74.5": 50,
    }  # fmt: skip
    assert {name: part.n for name, part in groups["grid"].items()} == {"0": 67, "1": 67, "2": 66}
    assert (len(groups["dose"]), groups["dose"]["not known"].n) == (5, 50)
    assert sum(part.n for part in groups["dose"].values()) == 200


def test_identifiers_are_not_divided_as_if_they_were_amounts(caplog: pytest.LogCaptureFixture) -> None:
    groups, said = measured({
        "study_id": [str(50_000_000 + 37 * i // 2) for i in range(200)],
        "exam": [str(90_000 - i) for i in range(200)],
        "ScannerID": [str(100 + i % 12) for i in range(200)],
        "mAs": [str(10 + i % 12) for i in range(200)],
    }, caplog)  # fmt: skip
    assert list(groups) == ["ScannerID", "mAs"]
    assert list(groups["ScannerID"]) == [*map(str, range(100, 108)), "other values"]
    assert "up to 12" in groups["mAs"]
    assert "study_id (200 different identifiers), exam (200 different identifiers)" in said


def test_large_numbers_and_texts_like_our_own_make_each_part_once(caplog: pytest.LogCaptureFixture) -> None:
    dates, sites = [str(20190101 + i) for i in range(200)], ["not known", "other values", "north", "south"]
    groups, _ = measured({"date": dates, "site": [*sites * 49, *[None] * 4]}, caplog)
    assert {name: part.n for name, part in groups["date"].items()} == {
        "up to 20190150": 50, "over 20190150 to 20190200": 50, "over 20190200 to 20190250": 50, "over 20190250": 50,
    }  # fmt: skip
    assert [(name, part.n) for name, part in groups["site"].items()] == [
        ("north", 49), ("south", 49), ("other values", 49), ("not known", 53),
    ]  # fmt: skip
    assert sum(part.n for part in groups["site"].values()) == 200


def test_a_number_that_most_images_share_makes_fewer_parts(caplog: pytest.LogCaptureFixture) -> None:
    groups, _ = measured({"dose": ["0"] * 150 + [str(i) for i in range(1, 51)]}, caplog)
    assert sum(part.n for part in groups["dose"].values()) == 200
    assert groups["dose"]["up to 0"].n == 150


def test_columns_that_divide_nothing_are_named_and_rare_values_pooled(caplog: pytest.LogCaptureFixture) -> None:
    columns = {
        "comment": [f"note {i}" for i in range(200)],
        "modality": ["CR"] * 200,
        "ward": [f"ward {min(i, 399 - i) % 15:02}" for i in range(200)],
    }
    columns |= {f"extra{i}": [str(j % 2) for j in range(200)] for i in range(11)}
    groups, said = measured(columns, caplog)
    assert list(groups) == ["ward", *(f"extra{i}" for i in range(9))]
    assert len(groups["ward"]) == 9
    assert sum(part.n for part in groups["ward"].values()) == 200
    for words in (
        "comment (200 different texts)",
        "modality (the same value for all images)",
        "extra10 (after the first 12",
    ):
        assert words in said


def test_the_same_column_as_a_sex_or_age_in_dicom_stands_beside_it() -> None:
    predictions = [predicted(f"{i}.dcm", CLASSES[i % 2], 0.3, sex=["M", "F", None][i % 3]) for i in range(12)]
    evaluation = evaluate_predictions([i % 2 for i in range(12)], [0.3] * 12, classes=CLASSES, resamples=20)
    groups = by_kind(measure_subgroups(predictions, evaluation, [{"Sex": "mf"[i % 2]} for i in range(12)]))
    assert [(part.name, part.n) for part in groups["Sex"][:3]] == [("female", 4), ("male", 4), ("not known", 4)]


def test_a_subgroup_of_one_class_is_printed_with_a_metric_that_it_has(
    run: Run, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [
        replace(sample, metadata={"ward": "A" if sample.label == "NORMAL" else "B"})
        for sample in read_samples(images)
        if sample.split == "test"
    ]
    write_samples(tmp_path / "wards.csv", samples)
    print_evaluation(evaluate(tmp_path / "wards.csv", run.folder, resamples=20))
    printed = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("ward: ")]
    assert [(line[1], line[3]) for line in printed] == [("A", "specificity"), ("B", "sensitivity")]
    assert all(0 <= float(line[4]) <= 1 for line in printed)
