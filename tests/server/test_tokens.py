"""Tokens of several persons and programs: made, listed, rotated and revoked while the service runs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from services import draw, run_process, run_thread, wait_until

from commands import Command
from pneumoscope.errors import DataError, UsageError
from pneumoscope.server.access import tokens as module
from pneumoscope.server.access.callers import Caller, find_role, needs
from pneumoscope.server.access.tokens import TokenFile
from pneumoscope.server.periods import read_period
from pneumoscope.server.settings import Settings

if TYPE_CHECKING:
    from pneumoscope.training.train import Run

SHARED = "9c1f0b7ad25e4886b3f2"


@dataclass
class Team:
    """A service, its file of tokens, and one token of each role."""

    url: str
    file: TokenFile
    tokens: dict[str, str]

    def ask(self, token: str, path: str = "/v1/me", method: str = "GET", **options: Any) -> httpx.Response:
        return httpx.request(method, f"{self.url}{path}", headers={"authorization": f"Bearer {token}"}, **options)


@pytest.fixture
def team(settings: Settings, tmp_path: Path) -> Iterator[Team]:
    file = TokenFile(tmp_path / "tokens")
    tokens = {role: file.add_token(f"a {role}er", role) for role in ("read", "review", "admin")}
    with run_thread(replace(settings, token=SHARED, tokens=file.path)) as url:
        yield Team(url, file, tokens)


def test_each_token_has_its_name_and_role_and_the_shared_one_may_do_everything(team: Team) -> None:
    for role, token in team.tokens.items():
        me = team.ask(token).json()
        assert (me["name"], me["role"], me["source"], me["named"]) == (f"a {role}er", role, "token", True)
    me = team.ask(SHARED).json()
    assert (me["role"], me["source"], me["named"]) == ("admin", "shared_token", False)
    assert me["may"] == ["read", "review", "admin"]
    assert team.ask("0" * 64).status_code == 401


def test_a_role_bounds_what_one_may_do(team: Team) -> None:
    statuses = {
        role: team.ask(token, "/v1/predictions", "POST", files={"files": draw(1)}).status_code
        for role, token in team.tokens.items()
    }
    assert statuses["read"] == 403
    assert {statuses["review"], statuses["admin"]} <= {200, 201}
    for path in ("/v1/predictions", "/v1/monitoring", "/v1/models", "/metrics"):
        assert {team.ask(token, path).status_code for token in team.tokens.values()} == {200}
    review = team.ask(team.tokens["read"], "/v1/predictions/x/reviews", "POST", json={"agrees": True})
    assert review.status_code == 403
    assert "needs the role review" in review.json()["detail"]


def test_roles_include_each_other_and_deleting_needs_an_admin() -> None:
    def route() -> None: ...

    assert [find_role(route, method) for method in ("GET", "POST", "DELETE", "PUT", "PATCH", "ODD")] == [
        "read", "review", "admin", "admin", "admin", "admin",
    ]  # fmt: skip
    assert find_role(needs("admin")(route), "GET") == "admin"
    reviewer = Caller("a", "review", "token")
    assert (reviewer.may("read"), reviewer.may("review"), reviewer.may("admin")) == (True, True, False)


def test_a_token_is_revoked_rotated_and_expires_without_a_restart(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    old = team.tokens["review"]
    new = team.file.rotate_token("a reviewer", 3600.0)
    assert team.ask(old).status_code == team.ask(new).status_code == 200
    assert team.ask(new).json()["role"] == "review"
    now = module.now()
    monkeypatch.setattr(module, "now", lambda: now + 3700)
    assert team.ask(old).status_code == 401
    assert team.ask(new).status_code == 200
    assert team.file.revoke_tokens("a reviewer") == 1
    assert team.ask(new).status_code == 401
    brief = team.file.add_token("a reviewer", "read", 60.0)
    assert team.ask(brief).json()["role"] == "read"
    monkeypatch.setattr(module, "now", lambda: now + 3800)
    assert team.ask(brief).status_code == 401


def test_a_rotated_token_is_valid_for_as_long_as_the_old_one_was_meant_to_be(tmp_path: Path) -> None:
    file = TokenFile(tmp_path / "tokens")
    file.add_token("a", "read", 90 * 86_400.0)
    file.add_token("b", "read")
    for name in ("a", "b"):
        file.rotate_token(name, 3600.0)
    lives = [each.expires and round(each.expires - each.created) for each in file.list_tokens()]
    assert lives == [3600, 90 * 86_400, 3600, None]


def test_the_file_holds_no_token_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        file = TokenFile(tmp_path / "tokens")
        made = [file.add_token(name, "admin") for name in ("a", "b")]
        made.append(file.rotate_token("a", 60.0))
    finally:
        os.umask(previous)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    text = file.path.read_text()
    assert not any(token in text for token in made)
    salt = json.loads(text)["salt"]
    assert hashlib.sha256(f"{salt}:{made[0]}".encode()).hexdigest() in text
    assert hashlib.sha256(made[0].encode()).hexdigest() not in text
    assert len(set(made)) == 3
    assert all(re.fullmatch("[0-9a-f]{64}", token) for token in made)


def test_many_changes_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    threads = [threading.Thread(target=TokenFile(path).add_token, args=(f"p{i}", "read")) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(TokenFile(path).list_tokens()) == 20


@pytest.mark.parametrize(
    "break_file",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text("{"),
        lambda path: path.write_text('{"version": 2, "salt": "", "tokens": []}'),
        lambda path: path.write_text('{"version": 1, "salt": "x", "tokens": [{"name": "a"}]}'),
        lambda path: path.write_text("[" * 50_000),
        lambda path: path.chmod(0o622),
    ],
)
def test_a_file_that_cannot_be_used_lets_nobody_in_until_it_is_mended(
    team: Team, break_file: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    content = team.file.path.read_bytes()
    break_file(team.file.path)
    for _ in range(2):
        assert team.ask(team.tokens["admin"]).status_code == 503
    assert team.ask(SHARED).status_code == 200
    assert str(team.file.path) in caplog.text
    team.file.path.write_bytes(content)
    team.file.path.chmod(0o600)
    assert team.ask(team.tokens["admin"]).status_code == 200


def test_a_service_does_not_start_with_a_file_that_cannot_be_used(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such file.*pneumoscope tokens add NAME"):
        replace(settings, tokens=tmp_path / "none").check()
    (tmp_path / "open").write_text('{"version": 1, "salt": "x"}')
    (tmp_path / "open").chmod(0o666)
    with pytest.raises(UsageError, match="chmod 600"):
        replace(settings, tokens=tmp_path / "open").check()


def test_names_and_durations_are_checked(tmp_path: Path) -> None:
    file = TokenFile(tmp_path / "tokens")
    for name in ("", "-a", "a\nb", "a" * 101, "a\u202eb", "a/b"):
        with pytest.raises(UsageError, match="a name begins with"):
            file.add_token(name, "read")
    file.add_token("Zoë O.", "read")
    with pytest.raises(UsageError, match=r"already has a token. Rotate or revoke"):
        file.add_token("Zoë O.", "read")
    with pytest.raises(UsageError, match="Those with one: Zoë O"):
        file.revoke_tokens("nobody")
    for text in ("", "d", "0d", "5", "5y", "-5d", "5 d", "٥d"):
        with pytest.raises(UsageError, match="give a number of hours, days or weeks"):
            read_period(text, "expires")
    with pytest.raises(DataError, match="no such file"):
        TokenFile(tmp_path / "none").list_tokens()


def test_the_command_makes_tokens_that_a_service_takes(run: Run, tmp_path: Path, command: Command) -> None:
    path = tmp_path / "tokens"
    token = command("tokens", "add", "jane", "--role", "review", "--expires", "90d", "--tokens", path).out.strip()
    with run_process(run.model, str(tmp_path / "p.sqlite"), PNEUMOSCOPE_TOKENS=str(path)) as service:
        team = Team(service.url, TokenFile(path), {})
        assert team.ask(token).json()["name"] == "jane"
        new = command("tokens", "rotate", "jane", "--tokens", path, "--keep-old", "1h").out.strip()
        assert team.ask(new).status_code == team.ask(token).status_code == 200
        listed = command("tokens", "list", "--tokens", path).out
        assert listed.splitlines()[0].split() == ["name", "role", "state", "created", "expires"]
        assert listed.count("jane  review  valid") == 2
        command("tokens", "revoke", "jane", "--tokens", path)
        assert team.ask(new).status_code == team.ask(token).status_code == 401


def test_a_token_made_for_one_run_is_shown_once(run: Run, tmp_path: Path) -> None:
    with run_process(run.model, str(tmp_path / "p.sqlite"), "--make-token") as service:
        wait_until(lambda: any(line.startswith("Token: ") for line in service.lines))
        (line,) = [line for line in service.lines if line.startswith("Token: ")]
        assert httpx.get(f"{service.url}/v1/me").status_code == 401
        token = {"authorization": f"Bearer {line.split()[1]}"}
        assert httpx.get(f"{service.url}/v1/me", headers=token).json()["role"] == "admin"
