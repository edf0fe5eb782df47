"""Augmented patches per second from the data path, against the peers'.

    MEDLIGHT_DATA=... python benchmarks/data_path.py --nnunet-python PYTHON [--rounds 5] [--seconds 4] [--out FILE.json]

Patches of 40x56x40 in batches of 6 from the 208 hippocampus cases, with two sets of transforms, each with the same
probabilities and ranges for everybody as far as their parameters allow:

full  scaling, rotation and elastic deformation (0.2 each), flips (0.5 an axis), noise (0.1), blur (0.2), bias field
      (0.15), low resolution (0.25), gamma (0.3)
lean  the same without elastic deformation and bias field: nnU-Net's own choice

medlight  ScanDataModule on the prepared store
torchio   Queue on the files, TorchIO's own transforms
monai     CacheDataset (all in memory), MONAI's own transforms
nnunet    nnUNetDataLoader on its preprocessed files, batchgeneratorsv2 (which has no bias field: it is spared that)

Each loader is a process of its own, once working in that process (0) and once with 2 workers, every process with one
thread. They take turns, and are stopped while it is another's turn. A ratio is taken within a round, against the best
peer of that round; the figures are medians over rounds.

nnU-Net's environment:
python3.11 -m venv DIR && DIR/bin/pip install torch==2.13.0 nnunetv2==2.8.1 batchgeneratorsv2==0.3.6
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PEERS = Path(__file__).parent / "peers"
SCRIPTS = {
    "medlight": "medlight_loader.py",
    "torchio": "torchio_queue.py",
    "monai": "monai_cache.py",
    "nnunet": "nnunet_loader.py",
}


class Loader:
    """One loader in a process (with its workers, a process group) that is stopped unless it is asked something."""

    def __init__(self, python: str, script: str, data: Path, cache: Path, workers: int, transforms: str) -> None:
        command = [python, str(PEERS / script), "--images", str(data / "images"), "--labels", str(data / "labels")]
        command += ["--cache", str(cache), "--workers", str(workers), "--transforms", transforms]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PEERS.parents[1])},
        )
        self._answer()
        self._signal(signal.SIGSTOP)

    def _answer(self) -> object:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                return json.loads(line)
            except ValueError:
                continue  # somebody's banner
        raise RuntimeError(f"{self.process.args} ended; run it by hand to see why")

    def _signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def patches_per_second(self, seconds: float) -> float:
        """Let it work for so long."""
        assert self.process.stdin is not None
        self._signal(signal.SIGCONT)
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        figure = float(str(self._answer()))
        self._signal(signal.SIGSTOP)
        return figure

    def close(self) -> None:
        """End it and its workers."""
        self._signal(signal.SIGKILL)
        self.process.wait()


def measure(args: argparse.Namespace, transforms: str, workers: int, cache: Path) -> dict[str, object]:
    """Rounds of one setting."""
    data = Path(os.environ["MEDLIGHT_DATA"]) / "hippocampus"
    loaders: dict[str, Loader] = {}
    try:
        for name, script in SCRIPTS.items():
            if name == "nnunet" and not args.nnunet_python:
                continue
            python = args.nnunet_python if name == "nnunet" else sys.executable
            loaders[name] = Loader(python, script, data, cache, workers, transforms)
        rounds = [
            {name: loader.patches_per_second(args.seconds) for name, loader in loaders.items()}
            for _ in range(args.rounds)
        ]
    finally:
        for loader in loaders.values():
            loader.close()
    ratios = [turn["medlight"] / max(f for name, f in turn.items() if name != "medlight") for turn in rounds]
    return {
        "transforms": transforms,
        "workers": workers,
        "patches_per_s": {name: round(statistics.median(turn[name] for turn in rounds), 1) for name in loaders},
        "lowest": {name: round(min(turn[name] for turn in rounds), 1) for name in loaders},
        "highest": {name: round(max(turn[name] for turn in rounds), 1) for name in loaders},
        "ratio_to_best_peer": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--nnunet-python", help="interpreter of an environment with nnU-Net; without it that peer is left out"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "medlight-data-path")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    settings = [(transforms, workers) for transforms in ("full", "lean") for workers in (0, 2)]
    results = [measure(args, transforms, workers, args.cache) for transforms, workers in settings]
    for result in results:
        figures = "  ".join(f"{name} {value:7.1f}" for name, value in dict(result["patches_per_s"]).items())
        print(f"{result['transforms']}, {result['workers']} workers: {figures} patches/s;", end=" ")
        print(f"ratio to the best peer {result['ratio_to_best_peer']} ({result['ratios']})")
    report = {
        "command": "python benchmarks/data_path.py " + " ".join(sys.argv[1:]),
        "what": (__doc__ or "").split("\n\n")[2:5],
        "cpus": os.cpu_count(),
        "load_before_the_start": round(load, 1),
        "load_at_the_end": round(os.getloadavg()[0], 1),
        "results": results,
    }
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
