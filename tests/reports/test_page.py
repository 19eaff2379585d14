"""The page in a real browser: no errors, a table that sorts and filters, values under the pointer, and widths from 400 to 1600 pixels."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine: the page was NOT tested in a browser (install Debian's chromium)"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Opened:
    """A page, and what it complained about."""

    def __init__(self, browser: Any, path: Path, width: int = 1200, scheme: str = "light") -> None:
        self.complaints: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        self.page.on("console", lambda message: self.complaints.append(message.text) if message.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", lambda request: self.complaints.append(request.url[:200]))
        self.page.goto(path.as_uri())
        self.page.wait_for_function("document.documentElement.dataset.ready === 'yes'", timeout=20_000)

    def column(self, number: int) -> list[str]:
        return self.page.eval_on_selector_all("#layer-table tbody tr", f"rows => rows.map(row => row.children[{number}].innerText)")


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_without_complaint_and_does_not_overflow(browser, full_run: Path, width: int, scheme: str) -> None:
    opened = Opened(browser, full_run / "report.html", width, scheme)
    assert opened.complaints == []
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    text, ground = opened.page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    light = [sum(map(int, colour[4:-1].split(","))) for colour in (text, ground)]
    assert (light[0] < light[1]) == (scheme == "light")
    cell = opened.page.locator("#layer-table tbody td").first
    ink, over = cell.evaluate("cell => [getComputedStyle(cell).color, getComputedStyle(cell.closest('.dt-container')).backgroundColor]")
    assert ink == text and over == "rgba(0, 0, 0, 0)", "the table has the page's own colours"
    assert opened.page.eval_on_selector_all(
        "nav[aria-label='Contents'] a", "links => links.every(a => document.querySelector(a.getAttribute('href')))"
    )


def test_the_layer_table_sorts_by_numbers_and_filters(browser, full_run: Path) -> None:
    opened = Opened(browser, full_run / "report.html")
    costs = "#layer-table thead th:nth-child(5)"
    opened.page.click(costs)
    opened.page.wait_for_selector(f"{costs}[aria-sort=ascending]")
    ascending = [float(text.replace(",", "")) for text in opened.column(4)]
    opened.page.click(costs)
    opened.page.wait_for_selector(f"{costs}[aria-sort=descending]")
    descending = [float(text.replace(",", "")) for text in opened.column(4)]
    assert ascending == sorted(ascending) and descending == sorted(descending, reverse=True) and ascending[0] < descending[0]
    opened.page.select_option("#role-filter", "attention key")
    assert opened.column(1) and set(opened.column(1)) == {"attention key"}
    opened.page.select_option("#role-filter", "")
    opened.page.fill(".dt-search input", "blocks.2.attn1.to_q")
    assert opened.column(0) == ["transformer_blocks.2.attn1.to_q"]
    assert opened.complaints == []


def test_values_are_told_where_one_points(browser, full_run: Path) -> None:
    opened = Opened(browser, full_run / "report.html")
    spots = opened.page.locator("#sensitivity_rates .spots i")
    assert spots.count() > 100
    figure, first = opened.page.locator("#sensitivity_rates img").bounding_box(), spots.first.bounding_box()
    assert figure["x"] <= first["x"] and first["x"] + first["width"] <= figure["x"] + figure["width"]
    assert figure["y"] <= first["y"] and first["y"] + first["height"] <= figure["y"] + figure["height"]
    assert "pos_embed.proj, 1.5 bits: " in spots.first.get_attribute("title")


def test_images_enlarge_and_go_back(browser, full_run: Path) -> None:
    opened = Opened(browser, full_run / "report.html")
    opened.page.click("button.zoom")
    assert opened.page.locator("dialog").is_visible()
    small, large = (opened.page.locator(selector).bounding_box()["width"] for selector in ("#images img", "dialog img"))
    assert large > small
    opened.page.click("dialog img")
    assert not opened.page.locator("dialog").is_visible()
    opened.page.click("button.zoom")
    opened.page.keyboard.press("Escape")
    assert not opened.page.locator("dialog").is_visible() and opened.complaints == []


def test_it_prints_on_pages(browser, full_run: Path) -> None:
    opened = Opened(browser, full_run / "report.html")
    pdf = opened.page.pdf(format="A4")
    assert pdf.startswith(b"%PDF") and 4 <= pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") <= 30
    opened.page.emulate_media(media="print")
    assert not opened.page.locator("nav[aria-label='Contents']").is_visible() and not opened.page.locator(".filters").is_visible()
