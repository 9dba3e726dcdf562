"""Every example of the README is run, in a folder where its files exist."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from pneumoscope import cli

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_examples_of_the_readme_work(
    films: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(films, tmp_path / "films")
    for name in ("scan.png", "scan.jpg"):
        shutil.copy(next((films / "test" / "NORMAL").iterdir()), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    shell = "".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
    commands = [line for line in shell.splitlines() if line.startswith("pneumoscope ")]
    commands += re.findall(r"`(pneumoscope [^`]*)`", README)
    assert len(commands) >= 9
    for line in commands:
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code, line
    (python,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(python, {})
    assert "Interval(value=" in capsys.readouterr().out


def test_the_commands_of_the_readme_are_those_of_the_makefile_and_ci() -> None:
    root = Path(__file__).parents[1]
    targets = set(re.findall(r"^(\w+):", (root / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make (\w+)", README, re.MULTILINE)) == {"demo", "test"} <= targets
    assert "make test" in (root / ".ci" / "run").read_text()


def test_what_the_readme_links_to_is_there() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (Path(__file__).parents[1] / target).stat().st_size > 200, target
