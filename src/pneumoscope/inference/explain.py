"""Explain one image: where on it the evidence for a class lies."""

from __future__ import annotations

from pathlib import Path

from pneumoscope.config import checked
from pneumoscope.errors import ImageError
from pneumoscope.inference.evidence import Method
from pneumoscope.inference.features import Source
from pneumoscope.inference.prediction import Prediction
from pneumoscope.inference.predictor import Predictor, load


@checked
def explain(
    image: Source,
    model: str | Path | Predictor | None = None,
    label: str | None = None,
    method: Method = "auto",
    device: str = "auto",
) -> Prediction:
    """Say where on an image the evidence for a class lies.

    The network ends in a global average and one linear layer, so its class-activation map (Zhou et al. 2016, "Learning
    Deep Features for Discriminative Localization", section 2) is an exact sum and needs no gradient. In a
    network with attention, the map still adds up, but a cell may contain evidence from other places.

    Args:
        image: a path, a file's content, or a sample.
        model: as for `load`, or a predictor.
        label: the class to explain; by default the positive one if there are two, else the predicted.
        method: `cam`: the class-activation map. `ig`: integrated gradients (Sundararajan et al. 2017, "Axiomatic
            Attribution for Deep Networks") from the blurred image to the image, summed over cells of 16 pixels of the
            input; the bias is then the blurred image's logit plus what the numerical integral misses. `auto`: `ig`
            where the network has attention, else `cam`.
        device: `auto`, `cpu` or `cuda`, unless `model` is a predictor.

    Returns:
        The prediction with its `evidence` and `pixels`.

    Raises:
        ImageError: the file cannot be read.
        UsageError: the classifier has no such class, or what runs it gives no gradients.
        MissingExtraError: captum, which integrates the gradients, is not installed.
    """
    predictor = model if isinstance(model, Predictor) else load(model, device)
    (prediction,) = predictor.run([image], maps=True, pixels=True, label=label, method=method)
    if prediction.error is not None:
        raise ImageError(prediction.error)
    return prediction
