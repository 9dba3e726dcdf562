"""Which of several runs is better, on the same images: runs become a comparison and its page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pneumoscope.errors import UsageError
from pneumoscope.evaluation.contrasts import Comparison, compare_pairing
from pneumoscope.evaluation.pairing import pair_predictions, read_predictions
from pneumoscope.files import claim_folder, write_text
from pneumoscope.reports.comparison import write_page

OUTPUTS = ("comparison.json", "comparison.html")


def compare(
    runs: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
    overwrite: bool = False,
) -> Comparison:
    """Compare runs, or evaluations, on the same images; all with the first.

    Args:
        runs: two or more folders with `metrics.json` and `predictions.csv`.
        out: folder for `comparison.html` and `comparison.json`; None writes nothing.
        resamples: bootstrap resamples.
        seed: fixes them.
        overwrite: whether an earlier comparison in `out` may go.

    Raises:
        UsageError: fewer than two runs, or `out` exists.
        DataError: other images, other labels or other classes; the message names the first of them.
    """
    if len(runs) < 2:
        raise UsageError(f"{len(runs)} run: two are needed for a comparison, or more.")
    if resamples < 1:
        raise UsageError(f"--resamples {resamples}: at least 1 is needed.")
    pairing = pair_predictions([read_predictions(Path(run)) for run in runs])
    comparison = compare_pairing(pairing, [str(run) for run in runs], resamples=resamples, seed=seed)
    if out is not None:
        claim_folder(Path(out), OUTPUTS, overwrite)
        write_text(Path(out) / OUTPUTS[0], json.dumps(comparison.to_json(), indent=2) + "\n")
        write_page(Path(out) / OUTPUTS[1], comparison, pairing)
    return comparison
