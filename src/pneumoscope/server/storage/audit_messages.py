"""The JSON messages of the audit log."""

from __future__ import annotations

import datetime

from pydantic import Field

from pneumoscope.server.messages.predictions import NO_NUL, Answer, Moment, PageMessage, PageQuery
from pneumoscope.server.storage.audit import Action


class AuditQuery(PageQuery):
    """Which entries of the audit log to list."""

    since: datetime.datetime | None = Field(
        default=None, description="Only entries from this moment on; UTC if it names no time zone."
    )
    caller: str | None = Field(default=None, max_length=200, pattern=NO_NUL, description="A caller's name.")
    action: Action | None = Field(default=None, description="What was done.")
    prediction: str | None = Field(default=None, max_length=32, pattern=NO_NUL, description="The id of a prediction.")
    patient: str | None = Field(default=None, max_length=16, pattern=NO_NUL, description="A pseudonym.")


class AuditMessage(Answer):
    """Who did what, and to what."""

    number: int = Field(description="Larger for later entries.")
    at: Moment = Field(description="UTC.")
    caller: str = Field(description="The caller's name; empty if access was refused.")
    role: str
    source: str = Field(
        description="How the caller is known: local, shared_token, token, proxy, command, or service (itself)."
    )
    address: str = Field(description="Where the request came from.")
    action: Action
    prediction_id: str | None = Field(description="Null if the entry is not about a single prediction.")
    patient: str | None = Field(description="A pseudonym; null if unknown.")
    study: str | None = Field(description="A pseudonym of the StudyInstanceUID; null if unknown.")
    count: int = Field(description="How many predictions were shown or changed.")
    status: int = Field(description="The HTTP status of the answer; 200 for commands.")
    request: str = Field(description="The request's id, as in the service's log.")


class AuditPage(PageMessage):
    """Entries of the audit log, the newest first."""

    entries: list[AuditMessage]
