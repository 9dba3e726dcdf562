"""Plain words for what the classifier says of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION, UNCERTAIN

if TYPE_CHECKING:
    from pneumoscope.inference.prediction import Prediction
    from pneumoscope.inference.predictor import Predictor


def explain_decision(prediction: Prediction, predictor: Predictor) -> str:
    """Say in a sentence or two what a decision means and what not."""
    model = predictor.model
    if prediction.decision == OUT_OF_DISTRIBUTION:
        return (
            f"Not like the training radiographs: {prediction.ood_score:.2f} times as far from them as ordinary images may "
            "be. What the network would say of it means nothing, so no probability is given."
        )
    if prediction.decision == UNCERTAIN and not prediction.prediction_set:
        return f"Uncertain: typical of no class. {' and '.join(model.labels)} are both improbable for such an image."
    if prediction.decision == UNCERTAIN:
        if len(prediction.prediction_set) > 1:
            rate = f"{predictor.alpha:.0%}" if predictor.alpha is not None else "the stated rate"
            return (
                f"Uncertain: {' and '.join(prediction.prediction_set)} are both possible. To name one alone would be wrong "
                f"more often than {rate} of the time."
            )
        return (
            f"Uncertain: only {prediction.prediction_set[0]} fits such an image, but its probability lies on the other side "
            "of the threshold."
        )
    if model.positive is None:
        return f"{prediction.predicted_label} is the likeliest of {len(model.labels)} classes."
    side = "reaches" if prediction.predicted_label == model.positive else "stays below"
    return f"The probability of {model.positive} {side} the threshold of {predictor.threshold:.3f}."
