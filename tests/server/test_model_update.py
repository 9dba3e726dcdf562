"""A model is updated without downtime by the commands of the guide, with two instances behind the real nginx."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from services import draw, wait_until
from test_proxies import DEPLOY, find, take_port

from pneumoscope.models.model_folder import load_model, save_changed
from pneumoscope.server.storage.store import Store

if TYPE_CHECKING:
    from pneumoscope.training.train import Run

GUIDE = DEPLOY.parent / "docs" / "guide" / "operation.md"
STEPS = (
    ("--model NOW --shadow-model NEW", {"NOW"}),
    ("--model NOW --shadow-model NEW --canary 0.5", {"NOW", "NEW"}),
    ("--model NEW --shadow-model NOW", {"NEW"}),
    ("--model NOW", {"NOW"}),
)


def read_commands() -> list[str]:
    section = GUIDE.read_text(encoding="utf-8").split("## Update a model without downtime")[1]
    (block,) = re.findall(r"```console\n(.*?)```", section.split("\n## ")[0], re.DOTALL)
    return [line.removeprefix("$ ") for line in block.splitlines()]


class Site:
    """Two ports, nginx in front of them, and the commands of the guide."""

    def __init__(self, folder: Path, models: dict[str, Path]) -> None:
        self.folder, self.models = folder, models
        self.ports, self.port = [take_port(), take_port()], take_port()
        self.url = f"http://127.0.0.1:{self.port}"
        (folder / "serve.yaml").write_text(f"database: {folder}/predictions.sqlite\ndecoders: 0\n")
        upstream = folder / "pneumoscope-upstream.conf"
        upstream.write_text(f"server 127.0.0.1:{self.ports[0]};")
        text = (DEPLOY / "nginx.conf").read_text()
        for old, new in (
            ("listen 443 ssl;", f"listen 127.0.0.1:{self.port};"),
            ("http {", f"pid {folder}/nginx.pid; error_log {folder}/errors;\nhttp {{\n"
             f"access_log off; upstream pneumoscope {{ include {upstream}; }}\n"
             + "".join(f"{name}_temp_path {folder}/{name};\n"
                       for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))),
            ("proxy_pass http://service:8000;", "proxy_pass http://pneumoscope;"),
        ):  # fmt: skip
            assert old in text
            text = text.replace(old, new)
        text = re.sub(r"ssl_.*\n", "", text)
        (folder / "nginx.conf").write_text(text)
        self.nginx = [find("nginx"), "-c", str(folder / "nginx.conf"), "-p", str(folder)]

    def run(self, command: str, options: str = "") -> None:
        """Run a command of the guide; the first port is the one to stop, the second the one to start."""
        old, new = self.ports
        if options:
            command = re.sub(r"--model .* &", f"{options} &", command)
        for name, model in self.models.items():
            command = re.sub(rf"\b{name}\b", str(model), command)
        command = command.replace("pneumoscope serve", f"{shlex.quote(sys.executable)} -m pneumoscope serve")
        command = command.replace("8001", str(old)).replace("8002", str(new))
        command = command.replace("/run/nginx.pid", f"{self.folder}/nginx.pid").replace("/etc/nginx", str(self.folder))
        command = command.replace("nginx -s", f"{shlex.join(self.nginx)} -s")
        with (self.folder / "log").open("a") as log:
            subprocess.run(
                ["sh", "-c", command], check=True, cwd=self.folder, stdout=log, stderr=log, timeout=200,
                env={**os.environ, "PNEUMOSCOPE_LIMITS_STOPPING": "20"},
            )  # fmt: skip

    def stop(self) -> None:
        """End the processes that are left, but none that has got the id of one that has ended."""
        for file in self.folder.glob("*.pid"):
            process = Path("/proc") / file.read_text().strip()
            with suppress(OSError):
                command = (process / "cmdline").read_bytes()
                if process.joinpath("cwd").readlink() == self.folder or str(self.folder).encode() in command:
                    os.kill(int(process.name), signal.SIGTERM)


def listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 10):
            return True
    except OSError:
        return False


@pytest.fixture
def new_model(run: Run, tmp_path: Path) -> Path:
    model = load_model(run.model)
    threshold = {**model.decisions["threshold"], "value": 0.9999999, "rule": "0.9999999"}
    save_changed(tmp_path / "new", run.model, replace(model, decisions={**model.decisions, "threshold": threshold}), {})
    return tmp_path / "new"


def test_a_model_is_updated_and_taken_back_while_images_are_uploaded(run: Run, new_model: Path, tmp_path: Path) -> None:
    for program in ("curl", "pgrep", "ps"):
        find(program)
    commands = read_commands()
    assert [command.split()[0] for command in commands] == [
        "pneumoscope", "until", "echo", "pgrep", "nginx", "while", "kill", "while"
    ]  # fmt: skip
    site = Site(tmp_path, {"NOW": run.model, "NEW": new_model})
    answers: list[httpx.Response] = []
    end, seeds = threading.Event(), itertools.count()

    def upload() -> None:
        while not end.is_set():
            files = {"files": ("a.png", draw(next(seeds), 64))}
            answers.append(httpx.post(f"{site.url}/v1/predictions", files=files, timeout=60))

    def list_models(start: int) -> set[str]:
        return {each.json()["predictions"][0]["fingerprint"] for each in answers[start:] if each.status_code == 201}

    def answer_as(start: int, wanted: set[str]) -> bool:
        return list_models(start) >= wanted

    uploading = threading.Thread(target=upload)
    try:
        site.ports.reverse()  # the first instance takes the place of none
        for command in commands[:2]:
            site.run(command, "--model NOW")
        site.ports.reverse()
        subprocess.run(site.nginx, check=True)
        wait_until(lambda: listens(site.port))
        uploading.start()
        names: dict[str, str] = {}
        for options, expected in STEPS:
            for command in commands:
                site.run(command, options)
            models = [each["fingerprint"] for each in httpx.get(f"{site.url}/v1/models").json()]
            names = names or dict(zip(("NOW", "NEW"), models, strict=True))
            start, wanted = len(answers) + 1, {names[each] for each in expected}  # one may be on its way
            wait_until(partial(answer_as, start, wanted), 60)
            assert list_models(start) == wanted, options
            site.ports.reverse()
        end.set()
        uploading.join()
        assert {answer.status_code for answer in answers} == {201}, (tmp_path / "log").read_text()[-2000:]
        with Store(str(tmp_path / "predictions.sqlite")) as store:
            stored = {record.id for record in store.list_predictions(100_000)}
        assert stored == {each.json()["predictions"][0]["id"] for each in answers}
    finally:
        end.set()
        if uploading.is_alive():
            uploading.join()
        site.stop()
