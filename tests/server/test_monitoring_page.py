"""The monitoring page: shares over time and by group."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from services import run_thread
from test_store import make_record

from pneumoscope.server.storage.store import Review, Store, now

if TYPE_CHECKING:
    from pneumoscope.server.settings import Settings

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


def fill(database: str, fingerprint: str) -> None:
    """60 images in six days, of which 15 are uncertain and 30 have a review."""
    records = [
        make_record(
            sha256=str(i), fingerprint=fingerprint, view=("PA", "AP", None)[i % 3], age=i + 0.0,
            decision="uncertain" if i % 4 == 0 else "PNEUMONIA",
            created_at=now() - datetime.timedelta(days=i // 10),
        )
        for i in range(60)
    ]  # fmt: skip
    with Store(database) as store:
        store.add(records)
        store.add([Review(prediction_id=record.id, agrees=True) for record in records[:30]])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_shows_shares_by_time_and_group_and_is_accessible(
    settings: Settings, open_page: Any, scheme: str, width: int
) -> None:
    axe_module = pytest.importorskip("axe_playwright_python.sync_playwright")
    with run_thread(settings) as url:
        fill(settings.database or "", httpx.get(f"{url}/v1/models").json()[0]["fingerprint"])
        page = open_page(f"{url}/monitoring", color_scheme=scheme, bypass_csp=True)  # axe is a script from elsewhere
        page.set_viewport_size({"width": width, "height": 850})
        rows = page.locator("#groups tbody tr")
        playwright.expect(rows.filter(has_text="PA").first).to_contain_text("20")
        unknown = rows.filter(has=page.get_by_role("rowheader", name="unknown", exact=True)).first
        playwright.expect(unknown.locator("td").first).to_have_text("20")
        page.locator("summary", has_text="Numbers").click()
        assert page.locator("#parts tr").count() == 3  # days with 10 images are pooled by two
        assert page.locator("#trends svg").count() == 3
        title = page.locator("#trends svg").nth(1).locator("title").first
        assert "25%, " in title.text_content()
        assert page.locator("html").evaluate("page => page.scrollWidth") <= width
        found = axe_module.Axe().run(page).response["violations"]
        assert [f"{one['id']}: {one['help']}" for one in found if one["impact"] in ("serious", "critical")] == []
