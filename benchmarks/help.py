"""How long the command line takes to answer, median of five calls.

python benchmarks/help.py [--out benchmarks/results/help.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

CALLS = {"medlight --help": ["--help"], "medlight data prepare --help": ["data", "prepare", "--help"]}


def median_seconds(arguments: list[str]) -> float:
    """Median seconds of five calls, after one that is not counted."""
    command = [str(Path(sys.executable).with_name("medlight")), *arguments]
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def main() -> None:
    """Time the calls and print their medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    figures = {"command": " ".join(["python", *sys.argv])} | {
        name: round(median_seconds(call), 3) for name, call in CALLS.items()
    }
    print(json.dumps(figures, indent=1))
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
