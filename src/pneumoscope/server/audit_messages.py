"""The JSON messages of the audit log."""

from __future__ import annotations

import datetime

from pydantic import Field

from pneumoscope.server.audit import Action
from pneumoscope.server.messages import NO_NUL, Answer, Moment, PageMessage, PageQuery


class AuditQuery(PageQuery):
    """Which entries of the audit log to list."""

    since: datetime.datetime | None = Field(
        default=None, description="Only those of this moment or later; UTC if it names no time zone."
    )
    caller: str | None = Field(default=None, max_length=200, pattern=NO_NUL, description="A caller's name.")
    action: Action | None = Field(default=None, description="What was done.")
    prediction: str | None = Field(default=None, max_length=32, pattern=NO_NUL, description="The id of a prediction.")
    patient: str | None = Field(default=None, max_length=16, pattern=NO_NUL, description="A pseudonym.")


class AuditMessage(Answer):
    """Who did what, and to what."""

    number: int = Field(description="Rises with each entry.")
    at: Moment = Field(description="UTC.")
    caller: str = Field(description="Their name; empty where nobody was let in.")
    role: str
    source: str = Field(
        description="What says so: local, shared_token, token, proxy; command: of the machine; service: itself."
    )
    address: str = Field(description="Where the request came from.")
    action: Action
    prediction_id: str | None = Field(description="Null where it is about none, or about several.")
    patient: str | None = Field(description="A pseudonym; null where it is unknown.")
    study: str | None = Field(description="A pseudonym of the StudyInstanceUID; null where it is unknown.")
    count: int = Field(description="Of predictions that were shown or changed.")
    status: int = Field(description="The answer's, of HTTP; 200 of commands.")
    request: str = Field(description="The request's id, as in the service's log.")


class AuditPage(PageMessage):
    """Entries of the audit log, the newest first."""

    entries: list[AuditMessage]
