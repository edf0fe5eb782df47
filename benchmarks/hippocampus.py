"""The hippocampus study against a plain loop that gets the same minutes: held-out Dice, paired over the cases.

    MEDLIGHT_DATA=... python benchmarks/hippocampus.py [--seeds 0 1 2] [--out FILE.json]

For each seed `medlight fit` trains the study (a fixed number of steps), `medlight test` measures it on the split's
test cases, and benchmarks/peers/plain_loop.py trains for as many minutes as the fit took, everything included, and is
measured on the same cases by its own code. One after the other: the machine should do nothing else.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medlight.compare.stats import estimate, paired
from medlight.launch.resolve import parse, read
from medlight.tracking import store

ROOT = Path(__file__).resolve().parents[1]
STUDY = ROOT / "experiments" / "hippocampus"
PEER = ROOT / "benchmarks" / "peers" / "plain_loop.py"


def study(seed: int, out: Path) -> dict[str, Any]:
    """Train and test the study with one seed; the figures, and a list of Dice per label for each test case."""
    medlight = [sys.executable, "-m", "medlight.cli.main"]
    begin = time.perf_counter()
    fit = [*medlight, "fit", "-c", str(STUDY / "fit.yaml"), f"--seed_everything={seed}", "--json", str(out)]
    subprocess.run(fit, check=True)
    minutes = (time.perf_counter() - begin) / 60
    run_id = json.loads(out.read_text())["run_id"]
    subprocess.run([*medlight, "test", run_id], check=True)
    names = _names()
    with store.artifact(run_id, "cases.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] == "test"]
    labels = [column for column in rows[0] if column.startswith("dice/")]
    cases = {names.get(row["case_id"], row["case_id"]): [float(row[label]) for label in labels] for row in rows}
    run = store.find_run(run_id)
    return {"minutes": minutes, "precision": run.data.tags.get("medlight.precision"), "cases": cases}


def _names() -> dict[str, str]:
    """A run names cases by their content; this is the way back to the names of the files."""
    _, data, _ = parse(read([str(STUDY / "fit.yaml")], [])).build()
    data.prepare_data()
    data.setup("test")
    return {recorded: case for case, recorded in data.recorded.items()}


def plain_loop(seed: int, minutes: float, out: Path) -> dict[str, Any]:
    """Train and test the plain loop with one seed."""
    command = [str(PEER), str(STUDY / "split.json"), str(out), "--minutes", f"{minutes:.2f}", "--seed", str(seed)]
    subprocess.run([sys.executable, *command], check=True)
    return dict(json.loads(out.read_text()))


def _against(ours: dict[str, list[float]], peer: dict[str, list[float]]) -> dict[str, Any]:
    if set(ours) != set(peer):
        raise SystemExit(f"measured on different cases: {sorted(set(ours) ^ set(peer))[:4]} ...")
    order = sorted(ours)
    mine, theirs = ([float(np.mean(cases[case])) for case in order] for cases in (ours, peer))
    found = paired(mine, theirs)
    return {
        "cases": len(order),
        "dice": estimate(mine).__dict__,
        "dice_plain_loop": estimate(theirs).__dict__,
        "difference": found.difference.__dict__,
        "p_wilcoxon": found.p,
    }


def main() -> None:
    """Run the pairs and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }
    result: dict[str, Any] = {"machine": machine, "seeds": {}}
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            ours = study(seed, Path(folder) / f"study-{seed}.json")
            peer = plain_loop(seed, ours["minutes"], Path(folder) / f"peer-{seed}.json")
            pair = _against(ours["cases"], peer["cases"])
            result["seeds"][str(seed)] = {**pair, "study": ours, "plain_loop": peer}
            print(json.dumps(pair, indent=1), flush=True)
            if args.out:
                args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
