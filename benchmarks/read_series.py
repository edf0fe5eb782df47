"""Seconds from a folder of 160 slices to a volume in memory, against the readers that people use.

    MEDLIGHT_DATA=... python benchmarks/read_series.py [--series FOLDER] [--rounds 9] [--out FILE.json]

medlight    scans.dicom.load.read_dicom: every check on, real values, affine
simpleitk   ImageSeriesReader on the names that GetGDCMSeriesFileNames finds, to an array
dicom2nifti common.read_dicom_directory and convert_dicom.dicom_array_to_nifti, to an array; its own checks on
monai       PydicomReader, to an array with its affine

All in one process with one thread each where they can be told so, files in the page cache. Readers take turns, in
another order each round; the ratio is of the medians, medlight's to the fastest of the others: below 1 is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np


def _medlight() -> Callable[[Path], np.ndarray]:
    from medlight.scans.dicom.load import read_dicom

    return lambda folder: read_dicom(folder).array[0]


def _simpleitk() -> Callable[[Path], np.ndarray]:
    import SimpleITK

    def read(folder: Path) -> np.ndarray:
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        return SimpleITK.GetArrayFromImage(reader.Execute()).T

    return read


def _dicom2nifti() -> Callable[[Path], np.ndarray]:
    from dicom2nifti import common, convert_dicom

    def read(folder: Path) -> np.ndarray:
        slices = common.read_dicom_directory(str(folder))
        return np.asanyarray(convert_dicom.dicom_array_to_nifti(slices, None, False)["NII"].dataobj)

    return read


def _monai() -> Callable[[Path], np.ndarray]:
    from monai.data import PydicomReader

    def read(folder: Path) -> np.ndarray:
        reader = PydicomReader()
        array, _ = reader.get_data(reader.read(str(folder)))
        return np.asarray(array)

    return read


READERS = {"medlight": _medlight, "simpleitk": _simpleitk, "dicom2nifti": _dicom2nifti, "monai": _monai}


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=Path, default=Path("dicom", "datalad_structural", "dicoms"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    folder = Path(os.environ.get("MEDLIGHT_DATA", ".")) / args.series
    load = os.getloadavg()[0]
    warnings.simplefilter("ignore")
    readers = {name: make() for name, make in READERS.items()}
    truth = readers["simpleitk"](folder)
    same = {name: _same(read(folder), truth) for name, read in readers.items()}  # and the page cache is warm
    seconds = measure(readers, folder, args.rounds)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    best = min((name for name in medians if name != "medlight"), key=lambda name: medians[name])
    report = {
        "command": "python benchmarks/read_series.py " + " ".join(sys.argv[1:]),
        "what": (__doc__ or "").split("\n\n")[2:],
        "files": sum(path.is_file() for path in folder.iterdir()),
        "shape": list(truth.shape),
        "median_seconds": {name: round(value, 4) for name, value in medians.items()},
        "fastest_seconds": {name: round(min(taken), 4) for name, taken in seconds.items()},
        "slowest_seconds": {name: round(max(taken), 4) for name, taken in seconds.items()},
        "same_voxels_as_simpleitk": same,
        "fastest_other": best,
        "ratio_to_fastest_other": round(medians["medlight"] / medians[best], 3),
        "ratios": {
            name: round(medians["medlight"] / value, 3) for name, value in medians.items() if name != "medlight"
        },
        "rounds": args.rounds,
        "cpus": os.cpu_count(),
        "load_before_the_start": round(load, 1),
        "load_at_the_end": round(os.getloadavg()[0], 1),
    }
    print(json.dumps({key: report[key] for key in ("median_seconds", "ratios", "same_voxels_as_simpleitk")}, indent=1))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")


def measure(readers: dict[str, Callable[[Path], np.ndarray]], folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each reader in each round; the order is drawn anew each time, from a fixed seed."""
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    draw = random.Random(0)
    for _ in range(rounds):
        for name in draw.sample(sorted(readers), len(readers)):
            start = time.perf_counter()
            readers[name](folder)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _same(array: np.ndarray, truth: np.ndarray) -> bool:
    """Whether the voxels are the same, whichever way the axes run."""
    return any(
        array.transpose(order).shape == truth.shape and np.array_equal(array.transpose(order)[flip], truth)
        for order in ((0, 1, 2), (1, 0, 2))
        for flip in np.ndindex(2, 2, 2)
        for flip in [tuple(slice(None, None, -1 if one else 1) for one in flip)]
    )


if __name__ == "__main__":
    main()
