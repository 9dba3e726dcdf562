"""`pneumoscope.write_checklist`: reporting checklists filled from a run, with methods, flow, Table 1 and BibTeX."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pneumoscope.config import checked
from pneumoscope.errors import DataError, UsageError
from pneumoscope.files import claim_folder, lock_folder, write_rows, write_text
from pneumoscope.notebook import Drawn, to_frame, to_html
from pneumoscope.reports.citations import write_bibtex
from pneumoscope.reports.facts import Fact, find_fact
from pneumoscope.reports.flow import draw_flow
from pneumoscope.reports.methods import write_methods
from pneumoscope.reports.pages import format_command, render
from pneumoscope.reports.study import Study, read_study
from pneumoscope.reports.table_one import tabulate

NAMES = ("claim", "tripod-ai", "stard")
OUTPUTS = ("checklist.html", "checklist.md", "flow.svg", "table1.csv", "references.bib")
FOLDER = "paper"  # in the run, by default


@dataclass(frozen=True)
class Item:
    """An item of a checklist, as far as a run fills it."""

    number: str
    topic: str
    facts: tuple[Fact, ...]
    author: str  # what the author must write; empty where the run shows all

    @property
    def state(self) -> str:
        """`run`, `partly` or `author`: who fills it."""
        return "author" if not self.facts else "partly" if self.author else "run"


@dataclass(frozen=True)
class Checklist(Drawn):
    """A checklist filled from a run; `sections` hold its items by heading."""

    title: str
    purpose: str
    source: str
    form: str
    sections: Mapping[str, Sequence[Item]]

    def __repr__(self) -> str:
        return f"Checklist({self.describe()})"

    def describe(self) -> str:
        """The title, and how many items are filled."""
        counts = f"{self.count('run')} filled from the run, {self.count('partly')} in part, {self.count('author')} open"
        return f"{self.title}: {counts}"

    def _repr_html_(self) -> str:
        return to_html(self.describe(), self.to_rows())

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a row for each item: what the run shows and where, and what the author must write."""
        return [
            {"section": section, "item": item.number, "topic": item.topic, "state": item.state,
             "found": " ".join(fact.text for fact in item.facts), "author": item.author}
            for section, items in self.sections.items()
            for item in items
        ]  # fmt: skip

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each item; it needs pandas."""
        return to_frame(self.to_rows())

    @property
    def items(self) -> list[Item]:
        """All items in order."""
        return [item for items in self.sections.values() for item in items]

    def count(self, state: str) -> int:
        """How many items are in a state."""
        return sum(item.state == state for item in self.items)


@checked
def write_checklist(
    run: str | Path,
    checklist: str = "claim",
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
) -> list[Checklist]:
    """Fill reporting checklists from a run, and write the parts of a paper that the run knows.

    `checklist.html` and `checklist.md` hold each item with what the run shows of it and where, or what the author must
    write; then the methods in words, a flow diagram and Table 1. `flow.svg`, `table1.csv` and `references.bib` hold
    the last parts as files. Items are in our own words; complete the official forms before submission.

    Args:
        run: a finished run of `train`.
        checklist: `claim`, `tripod-ai` or `stard`, or several, such as `claim,stard`.
        out: folder to write; by default the folder `paper` in the run.
        overwrite: whether to replace earlier output in `out`.

    Returns:
        The checklists as they were filled.

    Raises:
        DataError, ModelError: the folder is no finished run, or a file in it is damaged.
        UsageError: no such checklist, or `out` exists.
    """
    names = _parse(checklist)
    folder = Path(run) / FOLDER if out is None else Path(out)
    study = read_study(Path(run))
    try:
        filled = [fill_checklist(name, study) for name in names]
        parts = {
            "run": str(run),
            "checklists": filled,
            "methods": write_methods(study),
            "flow": draw_flow(study),
            "table": tabulate(study),
            "bibtex": write_bibtex(study),
            "command": format_command("report", str(run), checklist=",".join(names), out="NEW_FOLDER"),
        }
    except (LookupError, TypeError, ValueError, AttributeError) as problem:
        raise DataError(
            f"{run}: the files of this run do not fit together ({type(problem).__name__}: {problem}). Train again."
        ) from None
    with lock_folder(folder):
        claim_folder(folder, OUTPUTS, overwrite)
        _write_files(folder, parts)
    return filled


def _parse(checklist: str) -> list[str]:
    names = list(dict.fromkeys(each.strip() for each in checklist.split(",")))
    if unknown := [name for name in names if name not in NAMES]:
        raise UsageError(f"no such checklist: {', '.join(unknown)}. Choose from {', '.join(NAMES)}.", "checklist")
    return names


def _write_files(folder: Path, parts: Mapping[str, Any]) -> None:
    write_text(folder / "flow.svg", parts["flow"])
    write_rows(folder / "table1.csv", parts["table"])
    write_text(folder / "references.bib", parts["bibtex"])
    for name in OUTPUTS[:2]:
        write_text(folder / name, render(name, title="Reporting checklists", **parts))


def fill_checklist(name: str, study: Study) -> Checklist:
    """Fill a checklist with what a run shows."""
    guideline = _read_guideline(name)
    sections = {
        heading: [_fill(item, study) for item in items] for heading, items in guideline["sections"].items()
    }  # fmt: skip
    return Checklist(guideline["title"], guideline["for"], guideline["source"], guideline["form"], sections)


def _fill(item: Mapping[str, Any], study: Study) -> Item:
    facts = (find_fact(name, study) for name in item.get("facts", ()))
    found = tuple(fact for fact in facts if fact is not None)
    author = item.get("author", "" if found else item.get("missing", ""))  # `missing`: only if no fact is known
    return Item(item["number"], item["topic"], found, author if found or author else "the run does not show this")


@cache
def _read_guideline(name: str) -> dict[str, Any]:
    import yaml

    path = Path(__file__).parent / "guidelines" / f"{name}.yaml"
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def list_items(name: str) -> Iterator[Mapping[str, Any]]:
    """The items of a checklist, as its file holds them."""
    for items in _read_guideline(name)["sections"].values():
        yield from items
