"""How long a machine that only predicts takes from the command to a written prediction, and how big its environment is.

    medlight export RUN bundle --to onnx,openvino --precision fp32,int8
    python benchmarks/edge_start.py bundle SCAN [--rounds 7] [--out benchmarks/results/edge_start.json]

A fresh environment is made of the bundle's own requirements and of medlight without its dependencies (no torch). The
first call also measures the bundle's runtimes; the median is over those after it, each a process of its own with one
thread, of a SCAN that one window covers. Target: 1.5 s, 400 MB.
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

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Make the environment, time the calls and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = environment(folder / "edge", args.bundle)
        seconds = [start(python, args.bundle, args.scan, folder) for _ in range(args.rounds + 1)]
        figures = {
            "command": " ".join(["python", *sys.argv]),
            "first_s": round(seconds[0], 2),
            "median_s": round(statistics.median(seconds[1:]), 2),
            "worst_s": round(max(seconds[1:]), 2),
            "environment_mb": round(megabytes(folder / "edge")),
        }
    text = json.dumps(figures, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def environment(folder: Path, bundle: Path) -> Path:
    """Return the interpreter of a new environment with what the bundle asks for."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", bundle / "requirements.txt"], check=True)
    subprocess.run([*pip, "--no-deps", ROOT], check=True)
    return folder / "bin" / "python"


def start(python: Path, bundle: Path, scan: Path, folder: Path) -> float:
    """Predict into a new folder; the seconds from the command to its end."""
    out = Path(tempfile.mkdtemp(dir=folder))
    command = [python, "-m", "medlight", "predict", bundle.absolute(), scan.absolute(), out, "--threads", "1"]
    own = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "HOME": str(folder)}
    begin = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=folder, env=own)
    return time.perf_counter() - begin


def megabytes(folder: Path) -> float:
    """Size of the packages installed, without the installer and compiled copies."""
    site = next((folder / "lib").glob("python*/site-packages"))
    installers = ("pip", "setuptools", "_distutils_hack")
    files = [f for top in site.iterdir() if not top.name.startswith(installers) for f in [top, *top.rglob("*")]]
    return sum(f.stat().st_size for f in files if f.is_file() and not f.is_symlink() and f.suffix != ".pyc") / 1e6


if __name__ == "__main__":
    main()
