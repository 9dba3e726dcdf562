"""Plain words for what the classifier says of a film."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pneumoscope.inference.decisions import FOREIGN, NEITHER, UNCERTAIN

if TYPE_CHECKING:
    from pneumoscope.inference.predictor import Prediction, Predictor


def explain_decision(prediction: Prediction, predictor: Predictor) -> str:
    """Say in a sentence or two what a decision means and what not."""
    bundle = predictor.bundle
    if prediction.decision == FOREIGN:
        return (
            f"Not like the training radiographs: {prediction.novelty:.2f} times as far from them as ordinary films may "
            "be. What the network would say of it means nothing, so no probability is given."
        )
    if prediction.decision == NEITHER:
        return f"Typical of neither class: {' and '.join(bundle.labels)} are both improbable for such a film."
    if prediction.decision == UNCERTAIN:
        if len(prediction.label_set) > 1:
            rate = f"{predictor.error_rate:.0%}" if predictor.error_rate is not None else "the stated rate"
            return (
                f"Uncertain: {' and '.join(prediction.label_set)} are both possible. To name one alone would be wrong "
                f"more often than {rate} of the time."
            )
        return (
            f"Uncertain: only {prediction.label_set[0]} fits such a film, but its probability lies on the other side "
            "of the threshold."
        )
    if bundle.positive is None:
        return f"{prediction.call} is the likeliest of {len(bundle.labels)} classes."
    side = "reaches" if prediction.call == bundle.positive else "stays below"
    return f"The probability of {bundle.positive} {side} the threshold of {predictor.threshold:.3f}."
