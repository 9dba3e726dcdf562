"""Version 1 of the API, called as programs call it: lists in pages, one prediction, its image, evidence and reviews."""

from __future__ import annotations

import asyncio
import io
import json
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import httpx
import numpy as np
import pytest
import sqlalchemy as sql
from dicom_files import dicom
from dicom_files import image as levels
from PIL import Image
from services import Process, draw, run_thread, wait_until

from pneumoscope.images.read import read_pixels
from pneumoscope.server.problem_types import PROBLEMS
from pneumoscope.server.settings import Settings
from pneumoscope.server.storage.kept_images import KeptImages
from pneumoscope.server.storage.store import Review, Store

if TYPE_CHECKING:
    from pneumoscope.training.train import Run

ROOT = Path(__file__).parents[2]


def send(url: str, *contents: bytes, **query: Any) -> httpx.Response:
    files = [("files", (f"{i}.png", content)) for i, content in enumerate(contents)]
    return httpx.post(f"{url}/v1/predictions", files=files, params=query, timeout=60)


def walk(url: str, path: str, **query: Any) -> list[dict[str, Any]]:
    """All pages of a list, by the addresses that `Link` gives."""
    pages, where = [], httpx.URL(f"{url}{path}", params=query)
    while True:
        answer = httpx.get(where)
        assert answer.status_code == 200, answer.text
        pages.append(answer.json())
        assert (answer.json()["next"] is not None) == ("link" in answer.headers)
        if "link" not in answer.headers:
            return pages
        where = httpx.URL(urljoin(str(where), str(re.findall("<(.*)>", answer.headers["link"])[0])))


def test_one_stored_file_has_an_address(service: Process) -> None:
    answer = send(service.url, draw(1))
    assert answer.status_code == 201
    (one,) = answer.json()["predictions"]
    found = httpx.get(urljoin(f"{service.url}/v1/predictions", answer.headers["location"]))
    assert found.status_code == 200
    assert found.json()["id"] == one["id"]
    assert found.json()["explanation"] == one["explanation"]
    assert httpx.get(f"{service.url}/v1/{one['href']}").json() == found.json()


def test_several_stored_files_have_an_address_each(service: Process) -> None:
    answer = send(service.url, draw(1), b"no image", draw(2))
    assert answer.status_code == 201
    assert "location" not in answer.headers
    one, bad, two = answer.json()["predictions"]
    assert [httpx.get(f"{service.url}/v1/{each['href']}").json()["id"] for each in (one, two)] == [one["id"], two["id"]]
    assert (bad["href"], bad["code"]) == (None, "not-an-image")


def test_without_storing_there_is_an_answer_and_nothing_else(settings: Settings, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    with run_thread(replace(settings, keep_images=kept)) as url:
        answer = send(url, draw(1), store=False, heatmap=True)
        assert answer.status_code == 200
        (one,) = answer.json()["predictions"]
        assert one["decision"]
        assert one["heatmap"]
        assert (one["id"], one["href"], one["created_at"]) == (None, None, None)
        assert send(url, draw(1), b"no image", store=False).status_code == 200
        assert httpx.get(f"{url}/v1/predictions").json()["predictions"] == []
        assert httpx.get(f"{url}/v1/monitoring").json()["predictions"] == 0
        assert "pneumoscope_images_total{" not in httpx.get(f"{url}/metrics").text
        assert list(kept.iterdir()) == []


def test_a_file_that_was_predicted_may_be_answered_with_that_prediction(settings: Settings) -> None:
    with run_thread(settings) as url:
        (first,) = send(url, draw(1)).json()["predictions"]
        httpx.post(f"{url}/v1/predictions/{first['id']}/reviews", json={"agrees": True})
        answer = send(url, draw(1), draw(2), reuse=True)
        assert answer.status_code == 201  # the second is new
        again, new = answer.json()["predictions"]
        assert (again["id"], again["reused"], again["review_count"]) == (first["id"], True, 1)
        assert again["explanation"] == first["explanation"]
        assert (new["reused"], new["review_count"]) == (False, 0)
        answer = send(url, draw(1), reuse=True, heatmap=True, picture=True)
        assert answer.status_code == 200
        (pictured,) = answer.json()["predictions"]
        assert pictured["id"] == first["id"]
        assert pictured["picture"]
        assert send(url, draw(1), reuse=True, invert=True).json()["predictions"][0]["reused"] is False
        assert len(httpx.get(f"{url}/v1/predictions").json()["predictions"]) == 3


def test_pages_hold_every_prediction_once_though_others_are_added(settings: Settings) -> None:
    with run_thread(settings) as url:
        ids = [each["id"] for each in send(url, *(draw(seed) for seed in range(7))).json()["predictions"]]
        first = httpx.get(f"{url}/v1/predictions", params={"limit": 3}).json()
        new = send(url, draw(9)).json()["predictions"][0]["id"]
        rest, cursor = [], first["next"]
        while cursor:
            page = httpx.get(f"{url}/v1/predictions", params={"limit": 3, "cursor": cursor}).json()
            rest += page["predictions"]
            cursor = page["next"]
        found = [each["id"] for each in (*first["predictions"], *rest)]
        pages = walk(url, "/v1/predictions", limit=2)
    assert sorted(found) == sorted(ids)
    assert [len(page["predictions"]) for page in pages] == [2, 2, 2, 2]
    assert sorted(each["id"] for page in pages for each in page["predictions"]) == sorted([*ids, new])


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "e30",
        "WzFd",
        "W10",
        "bm90aGluZw",
        "WzEsIDJd",
        "!",
        "é",
        "WyIyMDI2LTAxLTAxIiwgIlx1MDAwMCJd",
        "WzFlOTld",
        "W1tbXV1d",
    ],
)
def test_a_cursor_of_somebody_else_is_refused(service: Process, cursor: str) -> None:
    id_ = send(service.url, draw(1)).json()["predictions"][0]["id"]
    for path in ("predictions", "studies", f"predictions/{id_}/reviews"):
        answer = httpx.get(f"{service.url}/v1/{path}", params={"cursor": cursor})
        assert answer.status_code == 422
        assert answer.json()["code"] == "cursor-invalid"


def test_predictions_are_listed_by_what_they_have_in_common(settings: Settings) -> None:
    with run_thread(settings) as url:
        files = [
            ("files", (f"{i}.dcm", dicom(levels(24 + i), PatientID=f"p{i % 2}", StudyInstanceUID=f"1.2.{i % 3}")))
            for i in range(6)
        ]
        everything = httpx.post(f"{url}/v1/predictions", files=files, timeout=60).json()["predictions"]
        one = everything[0]
        assert httpx.post(f"{url}/v1/predictions/{one['id']}/reviews", json={"agrees": True}).status_code == 201

        def ids(**query: Any) -> set[str]:
            return {
                each["id"] for page in walk(url, "/v1/predictions", **query, limit=2) for each in page["predictions"]
            }

        def having(name: str) -> set[str]:
            return {each["id"] for each in everything if each[name] == one[name]}

        whole = {each["id"] for each in everything}
        assert ids(patient=one["patient"]) == having("patient") != whole
        assert ids(study=one["study_uid"]) == having("study_uid") != whole
        assert ids(decision=one["decision"]) == having("decision")
        assert ids(decision="nothing") == set()
        assert ids(model=one["model"]) == ids(model=one["fingerprint"]) == whole
        assert ids(model="another") == set()
        assert (ids(reviewed=True), ids(reviewed=False)) == ({one["id"]}, whole - {one["id"]})
        assert ids(since=min(each["created_at"] for each in everything)) == whole
        assert ids(since="2999-01-01T00:00:00+02:00") == set()
        assert ids(since="0001-01-01T00:00:00+02:00") == whole
        assert ids(patient=one["patient"], reviewed=False) == having("patient") - {one["id"]}


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0}, {"limit": 501}, {"limit": "all"}, {"reviewed": "perhaps"}, {"since": "yesterday"},
        {"patients": "x"}, {"study": "a\0b"}, {"cursor": "x" * 101}, {"patient": "x" * 17},
    ],
)  # fmt: skip
def test_a_wrong_query_is_refused_in_our_words(service: Process, query: dict[str, Any]) -> None:
    answer = httpx.get(f"{service.url}/v1/predictions", params=query)
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["code"] == "parameter-invalid"
    assert problem["errors"][0]["where"] == f"query.{next(iter(query))}"
    assert "Input should" not in answer.text


def test_an_entry_of_a_list_stays_small_however_many_reviews_there_are(settings: Settings) -> None:
    with run_thread(settings) as url:
        (one,) = send(url, draw(1)).json()["predictions"]
        with Store(settings.database) as store:
            store.add([Review(prediction_id=one["id"], agrees=True, comment="x" * 2000) for _ in range(2000)])
        answer = httpx.get(f"{url}/v1/predictions", params={"limit": 1})
        (listed,) = answer.json()["predictions"]
        assert len(answer.content) < 40_000  # with thirteen reviews at most
        assert listed["review_count"] == 2000
        numbers = [each["number"] for each in listed["reviews"]]
        pages = walk(url, f"/v1/predictions/{one['id']}/reviews", limit=500)
    found = [each["number"] for page in pages for each in page["reviews"]]
    assert numbers == sorted(numbers) == sorted(found[:3])
    assert found == sorted(set(found), reverse=True)
    assert len(found) == 2000


def test_a_review_has_an_address_and_is_found_there(service: Process) -> None:
    (one,) = send(service.url, draw(1)).json()["predictions"]
    where = f"{service.url}/v1/predictions/{one['id']}/reviews"
    stored = httpx.post(where, json={"agrees": True})
    assert stored.status_code == 201
    assert httpx.get(urljoin(where, stored.headers["location"])).json() == stored.json()
    other = send(service.url, draw(2)).json()["predictions"][0]["id"]
    number = stored.json()["number"]
    for path, code in (
        (f"{other}/reviews/{number}", "review-not-found"),
        (f"{one['id']}/reviews/99999999", "review-not-found"),
        ("nobody/reviews", "prediction-not-found"),
        (f"{one['id']}/reviews/0", "parameter-invalid"),
        (f"{one['id']}/reviews/{2**31}", "parameter-invalid"),
    ):
        assert httpx.get(f"{service.url}/v1/predictions/{path}").json()["code"] == code


def test_studies_keep_their_images_together(settings: Settings) -> None:
    with run_thread(settings) as url:
        for i in range(6):
            content = dicom(
                levels(24 + i), PatientID=f"p{i % 3}", StudyInstanceUID=f"1.2.{i % 3}", StudyDate="20240229"
            )
            httpx.post(f"{url}/v1/predictions", content=content, headers={"content-type": "application/dicom"})
        httpx.post(f"{url}/v1/predictions", files={"files": ("person7_bacteria_25.jpeg", draw(1))})
        httpx.post(f"{url}/v1/predictions", files={"files": ("unknown.png", draw(2))})
        pages = walk(url, "/v1/studies", limit=2)
        studies = [each for page in pages for each in page["studies"]]
        assert [len(page["studies"]) for page in pages] == [2, 2]
        assert [each["study_uid"] for each in studies] == [None, "1.2.2", "1.2.1", "1.2.0"]
        assert [each["predictions"] for each in studies] == [1, 2, 2, 2]
        assert all(len(each["patient"]) == 16 for each in studies)
        assert [each["date"] for each in studies] == [None, *["2024-02-29"] * 3]
        for each in studies:
            assert sum(each["decisions"].values()) == each["predictions"]
            listed = httpx.get(f"{url}/v1/{each['href']}").json()["predictions"]
            assert len(listed) == each["predictions"]
            assert {one["study_uid"] for one in listed} == {each["study_uid"]}


def test_a_deleted_prediction_is_gone_with_its_reviews_and_its_image(settings: Settings, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    with run_thread(replace(settings, keep_images=kept)) as url:
        one, other = (send(url, draw(1)).json()["predictions"][0] for _ in range(2))
        where = f"{url}/v1/predictions/{one['id']}"
        assert httpx.post(f"{where}/reviews", json={"agrees": True}).status_code == 201
        assert httpx.delete(where).status_code == 204
        assert httpx.get(f"{where}/reviews").status_code == httpx.get(where).status_code == 404
        assert len(list(kept.iterdir())) == 1  # the other prediction is of the same file
        assert httpx.delete(f"{url}/v1/predictions/{other['id']}").status_code == 204
        assert list(kept.iterdir()) == []
        again = httpx.delete(where)
        assert (again.status_code, again.json()["code"]) == (404, "prediction-not-found")
    with Store(settings.database) as store:
        assert store.list_reviews() == []


def test_answers_that_are_kept_to_be_given_again_go_with_their_prediction(settings: Settings) -> None:
    with run_thread(settings) as url:
        files, key = {"files": ("a.png", draw(1))}, {"idempotency-key": "k"}
        (one,) = httpx.post(f"{url}/v1/predictions", files=files, headers=key).json()["predictions"]
        job = httpx.post(f"{url}/v1/predictions", files=files, headers={"prefer": "respond-async"}).json()
        where = f"{url}/v1/{job['href']}"
        wait_until(lambda: httpx.get(where).json()["state"] == "done")
        other = httpx.get(where).json()["predictions"][0]
        for each in (one, other):
            reviews = f"{url}/v1/predictions/{each['id']}/reviews"
            assert httpx.post(reviews, json={"agrees": True, "comment": "secret"}, headers=key).status_code == 201
            assert httpx.delete(f"{url}/v1/predictions/{each['id']}").status_code == 204
        assert httpx.get(where).status_code == 404
        with Store(settings.database) as store, store.read() as connection:
            assert connection.execute(sql.text("SELECT content FROM answered_requests")).all() == []
        (new,) = httpx.post(f"{url}/v1/predictions", files=files, headers=key).json()["predictions"]
        assert new["id"] != one["id"]


def test_a_kept_image_is_shown_as_a_picture_or_given_as_it_is(settings: Settings, tmp_path: Path) -> None:
    content = dicom(levels())
    with run_thread(replace(settings, keep_images=tmp_path / "kept")) as url:
        (one,) = send(url, content, invert=True).json()["predictions"]
        where = f"{url}/v1/predictions/{one['id']}/image"
        picture = httpx.get(where)
        assert picture.headers["content-type"] == "image/png"
        image = Image.open(io.BytesIO(picture.content))
        assert image.size == (one["width"], one["height"])
        for original in (
            httpx.get(where, params={"original": True}),
            httpx.get(where, headers={"accept": "application/dicom"}),
        ):
            assert original.content == content
            assert original.headers["content-type"] == "application/dicom"
            assert original.headers["content-disposition"] == "attachment"
        (plain,) = send(url, draw(3)).json()["predictions"]
        drawn = Image.open(io.BytesIO(httpx.get(f"{url}/v1/predictions/{plain['id']}/image").content))
        assert (np.asarray(drawn) == np.rint(read_pixels(draw(3)) * 255)).all()
        for path in (tmp_path / "kept").iterdir():
            path.unlink()
        gone = httpx.get(where)
        assert (gone.status_code, gone.json()["code"]) == (404, "image-not-kept")


def test_evidence_is_computed_from_the_kept_image(settings: Settings, tmp_path: Path) -> None:
    with run_thread(replace(settings, keep_images=tmp_path / "kept")) as url:
        (one,) = send(url, draw(3), heatmap=True).json()["predictions"]
        answer = httpx.get(f"{url}/v1/predictions/{one['id']}/evidence.png")
        assert answer.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(answer.content)).mode in ("RGBA", "P")
        assert answer.headers["evidence-label"] == one["heatmap"]["label"]
        assert float(answer.headers["evidence-limit"]) == pytest.approx(one["heatmap"]["limit"], rel=1e-4)
        blank = io.BytesIO()
        Image.new("L", (128, 128), 255).save(blank, "PNG")
        (outside,) = send(url, blank.getvalue()).json()["predictions"]
        refused = httpx.get(f"{url}/v1/predictions/{outside['id']}/evidence.png")
        assert (refused.status_code, refused.json()["code"]) == (409, "no-evidence")
        assert len(httpx.get(f"{url}/v1/predictions").json()["predictions"]) == 2  # computing it stores nothing


def test_without_kept_images_there_is_neither_image_nor_evidence(service: Process) -> None:
    (one,) = send(service.url, draw(3)).json()["predictions"]
    for part in ("image", "image?original=true", "evidence.png"):
        answer = httpx.get(f"{service.url}/v1/predictions/{one['id']}/{part}")
        assert (answer.status_code, answer.json()["code"]) == (404, "image-not-kept")
        assert "--keep-images" in answer.json()["detail"]
        unknown = httpx.get(f"{service.url}/v1/predictions/nobody/{part}")
        assert (unknown.status_code, unknown.json()["code"]) == (404, "prediction-not-found")


def test_a_model_is_found_by_its_name_and_says_whom_it_is_meant_for(service: Process) -> None:
    (model,) = httpx.get(f"{service.url}/v1/models").json()
    assert "intended_population" in model
    for name in (model["name"], model["fingerprint"]):
        assert httpx.get(f"{service.url}/v1/models/{name}").json() == model
    answer = httpx.get(f"{service.url}/v1/models/another")
    assert (answer.status_code, answer.json()["code"]) == (404, "model-not-found")


def test_every_problem_is_of_a_kind_that_is_documented(service: Process) -> None:
    page = httpx.get(f"{service.url}/docs").text
    guide = (ROOT / "docs" / "guide" / "api.md").read_text(encoding="utf-8")
    for code in PROBLEMS:
        assert f'id="{code}"' in page
        assert f"| `{code}` |" in guide
    answer = httpx.get(f"{service.url}/v1/nothing").json()
    assert answer["type"] == f"/docs#{answer['code']}" == "/docs#not-found"
    assert answer["title"] == PROBLEMS["not-found"].title


def test_problems_of_files_have_no_words_of_other_libraries(service: Process, tmp_path: Path) -> None:
    png, jpeg, dcm = draw(1), io.BytesIO(), dicom(levels())
    Image.open(io.BytesIO(png)).save(jpeg, "JPEG")
    damaged = {
        "png": png[:300], "jpeg": jpeg.getvalue()[:200], "dicom": dcm[: len(dcm) // 2], "gif": b"GIF89a" + b"\1" * 30,
        "header": dcm[:140] + b"\xff" * 90, "png middle": png[:60] + b"\0" * 40 + png[100:],
        "tiff": b"II*\0" + b"\xff" * 60, "bmp": b"BM" + b"\1" * 12 + b"\x28\0\0\0" + b"\1" * 60,
        "webp": b"RIFF\x10\0\0\0WEBP" + b"\1" * 30,
    }  # fmt: skip
    for what, content in damaged.items():
        answer = httpx.post(f"{service.url}/v1/predictions", files={"files": ("a", content)})
        assert answer.status_code == 422, what
        problem = answer.json()
        assert problem["code"] in ("image-damaged", "image-unsupported", "image-too-large"), what
        if "damaged or truncated" in problem["detail"]:
            assert re.fullmatch(
                r"a: damaged or truncated( DICOM)?\. Copy it again from its source\.", problem["detail"]
            ), problem


def test_several_unreadable_files_have_a_code_each(service: Process) -> None:
    answer = send(service.url, b"no image", draw(1)[:300], dicom(levels(), Modality="CT"))
    assert answer.status_code == 422
    assert answer.json()["code"] == "files-unreadable"
    assert [each["code"] for each in answer.json()["files"]] == ["not-an-image", "image-damaged", "not-a-radiograph"]


@pytest.mark.parametrize(
    ("body", "where", "what"),
    [
        (b"{", "body", "is not valid JSON"),
        (b"{}", "body", ""),
        (b"[]", "body", "must be a JSON object"),
        (b'{"agrees": "perhaps"}', "body.agrees", "must be true or false"),
        (b'{"agrees": true, "opinion": 1}', "body.opinion", "is not known here"),
        (b'{"agrees": true, "comment": 3}', "body.comment", "must be a text"),
        (
            json.dumps({"agrees": True, "comment": "x" * 2001}).encode(),
            "body.comment",
            "is longer than 2000 characters",
        ),
        (b'{"agrees": true, "comment": "\\u0000"}', "body.comment", "has characters that are not allowed"),
    ],
)
def test_a_wrong_review_is_refused_in_our_words(service: Process, body: bytes, where: str, what: str) -> None:
    id_ = send(service.url, draw(1)).json()["predictions"][0]["id"]
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{service.url}/v1/predictions/{id_}/reviews", content=body, headers=headers)
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["where"].startswith(where)
    assert error["what"].startswith(what)


def test_the_openapi_document_names_token_operations_tags_and_request_ids(service: Process) -> None:
    document = httpx.get(f"{service.url}/openapi.json").json()
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    operations = {(path, method): one for path, methods in document["paths"].items() for method, one in methods.items()}
    names = [one["operationId"] for one in operations.values()]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z]+[A-Za-z]*", name) for name in names)
    tags = {tag["name"] for tag in document["tags"]}
    for (path, _), one in operations.items():
        assert set(one["tags"]) <= tags
        assert one["description"]
        assert ("security" in one) == (path not in ("/healthz", "/readyz"))
        assert {"$ref": "#/components/parameters/RequestId"} in one["parameters"]


def test_lists_keys_and_jobs_work_on_each_database(run: Run, url: str) -> None:
    with run_thread(Settings(model=run.model, database=url)) as where:
        key = {"idempotency-key": "k"}
        files = [
            ("files", (f"{i}.dcm", dicom(levels(24 + i), PatientID=f"p{i % 2}", StudyInstanceUID=f"1.2.{i % 3}")))
            for i in range(6)
        ]
        answers = [httpx.post(f"{where}/v1/predictions", files=files, headers=key, timeout=60) for _ in range(2)]
        assert answers[0].json() == answers[1].json()
        ids = [each["id"] for each in answers[0].json()["predictions"]]
        found = [each["id"] for page in walk(where, "/v1/predictions", limit=2) for each in page["predictions"]]
        assert sorted(found) == sorted(ids)  # files of a request are decoded side by side, and stored as they come
        studies = [each for page in walk(where, "/v1/studies", limit=2) for each in page["studies"]]
        assert sorted(each["study_uid"] for each in studies) == ["1.2.0", "1.2.1", "1.2.2"]
        reviews = f"{where}/v1/predictions/{ids[0]}/reviews"
        stored = [httpx.post(reviews, json={"agrees": True}, headers=key) for _ in range(2)]
        assert stored[0].json() == stored[1].json()
        assert httpx.post(reviews, json={"agrees": True, "comment": "x"}, headers=key).status_code == 422
        listed = walk(where, "/v1/predictions", reviewed=True)[0]["predictions"]
        assert [(each["id"], each["review_count"]) for each in listed] == [(ids[0], 1)]
        job = httpx.post(f"{where}/v1/predictions", files=files[:1], headers={"prefer": "respond-async"}).json()
        wait_until(lambda: httpx.get(f"{where}/v1/{job['href']}").json()["state"] == "done")
        assert httpx.delete(f"{where}/v1/predictions/{ids[0]}").status_code == 204
        assert send(where, draw(1), reuse=True).status_code == 201
        assert send(where, draw(1), reuse=True).status_code == 200
        assert httpx.get(f"{where}/v1/predictions/a%00b").status_code == 422


def test_an_upload_and_a_list_say_which_images_are_kept_and_look_for_them_beside_other_requests(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocking, has = [], KeptImages.has

    def look(*arguments: Any) -> bool:
        with suppress(RuntimeError):
            blocking.append(asyncio.get_running_loop())
        return has(*arguments)

    with run_thread(replace(settings, keep_images=tmp_path / "kept")) as url:
        files = {"f": ("a.png", draw(1))}
        (sent,) = httpx.post(f"{url}/v1/predictions", files=files, timeout=60).json()["predictions"]
        (unkept,) = httpx.post(
            f"{url}/v1/predictions", params={"store": False}, files={"f": ("b.png", draw(2))}, timeout=60
        ).json()["predictions"]
        monkeypatch.setattr(KeptImages, "has", look)
        (listed,) = httpx.get(f"{url}/v1/predictions").json()["predictions"]
        one = httpx.get(f"{url}/v1/predictions/{sent['id']}").json()
    assert [each["image_kept"] for each in (sent, unkept, listed, one)] == [True, False, True, True]
    assert blocking == []
