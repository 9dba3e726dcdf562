"""Maps laid over films, as pictures."""

from __future__ import annotations

from pathlib import Path

from pneumoscope.inference.explaining import Explanation
from pneumoscope.inference.predictor import Prediction


def write_overlay(explanation: Explanation, path: Path, prediction: Prediction | None = None) -> None:
    """Write a PNG: the film, beside it the film under its map, with a scale in logits and a title.

    Raises:
        UsageError: it cannot be written.
    """
    raise NotImplementedError


def render_thumbnail(explanation: Explanation, side: int) -> bytes:
    """Draw a film, and beside it the film under its map, as a small JPEG; each is `side` pixels at its longer side."""
    raise NotImplementedError
