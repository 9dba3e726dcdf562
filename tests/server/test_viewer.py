"""The viewer of the reading room in a real browser: stored values, windows, lengths, turns, mouse, keys and fingers."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from dicom_files import Levels, dicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from services import Process, draw

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
RAMP = np.tile(np.linspace(0, 4095, 512).astype(np.uint16), (512, 1))
VALUES = RAMP[0].astype(float)
Shades = NDArray[np.int_]


def upload(page: Any, content: bytes, name: str = "image.dcm") -> None:
    page.set_input_files("#files", [{"name": name, "mimeType": "application/octet-stream", "buffer": content}])
    page.get_by_role("button", name=name).last.click(timeout=60_000)
    playwright.expect(page.locator("#facts")).to_contain_text(name, timeout=60_000)
    playwright.expect(page.locator("#caption")).to_contain_text("zoom")


def show(service: Process, open_page: Any, levels: Levels = RAMP, **elements: Any) -> Any:
    """A page with an image of these levels."""
    page = open_page(f"{service.url}/")
    upload(page, dicom(levels, **elements))
    return page


def pixels_of(page: Any) -> Shades:
    """What the canvas shows, (H, W, 3), without the words over it."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    address = page.evaluate("() => document.getElementById('image').toDataURL()")
    content = base64.b64decode(address.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), int)


def shades_of(page: Any) -> Shades:
    """The shades of a row of a square image of 512 pixels, from its left to its right."""
    shown = pixels_of(page)[..., 0]
    height, width = shown.shape
    side = min(height, width)
    places = (width - side) // 2 + ((np.arange(512) + 0.5) * side / 512).astype(int)
    return np.asarray(shown[height // 2, places])


def window(values: Any, centre: float, width: float) -> Any:
    """Shades of LINEAR_EXACT (PS3.3 C.11.2.1.3.2)."""
    return 255 * np.clip((values - centre) / width + 0.5, 0, 1)


def assert_same(found: Shades, expected: Any) -> None:
    assert np.median(np.abs(found - expected)) <= 2
    assert np.quantile(np.abs(found - expected), 0.95) <= 12  # smoothed where they change quickly


def type_window(page: Any, width: float, level: float) -> None:
    for field, value in (("#window", width), ("#level", level)):
        page.locator(field).fill(str(value))
        page.locator(field).press("Enter")


def choose(page: Any, preset: str) -> None:
    page.locator("#preset").select_option(label=page.locator("#preset option").filter(has_text=preset).inner_text())


def test_the_page_gets_stored_values_and_the_file_s_window_is_where_it_starts(service: Process, open_page: Any) -> None:
    page = show(service, open_page, WindowCenter=2000, WindowWidth=2200)
    playwright.expect(page.locator("#caption")).to_contain_text("W 2200 L 2000")
    assert_same(shades_of(page), window(VALUES, 2000, 2200))
    choose(page, "Full range")
    assert_same(shades_of(page), window(VALUES, 2047.5, 4095))  # nothing was lost to the file's window
    type_window(page, 100, 3500)
    assert_same(shades_of(page), window(VALUES, 3500, 100))


def test_a_window_that_hides_most_of_an_image_is_a_preset_and_not_the_start(service: Process, open_page: Any) -> None:
    page = show(service, open_page, WindowCenter=2000, WindowWidth=300)
    assert_same(shades_of(page), window(VALUES, 2047.5, 4095))
    choose(page, "Window of the file")
    assert_same(shades_of(page), window(VALUES, 2000, 300))


def test_a_narrow_window_shows_all_levels_of_12_bits(service: Process, open_page: Any) -> None:
    page = show(service, open_page, np.tile(np.arange(512, dtype=np.uint16) + 2000, (512, 1)))
    type_window(page, 256, 2256)
    assert len(np.unique(shades_of(page))) > 200  # 8 bits of the whole depth would leave 17


def test_windows_are_in_the_units_of_the_file(service: Process, open_page: Any) -> None:
    elements: dict[str, Any] = {
        "RescaleSlope": 0.5,
        "RescaleIntercept": -1000,
        "WindowCenter": -200,
        "WindowWidth": 1200,
    }
    page = show(service, open_page, **elements)
    playwright.expect(page.locator("#window")).to_have_value("1200")
    playwright.expect(page.locator("#level")).to_have_value("-200")
    assert_same(shades_of(page), window(VALUES / 2 - 1000, -200, 1200))
    playwright.expect(page.locator("#preset")).to_contain_text("Full range (2048, 24)")


def test_all_windows_of_a_file_are_presets_with_their_names_and_keys(service: Process, open_page: Any) -> None:
    page = show(
        service, open_page, WindowCenter=[2000, 1500, 900], WindowWidth=[3900, 2000, 800],
        WindowCenterWidthExplanation=["NORMAL", "HARDER"],
    )  # fmt: skip
    options = page.locator("#preset option").all_inner_texts()
    assert options == [
        "Normal (3900, 2000)", "Harder (2000, 1500)", "Window 3 of the file (800, 900)", "Full range (4095, 2048)"
    ]  # fmt: skip
    page.keyboard.press("Shift+Digit2")
    playwright.expect(page.locator("#caption")).to_contain_text("W 2000 L 1500")
    assert_same(shades_of(page), window(VALUES, 1500, 2000))
    page.keyboard.press("]")
    assert page.locator("#preset option:checked").inner_text() == "Own"


@pytest.mark.parametrize("function", ["SIGMOID", "LINEAR_EXACT", "LINEAR"])
def test_the_function_of_a_window_is_used(service: Process, open_page: Any, function: str) -> None:
    page = show(service, open_page, WindowCenter=2000, WindowWidth=3000, VOILUTFunction=function)
    expected = window(VALUES, 2000, 3000)
    if function == "SIGMOID":
        expected = 255 / (1 + np.exp(-4 * (VALUES - 2000) / 3000))
    assert_same(shades_of(page), expected)


def make_table(entries: Any, first: int = 0) -> Dataset:
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [len(entries), first, 12], np.asarray(entries, "<u2").tobytes()
    table.LUTExplanation = "ROOT"
    return table


def test_a_voi_lut_is_a_preset_and_can_be_moved(service: Process, open_page: Any) -> None:
    entries = np.rint(4095 * np.sqrt(np.arange(4096) / 4095))
    page = show(service, open_page, VOILUTSequence=[make_table(entries)])
    assert page.locator("#preset option").all_inner_texts()[0].startswith("Root (")
    assert_same(shades_of(page), 255 * np.sqrt(VALUES / 4095))
    page.keyboard.press(".")  # a higher level is darker
    assert shades_of(page).mean() < 255 * np.sqrt(VALUES / 4095).mean()


def test_a_modality_lut_gives_the_values(service: Process, open_page: Any) -> None:
    entries = 4095 - np.arange(4096)
    page = show(service, open_page, ModalityLUTSequence=[make_table(entries)], WindowCenter=1000, WindowWidth=2500)
    assert_same(shades_of(page), window(4095 - VALUES, 1000, 2500))


def test_monochrome1_is_shown_with_dark_air_and_its_own_values(service: Process, open_page: Any) -> None:
    page = show(service, open_page, PhotometricInterpretation="MONOCHROME1", WindowCenter=1800, WindowWidth=3600)
    assert_same(shades_of(page), 255 - window(VALUES, 1800, 3600))
    playwright.expect(page.locator("#invert")).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("i")
    assert_same(shades_of(page), window(VALUES, 1800, 3600))
    playwright.expect(page.locator("#caption")).to_contain_text("inverted")


def test_padding_is_black_in_any_polarity_and_out_of_the_full_range(service: Process, open_page: Any) -> None:
    padded = RAMP // 2 + 1000
    padded[:, :100] = 0
    page = show(service, open_page, padded, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0)
    assert shades_of(page)[5:90].max() <= 2
    low, high = int(padded[:, 100:].min()), int(padded.max())
    assert_same(shades_of(page)[110:], 255 - window(padded[0, 110:], (low + high) / 2, high - low))
    page.keyboard.press("i")
    assert shades_of(page)[5:90].max() <= 2


@pytest.mark.parametrize(("depth", "levels"), [(np.uint8, RAMP // 16), (np.uint16, RAMP * 16)])
def test_other_images_have_their_grey_values(service: Process, open_page: Any, depth: type, levels: Levels) -> None:
    stream = io.BytesIO()
    Image.fromarray(levels.astype(depth)).save(stream, "PNG")
    page = open_page(f"{service.url}/")
    upload(page, stream.getvalue(), "ramp.png")
    most = np.iinfo(depth).max
    playwright.expect(page.locator("#caption")).to_contain_text(f"W {most} L")
    type_window(page, most / 4, most / 2)
    assert_same(shades_of(page), window(levels[0].astype(float), most / 2, most / 4))


def drag(page: Any, x: int, y: int, button: str = "left", canvas: str = "#image") -> None:
    box = page.locator(canvas).bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down(button=button)
    page.mouse.move(middle[0] + x, middle[1] + y, steps=4)
    page.mouse.up(button=button)


def read_window(page: Any) -> tuple[float, float]:
    return float(page.locator("#window").input_value()), float(page.locator("#level").input_value())


def read_zoom(page: Any, caption: str = "#caption") -> int:
    text = page.locator(caption).inner_text()
    return int(text.partition("zoom ")[2].partition("%")[0])


def test_the_mouse_works_as_in_clinical_viewers(service: Process, open_page: Any) -> None:
    page = show(service, open_page)
    before, zoom = read_window(page), read_zoom(page)
    drag(page, 100, 50)  # the left button: wider and higher
    after = read_window(page)
    assert after[0] > before[0] * 1.1
    assert after[1] > before[1] * 1.02
    assert read_zoom(page) == zoom
    page.keyboard.press("b")
    assert read_window(page) == before
    middle = shades_of(page)
    drag(page, 120, 0, "middle")
    assert shades_of(page)[300:480].mean() < middle[300:480].mean() - 20  # what is left of it came there
    page.keyboard.press("b")
    page.keyboard.down(" ")
    drag(page, 120, 0)
    page.keyboard.up(" ")
    assert shades_of(page)[300:480].mean() < middle[300:480].mean() - 20
    page.keyboard.press("b")
    drag(page, 0, -100, "right")
    assert read_zoom(page) > zoom * 1.3
    assert read_window(page) == before
    page.keyboard.press("0")
    assert read_zoom(page) == zoom
    page.mouse.wheel(0, -500)
    playwright.expect(page.locator("#caption")).not_to_contain_text(f"zoom {zoom}%")
    assert read_zoom(page) > zoom * 1.3


def test_what_the_left_button_does_is_remembered(service: Process, open_page: Any) -> None:
    page = show(service, open_page)
    page.get_by_role("button", name="Help").click()
    page.get_by_label("Left drag").select_option("move")
    page.keyboard.press("Escape")
    page.reload()
    upload(page, dicom(RAMP), "other.dcm")  # the list has the first one again
    playwright.expect(page.locator("#tool-pan")).to_have_attribute("aria-pressed", "true")
    before = read_window(page)
    drag(page, 100, 50)
    assert read_window(page) == before


def test_keys_work_every_tool_and_never_what_is_typed(service: Process, open_page: Any) -> None:
    page = show(service, open_page)
    for key, tool in {"m": "pan", "z": "zoom", "r": "ruler", "g": "angle", "l": "lens", "w": "window"}.items():
        page.keyboard.press(key)
        playwright.expect(page.locator(f"#tool-{tool}")).to_have_attribute("aria-pressed", "true")
    before = page.locator("#caption").inner_text()
    for field in ("#comment", "#search"):
        page.locator(field).press_sequentially("turning flips, x 10 [ox] rig +-")
        assert page.locator(field).input_value() == "turning flips, x 10 [ox] rig +-"
    assert page.locator("#caption").inner_text() == before
    playwright.expect(page.locator(".turned").first).to_have_text("")
    playwright.expect(page.locator("#tool-window")).to_have_attribute("aria-pressed", "true")
    page.locator("#search").fill("")
    buttons = page.locator("#rail button")
    for button in buttons.all():
        assert button.get_attribute("data-tip")
        assert button.get_attribute("aria-keyshortcuts")
    assert buttons.evaluate_all("all => all.filter((one) => one.tabIndex === 0).length") == 1  # one stop for Tab


@pytest.mark.parametrize(
    ("elements", "unit"),
    [
        ({"ImagerPixelSpacing": [0.2, 0.2]}, "mm at the detector"),
        ({"PixelSpacing": [0.2, 0.2], "ImagerPixelSpacing": [0.2, 0.2]}, "mm at the detector"),
        ({"PixelSpacing": [0.2, 0.2], "ImagerPixelSpacing": [0.25, 0.25]}, "mm"),
        ({"PixelSpacing": [0.2, 0.2]}, "mm, calibration unknown"),
        ({}, "pixels (no spacing in the file)"),
    ],
)
def test_the_ruler_measures_in_mm_only_if_the_file_says_how_far_pixels_are_apart(
    service: Process, open_page: Any, elements: dict[str, Any], unit: str
) -> None:
    page = show(service, open_page, **elements)
    page.keyboard.press("r")
    watch_words(page)
    drag(page, 150, 0)
    page.wait_for_function("words => window.written.some((each) => each.endsWith(words))", arg=f" {unit}")
    length = float(page.evaluate("() => window.written.at(-1)").split()[0])
    pixels = 150 / (page.locator("#image").evaluate("canvas => Math.min(canvas.width, canvas.height)") / 512)
    assert length == pytest.approx(pixels * (0.2 if unit.startswith("mm") else 1), abs=1)
    page.keyboard.press("Delete")
    page.evaluate("() => { window.written = []; }")
    pixels_of(page)
    assert page.evaluate("() => window.written") == []


def watch_words(page: Any) -> None:
    """Notes what is written on a canvas."""
    page.evaluate(
        "() => { window.written = []; const own = CanvasRenderingContext2D.prototype.fillText;"
        "CanvasRenderingContext2D.prototype.fillText = function (words, ...rest) {"
        "  window.written.push(words); own.call(this, words, ...rest); }; }"
    )


def test_an_angle_is_measured_in_true_proportions_and_stays_with_its_image(service: Process, open_page: Any) -> None:
    page = show(service, open_page, PixelSpacing=[0.4, 0.2])
    watch_words(page)
    page.keyboard.press("g")
    box = page.locator("#image").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for place in ((x + 100, y), (x, y), (x + 60, y - 60)):
        page.mouse.click(*place)
    page.wait_for_function("() => window.written.at(-1)?.endsWith('°')")
    assert float(page.evaluate("() => window.written.at(-1)").rstrip("°")) == pytest.approx(45, abs=0.5)
    upload(page, dicom(RAMP // 2), "other.dcm")
    pixels_of(page)
    page.evaluate("() => { window.written = []; }")
    page.get_by_role("button", name="image.dcm").first.click()
    page.wait_for_function("() => window.written.at(-1)?.startsWith('45')")


@pytest.mark.parametrize(
    "elements", [{"PixelSpacing": [0.4, 0.2]}, {"ImagerPixelSpacing": [0.4, 0.2]}, {"PixelAspectRatio": [2, 1]}]
)
def test_pixels_have_their_true_proportions(service: Process, open_page: Any, elements: dict[str, Any]) -> None:
    page = show(
        service, open_page, np.full((256, 512), 3000, np.uint16), WindowCenter=2000, WindowWidth=1000, **elements
    )
    lit = pixels_of(page)[..., 0] > 128
    assert lit.any(axis=1).sum() == pytest.approx(lit.any(axis=0).sum(), abs=3)  # twice as high as wide


def test_the_corners_say_what_the_file_says_and_can_be_hidden(service: Process, open_page: Any) -> None:
    page = show(
        service, open_page, PatientAge="063Y", PatientSex="F", ViewPosition="PA", ImageLaterality="U", KVP=120,
        StudyDate="20240102", ImagerPixelSpacing=[0.143, 0.143],
    )  # fmt: skip
    corners = page.locator("#screen .corner")
    text = " ".join(corners.all_inner_texts())
    for words in (
        "63 years, female",
        "PA, U",
        "2024-01-02",
        "120 kVp",
        "512 × 512, 12 bits",
        "0.143 mm at the detector",
    ):
        assert words in text
    assert "W 4095 L 2048" in text
    page.keyboard.press("o")
    playwright.expect(corners.first).to_be_hidden()
    page.reload()
    upload(page, dicom(RAMP))
    playwright.expect(corners.first).to_be_hidden()


def test_turning_and_flipping_are_marked_and_take_the_sides_along(service: Process, open_page: Any) -> None:
    page = show(service, open_page, PatientOrientation=["L", "F"])
    plain = shades_of(page)
    sides = page.locator("#screen .side")  # left, right, top, bottom
    assert sides.all_inner_texts() == ["R", "L", "H", "F"]
    page.keyboard.press("x")
    assert sides.all_inner_texts() == ["L", "R", "H", "F"]
    playwright.expect(page.locator("#screen .turned")).to_have_text("Flipped left to right")
    assert_same(shades_of(page), plain[::-1])
    page.keyboard.press("x")
    page.keyboard.press("t")
    assert sides.all_inner_texts() == ["F", "H", "R", "L"]
    playwright.expect(page.locator("#screen .turned")).to_have_text("Turned right by 90°")
    shown = pixels_of(page)[..., 0]
    middle = shown[:, shown.shape[1] // 2]
    assert middle[len(middle) // 4] < middle[len(middle) * 3 // 4] - 50  # its left side is above
    page.keyboard.press("b")
    playwright.expect(page.locator("#screen .turned")).to_have_text("")
    assert_same(shades_of(page), plain)


def test_an_image_is_flipped_upside_down_by_key_and_button_however_it_is_turned(
    service: Process, open_page: Any
) -> None:
    page = show(service, open_page, np.ascontiguousarray(RAMP.T), PatientOrientation=["L", "F"])
    sides, turned = page.locator("#screen .side"), page.locator("#screen .turned")
    middle = pixels_of(page).shape[1] // 2
    plain = pixels_of(page)[:, middle, 0]
    page.keyboard.press("y")
    assert sides.all_inner_texts() == ["R", "L", "F", "H"]  # left, right, top, bottom
    playwright.expect(turned).to_have_text("Flipped upside down")
    playwright.expect(page.locator("#flip-vertical")).to_have_attribute("aria-pressed", "true")
    playwright.expect(page.locator("#flip")).to_have_attribute("aria-pressed", "false")
    assert np.median(np.abs(pixels_of(page)[:, middle, 0] - plain[::-1])) <= 2
    page.get_by_role("button", name="Flip left to right").click()
    playwright.expect(turned).to_have_text("Turned by 180°")
    page.keyboard.press("b")
    page.keyboard.press("t")
    assert sides.all_inner_texts() == ["F", "H", "R", "L"]
    page.get_by_role("button", name="Flip upside down").click()
    assert sides.all_inner_texts() == ["F", "H", "L", "R"]
    page.keyboard.press("?")
    playwright.expect(page.get_by_role("dialog", name="Help")).to_contain_text("Flip upside down")


@pytest.mark.parametrize("level", [0, 2000, 4000])  # white, grey and black
def test_the_words_over_an_image_are_legible_on_any_background(service: Process, open_page: Any, level: int) -> None:
    page = show(
        service, open_page, np.full((400, 512), 2000, np.uint16), PatientOrientation=["L", "F"], StudyDate="20240102"
    )
    type_window(page, 1000, level)
    page.locator("#level").blur()
    for _ in range(4):
        page.keyboard.press("+")  # it fills the screen
    page.keyboard.press("x")
    for place in (".top-left", ".top-right", ".bottom-right", ".caption", ".side-left", ".turned"):
        words = page.locator(f"#screen {place}")
        lights = np.asarray(Image.open(io.BytesIO(words.screenshot())).convert("L"), float) / 255
        light, dark = np.quantile(lights, (0.995, 0.3))
        contrast = (light**2.2 + 0.05) / (dark**2.2 + 0.05)
        assert contrast > 4.5, place


def test_sides_that_a_file_does_not_name_are_not_marked(service: Process, open_page: Any) -> None:
    page = show(service, open_page)
    assert set(page.locator("#screen .side").all_inner_texts()) == {""}


def test_the_magnifier_enlarges_what_is_under_the_mouse(service: Process, open_page: Any) -> None:
    page = show(service, open_page)
    plain = pixels_of(page)
    page.keyboard.press("l")
    box = page.locator("#image").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    shown = pixels_of(page)
    row, (left, right) = shown.shape[0] // 2, (shown.shape[1] // 2 - 80, shown.shape[1] // 2 + 80)
    spread = [int(each[row, right, 0] - each[row, left, 0]) for each in (plain, shown)]
    assert spread[1] < spread[0] / 2
    page.mouse.move(5, 5)
    assert (pixels_of(page) == plain).all()


def test_the_dark_theme_is_the_default_and_the_light_one_is_remembered_on_all_pages(
    service: Process, open_page: Any
) -> None:
    page = open_page(f"{service.url}/", color_scheme="light")
    ground = "() => getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.get_by_role("button", name="Light").click()
    light = page.evaluate(ground)
    assert light != dark
    page.add_init_script(  # what the first paint has
        "addEventListener('DOMContentLoaded', () => { window.first = document.documentElement.dataset.theme; })"
    )
    for address in ("", "monitoring", "node", "docs"):
        page.goto(f"{service.url}/{address}")
        assert page.evaluate("() => window.first") == "light"
        assert page.evaluate(ground) == light
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate(ground) == dark


@pytest.mark.parametrize(("width", "height"), [(1400, 900), (1920, 1080)])
def test_image_and_tools_fit_the_screen(service: Process, open_page: Any, width: int, height: int) -> None:
    page = open_page(f"{service.url}/")
    page.set_viewport_size({"width": width, "height": height})
    upload(page, dicom(RAMP))
    boxes = [each.bounding_box() for each in page.locator("#rail button, .windowing input, #image").all()]
    assert max(box["y"] + box["height"] for box in boxes) <= height
    image = page.locator("#image").bounding_box()
    assert image["height"] > 0.65 * height


def swipe(page: Any, y: float) -> None:
    box = page.locator("#image").bounding_box()
    at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] * 0.7}
    touch = page.context.new_cdp_session(page)
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [at]})
    for step in range(1, 9):
        point = {"x": at["x"], "y": at["y"] + y * step / 8}
        touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [point]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_timeout(300)


def test_a_finger_scrolls_the_page_and_moves_the_image_only_when_it_is_zoomed(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/", has_touch=True, is_mobile=True)
    page.set_viewport_size({"width": 390, "height": 844})
    upload(page, dicom(RAMP))
    page.locator("#image").scroll_into_view_if_needed()
    plain, top = pixels_of(page), page.evaluate("scrollY")
    swipe(page, -200)
    assert page.evaluate("scrollY") > top + 50
    assert (pixels_of(page) == plain).all()
    for _ in range(4):
        page.locator("#zoom-in").tap()
    zoomed = pixels_of(page)
    page.locator("#image").scroll_into_view_if_needed()
    top = page.evaluate("scrollY")
    swipe(page, -100)
    assert page.evaluate("scrollY") == top
    assert (pixels_of(page) != zoomed).any()


def test_evidence_is_off_at_first_and_its_opacity_is_kept(service: Process, open_page: Any) -> None:
    page = open_page(f"{service.url}/")
    upload_phantoms(page, 2)
    names = page.locator("#worklist tbody button").all_inner_texts()
    page.get_by_role("button", name=names[0]).click()
    shown = page.locator("#evidence-shown")
    playwright.expect(shown).to_have_attribute("aria-pressed", "false")
    assert np.ptp(pixels_of(page), axis=2).max() == 0
    limit = page.locator("#for").inner_text()
    page.locator("#opacity").fill("80")
    assert np.ptp(pixels_of(page), axis=2).max() > 10
    page.get_by_role("button", name=names[1]).click()
    playwright.expect(page.locator("#facts")).to_contain_text(names[1])
    playwright.expect(page.locator("#opacity")).to_have_value("80")
    playwright.expect(shown).to_have_attribute("aria-pressed", "true")
    assert page.locator("#for").inner_text() == limit  # one scale for all images
    playwright.expect(page.locator("#legend-label")).to_contain_text("Coarse: one value for")
    page.keyboard.press("h")
    assert np.ptp(pixels_of(page), axis=2).max() == 0
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Clear the list").click()
    page.reload()
    upload_phantoms(page, 1)
    playwright.expect(page.locator("#opacity")).to_have_value("80")
    playwright.expect(shown).to_have_attribute("aria-pressed", "false")


def upload_phantoms(page: Any, count: int) -> None:
    files = [{"name": f"{seed}.png", "mimeType": "image/png", "buffer": draw(seed)} for seed in range(count)]
    page.set_input_files("#files", files)
    playwright.expect(page.locator("#progress")).to_have_text(f"{count} of {count} predicted.", timeout=60_000)


def test_two_images_are_compared_with_linked_zoom_and_window(service: Process, open_page: Any) -> None:
    page = show(service, open_page)
    page.keyboard.press("v")
    upload(page, dicom(RAMP[:, ::-1] // 4), "other.dcm")
    playwright.expect(page.locator("#screen .top-left")).to_contain_text("other.dcm")
    playwright.expect(page.locator("#screen-2 .top-left")).to_contain_text("image.dcm")
    second = "#screen-2 .caption"
    zooms = read_zoom(page), read_zoom(page, second)
    page.keyboard.press("+")
    assert read_zoom(page) == pytest.approx(zooms[0] * 1.25, abs=1)
    assert read_zoom(page, second) == pytest.approx(zooms[1] * 1.25, abs=1)
    page.keyboard.press("[")
    playwright.expect(page.locator(second)).to_contain_text("W 3686")  # nine tenths of its own
    drag(page, 0, -50, "right", "#image-2")  # the second one moves the first
    assert read_zoom(page) > zooms[0] * 1.4
    page.get_by_role("button", name="Linked").click()
    before = read_zoom(page)
    drag(page, 0, -50, "right", "#image-2")
    assert read_zoom(page) == before
    page.get_by_role("button", name="Close").click()
    playwright.expect(page.locator("#screen-2")).to_be_hidden()
    page.keyboard.press("0")
    assert read_zoom(page) > zooms[0]  # it has all the room again


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_axe_finds_nothing_moderate_or_worse_in_a_comparison_with_the_help_open(
    service: Process, open_page: Any, theme: str, width: int
) -> None:
    axe_module = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = open_page(f"{service.url}/", bypass_csp=True)  # axe is a script from elsewhere
    page.set_viewport_size({"width": width, "height": 844})
    page.evaluate("theme => localStorage.setItem('theme', theme)", theme)
    page.reload()
    upload(page, dicom(RAMP, PatientOrientation=["L", "F"]))
    page.keyboard.press("v")
    page.keyboard.press("x")
    page.get_by_role("button", name="Help").click()
    violations = axe_module.Axe().run(page).response["violations"]
    assert [
        (one["id"], one["nodes"][0]["html"])
        for one in violations
        if one["impact"] in ("moderate", "serious", "critical")
    ] == []
    assert page.locator("html").evaluate("page => page.scrollWidth") <= width
