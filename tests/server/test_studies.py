"""Studies in a real browser: the list groups them, and an image is shown beside its lateral or its prior."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from dicom_files import dicom
from services import Process, draw, run_thread

if TYPE_CHECKING:
    from pneumoscope.server.settings import Settings

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
READ = re.compile(r"^\d+ of \d+ predicted(, \d+ not readable)?\.")
NOW, BEFORE = "20260301", "20240105"


def make_file(name: str, patient: str = "p1", date: str = NOW, view: str = "PA", shade: int = 0) -> dict[str, Any]:
    """An image of a study: the one that a patient had on that day."""
    number = sum(name.encode()) + shade
    levels = (np.random.default_rng(number).integers(0, 4096, (64, 64)) // 2 + np.arange(64) * 16).astype(np.uint16)
    uid = f"1.2.3.{int(patient[1:])}.{date}"
    content = dicom(
        levels, PatientID=patient, StudyInstanceUID=uid, SeriesInstanceUID=f"{uid}.1", SOPInstanceUID=f"{uid}.{number}",
        StudyDate=date, AccessionNumber=f"A{patient[1:]}{date[2:4]}", ViewPosition=view,
    )  # fmt: skip
    return {"name": name, "mimeType": "application/dicom", "buffer": content}


def add(page: Any, *files: dict[str, Any]) -> None:
    page.set_input_files("#files", list(files))
    playwright.expect(page.locator("#progress")).to_have_text(READ, timeout=60_000)


def add_grouped(page: Any, *files: dict[str, Any]) -> None:
    add(page, *files)
    page.get_by_label("Group by study").check()


def show_side_by_side(page: Any, name: str) -> None:
    """Selects an image, and has others shown beside it from now on."""
    select(page, name)
    page.get_by_label("Side by side").check()


def rows_of(page: Any) -> list[str]:
    """What the rows of the list say first, from its top."""
    page.wait_for_timeout(400)
    rows: list[str] = page.locator("#worklist tbody tr").evaluate_all(
        "rows => rows.map((row) => row.cells[0].dataset.heading ?? row.querySelector('button').textContent)"
    )
    return rows


def current(page: Any) -> str:
    name: str = page.locator("#worklist tr[aria-current] button").inner_text()
    return name


def select(page: Any, name: str) -> None:
    page.locator("#worklist").get_by_role("button", name=name).click()
    playwright.expect(page.locator("#screen .top-left")).to_contain_text(name)


def expect_beside(page: Any, name: str) -> None:
    playwright.expect(page.locator("#screen-2 .top-left")).to_contain_text(name)


MIXED = [
    make_file("one-ll.dcm", "p1", view="LL"),
    make_file("two-pa.dcm", "p2"),
    make_file("one-old.dcm", "p1", BEFORE),
    make_file("one-pa.dcm", "p1"),
]


def test_images_of_a_study_and_of_a_patient_stand_together(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    add_grouped(page, *MIXED, {"name": "plain.png", "mimeType": "image/png", "buffer": draw(1)})
    page.get_by_role("button", name="Image", exact=True).click()
    assert rows_of(page) == [
        "2026-03-01 · PA, LL · A126", "one-pa.dcm", "one-ll.dcm", "2024-01-05 (earlier) · PA · A124", "one-old.dcm",
        "plain.png", "2026-03-01 · PA · A226", "two-pa.dcm",
    ]  # fmt: skip
    head = page.locator("#worklist tr.study").first
    playwright.expect(head.locator("td").nth(1)).to_have_text("0 of 2")
    select(page, "one-ll.dcm")
    page.get_by_role("radio", name="Cannot tell").check()
    page.get_by_role("button", name="Save review").click()
    playwright.expect(head.locator("td").nth(1)).to_have_text("1 of 2")
    assert "p1" not in page.content()  # the patient's id itself is nowhere
    page.get_by_label("Group by study").uncheck()
    assert rows_of(page) == ["one-ll.dcm", "one-old.dcm", "one-pa.dcm", "plain.png", "two-pa.dcm"]
    page.reload()
    playwright.expect(page.locator("#progress")).to_have_text("5 of 5 predicted.")
    playwright.expect(page.get_by_label("Group by study")).not_to_be_checked()


def test_studies_are_grouped_and_shown_side_by_side_only_if_the_reader_asks(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    grouped, beside = page.get_by_label("Group by study"), page.get_by_label("Side by side")
    add(page, make_file("a.dcm", "p1"), make_file("b.dcm", "p2"))
    playwright.expect(page.locator("#several")).to_have_text("")
    add(page, *MIXED)
    assert len(rows_of(page)) == 6
    playwright.expect(page.locator("#several")).to_have_text("2 studies have several images")  # a hint, and no more
    select(page, "one-pa.dcm")
    playwright.expect(page.locator("#strip")).to_be_visible()
    for switch in (grouped, beside):
        playwright.expect(switch).not_to_be_checked()
    playwright.expect(page.locator("#screen-2")).to_be_hidden()
    for switch in (grouped, beside):
        switch.check()
    expect_beside(page, "one-ll.dcm")
    page.reload()
    playwright.expect(page.locator("#progress")).to_have_text("6 of 6 predicted.")
    for switch in (grouped, beside):
        playwright.expect(switch).to_be_checked()
    assert len(rows_of(page)) == 9


def test_a_study_of_two_patients_is_two_studies(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    levels = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    files = [dicom(levels // (1 + i), PatientID=f"p{i}", StudyInstanceUID="1.2.9") for i in range(2)]
    add(page, *({"name": f"{i}.dcm", "mimeType": "application/dicom", "buffer": each} for i, each in enumerate(files)))
    page.get_by_label("Group by study").check()
    assert len(rows_of(page)) == 4


def test_keys_walk_images_and_with_shift_studies(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    add_grouped(page, *MIXED)
    page.get_by_role("button", name="Image", exact=True).click()
    select(page, "one-pa.dcm")
    page.keyboard.press("n")
    assert current(page) == "one-ll.dcm"
    page.keyboard.press("Shift+ArrowDown")
    assert current(page) == "one-old.dcm"
    page.keyboard.press("Shift+ArrowDown")
    assert current(page) == "two-pa.dcm"
    page.locator("#image").focus()  # whose own arrows move it
    page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("Shift+ArrowUp")
    assert current(page) == "one-pa.dcm"
    playwright.expect(page.locator("#caption")).to_contain_text("zoom")
    width = page.locator("#window").input_value()
    page.keyboard.press("]")  # is still the window
    assert page.locator("#window").input_value() != width
    assert current(page) == "one-pa.dcm"


def test_a_lateral_is_beside_its_frontal_and_says_that_it_is_out_of_scope(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    add(page, *MIXED)
    show_side_by_side(page, "one-pa.dcm")
    expect_beside(page, "one-ll.dcm")
    playwright.expect(page.locator("#screen-2 .outside-use")).to_contain_text("Outside the intended use: view LL")
    playwright.expect(page.locator("#screen .outside-use")).to_be_hidden()
    items = page.locator("#strip-list li")
    words = [item.locator(".thumb > span").all_inner_texts() for item in items.all()]
    assert words == [["PA", "2026-03-01"], ["LL⚠", "2026-03-01"], ["PA", "2024-01-05"]]
    playwright.expect(items.nth(0).locator(".thumb")).to_have_attribute("aria-current", "true")
    playwright.expect(items.nth(1).locator(".beside")).to_have_attribute("aria-pressed", "true")
    for place in range(3):  # each is drawn, and is not empty
        page.wait_for_function(
            """(at) => {
              const canvas = document.querySelectorAll("#strip-list canvas")[at];
              const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
              return data.some((value, i) => i % 4 < 3 && value > 60);
            }""",
            arg=place,
        )
    items.nth(2).get_by_role("button", name="Beside: PA, 2024-01-05").press("Enter")
    expect_beside(page, "one-old.dcm")
    items.nth(1).locator(".thumb").press("Enter")
    playwright.expect(page.locator("#screen .top-left")).to_contain_text("one-ll.dcm")
    expect_beside(page, "one-old.dcm")  # as the reader has chosen
    add(page, make_file("alone.dcm", "p3"))
    select(page, "alone.dcm")
    playwright.expect(page.locator("#screen-2")).to_be_hidden()
    playwright.expect(page.locator("#strip")).to_be_hidden()


def test_a_second_image_that_was_closed_stays_closed_in_its_study(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    add(page, *MIXED)
    show_side_by_side(page, "one-pa.dcm")
    expect_beside(page, "one-ll.dcm")
    page.get_by_role("button", name="Close").click()
    select(page, "one-ll.dcm")
    playwright.expect(page.locator("#screen-2")).to_be_hidden()
    select(page, "one-old.dcm")
    page.keyboard.press("v")  # the reader keeps this one
    select(page, "one-pa.dcm")
    expect_beside(page, "one-old.dcm")
    page.keyboard.press("v")
    page.get_by_label("Side by side").uncheck()
    page.reload()
    select(page, "one-ll.dcm")
    playwright.expect(page.locator("#strip")).to_be_visible()
    playwright.expect(page.locator("#screen-2")).to_be_hidden()


def test_a_reloaded_list_can_be_used_before_the_model_is_known(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    add(page, *MIXED)
    waiting: list[Any] = []
    page.route("**/v1/models", lambda route: waiting.append(route))
    page.reload()
    select(page, "one-ll.dcm")
    page.locator("#filter").select_option("negative")
    page.locator("#filter").select_option("positive")
    page.locator("#filter").select_option("")
    select(page, "one-pa.dcm")
    waiting[0].continue_()
    playwright.expect(page.locator("#model")).to_contain_text("trained on")  # `open_page` checks that nothing failed


def test_an_earlier_image_that_the_service_has_kept_is_beside_the_new_one(
    settings: Settings, open_page: Any, tmp_path: Path
) -> None:
    with run_thread(replace(settings, keep_images=tmp_path / "kept")) as url:
        add(open_page(f"{url}/"), make_file("old.dcm", "p7", BEFORE), make_file("older.dcm", "p7", "20200101"))
        page = open_page(f"{url}/")  # a page of its own, with a list of its own
        add(page, make_file("new.dcm", "p7"), make_file("other.dcm", "p8"))
        show_side_by_side(page, "new.dcm")
        expect_beside(page, "old.dcm")
        playwright.expect(page.locator("#screen-2 .caption")).to_contain_text("zoom")
        assert sorted(name for name in rows_of(page) if name.endswith("dcm")) == ["new.dcm", "other.dcm"]
        page.locator("#strip-list .thumb").nth(1).click()  # to the list
        playwright.expect(page.locator("#screen .top-left")).to_contain_text("old.dcm")
        expect_beside(page, "older.dcm")
        assert "old.dcm" in rows_of(page)


def test_earlier_images_without_a_picture_are_counted(service: Process, open_page: Any) -> None:
    add(open_page(f"{service.url}/"), make_file("gone.dcm", "p31", BEFORE))
    page = open_page(f"{service.url}/")
    add(page, make_file("here.dcm", "p31"))
    page.evaluate("localStorage.setItem('viewer.sideBySide', 'true')")
    page.reload()
    select(page, "here.dcm")
    playwright.expect(page.locator("#strip-note")).to_have_text("1 more of this patient without a kept image.")
    playwright.expect(page.locator("#screen-2")).to_be_hidden()
    playwright.expect(page.locator("#strip")).to_be_hidden()  # the image keeps its place


TURN_TWICE = """(canvas) => {
  for (const _ of [1, 2]) canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: 100, cancelable: true }));
}"""


def test_the_wheel_goes_through_the_images_of_a_study_if_the_reader_wants_it(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    add(page, *MIXED)
    show_side_by_side(page, "one-pa.dcm")
    page.get_by_role("button", name="Help").click()
    page.get_by_label("Wheel").select_option("images")
    page.keyboard.press("Escape")
    page.locator("#image").hover(force=True)
    chosen = page.locator("#worklist tr[aria-current] button")
    page.mouse.wheel(0, 100)
    playwright.expect(chosen).to_have_text("one-ll.dcm")
    page.mouse.wheel(0, -100)
    playwright.expect(chosen).to_have_text("one-pa.dcm")
    expect_beside(page, "one-ll.dcm")
    page.locator("#image").evaluate(TURN_TWICE)  # past an image that is still being loaded
    playwright.expect(chosen).to_have_text("one-old.dcm")
    page.mouse.wheel(0, 100)  # its own study comes first now, then the other
    playwright.expect(chosen).to_have_text("one-pa.dcm")
    expect_beside(page, "one-ll.dcm")
    page.locator("#image-2").hover(force=True)
    page.mouse.wheel(0, 100)
    expect_beside(page, "one-old.dcm")
    assert current(page) == "one-pa.dcm"


def test_linked_images_move_the_same_way_on_the_screen_however_each_is_turned(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    add(page, *MIXED)
    show_side_by_side(page, "one-pa.dcm")
    expect_beside(page, "one-ll.dcm")
    page.evaluate("""async () => { window.panes = (await import("./page/panes.js")).all(); }""")
    places = """() => panes.map((pane) => pane.toCanvas([32, 32]).map(Math.round))"""
    for turns, flipped in ((1, False), (2, True), (3, True), (0, True)):
        page.evaluate("([turns, flipped]) => panes[1].orient({ turns, flipped })", [turns, flipped])
        page.evaluate("() => { panes.forEach((pane) => pane.zoomTo(4 * pane.fitting())); }")
        before = page.evaluate(places)
        page.evaluate("() => panes[0].pan(60, 25)")
        after = page.evaluate(places)
        for pane in range(2):
            assert np.subtract(after[pane], before[pane]) == pytest.approx([60, 25], abs=2), (turns, flipped)
        page.evaluate("() => panes[0].fit()")


def test_measurements_are_there_after_a_reload(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    add(page, make_file("measured.dcm", "p40"))
    select(page, "measured.dcm")
    count = """async () => (await import("./page/panes.js")).viewer.measuring.items.length"""
    page.keyboard.press("r")
    box = page.locator("#image").bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 250)
    page.mouse.up()
    assert page.evaluate(count) == 1
    page.wait_for_timeout(500)
    page.reload()
    playwright.expect(page.locator("#caption")).to_contain_text("zoom")
    assert page.evaluate(count) == 1


def test_earlier_predictions_are_listed_to_the_first_one(settings: Settings, open_page: Any, image: bytes) -> None:
    import httpx

    with run_thread(settings) as url:
        for start in range(0, 130, 26):
            files = [("files", (f"image-{start + i:03}.png", image)) for i in range(26)]
            assert httpx.post(f"{url}/v1/predictions", files=files, timeout=120).status_code == 201
        page = open_page(f"{url}/")
        page.locator("#earlier > summary").click()
        playwright.expect(page.locator("#earlier-list li")).to_have_count(100)
        page.get_by_role("button", name="More", exact=True).click()
        playwright.expect(page.locator("#earlier-list li")).to_have_count(130)
        names = page.locator("#earlier-list button").all_inner_texts()
        assert sorted(names) == [f"image-{number:03}.png" for number in range(130)]
        playwright.expect(page.locator("#more-earlier")).to_be_hidden()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_axe_finds_nothing_moderate_or_worse_in_a_study(
    service: Process, open_page: Any, theme: str, width: int
) -> None:
    axe_module = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = open_page(f"{service.url}/", bypass_csp=True)  # axe is a script from elsewhere
    page.set_viewport_size({"width": width, "height": 844})
    page.evaluate("theme => localStorage.setItem('theme', theme)", theme)
    page.reload()
    add(page, *MIXED)
    show_side_by_side(page, "one-pa.dcm")
    playwright.expect(page.locator("#strip-list li")).to_have_count(3)
    violations = axe_module.Axe().run(page).response["violations"]
    assert [one["id"] for one in violations if one["impact"] in ("moderate", "serious", "critical")] == []
    assert page.locator("html").evaluate("page => page.scrollWidth") <= width


def test_a_long_list_of_studies_has_few_rows(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    playwright.expect(page.locator("#model")).to_contain_text("Model")
    page.evaluate("""async () => {
      const { state, announce, nextKey } = await import("./page/state.js");
      for (let i = 0; i < 5000; i++) {
        state.images.push({
          key: nextKey(), state: "done", id: `${i}`, name: `image-${i}.dcm`, decision: "NORMAL",
          probability: (i * 7919 % 5000) / 5000,
          probabilities: {}, prediction_set: [], ood_score: 0.5, warnings: [], reviews: [], explanation: "",
          width: 9, height: 9, format: "DICOM",
          patient: `${i % 1200}`, study_uid: `1.${i % 2400}`, date: "2026-01-01", view: i % 2 ? "PA" : "LL",
        });
      }
      announce("listed");
    }""")
    page.get_by_label("Group by study").check()
    assert page.locator("#worklist tbody tr").count() < 80
    assert int(page.locator("#worklist").get_attribute("aria-rowcount")) > 6000
    page.locator("#images").evaluate("box => { box.scrollTop = box.scrollHeight; }")
    page.wait_for_timeout(300)
    assert page.locator("#worklist tbody tr").count() < 80
