"""A headless Chromium for tests of pages."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.chrome.webdriver import WebDriver

_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)


@contextmanager
def browser(width: int = 1200, height: int = 1000, *, dark: bool = False) -> Iterator[WebDriver]:
    """Start the system's Chromium with a fresh profile; skips where it is not installed."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver: apt-get install chromium chromium-driver")
    options = Options()
    options.binary_location = chromium
    with tempfile.TemporaryDirectory() as profile:
        for text in (*_OPTIONS, f"--window-size={width},{height}", f"--user-data-dir={profile}"):
            options.add_argument(text)
        started = webdriver.Chrome(options=options, service=Service(driver))
        try:
            started.set_page_load_timeout(60)
            # The window's frame takes some of its size; the page itself shall have what was asked for.
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            started.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            started.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
            yield started
        finally:
            started.quit()
