"""The reading room in a real browser: images are added, shown, reviewed and exported; faults are reported."""

from __future__ import annotations

import csv
import io
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from dicom_files import dicom
from dicom_files import image as levels
from PIL import Image
from services import Process, draw, run_process, run_thread

if TYPE_CHECKING:
    from pneumoscope.server.settings import Settings
    from pneumoscope.training.train import Run

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
ALL_READ = re.compile(r"^\d+ of \d+ predicted(, \d+ not readable)?\.")


def files_of(seeds: range) -> list[dict[str, Any]]:
    return [{"name": f"image-{seed:02}.png", "mimeType": "image/png", "buffer": draw(seed)} for seed in seeds]


def upload(page: Any, files: list[dict[str, Any]]) -> None:
    page.set_input_files("#files", files)
    playwright.expect(page.locator("#progress")).to_have_text(ALL_READ, timeout=60_000)


def pixels_of(page: Any) -> np.ndarray:
    """What the canvas shows, (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(page.locator("#image").screenshot())).convert("RGB"), int)


def test_an_image_is_shown_with_its_probability_threshold_and_heatmap(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    upload(page, files_of(range(4)))
    expect = playwright.expect
    with service.client() as client:
        listed = {each["name"]: each for each in client.get("/v1/predictions?limit=4").json()["predictions"]}
        threshold = client.get("/v1/models").json()[0]["threshold"]
    shown = next(each for each in listed.values() if each["probability"] is not None)
    page.get_by_role("button", name=shown["name"]).click()
    rounded = f"{shown['probability']:.3f}"
    expect(page.locator("#probability")).to_have_text({"1.000": ">0.999", "0.000": "<0.001"}.get(rounded, rounded))
    expect(page.locator("#threshold-label")).to_contain_text(f"{threshold:.3f}")
    place = page.locator("#threshold").evaluate("mark => mark.offsetLeft / mark.parentElement.clientWidth")
    assert place == pytest.approx(threshold, abs=0.02)
    page.wait_for_timeout(300)
    # Opacity: none shows grey alone, all of it shows colours.
    page.locator("#opacity").fill("0")
    grey = pixels_of(page)
    assert np.ptp(grey[100:500, 150:550], axis=2).max() == 0
    assert grey.std() > 10
    page.locator("#opacity").fill("100")
    assert np.ptp(pixels_of(page)[100:500, 150:550], axis=2).max() > 30
    expect(page.locator("#legend-label")).to_contain_text("Yellow supports PNEUMONIA")


def test_a_worklist_of_50_images_is_sorted_filtered_and_exported(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    upload(page, files_of(range(50)))
    rows = page.locator("#worklist tbody tr")
    playwright.expect(page.locator("#worklist")).to_have_attribute("aria-rowcount", "51")
    stated = page.locator("#worklist tbody td.number").all_inner_texts()
    numbers = [float(text.strip("<>")) for text in stated if text != "–"]
    assert numbers == sorted(numbers, reverse=True)
    assert all(text == "–" for text in stated[len(numbers) :])
    page.get_by_role("button", name="Image", exact=True).click()
    page.get_by_role("button", name="image-00.png").click()  # the current row is there also when it is out of sight
    names = page.locator("#worklist tbody td:first-child").all_inner_texts()
    assert names == [f"image-{seed:02}.png" for seed in range(len(names))]
    page.locator("#filter").select_option("positive")
    decisions = page.locator("#worklist tbody td:nth-child(3)").all_inner_texts()
    assert set(decisions) <= {"PNEUMONIA"}
    page.locator("#filter").select_option("")
    page.locator("#search").fill("image-1")
    playwright.expect(rows).to_have_count(10)
    page.locator("#search").fill("")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export CSV").click()
    table = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text(encoding="utf-8-sig"))))
    assert [row["path"] for row in table] == [f"image-{seed:02}.png" for seed in range(50)]
    with service.client() as client:
        listed = {each["id"]: each for each in client.get("/v1/predictions?limit=60").json()["predictions"]}
    for row in table:
        assert row["decision"] == listed[row["id"]]["decision"]
        assert row["sha256"] == listed[row["id"]]["sha256"]


def test_names_are_neither_formulas_nor_markup(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    names = ["=HYPERLINK(1).png", "<img src=x onerror=alert(1)>.png", 'say "hi", all.png']
    upload(page, [{"name": name, "mimeType": "image/png", "buffer": draw(1)} for name in names])
    assert set(page.locator("#worklist tbody td:first-child").all_inner_texts()) == set(names)
    with page.expect_download() as download:
        page.get_by_role("button", name="Export CSV").click()
    text = Path(download.value.path()).read_text(encoding="utf-8-sig")
    table = {row["path"] for row in csv.DictReader(io.StringIO(text))}
    assert table == {"'=HYPERLINK(1).png", *names[1:]}


def test_a_review_is_saved_and_counted_in_monitoring(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    upload(page, files_of(range(60, 63)))
    page.get_by_label("I agree").check()
    page.get_by_role("textbox", name="Comment").fill("clear")
    page.get_by_label("Reviewer").fill("ab")
    page.get_by_role("button", name="Save review").click()
    playwright.expect(page.locator("#saved")).to_contain_text("Saved: agree")
    playwright.expect(page.locator("#worklist [aria-label=agreed]")).to_have_count(1)
    page.locator("#filter").select_option("open")
    playwright.expect(page.locator("#worklist tbody tr")).to_have_count(2)
    page.get_by_text("Earlier predictions").click()
    playwright.expect(page.locator("#earlier li").filter(has_text="agree (ab)").first).to_be_visible()
    with service.client() as client:
        predictions = client.get("/v1/predictions").json()["predictions"]
    assert "clear" in [review["comment"] for prediction in predictions for review in prediction["reviews"]]
    page.get_by_role("link", name="Monitoring").click()
    playwright.expect(page.locator("#cards")).to_contain_text("reviewed")
    playwright.expect(page.locator("#volume svg")).to_be_visible()


def test_an_earlier_prediction_is_opened_and_reviewed(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    upload(page, files_of(range(80, 82)))
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Clear the list").click()
    page.get_by_text("Earlier predictions").click()
    page.locator("#earlier button").filter(has_text="image-81").first.click()
    playwright.expect(page.locator("#nothing")).to_contain_text("choose the file again")
    playwright.expect(page.locator("#facts")).to_contain_text("image-81.png")
    page.get_by_label("I agree").check()
    page.get_by_role("textbox", name="Comment").fill("seen before")
    page.get_by_role("button", name="Save review").click()
    playwright.expect(page.locator("#saved")).to_contain_text("Saved: agree")
    with service.client() as client:
        latest = client.get("/v1/predictions?limit=5").json()["predictions"]
    (reviews,) = [each["reviews"] for each in latest if each["name"] == "image-81.png"]
    assert [review["comment"] for review in reviews] == ["seen before"]


def test_disagreement_with_an_undecided_prediction_needs_a_class(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    upload(page, files_of(range(60)))
    page.locator("#filter").select_option("out_of_distribution")
    if not page.locator("#worklist tbody tr").count():
        page.locator("#filter").select_option("uncertain")
    page.locator("#worklist tbody tr button").first.click()
    page.get_by_label("I disagree").check()
    page.get_by_role("button", name="Save review").click()
    assert page.locator("#label").evaluate("field => field.validity.valueMissing")
    page.get_by_label("I see").select_option("NORMAL")
    page.get_by_role("button", name="Save review").click()
    playwright.expect(page.locator("#saved")).to_contain_text("Saved: disagree, NORMAL")


def test_a_file_that_cannot_be_read_says_why_and_the_others_are_predicted(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/", quiet=False)  # the browser notes the answer 415
    bad = {"name": "letter.pdf", "mimeType": "application/pdf", "buffer": b"%PDF-1.7 no image"}
    upload(page, [bad, *files_of(range(2))])
    playwright.expect(page.locator("#progress")).to_contain_text("1 not readable")
    page.get_by_role("button", name="letter.pdf").click()
    playwright.expect(page.locator("#no-prediction")).to_contain_text("letter.pdf has no prediction.")
    playwright.expect(page.locator("#no-prediction")).to_contain_text("unknown format")


def test_a_file_that_is_gone_by_its_turn_says_so_and_the_others_are_predicted(
    service: Process, open_page: Any, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{seed:02}.png" for seed in range(16)]
    for seed, path in enumerate(paths):
        path.write_bytes(draw(seed))
    page = open_page(f"{service.url}/")
    page.route("**/v1/predictions*", lambda route: (page.wait_for_timeout(20), route.continue_()))
    page.set_input_files("#files", [str(path) for path in paths])
    paths[-1].unlink()
    playwright.expect(page.locator("#progress")).to_have_text("15 of 16 predicted, 1 not readable.", timeout=30_000)
    playwright.expect(page.locator("#outage")).to_be_hidden()


def test_no_image_is_shown_with_the_prediction_of_another(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    upload(page, files_of(range(3)))
    page.evaluate("() => { window.DecompressionStream = class { constructor() { throw new Error(); } }; }")
    names = page.locator("#worklist tbody button").all_inner_texts()
    page.get_by_role("button", name=names[2]).click()
    playwright.expect(page.locator("#facts")).to_contain_text(names[2])
    playwright.expect(page.locator("#nothing")).to_contain_text("cannot be displayed")
    playwright.expect(page.locator("#caption")).to_have_text("")
    assert pixels_of(page)[100:300, 50:-50].max() < 230  # nothing but the words


def test_a_lost_service_is_reported_and_waiting_images_are_sent_when_it_is_back(
    run: Run, open_page: Any, tmp_path: Path
) -> None:
    database = str(tmp_path / "predictions.sqlite")
    with run_process(run.model, database) as process:
        page = open_page(f"{process.url}/", quiet=False)
        port = process.url.rpartition(":")[2]
        upload(page, files_of(range(2)))
        process.end(signal.SIGKILL)
        page.set_input_files("#files", files_of(range(10, 14)))
        playwright.expect(page.locator("#outage")).to_be_visible()
        page.get_by_label("I agree").check()
        page.get_by_role("button", name="Save review").click()
        playwright.expect(page.locator("#saved")).to_contain_text("Not saved")
    with run_process(run.model, database, "--port", port):
        playwright.expect(page.locator("#outage")).to_be_hidden(timeout=30_000)
        playwright.expect(page.locator("#progress")).to_have_text("6 of 6 predicted.", timeout=30_000)


def test_a_service_without_its_storage_says_so_until_it_has_it_again(
    settings: Settings, open_page: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "kept"
    with run_thread(replace(settings, keep_images=folder)) as url:
        page = open_page(f"{url}/", quiet=False)
        playwright.expect(page.locator("#model")).to_contain_text("Model")
        folder.rmdir()
        page.set_input_files("#files", files_of(range(1)))
        playwright.expect(page.locator("#outage")).to_contain_text("cannot access its storage")
        folder.mkdir()
        playwright.expect(page.locator("#progress")).to_have_text("1 of 1 predicted.", timeout=30_000)
        playwright.expect(page.locator("#outage")).to_be_hidden()


def test_all_images_of_a_folder_are_added(service: Process, open_page: Any, tmp_path: Path) -> None:
    study = tmp_path / "study" / "series"
    study.mkdir(parents=True)
    (study / "IM1").write_bytes(dicom(levels(64, 64)))
    (study / "IM2.dcm").write_bytes(dicom(levels(64, 48)))
    (tmp_path / "study" / "DICOMDIR").write_bytes(b"directory")
    page = open_page(f"{service.url}/")
    page.set_input_files("#folder", str(tmp_path / "study"))
    playwright.expect(page.locator("#progress")).to_have_text("2 of 2 predicted.", timeout=30_000)
    assert page.locator("#worklist tbody td:first-child").all_inner_texts() != []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_axe_finds_nothing_moderate_or_worse(
    service: Process, open_page: Any, browser: Any, theme: str, width: int
) -> None:
    axe_module = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = open_page(f"{service.url}/", bypass_csp=True)  # axe is a script from elsewhere
    page.evaluate("theme => localStorage.setItem('theme', theme)", theme)
    page.reload()
    assert page.locator("html").get_attribute("data-theme") == theme
    page.set_viewport_size({"width": width, "height": 850})
    upload(page, files_of(range(5)))
    violations = []
    for address in ("", "monitoring", "node", "docs"):
        if address:
            page.goto(f"{service.url}/{address}")
            page.wait_for_timeout(500)
        response = axe_module.Axe().run(page).response
        violations += [
            f"/{address}: {one['id']}: {one['help']}: {[node['html'][:120] for node in one['nodes'][:3]]}"
            for one in response["violations"]
            if one["impact"] in ("moderate", "serious", "critical")
        ]
    assert violations == []


def test_a_phone_needs_no_sideways_scrolling(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/", has_touch=True, device_scale_factor=2)
    page.set_viewport_size({"width": 375, "height": 700})
    upload(page, files_of(range(3)))
    page.locator("#worklist tbody tr button").first.tap()
    assert page.locator("html").evaluate("page => page.scrollWidth") <= 375
    top = page.locator(".stage").bounding_box()["y"]
    assert 0 <= top < 400  # the selected image is in sight
    for address in ("monitoring", "node", "docs"):
        page.goto(f"{service.url}/{address}")
        page.wait_for_timeout(300)
        assert page.locator("html").evaluate("page => page.scrollWidth") <= 375


def test_the_forms_of_the_api_page_fit_a_narrow_phone_when_they_are_open(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/docs")
    page.locator("details").evaluate_all("all => all.forEach((each) => { each.open = true; })")
    for width in (390, 320):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.locator("html").evaluate("page => page.scrollWidth") <= width


def test_the_page_is_small_and_all_of_it_is_served_from_here(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/healthz", quiet=False)
    sizes: list[int] = []
    # As sent: compressed, where that helps.
    page.on("response", lambda response: sizes.append(int(response.headers.get("content-length", 0))))
    page.goto(f"{service.url}/")
    playwright.expect(page.locator("#model")).to_contain_text("Model")
    page.wait_for_timeout(300)
    assert 10_000 < sum(sizes) < 200_000


def test_the_page_asks_for_a_token_until_it_is_valid(settings: Settings, open_page: Any) -> None:
    with run_thread(replace(settings, token="4f9a1c7be2d0835664b1")) as url:
        page = open_page(f"{url}/", quiet=False)
        page.locator("#token").fill("something else")
        page.get_by_role("button", name="Continue").click()
        playwright.expect(page.locator("#ask-why")).to_contain_text("is not valid")
        page.locator("#token").fill("4f9a1c7be2d0835664b1")
        page.get_by_role("button", name="Continue").click()
        playwright.expect(page.locator("#model")).to_contain_text("Model")
        upload(page, files_of(range(2)))


def test_a_banner_says_that_it_is_not_a_medical_device(service: Process, open_page: Any) -> None:
    for address in ("", "monitoring"):
        page = open_page(f"{service.url}/{address}")
        banner = page.get_by_role("complementary", name="Intended use")
        playwright.expect(banner).to_contain_text("Not a medical device")
        assert banner.bounding_box()["y"] == 0


def test_an_unsaved_comment_stays_with_its_image(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    upload(page, files_of(range(70, 73)))
    rows = page.locator("#worklist tbody button")
    rows.nth(0).click()
    page.get_by_role("textbox", name="Comment").fill("look again")
    rows.nth(1).click()
    playwright.expect(page.get_by_role("textbox", name="Comment")).to_have_value("")
    rows.nth(0).click()
    playwright.expect(page.get_by_role("textbox", name="Comment")).to_have_value("look again")
    page.get_by_label("I agree").check()
    page.get_by_role("button", name="Save review").click()
    playwright.expect(page.locator("#saved")).to_contain_text("Saved: agree")
    rows.nth(1).click()
    rows.nth(0).click()
    playwright.expect(page.get_by_label("I agree")).to_be_checked()
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Clear the list").click()
    playwright.expect(rows).to_have_count(0)
    playwright.expect(page.locator("#nothing")).to_contain_text("No images yet")


def test_images_of_one_name_differ_by_their_folders(service: Process, open_page: Any, tmp_path: Path) -> None:
    for series in ("s1", "s2"):
        (tmp_path / "study" / series).mkdir(parents=True)
        (tmp_path / "study" / series / "IM1").write_bytes(dicom(levels(64, 64)))
    (tmp_path / "study" / "s1" / "IM2").touch()
    page = open_page(f"{service.url}/")
    page.set_input_files("#folder", str(tmp_path / "study"))
    playwright.expect(page.locator("#progress")).to_have_text("2 of 3 predicted, 1 not readable.", timeout=30_000)
    names = set(page.locator("#worklist td.name button:visible").all_inner_texts())
    assert names == {"study/s1/IM1", "study/s1/IM2", "study/s2/IM1"}
    page.get_by_role("button", name="study/s1/IM2").click()
    playwright.expect(page.locator("#no-prediction")).to_contain_text("The file is empty")
    playwright.expect(page.locator("#caption")).to_have_text("")


def test_the_heatmap_is_switched_off_and_on_and_not_drawn_out_of_distribution(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    white = io.BytesIO()
    Image.new("L", (128, 128), 255).save(white, "PNG")
    blank = {"name": "blank.png", "mimeType": "image/png", "buffer": white.getvalue()}
    upload(page, [*files_of(range(60)), blank])
    shown = page.locator("#evidence-shown")
    with service.client() as client:
        predictions = client.get("/v1/predictions?limit=61").json()["predictions"]
    ordinary = next(each["name"] for each in predictions if each["decision"] != "out_of_distribution")
    page.locator("#search").fill(ordinary)
    page.get_by_role("button", name=ordinary, exact=True).click()
    page.wait_for_timeout(300)
    page.locator("#opacity").fill("100")
    assert np.ptp(pixels_of(page)[100:500, 150:550], axis=2).max() > 30
    shown.click()
    assert np.ptp(pixels_of(page)[100:500, 150:550], axis=2).max() == 0
    page.locator("#opacity").fill("90")
    playwright.expect(shown).to_have_attribute("aria-pressed", "true")
    page.locator("#search").fill("blank")
    page.get_by_role("button", name="blank.png", exact=True).click()
    playwright.expect(page.locator("#decision")).to_have_text("Out of distribution")
    playwright.expect(page.locator("#evidence")).to_be_hidden()


def test_a_review_stays_with_its_image(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    upload(page, files_of(range(90, 91)))
    hold: list[Any] = []
    page.route("**/v1/predictions*", lambda route: hold.append(route))
    page.set_input_files("#files", files_of(range(91, 92)))
    page.get_by_role("textbox", name="Comment").fill("about the first")
    page.get_by_label("I agree").check()
    page.get_by_role("button", name="image-91.png").click()  # which waits, and is predicted while it is selected
    playwright.expect(page.locator("#no-prediction")).to_contain_text("is waiting")
    while not hold:
        page.wait_for_timeout(20)
    hold[0].continue_()
    playwright.expect(page.locator("#facts")).to_contain_text("image-91.png")
    playwright.expect(page.get_by_role("textbox", name="Comment")).to_have_value("")
    playwright.expect(page.get_by_label("I agree")).not_to_be_checked()
    page.get_by_role("button", name="image-90.png").click()
    playwright.expect(page.get_by_role("textbox", name="Comment")).to_have_value("about the first")
    playwright.expect(page.get_by_label("I agree")).to_be_checked()


def test_an_impossible_token_and_a_dismissed_dialog_do_not_lock_the_page(settings: Settings, open_page: Any) -> None:
    with run_thread(replace(settings, token="4f9a1c7be2d0835664b1")) as url:
        page = open_page(f"{url}/", quiet=False)
        page.locator("#token").fill("“correct-horse-battery”")
        page.get_by_role("button", name="Continue").click()
        playwright.expect(page.locator("#ask-why")).to_contain_text("is not valid")
        page.locator("#token").press("Escape")
        playwright.expect(page.locator("#token")).to_have_count(0)
        page.set_input_files("#files", files_of(range(1)))
        page.locator("#token").fill("4f9a1c7be2d0835664b1")
        page.get_by_role("button", name="Continue").click()
        playwright.expect(page.locator("#progress")).to_have_text("1 of 1 predicted.", timeout=20_000)
