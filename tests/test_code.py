"""The source keeps to the words of docs/glossary.md and to small modules and functions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import pneumoscope

ROOT = Path(__file__).parents[1]
SOURCE = Path(pneumoscope.__file__).parent
TEXTS = {".py", ".html", ".js", ".css", ".md", ".json"}

# Left: no longer used. Right: what to say.
INSTEAD = {
    r"films?": "image, radiograph",
    r"(?<!monai[ _.])(?<!resourceType\": \")bundles?(?!_root)": "model, model folder",  # of MONAI and FHIR
    r"zoo": "pretrained models",
    r"ships|shipped": "comes with the package, pretrained",
    r"verdicts?": "review",
    r"restat(?:e[sd]?|ing|ement)": "adjust to a prevalence",
    r"foreign(?![ _]keys?)": "out of distribution",
    r"novelty|strangers?": "OOD",
    r"unguarded": "without OOD detection",
    r"(?-i:gauges?|gauged|GAUGE)": "measurement",  # Prometheus has a Gauge
    r"label[ _-]sets?": "prediction set",
    r"error[ _-]rates?": "alpha",
    r"(?<!reading[ _-])rooms?": "package; the reading room",
    r"houses?": "project",
    r"(?<!e)roads?": "pipeline",
    r"told": "a name of what it holds",
    r"cannot be meant": "is not valid",
    r"a fault of ours": "internal error",
}
# Longest parameter lists, with why a dataclass would not make them plainer.
MANY_PARAMETERS: dict[str, str] = {
    "inference.predictor.load": "the options of predicting, each given by name",
    "training.train.train": "the options of the command",
    "training.adapt.adapt": "the options of the command",
    "training.cross_validation.cross_validate": "the options of the command",
    "training.tuning.tune": "the options of the command",
    "cli.cluster.predict": "the options of the command",
    "cli.crossval.crossval": "the options of the command",
    "cli.tune.tune": "the options of the command",
    "cli.train.train": "the options of the command",
    "cli.adapt.adapt": "the options of the command",
    "cli.data.split": "the options of the command",
    "cli.dicom.results": "the options of the command",
    "cli.node.node": "the options of the command",
    "dicomnet.results.write_dicom_results": "the options of the command",
    "cli.evaluate.audit": "the options of the command",
    "cli.evaluate.compare": "the options of the command",
    "cli.evaluate.evaluate": "the options of the command",
    "cli.grade.grade": "the options of the command",
    "cli.predict.explain": "the options of the command",
    "cli.predict.predict": "the options of the command",
    "reports.audit_page.audit": "the options of the command",
    "reports.comparison.compare": "the options of the command",
    "reports.evaluation_report.evaluate": "the options of the command",
    "reports.grading.grade": "the options of the command",
    "reports.predictions_report.evaluate_predictions": "the options of the command",
}


def read_texts() -> dict[str, str]:
    pages = [path for path in (ROOT / "docs").rglob("*.md") if path.name != "log.md"]
    paths = [*(path for path in SOURCE.rglob("*") if path.suffix in TEXTS), *pages, ROOT / "README.md"]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(paths)}


TEXT = read_texts()
MODULES = {path: ast.parse(text) for path, text in TEXT.items() if path.endswith(".py")}


def functions_of(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}.{node.name}"
            if not isinstance(node, ast.ClassDef):
                yield name, node
            yield from functions_of(node, name)
        else:
            yield from functions_of(node, prefix)


FUNCTIONS = {
    name: node
    for path, tree in MODULES.items()
    for name, node in functions_of(tree, path.removeprefix("src/pneumoscope/").removesuffix(".py").replace("/", "."))
}


@pytest.mark.parametrize("path", TEXT)
def test_words_are_those_of_the_glossary(path: str) -> None:
    lines = enumerate(TEXT[path].splitlines(), start=1)
    wrong = [
        f"{path}:{number}: {match[0]!r}: say {better}"
        for number, line in lines
        for word, better in INSTEAD.items()
        for match in re.finditer(rf"(?<![a-z])(?:{word})(?![a-z])", line, re.IGNORECASE)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", MODULES)
def test_decisions_are_a_label_or_uncertain_or_out_of_distribution(path: str) -> None:
    values = {node.value for node in ast.walk(MODULES[path]) if isinstance(node, ast.Constant)}
    assert "neither" not in values


@pytest.mark.parametrize("path", MODULES)
def test_modules_have_at_most_400_lines(path: str) -> None:
    assert len(TEXT[path].splitlines()) <= 400


def test_functions_have_at_most_60_lines() -> None:
    lengths = {name: (node.end_lineno or 0) - node.lineno + 1 for name, node in FUNCTIONS.items()}
    assert {name for name, length in lengths.items() if length > 60} == set()


def test_functions_have_at_most_8_parameters_unless_there_is_a_reason() -> None:
    counts = {}
    for name, node in FUNCTIONS.items():
        arguments = node.args
        names = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        counts[name] = len([each for each in names if each not in ("self", "cls")])
    many = {name for name, count in counts.items() if count > 8}
    assert many == set(MANY_PARAMETERS)


def test_no_module_is_named_for_having_no_purpose() -> None:
    names = {part for path in MODULES for part in Path(path).with_suffix("").parts}
    assert not names & {"utils", "util", "helpers", "helper", "common", "misc"}
