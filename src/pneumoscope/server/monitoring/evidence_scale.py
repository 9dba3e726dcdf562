"""One colour scale for the heatmaps of a model, so that the same colour means the same evidence in every image."""

from __future__ import annotations

import numpy as np

from pneumoscope.decisions.decisions import read_decisions
from pneumoscope.models.model_folder import Model
from pneumoscope.server.monitoring.summary import find_reference

_WITHOUT = 10.0  # logits, for a model without the logits of its validation images
_CERTAIN = 0.95  # of the validation images have a weaker logit
_TIMES = 2.0  # evidence is in a few places, and a logit is its mean over all of them


def find_limit(model: Model) -> float:
    """The evidence at the ends of the scale, in logits: twice the logit of images that the model is certain about.

    That is the 95th percentile of the validation images' logits, without their sign and before calibration, as
    evidence is. It is at least 1, so that a model without any certainty shows no strong colours.
    """
    calibration, reference = read_decisions(model).calibration, find_reference(model)
    if not len(reference) or calibration.method == "isotonic":
        return _WITHOUT
    probabilities = np.clip(reference, 1e-9, 1 - 1e-9)
    calibrated = np.log(probabilities / (1 - probabilities))
    logits = np.abs(calibrated - calibration.intercept) / calibration.slope
    return max(1.0, float(f"{_TIMES * float(np.quantile(logits, _CERTAIN)):.2g}"))
