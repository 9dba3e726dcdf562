"""Several reviewers answer in several ways: a later one supersedes, and they are known when the file returns."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from services import Process, draw
from test_store import make_record

from pneumoscope.server.storage.image_reviews import list_counting
from pneumoscope.server.storage.store import PredictionRecord, Review


def predict(client: httpx.Client, seed: int, **query: Any) -> dict[str, Any]:
    answer = client.post("/v1/predictions", files={"files": (f"{seed}.png", draw(seed))}, params=query)
    prediction: dict[str, Any] = answer.json()["predictions"][0]
    return prediction


def review(client: httpx.Client, prediction: dict[str, Any], **body: Any) -> httpx.Response:
    return client.post(f"/v1/predictions/{prediction['id']}/reviews", json=body)


def test_a_review_may_say_that_the_image_does_not_tell_or_only_comment(service: Process) -> None:
    with service.client() as client:
        prediction = predict(client, 500)
        for body, agrees in (
            ({"answer": "cannot_tell"}, None),
            ({"answer": "comment", "comment": "rotated"}, None),
            ({"answer": "agree"}, True),
            ({"answer": "withdrawn"}, None),
        ):
            stored = review(client, prediction, reviewer="ab", **body)
            assert stored.status_code == 201, stored.text
            assert (stored.json()["answer"], stored.json()["agrees"]) == (body["answer"], agrees)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"comment": "rotated"},
        {"answer": "perhaps"},
        {"answer": "comment"},
        {"answer": "comment", "comment": " "},
        {"answer": "agree", "agrees": False},
        {"answer": "cannot_tell", "agrees": True},
        {"answer": "cannot_tell", "label": "NORMAL"},
    ],
)
def test_a_review_that_says_nothing_or_contradicts_itself_is_refused(service: Process, body: dict[str, Any]) -> None:
    with service.client() as client:
        assert review(client, predict(client, 501), **body).status_code == 422


def test_a_file_that_comes_again_has_its_reviews(service: Process) -> None:
    with service.client() as client:
        first = predict(client, 502)
        review(client, first, answer="cannot_tell", reviewer="ab", comment="1")
        review(client, first, answer="agree", reviewer="cd")
        again = predict(client, 502)
        assert [each["answer"] for each in again["image_reviews"]] == ["cannot_tell", "agree"]
        assert {each["prediction_id"] for each in again["image_reviews"]} == {first["id"]}
        assert again["image_reviews"][0]["decision"] == first["decision"]
        assert again["image_reviews"][0]["fingerprint"] == first["fingerprint"]
        assert predict(client, 503)["image_reviews"] == []
        listed = client.get("/v1/predictions?limit=3").json()["predictions"]
        assert [len(each["image_reviews"]) for each in listed] == [0, 2, 2]
        for number in range(12):
            review(client, again, answer="comment", comment=str(number))
        assert [each["comment"] for each in predict(client, 502)["image_reviews"]] == [str(i) for i in range(2, 12)]


def make_review(record: PredictionRecord, number: int, answer: str, reviewer: str) -> tuple[PredictionRecord, Review]:
    made = Review(prediction_id=record.id, answer=answer, reviewer=reviewer)
    made.number = number
    return record, made


def test_the_latest_answer_of_each_reviewer_counts_unless_it_is_withdrawn() -> None:
    record = make_record()
    given = [
        make_review(record, 1, "agree", "ab"),
        make_review(record, 2, "disagree", "cd"),
        make_review(record, 3, "comment", "ab"),
        make_review(record, 4, "withdrawn", "cd"),
        make_review(record, 5, "cannot_tell", "ef"),
        make_review(record, 6, "disagree", "ab"),
    ]
    counting = [(review.reviewer, review.answer) for _, review in list_counting(reversed(given))]
    assert counting == [("ef", "cannot_tell"), ("ab", "disagree")]
