"""Files a second of ``medlight data check`` on a tree of headers, against the same headers read by others.

    python benchmarks/data_check.py [--files 5000] [--rounds 5] [--workers 0] [--out FILE.json]

The tree is made: series of 200 CT slices of 256x256 whose headers hold what a scanner writes (130 elements, some in
sequences), read from a warm cache. Each round times, in a process of its own and without its start:

medlight  the survey that ``medlight data check`` shows: every header read, grouped, its geometry judged
pydicom   dcmread(stop_before_pixels=True) of each file, nothing done with it
simpleitk GetGDCMSeriesIDs and GetGDCMSeriesFileNames of each series: the files sorted, nothing judged

and the memory (peak resident set) that medlight takes for a tenth of the tree and for all of it: it should not grow
with the pixels. Figures are medians over rounds; a ratio is taken within a round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SLICES = 200
PROBE = """
import resource, sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
who, folder, workers = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
if who == "medlight":
    from medlight.scans.dicom.survey import survey
    work = lambda: survey([folder], workers=workers).stacks
elif who == "pydicom":
    import pydicom
    def work():
        for file in folder.rglob("*.dcm"):
            pydicom.dcmread(file, stop_before_pixels=True)
else:
    import SimpleITK as sitk
    def work():
        for inner in sorted(folder.iterdir()):
            for name in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(inner)):
                sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(inner), name)
start = time.perf_counter()
found = work()
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
if who == "medlight":
    assert all(stack.verdict.status == "ok" for stack in found), [stack.verdict for stack in found]
print(seconds, peak)
"""


def make(folder: Path, files: int) -> None:
    """Write the tree: one folder a series."""
    sys.path.insert(0, str(ROOT))
    from tests.data import fake_dicom

    for number in range(-(-files // SLICES)):
        grid = fake_dicom.Grid(shape=(256, 256, min(SLICES, files - number * SLICES)))
        for index in range(grid.shape[2]):
            made = fake_dicom.scanner_header(fake_dicom.plane(grid, index, series=f"bench {number}"))
            fake_dicom.save(made, folder / f"series{number:03d}" / f"{index * 7919 % 10007:05d}.dcm")


def timed(who: str, folder: Path, workers: int) -> tuple[float, float]:
    """Seconds and peak MiB of one process."""
    command = [sys.executable, "-c", PROBE, who, str(folder), str(workers)]
    said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.split()
    return float(said[0]), float(said[1])


def main() -> None:
    """Make the tree, time everybody, print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        whole, part = Path(temporary) / "whole", Path(temporary) / "part"
        make(whole, args.files)
        make(part, args.files // 10)
        rounds = []
        for _ in range(args.rounds + 1):
            seconds = {who: timed(who, whole, args.workers)[0] for who in ("medlight", "pydicom", "simpleitk")}
            rounds.append(seconds)
        del rounds[0]  # it warms the cache
        memory = {
            name: timed("medlight", folder, args.workers)[1] for name, folder in (("part", part), ("whole", whole))
        }
    median = statistics.median
    figures = {
        "command": " ".join(["python", *sys.argv]),
        "files": args.files,
        "workers": args.workers,
        "files_per_second": {who: round(args.files / median(r[who] for r in rounds)) for who in rounds[0]},
        "times_as_fast_as": {
            who: round(median(r[who] / r["medlight"] for r in rounds), 2) for who in ("pydicom", "simpleitk")
        },
        "peak_mib": {f"{args.files // 10} files": round(memory["part"]), f"{args.files} files": round(memory["whole"])},
    }
    print(json.dumps(figures, indent=1))
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
