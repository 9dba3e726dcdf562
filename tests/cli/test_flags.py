"""Parameters of the library's messages are shown as flags."""

from __future__ import annotations

import pickle

import pytest

import pneumoscope.cli.main  # noqa: F401 - adds the commands
from pneumoscope.cli.flags import describe_error, show_flags
from pneumoscope.errors import DataError, UsageError


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Choose another `out`, or pass `overwrite=True`.", "Choose another --out, or pass --overwrite."),
        ("Pass `any_modality=True`, `cache=None` or `to='int8'`.", "Pass --any-modality, --no-cache or --to int8."),
        ("Lower `optimisation.lr`.", "Lower --lr."),
        (
            "`model.json` has no `weight`; run `pneumoscope data split`.",
            "`model.json` has no `weight`; run `pneumoscope data split`.",
        ),
    ],
)
def test_parameters_become_flags_and_other_words_stay(message: str, shown: str) -> None:
    assert show_flags(message) == shown


def test_an_error_names_the_parameter_in_python_and_the_flag_on_the_command_line() -> None:
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


def test_errors_survive_another_process() -> None:
    error = pickle.loads(pickle.dumps(UsageError("wrong.", parameter="alpha")))
    assert str(error) == "alpha: wrong."
