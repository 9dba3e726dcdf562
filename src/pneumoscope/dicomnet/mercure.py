"""Answers the files of a folder, as a processing module of the mercure orchestrator (https://mercure-imaging.org)."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pneumoscope import __version__
from pneumoscope.config import build, checked
from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION, UNCERTAIN
from pneumoscope.dicomnet.algorithm import RESEARCH_USE, identify
from pneumoscope.dicomnet.results import Answer, Answerer, Kind, ResultSettings
from pneumoscope.dicomnet.structured_report import ReportClass, Unit
from pneumoscope.errors import DataError, UsageError
from pneumoscope.files import read_regular, write_bytes, write_text
from pneumoscope.inference.predictor import load
from pneumoscope.text import counted

TASK, RESULT = "task.json", "result.json"
_LONGEST_TASK = 16 * 1024**2  # bytes


@dataclass(frozen=True)
class ModuleSettings:
    """What `task.json` may set below `process.settings`; anything else there is refused.

    Attributes:
        model: as for `load`.
        kinds: which results are made; see `ResultSettings`.
        report_class: see `make_report`.
        unit: see `make_report`.
        threshold: see `load`.
        prevalence: see `load`.
        refuse_out_of_scope: see `load`.
        notify: whether mercure is asked to send a notification where an image has the positive label.
    """

    model: str | None = None
    kinds: tuple[Kind, ...] = ("sr", "sc")
    report_class: ReportClass = "comprehensive-3d"
    unit: Unit = "1"
    threshold: float | None = None
    prevalence: float | None = None
    refuse_out_of_scope: bool = False
    notify: bool = False


@checked
def answer_folder(source: str | Path | None = None, target: str | Path | None = None) -> list[Answer]:
    """Predict the DICOM files of a folder, and write the results into another one.

    The files are named as mercure names them, `SERIES#INSTANCE.dcm`, beside `result.json`, which mercure keeps with the
    task and which names no patient.

    Args:
        source: folder of DICOM files, with a `task.json` if there are settings; `$MERCURE_IN_DIR` by default.
        target: folder for the results; `$MERCURE_OUT_DIR` by default.

    Returns:
        One answer per file.

    Raises:
        DataError: there are no DICOM files, `task.json` cannot be read, or no file has a prediction.
        UsageError: a folder is missing or not named, or a setting is not valid.
    """
    inside = _find_folder(source, "MERCURE_IN_DIR", "source")
    outside = _find_folder(target, "MERCURE_OUT_DIR", "target")
    settings = _read_task(inside / TASK)
    files = sorted(path for path in inside.iterdir() if path.is_file() and path.name not in (TASK, RESULT))
    if not files:
        raise DataError(f"{inside}: no files. Check the rule that sends images to this module.")
    predictor = load(
        settings.model, threshold=settings.threshold, prevalence=settings.prevalence,
        refuse_out_of_scope=settings.refuse_out_of_scope,
    )  # fmt: skip
    algorithm = identify(predictor, settings.model)
    answerer = Answerer(predictor, algorithm, ResultSettings(settings.kinds, settings.report_class, settings.unit))
    answers = []
    for answer in answerer.answer(files):
        for result in answer.results:
            name = f"{result.series_uid}#{result.sop_uid}{result.suffix}"
            write_bytes(outside / name, result.content)
        if answer.prediction.error is not None:
            logging.getLogger("pneumoscope").warning("%s", answer.prediction.error)
        answers.append(answer)
    summary = _summarise(answers, algorithm.name, predictor.model.positive, settings.notify)
    write_text(outside / RESULT, json.dumps(summary, indent=2) + "\n")
    if all(answer.prediction.error is not None for answer in answers):
        raise DataError(f"{inside}: none of {counted(len(answers), 'file')} has a prediction; see {outside / RESULT}.")
    return answers


def _find_folder(given: str | Path | None, variable: str, parameter: str) -> Path:
    name = given or os.environ.get(variable)
    if not name:
        raise UsageError(f"neither given nor named by ${variable}.", parameter)
    folder = Path(name)
    if not folder.is_dir():
        raise UsageError(f"{folder}: not a folder.", parameter)
    return folder


def _read_task(path: Path) -> ModuleSettings:
    """The settings of a task. If it has several steps, those of the one that names pneumoscope, else of the first."""
    if not path.exists():
        return ModuleSettings()
    try:
        task = json.loads(read_regular(path, _LONGEST_TASK))
    except (OSError, ValueError) as problem:
        raise DataError(f"{path}: cannot be read as JSON ({problem}).") from None
    steps = task.get("process") if isinstance(task, Mapping) else None
    listed = [each for each in (steps if isinstance(steps, list) else [steps]) if isinstance(each, Mapping)]
    named = [each for each in listed if "pneumoscope" in str(each.get("module_name", "")).lower()]
    chosen = next(iter(named or listed), {})
    return build(ModuleSettings, chosen.get("settings") or {}, f"{path}: process.settings", UsageError)


def _summarise(answers: Iterable[Answer], model: str, positive: str | None, notify: bool) -> dict[str, Any]:
    answers = list(answers)
    decisions = Counter("error" if each.prediction.error else str(each.prediction.decision) for each in answers)
    images = [
        {
            "study_uid": each.prediction.study_uid,
            "sop_uid": each.prediction.sop_uid,
            "decision": each.prediction.decision,
            "probability": each.prediction.probability,
            "ood_score": each.prediction.ood_score,
            "warnings": list(each.prediction.warnings),
            "error": each.prediction.error,
            "results": [result.sop_uid for result in each.results],
        }
        for each in answers
    ]
    text = f"{model}: " + ", ".join(f"{count} {name}" for name, count in decisions.items()) + f". {RESEARCH_USE}"
    silent = {UNCERTAIN, OUT_OF_DISTRIBUTION, "error"}
    found = decisions[positive] if positive else sum(decisions[name] for name in decisions if name not in silent)
    return {
        "pneumoscope": __version__,
        "model": model,
        "decisions": dict(decisions),
        "images": images,
        "__mercure_notification": {"text": text, "requested": bool(notify and found)},
    }
