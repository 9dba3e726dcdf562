"""Class sizes, class shares by split, and the interval that a test split can give."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy.stats import chi2_contingency

from pneumoscope.auditing.balance import find_imbalance
from pneumoscope.auditing.findings import Finding
from pneumoscope.datasets.samples import Sample


def images(split: str | None, **counts: int) -> list[Sample]:
    return [
        Sample(Path(f"{split}-{label}-{n}.png"), label, f"{split}-{label}-{n}", split)
        for label, count in counts.items()
        for n in range(count)
    ]


def serious(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity != "note"]


def test_even_splits_of_a_good_size_are_fine() -> None:
    samples = images("train", A=300, B=300) + images("val", A=150, B=150) + images("test", A=150, B=150)
    assert find_imbalance(samples) == []


def test_a_rare_class_is_a_warning_and_an_uneven_mix_a_note() -> None:
    assert [f.severity for f in find_imbalance(images(None, A=2000, B=180)) if "Few images" in f.title] == ["warning"]
    assert [f.severity for f in find_imbalance(images(None, A=700, B=180)) if "Uneven" in f.title] == ["note"]


def test_class_shares_that_differ_between_splits_are_a_warning() -> None:
    samples = images("train", A=150, B=150) + images("test", A=50, B=150)
    (finding,) = serious(find_imbalance(samples))
    assert "Class shares differ" in finding.title
    assert "test 25% A, 75% B" in finding.advice
    assert finding.values["p"] == pytest.approx(chi2_contingency([[150, 150], [50, 150]], correction=False).pvalue)


def test_a_split_without_a_class_is_an_error() -> None:
    found = find_imbalance(images("train", A=50, B=50) + images("test", A=20))
    assert [finding.severity for finding in found if "No image of B in test" in finding.title] == ["error"]


def test_a_small_test_split_says_how_wide_its_interval_would_be() -> None:
    samples = images("train", A=50, B=50) + images("test", A=50, B=9)
    (finding,) = [finding for finding in find_imbalance(samples) if "rate of 0.90" in finding.title]
    assert finding.severity == "warning"
    assert finding.values["n"] == 9
    assert "0.58 to 0.98" in finding.title


def test_images_without_a_patient_are_counted() -> None:
    samples = [Sample(Path(f"{n}.png"), "AB"[n % 2]) for n in range(400)]
    assert [f.title for f in find_imbalance(samples) if "patient" in f.title] == [
        "The patient of 400 of 400 images is unknown"
    ]


def test_data_of_one_class_are_an_error() -> None:
    assert [(f.severity, f.title) for f in serious(find_imbalance(images(None, A=300)))] == [
        ("error", "All images are of one class, A")
    ]


def test_one_patient_who_has_most_images_was_probably_anonymised() -> None:
    samples = [Sample(Path(f"{n}.dcm"), "AB"[n % 2], "ANONYMOUS") for n in range(300)]
    assert [f.title for f in serious(find_imbalance(samples))] == ["300 of 300 images have the same patient, ANONYMOUS"]


def test_a_validation_split_that_is_meant_to_be_balanced_is_no_finding() -> None:
    samples = images("train", A=150, B=450) + images("test", A=50, B=150)
    assert serious(find_imbalance(samples + images("val", A=50, B=50))) == []
    assert serious(find_imbalance(samples + images("val", A=50, B=55))) == []
    lumpy = samples + images("val", A=50, B=30)  # where patients have many images
    assert ["Class shares differ" in finding.title for finding in serious(find_imbalance(lumpy))] == [True]
    assert serious(find_imbalance(lumpy, drawn={"val"})) == []
    (finding,) = serious(find_imbalance(images("train", A=150, B=450) + images("test", A=100, B=100)))
    assert "Class shares differ" in finding.title  # a balanced test split is not corrected for
    assert not [f for f in find_imbalance(images("train", A=9) + images("val", A=9)) if "shares" in f.title]
