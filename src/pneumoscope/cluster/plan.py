"""Which image belongs to which part of the output: decided once and written down, so that any run can go on.

A plan is a list of images in parts of equal size. Part 7 of the first plan is always the same images, and always
becomes the file `predictions/000000-000007.parquet`, which appears whole or not at all. So the files that are there
show what is done: nothing else is kept, no image can be missing or there twice, and a part may be computed twice. Plans
are short, because to read one part, a worker reads the index of its plan.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from pneumoscope.cluster.ids import IdSet
from pneumoscope.cluster.listing import ListedImage
from pneumoscope.cluster.storage import Storage
from pneumoscope.errors import DataError, UsageError

ABOUT, PLANS, PREDICTIONS = "cluster.json", "plans", "predictions"
_PLAN = re.compile(r"\d{6}\.parquet")
_BATCH = 1000  # images that are looked up at a time
_PARTS = 100  # in a plan at most


@dataclass(frozen=True, order=True)
class Part:
    """Some of the images of a plan, whose predictions become one file."""

    plan: int  # its number
    number: int  # of the part in this plan

    @property
    def name(self) -> str:
        """The name of its file, in the folder of the output."""
        return f"{PREDICTIONS}/{self.plan:06}-{self.number:06}.parquet"


@dataclass(frozen=True)
class Work:
    """The work: all parts, and those that have no file yet."""

    parts: list[Part]
    missing: list[Part]
    images: int


def check_output(out: Storage, about: Mapping[str, Any]) -> None:
    """Check that an output, if it was begun, was begun in the same way.

    Raises:
        UsageError: it holds predictions of another model or with other options.
        DataError: it cannot be read.
    """
    if not out.exists(ABOUT):
        return
    try:
        earlier = json.loads(out.read(ABOUT))
        differing = [name for name in about if earlier.get(name) != about[name]]
    except (ValueError, AttributeError):
        raise DataError(f"{out.url}/{ABOUT}: damaged. Choose another `out`.") from None
    if differing:
        name = differing[0]
        raise UsageError(
            f"{out.url}: begun with another value of {name} ({earlier.get(name)}, now {about[name]}). Use the same "
            "again, or choose another `out`.",
            "out",
        )


def extend_plan(out: Storage, images: Iterable[ListedImage], part_size: int, about: Mapping[str, Any]) -> int:
    """Add plans for the images that no earlier plan has, and write down how they are predicted.

    Returns:
        How many images are new.
    """
    import pyarrow
    from pyarrow import parquet

    plans = _list_plans(out)
    known = IdSet()
    for plan in plans:
        for ids in _read_column(out, _name_plan(plan), "id"):
            known.add(ids)
    new = _select_new(images, known)
    number, count = len(plans), 0
    while batch := list(islice(new, _PARTS * part_size)):
        if not count and not out.exists(ABOUT):  # before the first plan, in case the command is killed after it
            out.write(ABOUT, (json.dumps(about, indent=2) + "\n").encode())
        sink = io.BytesIO()
        rows = pyarrow.Table.from_pylist([asdict(each) for each in batch], _make_schema())
        parquet.write_table(rows, sink, row_group_size=part_size)
        out.write(_name_plan(number), sink.getvalue())
        number, count = number + 1, count + len(batch)
    return count


def _select_new(images: Iterable[ListedImage], known: IdSet) -> Iterator[ListedImage]:
    listed = iter(images)
    while batch := list(islice(listed, _BATCH)):
        is_known = known.has([each.id for each in batch])
        yield from (image for image, old in zip(batch, is_known, strict=True) if not old)


def find_work(out: Storage) -> Work:
    """All parts of all plans, and which of them have no file yet."""
    from pyarrow import parquet

    parts, images = list[Part](), 0
    for plan in _list_plans(out):
        with out.open(_name_plan(plan)) as file:
            about = parquet.read_metadata(file)
        parts += [Part(plan, number) for number in range(about.num_row_groups)]
        images += about.num_rows
    done = out.list_names(PREDICTIONS)
    return Work(parts, [each for each in parts if each.name.rpartition("/")[2] not in done], images)


def read_part(out: Storage, part: Part) -> list[ListedImage]:
    """The images of a part."""
    from pyarrow import parquet

    with out.open(_name_plan(part.plan)) as file, parquet.ParquetFile(file) as plan:
        return [ListedImage(**row) for row in plan.read_row_group(part.number, use_threads=False).to_pylist()]


def _list_plans(out: Storage) -> list[int]:
    return sorted(int(name[:6]) for name in out.list_names(PLANS) if _PLAN.fullmatch(name))


def _name_plan(number: int) -> str:
    return f"{PLANS}/{number:06}.parquet"


def _read_column(out: Storage, name: str, column: str) -> Iterator[list[Any]]:
    from pyarrow import parquet

    with out.open(name) as file, parquet.ParquetFile(file) as table:
        for group in range(table.num_row_groups):
            yield table.read_row_group(group, columns=[column], use_threads=False)[column].to_pylist()


def _make_schema() -> Any:
    import pyarrow

    text, number, flag = pyarrow.string(), pyarrow.float64(), pyarrow.bool_()
    kinds = {"age": number, "invert": flag, "any_modality": flag}
    return pyarrow.schema([(name, kinds.get(name, text)) for name in ListedImage.__slots__])
