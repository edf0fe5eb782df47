"""The comparison page in a real browser: it fits, it sorts, it fetches nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By

from medlight.compare.html import page
from medlight.compare.records import Selection
from medlight.compare.table import compare
from tests.browser.chromium import browser
from tests.compare.test_html import record

LONG = "a-run-name-without-a-single-space-in-it-" * 4


@pytest.fixture
def file(tmp_path: Path) -> Path:
    runs = [record(f"{LONG}{i}", 0.7 + i / 50, network=f"Network{i % 3}", rate=10.0**-i) for i in range(6)]
    runs.append(replace(record("stopped", 0.5, state="pruned"), reason="below-the-median-" * 6))
    written = tmp_path / "compare.html"
    written.write_text(page(compare(Selection(runs, [LONG]))), encoding="utf-8")
    return written


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (480, False)])
def test_it_fits_the_window(file: Path, width: int, dark: bool) -> None:
    with browser(width, dark=dark) as window:
        window.get(file.as_uri())
        assert window.execute_script("return document.documentElement.scrollWidth") <= width
        ink, paper = window.execute_script(
            "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
        )
        brightness = [sum(map(int, colour[4:-1].split(","))) for colour in (ink, paper)]
        assert abs(brightness[0] - brightness[1]) > 400
        assert (brightness[0] > brightness[1]) == dark
        tall = window.execute_script("return document.querySelector('tbody td.name').offsetHeight")
        assert tall > 60  # the long name is wrapped, not cut


def test_a_click_on_a_head_sorts_and_missing_values_stay_last(file: Path) -> None:
    with browser() as window:
        window.get(file.as_uri())
        heads = window.find_elements(By.CSS_SELECTOR, "table:first-of-type thead button")[:4]

        def first_column() -> list[str]:
            cells = window.find_elements(By.CSS_SELECTOR, ".scroll:first-of-type tbody tr td:nth-child(4)")
            return [cell.get_attribute("data-sort") for cell in cells][:7]

        heads[3].click()
        rising = [float(text) for text in first_column() if text]
        assert rising == sorted(rising)
        assert first_column()[-2:] == ["", ""]  # the best run has no difference, the pruned one neither
        heads[3].click()
        falling = [float(text) for text in first_column() if text]
        assert falling == sorted(rising, reverse=True)
        assert first_column()[-2:] == ["", ""]


def test_it_asks_nobody_for_anything(file: Path) -> None:
    with browser() as window:
        window.get(file.as_uri())
        assert window.execute_script("return performance.getEntriesByType('resource').length") == 0
        assert [entry for entry in window.get_log("browser") if entry["level"] == "SEVERE"] == []
