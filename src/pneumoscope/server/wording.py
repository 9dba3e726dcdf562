"""Decisions in plain words."""

from __future__ import annotations

from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION, UNCERTAIN
from pneumoscope.decisions.rules import find_uncertain_range
from pneumoscope.inference.prediction import Prediction
from pneumoscope.inference.predictor import Predictor
from pneumoscope.server.storage.store import PredictionRecord

Range = tuple[float, float]


def explain_decision(prediction: Prediction | PredictionRecord, predictor: Predictor) -> tuple[str, Range | None]:
    """Say in a sentence which rule gave a decision, with its numbers.

    Returns:
        The sentence, and the probabilities of the positive class between which the model is uncertain; None if it
        has no such range, or the image is out of distribution.
    """
    model, possible = predictor.model, prediction.prediction_set
    if prediction.decision == OUT_OF_DISTRIBUTION:
        return (
            f"The OOD score, {prediction.ood_score:.2f}, is above 1: the image is unlike the training images, so it "
            "gets no probability."
        ), None
    uncertain = find_uncertain_range(predictor.decisions, model.labels, prediction.group)
    both = " and ".join(possible)
    alpha = "" if predictor.alpha is None else f" at alpha {predictor.alpha:.0%}"
    if prediction.decision != UNCERTAIN:
        reason = "."
    elif not possible:
        reason = f": neither {' nor '.join(model.labels)} is possible{alpha}."
    elif len(possible) > 1:
        reason = f": {both} are possible{alpha}."
    else:
        reason = f": only {both} is possible{alpha}, but the threshold gives {prediction.predicted_label}."
    if uncertain is None or prediction.probability is None:
        return _explain_without_range(prediction, predictor, reason), None
    place = "in"
    if prediction.decision != UNCERTAIN:
        place = "above" if prediction.decision == model.positive else "below"
    group = f" of the group {prediction.group}" if prediction.group else ""
    low, high = uncertain
    stated = _round(prediction.probability)
    return (
        f"The probability of {model.positive}, {stated}, is {place} the uncertain range{group}, {low:.3f} to {high:.3f}"
        f"{reason}"
    ), uncertain


def _explain_without_range(prediction: Prediction | PredictionRecord, predictor: Predictor, reason: str) -> str:
    model = predictor.model
    if prediction.decision == UNCERTAIN:
        return f"The prediction set does not hold the predicted label alone{reason}"
    if model.positive is None:
        equal = " if all were equally common" if predictor.decisions.class_thresholds else ""
        alone = "" if predictor.alpha is None else ", and the only one in the prediction set"
        return f"{prediction.predicted_label} is the most probable of {len(model.labels)} classes{equal}{alone}."
    side = "reaches" if prediction.predicted_label == model.positive else "is below"
    stated = _round(prediction.probability or 0)
    return f"The probability of {model.positive}, {stated}, {side} the threshold of {predictor.threshold:.3f}."


def _round(probability: float) -> str:
    """Round as the page does, never to 0 or 1."""
    return ">0.999" if probability >= 0.9995 else "<0.001" if probability < 0.0005 else f"{probability:.3f}"
