"""A sweep that really ran, seen in the real MLflow UI, in a real browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medlight.cli.main import main
from tests.browser.sweep_check import find_sweep_in_ui
from tests.sweeps import study


@pytest.mark.slow
def test_a_finished_sweep_shows_its_trials_and_a_picture(workdir: Path) -> None:
    study.write(workdir, study.sweep_yaml(trials=2))
    assert main(["sweep", "-c", "sweep.yaml", "--json", "sweep.json"]) == 0
    parent = json.loads(Path("sweep.json").read_text())["run_id"]
    find_sweep_in_ui(workdir, parent, workdir / "ui.png")
