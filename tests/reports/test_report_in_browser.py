"""The report in a real browser: it moves as the figures do, fits a phone, and prints whole."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from pneumoscope.auditing.findings import Finding
from pneumoscope.evaluation.decision_summary import summarise_decisions
from pneumoscope.evaluation.evaluate import Measured
from pneumoscope.evaluation.intervals.all_metrics import evaluate_predictions
from pneumoscope.evaluation.results import Adjusted, Interval
from pneumoscope.evaluation.subgroups import measure_subgroups
from pneumoscope.inference.prediction import Prediction
from pneumoscope.reports.pictures import to_uri
from pneumoscope.reports.report import Policy, Provenance, write_report

CLASSES = ("NORMAL", "PNEUMONIA")
THRESHOLD = 0.4137
N = 160


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless chromium."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        program = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield program
        program.close()


@pytest.fixture(scope="module")
def truth() -> tuple[Any, Any]:
    """Labels and probabilities of the report."""
    rng = np.random.default_rng(3)
    y = (rng.random(N) < 0.4).astype(int)
    return y, 1 / (1 + np.exp(-rng.normal(4 * y - 2, 2)))


@pytest.fixture(scope="module")
def report(truth: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with all its sections."""
    from dataclasses import replace

    from PIL import Image

    y, p = truth
    evaluation = evaluate_predictions(y, p, classes=CLASSES, threshold=THRESHOLD, resamples=50)
    adjusted = Adjusted({"NORMAL": 0.9, "PNEUMONIA": 0.1}, Interval(0.1, 0.05, 0.2), True, 0.1, evaluation.metrics)
    labels = [CLASSES[int(share >= THRESHOLD)] for share in p]
    decisions = [
        "out_of_distribution" if i % 40 == 0 else "uncertain" if i % 9 == 0 else label for i, label in enumerate(labels)
    ]
    predictions = [
        Prediction(
            path=Path(f"a_folder_with_a_long_name/person{i}_{'virus' if i % 2 else 'bacteria'}_{i}.jpeg"),
            label=CLASSES[y[i]], probabilities=dict(zip(CLASSES, (1 - p[i], p[i]), strict=True)),
            predicted_label=labels[i], decision=decisions[i], prediction_set=CLASSES, ood_score=0.1,
        )
        for i in range(N)
    ]  # fmt: skip
    picture = io.BytesIO()
    Image.effect_noise((400, 200), 60).save(picture, "JPEG")
    folder = tmp_path_factory.mktemp("report")
    write_report(
        folder,
        Measured(
            replace(
                evaluation,
                adjusted=adjusted,
                subgroups=tuple(measure_subgroups(predictions, evaluation)),
                decisions=summarise_decisions([CLASSES[label] for label in y], decisions, [CLASSES] * N, CLASSES),
            ),
            predictions,
            uncalibrated=p**2,
            errors=[("a/broken/file/with_a_name_that_is_much_longer_than_a_telephone_is_wide.jpeg", "truncated")],
        ),
        title="Chest radiograph classifier: NORMAL or PNEUMONIA",
        policy=Policy("youden", "platt", 80, 0.1),
        provenance=Provenance(
            [{"epoch": i, "train_loss": 1 / i, "val_loss": 1.2 / i} for i in range(1, 9)],
            [
                Finding(
                    "quality",
                    "warning",
                    "A finding",
                    "Its advice, with_a_word_that_is_much_longer_than_a_telephone_is_wide",
                )
            ],
            ["A note"],
            {"Data fingerprint": "0123456789abcdef" * 4, "Command": "pneumoscope train --config runs/x/config.yaml"},
            {"Processor": "an abacus"},
        ),
        draw=lambda _: to_uri(picture.getvalue(), "jpeg"),
    )
    return folder / "report.html"


@pytest.fixture
def open_page(browser: Any, report: Path) -> Iterator[Any]:
    """Opens the report; fails afterwards if it complained, or asked for anything but itself."""
    complaints: list[str] = []
    requests: list[str] = []
    contexts = []

    def opened(**options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda problem: complaints.append(str(problem)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(report.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []
    assert {url for url in requests if not url.startswith("data:")} <= {report.as_uri()}


def shown(page: Any, part: str) -> str:
    return str(page.locator(f'[data-part="{part}"]').text_content())


def check_figures(page: Any, truth: tuple[Any, Any], threshold: float, prevalence: float) -> None:
    """Hold what the page shows against NumPy and SciPy."""
    y, p = truth
    hits, rejected = int((p[y == 1] >= threshold).sum()), int((p[y == 0] < threshold).sum())
    ill, healthy = int((y == 1).sum()), int((y == 0).sum())
    sensitivity, specificity = hits / ill, rejected / healthy
    positive, negative = (
        sensitivity * prevalence + (1 - specificity) * (1 - prevalence),
        (1 - sensitivity) * prevalence + specificity * (1 - prevalence),
    )
    expected = {
        "sensitivity": sensitivity, "specificity": specificity,
        "ppv": sensitivity * prevalence / positive if positive else math.nan,
        "npv": specificity * (1 - prevalence) / negative if negative else math.nan,
    }  # fmt: skip
    for name, value in expected.items():
        text = shown(page, name)
        assert text == "–" if math.isnan(value) else float(text) == pytest.approx(value, abs=0.00051), name
    for name, k, n in (("sensitivity", hits, ill), ("specificity", rejected, healthy)):
        interval = binomtest(k, n).proportion_ci(0.95, method="wilson")
        low, high = map(float, shown(page, f"{name}-interval").split(" to "))
        assert (low, high) == pytest.approx((interval.low, interval.high), abs=0.00051)
    counts = [int(shown(page, name)) for name in ("detected", "missed", "alarms", "cleared")]
    assert sum(counts) == 1000
    assert counts[0] + counts[1] == pytest.approx(1000 * prevalence, abs=0.51)
    assert counts[0] == pytest.approx(1000 * prevalence * sensitivity, abs=1.01)
    assert counts[2] == pytest.approx(1000 * (1 - prevalence) * (1 - specificity), abs=1.01)


def test_the_threshold_moves_by_keyboard_and_mouse(open_page: Any, truth: tuple[Any, Any]) -> None:
    page = open_page()
    data = json.loads(page.locator("#explorer").get_attribute("data-points"))
    at = float(truth[0].mean())
    assert shown(page, "threshold-value") == f"{THRESHOLD} (model)"
    assert page.locator('[data-part="reset"]').is_disabled()
    check_figures(page, truth, THRESHOLD, at)
    slider = page.locator("#threshold")
    slider.focus()
    for key, threshold in (
        ("ArrowRight", 0.42),
        ("ArrowRight", 0.43),
        ("ArrowLeft", 0.42),
        ("Home", 0.001),
        ("End", 0.999),
    ):
        page.keyboard.press(key)
        assert shown(page, "threshold-value") == f"{threshold:g}" == slider.get_attribute("aria-valuetext")
        check_figures(page, truth, threshold, at)
    box = slider.bounding_box()
    page.mouse.click(box["x"] + 0.8 * box["width"], box["y"] + box["height"] / 2)
    threshold = data["thresholds"][int(slider.input_value())]
    assert 0.6 < threshold < 0.95
    check_figures(page, truth, threshold, at)
    page.locator('[data-part="reset"]').click()
    check_figures(page, truth, THRESHOLD, at)


def test_the_prevalence_moves_by_slider_and_by_number(open_page: Any, truth: tuple[Any, Any]) -> None:
    page = open_page()
    page.locator("#prevalence").focus()
    page.keyboard.press("Home")
    assert shown(page, "prevalence-value") == "0.1%"
    assert page.locator("#percent").input_value() == "0.1"
    check_figures(page, truth, THRESHOLD, 0.001)
    page.keyboard.press("PageUp")
    check_figures(page, truth, THRESHOLD, float(page.locator("#percent").input_value()) / 100)
    page.locator("#percent").fill("7.25")
    assert shown(page, "prevalence-value") == "7.25%"
    check_figures(page, truth, THRESHOLD, 0.0725)
    page.locator("#percent").fill("120")  # an invalid value changes nothing
    check_figures(page, truth, THRESHOLD, 0.0725)
    page.locator("#percent").blur()
    assert page.locator("#percent").input_value() == "7.25"


@pytest.mark.parametrize("width", [320, 390, 800, 1280])
def test_nothing_is_wider_than_the_screen(open_page: Any, width: int) -> None:
    page = open_page(viewport={"width": width, "height": 844})
    page.locator("details").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # what may scroll by itself is a table and nothing else
    wide = page.evaluate(
        "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1"
        " && !e.closest('.scroll')).map(e => e.tagName + '.' + e.className)"
    )
    assert wide == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_themes_can_be_read(open_page: Any, scheme: str) -> None:
    page = open_page(color_scheme=scheme)

    def luminance(script: str) -> float:
        red, green, blue = (int(part) / 255 for part in page.evaluate(script).split("(")[1].rstrip(")").split(",")[:3])
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]  # WCAG 2.2

    ground = luminance("getComputedStyle(document.body).backgroundColor")
    assert ground < 0.02 if scheme == "dark" else ground > 0.85
    for style in (".sheet", "body"):
        behind = luminance(f"getComputedStyle(document.querySelector('{style}')).backgroundColor")
        for selector in (
            "h1",
            ".headline dd",
            ".headline dt",
            "figcaption",
            "td.value",
            ".plot-roc .plot",
            "tr.group th",
        ):
            ink = luminance(f"getComputedStyle(document.querySelector('{selector}')).color")
            lighter, darker = max(ink, behind), min(ink, behind)
            assert (lighter + 0.05) / (darker + 0.05) > 4.5, (selector, style)


def test_print_shows_all_there_is(open_page: Any) -> None:
    page = open_page(color_scheme="dark")
    sections = page.locator("main > section")
    assert not page.locator(".points table").is_visible()
    page.emulate_media(media="print")
    assert page.locator(".points table").is_visible()
    assert not page.locator("#threshold").is_visible()
    assert not page.locator("nav").is_visible()
    assert sections.count() == 12
    assert all(sections.nth(i).is_visible() for i in range(sections.count()))
    assert all(figure.is_visible() for figure in page.locator("figure").all())
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('.plot-roc .plot')).color") == "rgb(29, 39, 51)"
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_without_script_a_table_stands_in(open_page: Any, truth: tuple[Any, Any]) -> None:
    page = open_page(java_script_enabled=False)
    y, p = truth
    assert not page.locator(".explorer").is_visible()
    row = page.locator(".points tr", has_text="(model)")
    assert f"{(p[y == 1] >= THRESHOLD).mean():.3f}" in str(row.text_content())


def test_an_image_opens_larger(open_page: Any) -> None:
    page = open_page(viewport={"width": 1180, "height": 900})
    image = page.locator(".exhibit img").first
    before = image.bounding_box()["width"]
    image.click()
    assert image.bounding_box()["width"] > 1.8 * before
    assert page.evaluate("document.querySelector('.exhibit img').naturalWidth") == 400
