"""`/v1/audit`: who did what."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Query, Request, Response

from pneumoscope.server.access.callers import needs
from pneumoscope.server.openapi import problems
from pneumoscope.server.predictions import PredictionService
from pneumoscope.server.routes.answers import to_page
from pneumoscope.server.storage.audit import audits
from pneumoscope.server.storage.audit_messages import AuditMessage, AuditPage, AuditQuery
from pneumoscope.server.storage.audit_table import list_entries


def add_audit(app: FastAPI, service: PredictionService) -> None:
    """Add the route."""

    @app.get(
        "/v1/audit",
        operation_id="listAuditEntries",
        response_model=AuditPage,
        responses=problems(401, 403, 422, 503),
        tags=["operations"],
    )
    @needs("admin")
    @audits("read_audit")
    async def list_audit(request: Request, query: Annotated[AuditQuery, Query()]) -> Response:
        """List who saw, predicted, reviewed, exported or deleted what, when and from where; the newest entry first."""
        await service.stored.call(service.audit.flush)
        page = await service.stored.call(list_entries, service.store, query)
        return to_page(
            AuditPage(entries=[AuditMessage.model_validate(each) for each in page.entries], next=page.next), request
        )
