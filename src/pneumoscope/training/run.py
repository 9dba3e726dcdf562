"""A finished run, and the callbacks of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pneumoscope.evaluation.results import Evaluation
from pneumoscope.notebook import Drawn, to_html
from pneumoscope.training.settings import Settings


@dataclass(frozen=True)
class Run(Drawn):
    """A finished run.

    Attributes:
        folder: where it is.
        settings: all settings, resolved.
        evaluation: metrics with intervals on the test split; without a test, on the validation split.
    """

    folder: Path
    settings: Settings
    evaluation: Evaluation

    def __repr__(self) -> str:
        return f"Run({self.folder}; {self.evaluation.summary})"

    def _repr_html_(self) -> str:
        return to_html(f"{self.folder}; {self.evaluation.summary}", self.evaluation.to_rows())

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each metric of the evaluation.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return self.evaluation.to_frame()

    @property
    def model(self) -> Path:
        """The trained model's folder."""
        return self.folder / "model"

    @property
    def report(self) -> Path:
        """The report's file."""
        return self.folder / "report.html"


class Callback:
    """What `train` calls. Inherit from it and write the methods that you need. An error in one ends the training."""

    def on_start(self, settings: Mapping[str, Any]) -> None:
        """Training begins; all settings by name."""

    def on_epoch(self, metrics: Mapping[str, Any], epoch: int) -> None:
        """An epoch ends.

        Args:
            metrics: `phase` (`head` or `finetune`), `lr`, `train_loss`, `val_loss` and `val_accuracy`.
            epoch: its number within the phase, from 1 on.
        """

    def on_end(self, run: Run) -> None:
        """The run is finished and evaluated."""
