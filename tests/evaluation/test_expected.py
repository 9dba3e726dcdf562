"""Metrics estimated without labels."""

from __future__ import annotations

import numpy as np
import pytest

from pneumoscope.errors import DataError
from pneumoscope.evaluation.expected import estimate_metrics
from pneumoscope.inference.prediction import Prediction

CLASSES = ("NORMAL", "PNEUMONIA")


def predict(p: float, label: str, *, known: bool = True, patient: str | None = None) -> Prediction:
    return Prediction(
        predicted_label=label,
        probability=p if known else None,
        probabilities={"NORMAL": 1 - p, "PNEUMONIA": p},
        patient=patient,
    )


def test_each_image_counts_as_either_class_by_its_probability() -> None:
    found = estimate_metrics([predict(0.9, "PNEUMONIA"), predict(0.2, "NORMAL")], CLASSES)
    assert found["accuracy"].value == pytest.approx((0.9 + 0.8) / 2)
    assert found["sensitivity"].value == pytest.approx(0.9 / 1.1)
    assert found["specificity"].value == pytest.approx(0.8 / 0.9)
    assert found["brier"].value == pytest.approx((0.9 * 0.1 + 0.2 * 0.8) / 2)
    # pairs of a positive and a negative, where an image with itself is a tie
    pairs = 0.9 * 0.8 + (0.9 * 0.1 + 0.2 * 0.8) / 2
    assert found["auroc"].value == pytest.approx(pairs / (1.1 * 0.9))


def test_predicted_labels_count_and_images_without_a_probability_do_not() -> None:
    adjusted = predict(0.3, "PNEUMONIA")  # by a threshold below its probability
    refused = predict(0.99, "PNEUMONIA", known=False)
    found = estimate_metrics([adjusted, refused], CLASSES)
    assert found["accuracy"].value == pytest.approx(0.3)
    assert found["sensitivity"].value == 1


def test_of_calibrated_probabilities_the_estimate_is_right_and_its_interval_covers() -> None:
    covered, errors = 0, []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        p = rng.beta(0.6, 0.6, 150)
        truth, predicted = rng.random(150) < p, p >= 0.5
        images = [predict(float(each), CLASSES[int(each >= 0.5)]) for each in p]
        found = estimate_metrics(images, CLASSES, resamples=200, seed=seed)["accuracy"]
        accuracy = float((truth == predicted).mean())
        errors.append(found.value - accuracy)
        covered += found.low <= accuracy <= found.high
    assert abs(np.mean(errors)) < 0.015
    assert covered >= 54


def test_what_cannot_be_estimated_is_refused() -> None:
    with pytest.raises(DataError, match="No image has a probability"):
        estimate_metrics([predict(0.5, "NORMAL", known=False)], CLASSES)
    with pytest.raises(DataError, match="two classes only; there are 3"):
        estimate_metrics([predict(0.5, "NORMAL")], ("A", "B", "C"))
