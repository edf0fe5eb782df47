from __future__ import annotations

from pathlib import Path

import pytest

from tests.data import fake_dicom
from tests.deploy.serve.served import GRID, tiny


@pytest.fixture(scope="package")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("bundles") / "bundle")


@pytest.fixture
def series(tmp_path: Path) -> Path:
    return fake_dicom.write(fake_dicom.series(GRID), tmp_path / "Doe^Jane")
