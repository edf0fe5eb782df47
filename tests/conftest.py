"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real scans."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get("MEDLIGHT_DATA") or beside)
    if not root.is_dir():
        pytest.skip("no real scans: set MEDLIGHT_DATA")
    return root


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, with no tracking server or data root set from outside."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MEDLIGHT_DATA"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path
