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
from services import Process

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
RAMP = np.tile(np.linspace(0, 4095, 512).astype(np.uint16), (512, 1))
VALUES = RAMP[0].astype(float)
Shades = NDArray[np.int_]


def upload(page: Any, content: bytes, name: str = "image.dcm") -> None:
    page.set_input_files("#files", [{"name": name, "mimeType": "application/octet-stream", "buffer": content}])
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
    page.keyboard.press("3")
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
