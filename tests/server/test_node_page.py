"""The page of the DICOM node in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from archives import find_port, run_orthanc
from node_rows import ERROR, answer, fill_queue, list_all, make_row, open_queue
from peers import require, run_node, storescu, to_dicom, write_image
from services import run_thread

if TYPE_CHECKING:
    from pneumoscope.server.settings import Settings

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


@contextmanager
def show_node(settings: Settings, open_page: Any, **options: Any) -> Iterator[Any]:
    """The page; it is closed before its service ends, as it would ask for more."""
    with run_thread(settings) as url:
        page = open_page(f"{url}/node", **options)
        yield page
        page.close()


def row_of(page: Any, number: int) -> Any:
    """The row of an image, by its study."""
    return page.locator("#images tr", has_text=f"study {number:012x}")


def read_cards(page: Any) -> dict[str, str]:
    cards = page.locator("#cards .card").all()
    return {card.locator("h2").inner_text(): card.locator("strong").inner_text() for card in cards}


def test_a_real_node_is_seen_at_work(settings: Settings, open_page: Any, tmp_path: Path) -> None:
    require("storescu")
    (tmp_path / "images").mkdir()
    images = [write_image(tmp_path / "images" / f"{number}.dcm", number, 1) for number in range(2)]
    images.append(write_image(tmp_path / "images" / "lateral.dcm", 2, 1, ViewPosition="LL"))
    images.append(write_image(tmp_path / "images" / "short.dcm", 3, 1, PixelData=b"too short "))
    down = {"name": "research", "host": "127.0.0.1", "port": find_port(), "title": "DOWN"}
    expect = playwright.expect
    with (
        run_orthanc(tmp_path / "orthanc") as archive,
        show_node(settings, open_page) as page,
    ):
        expect(page.locator("#nobody")).to_contain_text("No DICOM node uses the database")
        destinations = [{"name": "archive", **to_dicom(archive, verify="find")}, down]
        rules = [{"view": ["LL"], "answer": False}, {}]
        with run_node(tmp_path / "node", database=settings.database, destinations=destinations, rules=rules) as node:
            expect(page.locator("#nothing-yet")).to_be_visible()
            assert storescu(node.port, images).returncode == 0
            rows = page.locator("#images tr")
            expect(rows).to_have_count(4)
            expect(rows.filter(has_text="Structured report and picture: delivered to archive")).to_have_count(2)
            expect(rows.filter(has_text="Structured report and picture: waiting to be sent to research")).to_have_count(
                2
            )
            expect(rows.filter(has_text="Not answered: rule 1")).to_have_count(1)
            expect(rows.filter(has_text="Set aside: ")).to_have_count(1)
            expect(rows.filter(has_text="from MODALITY")).to_have_count(4)
            assert read_cards(page) == {"Waiting": "0", "Answered today": "2", "Set aside": "1", "Not delivered": "4"}
        for secret in ("SECRET", "Secret", "ACC", "1.2.3."):
            assert secret not in page.content()


def test_every_state_is_said_in_words(settings: Settings, open_page: Any) -> None:
    fill_queue(settings.database or "")
    with show_node(settings, open_page) as page:
        expect = playwright.expect
        expect(row_of(page, 0)).to_contain_text("PNEUMONIA, probability 0.900")
        expect(row_of(page, 0)).to_contain_text("a lateral view")
        expect(row_of(page, 0)).to_contain_text("Structured report: delivered to archive")
        expect(row_of(page, 0)).to_contain_text(f"not yet delivered to research, refused 2 times: {ERROR}")
        expect(row_of(page, 0)).to_contain_text(f"Picture: could not be delivered to archive: {ERROR}")
        expect(row_of(page, 1)).to_contain_text("out of distribution")
        expect(row_of(page, 1)).not_to_contain_text("probability")
        expect(row_of(page, 1)).to_contain_text("sent to archive, not yet confirmed")
        expect(row_of(page, 2)).to_contain_text("waiting to be sent to archive")
        expect(row_of(page, 3)).to_contain_text("Set aside: its pixels cannot be read")
        expect(row_of(page, 4)).to_contain_text("Lost: its file is not in the spool any more")
        expect(row_of(page, 5)).to_contain_text("Being answered")
        expect(row_of(page, 6)).to_contain_text("Waiting for more images of its study")
        expect(row_of(page, 7)).to_contain_text("Not answered: rule 2")
        expect(row_of(page, 8)).to_contain_text("over HTTP (STOW-RS)")
        expect(page.locator("#destinations tr", has_text="archive")).to_contain_text(ERROR)
        assert read_cards(page) == {"Waiting": "3", "Answered today": "3", "Set aside": "1", "Not delivered": "7"}
        expect(page.locator("nav [aria-current]")).to_have_text("DICOM node")


def test_rows_that_have_not_changed_stay_when_the_page_looks_again(settings: Settings, open_page: Any) -> None:
    database = settings.database or ""
    fill_queue(database)
    with show_node(settings, open_page) as page, open_queue(database) as queue:
        playwright.expect(row_of(page, 6)).to_contain_text("Waiting for more")
        page.evaluate("for (const each of document.querySelectorAll('#node tr, .card')) each.marked = true")
        queue.finish([answer(image, "sr") for image in list_all(queue) if int(image.key, 16) == 6], ["archive"], True)
        queue.add_images([make_row(9)])
        playwright.expect(row_of(page, 6)).to_contain_text("not sent to archive: dry run")
        playwright.expect(page.locator("#images tr").first).to_contain_text(f"study {9:012x}")
        marked = "row => Boolean(row.marked)"
        assert row_of(page, 0).evaluate(marked)
        assert not row_of(page, 6).evaluate(marked)
        assert page.locator("#cards .card").first.evaluate(marked)
        assert page.locator("#destinations tr", has_text="research").evaluate(marked)
        assert page.locator("#images tr").count() == 10


def test_nothing_is_asked_while_the_tab_is_hidden(settings: Settings, open_page: Any) -> None:
    fill_queue(settings.database or "")
    with run_thread(settings) as url:
        page = open_page(f"{url}/healthz", quiet=False)
        page.clock.install()
        asked: list[str] = []
        page.on("response", lambda response: asked.append(response.url) if response.url.endswith("/v1/node") else None)
        page.goto(f"{url}/node")
        playwright.expect(row_of(page, 0)).to_be_visible()
        with page.expect_response("**/v1/node"):
            page.clock.run_for(5000)
        page.wait_for_load_state("networkidle")
        hide = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true});"
        tell = "document.dispatchEvent(new Event('visibilitychange'))"
        page.evaluate(hide % "true" + tell)
        before = len(asked)
        page.clock.run_for(60_000)
        page.wait_for_load_state("networkidle")
        assert len(asked) == before
        with page.expect_response("**/v1/node"):
            page.evaluate(hide % "false" + tell)


def test_a_node_of_another_version_and_a_lost_service_are_said(settings: Settings, open_page: Any) -> None:
    with run_thread(settings) as url:
        page = open_page(f"{url}/node", quiet=False)
        playwright.expect(page.locator("#nobody")).to_be_visible()
        problem = {"status": 409, "json": {"detail": "Run them with the same version."}}
        page.route("**/v1/node", lambda route: route.fulfill(**problem))
        playwright.expect(page.locator("#state")).to_have_text("Run them with the same version.")
        page.unroute("**/v1/node")
        playwright.expect(page.locator("#state")).to_have_text("")
    playwright.expect(page.locator("#state")).to_have_text("The service does not respond.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_is_accessible_and_needs_no_sideways_scrolling(
    settings: Settings, open_page: Any, scheme: str, width: int
) -> None:
    axe_module = pytest.importorskip("axe_playwright_python.sync_playwright")
    fill_queue(settings.database or "")
    options = {"color_scheme": scheme, "bypass_csp": True}  # axe is a script from elsewhere
    with show_node(settings, open_page, **options) as page:
        page.set_viewport_size({"width": width, "height": 850})
        playwright.expect(row_of(page, 0)).to_be_visible()
        assert page.locator("html").evaluate("page => page.scrollWidth") <= width
        found = axe_module.Axe().run(page).response["violations"]
        assert [f"{one['id']}: {one['help']}" for one in found if one["impact"] in ("serious", "critical")] == []
        page.keyboard.press("Tab")
        names = []
        for _ in range(4):
            names.append(page.locator(":focus").inner_text())
            page.keyboard.press("Tab")
        assert names == ["Images", "Monitoring", "DICOM node", "API"]
