"""Withholds the model's answer from readers until they have committed a reading of their own.

With `mode: blind` this binds everybody but admins. Routes that
do not state that they withhold answers are then closed to readers, so that a new route cannot reveal answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from fastapi import Request
from pydantic import BaseModel

from pneumoscope.server.access.callers import Caller, find_caller
from pneumoscope.server.messages.predictions import ListQuery, PredictionMessage, StudyPage
from pneumoscope.server.problems import RequestError
from pneumoscope.server.readings.readings import find_read
from pneumoscope.server.stored import StoredPredictions

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
Message = TypeVar("Message", bound=BaseModel)
_SAFE = "__pneumoscope_withholds__"
# The model's answer, and what others said who knew it. Warnings are included, because some depend on the model.
_ANSWER: dict[str, Any] = {
    "decision": None, "predicted_label": None, "probability": None, "probabilities": {}, "prediction_set": [],
    "ood_score": None, "group": None, "warnings": [], "explanation": None, "heatmap": None, "reviews": [],
    "review_count": 0, "image_reviews": [],
}  # fmt: skip


def withholds(endpoint: Endpoint) -> Endpoint:
    """State that a route reveals no answer of the model; put it between the route's decorator and its function."""
    setattr(endpoint, _SAFE, True)
    return endpoint


def refuse_open(mode: str | None, endpoint: object, caller: Caller | None) -> None:
    """Close a route that does not withhold answers.

    Raises:
        RequestError: 403, it might give the model's answer away.
    """
    if mode != "blind" or endpoint is None or caller is None or caller.may("admin"):
        return
    if not getattr(endpoint, _SAFE, False):
        raise _refuse(
            "This service is in blind mode, and this would show the model's answers. It needs the role admin."
        )


def withhold(message: PredictionMessage) -> PredictionMessage:
    """A prediction without the model's answer."""
    if message.error is not None:
        return message
    return message.model_copy(update={**_ANSWER, "withheld": True})


class Blinding:
    """Knows who may see which answers.

    Args:
        mode: the mode that the settings prescribe.
        stored: the database.
    """

    def __init__(self, mode: str | None, stored: StoredPredictions) -> None:
        self._blind, self._stored = mode == "blind", stored

    def binds(self, request: Request) -> bool:
        """Whether the caller must commit a reading before they see an answer."""
        return self._blind and not find_caller(request).may("admin")

    async def cover(self, request: Request, message: Message, wanted: bool = False) -> Message:
        """A message with predictions, without the answers that the caller may not see.

        Args:
            request: tells who calls.
            message: with one, several or no predictions.
            wanted: whether the caller wants none of the answers.
        """
        bound = self.binds(request)
        found = [message] if isinstance(message, PredictionMessage) else getattr(message, "predictions", None)
        if found is None or not (bound or wanted):
            return message
        caller, read = find_caller(request), set[str]()
        if bound or caller.named:
            digests = [each.sha256 for each in found if each.sha256]
            read = await self._stored.call(find_read, self._stored.store, caller.name, digests)
        covered = [each if each.sha256 in read else withhold(each) for each in found]
        if isinstance(message, PredictionMessage):
            return cast(Message, covered[0])
        return message.model_copy(update={"predictions": covered})

    async def check(self, request: Request, prediction_id: str) -> None:
        """Check that the caller may see the answer of a prediction.

        Raises:
            RequestError: 403, they have not read it yet; 404, there is none.
        """
        if not self.binds(request):
            return
        record = (await self._stored.find(prediction_id)).record
        name = find_caller(request).name
        if not await self._stored.call(find_read, self._stored.store, name, [record.sha256]):
            raise _refuse(
                "This service is in blind mode. First commit a reading: POST it to the prediction's /readings."
            )

    def cover_studies(self, request: Request, page: StudyPage) -> StudyPage:
        """A page of studies, without the numbers of decisions if the caller must commit a reading first."""
        if not self.binds(request):
            return page
        studies = [each.model_copy(update={"decisions": {}}) for each in page.studies]
        return page.model_copy(update={"studies": studies})

    def refuse_filter(self, request: Request, query: ListQuery) -> None:
        """Refuse to list predictions by what the model decided, or by who disagrees with it.

        Raises:
            RequestError: 403, the caller must read first.
        """
        name = "decision" if query.decision is not None else "disagreement" if query.disagreement else None
        if name is not None and self.binds(request):
            raise _refuse(f"This service is in blind mode, and `{name}` would show the model's answers. Leave it out.")


def _refuse(detail: str) -> RequestError:
    return RequestError(403, detail, code="answer-withheld")
