"""Memory: estimated before the work, refused where it is not there, and small for a big scan."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from medlight.deploy.runtime import Predictor, memory
from medlight.deploy.runtime.checked import predict_checked
from medlight.errors import MedlightError
from medlight.prepare import Preparation
from medlight.scans import Volume, read, write_nifti
from tests.data import fake_dicom
from tests.deploy.runtime.bundles import Fake, bands, bundle, written

MEASURE = """
import sys
from pathlib import Path
from medlight.deploy.runtime import Predictor
from medlight.deploy.runtime.clinic import predict_series
import medlight.deploy.runtime.memory as memory
import psutil, json
told = {}
affordable = memory.affordable
def noted(bundle, preparation, scans, **options):
    told["before"] = psutil.Process().memory_info().rss
    told["needed"] = memory.needed(bundle, preparation, scans, **options)
    return affordable(bundle, preparation, scans, **options)
memory.affordable = noted
predictor = Predictor(sys.argv[1], threads=1)
predict_series(predictor, Path(sys.argv[2]), Path(sys.argv[3]))
heavy = sorted({"torch", "monai", "lightning", "mlflow"} & set(sys.modules))
# not getrusage: its peak may be the parent's, from before this program took its place
(line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps({**told, "peak": int(line.split()[1]) * 1024, "heavy": heavy}))
"""


def big_series(folder: Path, side: int, slices: int) -> Path:
    """A CT series of int16 whose values are a body in air."""
    grid = fake_dicom.Grid((side, side, slices), (0.7, 0.7), 1.0)
    y, x = np.indices((side, side))
    body = (x - side / 2) ** 2 + (y - side / 2) ** 2 < (0.4 * side) ** 2
    for index in range(slices):
        plane = fake_dicom.plane(grid, index, RescaleSlope=1, RescaleIntercept=-1024)
        shown = np.where(body, 1064 + 60 * np.sin(x / 40 + index / 20) * np.cos(y / 50), 0)
        fake_dicom._set_pixels(plane, shown.astype(np.int16))
        fake_dicom.save(plane, folder / f"{index}.dcm")
    return folder


def measured(tmp_path: Path, labels: int, side: int, slices: int, window: int, spacing: list[float] | None) -> dict:
    made = bundle(labels, [window] * 3, preparation={"spacing": spacing})
    made.data["normalise"][0]["init_args"] = {"low": -160.0, "high": 240.0}
    made.window["overlap"] = 0.25
    written(tmp_path / "bundle", made)
    words = [tmp_path / "bundle", big_series(tmp_path / "series", side, slices), tmp_path / "out"]
    done = subprocess.run([sys.executable, "-c", MEASURE, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("spacing", [None, [1.4, 1.4, 2.0]])
def test_the_estimate_is_of_the_right_size(tmp_path: Path, spacing: list[float] | None) -> None:
    """Not below what a prediction takes, but for the network's own maps, of which this one has few."""
    found = measured(tmp_path, 6, 256, 96, 64, spacing)
    taken = found["peak"] - found["before"]
    assert 0.7 * taken < found["needed"] < 5 * taken + 2**27


@pytest.mark.slow
def test_a_big_ct_stays_below_3_gib(tmp_path: Path) -> None:
    """512 x 512 x 300 from DICOM to DICOM-SEG in a process of its own."""
    found = measured(tmp_path, 8, 512, 300, 128, None)
    assert found["peak"] < 3 * 2**30
    assert found["heavy"] == []
    assert len(list((tmp_path / "out").glob("*.dcm"))) == 1


def test_more_than_is_free_is_refused_with_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.arange(64**3, dtype=np.int32).reshape(1, 64, 64, 64)
    write_nifti(Volume(image, np.diag([1, 1, 1, 1.0])), tmp_path / "scan.nii.gz")
    made = bundle(100, [8, 8, 8], preparation={"spacing": [0.2, 0.2, 0.2]})
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=3 * 2**27))
    with pytest.raises(MedlightError) as refused:
        predict_checked(Predictor(made, session=Fake(bands(100))), {"image": tmp_path / "scan.nii.gz"})
    said = str(refused.value)
    assert "scan.nii.gz: its 64x64x64 voxels and the bundle's 100 outputs take" in said
    assert said.endswith("GiB of memory, and 0.4 are free; use a machine with more, or leave it out")
    assert "\n" not in said


def test_with_little_memory_windows_run_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nifti(Volume(np.arange(96**3, dtype=np.int32).reshape(1, 96, 96, 96), np.eye(4)), tmp_path / "scan.nii.gz")
    sizes: list[int] = []

    def network(image: np.ndarray) -> np.ndarray:
        sizes.append(len(image))
        return bands(3)(image)

    predictor = Predictor(bundle(3, [64, 64, 64]), session=Fake(network), batch=4)
    scan = {"image": tmp_path / "scan.nii.gz"}
    size = {
        n: memory.needed(predictor.bundle, predictor.preparation, {"image": read(scan["image"])}, batch=n)
        for n in (1, 4)
    }
    assert size[4] - size[1] == 3 * memory.network(predictor.bundle, [64, 64, 64]) > 2**28
    for available, expected in ((size[4], {4}), (size[4] - 1, {1}), (size[1], {1})):
        sizes.clear()
        monkeypatch.setattr(memory, "free", lambda available=available: available)
        predict_checked(predictor, scan)
        assert set(sizes) == expected


def test_what_an_estimate_counts() -> None:
    scan = {"image": Volume(np.broadcast_to(np.int16(0), (1, 512, 512, 300)), np.diag([0.7, 0.7, 1.0, 1.0]))}
    few, many = bundle(2, [96] * 3), bundle(50, [96] * 3)
    own, finer = Preparation(), Preparation(spacing=[0.35, 0.35, 0.5])
    assert memory.needed(few, own, scan) < 3 * 2**30 < memory.needed(many, own, scan)
    assert memory.needed(few, finer, scan) > 3 * memory.needed(few, own, scan)
    assert memory.needed(many, own, scan, probabilities=True) > 50 * 512 * 512 * 300 * 4
