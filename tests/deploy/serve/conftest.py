from __future__ import annotations

from pathlib import Path

import pytest

from medlight.deploy.export import export
from tests.data import fake_dicom
from tests.deploy import trained

GRID = fake_dicom.Grid(shape=(20, 22, 12), spacing=(1.0, 1.1), step=2.5)


@pytest.fixture(scope="package")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = trained.segmentation(tmp_path_factory.mktemp("trained"))
    return export(made.checkpoint, made.checkpoint.parent / "bundle", cases=None, threads=1).root


@pytest.fixture
def series(tmp_path: Path) -> Path:
    return fake_dicom.write(fake_dicom.series(GRID), tmp_path / "Doe^Jane")
