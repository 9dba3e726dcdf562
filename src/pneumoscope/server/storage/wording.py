"""Decisions in plain words."""

from __future__ import annotations

from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION, UNCERTAIN
from pneumoscope.inference.prediction import Prediction
from pneumoscope.inference.predictor import Predictor
from pneumoscope.server.storage.store import PredictionRecord


def explain_decision(prediction: Prediction | PredictionRecord, predictor: Predictor) -> str:
    """Say in a sentence or two what a decision means and what it does not mean."""
    model, possible = predictor.model, prediction.prediction_set
    if prediction.decision == OUT_OF_DISTRIBUTION:
        return (
            f"Unlike the training images: the OOD score is {prediction.ood_score:.2f}; above 1 is out of distribution. "
            "The network has no basis for a prediction, so no probability is given."
        )
    if prediction.decision == UNCERTAIN:
        if not possible:
            return f"The image is typical of none of the classes: {' and '.join(model.labels)} are improbable."
        if len(possible) > 1:
            risk = "too often" if predictor.alpha is None else f"more than {predictor.alpha:.0%} of the time"
            return f"{' and '.join(possible)} are possible. Naming only one of them would be wrong {risk}."
        label = prediction.predicted_label
        return f"The two rules disagree: the prediction set holds only {possible[0]}, but {label} is predicted."
    if model.positive is None:
        equal = " if all were equally common" if predictor.decisions.class_thresholds else ""
        return f"{prediction.predicted_label} is the most probable of {len(model.labels)} classes{equal}."
    side = "reaches" if prediction.predicted_label == model.positive else "is below"
    return f"The probability of {model.positive} {side} the threshold of {predictor.threshold:.3f}."
