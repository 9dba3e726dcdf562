"""Decides who calls: by a token, by what a trusted proxy says, or because only this machine can call."""

from __future__ import annotations

import hmac
import math

from starlette.datastructures import Headers

from pneumoscope.errors import DataError
from pneumoscope.server.access.callers import Caller
from pneumoscope.server.access.tokens import TokenFile
from pneumoscope.server.problems import RequestError, logger
from pneumoscope.server.security.proxies import Identity
from pneumoscope.server.security.throttle import Throttle
from pneumoscope.server.settings import Settings

_NEEDED = "A valid token is needed. Send the header Authorization: Bearer TOKEN with the service's token."


class Access:
    """Knows all tokens, and counts wrong ones."""

    def __init__(self, settings: Settings) -> None:
        self._shared = settings.token
        self._file = None if settings.tokens is None else TokenFile(settings.tokens)
        self.open = not settings.has_callers  # whether whoever reaches the service may use it
        self.throttle = Throttle()
        self._complained = ""

    def identify(self, headers: Headers, address: str, identity: Identity | None) -> Caller:
        """Find out who sends a request.

        Raises:
            RequestError: 401, no valid token; 403, no role; 429, too many wrong tokens; 503, the file of tokens cannot
                be used.
        """
        if identity is not None:
            if identity.role is None:
                detail = f"{identity.name} has no role here: none of the groups that the login names has one."
                raise RequestError(403, detail)
            return Caller(identity.name, identity.role, "proxy", address, identity.email)
        if self.open:
            return Caller("local", "admin", "local", address)
        scheme, _, rest = headers.get("authorization", "").partition(" ")
        token = rest.strip() if scheme.lower() == "bearer" else ""
        if token:
            if (wait := math.ceil(self.throttle.find_wait(address))) > 0:
                detail = f"Too many wrong tokens came from this address. Try again in {wait} s."
                raise RequestError(429, detail, {"retry-after": str(wait)}, code="too-many-guesses")
            if (caller := self._find(token, address)) is not None:
                return caller
            self.throttle.count(address, token)
        raise RequestError(401, _NEEDED, {"www-authenticate": "Bearer"})

    def _find(self, token: str, address: str) -> Caller | None:
        if self._shared is not None and hmac.compare_digest(token.encode("utf-8", "replace"), self._shared.encode()):
            return Caller("shared token", "admin", "shared_token", address)
        if self._file is None:
            return None
        try:
            found = self._file.find(token)
        except DataError as problem:  # nobody gets in: a token may have been revoked meanwhile
            if self._complained != str(problem):
                self._complained = str(problem)
                logger.error("%s", problem)
            detail = "The service's file of tokens cannot be used. The reason is in the service's log."
            raise RequestError(503, detail, {"retry-after": "5"}) from None
        self._complained = ""
        return None if found is None else Caller(found.name, found.role, "token", address)
