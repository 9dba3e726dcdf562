"""Metrics of the validation split of a run, which stand beside those of its test."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from pneumoscope.datasets.samples import Sample
from pneumoscope.evaluation.evaluate import Plan
from pneumoscope.evaluation.intervals.all_metrics import evaluate_predictions
from pneumoscope.evaluation.results import Evaluation
from pneumoscope.inference.prediction import index_labels, stack_probabilities
from pneumoscope.inference.predictor import Predictor
from pneumoscope.text import counted

OPTIMISTIC = (
    "The validation split chose the epoch, the threshold and the calibration, so its metrics are too good: expect "
    "lower ones on other images."
)
RESAMPLES = 500  # the most behind these intervals, which nobody decides by


def measure_validation(predictor: Predictor, samples: Sequence[Sample], plan: Plan) -> Evaluation | None:
    """Measure a trained model on its validation images, without subgroups; its features are usually in the cache.

    Args:
        predictor: the model.
        samples: its validation images, with their labels.
        plan: of the test; its seed, and its resamples up to `RESAMPLES`, count here.

    Returns:
        The metrics, whose notes say that they are optimistic; None, with a warning, if no image can be read.
    """
    predictions = [each for each in predictor.run(samples) if each.error is None]
    if not predictions:
        logging.getLogger("pneumoscope").warning(
            "No image of the validation split can be read, so it is not measured (%s).", counted(len(samples), "image")
        )
        return None
    labels = predictor.model.labels
    evaluation = evaluate_predictions(
        index_labels(predictions, labels),
        stack_probabilities(predictions),
        classes=labels,
        split="val",
        threshold=predictor.cut,
        patients=[each.patient for each in predictions],
        resamples=min(plan.resamples, RESAMPLES),
        seed=plan.seed,
    )
    return dataclasses.replace(evaluation, notes=(OPTIMISTIC,))
