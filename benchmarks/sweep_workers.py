"""A sweep with two workers of one thread each against the same sweep with one worker of one thread.

    python benchmarks/sweep_workers.py [--rounds 2] [--trials 8] [--steps 40] [--out benchmarks/results/NAME.json]

Both arms run the public command in an empty folder on fake scans, prepared before the clock starts, in turns. The
trials are real fits of equal cost (only the learning rate differs). A round's figure is the wall time of the whole
command, its start included; the ratio is of the medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.data import fake  # noqa: E402
from tests.sweeps.study import fit_yaml, sweep_yaml  # noqa: E402

UNET = {
    "class_path": "monai.networks.nets.UNet",
    "init_args": {"channels": [16, 32, 64], "strides": [2, 2], "num_res_units": 1},
}


def write(folder: Path, trials: int, steps: int) -> None:
    """The study: an epoch of ``steps`` steps of two patches of 32^3, then another."""
    fake.folders(folder / "scans", cases=6, shape=(40, 40, 40))
    fit: dict[str, Any] = fit_yaml(folder / "scans", max_epochs=2)
    fit["model"]["init_args"]["network"] = UNET
    data = fit["data"]["init_args"]
    data |= {"steps_per_epoch": steps, "patch": {"class_path": "medlight.data.Patch", "init_args": {"size": [32] * 3}}}
    space = {"model.optimizer.lr": {"type": "float", "low": 1e-3, "high": 1e-2, "log": True}}
    (folder / "fit.yaml").write_text(yaml.safe_dump(fit))
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep_yaml(space=space, trials=trials, threads=1)))


def timed(folder: Path, workers: int, name: str) -> dict[str, Any]:
    """Run the sweep; seconds of the whole and of each trial."""
    more = ["--workers", str(workers), "--name", name, "--json", f"{name}.json"]
    command = [sys.executable, "-m", "medlight.cli.main", "sweep", "-c", "sweep.yaml", *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    trials = json.loads((folder / f"{name}.json").read_text())["trials"]
    return {"seconds": round(seconds, 2), "trials": [trial["seconds"] for trial in trials]}


def main() -> None:
    """Run both arms in turns and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    arms: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        write(folder, args.trials, args.steps)
        subprocess.run(
            [sys.executable, "-m", "medlight.cli.main", "data", "prepare", "-c", "fit.yaml"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=True,
        )
        for index in range(args.rounds):
            for workers, results in arms.items():
                results.append(timed(folder, workers, f"{index}-{workers}"))
    median = {workers: statistics.median(each["seconds"] for each in results) for workers, results in arms.items()}
    report = {
        "what": "wall time of a sweep, one worker over two workers, one thread each",
        "target": 1.6,
        "ratio": round(median[1] / median[2], 3),
        "rounds": {f"{workers} workers": results for workers, results in arms.items()},
        "trials": args.trials,
        "cpus": len(os.sched_getaffinity(0)),
        "load_before": round(load, 2),
    }
    print(json.dumps(report, indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
