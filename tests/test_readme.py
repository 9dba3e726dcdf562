"""Every example of the README is run, in a folder where its files exist."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from dicom_files import dicom
from dicom_files import image as levels
from rooms import run_process

from pneumoscope.cli import main as cli

if TYPE_CHECKING:
    from pneumoscope.training.train import Run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_examples_of_the_readme_work(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(images, tmp_path / "images")
    for name in ("scan.png", "scan.jpg"):
        shutil.copy(next((images / "test" / "NORMAL").iterdir()), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    shell = "".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
    commands = [line for line in shell.splitlines() if line.startswith("pneumoscope ")]
    commands += re.findall(r"`(pneumoscope [^`]*)`", README)
    assert len(commands) >= 9
    monkeypatch.setenv("PNEUMOSCOPE_DATABASE", str(tmp_path / "reads.sqlite"))
    for line in commands:
        if line.startswith("pneumoscope serve"):
            with run_process(None, None, *shlex.split(line)[2:]) as room, room.client() as client:
                (one,) = client.post("/v1/predictions", files={"files": Path("scan.png").read_bytes()}).json()[
                    "predictions"
                ]
                verdict = {"verdict": "agree" if one["decision"] == "NORMAL" else "disagree", "label": "NORMAL"}
                assert client.post(f"/v1/reads/{one['id']}/verdicts", json=verdict).status_code == 201
                assert room.end() == 0
            continue
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code, line
    (python,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(python, {})
    assert "Interval(value=" in capsys.readouterr().out


def test_the_examples_of_the_reading_room_work(run: Run, images: Path, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    page = (ROOT / "docs" / "reading_room.md").read_text(encoding="utf-8")
    image = next((images / "test" / "NORMAL").iterdir())
    shutil.copy(image, tmp_path / "scan.png")
    (tmp_path / "scan.dcm").write_bytes(dicom(levels()))
    lines = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    calls = [line for line in lines if line.startswith("curl ")]
    assert len(calls) >= 8
    with run_process(run.model, str(tmp_path / "reads.sqlite")) as room:
        for line in calls:
            call = shlex.split(line.replace("http://127.0.0.1:8000", room.url))
            done = subprocess.run(call, cwd=tmp_path, capture_output=True)
            assert done.returncode == 0, (line, done.stderr)
            assert done.stdout


def test_the_commands_of_the_readme_are_those_of_the_makefile_and_ci() -> None:
    root = Path(__file__).parents[1]
    targets = set(re.findall(r"^(\w+):", (root / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make (\w+)", README, re.MULTILINE)) == {"demo", "test"} <= targets
    assert "make test" in (root / ".ci" / "run").read_text()


@pytest.mark.parametrize("name", ["README.md", "docs/reading_room.md"])
def test_what_the_pages_link_to_is_there(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).stat().st_size > 200, target
