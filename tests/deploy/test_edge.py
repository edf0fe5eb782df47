"""A bundle on a machine that only predicts: a fresh environment with no torch, from a DICOM folder to a DICOM-SEG."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medlight.deploy.bundle import Bundle
from medlight.deploy.export import export
from medlight.deploy.runtime import Predictor
from medlight.scans import read
from medlight.scans.dicom_seg import read_seg
from medlight.scans.regions import Grid
from tests.deploy.trained import segmentation

ROOT = Path(__file__).parents[2]
MEGABYTES = 400
PACKAGES = "import importlib.metadata as m; print(*sorted(d.name.lower() for d in m.distributions()))"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("trained")
    trained = segmentation(root, spacing=(1.0, 1.0, 1.0), cases=2)
    return export(trained.checkpoint, root / "bundle", cases=trained.cases, threads=1)


@pytest.fixture(scope="module")
def python(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment made by the lines at the head of the bundle's own requirements."""
    folder = tmp_path_factory.mktemp("edge")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", bundle.root / "requirements.txt"], check=True)
    subprocess.run([*pip, "--no-deps", ROOT], check=True)
    return folder / "bin" / "python"


@pytest.mark.slow
def test_from_a_dicom_folder_to_a_dicom_seg_without_torch(
    bundle: Bundle, python: Path, data_root: Path, tmp_path: Path
) -> None:
    series = data_root / "dicom" / "generic" / "anatomical" / "001"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MEDLIGHT", "PYTHON"))}
    command = [python, "-m", "medlight", "predict", bundle.root, series, "out", "--force", "--threads", "1"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "out").rglob("*.dcm")
    assert pydicom.dcmread(written).SOPClassUID.name == "Segmentation Storage"
    scan = read(series)
    here = Predictor(bundle, threads=1).predict(scan).label
    assert here is not None
    found = np.zeros(scan.shape, np.uint8)
    for segment in read_seg(written, Grid(scan.shape, scan.affine)).segments:
        found[segment.mask] = segment.number
    assert np.mean(found == here.array[0]) > 0.9999  # other kernels may be chosen, and a tie fall otherwise


@pytest.mark.slow
def test_the_environment_is_small(python: Path) -> None:
    packages = subprocess.run([python, "-c", PACKAGES], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "monai", "lightning", "mlflow", "torchio"} & set(packages)
    assert {"medlight", "onnxruntime", "highdicom"} <= set(packages)
    site = next((python.parents[1] / "lib").glob("python*/site-packages"))
    installers = ("pip", "setuptools", "_distutils_hack")
    files = [f for top in site.iterdir() if not top.name.startswith(installers) for f in [top, *top.rglob("*")]]
    size = sum(f.stat().st_size for f in files if f.is_file() and not f.is_symlink() and f.suffix != ".pyc")
    assert size < MEGABYTES * 1e6, f"{size / 1e6:.0f} MB"
