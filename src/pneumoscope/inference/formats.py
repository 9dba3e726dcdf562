"""Writes predictions as a table for the terminal, CSV, JSON, JSON lines or Parquet."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from pneumoscope.config import Progress
from pneumoscope.datasets.pseudonyms import Pseudonyms
from pneumoscope.datasets.samples import Sample
from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION, UNCERTAIN
from pneumoscope.errors import MissingExtraError
from pneumoscope.files import format_rows, path_in_file, write_bytes, write_text
from pneumoscope.inference.overlays import OverlayFolder
from pneumoscope.inference.prediction import Prediction, log_warnings
from pneumoscope.inference.predictor import Predictor
from pneumoscope.text import printable, printable_line

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Style:
    """How rows are written."""

    excel: bool = False  # whether CSV begins with a byte order mark
    patient_ids: bool = False  # whether patients are written as they are, not as pseudonyms
    wording: Callable[[str], str] = str  # changes how errors and warnings name options


def write_predictions(
    predictor: Predictor,
    samples: Sequence[Sample],
    form: str,
    out: Path | TextIO | None = None,
    overlays: OverlayFolder | None = None,
    progress: Progress | None = None,
    *,
    style: Style = Style(),
) -> list[str]:
    """Predict files and write a row for each, in input order; with overlays, each file is still opened only once.

    Paths are written as given on a stream; in a file, those that are relative lead from its folder to the image. Every
    form but `table` also says whose image it is.

    Args:
        predictor: the classifier.
        samples: the files.
        form: `table`, `csv`, `json`, `jsonl` or `parquet`, which needs a file.
        out: a file or a stream; standard output by default.
        overlays: where to draw each image with its evidence.
        progress: called with the number of files done.
        style: how rows are written.

    Returns:
        The errors of files that have no prediction.

    Raises:
        UsageError: `out` cannot be written, or the key behind the pseudonyms of patients cannot be read or made.
    """
    pseudonyms = None if style.patient_ids or form == "table" else Pseudonyms()
    errors, warnings = list[str](), list[tuple[str, ...]]()

    def rows() -> Iterator[Row]:
        drawn = overlays is not None
        predictions = predictor.run(samples, maps=drawn, pixels=drawn)
        for done, prediction in enumerate(predictions, start=1):
            errors.extend([prediction.error] if prediction.error else [])
            warnings.append(prediction.warnings)
            if overlays is not None:
                overlays.add(prediction)
            row = _make_row(prediction, predictor, out, style.wording)
            yield row | {"patient": pseudonyms.get(prediction.patient)} if pseudonyms else row
            if progress is not None:
                progress("Predicting", done, len(samples))

    with overlays or nullcontext():
        _write(rows(), form, out, style.excel)
    log_warnings(warnings)
    return errors


def _write(rows: Iterator[Row], form: str, out: Path | TextIO | None, excel: bool) -> None:
    write: dict[str, Callable[[Iterator[Row], TextIO], None]]
    write = {"csv": partial(write_csv, excel=excel), "jsonl": _write_lines, "json": _write_json, "table": _write_table}
    if not isinstance(out, Path):
        write[form](rows, out or sys.stdout)
    elif form == "parquet":
        write_bytes(out, _to_parquet(list(rows)))
    else:
        text = io.StringIO()
        write[form](rows, text)
        write_text(out, text.getvalue())


def _make_row(
    prediction: Prediction, predictor: Predictor, out: Path | TextIO | None, wording: Callable[[str], str]
) -> Row:
    row = prediction.to_row(predictor.model.labels, grouped=bool(predictor.decisions.groups))
    if isinstance(out, Path) and prediction.path is not None:
        row["path"] = path_in_file(prediction.path, out.parent)
    row["error"], row["warnings"] = prediction.error and wording(prediction.error), wording(row["warnings"])
    return row | prediction.identity


def write_csv(rows: Iterable[Row], stream: TextIO, excel: bool) -> None:
    """Write rows as CSV, with a byte order mark for Excel; to a terminal without characters that would control it."""
    lines = format_rows(rows, excel)
    stream.writelines(map(printable, lines) if stream.isatty() else lines)  # a name must not control a terminal


def _write_lines(rows: Iterator[Row], stream: TextIO) -> None:
    stream.writelines(json.dumps(row, ensure_ascii=not _holds_all(stream)) + "\n" for row in rows)


def _write_json(rows: Iterator[Row], stream: TextIO) -> None:
    stream.write(json.dumps(list(rows), indent=2, ensure_ascii=not _holds_all(stream)) + "\n")


def _holds_all(stream: TextIO) -> bool:
    """Whether a stream takes every character; one of another encoding needs the escapes of JSON."""
    return (stream.encoding or "utf-8").lower().startswith("utf")


def _write_table(rows: Iterator[Row], stream: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("file", overflow="fold")
    table.add_column("probability", justify="right", no_wrap=True)
    table.add_column("decision")
    for row in rows:
        probability = "" if row["probability"] is None else f"{row['probability']:.3f}"
        table.add_row(*map(printable_line, (Path(row["path"]).name, probability, _describe_decision(row))))
    Console(file=stream, highlight=False, markup=False).print(table)


def _describe_decision(row: Row) -> str:
    if row["error"] is not None:
        return f"error: {row['error']}"
    if row["decision"] == OUT_OF_DISTRIBUTION:
        text = "out of distribution: not like the training images"
    elif row["decision"] == UNCERTAIN:
        labels = row["prediction_set"].split("|")
        text = "uncertain: " + (" or ".join(labels) if labels[0] else "typical of no class")
        if len(labels) == 1 and labels[0]:
            text += ", near the threshold"
    else:
        text = row["decision"]
    return f"{text} ({row['warnings']})" if row["warnings"] else text


def _to_parquet(rows: Sequence[Row]) -> bytes:
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError(
            'Parquet needs pyarrow: pip install "pneumoscope[train]". Or choose another format.'
        ) from None

    sink = io.BytesIO()
    pyarrow.parquet.write_table(to_table(rows), sink)
    return sink.getvalue()


def to_table(rows: Sequence[Row]) -> Any:
    """Rows as a `pyarrow.Table` whose columns have the same types whatever is missing."""
    import pyarrow

    numbers = {"probability", "ood_score", "age"}
    kinds = {
        name: pyarrow.float64() if name in numbers or name.startswith("probability_") else pyarrow.string()
        for name in (rows[0] if rows else ())
    }
    return pyarrow.Table.from_pylist(list(rows), schema=pyarrow.schema(list(kinds.items())))
