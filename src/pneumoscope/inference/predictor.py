"""The only way from a file to a probability and a decision."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.samples import Sample
from pneumoscope.errors import BundleError
from pneumoscope.inference.engines import Array, Engine
from pneumoscope.inference.features import FeatureCache, Source, extract_features
from pneumoscope.models.bundle import Bundle, load_bundle, load_weights


@dataclass(frozen=True)
class Prediction:
    """What the classifier says of one radiograph.

    Attributes:
        path: the file, or None where bytes were given.
        probability: of the positive class; of the decided class where there are more than two; None on error.
        decision: a class name, or None on error.
        probabilities: of every class by name, empty on error.
        error: why the file could not be read.
        digest: SHA-256 of the file's content, empty on error.
    """

    path: Path | None
    probability: float | None = None
    decision: str | None = None
    probabilities: dict[str, float] | None = None
    error: str | None = None
    digest: str = ""


class Predictor:
    """A trained classifier, ready for files; made by `load`.

    Args:
        bundle: its description.
        weight: float32 (1, D) or (C, D), the head's.
        bias: float32 (1,) or (C,), the head's.
        engine: runs its backbone.
        cache: keeps features between calls.
    """

    def __init__(
        self, bundle: Bundle, weight: Array, bias: Array, engine: Engine, cache: FeatureCache | None = None
    ) -> None:
        self.bundle = bundle
        self.weight = weight
        self.bias = bias
        self.engine = engine
        self._cache = cache

    def predict(
        self, sources: Source | str | Iterable[Source | str], progress: Callable[[int], None] | None = None
    ) -> list[Prediction]:
        """Predict files, in input order; one that cannot be read gives a prediction with its `error`.

        Args:
            sources: a path, a file's content as bytes, a sample (which may say how to read it), or several of them.
            progress: called with the number of files done so far.
        """
        several = [sources] if isinstance(sources, str | bytes | Path | Sample) else sources
        predictions = []
        for prediction in self.stream(several):
            predictions.append(prediction)
            if progress is not None:
                progress(len(predictions))
        return predictions

    def stream(self, sources: Iterable[Source | str]) -> Iterator[Prediction]:
        """Predict any number of files in bounded memory."""
        paths: dict[int, Path | None] = {}

        def remember() -> Iterator[Source]:
            for index, source in enumerate(sources):
                known = Path(source) if isinstance(source, str) else source
                path = known.path if isinstance(known, Sample) else known
                paths[index] = path if isinstance(path, Path) else None
                yield known

        for extract in extract_features(remember(), self.engine, self.bundle.input, cache=self._cache):
            path = paths.pop(extract.index)
            if extract.features is None:
                yield Prediction(path, error=extract.error)
            else:
                yield replace(self._decide(path, self._logits(extract.features)), digest=extract.digest)

    def _logits(self, features: Array) -> NDArray[np.float64]:
        """(1, D) -> (1,) or (C,); in float64, so that the sum's order does not show."""
        logits: NDArray[np.float64] = features[0].astype(np.float64) @ self.weight.T.astype(np.float64) + self.bias
        return logits

    def _decide(self, path: Path | None, logits: NDArray[np.float64]) -> Prediction:
        labels = self.bundle.labels
        if len(labels) == 2:
            positive = float(1 / (1 + np.exp(-np.clip(logits[0], -500, 500))))
            decision = labels[int(positive >= self.bundle.thresholds["decision"])]
            return Prediction(path, positive, decision, {labels[0]: 1 - positive, labels[1]: positive})
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        best = int(shares.argmax())
        return Prediction(path, float(shares[best]), labels[best], dict(zip(labels, shares.tolist(), strict=True)))


def load(bundle: str | Path, device: str = "auto", cache: FeatureCache | None = None) -> Predictor:
    """Load a trained bundle, or the bundle of a run.

    Args:
        bundle: its folder.
        device: `auto`, `cpu` or `cuda`.
        cache: keeps features between calls, and shares them with training.

    Raises:
        BundleError: missing, damaged, incomplete or written by a newer version.
    """
    from pneumoscope.inference.engines import TorchEngine
    from pneumoscope.models.backbones import BackboneSpec, build_backbone

    folder = Path(bundle)
    description = load_bundle(folder)
    state = load_weights(folder, description)
    spec = BackboneSpec(
        description.backbone, description.architecture, "bundle", "", description.input, description.arguments
    )
    backbone = build_backbone(spec)
    try:
        backbone.load_state_dict(
            {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
        )
        weight, bias = state["head.weight"].numpy(), state["head.bias"].numpy()
    except (RuntimeError, KeyError) as problem:
        raise BundleError(
            f"{folder}: its weights do not fit its description ({problem}). Copy the bundle again from its source."
        ) from None
    return Predictor(description, weight, bias, TorchEngine(backbone, description.input.size, device), cache)
