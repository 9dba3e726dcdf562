"""`/v1/jobs`: files that are predicted while the caller does not wait."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Path, Request, Response

from pneumoscope.server.jobs.jobs import Jobs
from pneumoscope.server.messages.predictions import NO_NUL, JobMessage
from pneumoscope.server.openapi import problems
from pneumoscope.server.readings.blinding import Blinding, withholds
from pneumoscope.server.routes.answers import to_json
from pneumoscope.server.storage.audit import audits


def add_jobs(app: FastAPI, jobs: Jobs, blinding: Blinding) -> None:
    """Add the route."""

    @app.get(
        "/v1/jobs/{id}",
        operation_id="getJob",
        response_model=JobMessage,
        responses={
            200: {"headers": {"Retry-After": {"description": "If it is not finished.", "schema": {"type": "integer"}}}},
            **problems(401, 403, 404, 422, 503),
        },
        tags=["predictions"],
    )
    @audits("view_job")
    @withholds
    async def get_job(
        request: Request, job_id: Annotated[str, Path(alias="id", max_length=64, pattern=NO_NUL)]
    ) -> Response:
        """Get a job, made by `POST /v1/predictions` with `Prefer: respond-async`; jobs are kept for a day."""
        job = await jobs.find(job_id)
        covered = await blinding.cover(request, job)
        return to_json(covered, retry_after="1" if job.finished_at is None else "")
