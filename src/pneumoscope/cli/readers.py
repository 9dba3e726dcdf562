"""Prints how readers and the model compare."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pneumoscope.cli.output import echo, make_table, open_console, show_interval

if TYPE_CHECKING:
    from pneumoscope.server.readings.performance import Performance


def print_performance(found: Performance) -> None:
    """Print the table of one reader."""
    name = found.reader or "Reader without a name"
    changes = f"{found.changed} changed with AI"
    if found.to_right is not None:
        changes += f", {found.to_right} from wrong to right, {found.to_wrong} from right to wrong"
    counts = f"{found.read} images read, {found.finished} also with AI, {found.with_truth} of them with known truth"
    echo(f"{name}: {counts}; {changes}.")
    sides = {side: {"agreement with model": value} for side, value in found.agreement.items()}
    for side, metrics in found.metrics.items():
        sides.setdefault(side, {}).update(metrics)
    if sides:
        table = make_table(
            ["side", "metric"], ["value", "95% interval", "change from without AI", "its 95% interval", "p"]
        )
        for side, values in sides.items():
            for metric, value in values.items():
                difference = found.differences.get(side, {}).get(metric)
                cells = ["", "", ""]
                if difference is not None and not math.isnan(difference.value):
                    bounds = f"{difference.low:+.3f} to {difference.high:+.3f}"
                    cells = [f"{difference.value:+.3f}", bounds, f"{difference.p:.3f}"]
                table.add_row(side, metric, *show_interval(value), *cells)
        open_console().print(table)
    for note in found.notes:
        echo(note, err=True)
