"""Who calls, and what they may do.

Roles include each other: who may review may read, and an admin may do everything. A route that states no role (see
`needs`) takes the one of its method: GET needs `read`, POST `review`, and all others `admin`. Sending images needs
`review`, because it adds to the worklist of everybody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, get_args

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

Role: TypeAlias = Literal["read", "review", "admin"]
Source: TypeAlias = Literal["local", "shared_token", "token", "proxy"]
ROLES: tuple[Role, ...] = get_args(Role)
CALLER = "caller"  # its key in the state of a request
_METHODS: dict[str, Role] = {"GET": "read", "HEAD": "read", "OPTIONS": "read", "POST": "review"}
_ROLE = "__pneumoscope_role__"
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


@dataclass(frozen=True)
class Caller:
    """Who makes a request.

    Attributes:
        name: of the person or program; `local` or `shared token` where nobody in particular is known.
        role: what they may do.
        source: what says so: this machine alone can call (`local`), the service's one token (`shared_token`), a token
            of a person or program (`token`), or a proxy that has asked them to log in (`proxy`).
        address: where the request comes from; that of the client where a trusted proxy forwards it.
        email: from a proxy, else empty.
    """

    name: str
    role: Role
    source: Source
    address: str = ""
    email: str = ""

    @property
    def named(self) -> bool:
        """Whether the name is that of one person or program, so that reviews can be signed with it."""
        return self.source in ("token", "proxy")

    def may(self, role: Role) -> bool:
        """Whether the caller has this role, or one that includes it."""
        return ROLES.index(self.role) >= ROLES.index(role)


def find_caller(request: HTTPConnection) -> Caller:
    """Who makes this request; every request that reaches a route below `/v1/` has a caller.

    Raises:
        LookupError: the route answers everybody, so nobody was asked.
    """
    caller = request.scope.get("state", {}).get(CALLER)
    if not isinstance(caller, Caller):
        raise LookupError("this route answers everybody")
    return caller


def needs(role: Role) -> Callable[[Endpoint], Endpoint]:
    """State the role that a route needs; put it between the route's decorator and its function."""

    def mark(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _ROLE, role)
        return endpoint

    return mark


def find_role(endpoint: object, method: str) -> Role:
    """The role that a route states, else that of its method."""
    role: Role = getattr(endpoint, _ROLE, None) or _METHODS.get(method, "admin")
    return role
