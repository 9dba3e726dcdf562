"""The modes of reading in a real browser: blind reading and teaching, by keyboard alone and by mouse alone."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from dicom_files import dicom
from dicom_files import image as levels
from services import Process, draw, run_thread, wait_until

from pneumoscope.server.access.tokens import TokenFile
from pneumoscope.server.readings.teaching import TeachingCases
from pneumoscope.server.storage.store import Store

if TYPE_CHECKING:
    from pneumoscope.server.settings import Settings

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
READY = re.compile(r"^\d+ of \d+ ready\.")


def files_of(seeds: range) -> list[dict[str, Any]]:
    return [{"name": f"image-{seed:03}.png", "mimeType": "image/png", "buffer": draw(seed)} for seed in seeds]


def choose_mode(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()
    playwright.expect(page.get_by_role("button", name=name, exact=True)).to_have_attribute("aria-pressed", "true")


def upload(page: Any, seeds: range) -> None:
    page.set_input_files("#files", files_of(seeds))
    playwright.expect(page.locator("#progress")).to_have_text(READY, timeout=60_000)
    playwright.expect(page.locator("#reading")).to_be_visible()


def readings_of(url: str, **headers: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(f"{url}/v1/readings", headers=headers).json()["readings"]
    return found


def await_readings(url: str, count: int) -> list[dict[str, Any]]:
    """All readings, once there are so many: the page saves the last one while the next image is shown."""
    wait_until(lambda: len(readings_of(url)) >= count)
    return readings_of(url)


def current(page: Any) -> str:
    name: str = page.locator("#worklist tr[aria-current] button").inner_text()
    return name


def has_no_answer(page: Any) -> None:
    """Neither the page nor what the browser got for it says what the model has decided."""
    expect = playwright.expect
    for place in ("#decision", "#probability", "#explanation", "#review", "#evidence", "#history", "#compared"):
        expect(page.locator(place)).to_be_hidden()
    expect(page.locator("#worklist tbody .chip")).to_have_count(0)
    assert set(page.locator("#worklist td.number").all_inner_texts()) == {"–"}
    assert page.locator("#announced").inner_text().endswith("not read yet")


def test_images_are_read_blind_by_keyboard_alone(settings: Settings, open_page: Any) -> None:
    with run_thread(settings) as url:
        page = open_page(f"{url}/")
        expect = playwright.expect
        answers: list[dict[str, Any]] = []
        page.on(
            "response",
            lambda got: answers.extend(got.json()["predictions"]) if got.url.count("/v1/predictions?") else None,
        )
        page.get_by_role("button", name="Blind", exact=True).focus()
        page.keyboard.press("Enter")
        upload(page, range(200, 203))
        has_no_answer(page)
        page.keyboard.press("h")
        expect(page.locator("#caption")).not_to_contain_text("evidence")
        first = current(page)
        for key in ("2", "k"):
            page.keyboard.press(key)
        page.keyboard.press("Enter")
        expect(page.locator("#decision")).to_be_visible()
        expect(page.locator("#compared")).to_contain_text("PNEUMONIA (high)")
        assert [(each["label"], each["confidence"], each["with_ai"]) for each in readings_of(url)] == [
            ("PNEUMONIA", 75, False)
        ]
        assert readings_of(url)[0]["seconds"] > 0
        assert [each["decision"] for each in answers if each["withheld"]] == [None] * 3
        page.keyboard.press("1")
        expect(page.locator("#commit")).to_have_text(re.compile("^Change"))
        page.keyboard.press("Enter")
        expect(page.locator("#compared")).to_contain_text("Changed.")
        expect(page.locator("#reading")).to_be_hidden()
        page.keyboard.press("s")
        assert current(page) != first
        expect(page.locator("#decision")).to_be_hidden()
        page.keyboard.press("c")
        page.keyboard.press("Enter")
        expect(page.locator("#compared")).to_contain_text("cannot tell")
        page.keyboard.press("s")  # keeps the reading, and goes to the next
        expect(page.locator("#open-count")).to_contain_text("1 not read")
        expect(page.locator("#decision")).to_be_hidden()
        expect(page.locator("#reading input:checked")).to_have_count(0)
        assert [(each["label"], each["with_ai"]) for each in reversed(await_readings(url, 4))] == [
            ("PNEUMONIA", False), ("NORMAL", True), (None, False), (None, True),
        ]  # fmt: skip


def test_images_are_read_blind_by_mouse_alone_and_the_evidence_comes_with_the_answer(
    settings: Settings, open_page: Any
) -> None:
    with run_thread(settings) as url:
        page = open_page(f"{url}/")
        expect = playwright.expect
        choose_mode(page, "Blind")
        upload(page, range(210, 216))
        for number in range(6):
            page.locator("#worklist td.name button").nth(number).click()
            expect(page.locator("#decision")).to_be_hidden()
            page.locator("#seen label").nth(number % 2).click()
            page.locator("#sure label").nth(4).click()
            page.locator("#commit").click()
            expect(page.locator("#decision")).to_be_visible()
            page.locator("#reading-next").click()
        expect(page.locator("#open-count")).to_have_text("None left to read")
        assert len(await_readings(url, 12)) == 12
        page.locator(
            "#worklist tbody tr", has=page.locator(".chip.positive, .chip.negative, .chip.uncertain")
        ).first.click()
        page.locator("#heat").click()
        expect(page.locator("#caption")).to_contain_text("evidence shown")


def test_unread_images_stay_unread_after_a_reload_and_in_every_list(settings: Settings, open_page: Any) -> None:
    with run_thread(settings) as url:
        page = open_page(f"{url}/")
        expect = playwright.expect
        choose_mode(page, "Blind")
        upload(page, range(220, 224))
        prediction = httpx.get(f"{url}/v1/predictions").json()["predictions"][0]
        httpx.post(
            f"{url}/v1/predictions/{prediction['id']}/reviews", json={"answer": "cannot_tell", "reviewer": "bob"}
        )
        page.keyboard.press("2")
        page.get_by_role("textbox", name="Comment").locator("visible=true").fill("left base?")
        page.wait_for_timeout(500)
        page.reload()
        expect(page.locator("#progress")).to_have_text("4 of 4 ready.")
        expect(page.get_by_role("button", name="Blind", exact=True)).to_have_attribute("aria-pressed", "true")
        expect(page.locator("#reading")).to_be_visible()
        has_no_answer(page)
        order = page.locator("#worklist td.name button").all_inner_texts()
        page.locator("[data-sort=probability]").click()
        assert page.locator("#worklist td.name button").all_inner_texts() == order
        page.locator("#filter").select_option("positive")
        expect(page.locator("#no-match")).to_be_visible()
        page.locator("#filter").select_option("open")
        assert page.locator("#worklist td.name button:visible").count() == 4
        page.locator("#earlier summary").click()
        expect(page.locator("#earlier-list li")).to_have_count(4)
        expect(page.locator("#earlier-list .chip")).to_have_count(0)
        assert "reviewed" not in page.locator("#earlier-list").inner_text()
        with page.expect_download() as download:
            page.locator("#export").click()
        text = Path(download.value.path()).read_text(encoding="utf-8-sig")
        assert not re.search(r"\b0\.\d|NORMAL|PNEUMONIA|uncertain|out_of", text), text


def test_an_image_that_was_read_before_shows_its_answer_when_it_comes_again(settings: Settings, open_page: Any) -> None:
    with run_thread(settings) as url:
        page = open_page(f"{url}/")
        choose_mode(page, "Blind")
        upload(page, range(230, 231))
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        playwright.expect(page.locator("#decision")).to_be_visible()
        page.locator("#clear").click()
        page.set_input_files("#files", files_of(range(230, 231)))
        playwright.expect(page.locator("#compared")).to_contain_text("NORMAL")
        playwright.expect(page.locator("#decision")).to_be_visible()
        assert len(readings_of(url)) == 1


def test_a_lost_answer_to_a_commit_neither_loses_nor_doubles_the_reading(settings: Settings, open_page: Any) -> None:
    with run_thread(settings) as url:
        page = open_page(f"{url}/", quiet=False)
        choose_mode(page, "Blind")
        upload(page, range(240, 241))

        def lose(route: Any) -> None:
            route.fetch()
            route.abort()

        page.route("**/readings", lose, times=1)
        page.keyboard.press("2")
        page.keyboard.press("Enter")
        playwright.expect(page.locator("#reading-said")).to_contain_text("Not saved")
        playwright.expect(page.locator("#decision")).to_be_hidden()
        page.keyboard.press("Enter")
        playwright.expect(page.locator("#decision")).to_be_visible()
        assert [(each["label"], each["with_ai"]) for each in readings_of(url)] == [("PNEUMONIA", False)]


def test_a_service_that_is_lost_before_an_image_is_recognised_gets_its_file_again(
    settings: Settings, open_page: Any
) -> None:
    with run_thread(settings) as url:
        page = open_page(f"{url}/", quiet=False)
        page.add_init_script("delete window.indexedDB; Object.defineProperty(window, 'indexedDB', { value: null });")
        page.reload()
        playwright.expect(page.locator("#model")).to_contain_text("Model")
        choose_mode(page, "Blind")
        lost: list[str] = []

        def lose_once(route: Any) -> None:
            lost.append(route.request.url)
            route.abort() if len(lost) == 1 else route.continue_()

        page.route("**/v1/readings?*", lose_once)
        upload(page, range(2))
        assert len(lost) > 1
        playwright.expect(page.locator("#progress")).to_have_text("2 of 2 ready.")


def test_what_is_typed_while_a_reading_is_being_saved_is_kept(settings: Settings, open_page: Any) -> None:
    with run_thread(settings) as url:
        page = open_page(f"{url}/")
        choose_mode(page, "Blind")
        upload(page, range(245, 246))
        waiting: list[Any] = []
        page.route("**/readings", lambda route: waiting.append(route) if route.request.method == "POST" else None)
        page.keyboard.press("2")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.querySelector('#reading-said').textContent === '…'")
        page.locator("#remark").fill("left base")
        waiting[0].continue_()
        playwright.expect(page.locator("#decision")).to_be_visible()
        playwright.expect(page.locator("#remark")).to_have_value("left base")
        assert [each["comment"] for each in readings_of(url)] == [""]


def test_a_service_that_prescribes_blind_reading_offers_nothing_else(
    settings: Settings, open_page: Any, tmp_path: Path
) -> None:
    file = TokenFile(tmp_path / "tokens")
    token = file.add_token("ann", "review")
    with run_thread(replace(settings, tokens=file.path, mode="blind")) as url:
        page = open_page(f"{url}/", quiet=False)
        page.locator("#token").fill(token)
        page.keyboard.press("Enter")
        expect = playwright.expect
        expect(page.locator("#mode-fixed")).to_be_visible()
        assert page.locator(".modes button:visible").all_inner_texts() == ["Blind"]
        expect(page.locator("#examples")).to_be_hidden()
        upload(page, range(250, 252))
        has_no_answer(page)
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        expect(page.locator("#decision")).to_be_visible()
        assert [each["reader"] for each in readings_of(url, authorization=f"Bearer {token}")] == ["ann"]


def test_simulated_cases_are_answered_by_keyboard_alone_and_leave_nothing_behind(
    settings: Settings, open_page: Any
) -> None:
    with run_thread(settings) as url:
        page = open_page(f"{url}/")
        expect = playwright.expect
        choose_mode(page, "Teaching")
        expect(page.locator("#case-list li")).to_have_count(24)
        expect(page.locator("#mode-words")).to_contain_text("known truth")
        expect(page.locator("#list")).to_be_hidden()
        for number in range(24):
            expect(page.locator("#image")).to_have_attribute("aria-label", re.compile(rf"^Image Case {number + 1}\."))
            expect(page.locator("#decision")).to_be_hidden()
            page.keyboard.press("2")
            page.keyboard.press("Enter")
            expect(page.locator("#compared")).to_contain_text(re.compile("✓ Right: PNEUMONIA|✗ It is NORMAL"))
            expect(page.locator("#decision")).to_be_visible()
            page.keyboard.press("s")
        score = page.locator("#score").inner_text()
        assert "12 of 24 · 50% (31–69%)" in score  # Wilson's interval
        assert "12 of 12 · 100% (76–100%)" in score
        assert "0 of 12 · 0% (0–24%)" in score
        expect(page.locator("#teaching-end")).to_contain_text("12 of 24 right")
        page.locator("#again-missed").click()
        expect(page.locator("#case-list li")).to_have_count(12)
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        expect(page.locator("#score")).to_contain_text("1 of 1")
        page.reload()
        expect(page.locator("#teaching-progress")).to_have_text("1 of 12 answered")
        choose_mode(page, "Assist")
        expect(page.locator("#list")).to_be_visible()
        expect(page.locator("#reading")).to_be_hidden()
        assert readings_of(url) == []
        assert httpx.get(f"{url}/v1/predictions").json()["predictions"] == []
        assert httpx.get(f"{url}/v1/monitoring").json()["predictions"] == 0
        assert "images_total{" not in httpx.get(f"{url}/metrics").text


def test_ones_own_cases_are_answered_by_mouse_alone_and_stored_only_if_wanted(
    settings: Settings, open_page: Any, tmp_path: Path
) -> None:
    for seed in range(6):
        place = tmp_path / "cases" / ("NORMAL", "PNEUMONIA")[seed % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"person{seed}_{place.name}.png").write_bytes(draw(300 + seed))
    with run_thread(replace(settings, cases=tmp_path / "cases")) as url:
        listed = httpx.get(f"{url}/v1/teaching").text
        assert "PNEUMONIA.png" not in listed
        assert "truth" not in listed
        page = open_page(f"{url}/")
        expect = playwright.expect
        choose_mode(page, "Teaching")
        expect(page.locator("#teaching-source")).to_have_text("6 of your own images.")
        for number in range(6):
            if number == 2:
                page.locator("#teaching-store").check()
            expect(page.locator("#image")).to_have_attribute("aria-label", re.compile(rf"^Image Case {number + 1}\."))
            page.locator("#seen label").first.click()
            page.locator("#commit").click()
            expect(page.locator("#compared")).to_be_visible()
            if number < 5:
                page.locator("#compared-next").click()
        expect(page.locator("#teaching-end")).to_contain_text("3 of 6 right")
        readings = await_readings(url, 4)
        assert len(readings) == 4
        assert {each["label"] for each in readings} == {"NORMAL"}
    with Store(str(settings.database)) as store:
        assert len(store.list_predictions(10)) == 4
    shutil.rmtree(tmp_path / "cases")


def test_teaching_cases_appear_in_no_other_mode_also_after_a_reload(
    settings: Settings, open_page: Any, tmp_path: Path
) -> None:
    for seed in range(4):
        place = tmp_path / "cases" / ("NORMAL", "PNEUMONIA")[seed % 2]
        place.mkdir(parents=True, exist_ok=True)
        content = dicom(levels(256, 256 + seed), PatientID="4711", PatientAge="045Y", StudyInstanceUID="1.2.3")
        (place / f"{seed}.dcm").write_bytes(content)
    with run_thread(replace(settings, cases=tmp_path / "cases", keep_images=tmp_path / "kept")) as url:
        page = open_page(f"{url}/")
        expect = playwright.expect
        choose_mode(page, "Teaching")
        page.locator("#teaching-store").check()
        for number in range(4):
            expect(page.locator("#image")).to_have_attribute("aria-label", re.compile(rf"^Image Case {number + 1}\."))
            page.keyboard.press("1")
            page.keyboard.press("Enter")
            expect(page.locator("#compared")).to_be_visible()
            page.wait_for_timeout(300)
            for _ in range(2):  # the wheel goes through the patient's images
                page.locator("#image").hover()
                page.mouse.wheel(0, 120)
            page.locator("#case-list button").nth(number).click()
            page.keyboard.press("s")
        page.reload()
        expect(page.locator("#teaching-progress")).to_contain_text("answered")
        choose_mode(page, "Assist")
        page.wait_for_timeout(300)
        assert [each for each in page.locator("#worklist td.name button").all_inner_texts() if each] == []


def test_a_click_where_a_button_was_changes_no_committed_reading(settings: Settings, open_page: Any) -> None:
    with run_thread(settings) as url:
        page = open_page(f"{url}/")
        expect = playwright.expect
        choose_mode(page, "Blind")
        upload(page, range(260, 262))
        expect(page.locator("#first-why")).to_contain_text("a second reading with it may differ")
        page.locator("#seen label").first.click()
        place = page.locator("#reading-next").bounding_box()
        page.locator("#commit").click()
        expect(page.locator("#decision")).to_be_visible()
        assert page.locator("#reading-next").bounding_box()["y"] == place["y"]
        expect(page.locator("#first-why")).to_contain_text("first reading stays as it is")
        first = current(page)
        page.mouse.click(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)  # where "Next" was
        expect(page.locator("#decision")).to_be_hidden()
        assert current(page) != first
        assert [each["label"] for each in await_readings(url, 2)] == ["NORMAL", "NORMAL"]  # kept


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("width", [1400, 390])
def test_axe_finds_nothing_moderate_or_worse_in_the_modes(
    service: Process, open_page: Any, theme: str, width: int
) -> None:
    axe_module = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = open_page(f"{service.url}/", bypass_csp=True)  # axe is a script from elsewhere
    page.evaluate("theme => localStorage.setItem('theme', theme)", theme)
    page.reload()
    page.set_viewport_size({"width": width, "height": 850})
    violations: list[str] = []

    def check(where: str) -> None:
        page.wait_for_timeout(400)
        for one in axe_module.Axe().run(page).response["violations"]:
            if one["impact"] in ("moderate", "serious", "critical"):
                nodes = [node["html"][:120] for node in one["nodes"][:3]]
                violations.append(f"{where}: {one['id']}: {one['help']}: {json.dumps(nodes)}")
        scrolls = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        assert not scrolls, f"{where}: the page scrolls sideways"

    choose_mode(page, "Blind")
    upload(page, range(400 + width, 402 + width))
    check("unread")
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#compared")).to_be_visible()
    check("read")
    choose_mode(page, "Teaching")
    playwright.expect(page.locator("#reading")).to_be_visible()
    check("case")
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#compared")).to_be_visible()
    check("answered")
    assert violations == []


def test_images_without_a_label_are_no_teaching_cases_and_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(draw(1))
    table = tmp_path / "cases.csv"
    table.write_text("path,label\na.png,NORMAL\nb.png,PNEUMONIA\nc.png,\n")
    cases = TeachingCases(table, ("NORMAL", "PNEUMONIA"))
    assert sorted(cases.truths) == ["NORMAL", "PNEUMONIA"]
    assert "1 of 3 images have no label and are left out" in caplog.text
