"""The page of readers without and with the model's answer, and the model."""

from __future__ import annotations

from collections.abc import Sequence

from pneumoscope.evaluation.intervals.proportions import CONFIDENCE
from pneumoscope.evaluation.metrics import NAMES
from pneumoscope.reports.pages import format_level, render
from pneumoscope.server.readings.performance import (
    AGREEMENT,
    KAPPA,
    KAPPA_WITH_TRUTH,
    MODEL,
    WITH,
    WITHOUT,
    Performance,
    ReaderPair,
)

_NAMES = {
    AGREEMENT: "Agreement with the model",
    KAPPA: "Kappa with the model",
    KAPPA_WITH_TRUTH: "Kappa with the truth",
}


def render_performance(readers: Sequence[Performance], pairs: Sequence[ReaderPair], command: str) -> str:
    """Make the page.

    Args:
        readers: what was measured of each.
        pairs: how far every two of them agree.
        command: the command that makes the page again.
    """
    metrics = {each.reader: list(dict.fromkeys(name for _, name, _ in each.list_values())) for each in readers}
    return render(
        "readers.html",
        title="Readers without and with AI",
        readers=readers,
        pairs=pairs,
        metrics=metrics,
        values={(each.reader, side, name): value for each in readers for side, name, value in each.list_values()},
        shown={**NAMES, **_NAMES},
        kappas=(KAPPA, KAPPA_WITH_TRUTH),
        sides=(WITHOUT, WITH, MODEL),
        level=format_level(CONFIDENCE),
        command=command,
    )
