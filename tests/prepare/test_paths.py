"""Where data is looked for, and what must not be imported to find it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from medlight.errors import UsageError
from medlight.prepare import data_path


def test_relative_paths(workdir, monkeypatch):
    root = workdir / "root"
    (root / "scans").mkdir(parents=True)
    (workdir / "here").mkdir()
    assert data_path("here") == workdir / "here"
    with pytest.raises(UsageError, match="set MEDLIGHT_DATA"):
        data_path("scans")
    monkeypatch.setenv("MEDLIGHT_DATA", str(root))
    assert data_path("scans") == root / "scans"
    assert data_path("here") == workdir / "here"
    (root / "here").mkdir()
    assert data_path("here") == root / "here"  # the data root comes first
    assert data_path(str(workdir / "here")) == workdir / "here"
    with pytest.raises(UsageError) as caught:
        data_path("scnas")
    assert str(root / "scnas") in str(caught.value)
    assert str(workdir / "scnas") in str(caught.value)
    assert "did you mean 'scans'" in str(caught.value)


def test_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x").mkdir()
    assert data_path("~/x") == tmp_path / "x"


@pytest.mark.parametrize("module", ["medlight.prepare", "medlight.scans", "medlight.cli.data", "medlight.cli.download"])
def test_no_torch(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'monai', 'lightning', 'mlflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
