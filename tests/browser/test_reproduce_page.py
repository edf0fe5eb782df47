"""The page of a study's results in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medlight.reproduce.page import page
from medlight.reproduce.verdict import Measured, judge
from tests.browser.chromium import browser
from tests.reproduce import folder


def results() -> dict[str, Any]:
    from medlight.reproduce.expected import Claim, Value

    runs = {name: [Measured(seed, {"test/dice": base + seed / 50}, {}) for seed in range(3)] for name, base in NAMES}
    value = Value("slow", "test/dice", 0.8, 0.02, "<b>why</b>", "Table 1, row & column")
    claim = Claim("fast > slow", ("fast", "test/dice"), ("slow", "test/dice"), "")
    verdicts = [judge(entry, runs, 3, "full").to_dict() for entry in (value, claim)]
    rows = [
        {"variant": name, "seed": seed, "state": "done", "run_id": "0123456789abcdef", "minutes": 3.0,
         "figures": {"test/dice": base}, "monitor": "val/dice", "curve": [[0, 0.1], [10, base]]}
        for name, base in NAMES for seed in range(3)
    ]  # fmt: skip
    texts = {
        "study": "fakes",
        "paper": "<Nobody>",
        "budget": "full",
        "date": "today",
        "command": "medlight reproduce x",
    }
    return {**texts, "seeds": 3, "verdicts": verdicts, "deviations": folder.EXPECTED["deviations"], "runs": rows}


NAMES = (("slow", 0.78), ("fast", 0.88))


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (480, True)])
def test_it_fits_and_draws_and_asks_nobody(tmp_path: Path, width: int, dark: bool) -> None:
    file = tmp_path / "results.html"
    file.write_text(page(results()), encoding="utf-8")
    with browser(width, dark=dark) as window:
        window.get(file.as_uri())
        assert window.execute_script("return document.documentElement.scrollWidth") <= width
        assert window.execute_script("return document.querySelectorAll('figure svg').length") == 2
        assert window.execute_script("return performance.getEntriesByType('resource').length") == 0
        assert [entry for entry in window.get_log("browser") if entry["level"] == "SEVERE"] == []
        text = window.execute_script("return document.body.innerText")
    assert "<Nobody>" in text
    assert "claim holds" in text
    assert "reproduced" in text
