"""Settings of the service: one table, from which the flags, the variables and the keys of a file follow.

A field's type says what is allowed, and its `Flag` what `pneumoscope serve --help` says. `setting_sources` reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Gt, Interval

from pneumoscope.config import Count
from pneumoscope.errors import UsageError
from pneumoscope.server.access.callers import ROLES, Role
from pneumoscope.server.access.hosts import PublicUrl, is_loopback, parse_networks, parse_public_url, parse_root_path
from pneumoscope.server.access.strength import check_token
from pneumoscope.server.access.tokens import check_readable
from pneumoscope.server.periods import read_period

SERVICE, ACCESS, PROXY, STORAGE, DECISIONS, COMPUTING = (
    "Service", "Access", "Behind a proxy", "Storage", "Decisions", "Computing",
)  # fmt: skip
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]*", re.ASCII)


_ADDRESS = re.compile(r"https?://(\[[\da-fA-F:]+\]|[^\s\[\]/]+)(:\d+)?(/\S*)?")


@dataclass(frozen=True)
class Flag:
    """How a setting is shown on the command line.

    Attributes:
        text: its help.
        panel: of the help that it is listed in.
        given: whether there is a flag; secrets have none, because others can see the command line.
    """

    text: str
    panel: str = SERVICE
    given: bool = True


@dataclass(frozen=True)
class Limits:
    """What the service accepts, so that nobody can block it or fill its memory.

    Attributes:
        file_bytes: of one file.
        request_bytes: of one request.
        buffered_bytes: of all uploads, and answers with pictures, in memory; beyond that, uploads are answered 429.
        request_files: in one request.
        pictured_files: in one request that asks for pictures or heatmaps.
        message_bytes: of a request that brings no images.
        images: waiting or being processed at a time; beyond that, the answer is 429.
        requests: in progress at a time, of callers who are known; beyond that, the answer is 503.
        unknown: connections and requests at a time of whoever has sent no valid token; they cannot use up those above.
            A new connection closes the oldest of the address that has most.
        silence: seconds that a sender may pause, and that the head of a request may take.
        sending: seconds that the body of a request may take.
        decoding: seconds that decoding one image may take.
        locked: seconds that a request may wait for a locked database; beyond that, the answer is 503.
        stopping: seconds in which requests are finished after a signal to stop.
    """

    file_bytes: Count = 64 * 1024**2
    request_bytes: Count = 256 * 1024**2
    buffered_bytes: Count = 512 * 1024**2
    request_files: Count = 64
    pictured_files: Count = 8
    message_bytes: Count = 64 * 1024
    images: Count = 256
    requests: Count = 512
    unknown: Count = 256
    silence: Annotated[float, Gt(0)] = 10.0
    sending: Annotated[float, Gt(0)] = 120.0
    decoding: Annotated[float, Gt(0)] = 20.0
    locked: Annotated[float, Interval(gt=0, le=60)] = 10.0
    stopping: Count = 20


@dataclass(frozen=True)
class Settings:
    """Settings of the service."""

    model: Annotated[
        str | Path | None,
        Flag("A run, a model folder, a .zip of one, a pretrained model's name, an https:// address, or hf:OWNER/NAME."),
    ] = None
    host: Annotated[str, Flag("Address to listen on. Any address but this computer's own needs a token.")] = "127.0.0.1"
    port: Annotated[int, Interval(ge=0, le=65535), Flag("Port to listen on; 0 takes any free port.")] = 8000
    batch_wait: Annotated[
        float, Interval(ge=0, le=1000), Flag("Milliseconds that an image may wait for others to share a batch.")
    ] = 5.0
    mode: Annotated[
        Literal["assist", "blind", "teaching"] | None,
        Flag(
            "Mode of the reading room. blind: only admins see the model's answer before they have committed a reading. "
            "[default: each reader chooses]",
        ),
    ] = None
    cases: Annotated[
        Path | None,
        Flag("Images of known truth for teaching: a folder for each class, or a table. [default: simulated images]"),
    ] = None
    log_format: Annotated[Literal["text", "json"], Flag("Format of the log on standard error.")] = "text"
    otel_endpoint: Annotated[
        str | None,
        Flag("Address of an OpenTelemetry collector, such as http://127.0.0.1:4318. [default: no traces are sent]"),
    ] = None
    shadow_model: Annotated[
        str | Path | None,
        Flag("A second model. Its predictions are kept, not shown; the monitoring page compares both."),
    ] = None
    canary: Annotated[
        float, Interval(ge=0, le=1), Flag("Share of the images that the second model answers for, from 0 to 1.")
    ] = 0.0
    renew_self_check: Annotated[
        bool, Flag("Compare later starts with what the model says of simulated images now.")
    ] = False
    monitoring_days: Annotated[
        int, Interval(ge=1, le=3650), Flag("How many days the monitoring values for Prometheus cover.")
    ] = 30
    token: Annotated[str | None, Flag("A token that callers may send; it may do everything.", ACCESS, given=False)] = (
        field(default=None, repr=False)
    )
    token_file: Annotated[
        Path | None, Flag("File with a token that callers may send. [default: $PNEUMOSCOPE_TOKEN]", ACCESS)
    ] = None
    tokens: Annotated[
        Path | None, Flag("File with tokens of several persons and programs, made by `pneumoscope tokens add`.", ACCESS)
    ] = None
    public_url: Annotated[
        str | None, Flag("Address that browsers use, such as https://xray.example.org/pneumoscope.", PROXY)
    ] = None
    root_path: Annotated[
        str | None, Flag("Path below which the proxy serves it. [default: that of the public address]", PROXY)
    ] = None
    trusted_proxies: Annotated[
        tuple[str, ...],
        Flag("Address or network of a proxy whose X-Forwarded headers are believed; repeatable.", PROXY),
    ] = ()
    forwarded: Annotated[
        Literal["x-forwarded", "forwarded"], Flag("Which headers the proxy sets: X-Forwarded-… or Forwarded.", PROXY)
    ] = "x-forwarded"
    user_header: Annotated[
        str | None, Flag("Header with the name of whoever has logged in, such as X-Forwarded-User.", PROXY)
    ] = None
    email_header: Annotated[str | None, Flag("Header with their email address, such as X-Forwarded-Email.", PROXY)] = (
        None
    )
    groups_header: Annotated[str | None, Flag("Header with their groups, such as X-Forwarded-Groups.", PROXY)] = None
    group_roles: Annotated[
        tuple[str, ...],
        Flag("Role of a group, as GROUP=read, GROUP=review or GROUP=admin; * is everybody; repeatable.", PROXY),
    ] = ()
    database: Annotated[
        str | None,
        Flag(
            "Where predictions are stored: a SQLite file, or postgresql://USER@HOST/NAME. [default: a file in your "
            "data folder]",
            STORAGE,
        ),
    ] = field(default=None, repr=False)
    upgrade: Annotated[bool, Flag("Bring the tables of an earlier version up to date at the start.", STORAGE)] = False
    keep_images: Annotated[Path | None, Flag("Folder to keep image files in. [default: none are kept]", STORAGE)] = None
    keep_for: Annotated[
        str | None,
        Flag(
            "Delete predictions, reviews and kept images after this time, such as 12h, 30d or 52w. [default: never]",
            STORAGE,
        ),
    ] = None
    keep_names: Annotated[bool, Flag("Store file names.", STORAGE)] = True
    keep_uids: Annotated[bool, Flag("Store accession numbers and UIDs of DICOM files.", STORAGE)] = True
    refuse_out_of_scope: Annotated[
        bool,
        Flag(
            "Give images outside the model's intended use an error and no probability, instead of a warning.", DECISIONS
        ),
    ] = False
    device: Annotated[Literal["auto", "cpu", "cuda"], Flag("Device to compute on.", COMPUTING)] = "auto"
    decoders: Annotated[
        int | None,
        Interval(ge=0, le=64),
        Flag(
            "Processes that decode images. 0: threads of the service, where a hostile file can fill its memory. "
            "[default: 3 to 5, depending on the cores]",
            COMPUTING,
        ),
    ] = None
    callback_hosts: Annotated[
        tuple[str, ...],
        Flag("Address that may be called when a job is finished, such as https://ris.example.org; repeatable.", ACCESS),
    ] = ()
    callback_secret: Annotated[str | None, Flag("Signs these calls.", ACCESS, given=False)] = field(
        default=None, repr=False
    )
    limits: Limits = Limits()

    @property
    def has_callers(self) -> bool:
        """Whether callers have to identify themselves; otherwise everybody on this machine may call."""
        return self.token is not None or self.tokens is not None or self.identifies

    @property
    def identifies(self) -> bool:
        """Whether a proxy says who has logged in."""
        return self.user_header is not None or self.email_header is not None

    @property
    def address(self) -> PublicUrl | None:
        """The address that browsers use, if it is known."""
        return None if self.public_url is None else parse_public_url(self.public_url)

    @property
    def root(self) -> str:
        """The path below which the service is reached; empty for none."""
        if self.root_path is not None:
            return parse_root_path(self.root_path)
        return self.address.path if self.address else ""

    def check(self) -> None:
        """Refuse settings that are dangerous, have no effect, or contradict each other.

        Raises:
            UsageError: names the setting.
        """
        if self.token is not None:
            check_token(self.token)
        if self.tokens is not None:
            check_readable(self.tokens)
        if self.keep_for is not None:
            read_period(self.keep_for, "keep_for")
        if self.otel_endpoint is not None and not _ADDRESS.fullmatch(self.otel_endpoint):
            raise UsageError(f"{self.otel_endpoint!r} is not an HTTP address.", "otel_endpoint")
        if self.decoders == 1:
            raise UsageError("at least 2 are needed, so that a slow image leaves one for the others; or 0.", "decoders")
        if self.canary and self.shadow_model is None:
            raise UsageError("no effect without `shadow_model`, which answers for this share.", "canary")
        parse_networks(self.trusted_proxies, "trusted_proxies")
        self._check_identity()
        root = self.root
        if self.address and self.address.path and root != self.address.path:
            raise UsageError(f"{root or '/'} is not the path of `public_url`. Leave one out.", "root_path")
        if not self.has_callers:
            if not is_loopback(self.host):
                raise UsageError(
                    f"{self.host}: others can reach this address, so a token is needed. Set PNEUMOSCOPE_TOKEN, for "
                    "example to the output of: openssl rand -hex 32. Or listen on 127.0.0.1, the default.",
                    "host",
                )
            if self.public_url is not None or self.trusted_proxies:
                raise UsageError(
                    "Through a proxy others can reach this service, so a token is needed. Set PNEUMOSCOPE_TOKEN, or "
                    "give `tokens` or `user_header`.",
                    "public_url" if self.public_url is not None else "trusted_proxies",
                )

    def _check_identity(self) -> None:
        names = ("user_header", "email_header", "groups_header")
        headers = {name: value for name in names if (value := getattr(self, name)) is not None}
        for name, value in headers.items():
            if not _HEADER.fullmatch(value):
                raise UsageError(f"{value!r} is not the name of a header.", name)
            if value.lower() in ("host", "authorization", "origin", "cookie") or value.lower().startswith("content-"):
                raise UsageError(f"{value} has another meaning. Choose the header that the proxy sets.", name)
        if len({value.lower() for value in headers.values()}) < len(headers):
            raise UsageError("Two of the proxy's headers are the same.", next(iter(headers)))
        roles = parse_group_roles(self.group_roles)
        if headers and not self.trusted_proxies:
            raise UsageError("no effect without `trusted_proxies`: anybody could send it.", next(iter(headers)))
        if self.identifies and not roles:
            raise UsageError("gives nobody a role. For example, *=read lets everybody read.", "group_roles")
        if roles and not self.identifies:
            raise UsageError("no effect without `user_header` or `email_header`.", "group_roles")
        if self.groups_header is not None and not self.identifies:
            raise UsageError("no effect without `user_header` or `email_header`.", "groups_header")
        if set(roles) - {"*"} and self.groups_header is None:
            raise UsageError("Groups need `groups_header`, the header that names them.", "group_roles")


def parse_group_roles(texts: Iterable[str]) -> dict[str, Role]:
    """Read which group has which role.

    Raises:
        UsageError: a text is not GROUP=ROLE, or names a group again.
    """
    roles: dict[str, Role] = {}
    for text in texts:
        group, _, word = text.rpartition("=")
        role = next((each for each in ROLES if each == word.strip()), None)
        if role is None or not group.strip():
            raise UsageError(f"{text!r} is not GROUP=ROLE; roles are {', '.join(ROLES)}.", "group_roles")
        if group.strip() in roles:
            raise UsageError(f"{group.strip()} occurs twice.", "group_roles")
        roles[group.strip()] = role
    return roles
