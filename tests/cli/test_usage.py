"""A command line that cannot be parsed: the message says what was found and what is allowed, in our words."""

from __future__ import annotations

import sys

import pytest

from pneumoscope.cli import main as cli


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("predict x --threshold abc", "--threshold: must be a number, found 'abc'."),
        ("train x --epochs abc", "--epochs: must be a whole number, found 'abc'."),
        ("train x --epochs 1.5", "--epochs: must be a whole number, found '1.5'."),
        ("train x --epochs 0", "--epochs: must be greater than or equal to 1, found 0."),
        ("train x --fit stretch", "--fit: 'stretch' is not one of 'crop', 'pad', 'squash'."),
        ("train x --epoch 3", "No such option: --epoch (Possible options: --epochs, --stretch, --warmup-epochs)"),
        ("data split x --out y --folds 1", "--folds: must be greater than or equal to 2, found '1'."),
        ("serve --port 99999", "--port: must be less than or equal to 65535, found 99999."),
        ("predict x --format \x1b[31m", "--format: '\\x1b[31m' is not one of 'table',"),
        ("predict x --prevalence", "Option '--prevalence' requires an argument."),
        ("predict", "Missing argument 'PATH'."),
        ("frob", "No such command 'frob'."),
    ],
)
def test_what_cannot_be_parsed_is_said_in_a_sentence(
    line: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pneumoscope", *line.split(" ")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr()
    assert (ended.value.code, shown.out) == (2, "")
    assert shown.err.startswith(f"error: {message}")
    assert not any(word in shown.err for word in ("Input should", "Value error", "Usage:"))


@pytest.mark.parametrize("line", ["", "data", "models"])
def test_a_group_without_a_command_shows_its_help(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pneumoscope", *line.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("Usage: ")
