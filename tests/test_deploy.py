"""The files of `deploy/` are what the programs that read them take."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from pneumoscope.dicomnet.node_settings import read_settings
from pneumoscope.dicomnet.rules import apply_rules
from pneumoscope.images.dicom import Tags
from pneumoscope.server.setting_sources import read_settings as read_service_settings
from pneumoscope.server.storage.databases import PASSWORD_FILE
from rehearse import read_steps

DEPLOY = Path(__file__).parents[1] / "deploy"


def need(program: str) -> str:
    found = shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def test_the_example_of_the_nodes_settings_is_valid() -> None:
    settings = read_settings(DEPLOY / "node.yaml", {})
    assert [each.name for each in settings.destinations] == ["archive"]
    for tags in (Tags(modality="CR", body_part="CHEST"), Tags(modality="CR"), Tags(modality="DX")):
        assert apply_rules(settings.rules, tags, "ARCHIVE").reason is None
    assert apply_rules(settings.rules, Tags(modality="CR", body_part="KNEE"), "ARCHIVE").reason is not None


def test_the_image_is_built_without_pytorch_and_does_not_run_as_root() -> None:
    steps = read_steps(DEPLOY / "Dockerfile")
    assert steps[-2][0] == "ENTRYPOINT"
    assert json.loads(steps[-2][1]) == ["pneumoscope"]
    assert ("USER", "10001") in steps
    assert any(name == "HEALTHCHECK" for name, _ in steps)
    (install,) = [arguments for name, arguments in steps if name == "RUN" and "pip install" in arguments]
    assert re.findall(r"\.\[(.*)\]", install) == ["dicom,serve"]
    ignored = (DEPLOY.parent / ".dockerignore").read_text().splitlines()
    copied = [word for name, words in steps if name == "COPY" and "--from" not in words for word in words.split()[:-1]]
    assert all(f"!{each}" in ignored and (DEPLOY.parent / each).exists() for each in copied)


def test_compose_names_files_and_secrets_that_exist_or_are_made(tmp_path: Path) -> None:
    need("openssl")
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    copy = shutil.copytree(DEPLOY, tmp_path / "deploy")
    for _ in range(2):  # again changes nothing
        subprocess.run([copy / "make_secrets.sh"], check=True, capture_output=True)
        content = {path.name: path.read_bytes() for path in (copy / "secrets").iterdir()}
    assert len(content["token"].strip()) == 64
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            if volume.startswith("./"):
                assert (copy / volume.split(":")[0]).exists(), volume
        assert set(service.get("secrets", [])) <= set(compose["secrets"])
    assert all((copy / each["file"]).exists() for each in compose["secrets"].values())
    for name in ("service", "node"):
        service = compose["services"][name]
        password = service["environment"][PASSWORD_FILE]
        assert password.removeprefix("/run/secrets/") in service["secrets"]
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]


def test_the_services_settings_in_the_guide_are_valid(tmp_path: Path) -> None:
    guide = (DEPLOY.parent / "docs" / "guide" / "deployment.md").read_text(encoding="utf-8")
    examples = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    assert len(examples) == 2
    (tmp_path / "token").write_text("9c1f0b7ad25e4886b3f2")
    for text in examples:
        (tmp_path / "serve.yaml").write_text(text.replace("/etc/pneumoscope/token", str(tmp_path / "token")))
        settings = read_service_settings(tmp_path / "serve.yaml", {}, {})
        assert settings.trusted_proxies == ("127.0.0.1",)
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    variables = compose["services"]["service"]["environment"]
    (subnet,) = compose["networks"]["default"]["ipam"]["config"]
    environment = {**variables, "PNEUMOSCOPE_TOKEN": "9c1f0b7ad25e4886b3f2"}
    assert read_service_settings(None, {}, environment).trusted_proxies == (subnet["subnet"],)


@pytest.mark.parametrize("unit", ["node", "serve"])
def test_systemd_takes_the_units(unit: str, tmp_path: Path) -> None:
    analyze = need("systemd-analyze")
    text = (DEPLOY / f"pneumoscope-{unit}.service").read_text()
    path = tmp_path / f"pneumoscope-{unit}.service"
    path.write_text(re.sub("^ExecStart=[^ ]+", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    done = subprocess.run([analyze, "verify", str(path)], capture_output=True, text=True, check=False)
    assert not done.stderr, done.stderr
