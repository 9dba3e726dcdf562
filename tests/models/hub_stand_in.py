"""A stand-in for the hub on this machine: it answers the requests that pushing and pulling a model make."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_a-token-of-a-test"
COMMIT = re.compile("[0-9a-f]{40}")


@dataclass
class Repository:
    """Its commits, each a set of files, the newest last."""

    private: bool = False
    commits: list[tuple[str, dict[str, bytes], str]] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], message: str = "") -> str:
        sha = hashlib.sha1(repr((sorted(files.items()), message, len(self.commits))).encode()).hexdigest()
        self.commits.append((sha, files, message))
        return sha

    def find(self, revision: str) -> tuple[str, dict[str, bytes], str] | None:
        if revision == "main":
            return self.commits[-1]
        return next((each for each in self.commits if each[0] == revision), None)


class Hub(ThreadingHTTPServer):
    """The stand-in. `status` answers everything with an error; `requests` are method, path, agent and token."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str, str]] = []
        self.status: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, name: str, files: dict[str, bytes]) -> str:
        return self.repositories.setdefault(name, Repository()).commit(files)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


@contextmanager
def run_hub() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        pass

    def do_HEAD(self) -> None:
        self.act()

    def do_GET(self) -> None:
        self.act()

    def do_POST(self) -> None:
        self.act()

    def do_PUT(self) -> None:
        self.act()

    def act(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        agent, token = self.headers.get("User-Agent", ""), self.headers.get("Authorization", "")
        hub.requests.append((self.command, path, agent, token))
        self.body = self.read_body()
        if hub.status is not None:
            self.reply({"error": f"refused {token}"}, hub.status)
        elif self.command == "POST" and f"Bearer {TOKEN}" != token:
            self.reply({"error": "Invalid username or password."}, 401)
        elif path == "/api/repos/create":
            self.create()
        elif path == "/api/validate-yaml":
            self.reply({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self.describe(found[1], found[2] or "main")
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = json.loads(self.body)["files"]
            modes = [{"path": each["path"], "uploadMode": mode(each["path"]), "shouldIgnore": False} for each in files]
            self.reply({"files": modes})
        elif found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            wanted = json.loads(self.body)["objects"]
            links = [{**each, "actions": {"upload": {"href": f"{hub.url}/objects/{each['oid']}"}}} for each in wanted]
            self.reply({"transfer": "basic", "objects": links})
        elif self.command == "PUT":
            hub.objects[path.rpartition("/")[2]] = self.body
            self.reply({})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self.commit(found[1])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.send_file(*found.groups())
        else:
            self.reply({"error": "unknown"}, 404)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def create(self) -> None:
        wanted = json.loads(self.body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.server.repositories:
            self.reply({"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}, 409)
            return
        self.server.repositories[name] = Repository(wanted.get("visibility") == "private")
        self.server.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.reply({"url": f"{self.server.url}/{name}"})

    def describe(self, name: str, revision: str) -> None:
        repository = self.server.repositories.get(name)
        if repository is None:
            self.reply({"error": "Repository not found"}, 404, **{"X-Error-Code": "RepoNotFound"})
        elif (found := repository.find(revision)) is None:
            self.reply({"error": "Invalid rev id"}, 404, **{"X-Error-Code": "RevisionNotFound"})
        else:
            files = [{"rfilename": each, "size": len(content)} for each, content in found[1].items()]
            self.reply({"id": name, "sha": found[0], "private": repository.private, "siblings": files})

    def commit(self, name: str) -> None:
        repository = self.server.repositories[name]
        files, message = dict(repository.commits[-1][1]), ""
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.server.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        sha = repository.commit(files, message)
        self.reply({"commitUrl": f"{self.server.url}/{name}/commit/{sha}", "commitOid": sha, "pullRequestUrl": None})

    def send_file(self, name: str, revision: str, file: str) -> None:
        found = self.server.repositories[name].find(revision)
        if found is None or file not in found[1]:
            self.reply({"error": "Entry not found"}, 404, **{"X-Error-Code": "EntryNotFound"})
            return
        content = found[1][file]
        self.send_response(200)
        for header, value in (
            ("ETag", f'"{hashlib.sha256(content).hexdigest()}"'), ("X-Repo-Commit", found[0]),
            ("Content-Length", str(len(content))),
        ):  # fmt: skip
            self.send_header(header, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def reply(self, values: Any, status: int = 200, **headers: str) -> None:
        content = json.dumps(values).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".onnx", ".bin")) else "regular"
