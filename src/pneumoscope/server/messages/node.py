"""The JSON messages about a DICOM node that has its tables in the same database."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION
from pneumoscope.server.messages.predictions import Answer, Moment, Query


class NodeQuery(Query):
    """How many of the node's images to list."""

    limit: int = Field(default=50, ge=1, le=500)


class NodeCounts(Answer):
    """How many images the DICOM node has in which state."""

    waiting: int = Field(description="For more images of their study, or for their turn.")
    answered: int
    skipped: int = Field(description="Not answered: a rule says so, or they are results of the node itself.")
    set_aside: int = Field(description="They cannot be answered.")
    lost: int = Field(description="Their files are gone.")
    answered_today: int = Field(description="Today is that of UTC.")


class DestinationMessage(Answer):
    """How many results for a destination of the DICOM node are in which state."""

    name: str
    due: int = Field(description="To be sent, for the first time or again.")
    sent: int = Field(description="Accepted, and not yet verified.")
    delivered: int
    failed: int = Field(description="Given up until `pneumoscope dicom node --retry-failed`.")
    held: int = Field(description="Not sent, by a dry run.")
    oldest_due_seconds: float | None = Field(description="For how long the first has been due; null if none is.")
    error: str | None = Field(description="Why the last of the failed has failed.")


class DeliveryMessage(Answer):
    """A result on its way to a destination."""

    destination: str
    state: Literal["due", "sent", "delivered", "failed", "held"]
    attempts: int = Field(description="How often the destination has refused it.")
    error: str | None = Field(description="What went wrong last.")


class ResultMessage(Answer):
    """A result of the DICOM node."""

    kind: str = Field(description="As in `pneumoscope dicom results --as`: sr, sc, map, seg, fhir-r4 or fhir-r5.")
    sop_uid: str = Field(description="Its own SOPInstanceUID, or the identifier of a FHIR report.")
    deliveries: list[DeliveryMessage]


class NodeImageMessage(Answer):
    """An image that the DICOM node has received, without anything about the patient."""

    id: int
    node: str = Field(description="The node that has it.")
    received_at: Moment = Field(description="UTC.")
    calling: str = Field(description="The sender's AE title; STOW over HTTP, WATCH from a folder.")
    study: str = Field(description="The beginning of a hash of its Study Instance UID, as in the node's log.")
    state: Literal["waiting", "answered", "skipped", "set_aside", "lost"]
    reason: str | None = Field(description="Why it is not answered.")
    attempts: int = Field(description="How often answering it has begun.")
    decision: str | None = Field(description="A label, `uncertain` or `out_of_distribution`.")
    predicted_label: str | None = Field(description="Null if out of distribution.")
    probability: float | None = Field(description="Of the positive class; null if out of distribution.")
    warnings: list[str]
    results: list[ResultMessage]

    @model_validator(mode="after")
    def _withhold(self) -> Self:
        if self.decision == OUT_OF_DISTRIBUTION:
            self.predicted_label = self.probability = None
        return self


class NodeMessage(Answer):
    """What DICOM nodes have in the service's database; `present` alone if it has none."""

    present: bool = Field(description="Whether a node has its tables in this database.")
    counts: NodeCounts | None = None
    oldest_waiting_seconds: float | None = Field(default=None, description="Null if no image waits.")
    destinations: list[DestinationMessage] = Field(default=[])
    images: list[NodeImageMessage] = Field(default=[], description="The latest, the newest first.")
