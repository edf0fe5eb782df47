"""The benchmark of a whole case: each stage's time is where its text says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import whole_case
from tests.deploy.runtime.bundles import bundle, written

SLOW = """
import time
import medlight.deploy.runtime.studies as slow
def items_of(*given, real=slow.items_of):
    time.sleep(3)
    return real(*given)
slow.items_of = items_of
"""


def test_the_survey_and_the_digests_are_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    normalise = [{"class_path": "medlight.prepare.ZScore", "init_args": {}}]
    made = written(tmp_path / "bundle", bundle(3, [16, 16, 8], preparation={}, modalities=["CT"], normalise=normalise))
    series = whole_case.written(tmp_path / "series", 24, 10)
    monkeypatch.setattr(whole_case, "RUN", SLOW + whole_case.RUN)
    found = whole_case.predicted(tmp_path, made.root, series, made.models[0].name, 1)
    seconds = found["seconds"]
    assert seconds["read"] > 3
    assert 0 < seconds["write"] < found["whole"] - 3
    assert sum(seconds.values()) == pytest.approx(found["whole"])
