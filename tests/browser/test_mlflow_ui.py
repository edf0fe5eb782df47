"""A finished sweep in the real MLflow UI, in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.sweep_check import find_sweep_in_ui
from tests.compare.recorded import Recorder, picture, sweep


@pytest.mark.slow
def test_a_finished_sweep_is_found(workdir: Path) -> None:
    recorder = Recorder(workdir)
    parent, children = sweep(recorder)
    picture(recorder, children[1])
    find_sweep_in_ui(workdir, parent, workdir / "ui.png")
    assert (workdir / "ui.png").stat().st_size > 10_000
