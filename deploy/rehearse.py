"""Runs the steps of the Dockerfile without a container engine: in a clean Debian, as root.

    python3 deploy/rehearse.py FOLDER [--keep] [--bind FOLDER]

It needs `debootstrap` and `unshare` from Debian. Debian 12 with its Python 3.11 stands in for the base image. At the
end the container's command runs as the container's user with a read-only root, until its health check passes. Then
the node runs in the same way. `--bind` shows a folder of this machine in the clean root, such as one of wheels.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).parents[1]
PACKAGES = "python3,python3-venv,ca-certificates,passwd"
FROM_OUTSIDE = ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf")


def read_steps(dockerfile: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile with their arguments."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


class Stage:
    """The root of a stage of the build, and what its instructions have set."""

    def __init__(self, root: Path, base: Path, binds: list[str]) -> None:
        self.root, self.binds = root, binds
        self.folder, self.user, self.environment = "/", "0", {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
        subprocess.run(["cp", "-a", base, root], check=True)
        for name in FROM_OUTSIDE:
            if Path(name).exists():
                (root / name.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(name, root / name.lstrip("/"))
        for name in binds:
            (root / name.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def run(self, command: list[str], *, read_only: bool = False, background: bool = False) -> subprocess.Popen[bytes]:
        """Run a command in the stage, in mounts of its own."""
        root = shlex.quote(str(self.root))
        mounts = [f"mount --bind {root} {root}"]
        mounts += [f"mount --bind {name} {root}{name}" for name in self.binds]
        mounts += [f"mount -t proc proc {root}/proc", f"mount --bind /dev {root}/dev"]
        if read_only:
            mounts.append(f"mount -o remount,bind,ro {root}")
            mounts.append(f"mount -t tmpfs tmpfs {root}/tmp")
            mounts.append(f"mount -t tmpfs -o mode=0755,uid={self.user} tmpfs {root}/var/lib/pneumoscope")
            mounts.append(f"mount -t tmpfs tmpfs {root}/run")
            mounts.append(f"mkdir -p {root}/run/secrets && printf %064d 7 > {root}/run/secrets/token")
        variables = {"HOME": "/root" if self.user == "0" else "/var/lib/pneumoscope"} | self.environment
        if not read_only:
            variables |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        inner = ["env", "-i", *(f"{name}={value}" for name, value in variables.items())]
        inner += ["sh", "-c", f"cd {self.folder} && exec {shlex.join(command)}"]
        entry = ["chroot", f"--userspec={self.user}:{self.user}", str(self.root), *inner]
        script = " && ".join([*mounts, f"exec {shlex.join(entry)}"])
        process = subprocess.Popen(["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script])
        if not background and process.wait():
            sys.exit(f"failed: {shlex.join(command)}")
        return process


def build(dockerfile: Path, folder: Path, binds: list[str]) -> tuple[Stage, dict[str, list[str]]]:
    """Run all instructions; return the last stage and its commands (ENTRYPOINT, CMD, HEALTHCHECK)."""
    base, stages, ends = folder / "base", dict[str, Stage](), dict[str, list[str]]()
    if not base.exists():
        subprocess.run(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", base], check=True)
    stage = None
    for name, arguments in read_steps(dockerfile):
        print(f"== {name} {arguments[:100]}", flush=True)
        if name == "FROM":
            stage = Stage(folder / f"stage-{len(stages)}", base, binds)
            stages[arguments.rpartition(" AS ")[2]] = stage
            continue
        assert stage is not None
        if name == "COPY":
            copy(stage, arguments.split(), stages)
        elif name == "RUN":
            stage.run(["sh", "-c", arguments])
        elif name == "ENV":
            stage.environment |= dict(each.split("=", 1) for each in shlex.split(arguments))
        elif name == "USER":
            stage.user = arguments
        elif name == "WORKDIR":
            stage.folder = arguments
            (stage.root / arguments.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif name in ("ENTRYPOINT", "CMD"):
            ends[name] = json.loads(arguments)
        elif name == "HEALTHCHECK":
            ends[name] = json.loads(arguments.partition("CMD ")[2])
        elif name not in ("EXPOSE", "VOLUME"):
            sys.exit(f"{name}: not known to this script")
    assert stage is not None
    return stage, ends


def copy(stage: Stage, words: list[str], stages: dict[str, Stage]) -> None:
    """COPY, from the project or another stage."""
    source = PROJECT
    if words[0].startswith("--from="):
        source = stages[words.pop(0).removeprefix("--from=")].root
    *names, last = words
    target = Path(stage.root, (last if last.startswith("/") else f"{stage.folder}/{last}").lstrip("/"))
    for name in names:
        place = source / name.lstrip("/")
        if place.is_dir():
            shutil.copytree(place, target, symlinks=True, dirs_exist_ok=True)
        else:
            target.mkdir(parents=True, exist_ok=True) if last.endswith("/") else None
            shutil.copy(place, target)


def check(stage: Stage, ends: dict[str, list[str]], command: list[str], health: str) -> None:
    """Run the image's entry point read-only until its health check passes."""
    stage.environment["PNEUMOSCOPE_HEALTH"] = health
    process = stage.run([*ends["ENTRYPOINT"], *command], read_only=True, background=True)
    try:
        for _ in range(60):
            time.sleep(1)
            if process.poll() is not None:
                sys.exit(f"ended early: {shlex.join(command)}")
            probe = stage.run(ends["HEALTHCHECK"], read_only=True, background=True)
            if probe.wait() == 0:
                print(f"== healthy: {shlex.join(command)}", flush=True)
                return
        sys.exit(f"not healthy within a minute: {shlex.join(command)}")
    finally:
        process.kill()  # and all in its namespace
        process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the clean root; some 2 GB")
    parser.add_argument("--bind", action="append", default=[], help="folder of this machine to show in it")
    parser.add_argument("--keep", action="store_true", help="do not remove the stages at the end")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for old in arguments.folder.glob("stage-*"):
        shutil.rmtree(old)
    stage, ends = build(PROJECT / "deploy" / "Dockerfile", arguments.folder.resolve(), arguments.bind)
    size = sum(path.lstat().st_size for path in (stage.root / "opt").rglob("*"))
    print(f"== {size / 1e6:.0f} MB below /opt", flush=True)
    torch = list((stage.root / "opt").glob("pneumoscope/lib/python3*/site-packages/torch"))
    assert not torch, torch
    check(stage, ends, ends["CMD"], "http://127.0.0.1:8000/healthz")
    node = ["dicom", "node", "--host", "127.0.0.1", "--dry-run"]
    check(stage, ends, node, "http://127.0.0.1:11180/healthz")
    if not arguments.keep:
        shutil.rmtree(stage.root)


if __name__ == "__main__":
    main()
