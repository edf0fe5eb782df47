"""What a person looks for in the MLflow UI after a sweep: the sweep, its trials, a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.browser.chromium import browser
from tests.cli.serving import serving

PATIENCE = 60  # seconds for a page; a busy machine is slow


def find_sweep_in_ui(root: Path, parent: str, screenshot: Path | None = None) -> None:
    """Start ``medlight ui`` in ``root`` (the folder that has mlruns/) and look for a finished sweep.

    Fails where the list of runs lacks the parent run, its page lacks a child run, or no child shows a picture.
    """
    client = MlflowClient(f"sqlite:///{root / 'mlruns' / 'mlflow.db'}")
    run = client.get_run(parent)
    where = [run.info.experiment_id]
    children = list(client.search_runs(where, f"tags.`mlflow.parentRunId` = '{parent}'"))
    assert children, "the sweep has no child runs"
    pictures = [(child, path) for child in children for path in _pictures(client, child.info.run_id)]
    assert pictures, "no child run has a picture"
    with serving(root) as (url, _, said), browser(1400, 1100) as page:
        (study,) = [line for line in said.read_text().splitlines() if f"/#/experiments/{where[0]}/runs" in line]
        page.get(study.rsplit(": ", 1)[-1])
        _wait(page, lambda: _link(page, run.info.run_name), "the sweep in the list of runs").click()
        for child in children:
            _wait(page, lambda child=child: _link(page, child.info.run_name), f"child {child.info.run_name}")
        child, path = pictures[0]
        page.get(f"{url}/#/experiments/{where[0]}/runs/{child.info.run_id}/artifacts")
        for part in path.split("/"):
            _wait(page, lambda part=part: _text(page, part), f"artifact {part}").click()
        shown = _wait(page, lambda: _picture(page), f"the picture {path}")
        assert shown.size["width"] > 10
        if screenshot:
            page.save_screenshot(str(screenshot))


def _pictures(client: MlflowClient, run_id: str) -> list[str]:
    found = [entry.path for entry in client.list_artifacts(run_id, "images") if entry.path.endswith(".png")]
    return sorted(found, key=len)


def _wait(page: WebDriver, find: Callable[[], Any], what: str) -> Any:
    return WebDriverWait(page, PATIENCE, ignored_exceptions=[Exception]).until(lambda _: find(), f"not seen: {what}")


def _link(page: WebDriver, name: str) -> Any:
    links = [link for link in page.find_elements(By.TAG_NAME, "a") if link.text.strip(" ,") == name]
    return links[0] if links else None


def _text(page: WebDriver, text: str) -> Any:
    written = page.find_elements(By.XPATH, f"//*[text()[normalize-space(.)={text!r}]]")
    found = [element for element in written if element.is_displayed()]
    return found[0] if found else None


def _picture(page: WebDriver) -> Any:
    """An image that came from the artifact store and has been drawn (the UI's own icons are data URLs)."""
    script = "return [...document.images].filter(i => i.src.startsWith('blob:') && i.naturalWidth > 10)[0] ?? null"
    return page.execute_script(script)
