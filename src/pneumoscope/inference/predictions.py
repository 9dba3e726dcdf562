"""Predictions become rows: `predictions.csv`, and the other formats of `predict`."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from pneumoscope.datasets.samples import Sample
from pneumoscope.decisions.decide import NEITHER, OUT_OF_DISTRIBUTION, UNCERTAIN
from pneumoscope.errors import MissingExtraError, UsageError
from pneumoscope.files import format_rows, write_bytes
from pneumoscope.inference.predictor import Prediction, Predictor

Row = dict[str, Any]
SHORT = 12  # hex digits that name a file's content in tables and models


def to_row(prediction: Prediction, labels: Sequence[str], label: str | None = None) -> Row:
    """A prediction as a row; with more than two classes, a column for each class's share follows.

    Args:
        prediction: what the classifier says.
        labels: the classes it knows.
        label: the true class, where known.
    """
    ood = prediction.probability is None
    return {
        "path": _name(prediction),
        "label": label,
        "probability": prediction.probability,
        "predicted_label": None if ood else prediction.predicted_label,
        "decision": prediction.decision,
        "prediction_set": None if ood else "|".join(prediction.prediction_set),
        "ood_score": prediction.ood_score,
        "error": prediction.error,
        **_shares(labels, None if ood else prediction.probabilities),
    }


def to_measured_row(prediction: Prediction, labels: Sequence[str], sample: Sample) -> Row:
    """A prediction of a labelled image as a row, for those who measure: out-of-distribution images keep their probability and call.

    Args:
        prediction: what the classifier says.
        labels: the classes it knows.
        sample: the image.
    """
    return {
        "path": _name(prediction),
        "label": sample.label,
        "patient": sample.patient,
        "probability": prediction.raw_probability,
        "predicted_label": prediction.predicted_label,
        "decision": prediction.decision,
        "prediction_set": "|".join(prediction.prediction_set),
        "ood_score": prediction.ood_score,
        "digest": prediction.digest[:SHORT],
        "error": prediction.error,
        **_shares(labels, prediction.probabilities),
    }


def _name(prediction: Prediction) -> str:
    return "" if prediction.path is None else prediction.path.as_posix()


def _shares(labels: Sequence[str], shares: Mapping[str, float] | None) -> Row:
    return {f"probability_{name}": (shares or {}).get(name) for name in labels} if len(labels) > 2 else {}


def write_predictions(
    predictor: Predictor,
    samples: Sequence[Sample],
    form: str,
    out: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Predict files and write a row each, in input order.

    Args:
        predictor: the classifier.
        samples: the files.
        form: `table`, `csv`, `json`, `jsonl` or `parquet`.
        out: the file; standard output where None.
        progress: called with the number of files done.

    Returns:
        How many files could not be read.

    Raises:
        UsageError: `out` cannot be written.
    """
    failed = 0

    def rows() -> Iterator[Row]:
        nonlocal failed
        for done, (sample, prediction) in enumerate(zip(samples, predictor.stream(samples), strict=True), start=1):
            failed += prediction.error is not None
            yield to_row(prediction, predictor.model.labels, sample.label)
            if progress is not None:
                progress(done)

    write = {"csv": _write_csv, "jsonl": _write_lines, "json": _write_json, "table": _write_table}
    if out is None:
        write[form](rows(), sys.stdout)
        return failed
    try:
        if form == "parquet":
            write_bytes(out, _to_parquet(list(rows())))
        else:
            text = io.StringIO()
            write[form](rows(), text)
            write_bytes(out, text.getvalue().encode("utf-8"))
    except OSError as problem:
        raise UsageError(f"{out}: cannot be written: {problem.strerror}. Choose another --out.") from None
    return failed


def _write_csv(rows: Iterator[Row], stream: TextIO) -> None:
    stream.writelines(format_rows(rows))


def _write_lines(rows: Iterator[Row], stream: TextIO) -> None:
    stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write_json(rows: Iterator[Row], stream: TextIO) -> None:
    stream.write(json.dumps(list(rows), indent=2, ensure_ascii=False) + "\n")


def _write_table(rows: Iterator[Row], stream: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table

    meanings = {
        UNCERTAIN: "uncertain",
        NEITHER: "neither: typical of no class",
        OUT_OF_DISTRIBUTION: "not like the training radiographs",
    }
    table = Table(box=None, pad_edge=False)
    table.add_column("file", overflow="fold")
    table.add_column("probability", justify="right", no_wrap=True)
    table.add_column("decision")
    for row in rows:
        probability = "" if row["probability"] is None else f"{row['probability']:.3f}"
        meaning = meanings.get(row["decision"], row["decision"])
        if row["decision"] == UNCERTAIN:
            fits = row["prediction_set"].replace("|", " or ")
            meaning = f"uncertain: {fits}" if "|" in row["prediction_set"] else f"uncertain: {fits}, near the threshold"
        table.add_row(Path(row["path"]).name, probability, meaning or f"error: {row['error']}")
    Console(file=stream, highlight=False, markup=False).print(table)


def _to_parquet(rows: Sequence[Row]) -> bytes:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError(
            'Parquet needs pyarrow: pip install "pneumoscope[train]". Or take another --format.'
        ) from None

    texts = {"path", "label", "predicted_label", "decision", "prediction_set", "error"}
    schema = pyarrow.schema(
        [(name, pyarrow.string() if name in texts else pyarrow.float64()) for name in rows[0]] if rows else []
    )
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema=schema), sink)
    return sink.getvalue()
