"""A 512x512x300 CT from DICOM folder to DICOM-SEG: time by stage, and the most memory it took.

    python benchmarks/whole_case.py [--precision fp32 int8] [--threads N] [--out FILE.json]

The scan is a phantom (a body of CT values in air, 0.7x0.7x1.0 mm, int16); the network MONAI's UNet of 16 to 256
channels, fitted for a few steps to two tissues of such phantoms at 1 mm, windows of 96^3 that overlap by half. Each
precision is predicted in a process of its own, by the code behind `medlight predict`, with a clock around the stages.

read      survey of the folder, a digest of its files, and decoding to a volume in HU
prepare   resampling to 1 mm, and intensities
network   the runtime's own calls
blend     windows cut out and weighed together
restore   probabilities brought back to the scan's grid, and the labels that win
write     DICOM-SEG, picture, journal

Targets: read, prepare, restore and write together at most 0.20 of the whole; peak below 3 GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import yaml
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from medlight.scans import Volume, write_nifti

SPACING = (0.7, 0.7, 1.0)
RUN = """
import json, sys, time
from collections import Counter
from pathlib import Path
from types import GeneratorType
from medlight.deploy.runtime import Predictor, checked, predictor as of_predictor, studies
from medlight.deploy.runtime.batch import Batch
taken, clock = Counter(), time.perf_counter

def timed(owner, name):
    real = getattr(owner, name)
    def call(*given, **named):
        begin = clock()
        found = real(*given, **named)
        taken[name] += clock() - begin
        return resumed(name, found) if isinstance(found, GeneratorType) else found
    setattr(owner, name, call)

def resumed(name, values):
    while True:
        begin = clock()
        value = next(values, None)
        taken[name] += clock() - begin
        if value is None:
            return
        yield value

bundle, source, out, runtime, threads = sys.argv[1:]
Path(out).mkdir()
predictor = Predictor(bundle, int(threads) or None, model=runtime)
timed(type(predictor._session), "__call__")
timed(of_predictor, "blended")
timed(studies, "items_of")
timed(checked, "read_source")
timed(Predictor, "_prepared")
timed(Predictor, "_vote")
begin = clock()
batch = Batch(predictor, Path(out))
batch.run(studies.items_of(Path(source), studies.Asked(Path(out))))
whole = clock() - begin
(peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
assert not batch.failed, batch.failed
facts = {"runtime": predictor.runtime, "taken": taken, "whole": whole, "peak_mib": int(peak.split()[1]) // 1024}
print(json.dumps(facts | {"volumes_ml": batch.results[0]["volumes_ml"]}))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", nargs="+", default=["fp32", "int8"])
    parser.add_argument("--threads", type=int, default=0, help="0: one a CPU")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bundle = fitted(root, args.precision)
        series = written(root / "series", 512, 300)
        found = {p: predicted(root, bundle, series, f"openvino-{p}", args.threads) for p in args.precision}
    command = " ".join(["python", *sys.argv])
    text = json.dumps({"command": command, "threads": args.threads or os.cpu_count(), "cases": found}, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def phantom(shape: tuple[int, int, int], spacing: tuple[float, float, float], seed: int) -> tuple[Any, Any]:
    """Return HU, int16, and labels: 1 and 2 are the tissues above and below the middle of a body in air."""
    x, y, z = (step * np.arange(size, dtype=np.float32) for size, step in zip(shape, spacing, strict=True))
    generator = np.random.default_rng(seed)
    phases = generator.uniform(0, 6, 3)
    wave = np.sin(x / 28 + phases[0])[:, None, None] * np.cos(y / 35 + phases[1])[:, None]
    wave = wave * np.cos(z / 20 + phases[2])
    inside = ((x - x.mean()) ** 2)[:, None] + (y - y.mean()) ** 2 < (0.4 * min(x[-1], y[-1])) ** 2
    labels = np.where(wave > 0.4, 1, np.where(wave < -0.4, 2, 0)) * inside[..., None]
    noise = generator.normal(0, 10, shape)
    return np.where(inside[..., None], 40 + 60 * wave + noise, -1000).astype(np.int16), labels.astype(np.uint8)


def fitted(root: Path, precision: list[str]) -> Path:
    """Fit the network to small phantoms and export it; returns the bundle."""
    (root / "images").mkdir()
    (root / "labels").mkdir()
    for number in range(4):
        image, label = phantom((160, 160, 112), (1.0, 1.0, 1.0), number)
        write_nifti(Volume(image[None], np.eye(4)), root / "images" / f"{number}.nii.gz")
        write_nifti(Volume(label[None], np.eye(4)), root / "labels" / f"{number}.nii.gz")
    network = {"channels": [16, 32, 64, 128, 256], "strides": [2] * 4, "num_res_units": 2}
    task = {"network": {"class_path": "monai.networks.nets.UNet", "init_args": network}}
    task |= {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 2e-3}}}
    source = {"images": "images", "labels": "labels", "label_names": {1: "above", 2: "below"}}
    data = {
        "source": {"class_path": "medlight.prepare.ImageFolders", "init_args": source},
        "split": {"class_path": "medlight.prepare.RandomSplit", "init_args": {"val": 0.25}},
        "preparation": {"class_path": "medlight.prepare.Preparation", "init_args": {"spacing": [1.0, 1.0, 1.0]}},
        "normalise": {"class_path": "medlight.prepare.Window", "init_args": {"low": -160, "high": 240}},
        "patch": {"class_path": "medlight.data.Patch", "init_args": {"size": [96, 96, 96]}},
        **{"batch_size": 1, "steps_per_epoch": 60, "workers": 0},
    }
    config = {
        "study": "whole-case",
        "model": {"class_path": "medlight.tasks.SegmentationTask", "init_args": task},
        "data": {"class_path": "medlight.data.ScanDataModule", "init_args": data},
        "trainer": {"max_epochs": 1},
    }
    (root / "fit.yaml").write_text(yaml.safe_dump(config))
    medlight = [sys.executable, "-m", "medlight", *("fit", "-c", "fit.yaml", "--json", "fit.json")]
    subprocess.run(medlight, cwd=root, check=True, stdout=sys.stderr)
    run = json.loads((root / "fit.json").read_text())["run_id"]
    words = ["export", run, "bundle", "--to", "onnx,openvino", "--precision", ",".join(precision)]
    subprocess.run([sys.executable, "-m", "medlight", *words], cwd=root, check=True, stdout=sys.stderr)
    return root / "bundle"


def written(folder: Path, side: int, slices: int) -> Path:
    """Write a phantom as a CT series."""
    folder.mkdir()
    image, _ = phantom((side, side, slices), SPACING, 9)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for index in range(slices):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        made = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)  # type: ignore[arg-type]
        made.SOPClassUID, made.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        made.StudyInstanceUID, made.SeriesInstanceUID, made.FrameOfReferenceUID = study, series, frame
        made.Modality, made.PatientName, made.PatientID, made.StudyID = "CT", "Phantom", "1", "1"
        made.PatientBirthDate = made.PatientSex = made.StudyDate = made.StudyTime = made.AccessionNumber = ""
        made.SeriesNumber, made.InstanceNumber, made.ImageType = 1, index + 1, ["ORIGINAL", "PRIMARY", "AXIAL"]
        made.Rows = made.Columns = side
        made.PixelSpacing, made.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
        made.ImageOrientationPatient, made.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, SPACING[2] * index]
        made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
        made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 1
        made.RescaleSlope, made.RescaleIntercept, made.RescaleType = 1, -1024, "HU"
        made.PixelData = (image[..., index].T + 1024).astype("<i2").tobytes()
        pydicom.dcmwrite(folder / f"{index}.dcm", made, enforce_file_format=True)
    return folder


def predicted(root: Path, bundle: Path, series: Path, runtime: str, threads: int) -> dict[str, Any]:
    """Predict the series in a new process; returns seconds and shares by stage."""
    words = [bundle, series, root / runtime, runtime, threads]
    done = subprocess.run([sys.executable, "-c", RUN, *map(str, words)], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    taken = found.pop("taken")
    network, blended = taken["__call__"], taken["blended"]
    seconds = {
        "read": taken["items_of"] + taken["read_source"],
        "prepare": taken["_prepared"],
        "network": network,
        "blend": blended - network,
        "restore": taken["_vote"],
    }
    seconds["write"] = found["whole"] - sum(seconds.values())
    others = sum(seconds[name] for name in ("read", "prepare", "restore", "write"))
    return {**found, "seconds": seconds, "share_without_network_and_blend": others / found["whole"]}


if __name__ == "__main__":
    main()
