"""Behind a proxy: the examples of `deploy/` in front of a real service, and headers that only a proxy may set."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from services import draw, run_thread, wait_until

from pneumoscope.errors import UsageError
from pneumoscope.server.settings import Settings

if TYPE_CHECKING:
    from pneumoscope.training.train import Run

DEPLOY = Path(__file__).parents[2] / "deploy"
TOKEN = "9c1f0b7ad25e4886b3f2"
HOLDER = {"authorization": f"Bearer {TOKEN}"}
PROXIED = {
    "x-forwarded-for": "203.0.113.9",
    "x-forwarded-proto": "https",
    "x-forwarded-host": "xray.example.org",
}
EXAMPLES = ["nginx.conf", "nginx-path.conf", "Caddyfile", "Caddyfile-path"]


@dataclass
class Proxied:
    """A service and the proxy in front of it, both without a slash at the end of their addresses."""

    url: str
    behind: str
    root: str


def take_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def find(program: str) -> str:
    found = shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if found is None:
        pytest.skip(f"no {program} on this machine")
    return found


def prepare_nginx(example: str, folder: Path, port: int, service: str) -> list[str]:
    text = (DEPLOY / example).read_text()
    places = "".join(
        f"{name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    for old, new in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("http {", f"http {{ access_log off;\n{places}"),
        ("/etc/nginx/", f"{folder}/secrets/"),
    ):
        assert old in text
        text = text.replace(old, new)
    text = re.sub(r"proxy_pass http://[a-z0-9.]+:8000;", f"proxy_pass {service};", text)
    (folder / "nginx.conf").write_text(f"daemon off; pid {folder}/pid; error_log {folder}/errors;\n{text}")
    return [find("nginx"), "-c", str(folder / "nginx.conf"), "-p", str(folder)]


def prepare_caddy(example: str, folder: Path, port: int, service: str) -> list[str]:
    text = (DEPLOY / example).read_text()
    for old, new in (
        ("xray.example.org {", f"https://127.0.0.1:{port} {{"),
        ("/etc/caddy/", f"{folder}/secrets/"),
        ("127.0.0.1:8000", service.removeprefix("http://")),
    ):
        assert old in text
        text = text.replace(old, new)
    (folder / "Caddyfile").write_text(f"{{\n admin off\n auto_https disable_redirects\n}}\n{text}")
    return [find("caddy"), "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


@contextmanager
def run_proxy(example: str, folder: Path, service: str, others: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run the proxy of an example in front of a service; `others`: what else is put in place of addresses in it."""
    port = take_port()
    shutil.copy(DEPLOY / "make_secrets.sh", folder)
    prepare = prepare_nginx if example.startswith("nginx") else prepare_caddy
    command = prepare(example, folder, port, service)
    configuration = folder / ("nginx.conf" if example.startswith("nginx") else "Caddyfile")
    for old, new in (others or {}).items():
        assert old in configuration.read_text()
        configuration.write_text(configuration.read_text().replace(old, new))
    find("openssl")
    subprocess.run([folder / "make_secrets.sh"], check=True, capture_output=True)
    own = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(command, env=own, stdout=output, stderr=output)
        try:
            wait_until(lambda: process.poll() is not None or opens(port))
            assert process.poll() is None, (folder / "output").read_text()
            yield f"https://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def opens(port: int) -> bool:
    """Whether it answers over TLS: a proxy may open its port before it has read its certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection(("127.0.0.1", port), 10) as plain, context.wrap_socket(plain):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module", params=EXAMPLES)
def proxied(request: pytest.FixtureRequest, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    """A service behind each of the examples."""
    folder, example = tmp_path_factory.mktemp("proxied"), request.param
    root = "/pneumoscope" if "-path" in example else ""
    settings = Settings(
        model=run.model,
        database=str(folder / "predictions.sqlite"),
        token=TOKEN,
        trusted_proxies=("127.0.0.1",),
        root_path=root or None,
    )
    with run_thread(settings) as behind, run_proxy(example, folder, behind) as url:
        yield Proxied(url + root, behind, root)


def call(url: str, source: str = "127.0.0.1", **options: Any) -> httpx.Response:
    """Call from another address of this machine."""
    with httpx.Client(transport=httpx.HTTPTransport(local_address=source, verify=False)) as client:
        options.setdefault("method", "GET")
        return client.request(url=url, **options)


def test_all_pages_and_the_api_work_behind_the_examples(proxied: Proxied) -> None:
    for path in ("/", "/monitoring", "/node", "/docs", "/healthz", "/readyz", "/openapi.json"):
        assert call(f"{proxied.url}{path}").status_code == 200, path
    assert call(f"{proxied.url}/v1/models").status_code == 401
    for path in ("/v1/models", "/v1/predictions", "/v1/monitoring", "/metrics"):
        assert call(f"{proxied.url}{path}", headers=HOLDER).status_code == 200, path
    own = {"origin": re.sub(r"(//[^/]*).*", r"\1", proxied.url), "sec-fetch-site": "same-origin", **HOLDER}
    answer = call(f"{proxied.url}/v1/predictions", method="POST", files={"files": draw(3)}, headers=own)
    assert answer.status_code in (200, 201), answer.text
    other = call(f"{proxied.url}/v1/predictions", method="POST", headers={**own, "origin": "https://evil.example"})
    assert other.status_code == 403


def test_addresses_in_answers_are_those_of_the_proxy(proxied: Proxied) -> None:
    document = call(f"{proxied.url}/openapi.json").json()
    assert [each["url"] for each in document.get("servers", [{"url": ""}])] == [proxied.root]
    for path in ("/docs/", "/monitoring/", "/node/"):
        answer = call(f"{proxied.url}{path}")
        assert answer.status_code == 308
        assert answer.headers["location"] == f"{proxied.root}{path.rstrip('/')}"
    if proxied.root:
        answer = call(proxied.url)
        assert answer.status_code in (301, 302, 308)
        assert answer.headers["location"].endswith("/pneumoscope/")


def test_what_a_client_claims_does_not_pass_a_proxy(proxied: Proxied) -> None:
    claims = {
        **HOLDER, "x-forwarded-for": "203.0.113.9", "x-forwarded-proto": "http", "x-forwarded-host": "evil.example",
        "forwarded": "for=203.0.113.9;host=evil.example;proto=http", "x-forwarded-user": "root", "x-real-ip": "1.2.3.4",
    }  # fmt: skip
    assert call(f"{proxied.url}/v1/me", "127.0.0.3", headers=claims).json()["address"] == "127.0.0.3"
    location = call(f"{proxied.url}/docs/", headers=claims).headers["location"]
    assert location == f"{proxied.root}/docs"


def test_guesses_count_by_the_address_behind_the_proxy(proxied: Proxied) -> None:
    def guess(source: str) -> int:
        wrong = {
            "authorization": f"Bearer {secrets.token_hex(16)}",
            "x-forwarded-for": f"10.0.0.{secrets.randbelow(9)}",
        }
        return call(f"{proxied.url}/v1/models", source, headers=wrong).status_code

    statuses = [guess("127.0.0.5") for _ in range(20)]
    assert statuses[:10] == [401] * 10
    assert 429 in statuses
    assert call(f"{proxied.url}/v1/models", "127.0.0.6", headers=HOLDER).status_code == 200


def test_the_page_works_behind_the_examples(proxied: Proxied, open_page: Any) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    page = open_page(f"{proxied.url}/", quiet=False, ignore_https_errors=True)  # the first answer is 401
    page.locator("#token").fill(TOKEN)
    page.get_by_role("button", name="Continue").click()
    playwright.expect(page.locator("#model")).to_contain_text("Model")
    files = [{"name": f"{seed}.png", "mimeType": "image/png", "buffer": draw(seed)} for seed in range(3)]
    page.set_input_files("#files", files)
    playwright.expect(page.locator("#worklist tbody button")).to_have_count(3, timeout=60_000)
    page.locator("#worklist tbody button").first.click()
    page.get_by_label("I agree").check()
    page.get_by_role("button", name="Save review").click()
    playwright.expect(page.locator("#saved")).to_contain_text("Saved")
    for name, title in (("Monitoring", "Monitoring"), ("DICOM node", "DICOM node"), ("API", "API")):
        page.once("dialog", lambda dialog: dialog.accept())
        page.get_by_role("link", name=name, exact=True).click()
        playwright.expect(page.get_by_role("heading", level=1)).to_contain_text(title)
        assert page.url.startswith(f"{proxied.url}/")
        if name != "API":  # which describes this problem
            playwright.expect(page.locator("body")).not_to_contain_text("There is nothing at this address")
        playwright.expect(page.locator("#ask")).to_have_count(0)
    playwright.expect(page.locator("body")).to_contain_text(f"curl -F files=@scan.png {proxied.url}/v1/predictions")


Ask = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def ask(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Calls a service that trusts 127.0.0.1 alone."""
    database = str(tmp_path_factory.mktemp("trusting") / "predictions.sqlite")
    settings = Settings(
        model=run.model,
        database=database,
        token=TOKEN,
        trusted_proxies=("127.0.0.1", "192.0.2.0/24"),
        public_url="https://xray.example.org/pneumoscope/",
        user_header="X-Forwarded-User",
        email_header="X-Forwarded-Email",
        groups_header="X-Forwarded-Groups",
        group_roles=("radiology=review", "chiefs=admin", "everyone=read"),
    )
    with run_thread(settings) as url:

        def ask(path: str, source: str = "127.0.0.1", **options: Any) -> httpx.Response:
            return call(f"{url}{path}", source, **options)

        yield ask


USER = {"x-forwarded-user": "jane", "x-forwarded-email": "jane@example.org", "x-forwarded-groups": "a, radiology"}


def test_a_proxys_login_says_who_one_is_and_what_one_may_do(ask: Ask) -> None:
    me = ask("/v1/me", headers={**PROXIED, **USER}).json()
    assert (me["name"], me["email"], me["role"], me["source"]) == ("jane", "jane@example.org", "review", "proxy")
    assert me["address"] == "203.0.113.9"
    assert (me["named"], me["may"]) == (True, ["read", "review"])
    both = {**USER, "x-forwarded-groups": "everyone,chiefs,radiology"}
    assert ask("/v1/me", headers={**PROXIED, **both}).json()["role"] == "admin"
    reader = {**PROXIED, **USER, "x-forwarded-groups": "everyone"}
    assert ask("/v1/predictions", headers=reader).status_code == 200
    refused = ask("/v1/predictions", method="POST", files={"files": draw(1)}, headers=reader)
    assert refused.status_code == 403
    assert "needs the role review" in refused.json()["detail"]
    for groups in ("", "nobody", "radiologyy", "Radiology"):
        assert ask("/v1/me", headers={**PROXIED, **USER, "x-forwarded-groups": groups}).status_code == 403
    assert ask("/v1/me", headers=PROXIED).status_code == 401


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("/v1/nothing", {}),  # a route that does not exist
        ("/v1/predictions?limit=0", {}),
        ("/v1/predictions/0", {}),
        ("/v1/predictions", {"method": "POST", "content": b"x", "headers": {"content-encoding": "gzip"}}),
    ],
)
def test_the_kind_of_a_problem_is_an_address_behind_the_proxy(ask: Ask, path: str, options: dict[str, Any]) -> None:
    headers = {**PROXIED, **HOLDER, **options.pop("headers", {})}
    problem = ask(f"/pneumoscope{path}", headers=headers, **options).json()
    assert problem["type"] == f"/pneumoscope/docs#{problem['code']}"


@pytest.mark.parametrize("source", ["127.0.0.2", "127.0.0.9"])
def test_from_an_untrusted_address_no_such_header_is_believed(ask: Ask, source: str) -> None:
    host = {"host": "xray.example.org"}
    assert ask("/v1/me", source, headers={**host, **PROXIED, **USER}).status_code == 401
    me = ask("/v1/me", source, headers={**host, **HOLDER, **PROXIED, **USER}).json()
    assert (me["address"], me["source"], me["email"]) == (source, "shared_token", "")
    claimed = {"host": "evil.example", **HOLDER, **PROXIED}
    assert ask("/v1/me", source, headers=claimed).status_code == 403  # the forwarded host is not looked at


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("10.9.9.9, 203.0.113.9", "203.0.113.9"),
        ("127.0.0.1, 203.0.113.9, 192.0.2.7", "203.0.113.9"),
        ("203.0.113.9:4711", "203.0.113.9"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("203.0.113.9, unknown", "127.0.0.1"),
        ("203.0.113.9, <script>", "127.0.0.1"),
        ("203.0.113.9,", "127.0.0.1"),
        ("203.0.113.9, 999.1.1.1", "127.0.0.1"),
        ("192.0.2.1, 192.0.2.2", "192.0.2.1"),
        ("", "127.0.0.1"),
        ("1.2.3.4," * 500 + "203.0.113.9", "203.0.113.9"),
    ],
)
def test_the_client_is_the_nearest_address_that_is_no_trusted_proxy(ask: Ask, forwarded: str, address: str) -> None:
    headers = {**PROXIED, **HOLDER, "x-forwarded-for": forwarded}
    assert ask("/v1/me", headers=headers).json()["address"] == address


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"x-forwarded-host": "evil.example"}, 403),
        ({"x-forwarded-host": "xray.example.org, evil.example"}, 403),
        ({"x-forwarded-host": "[::1].evil.com"}, 403),
        ({"x-forwarded-host": "xray.example.org@evil.example"}, 403),
        ({"x-forwarded-host": "é"}, 403),
        ({"x-forwarded-proto": "javascript"}, 400),
        ({"x-forwarded-proto": "https, wss"}, 400),
        ({"x-forwarded-proto": "http, https"}, 200),
        ({"origin": "https://xray.example.org"}, 200),
        ({"origin": "http://xray.example.org"}, 403),
        ({"origin": "https://xray.example.org:8443"}, 403),
        ({"origin": "https://xray.example.org.evil.example"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"forwarded": "for=1.1.1.1;host=evil.example"}, 200),  # not what this proxy sets
        ({"x_forwarded_user": "root"}, 200),
    ],
)
def test_hosts_and_origins_behind_a_proxy(ask: Ask, changed: dict[str, str], status: int) -> None:
    headers = {**PROXIED, **HOLDER, **changed}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    answer = ask("/pneumoscope/v1/me", headers=raw)
    assert answer.status_code == status, answer.text
    if status == 200:
        assert answer.json()["source"] == "shared_token"
        assert answer.json()["address"] == "203.0.113.9"


@pytest.mark.parametrize("name", list(USER))
def test_a_name_that_comes_twice_is_refused(ask: Ask, name: str) -> None:
    twice = [*PROXIED.items(), *USER.items(), (name, "chiefs")]
    answer = ask("/v1/me", headers=twice)
    assert answer.status_code == 400
    assert "occurs twice" in answer.json()["detail"]


def test_names_are_utf_8_and_lose_what_is_not_printable(ask: Ask) -> None:
    raw = [(name.encode(), value.encode()) for name, value in {**PROXIED, **USER}.items() if "user" not in name]
    assert ask("/v1/me", headers=[*raw, (b"x-forwarded-user", "Zoë\x7f\u202e".encode())]).json()["name"] == "Zoë"
    assert len(ask("/v1/me", headers=[*raw, (b"x-forwarded-user", b"x" * 5000)]).json()["name"]) == 200


@pytest.mark.parametrize("path", ["/v1/me", "/pneumoscope/v1/me"])
def test_a_proxy_may_keep_the_path_or_take_it_away(ask: Ask, path: str) -> None:
    assert ask(path, headers={**PROXIED, **HOLDER}).status_code == 200
    assert ask(path, headers=PROXIED).status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        "/pneumoscope/pneumoscope/v1/me", "/pneumoscopev1/me", "//v1/me", "/pneumoscope//v1/me", "/v1/../v1/me",
        "/pneumoscope/%2e%2e/v1/me", "/v1%2fme/", "/V1/me", "/;/v1/me",
    ],
)  # fmt: skip
def test_no_other_spelling_of_a_path_is_answered_without_a_token(ask: Ask, path: str) -> None:
    assert ask(path, headers=PROXIED).status_code in (401, 404)


def test_the_standard_header_is_read_where_it_is_chosen(settings: Settings) -> None:
    standard = replace(
        settings, token=TOKEN, trusted_proxies=("127.0.0.1",), forwarded="forwarded", public_url="https://a.example"
    )
    with run_thread(standard) as url:
        for text, status, address in (
            ('for=203.0.113.9;proto=https;host="a.example"', 200, "203.0.113.9"),
            ('for="[2001:db8::1]:80";host=a.example, for=127.0.0.1;host=a.example', 200, "2001:db8::1"),
            ("For=_hidden;Host=a.example", 200, "127.0.0.1"),
            ("for=203.0.113.9;host=evil.example", 403, ""),
            ("for=203.0.113.9;;=;host=", 400, ""),
            ('for="203.0.113.9', 400, ""),
            ("for=1.1.1.1 host=a.example", 400, ""),
        ):
            headers = {**HOLDER, "forwarded": text, "x-forwarded-for": "6.6.6.6", "x-forwarded-host": "evil.example"}
            answer = call(f"{url}/v1/me", headers=headers)
            assert answer.status_code == status, (text, answer.text)
            if status == 200:
                assert answer.json()["address"] == address


@pytest.mark.parametrize(
    ("changes", "parameter"),
    [
        ({"token": None, "public_url": "https://a.example"}, "public_url"),
        ({"token": None, "trusted_proxies": ("127.0.0.1",)}, "trusted_proxies"),
        ({"trusted_proxies": ("10.0.0.1/8",)}, "trusted_proxies"),
        ({"trusted_proxies": ("proxy.example",)}, "trusted_proxies"),
        ({"public_url": "a.example"}, "public_url"),
        ({"public_url": "ftp://a.example"}, "public_url"),
        ({"public_url": "https://user:word@a.example"}, "public_url"),
        ({"public_url": "https://a.example/?x=1"}, "public_url"),
        ({"public_url": "https://[::1].evil.com"}, "public_url"),
        ({"public_url": "https://a.example/a", "root_path": "/b"}, "root_path"),
        ({"root_path": "pneumoscope"}, "root_path"),
        ({"root_path": "/a/../b"}, "root_path"),
        ({"root_path": "//evil.example"}, "root_path"),
        ({"user_header": "X-User"}, "user_header"),
        ({"user_header": "X-User", "trusted_proxies": ("127.0.0.1",)}, "group_roles"),
        ({"user_header": "Host", "trusted_proxies": ("127.0.0.1",), "group_roles": ("*=read",)}, "user_header"),
        ({"user_header": "a b", "trusted_proxies": ("127.0.0.1",), "group_roles": ("*=read",)}, "user_header"),
        ({"user_header": "X-User", "trusted_proxies": ("127.0.0.1",), "group_roles": ("a=read",)}, "group_roles"),
        ({"user_header": "X-User", "trusted_proxies": ("127.0.0.1",), "group_roles": ("*=root",)}, "group_roles"),
        ({"group_roles": ("*=read",)}, "group_roles"),
    ],
)
def test_settings_that_would_let_anybody_in_or_have_no_effect_are_refused(
    settings: Settings, changes: dict[str, Any], parameter: str
) -> None:
    with pytest.raises(UsageError) as caught:
        replace(settings, **{"token": TOKEN, **changes}).check()
    assert caught.value.parameter == parameter
