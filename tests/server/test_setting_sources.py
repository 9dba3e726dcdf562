"""Every setting of the service by flag, variable or file: all three follow from one table."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from commands import Command
from pneumoscope.errors import UsageError
from pneumoscope.server.setting_sources import list_options, read_settings
from pneumoscope.server.settings import Limits, Settings

TOKEN = "9c1f0b7ad25e4886b3f2"


def write(folder: Path, text: str) -> Path:
    path = folder / "serve.yaml"
    path.write_text(text)
    return path


def test_flags_override_variables_and_variables_override_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "port: 1\nbatch_wait: 2\nkeep_names: false\nlimits: {requests: 7, images: 8}\n")
    environment = {"PNEUMOSCOPE_PORT": "3", "PNEUMOSCOPE_BATCH_WAIT": "4.5", "PNEUMOSCOPE_LIMITS_IMAGES": "9"}
    settings = read_settings(file, {"port": 5, "device": None}, environment)
    assert (settings.port, settings.batch_wait, settings.keep_names) == (5, 4.5, False)
    assert settings.limits == Limits(requests=7, images=9)
    assert settings.device == "auto"


def test_the_file_may_be_named_by_a_variable(tmp_path: Path) -> None:
    file = write(tmp_path, "port: 12\n")
    assert read_settings(None, {}, {"PNEUMOSCOPE_CONFIG": str(file)}).port == 12
    other = tmp_path / "other.yaml"
    other.write_text("port: 13\n")
    assert read_settings(other, {}, {"PNEUMOSCOPE_CONFIG": str(file)}).port == 13


def test_lists_are_written_as_lists_or_with_spaces_or_commas(tmp_path: Path) -> None:
    wanted = ("127.0.0.1", "10.0.0.0/8")
    for text in ("[127.0.0.1, 10.0.0.0/8]", "127.0.0.1 10.0.0.0/8", "127.0.0.1,10.0.0.0/8"):
        file = write(tmp_path, f"token: {TOKEN}\ntrusted_proxies: {text}\n")
        assert read_settings(file, {}, {}).trusted_proxies == wanted
    environment = {"PNEUMOSCOPE_TOKEN": TOKEN, "PNEUMOSCOPE_TRUSTED_PROXIES": " ".join(wanted)}
    assert read_settings(None, {}, environment).trusted_proxies == wanted
    assert read_settings(None, {"trusted_proxies": [*wanted]}, {"PNEUMOSCOPE_TOKEN": TOKEN}).trusted_proxies == wanted


@pytest.mark.parametrize("name", [each.name for each in dataclasses.fields(Settings) if each.name != "limits"])
def test_every_setting_has_a_key_a_variable_and_unless_it_is_a_secret_a_flag(name: str, tmp_path: Path) -> None:
    flags = {each.name for each in list_options()}
    assert (name in flags) == (name not in ("token", "callback_secret"))
    values = {
        "model": "runs/x", "host": "::1", "port": 9, "batch_wait": 9.0, "log_format": "json", "token": TOKEN,
        "public_url": "https://a.example", "root_path": "/a", "trusted_proxies": "127.0.0.1", "forwarded": "forwarded",
        "user_header": "X-U", "email_header": "X-E", "groups_header": "X-G", "group_roles": "*=read",
        "database": "a.db", "keep_images": "kept", "keep_names": False, "keep_uids": False, "refuse_out_of_scope": True,
        "device": "cpu", "upgrade": True, "keep_for": "30d", "decoders": 5, "callback_hosts": "https://ris.example.org",
        "callback_secret": TOKEN, "monitoring_days": 7, "mode": "blind", "cases": "cases",
        "shadow_model": "runs/y", "canary": 0.5, "renew_self_check": True, "otel_endpoint": "http://127.0.0.1:4318",
    }  # fmt: skip
    if name in ("token_file", "tokens"):
        (tmp_path / "file").write_text(TOKEN if name == "token_file" else '{"version": 1, "salt": "x"}')
        (tmp_path / "file").chmod(0o600)
        values[name] = str(tmp_path / "file")
    need = {
        "token": TOKEN,
        "shadow_model": "runs/z",
        "trusted_proxies": "127.0.0.1",
        "user_header": "X-U",
        "group_roles": "*=read",
    }
    lines = [f"{key}: {value!r}" for key, value in need.items() if key != name]
    base = write(tmp_path, "\n".join(lines).replace("False", "false"))
    from_environment = read_settings(base, {}, {f"PNEUMOSCOPE_{name.upper()}": str(values[name])})
    with base.open("a") as file:
        file.write(f"\n{name}: {str(values[name]).lower() if isinstance(values[name], bool) else repr(values[name])}\n")
    from_file = read_settings(base, {}, {})
    assert getattr(from_file, name) == getattr(from_environment, name) != getattr(Settings(), name)


@pytest.mark.parametrize(
    ("text", "environment", "words"),
    [
        ("prot: 1", {}, r"serve\.yaml: prot: unknown key. Known keys: model, host"),
        ("requests: 1", {}, r"requests: unknown key. It belongs under `limits:`"),
        ("limits: {request: 1}", {}, r"limits\.request: unknown key"),
        ("limits: {requests: 0}", {}, r"limits\.requests: must be greater than or equal to 1"),
        ("port: many", {}, "port: must be a whole number, found 'many'"),
        ("port: 99999", {}, "less than or equal to 65535"),
        ("device: tpu", {}, "device: must be 'auto', 'cpu' or 'cuda'"),
        ("", {"PNEUMOSCOPE_PROT": "1"}, "PNEUMOSCOPE_PROT: unknown variable"),
        ("", {"PNEUMOSCOPE_LIMITS_REQUEST": "1"}, "PNEUMOSCOPE_LIMITS_REQUEST: unknown variable"),
        ("", {"PNEUMOSCOPE_PORT": "x"}, "environment: port: must be a whole number"),
        ("", {"PNEUMOSCOPE_TOKEN": "a" * 20}, "could be guessed"),
        ("", {"PNEUMOSCOPE_TOKEN_FILE": "/nowhere/token"}, "token_file: /nowhere/token cannot be read"),
    ],
)
def test_what_is_unknown_or_wrong_is_refused_by_name(
    text: str, environment: dict[str, str], words: str, tmp_path: Path
) -> None:
    file = write(tmp_path, text) if text else None
    with pytest.raises(UsageError, match=words):
        read_settings(file, {}, environment)


def test_variables_of_other_programs_and_empty_ones_are_left_alone() -> None:
    environment = {
        "PNEUMOSCOPE_CACHE": "x", "PNEUMOSCOPE_NODE_QUIET": "3", "PNEUMOSCOPE_SERVICE_HOST": "10.0.0.1",
        "PNEUMOSCOPE_PORT_8000_TCP": "tcp://10.0.0.1:8000", "PNEUMOSCOPE_PORT": "tcp://10.0.0.1:8000",
        "PNEUMOSCOPE_TOKEN": "", "PNEUMOSCOPE_HOST": " ",
    }  # fmt: skip
    assert read_settings(None, {}, environment) == Settings()


def test_the_nearest_of_several_tokens_counts(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    flags: dict[str, Any] = {"token_file": tmp_path / "token"}
    assert read_settings(None, flags, {"PNEUMOSCOPE_TOKEN": "1" + TOKEN}).token == TOKEN
    file = write(tmp_path, f"token_file: {tmp_path / 'token'}\n")
    assert read_settings(file, {}, {}).token == TOKEN
    assert read_settings(file, {}, {"PNEUMOSCOPE_TOKEN": "1" + TOKEN}).token == "1" + TOKEN


def test_secrets_are_not_given_on_the_command_line(command: Command, tmp_path: Path) -> None:
    assert "--token " not in command("serve", "--help").out
    database = "postgresql://reader:sesame@127.0.0.1/x"
    with pytest.raises(UsageError, match="PNEUMOSCOPE_DATABASE_PASSWORD_FILE"):
        read_settings(None, {"database": database}, {})
    assert read_settings(None, {}, {"PNEUMOSCOPE_DATABASE": database}).database == database
    assert "sesame" not in repr(read_settings(write(tmp_path, f"database: {database}\n"), {}, {}))


@pytest.mark.parametrize("address", ["localhost:4318", "http://[", "ftp://a.example", "http://a b", "http://"])
def test_traces_go_to_an_address_of_http_alone(address: str) -> None:
    with pytest.raises(UsageError, match="is not an HTTP address"):
        dataclasses.replace(Settings(), otel_endpoint=address).check()
    dataclasses.replace(Settings(), otel_endpoint="http://[::1]:4318/v1/traces").check()
