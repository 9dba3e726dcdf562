"""Logins through the real nginx with `auth_request`, where a stand-in answers like oauth2-proxy; and compose.yaml."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from services import draw, run_thread
from test_proxies import DEPLOY, HOLDER, TOKEN, call, find, run_proxy

from pneumoscope.server.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from pneumoscope.training.train import Run

PEOPLE = {
    "jane": ("jane", "jane@example.org", "staff,radiology"),
    "guest": ("guest", "guest@example.org", ""),
}


@contextmanager
def stand_in() -> Iterator[str]:
    """Answers `/oauth2/auth` by the cookie `_oauth2_proxy`, with the headers of `--set-xauthrequest`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            who = self.headers.get("cookie", "").removeprefix("_oauth2_proxy=")
            start = self.path.startswith("/oauth2/start")
            self.send_response(200 if start else 202 if who in PEOPLE else 401)
            if who in PEOPLE:
                for name, value in zip(("User", "Email", "Groups"), PEOPLE[who], strict=True):
                    self.send_header(f"X-Auth-Request-{name}", value)
                self.send_header("Set-Cookie", f"_oauth2_proxy={who}; Secure; HttpOnly")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def address(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("logins")
    settings = Settings(
        model=run.model,
        database=str(folder / "predictions.sqlite"),
        decoders=0,
        token=TOKEN,
        trusted_proxies=("127.0.0.1",),
        user_header="X-Forwarded-User",
        email_header="X-Forwarded-Email",
        groups_header="X-Forwarded-Groups",
        group_roles=("radiology=review", "*=read"),
    )
    with (
        run_thread(settings) as service,
        stand_in() as login,
        run_proxy("nginx-login.conf", folder, service, {"127.0.0.1:4180": login}) as url,
    ):
        yield url


def test_whoever_has_logged_in_has_their_name_and_role(address: str) -> None:
    jane = {"cookie": "_oauth2_proxy=jane"}
    answer = call(f"{address}/v1/me", headers=jane)
    me = answer.json()
    assert (me["name"], me["email"], me["role"], me["source"]) == ("jane", "jane@example.org", "review", "proxy")
    assert answer.headers["set-cookie"].startswith("_oauth2_proxy=jane")
    files = {"files": ("a.png", draw(3))}
    upload = call(f"{address}/v1/predictions", method="POST", files=files, headers=jane)
    assert upload.status_code == 201, upload.text
    guest = {"cookie": "_oauth2_proxy=guest"}
    assert call(f"{address}/v1/me", headers=guest).json()["role"] == "read"
    assert call(f"{address}/v1/predictions", method="POST", files=files, headers=guest).status_code == 403
    assert call(f"{address}/", headers=guest).status_code == 200


def test_without_a_login_the_page_leads_to_it_and_a_program_is_refused(address: str) -> None:
    page = call(f"{address}/monitoring?days=7")
    assert (page.status_code, page.headers["location"]) == (302, "/oauth2/start?rd=/monitoring?days=7")
    assert call(f"{address}/oauth2/start").status_code == 200
    assert call(f"{address}/v1/me").status_code == 401
    assert call(f"{address}/v1/me", headers=HOLDER).status_code == 401  # a token does not pass here
    assert call(f"{address}/oauth2/auth").status_code == 404  # only nginx asks it


def test_nobody_can_claim_to_be_somebody_else(address: str) -> None:
    claims = {"x-forwarded-user": "root", "x-forwarded-email": "root@example.org", "x-forwarded-groups": "radiology"}
    claims |= {"x-auth-request-user": "root", "x-auth-request-groups": "radiology"}
    assert call(f"{address}/v1/me", headers=claims).status_code == 401
    me = call(f"{address}/v1/me", headers={**claims, "cookie": "_oauth2_proxy=guest"}).json()
    assert (me["name"], me["role"]) == ("guest", "read")


def test_compose_accepts_the_example_of_containers() -> None:
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    assert text.count("\nname: pneumoscope\n") == 1
    text = text.replace("\nname: pneumoscope\n", "\n")  # Debian's version 1.29 does not know it yet
    command = [find("docker-compose"), "--file", "-", "--project-directory", str(DEPLOY), "config", "--quiet"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
