"""Parameters of the library's messages are shown as flags of the command that runs, and of no other."""

from __future__ import annotations

import ast
import inspect
import pickle
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

import pneumoscope
from pneumoscope.cli import main as cli
from pneumoscope.cli.flags import describe_error, set_flags, show_flags
from pneumoscope.errors import DataError, UsageError
from pneumoscope.training.train import Run

SOURCE = Path(pneumoscope.__file__).parent
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")


def list_commands(command: Any = None, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its name, groups left out."""
    command = command or typer.main.get_command(cli.app)
    if members := getattr(command, "commands", None):
        for word, member in members.items():
            yield from list_commands(member, f"{name} {word}".strip())
    else:
        yield name, command


COMMANDS = dict(list_commands())


def flags_of(name: str) -> set[str]:
    command = COMMANDS[name]
    parameters = command.get_params(typer.Context(command))
    return {flag for parameter in parameters for flag in (*parameter.opts, *parameter.secondary_opts)}


def list_texts(files: Iterable[Path]) -> Iterator[str]:
    """Every text in the sources that is not a docstring; what is filled in is left out."""
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        left_out = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in left_out:
                yield node.value


FILES = sorted(SOURCE.rglob("*.py"))
TEXTS = [text for text in list_texts(FILES) if "`" in text or "--" in text]


@pytest.fixture
def places(images: Path, run: Run, tmp_path: Path) -> dict[str, Path]:
    """What the commands below name in capitals."""
    for label in ("A", "B"):
        (tmp_path / "two" / label).mkdir(parents=True)
        Image.new("L", (64, 64)).save(tmp_path / "two" / label / "image.png")
    return {"DATA": images, "RUN": run.folder, "TWO": tmp_path / "two", "NEW": tmp_path / "new"}


@pytest.mark.parametrize(
    ("line", "flags"),
    [
        ("train DATA --out RUN", {"--overwrite"}),
        ("train DATA --out NEW --strict --no-audit", {"--strict", "--no-audit"}),
        ("train DATA --out NEW --lr -1", {"--lr"}),
        ("train TWO --out NEW", {"--positive"}),
        ("crossval DATA --out NEW --recipe best --ensemble", {"--ensemble", "--recipe"}),
        ("crossval DATA --out NEW --test-fraction 0.2", {"--test-fraction", "--folds"}),
        ("crossval DATA --out RUN", {"--overwrite"}),
        ("tune DATA --out NEW --metric auc", {"--metric"}),
        ("tune DATA --out NEW --storage x", {"--storage"}),
        ("tune DATA --out RUN", {"--overwrite"}),
        ("summarize RUN --by nothing", {"--by"}),
        ("audit TWO --out RUN", {"--overwrite"}),
        ("evaluate DATA --model RUN --out NEW --prevalence 0.2 --adapt-prior", {"--prevalence", "--adapt-prior"}),
        ("evaluate --predictions FILE --out NEW --prevalence 0.2", {"--prevalence", "--calibrate"}),
        ("predict DATA --model RUN --alpha 2", {"--alpha"}),
        ("compare RUN RUN --out RUN", {"--overwrite"}),
        ("data fetch kermany --archive a.zip --url http://x/a.zip --out NEW", {"--archive", "--url"}),
        ("data phantoms --out NEW --size 1", {"--size"}),
        ("serve --model RUN --host 0.0.0.0", {"--host"}),
        ("dicom node --model RUN", {"--to", "--dry-run"}),
        ("dicom node --model RUN --to pacs", {"--to"}),
        ("dicom node --model RUN --dry-run --http-host 0.0.0.0", {"--http-host"}),
        ("dicom node --model RUN --dry-run --verify find", {"--verify", "--to"}),
        ("dicom node --model RUN --dry-run --title A\\B", {"--title"}),
        ("dicom node --model RUN --dry-run --as fhir-r4", {"--as"}),
        ("dicom node --model RUN --dry-run --database mysql://a@b/c --spool NEW", {"--database"}),
        ("serve --model RUN --database mysql://a@b/c", {"--database"}),
    ],
)
def test_a_message_names_flags_of_the_command_that_runs_only(
    line: str,
    flags: set[str],
    places: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("PNEUMOSCOPE_TOKEN", raising=False)
    monkeypatch.setattr(sys, "argv", ["pneumoscope", *(str(places.get(word, word)) for word in line.split())])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code
    message = capsys.readouterr().err
    name = max((name for name in COMMANDS if line.startswith(name)), key=len)
    named = set(FLAG.findall(re.sub(r"pneumoscope [a-z][^`.)\n]*", "", message)))  # other commands have their own
    assert named == flags, message
    assert named <= flags_of(name), message


@pytest.mark.parametrize("name", COMMANDS)
def test_a_parameter_that_a_command_has_no_flag_for_stays_as_it_is(name: str) -> None:
    known = flags_of(name)
    set_flags(known)
    for parameter in ("alpha", "out", "resamples", "patient_pattern", "optimisation.lr"):
        shown = describe_error(UsageError("is wrong.", parameter)).partition(": ")[0]
        assert shown in known or shown == parameter


def test_a_command_that_a_message_names_has_the_flags_that_it_names() -> None:
    for text in TEXTS:
        for line in re.findall(r"pneumoscope [a-z][^`.)\n]*", text):
            names = [name for name in COMMANDS if line.removeprefix("pneumoscope ").startswith(name)]
            assert names, line
            assert set(FLAG.findall(line)) <= flags_of(max(names, key=len)), line


def test_the_library_names_flags_only_after_a_command() -> None:
    for text in list_texts(file for file in FILES if SOURCE / "cli" not in file.parents):
        for flag in FLAG.finditer(text):
            assert "pneumoscope" in text[: flag.start()] or text == flag[0] or "all but --flip" in text, text


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Choose another `out`, or pass `overwrite=True`.", "Choose another --out, or pass --overwrite."),
        ("Pass `any_modality=True` or `audit=False`.", "Pass --any-modality or --no-audit."),
        ("Pass `cache=False` or `balance='weights'`.", "Pass --no-cache or --balance weights."),
        ("Lower `optimisation.lr`.", "Lower --lr."),
        ("Pass `label_column='No Finding'`.", "Pass --label-column 'No Finding'."),
        ("Write `to='int8'`.", "Write `to='int8'`."),
        (
            "`model.json` has no `weight`; run `pneumoscope data split`.",
            "`model.json` has no `weight`; run `pneumoscope data split`.",
        ),
    ],
)
def test_parameters_become_flags_and_other_words_stay(message: str, shown: str) -> None:
    set_flags(flags_of("train"))
    assert show_flags(message) == shown


def test_an_error_names_the_parameter_in_python_and_the_flag_on_the_command_line() -> None:
    set_flags(flags_of("train"))
    error = UsageError("1.2 is not between 0 and 1.", parameter="alpha")
    assert str(error) == "alpha: 1.2 is not between 0 and 1."
    assert describe_error(error) == "--alpha: 1.2 is not between 0 and 1."
    assert describe_error(UsageError("0 is not valid.", parameter="decisions.false_alarms")).startswith(
        "--false-alarms: "
    )
    assert describe_error(UsageError("unknown key.", parameter="leraning_rate")) == "leraning_rate: unknown key."
    in_file = UsageError("0 is not valid.", parameter="config.yaml: optimisation.lr")
    assert describe_error(in_file) == "config.yaml: optimisation.lr: 0 is not valid."
    assert describe_error(DataError("No images.")) == "No images."
    set_flags(flags_of("audit"))
    assert describe_error(error) == "alpha: 1.2 is not between 0 and 1."


def test_errors_survive_another_process() -> None:
    error = pickle.loads(pickle.dumps(UsageError("wrong.", parameter="alpha")))
    assert str(error) == "alpha: wrong."


# A command's option or argument -> the Python function's parameter of another name; None for what printing alone needs.
_ALONE = ("path_column", "invert", "any_modality", "out", "excel", "overwrite")
_EXTERNAL = (
    "predictions", "truth", "id_column", "probability_column", "predicted_column", "scale", "positive", "calibrate",
)  # fmt: skip
OTHER_NAMES: dict[str, dict[str, str | None]] = {
    "audit": {"context": None, "invert": "reading", "any_modality": "reading", "fail_on": None},
    "compare": {"context": None, "form": None, "excel": None, "by": None},  # in Python, `summarize` groups
    "data phantoms": {"out": "folder"},
    "adapt": {"context": None, "invert": "reading", "any_modality": "reading"},
    "evaluate": {"context": None, "invert": "reading", "any_modality": "reading"} | dict.fromkeys(_EXTERNAL),
    "plot": {"form": "format"},
    "explain": {"paths": "image"} | dict.fromkeys(_ALONE),
    "predict": dict.fromkeys((*_ALONE, "paths", "adapt_prior", "estimate", "form", "heatmaps", "patient_ids")),
    "crossval": {"context": None},
    "summarize": {"form": None},
    "tune": {"context": None},
    "train": {"context": None},
}
# A command needs a folder for its result; a function returns the result, and writes it only if asked.
OTHER_DEFAULTS = {("audit", "out"), ("evaluate", "out"), ("evaluate", "data")}


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("audit", pneumoscope.audit),
        ("compare", pneumoscope.compare),
        ("adapt", pneumoscope.adapt),
        ("data phantoms", pneumoscope.write_phantoms),
        ("evaluate", pneumoscope.evaluate),
        ("explain", pneumoscope.explain),
        ("plot", pneumoscope.plot),
        ("predict", pneumoscope.load),
        ("crossval", pneumoscope.cross_validate),
        ("summarize", pneumoscope.summarize),
        ("report", pneumoscope.write_checklist),
        ("train", pneumoscope.train),
        ("tune", pneumoscope.tune),
    ],
)
def test_a_command_and_its_function_have_the_same_parameters_and_defaults(name: str, function: Any) -> None:
    theirs = inspect.signature(function).parameters
    for option in inspect.signature(COMMANDS[name].callback).parameters.values():
        other = OTHER_NAMES.get(name, {}).get(option.name, option.name)
        if other is None or other == "reading":
            continue
        assert other in theirs, option.name
        if (name, option.name) not in OTHER_DEFAULTS:
            default = theirs[other].default
            assert (Path(default) if isinstance(option.default, Path) else default) == option.default, option.name


def test_options_for_other_programs_have_the_defaults_of_their_function() -> None:
    theirs = inspect.signature(pneumoscope.evaluate_predictions).parameters
    options = inspect.signature(COMMANDS["evaluate"].callback).parameters
    shared = [name for name in theirs if name in options and name != "out"]
    assert set(shared) >= {*_EXTERNAL, "threshold", "subgroups", "resamples", "seed", "split"}
    for name in shared:
        if name != "predictions":
            assert theirs[name].default == options[name].default, name


def test_a_split_has_the_same_defaults_on_the_command_line() -> None:
    theirs = inspect.signature(pneumoscope.split_samples).parameters
    options = inspect.signature(COMMANDS["data split"].callback).parameters
    assert options["seed"].default == theirs["seed"].default
    for name in ("test_fraction", "val_fraction", "balanced"):  # None on the command line: not given
        (option,) = (each for each in COMMANDS["data split"].params if each.name == name)
        default = theirs[name].default
        assert f"[default: {default[0] if name == 'balanced' else format(default, '.3g')}]" in option.help
