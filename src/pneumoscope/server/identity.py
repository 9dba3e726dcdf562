"""`/v1/me`: who one is to the service, and what one may do."""

from __future__ import annotations

from typing import Literal

from fastapi import FastAPI, Request
from pydantic import BaseModel, Field

from pneumoscope.server.access.callers import ROLES, Role, Source, find_caller, needs
from pneumoscope.server.openapi import problems
from pneumoscope.server.readings.blinding import withholds


class MeMessage(BaseModel):
    """Who makes this request."""

    name: str = Field(description="Name of the person or program; `local` or `shared token` if nobody is named.")
    named: bool = Field(description="Whether the name is that of one person or program.")
    email: str = Field(description="Address from the login; empty if there is none.")
    role: Role = Field(description="read, review or admin; each includes the ones before it.")
    may: list[Role] = Field(description="The roles that it includes.")
    source: Source = Field(description="What says so: local, shared_token, token or proxy.")
    address: str = Field(description="The address that the request comes from.")
    mode: Literal["assist", "blind", "teaching"] | None = Field(
        description="The mode of the reading room, if the service prescribes one."
    )
    bound: bool = Field(description="Whether the model's answers are withheld until one has committed a reading.")


def add_identity(app: FastAPI, mode: Literal["assist", "blind", "teaching"] | None = None) -> None:
    """Serve `/v1/me`."""

    @app.get("/v1/me", operation_id="getMe", responses=problems(401, 403), tags=["operations"])
    @needs("read")
    @withholds
    async def me(request: Request) -> MeMessage:
        """Say who one is, and what one may do."""
        caller = find_caller(request)
        return MeMessage(
            name=caller.name,
            named=caller.named,
            email=caller.email,
            role=caller.role,
            may=[role for role in ROLES if caller.may(role)],
            source=caller.source,
            address=caller.address,
            mode=mode,
            bound=mode == "blind" and not caller.may("admin"),
        )
