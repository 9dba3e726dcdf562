"""Patients of an evaluation whom a run trained on: model folders name no patients, but runs do, in samples.csv."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pneumoscope.datasets.samples import Sample
from pneumoscope.files import parse_rows
from pneumoscope.text import counted

TABLE = "samples.csv"


def describe_known_patients(model: str | Path | None, samples: Sequence[Sample]) -> str:
    """Say how many of these images are of patients whose other or same images a run trained or validated on.

    Args:
        model: as for `load`. Where it is a run or a cross-validation, or the model in one, their tables are read.
        samples: the images that are measured.
    """
    learned = _list_learned(Path(model)) if isinstance(model, str | Path) else {}
    known = [sample.patient for sample in samples if sample.patient in learned]
    if not known:
        return ""
    table = learned[str(known[0])]
    of = f"{counted(len(known), 'image')} {'is' if len(known) == 1 else 'are'} of {counted(len(set(known)), 'patient')}"
    return (
        f"{of} whose images the model was trained on or chosen by ({table}): the metrics are too optimistic. Leave "
        "them out, unless other people have the same names."
    )


def _list_learned(model: Path) -> dict[str, Path]:
    """The patients of the splits train and val of a run or of the folds of a cross-validation, with their table."""
    learned: dict[str, Path] = {}
    with suppress(OSError, ValueError, csv.Error, LookupError):  # a model from elsewhere has no such tables
        for folder in (model, model.parent):
            if (folder / "model").is_dir():
                for table in (folder / TABLE, *sorted((folder / "folds").glob(f"*/{TABLE}"))):
                    if table.is_file():
                        learned |= dict.fromkeys(_read_learned(table), table)
    return learned


def _read_learned(table: Path) -> list[str]:
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = parse_rows(file)[1]
    return [row["patient"] for row in rows if row["patient"] and row["split"] in ("train", "val")]
