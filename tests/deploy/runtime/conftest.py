"""Bundles with a real ONNX model that take no training."""

from __future__ import annotations

from pathlib import Path

import pytest

from medlight.deploy.bundle import Bundle
from tests.data import fake_dicom
from tests.deploy.runtime.bundles import bundle, written

GRID = fake_dicom.Grid(shape=(20, 22, 12), spacing=(1.0, 1.1), step=2.5)


@pytest.fixture(scope="session")
def ct_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Three labels, trained on CT of 0.8 to 1.2 mm in slices of 1 to 3 mm."""
    made = bundle(
        3,
        [16, 16, 8],
        preparation={"spacing": [1.5, 1.5, 2.0]},
        modalities=["CT"],
        spacing_range=[[0.8, 0.8, 1.0], [1.2, 1.2, 3.0]],
        normalise=[{"class_path": "medlight.prepare.ZScore", "init_args": {}}],
    )
    return written(tmp_path_factory.mktemp("bundles") / "ct", made)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two classes of pictures of one channel."""
    made = bundle(
        2,
        [64, 64],
        task="classification",
        spatial_dims=2,
        classes=["no finding", "finding"],
        outputs=["no finding", "finding"],
        normalise=[{"class_path": "medlight.prepare.ZScore", "init_args": {}}],
    )
    return written(tmp_path_factory.mktemp("bundles") / "classifier", made)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """A CT series in a folder that is called as its patient is."""
    return fake_dicom.write(fake_dicom.series(GRID), tmp_path / "scans" / "Doe^Jane")
