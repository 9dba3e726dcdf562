"""`pneumoscope.summarize`: many runs in one table, as text, CSV, Markdown and LaTeX, and in a plot."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pneumoscope.config import checked
from pneumoscope.errors import UsageError, require_extra
from pneumoscope.evaluation.metrics import METRICS, NAMES
from pneumoscope.evaluation.summary import Summary, format_spread, summarise_runs
from pneumoscope.files import check_folder, claim_folder, lock_folder, write_bytes, write_rows, write_text
from pneumoscope.reports.figures import parse_formats, render
from pneumoscope.reports.pages import escape_markdown, format_p, format_signed
from pneumoscope.reports.plots import COLOURS, INK
from pneumoscope.text import printable, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pneumoscope.reports.plots import Draw

OUTPUTS = ("summary.json", "summary.csv", "summary.md", "summary.tex", "plots")
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}


@checked
def summarize(
    runs: Sequence[str | Path],
    by: str | Sequence[str] | None = None,
    out: str | Path | None = None,
    *,
    metrics: str | Sequence[str] = "auroc,sensitivity,specificity",
    plot_formats: str = "svg",
    overwrite: bool = False,
) -> Summary:
    """Group runs by their settings: mean and standard deviation over seeds, and differences between groups.

    Args:
        runs: folders of finished runs, or cross-validations.
        by: names of settings such as `recipe,backbone`; by default all in which the runs differ, apart from the seed.
        out: folder for `summary.json`, `summary.csv`, `summary.md`, `summary.tex` and `plots`; None writes nothing.
        metrics: those of the Markdown and LaTeX tables, and of the plots; the other files have all.
        plot_formats: formats of the files in `plots`, such as `svg,pdf,png`.
        overwrite: whether to replace an earlier summary in `out`.

    Raises:
        UsageError: no run, no such setting or metric, or `out` exists.
        DataError: a run is not finished, or damaged.
    """
    require_extra("evaluate")
    formats, shown = parse_formats(plot_formats), parse_metrics(metrics)
    names = None if by is None else [each.strip() for each in (by.split(",") if isinstance(by, str) else by)]
    if out is not None:
        check_folder(Path(out), OUTPUTS, overwrite)
    summary = summarise_runs(runs, names)
    if out is not None:
        folder = Path(out)
        with lock_folder(folder):
            claim_folder(folder, OUTPUTS, overwrite)
            write_text(folder / "summary.json", json.dumps(summary.to_json(), indent=2, default=str) + "\n")
            write_rows(folder / "summary.csv", summary.to_rows())
            write_text(folder / "summary.md", write_markdown(summary, shown))
            write_text(folder / "summary.tex", write_latex(summary, shown))
            (folder / "plots").mkdir()
            for metric in shown:
                files = render(f"summary-{metric}", plot_groups(summary, metric), formats)
                for form, content in files.items():
                    write_bytes(folder / "plots" / f"{metric}.{form}", content)
    return summary


def parse_metrics(metrics: str | Sequence[str]) -> tuple[str, ...]:
    """Names of metrics, such as `auroc,f1`.

    Raises:
        UsageError: there is no such metric.
    """
    names = tuple(each.strip() for each in (metrics.split(",") if isinstance(metrics, str) else metrics))
    if unknown := [name for name in names if name not in METRICS]:
        raise UsageError(f"no such metric: {', '.join(unknown)}. Choose from {', '.join(METRICS)}.", "metrics")
    return names


def tabulate(summary: Summary, metrics: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of the table of groups."""
    header = [", ".join(summary.by) or "group", "n", *(NAMES[name] for name in metrics)]
    rows = [
        [group.name, str(len(group.runs)), *(format_spread(group.metrics[name]) for name in metrics)]
        for group in summary.groups
    ]
    return header, rows


def tabulate_differences(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of the table of differences from the first group."""
    several = len(summary.contrasts) > 1
    header = ["group", "metric", "difference", "95% interval", "p", *["p, Holm"] * several]
    rows = []
    for contrast in summary.contrasts:
        for i, (name, each) in enumerate(contrast.differences.items()):
            known = each.low == each.low  # not nan
            cells = [format_signed(each.value)]
            cells.append(f"{format_signed(each.low)} to {format_signed(each.high)}" if known else "")
            cells += [format_p(each.p), *[format_p(each.adjusted)] * several]
            rows.append([contrast.group if i == 0 else "", NAMES[name], *cells])
    return header, rows


def write_markdown(summary: Summary, metrics: Sequence[str]) -> str:
    """The groups, and how they differ, as Markdown."""
    parts = [_write_markdown_table(*tabulate(summary, metrics)), _explain(summary)]
    if summary.contrasts:
        parts += [f"Differences from {escape_markdown(summary.groups[0].name)}:"]
        parts += [_write_markdown_table(*tabulate_differences(summary)), summary.method]
    return "\n\n".join([*parts, *(escape_markdown(note) for note in summary.notes)]) + "\n"


def _write_markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    escaped = [[escape_markdown(cell) or " " for cell in line] for line in (header, *rows)]
    lines = [escaped[0], ["---"] * len(header), *escaped[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_latex(summary: Summary, metrics: Sequence[str]) -> str:
    """The groups as a LaTeX table; it needs the package booktabs."""
    header, rows = tabulate(summary, metrics)
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        "\\toprule",
        *[" & ".join(map(escape_latex, header)) + " \\\\", "\\midrule"],
        *(" & ".join(map(escape_latex, row)) + " \\\\" for row in rows),
        "\\bottomrule",
        "\\end{tabular}",
        f"% {_explain(summary)}",
    ]
    return "\n".join(lines) + "\n"


def escape_latex(text: str) -> str:
    """Escape text for LaTeX."""
    plain = " ".join(text.split())
    return "".join(_LATEX.get(each, f"\\{each}" if each in "&%$#_{}" else each) for each in plain)


def _explain(summary: Summary) -> str:
    several = any(len(group.runs) > 1 for group in summary.groups)
    images = f" on the same {summary.images:,} images" if summary.images else ""
    return f"Mean{' ± standard deviation over the runs of a group' * several}{images}; n is the number of runs."


def plot_groups(summary: Summary, metric: str) -> Draw:
    """Plot each run as a dot, and each group's mean as a line, for one metric."""

    def draw(axes: Axes) -> None:
        for i, group in enumerate(summary.groups):
            values = [run.metrics[metric] for run in summary.runs if str(run.folder) in group.runs]
            place, colour = len(summary.groups) - 1 - i, COLOURS[i % len(COLOURS)]
            axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.6, ms=6, clip_on=False, mew=0)
            mean = group.metrics[metric].mean
            axes.plot([mean, mean], [place - 0.3, place + 0.3], color=INK, lw=1.5)
        names = [printable(shorten(re.sub(r"\s+", " ", group.name), 28)) for group in summary.groups]
        axes.set_yticks(range(len(names)), names[::-1])
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.margins(x=0.1)
        axes.set_xlabel(NAMES[metric])
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=INK, alpha=0.12, lw=0.7)

    return draw
