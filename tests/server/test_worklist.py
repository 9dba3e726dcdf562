"""The worklist in a real browser: it survives reloads, is read by keyboard alone, and shows only what is true."""

from __future__ import annotations

import csv
import io
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from dicom_files import dicom
from dicom_files import image as levels
from services import Process, draw, run_thread

if TYPE_CHECKING:
    from pneumoscope.server.settings import Settings

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
LETTER = {"name": "letter.pdf", "mimeType": "application/pdf", "buffer": b"%PDF-1.7 no image"}
ALL_READ = re.compile(r"^\d+ of \d+ predicted(, \d+ not readable)?\.")
CT = "1.2.840.10008.5.1.4.1.1.2"


def files_of(seeds: range) -> list[dict[str, Any]]:
    return [{"name": f"image-{seed:03}.png", "mimeType": "image/png", "buffer": draw(seed)} for seed in seeds]


def upload(page: Any, files: list[dict[str, Any]]) -> None:
    page.set_input_files("#files", files)
    playwright.expect(page.locator("#progress")).to_have_text(ALL_READ, timeout=60_000)


def current(page: Any) -> str:
    name: str = page.locator("#worklist tr[aria-current] button").inner_text()
    return name


def names_of(page: Any) -> list[str]:
    names: list[str] = page.locator("#worklist td.name button:visible").all_inner_texts()
    return names


def wait_until_kept(page: Any, images: int) -> None:
    """Until the browser has the records and pictures of so many images."""
    count = """async () => {
      const open = indexedDB.open("pneumoscope");
      const base = await new Promise((done) => { open.onsuccess = () => done(open.result); });
      const all = await new Promise((done) => {
        const found = base.transaction("blobs").objectStore("blobs").getAllKeys();
        found.onsuccess = () => done(found.result);
      });
      base.close();
      return new Set(all.filter(([, , part]) => part === "picture").map(([, key]) => key)).size;
    }"""
    end = time.monotonic() + 60
    while page.evaluate(count) < images:
        assert time.monotonic() < end, "not kept"
        page.wait_for_timeout(50)


def read_kept(page: Any) -> list[dict[str, Any]]:
    """All that the browser keeps of images, as text."""
    found: list[dict[str, Any]] = page.evaluate("""async () => {
      const open = indexedDB.open("pneumoscope");
      const base = await new Promise((done) => { open.onsuccess = () => done(open.result); });
      const texts = [];
      for (const table of ["images", "blobs"]) {
        const all = await new Promise((done) => {
          const found = base.transaction(table).objectStore(table).getAll();
          found.onsuccess = () => done(found.result);
        });
        for (const { data, ...rest } of all) {
          texts.push({ table, rest: JSON.stringify(rest), data: new TextDecoder("latin1").decode(data) });
        }
      }
      base.close();
      return texts;
    }""")
    return found


HOLD = """() => {
  window.held = [];
  Object.defineProperty(IDBTransaction.prototype, "oncomplete", {
    configurable: true,
    set(job) { this.addEventListener("complete", () => window.held ? window.held.push(job) : job()); },
  });
}"""
LET_GO = "() => { const jobs = window.held; window.held = null; jobs.forEach((job) => job()); }"


def test_the_worklist_survives_a_visit_to_another_page_and_a_reload(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    expect = playwright.expect
    upload(page, files_of(range(40)))
    page.get_by_role("button", name="Image", exact=True).click()
    page.locator("#search").fill("image-0")
    page.locator("#images").evaluate("box => { box.scrollTop = 200; }")
    page.get_by_role("button", name="image-012.png").click()
    page.get_by_role("textbox", name="Comment").fill("look again at the left base")
    page.get_by_label("I disagree").check()
    wait_until_kept(page, 40)
    decision = page.locator("#decision").inner_text()
    place = page.locator("#images").evaluate("box => box.scrollTop")
    page.get_by_role("link", name="Monitoring").click()
    expect(page.locator("#cards")).to_contain_text("Images")
    for leave in (page.go_back, page.reload):
        leave()
        expect(page.locator("#progress")).to_have_text("40 of 40 predicted.")
        expect(page.locator("#search")).to_have_value("image-0")
        expect(page.locator("#worklist th").first).to_have_attribute("aria-sort", "ascending")
        assert current(page) == "image-012.png"
        expect(page.locator("#decision")).to_have_text(decision)
        expect(page.get_by_role("textbox", name="Comment")).to_have_value("look again at the left base")
        expect(page.get_by_label("I disagree")).to_be_checked()
        expect(page.locator("#nothing")).to_be_hidden()
        expect(page.locator("#image")).to_have_attribute(
            "aria-label", re.compile("^Image image-012")
        )  # its picture is there again
        assert page.locator("#images").evaluate("box => box.scrollTop") == pytest.approx(place, abs=2)
    page.get_by_role("button", name="image-010.png").click()
    expect(page.locator("#image")).to_have_attribute("aria-label", re.compile("^Image image-010"))


def test_images_that_wait_are_sent_after_a_reload(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    playwright.expect(page.locator("#model")).to_contain_text("Model")
    page.route("**/v1/predictions*", lambda route: None)  # no answer comes
    page.set_input_files("#files", files_of(range(9)))
    playwright.expect(page.locator("#progress")).to_have_text("0 of 9 predicted")
    page.wait_for_timeout(500)
    page.unroute_all(behavior="ignoreErrors")
    page.reload()
    playwright.expect(page.locator("#progress")).to_have_text("9 of 9 predicted.", timeout=30_000)


def expect_pictures(page: Any, *names: str) -> None:
    for name in names:
        page.locator("#worklist").get_by_role("button", name=name).click()
        playwright.expect(page.locator("#screen .top-left")).to_contain_text(name)


def test_an_answer_that_comes_while_its_file_is_being_stored_is_stored_too(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    playwright.expect(page.locator("#model")).to_contain_text("Model")
    page.evaluate(HOLD)  # the disk is slow
    upload(page, files_of(range(77, 79)))
    page.evaluate(LET_GO)
    wait_until_kept(page, 2)
    page.wait_for_timeout(4_000)  # the picture of an image that is not shown leaves memory
    for again in (False, True):
        if again:
            page.reload()
        expect_pictures(page, "image-078.png", "image-077.png")


def test_images_added_after_clearing_are_stored_though_others_were_being_stored(
    service: Process, open_page: Any
) -> None:
    page = open_page(f"{service.url}/")
    playwright.expect(page.locator("#model")).to_contain_text("Model")
    page.evaluate(HOLD)
    upload(page, files_of(range(80, 82)))
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Clear the list").click()
    upload(page, files_of(range(82, 84)))
    page.evaluate(LET_GO)
    wait_until_kept(page, 2)
    page.wait_for_timeout(4_000)
    page.reload()
    playwright.expect(page.locator("#progress")).to_have_text("2 of 2 predicted.")
    expect_pictures(page, "image-083.png", "image-082.png")


def test_an_image_whose_review_is_being_saved_does_not_come_back_after_clearing(
    service: Process, open_page: Any
) -> None:
    page = open_page(f"{service.url}/")
    upload(page, files_of(range(2)))
    wait_until_kept(page, 2)
    waiting: list[Any] = []
    page.route("**/reviews", lambda route: waiting.append(route))
    page.get_by_label("I agree").check()
    page.get_by_role("button", name="Save review").click()
    page.wait_for_function("() => document.querySelector('#saved').textContent === '…'")
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Clear the list").click()
    playwright.expect(page.locator("#worklist [data-key]")).to_have_count(0)
    with page.expect_response("**/reviews"):
        waiting[0].continue_()
    page.wait_for_timeout(500)
    page.reload()
    playwright.expect(page.locator("#model")).to_contain_text("Model")
    page.wait_for_timeout(500)
    assert page.locator("#worklist [data-key]").count() == 0
    assert {each["table"] for each in read_kept(page)} <= {"sessions"}


def test_what_the_browser_keeps_cannot_be_read_without_the_tab_and_is_deleted_with_the_list(
    service: Process, open_page: Any
) -> None:
    page = open_page(f"{service.url}/")
    upload(page, files_of(range(3)))
    page.get_by_role("textbox", name="Comment").fill("Herr Mueller")
    wait_until_kept(page, 3)
    kept = read_kept(page)
    assert {each["table"] for each in kept} == {"images", "blobs"}
    for secret in ("image-00", "Mueller", "\x89PNG", "PNEUMONIA"):
        assert not [each for each in kept if secret in each["data"] or secret in each["rest"]]
    other = page.context.new_page()  # another tab has another list
    other.goto(f"{service.url}/")
    playwright.expect(other.locator("#model")).to_contain_text("Model")
    playwright.expect(other.locator("#progress")).to_have_text("")
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Clear the list").click()
    page.wait_for_timeout(500)
    assert read_kept(page) == []
    assert [key for key in page.evaluate("Object.keys(sessionStorage)") if key.startswith("draft")] == []
    page.reload()
    playwright.expect(page.locator("#model")).to_contain_text("Model")
    playwright.expect(page.locator("#progress")).to_have_text("")
    playwright.expect(page.locator("#kept")).to_contain_text("until you clear it or close the tab")


def test_an_image_that_was_reviewed_comes_back_as_reviewed(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    upload(page, files_of(range(200, 202)))
    page.get_by_role("button", name="image-200.png").click()
    page.get_by_label("I agree").check()
    page.get_by_label("Reviewer").fill("ab")
    page.get_by_role("textbox", name="Comment").fill("clear")
    page.get_by_role("button", name="Save review").click()
    playwright.expect(page.locator("#saved")).to_contain_text("Saved: agree")
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Clear the list").click()
    upload(page, files_of(range(200, 202)))
    page.locator("#filter").select_option("open")
    assert names_of(page) == ["image-201.png"]
    page.locator("#filter").select_option("")
    page.get_by_role("button", name="image-200.png").click()
    playwright.expect(page.locator("#earlier-review")).to_contain_text("Reviewed earlier by ab on")
    page.locator("#history summary").click()
    playwright.expect(page.locator("#history-list")).to_contain_text("clear")
    playwright.expect(page.get_by_label("I agree")).not_to_be_checked()


def test_the_next_image_follows_in_the_list_as_filtered_and_sorted(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    upload(page, files_of(range(210, 218)))
    page.get_by_role("button", name="Image", exact=True).click()
    page.locator("#filter").select_option("open")
    page.get_by_role("button", name="image-212.png").click()
    page.get_by_label("I agree").check()
    page.get_by_role("button", name="Save review").click()
    playwright.expect(page.locator("#worklist")).to_have_attribute("aria-rowcount", "8")  # it left the list
    page.locator("#list-title").evaluate("title => document.activeElement.blur()")
    page.keyboard.press("n")
    assert current(page) == "image-213.png"
    page.keyboard.press("p")
    assert current(page) == "image-211.png"


def test_sixty_images_are_read_by_keyboard_alone(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    upload(page, files_of(range(300, 360)))
    page.locator("#search").focus()
    stops = []
    for _ in range(4):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.closest('#worklist tbody') !== null"))
    assert sum(stops) == 1  # one stop for all rows
    page.keyboard.press("Shift+Tab")
    while not page.evaluate("document.activeElement.closest('#worklist tbody') !== null"):
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("Home")
    first = current(page)
    page.keyboard.press("ArrowDown")
    assert current(page) != first
    page.keyboard.press("Home")
    assert current(page) == first
    for _ in range(60):
        page.keyboard.press("d")
        page.keyboard.press("1")  # the class, where one is needed
        if not page.locator("#label-row").is_visible() and not page.get_by_label("I disagree").is_checked():
            page.keyboard.press("a")
        page.keyboard.press("s")
    playwright.expect(page.locator("#open-count")).to_have_text("None left to review")
    with service.client() as client:
        predictions = client.get("/v1/predictions?limit=60").json()["predictions"]
    assert all(len(each["reviews"]) == 1 for each in predictions)


def test_a_comment_is_typed_without_the_mouse_and_letters_can_be_turned_off(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    upload(page, files_of(range(2)))
    name = current(page)
    page.keyboard.press("e")
    page.keyboard.type("and nothing else")
    playwright.expect(page.get_by_role("textbox", name="Comment")).to_have_value("and nothing else")
    page.keyboard.press("Escape")
    page.keyboard.press("a")
    playwright.expect(page.get_by_label("I agree")).to_be_checked()
    page.keyboard.press("?")
    page.get_by_label("Use letters as keys").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("n")
    assert current(page) == name


PREDICTION: dict[str, Any] = {
    "id": None, "name": "", "sha256": "0" * 64, "model": "m", "fingerprint": "f", "decision": "NORMAL",
    "predicted_label": "NORMAL", "probability": 0.25, "probabilities": {}, "prediction_set": [], "ood_score": 0.5,
    "warnings": [], "width": 8, "height": 8, "format": "PNG", "heatmap": None, "picture": "", "reviews": [],
    "group": "adults",
}  # fmt: skip
ANSWER_AT_ONCE = """(prediction) => {
  const ask = window.fetch;
  const answer = () => new Response(JSON.stringify({ predictions: [prediction] }));
  window.fetch = async (path, options) => (path.startsWith("v1/predictions?") ? answer() : ask(path, options));
}"""  # within the page: 1500 answers by way of the test take a minute


def test_a_long_list_has_few_rows_and_says_how_many_it_has(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    playwright.expect(page.locator("#model")).to_contain_text("Model")
    page.evaluate(ANSWER_AT_ONCE, PREDICTION)
    page.set_input_files("#files", [dict(LETTER, name=f"image-{i:04}.png", buffer=b"x%d" % i) for i in range(1500)])
    playwright.expect(page.locator("#progress")).to_have_text("1500 of 1500 predicted.")
    table = page.locator("#worklist")
    playwright.expect(table).to_have_attribute("aria-rowcount", "1501")
    for place in (0, 10_000, 10**9):
        page.locator("#images").evaluate("(box, place) => { box.scrollTop = place; }", place)
        page.wait_for_timeout(100)
        assert 5 < page.locator("#worklist tbody tr").count() < 60
    assert len(names_of(page)) == page.locator("#worklist tbody tr").count()
    last = page.locator("#worklist tbody tr").last
    assert last.get_attribute("aria-rowindex") == "1501"
    playwright.expect(last).to_be_in_viewport()
    page.locator("#images").evaluate("box => { box.scrollTop = 0; }")
    page.keyboard.press("End")
    playwright.expect(page.locator("#worklist tr[aria-current]")).to_have_attribute("aria-rowindex", "1501")
    playwright.expect(page.locator("#worklist tr[aria-current]")).to_be_in_viewport()


def test_files_that_cannot_be_read_are_a_group_at_the_end(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/", quiet=False)
    upload(page, [LETTER, *files_of(range(3)), {**LETTER, "name": "a.pdf"}])
    for heading in ("Image", "Image", "Probability", "Decision"):
        page.get_by_role("button", name=heading, exact=True).click()
        assert names_of(page)[3:] == ["a.pdf", "letter.pdf"]
        assert page.locator("#worklist tr.heading td").first.get_attribute("data-heading") == "Not readable (2)"


def test_another_modality_is_explained_and_read_on_request(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/", quiet=False)
    slices = [
        {"name": f"{i}.dcm", "mimeType": "application/dicom",
         "buffer": dicom(levels(64, 64 + i), Modality="CT", SOPClassUID=CT)} for i in range(3)
    ]  # fmt: skip
    upload(page, slices)
    page.get_by_role("button", name="1.dcm").click()
    playwright.expect(page.locator("#no-prediction")).to_contain_text("not a projection radiograph")
    assert not re.search(r"any_modality|=true|`|Pass", page.locator("body").inner_text())
    page.get_by_role("button", name="Read it all the same").click()
    playwright.expect(page.locator("#progress")).to_have_text("1 of 3 predicted, 2 not readable.")
    playwright.expect(page.locator("#facts")).to_contain_text("1.dcm")
    page.get_by_role("button", name="0.dcm").click()
    page.get_by_role("button", name="Read all 2 such files").click()
    playwright.expect(page.locator("#progress")).to_have_text("3 of 3 predicted.")


@pytest.mark.parametrize("size", [(1366, 768), (1400, 900)])
def test_a_review_is_saved_without_scrolling_on_a_laptop(
    service: Process, open_page: Any, size: tuple[int, int]
) -> None:
    page = open_page(f"{service.url}/")
    page.set_viewport_size({"width": size[0], "height": size[1]})
    lateral = dicom(levels(256, 256), PatientAge="045Y", ViewPosition="LL")
    upload(page, [{"name": "lateral.dcm", "mimeType": "application/dicom", "buffer": lateral}, *files_of(range(30))])
    page.locator("#filter").select_option("warned")
    page.get_by_role("button", name="lateral.dcm").click()
    playwright.expect(page.locator("#warnings")).to_contain_text("view LL")  # in plain sight
    playwright.expect(page.locator("#warnings")).to_be_in_viewport(ratio=1)
    for words in ("Save review", "Save, next"):
        playwright.expect(page.get_by_role("button", name=words)).to_be_in_viewport(ratio=1)
    assert page.locator("html").evaluate("page => page.scrollTop") == 0
    warned = page.get_by_role("row").filter(has_text="lateral.dcm").get_by_role("img")
    assert "view LL" in warned.get_attribute("aria-label")


def test_earlier_predictions_are_shown_in_full(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    upload(page, files_of(range(3)))
    page.get_by_text("Earlier predictions").click()
    box = page.locator("#earlier-list")
    playwright.expect(box.locator("li").first).to_be_visible()
    assert box.evaluate("box => box.scrollWidth <= box.clientWidth")


def test_an_earlier_prediction_gets_its_picture_from_the_same_file_only(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    upload(page, files_of(range(400, 402)))
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Clear the list").click()
    page.get_by_text("Earlier predictions").click()
    page.locator("#earlier button").filter(has_text="image-400").first.click()
    playwright.expect(page.locator("#absent")).to_contain_text("is not kept")
    with service.client() as client:
        before = client.get("/v1/predictions?limit=1").json()["predictions"][0]["id"]
    other, same = files_of(range(401, 402)), files_of(range(400, 401))
    page.set_input_files("#again", other)
    playwright.expect(page.locator("#again-why")).to_contain_text("another file")
    page.set_input_files("#again", [{**same[0], "name": "renamed.png"}])
    playwright.expect(page.locator("#absent")).to_be_hidden()
    playwright.expect(page.locator("#image")).to_have_attribute("aria-label", re.compile("^Image image-400"))
    with service.client() as client:
        assert client.get("/v1/predictions?limit=1").json()["predictions"][0]["id"] == before  # none was stored


def test_simulated_images_are_not_stored(settings: Settings, open_page: Any) -> None:
    with run_thread(settings) as url:
        page = open_page(f"{url}/")
        page.get_by_role("button", name="Try simulated images").click()
        playwright.expect(page.locator("#progress")).to_contain_text("6 of 6 predicted.", timeout=60_000)
        playwright.expect(page.locator("#not-stored")).to_be_visible()
        playwright.expect(page.locator("#review")).to_be_hidden()
        page.get_by_text("Earlier predictions").click()
        playwright.expect(page.locator("#no-earlier")).to_be_visible()
        page.get_by_role("link", name="Monitoring").click()
        playwright.expect(page.locator("#state")).to_contain_text("0 predictions")


def test_the_export_says_who_reviewed_and_when_and_opens_in_a_spreadsheet(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    study = dicom(levels(256, 256), PatientID="4711", PatientAge="005Y", PatientSex="F", AccessionNumber="A1")
    upload(page, [{"name": "é.dcm", "mimeType": "application/dicom", "buffer": study}])
    page.get_by_label("I agree").check()
    page.get_by_label("Reviewer").fill("Zoë")
    page.get_by_role("button", name="Save review").click()
    playwright.expect(page.locator("#saved")).to_contain_text("Saved")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export CSV").click()
    content = Path(download.value.path()).read_bytes()
    assert content.startswith(b"\xef\xbb\xbf")
    (row,) = csv.DictReader(io.StringIO(content.decode("utf-8-sig")))
    assert (row["reviewer"], row["agrees"], row["path"], row["sex"]) == ("Zoë", "true", "é.dcm", "F")
    assert row["accession_number"] == "A1"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", row["reviewed_at"])
    assert row["model"]
    assert row["fingerprint"]
    assert row["patient"] not in ("", "4711")


def test_a_dismissed_sign_in_can_be_got_back_and_the_token_changed(settings: Settings, open_page: Any) -> None:
    with run_thread(replace(settings, token="4f9a1c7be2d0835664b1")) as url:
        page = open_page(f"{url}/", quiet=False)
        page.locator("#token").press("Escape")
        playwright.expect(page.locator("#token")).to_have_count(0)
        page.get_by_role("button", name="Sign in").click()
        page.locator("#token").fill("4f9a1c7be2d0835664b1")
        page.get_by_role("button", name="Continue").click()
        playwright.expect(page.locator("#model")).to_contain_text("Model")
        upload(page, files_of(range(1)))
        page.get_by_role("button", name="Change token").click()
        page.get_by_role("button", name="Sign out").click()
        playwright.expect(page.locator("#ask")).to_be_visible()
        assert page.evaluate("sessionStorage.getItem('token')") is None
        playwright.expect(page.locator("#progress")).to_have_text("")  # the list is forgotten, too


def test_reviewers_cannot_tell_comment_and_take_a_review_back(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    expect = playwright.expect
    upload(page, files_of(range(220, 222)))
    page.get_by_role("button", name="image-220.png").click()
    page.get_by_label("Reviewer").fill("ab")
    page.get_by_role("textbox", name="Comment").fill("rotated")
    page.get_by_role("button", name="Save review").click()
    expect(page.locator("#saved")).to_have_text("Saved: comment only.")
    expect(page.locator("#open-count")).to_contain_text("2 not reviewed")
    page.locator("#image").focus()
    page.keyboard.press("c")
    page.get_by_role("button", name="Save review").click()
    expect(page.locator("#saved")).to_have_text("Saved: cannot tell.")
    expect(page.get_by_label("cannot tell", exact=True)).to_be_visible()  # its mark in the list
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#saved")).to_have_text("Withdrawn.")
    expect(page.locator("[name=answer][value=cannot_tell]")).not_to_be_checked()
    expect(page.locator("#open-count")).to_contain_text("2 not reviewed")
    page.get_by_label("Reviewer").fill("cd")
    page.get_by_label("I agree").check()
    page.get_by_role("button", name="Save review").click()
    expect(page.locator("#saved")).to_contain_text("Saved: agree")
    page.locator("#history summary").click()
    history = page.locator("#history-list li")
    expect(history).to_have_count(4)
    for entry, words in zip(
        history.all_inner_texts(), ("agree", "withdrawn", "cannot tell", "comment only"), strict=True
    ):
        assert entry.startswith(words)
        assert re.search(r"by (ab|cd)\b.*, .*\d{4}", entry)


def test_a_review_without_an_answer_or_a_comment_is_not_sent(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    upload(page, files_of(range(230, 231)))
    page.get_by_role("button", name="Save review").click()
    assert page.locator("[name=answer]").first.evaluate("field => field.validationMessage")
    playwright.expect(page.locator("#saved")).to_have_text("")


@pytest.mark.parametrize("role", ["review", "read"])
def test_the_name_of_a_review_comes_from_the_login(settings: Settings, open_page: Any, role: str) -> None:
    me = {"name": "jane", "named": True, "role": role, "may": ["read", "review"] if role == "review" else ["read"]}
    with run_thread(replace(settings, token="4f9a1c7be2d0835664b1")) as url:
        page = open_page(f"{url}/", quiet=False)
        page.route("**/v1/me", lambda route: route.fulfill(json=me))
        page.locator("#token").fill("4f9a1c7be2d0835664b1")
        page.get_by_role("button", name="Continue").click()
        playwright.expect(page.locator("#model")).to_contain_text("Model")
        upload(page, files_of(range(1)))
        if role == "read":
            playwright.expect(page.locator("#may-not")).to_be_visible()
            playwright.expect(page.locator("#review")).to_be_hidden()
            return
        playwright.expect(page.get_by_label("Reviewer")).to_have_value("jane")
        playwright.expect(page.get_by_label("Reviewer")).not_to_be_editable()
        page.get_by_label("I agree").check()
        page.get_by_role("button", name="Save review").click()
        page.locator("#history summary").click()
        playwright.expect(page.locator("#history-list")).to_contain_text("by jane")


def test_an_earlier_prediction_shows_its_image_where_the_service_keeps_images(
    settings: Settings, open_page: Any, tmp_path: Path
) -> None:
    with run_thread(replace(settings, keep_images=tmp_path / "kept")) as url:
        page = open_page(f"{url}/")
        upload(page, files_of(range(2)))
        page.get_by_role("button", name="Clear").click()
        page.get_by_role("button", name="Clear the list").click()
        page.get_by_text("Earlier predictions").click()
        page.locator("#earlier button").filter(has_text="image-000").click()
        playwright.expect(page.locator("#caption")).to_contain_text("zoom")
        playwright.expect(page.locator("#nothing")).to_be_hidden()
        playwright.expect(page.locator("#absent")).to_be_hidden()


def answer_normal(route: Any) -> None:
    answer = route.fetch()
    body = answer.json()
    body["predictions"][0].update(decision="NORMAL", predicted_label="NORMAL")
    route.fulfill(response=answer, json=body)


def test_decisions_keep_their_colours_after_a_reload(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    playwright.expect(page.locator("#model")).to_contain_text("Model")
    page.route("**/v1/predictions?heatmap*", answer_normal)
    upload(page, files_of(range(500, 503)))
    wait_until_kept(page, 3)
    read = "cells => cells.map(cell => `${cell.closest('tr').querySelector('button').textContent} ${cell.className}`)"
    before = page.locator("#worklist tbody .chip").evaluate_all(read)
    assert any("negative" in each for each in before)
    held: list[Any] = []
    page.route("**/v1/models", lambda route: held.append(route))
    page.reload()
    playwright.expect(page.locator("#worklist tbody .chip")).to_have_count(3)  # drawn before the model is known
    held[0].continue_()
    playwright.expect(page.locator("#model")).to_contain_text("Model")
    playwright.expect(page.locator("#worklist tbody .chip")).to_have_count(3)
    page.wait_for_timeout(300)
    assert page.locator("#worklist tbody .chip").evaluate_all(read) == before


def test_saving_and_going_on_without_an_answer_says_what_is_missing_and_stays(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    upload(page, files_of(range(520, 523)))
    page.locator("#worklist td.name button").first.click()
    name = current(page)
    answer = page.locator("[name=answer]").first
    for by_key in (True, False):
        if by_key:
            page.keyboard.press("s")
        else:
            page.get_by_role("button", name="Save, next").click()
        assert "Choose an answer" in answer.evaluate("field => field.validationMessage")
        assert current(page) == name
    page.keyboard.press("a")
    page.keyboard.press("s")
    assert current(page) != name
    page.get_by_role("button", name=name).click()  # it is reviewed: nothing is missing
    playwright.expect(page.locator("#saved")).to_contain_text("Saved: agree")
    page.keyboard.press("s")
    assert current(page) != name


def test_the_text_on_keys_says_when_figures_choose_a_class(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    upload(page, files_of(range(530, 531)))
    page.keyboard.press("?")
    playwright.expect(page.locator("#help")).to_contain_text("Choose the class, where “I see” asks for it")
    page.keyboard.press("Escape")
    zoom = page.locator("#caption").inner_text()
    page.keyboard.press("1")
    playwright.expect(page.locator("#caption")).not_to_have_text(zoom)  # else they are the image's keys


def test_the_next_image_comes_into_view_on_a_phone(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    page.set_viewport_size({"width": 390, "height": 844})
    upload(page, files_of(range(540, 543)))
    page.locator("#worklist td.name button").first.click()
    name = current(page)
    page.locator("[name=answer][value=cannot_tell]").check()
    page.get_by_role("button", name="Save, next").click()
    assert current(page) != name
    playwright.expect(page.locator("#image")).to_be_in_viewport(ratio=0.9)


def test_reading_starts_at_the_top_and_goes_on_with_what_was_passed_over(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    upload(page, files_of(range(550, 554)))
    names = names_of(page)
    assert current(page) == names[0]
    page.get_by_role("button", name=names[2]).focus()
    page.get_by_role("button", name=names[2]).click()
    for _ in range(2):  # the last two
        page.keyboard.press("c")
        page.keyboard.press("s")
    assert current(page) == names[0]
    playwright.expect(page.locator("#moved")).to_contain_text(f"back to {names[0]}")
    assert page.evaluate("document.activeElement.closest('#worklist tbody') !== null")
    page.keyboard.press("n")
    playwright.expect(page.locator("#moved")).to_have_text("")
    assert current(page) == names[1]


def test_an_image_that_the_reader_has_begun_with_stays(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    upload(page, files_of(range(560, 563)))
    page.get_by_role("button", name="Image", exact=True).click()
    page.get_by_role("button", name="image-561.png").click()
    upload(page, files_of(range(563, 566)))
    assert current(page) == "image-561.png"


def test_the_list_is_cleared_after_a_question_only_while_something_is_left_to_do(
    service: Process, open_page: Any
) -> None:
    page = open_page(f"{service.url}/")
    upload(page, files_of(range(570, 572)))
    page.get_by_role("button", name="Clear").click()
    playwright.expect(page.get_by_role("dialog")).to_contain_text("2 images are not reviewed.")
    page.get_by_role("button", name="Cancel").click()
    assert len(names_of(page)) == 2
    for _ in range(2):
        page.keyboard.press("c")
        page.keyboard.press("s")
    playwright.expect(page.locator("#open-count")).to_have_text("None left to review")
    page.get_by_role("button", name="Clear").click()
    playwright.expect(page.locator("#worklist [data-key]")).to_have_count(0)


def test_undo_right_after_going_on_withdraws_the_review_just_saved(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    upload(page, files_of(range(580, 583)))
    name = current(page)
    page.keyboard.press("c")
    page.keyboard.press("s")
    assert current(page) != name
    page.keyboard.press("u")
    playwright.expect(page.locator("#saved")).to_have_text("Withdrawn.")
    assert current(page) == name
    playwright.expect(page.locator("#open-count")).to_contain_text("3 not reviewed")


def test_a_long_name_keeps_its_start_and_its_end(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    name = "a-very-long-name-that-no-list-has-room-for-and-more-says-12.png"
    upload(page, [{**files_of(range(590, 591))[0], "name": name}])
    button = page.get_by_role("button", name=name)
    assert button.inner_text() == name
    playwright.expect(page.locator("#worklist tbody tr")).to_have_attribute("title", name)
    start, end = (button.locator("bdi").nth(place) for place in range(2))
    assert start.evaluate("part => part.scrollWidth > part.clientWidth")
    assert end.inner_text() == name[-14:]
    box, edge = end.bounding_box(), button.bounding_box()
    assert box["x"] + box["width"] <= edge["x"] + edge["width"]
    assert box["y"] == pytest.approx(start.bounding_box()["y"], abs=1)  # on one line


def test_a_warning_names_what_the_page_offers(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    playwright.expect(page.locator("#model")).to_contain_text("Model")

    def warn(route: Any) -> None:
        answer = route.fetch()
        body = answer.json()
        body["predictions"][0].update(
            warnings=["probably inverted (air is bright); if so, read it with `invert=True`"], decision="uncertain"
        )
        route.fulfill(response=answer, json=body)

    page.route("**/v1/predictions?heatmap*", warn)
    upload(page, files_of(range(600, 601)))
    playwright.expect(page.locator("#warnings")).to_contain_text("option “Inverted images (air is white)”")
    assert "invert=" not in page.content()
    playwright.expect(page.locator("#review")).to_contain_text("I agree: uncertain")


def test_the_decision_says_beside_it_which_rule_gave_it(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    upload(page, files_of(range(12)))
    with service.client() as client:
        listed = {each["name"]: each for each in client.get("/v1/predictions?limit=12").json()["predictions"]}
    for prediction in {each["decision"]: each for each in listed.values()}.values():
        page.get_by_role("button", name=prediction["name"]).click()
        playwright.expect(page.locator("#explanation")).to_have_text(prediction["explanation"])
        boxes = [page.locator(place).bounding_box() for place in ("#decision", "#explanation", "#review")]
        assert boxes[0]["y"] < boxes[1]["y"] < boxes[2]["y"]
        assert boxes[1]["y"] - boxes[0]["y"] < 60


def make_uncertain(route: Any) -> None:
    answer = route.fetch()
    body = answer.json()
    body["predictions"][0].update(decision="uncertain", prediction_set=["NORMAL", "PNEUMONIA"])
    route.fulfill(response=answer, json=body)


def test_nothing_moves_under_the_pointer_while_an_image_is_reviewed(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    playwright.expect(page.locator("#model")).to_contain_text("Model")
    page.route("**/v1/predictions?heatmap*", make_uncertain)
    upload(page, files_of(range(620, 622)))

    def places() -> list[tuple[float, float]]:
        fields = "#review button:not(#undo), #review label, #review textarea, #review input"
        boxes = [each.bounding_box() for each in page.locator(fields).all()]
        return [(box["x"], box["y"]) for box in boxes if box]

    before = places()
    details = page.locator(".details").bounding_box()["y"]
    for words in ("I disagree", "Cannot tell", "I agree"):
        page.locator("#review").get_by_label(words).check()
        assert places() == before
    page.get_by_label("I see").select_option("NORMAL")
    page.get_by_role("button", name="Save review").click()
    playwright.expect(page.locator("#saved")).to_contain_text("Saved: agree, NORMAL")
    assert places() == before
    assert page.locator(".details").bounding_box()["y"] == details


def test_the_class_that_an_answer_implies_is_shown_and_not_asked_for(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    playwright.expect(page.locator("#model")).to_contain_text("Model")
    page.route("**/v1/predictions?heatmap*", answer_normal)
    upload(page, files_of(range(625, 626)))
    field = page.get_by_label("I see")
    playwright.expect(field).to_be_disabled()
    for answer, label in (("I agree", "NORMAL"), ("I disagree", "PNEUMONIA"), ("Cannot tell", "")):
        page.locator("#review").get_by_label(answer).check()
        playwright.expect(field).to_have_value(label)
        playwright.expect(field).to_be_disabled()


def test_what_is_typed_while_a_review_is_being_saved_is_kept(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    upload(page, files_of(range(630, 632)))
    comment = page.get_by_role("textbox", name="Comment")
    waiting: list[Any] = []
    page.route("**/reviews", lambda route: waiting.append(route))
    name = current(page)
    page.get_by_label("I agree").check()
    page.get_by_role("button", name="Save review").click()
    page.wait_for_function("() => document.querySelector('#saved').textContent === '…'")
    comment.fill("and a nodule")
    waiting.pop().continue_()
    playwright.expect(page.locator("#saved")).to_contain_text("Saved: agree. What you have typed since is not saved.")
    playwright.expect(comment).to_have_value("and a nodule")
    page.get_by_role("button", name="Save review").click()  # also if the reader goes on meanwhile
    page.wait_for_function("() => document.querySelector('#saved').textContent === '…'")
    comment.fill("and two nodules")
    page.get_by_role("button", name=next(each for each in names_of(page) if each != name)).click()
    playwright.expect(comment).to_have_value("")
    with page.expect_response("**/reviews"):
        waiting.pop().continue_()
    page.get_by_role("button", name=name).click()
    playwright.expect(comment).to_have_value("and two nodules")
    playwright.expect(page.get_by_label("I agree")).to_be_checked()


def test_predicted_and_reviewed_images_are_counted_as_what_they_are(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    upload(page, files_of(range(640, 644)))
    counts = page.locator("#open-count")
    playwright.expect(page.locator("#progress")).to_have_text("4 of 4 predicted.")
    playwright.expect(counts).to_have_text("0 reviewed, 4 not reviewed")
    page.keyboard.press("c")
    page.keyboard.press("s")
    playwright.expect(counts).to_have_text("1 reviewed, 3 not reviewed")
    page.locator("#examples").evaluate("button => button.click()")
    playwright.expect(page.locator("#progress")).to_contain_text("10 of 10 predicted.", timeout=60_000)
    playwright.expect(counts).to_have_text("1 reviewed, 3 not reviewed")  # the simulated cannot be


def help_of(page: Any) -> Any:
    return page.get_by_role("dialog", name="Help")


def test_one_help_lists_the_keys_of_the_mode_and_opens_by_key_and_button(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    expect = playwright.expect
    upload(page, files_of(range(650, 651)))
    page.keyboard.press("?")
    expect(help_of(page)).to_be_visible()
    expect(help_of(page)).to_contain_text("Agree")
    expect(help_of(page)).to_contain_text("Window and level")
    page.keyboard.press("c")  # what lies behind is out of reach
    expect(page.locator("[name=answer][value=cannot_tell]")).not_to_be_checked()
    page.keyboard.press("Escape")
    expect(help_of(page)).to_be_hidden()
    button = page.get_by_role("button", name="Help")
    expect(button).to_be_in_viewport(ratio=1)
    button.click()
    expect(help_of(page)).to_be_visible()
    help_of(page).get_by_role("button").click()
    expect(help_of(page)).to_be_hidden()
    page.locator("#search").press("?")
    expect(help_of(page)).to_be_hidden()
    expect(page.locator("#search")).to_have_value("?")
    page.locator("#search").fill("")
    for mode in ("Blind", "Teaching"):
        page.get_by_role("button", name=mode, exact=True).click()
        page.keyboard.press("?")
        expect(help_of(page)).to_contain_text(f"Keys in the mode {mode}")
        expect(help_of(page)).to_contain_text("Commit" if mode == "Blind" else "Next case")
        expect(help_of(page)).not_to_contain_text("Agree")
        page.keyboard.press("Escape")


def test_terms_are_explained_to_the_mouse_and_to_the_keyboard(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    expect = playwright.expect
    upload(page, files_of(range(660, 672)))
    page.locator("#worklist tbody .chip:not(.outside)").first.click()
    tip = page.get_by_role("tooltip")
    for term, words in (
        ("OOD score", "how far an image is from the training images"),
        ("Prediction set", "The classes that an image may belong to"),
        ("logits", "0 means undecided"),
        ("Threshold", "lowest probability"),
    ):
        button = page.locator(".result").get_by_role("button", name=term)
        expect(button).to_have_accessible_description(re.compile(words))
        button.hover()
        expect(tip).to_contain_text(words)
        page.mouse.move(5, 5)
        expect(tip).to_be_hidden()
        button.focus()
        expect(tip).to_contain_text(words)
        page.keyboard.press("Escape")
        expect(tip).to_be_hidden()
        box = button.bounding_box()
        assert box["x"] + box["width"] <= 1400
    page.get_by_role("button", name="Teaching", exact=True).click()
    button = page.locator("#teaching").get_by_role("button", name="95% intervals")
    expect(button).to_have_accessible_description(re.compile("Wilson"))
    page.goto(f"{service.url}/monitoring")
    button = page.get_by_role("button", name="95% intervals (Wilson)")
    button.focus()
    expect(tip).to_contain_text("95% confidence interval of a share")


def test_a_finger_opens_and_closes_the_explanation_of_a_term(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/", has_touch=True, is_mobile=True)
    page.set_viewport_size({"width": 390, "height": 844})
    upload(page, files_of(range(670, 671)))
    term, tip = page.get_by_role("button", name="OOD score"), page.get_by_role("tooltip")
    term.tap()
    playwright.expect(tip).to_contain_text("how far an image is from the training images")
    box = tip.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    page.locator("#facts dd").first.tap()
    playwright.expect(tip).to_be_hidden()
