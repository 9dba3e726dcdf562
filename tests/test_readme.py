"""Every example of the README, the quickstart and the guide is run, in a folder where its files exist."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
from dicom_files import dicom
from dicom_files import image as levels
from services import run_process

from pneumoscope.cli import main as cli
from pneumoscope.server.access.tokens import TokenFile
from pneumoscope.training import loop

if TYPE_CHECKING:
    from pneumoscope.training.train import Run

ROOT = Path(__file__).parents[1]
GUIDE = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs" / "guide").glob("*.md"))
PAGES = ["README.md", "docs/quickstart.md", "docs/reference.md", *GUIDE]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.figures
@pytest.mark.parametrize("name", PAGES)
def test_the_examples_of_a_page_work(
    name: str,
    run: Run,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (ROOT / name).read_text(encoding="utf-8")
    prepare_folder(tmp_path, page, run, images)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "_supports_bfloat16", lambda _: False)  # spares the trial of precisions
    monkeypatch.setenv("PNEUMOSCOPE_DATABASE", str(tmp_path / "predictions.sqlite"))
    blocks = re.findall(r"```(sh|python)\n(.*?)```", page, re.DOTALL)
    assert blocks
    for language, block in blocks:
        if language == "python":
            capsys.readouterr()
            exec(block, {})
            sys.stdout.flush()  # a command before it has replaced the stream by one with a buffer
            printed = capsys.readouterr().out
            assert "Interval(value=" in printed if "evaluation.metrics" in block else printed
            continue
        for line, calls in read_commands(block):
            if line.startswith("torchrun "):
                words = [sys.executable, "-m", "torch.distributed.run", *shlex.split(line)[1:]]
                assert subprocess.run(words, check=False).returncode == 0, line
            elif line.startswith("pneumoscope serve"):
                serve(line, calls)
            elif line.startswith("pneumoscope dicom node"):
                run_dicom_node(line)
            elif line.startswith("pneumoscope "):
                monkeypatch.setattr(sys, "argv", shlex.split(line))
                with pytest.raises(SystemExit) as ended:
                    cli.main()
                assert not ended.value.code, line


def test_the_pages_show_how_to_use_each_part() -> None:
    shell = {
        name: "".join(re.findall(r"```sh\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL))
        for name in PAGES
    }
    assert len(re.findall("^pneumoscope ", shell["README.md"], re.MULTILINE)) >= 8
    assert len(re.findall("^pneumoscope ", "".join(shell.values()), re.MULTILINE)) >= 25
    assert len(re.findall("^curl ", shell["docs/guide/api.md"], re.MULTILINE)) >= 8


def prepare_folder(folder: Path, page: str, run: Run, images: Path) -> None:
    """Put there what a page takes for granted: labelled images, new scans, and a run where the page trains none."""
    if "--out images " not in page:
        shutil.copytree(images, folder / "images")
    if not re.search(r"--out runs/first\s", page):
        (folder / "runs").mkdir()
        (folder / "runs" / "first").symlink_to(run.folder)
    first, second, *_ = sorted((images / "test" / "NORMAL").iterdir())
    (folder / "scans").mkdir()
    for source, name in ((first, "scan.png"), (first, "scan.jpg"), (first, "scans/a.png"), (second, "scans/b.png")):
        shutil.copy(source, folder / name)
    (folder / "scan.dcm").write_bytes(dicom(levels()))


def read_commands(block: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each command of a block with the calls of curl that follow it."""
    line, calls = "", list[str]()
    for each in block.splitlines():
        if each.startswith("curl "):
            calls.append(each)
            continue
        if line:
            yield line, calls
        line, calls = each, []
    yield line or "pneumoscope serve", calls


def serve(line: str, calls: list[str]) -> None:
    """Open the reading room, call it as the page does, review a prediction, and close it."""
    words = shlex.split(line)
    with ExitStack() as stack:
        token = (
            TokenFile(Path(words[words.index("--tokens") + 1])).add_token("example", "admin")
            if "--tokens" in words
            else ""
        )
        service = stack.enter_context(run_process(None, None, *words[2:]))
        client = stack.enter_context(service.client())
        if token:
            client.headers["authorization"] = f"Bearer {token}"
        for call in calls:
            if shutil.which("curl") is None:
                pytest.skip("no curl on this machine")
            done = subprocess.run(shlex.split(call.replace("http://127.0.0.1:8000", service.url)), capture_output=True)
            assert done.returncode == 0, (call, done.stderr)
            assert done.stdout, call
        files = {"files": Path("scan.png").read_bytes()}
        (prediction,) = client.post("/v1/predictions", files=files).json()["predictions"]
        review = {"agrees": prediction["decision"] == "NORMAL", "label": "NORMAL"}
        assert client.post(f"/v1/predictions/{prediction['id']}/reviews", json=review).status_code == 201
        assert service.end() == 0


def run_dicom_node(line: str) -> None:
    """Start the node on free ports, and end it."""
    command = [sys.executable, "-m", *shlex.split(line), "--port", "0", "--http-port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines: list[str] = []
    while not lines or (lines[-1] and "listens on" not in lines[-1]):
        lines.append(process.stderr.readline())
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 0, lines


@pytest.mark.parametrize("name", [*PAGES, "docs/results.md", "docs/performance.md", "CONTRIBUTING.md"])
def test_commands_and_options_that_a_page_mentions_exist(name: str) -> None:
    page = re.sub(r"```.*?```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    commands = list(list_commands(typer.main.get_command(cli.app)))
    parameters = [each for command in commands for each in list_parameters(command)]
    options = {name for each in parameters for name in (*each.opts, *each.secondary_opts)}
    for text in re.findall(r"`([^`]+)`", page):
        words = text.replace('"', "").split()
        if words[0] == "pneumoscope" and len(words) > 1:
            assert words[1] in {command.name for command in commands}, text
        if not {"pip", "python", "curl", "make"} & {words[0]}:
            for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", text):
                assert option in options | {"--help"}, text


def list_commands(command: Any) -> Iterator[Any]:
    """A command and all below it."""
    yield command
    for inner in getattr(command, "commands", {}).values():
        yield from list_commands(inner)


def list_parameters(command: Any) -> list[Any]:
    """The parameters of a command, those of `train` that come from its settings included."""
    found: list[Any] = command.get_params(command.make_context(command.name, [], resilient_parsing=True))
    return found


def test_the_make_targets_that_the_readme_names_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make (\w+)", README, re.MULTILINE)) == {"demo", "test"} <= targets
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`make ([\w-]+)`", README + contributing)) <= targets


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_files_that_a_page_links_to_exist(name: str) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", (ROOT / name).read_text(encoding="utf-8")):
        assert (ROOT / target).stat().st_size > 200, target


def test_the_readme_stays_short() -> None:
    assert len(README.split()) <= 700
