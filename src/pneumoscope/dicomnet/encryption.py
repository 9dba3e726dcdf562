"""TLS of the node: contexts from certificates (PS3.15 B.12: TLS 1.2 or later)."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from pneumoscope.errors import UsageError

if TYPE_CHECKING:
    from pneumoscope.dicomnet.addresses import Tls


def make_server_context(tls: Tls) -> ssl.SSLContext | None:
    """Make the context of a listener; None without a certificate. With authorities, clients need a certificate.

    Raises:
        UsageError: a file cannot be read, or does not hold what it should.
    """
    if tls.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, tls)
    if tls.authorities is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def make_client_context(tls: Tls) -> ssl.SSLContext:
    """Make the context of a client; the server's name is checked.

    Raises:
        UsageError: a file cannot be read, or does not hold what it should.
    """
    context = ssl.create_default_context()
    if tls.authorities is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts these authorities alone
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, tls)
    return context


def _load(context: ssl.SSLContext, tls: Tls) -> None:
    file = tls.certificate
    try:
        if tls.certificate is not None:
            context.load_cert_chain(tls.certificate, tls.key)
        file = tls.authorities
        if tls.authorities is not None:
            context.load_verify_locations(tls.authorities)
    except (OSError, ssl.SSLError) as problem:  # an SSLError is an OSError, too
        reason = problem.reason if isinstance(problem, ssl.SSLError) else problem.strerror
        raise UsageError(f"{file}: cannot be used as PEM: {reason or problem}.", "tls") from None
