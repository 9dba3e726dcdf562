"""Pictures of the reading room for the documentation, of simulated images only.

Needs playwright and chromium, and a model that was trained on simulated images:

    pneumoscope demo --out runs/demo
    python benchmarks/reading_room_pictures.py runs/demo --out docs

With `--all`, each page is also pictured at every size in both themes, to be looked at.
"""

from __future__ import annotations

import argparse
import io
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from pneumoscope.datasets.phantom_dicom import to_dicom
from pneumoscope.datasets.phantoms import draw_phantom

SIZES = {"laptop": (1400, 900), "large": (1920, 1080), "phone": (390, 844)}
COLOURS = 256  # of a picture that is written
NOW, BEFORE = "20260301", "20240615"


def write_studies(folder: Path) -> Path:
    """Simulated studies: one with a lateral and an earlier image, which are frontal ones with other tags."""
    from pydicom import dcmread

    folder.mkdir()
    plan = [(seed, f"phantom{seed:02}", NOW, "PA", 20 + seed) for seed in range(1, 11)]
    plan += [(1, "phantom01", NOW, "LL", 11), (1, "phantom01", BEFORE, "PA", 12), (4, "phantom04", BEFORE, "PA", 14)]
    for number, (seed, patient, date, view, drawing) in enumerate(plan):
        pixels = draw_phantom(drawing, pneumonia=date == NOW and bool(seed % 2), patient=seed, size=768).pixels
        data = dcmread(io.BytesIO(to_dicom(pixels, patient, 1, 70 + seed)))
        uid = f"2.25.{seed}{date}"
        data.StudyInstanceUID, data.SeriesInstanceUID, data.SOPInstanceUID = uid, f"{uid}.1", f"{uid}.1.{number + 1}"
        data.StudyDate, data.ViewPosition = date, view
        data.AccessionNumber = f"SIM{seed:03}{date[2:4]}"
        data.save_as(folder / f"{patient}-{date[:4]}-{view.lower()}.dcm")
    return folder


@contextmanager
def serve(model: Path, folder: Path) -> Iterator[str]:
    """A service with an empty database."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pneumoscope", "serve", "--model", str(model), "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--database", str(folder / "pictures.sqlite"), "--keep-images", str(folder / "kept")],
        stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}/"
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}readyz")
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def open_page(browser: Any, url: str, size: str, theme: str) -> Page:
    """A page of the reading room in a theme."""
    width, height = SIZES[size]
    page: Page = browser.new_context(viewport={"width": width, "height": height}).new_page()
    page.goto(url)
    page.evaluate("theme => localStorage.setItem('theme', theme)", theme)
    page.reload()
    return page


def add(page: Page, studies: Path) -> None:
    """Add the studies, and wait until they have predictions."""
    files = sorted(studies.iterdir())
    page.set_input_files("#files", files)
    expect(page.locator("#progress")).to_contain_text(f"{len(files)} of {len(files)} predicted.", timeout=180_000)


def select(page: Page, name: str) -> None:
    """Show an image of the list, with what belongs beside it."""
    page.locator("#search").fill(name)
    page.locator("#worklist").get_by_role("button", name=name).first.click()
    page.locator("#search").fill("")
    page.locator("#search").blur()
    expect(page.locator("#caption")).to_contain_text("zoom", timeout=60_000)
    page.locator(".stage").evaluate("stage => { if (innerWidth < 700) stage.scrollIntoView(); }")
    page.wait_for_timeout(2000)  # thumbnails


def review(page: Page, name: str, answer: str) -> None:
    """Review an image."""
    select(page, name)
    page.get_by_label(answer).check()
    page.get_by_label("Reviewer").fill("jane")
    page.get_by_role("button", name="Save review").click()
    expect(page.locator("#saved")).to_contain_text("Saved", timeout=30_000)


def show_image(page: Page) -> None:
    """One image with its evidence."""
    select(page, "phantom03-2026")
    page.keyboard.press("h")
    page.wait_for_timeout(500)


def show_study(page: Page) -> None:
    """An image beside the earlier one of the same patient."""
    page.get_by_label("Group by study").check()
    select(page, "phantom01-2026-pa")
    page.locator("#strip-list .beside").last.click()
    page.wait_for_timeout(1500)


def show_worklist(page: Page) -> None:
    """The list, sorted by its decisions."""
    page.get_by_label("Group by study").check()
    page.locator('[data-sort="decision"]').click()
    select(page, "phantom04-2026")


def write(page: Page, path: Path) -> None:
    """Write what the page shows, with few colours."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    few = picture.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(path, "PNG", optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def show_help(page: Page) -> None:
    """The help over one image."""
    select(page, "phantom03-2026")
    page.keyboard.press("?")
    page.wait_for_timeout(500)


def show_blind(page: Page, studies: Path) -> None:
    """Blind reading, before the answer of the second image."""
    page.get_by_role("button", name="Blind", exact=True).click()
    files = sorted(studies.iterdir())
    page.set_input_files("#files", files)
    expect(page.locator("#progress")).to_contain_text(f"{len(files)} of {len(files)} ready.", timeout=180_000)
    select(page, "phantom01-2026-pa")
    page.locator("#reading-reader").fill("jane")
    page.keyboard.press("Escape")
    for key in ("2", "k", "Enter"):
        page.keyboard.press(key)
    expect(page.locator("#compared")).to_be_visible(timeout=30_000)
    select(page, "phantom03-2026")
    page.keyboard.press("2")


def show_teaching(page: Page, _: Path) -> None:
    """Teaching: a case with its answer, after some others."""
    page.get_by_role("button", name="Teaching", exact=True).click()
    for number, key in enumerate("121212"):
        if number:
            page.keyboard.press("s")
        expect(page.locator("#image")).to_have_attribute("aria-label", f"Image Case {number + 1}.", timeout=30_000)
        page.keyboard.press(key)
        page.keyboard.press("Enter")
        expect(page.locator("#compared")).to_be_visible(timeout=30_000)
    page.wait_for_timeout(500)


MODES = {"reading-modes-blind": show_blind, "reading-modes-teaching": show_teaching}
ROOM = {
    "reading-room": show_image,
    "reading-room-study": show_study,
    "reading-room-worklist": show_worklist,
    "reading-room-help": show_help,
}
PICTURES = {  # of the documentation
    ("reading-room", "laptop", "dark"),
    ("reading-room-study", "laptop", "dark"),
    ("reading-room-worklist", "laptop", "light"),
    ("reading-room-phone", "phone", "dark"),
    ("reading-room-monitoring", "laptop", "light"),
    ("reading-modes-blind", "laptop", "dark"),
    ("reading-modes-teaching", "laptop", "dark"),
}


def picture_all(url: str, studies: Path, out: Path, everything: bool) -> None:
    """Write the pictures."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for size in SIZES:
            for theme in ("dark", "light"):
                wanted = {name for name, *kind in PICTURES if kind == [size, theme]}
                if not wanted and not everything:
                    continue
                page = open_page(browser, url, size, theme)
                add(page, studies)
                for name, show in ROOM.items():
                    named = "reading-room-phone" if size == "phone" and show is show_image else name
                    if not everything and named not in wanted:
                        continue
                    show(page)
                    if show is show_worklist:
                        review(page, "phantom02", "I agree")
                        review(page, "phantom06", "I disagree")
                        select(page, "phantom04-2026")
                    picture(page, out, named if named in wanted else f"{name}-{size}-{theme}")
                page.goto(f"{url}monitoring")
                page.wait_for_timeout(1500)
                if everything or "reading-room-monitoring" in wanted:
                    name = "reading-room-monitoring"
                    picture(page, out, name if name in wanted else f"{name}-{size}-{theme}")
                for name, begin in MODES.items():
                    if everything or name in wanted:
                        page.context.close()
                        page = open_page(browser, url, size, theme)
                        begin(page, studies)
                        picture(page, out, name if name in wanted else f"{name}-{size}-{theme}")
                page.context.close()
        browser.close()


def picture(page: Page, out: Path, name: str) -> None:
    """Write a picture by its name."""
    write(page, out / f"{name}.png")


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--all", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        studies = write_studies(Path(temporary) / "studies")
        with serve(arguments.model, Path(temporary)) as url:
            picture_all(url, studies, arguments.out, arguments.all)


if __name__ == "__main__":
    main()
