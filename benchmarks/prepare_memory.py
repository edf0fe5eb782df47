"""Peak resident memory of preparing one big CT: 512 x 512 x 1000 voxels of int16, with a label map.

    python benchmarks/prepare_memory.py [--format dicom|nifti] [--spacing 1 1 1] [--slices 1000] [--out FILE]

The scan is made in a temporary folder (800 MB), ``medlight data prepare`` runs in a process of its own, and the
resident memory of that process and of all it starts is looked at every 10 ms; what the kernel kept as the highest of
any one of them counts too. Without --spacing the scan keeps its own, 0.7 x 0.7 x 1 mm.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import psutil
import yaml

ROOT = Path(__file__).parents[1]
LIMIT = 4 * 2**30
SIDE, SPACING = 512, (0.7, 0.7, 1.0)


def planes(slices: int) -> Iterator[tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]]:
    """Slices of a noisy cylinder with a sphere in it, in HU, and the sphere's label map; rows before columns."""
    rng = np.random.default_rng(0)
    row, column = np.ogrid[:SIDE, :SIDE]
    distance = (row - SIDE / 2) ** 2 + (column - SIDE / 2) ** 2
    air = np.where(distance < (0.45 * SIDE) ** 2, 40, -1000).astype(np.int16)
    noise = rng.normal(0, 20, (8, SIDE, SIDE)).astype(np.int16)
    for place in range(slices):
        inside = distance + (SIDE * (place / slices - 0.5)) ** 2 < (0.3 * SIDE) ** 2
        yield air + noise[place % 8] + 60 * inside.astype(np.int16), inside.astype(np.uint8)


def write(folder: Path, form: str, slices: int) -> None:
    """Write the scan and its label map as ``images/big`` and ``labels/big.nii``."""
    shape = (SIDE, SIDE, slices)
    image, label = np.empty(shape, np.int16, order="F"), np.empty(shape, np.uint8, order="F")
    for place, (values, mask) in enumerate(planes(slices)):
        image[..., place], label[..., place] = values.T, mask.T
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])  # DICOM's own axes, as RAS+
    for name in ("images", "labels"):
        (folder / name).mkdir()
    nib.save(nib.Nifti1Image(label, affine), folder / "labels" / "big.nii")
    if form == "nifti":
        nib.save(nib.Nifti1Image(image, affine), folder / "images" / "big.nii")
        return
    (folder / "images" / "big").mkdir()
    for place in range(slices):
        _dicom(folder / "images" / "big" / f"{place:04d}.dcm", image[..., place].T, place)


def _dicom(path: Path, pixels: npt.NDArray[np.int16], place: int) -> None:
    """Write one slice of a CT (PS3.3 A.3), as stored by most scanners: values 0 to 4095 with an intercept of -1024."""
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.8.498.1.{place + 1}"
    data = FileDataset(path, Dataset(), file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.2", "1.2.826.0.1.3680043.8.498.3"
    data.FrameOfReferenceUID = "1.2.826.0.1.3680043.8.498.4"
    data.Modality, data.ImageType, data.InstanceNumber = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], place + 1
    data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, place * SPACING[2]]
    data.PixelSpacing, data.SliceThickness = list(SPACING[:2]), SPACING[2]
    data.Rows = data.Columns = SIDE
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.RescaleSlope, data.RescaleIntercept, data.RescaleType = 1, -1024, "HU"
    data.PixelData = (np.clip(pixels, -1024, 3071) + 1024).astype("<u2").tobytes()
    data.save_as(path, enforce_file_format=True)


def _apart(folder: Path, form: str, slices: int) -> None:
    """Write the scan in a process of its own, which gives its memory back."""
    pid = os.fork()
    if pid == 0:
        write(folder, form, slices)
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("the scan could not be written")


def config(spacing: list[float] | None) -> dict[str, Any]:
    """The fit's file, as far as preparing needs it."""
    kind = "medlight.prepare."
    source = {"images": "images", "labels": "labels", "label_names": {1: "sphere"}}
    data = {
        "source": {"class_path": kind + "ImageFolders", "init_args": source},
        "split": {"class_path": kind + "RandomSplit", "init_args": {"val": 0.0}},
        "preparation": {"class_path": kind + "Preparation", "init_args": {"spacing": spacing}},
    }
    return {"data": {"class_path": "medlight.data.ScanDataModule", "init_args": data}}


def measured(folder: Path) -> dict[str, Any]:
    """Run the command; seconds, and bytes of resident memory at the worst moment."""
    command = [sys.executable, "-m", "medlight.cli.main", "data", "prepare", "-c", "fit.yaml"]
    start = time.perf_counter()
    child = subprocess.Popen(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)})
    peak, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            peak[0] = max(peak[0], _resident(child.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, used = os.wait4(child.pid, 0)
    over.set()
    watcher.join()
    if status:
        raise SystemExit(f"medlight data prepare ended with {os.waitstatus_to_exitcode(status)}")
    return {"peak_bytes": max(peak[0], used.ru_maxrss * 1024), "seconds": round(time.perf_counter() - start, 1)}


def _resident(pid: int) -> int:
    """Resident bytes of a process and of all below it."""
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            total += process.memory_info().rss
    except psutil.Error:
        pass
    return total


def main() -> None:
    """Make the scan, prepare it, print the peak and whether it is under 4 GiB."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", choices=("dicom", "nifti"), default="dicom")
    parser.add_argument("--spacing", type=float, nargs=3, metavar="MM")
    parser.add_argument("--slices", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        _apart(folder, args.format, args.slices)
        (folder / "fit.yaml").write_text(yaml.safe_dump(config(args.spacing)))
        found = measured(folder)
        volume = SIDE * SIDE * args.slices * 4
    report = {
        "command": " ".join(["python", *sys.argv]),
        "what": "peak resident memory of medlight data prepare on one CT with a label map",
        "format": args.format,
        "voxels": [SIDE, SIDE, args.slices],
        "spacing": args.spacing or "its own",
        "peak_gib": round(found["peak_bytes"] / 2**30, 3),
        "limit_gib": LIMIT / 2**30,
        "float32_copies": round(found["peak_bytes"] / volume, 2),
        "seconds": found["seconds"],
    }
    print(json.dumps(report, indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    if found["peak_bytes"] >= LIMIT:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
