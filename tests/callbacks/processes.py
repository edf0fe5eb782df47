"""Tiny fits in processes of their own (a fork server has the imports loaded), and their curves."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

from mlflow import MlflowClient

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.callbacks.tiny"])
Curves = dict[str, list[tuple[int, float]]]


def _fit(folder: str, arguments: list[str], environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ.update(environment)
    sys.argv = ["tiny", *arguments]
    from tests.callbacks import tiny

    tiny.main()


def start(folder: Path, *arguments: str, **environment: str) -> multiprocessing.process.BaseProcess:
    """Start a tiny fit in a folder (with empty tables ready there: MLflow takes seconds to make them)."""
    (folder / "mlruns").mkdir(parents=True, exist_ok=True)
    if not (folder / "mlruns" / "mlflow.db").exists():
        shutil.copy(_tables(), folder / "mlruns" / "mlflow.db")
    process = _context.Process(target=_fit, args=(str(folder), list(arguments), environment))
    process.start()
    return process


@cache
def _tables() -> Path:
    file = Path(tempfile.mkdtemp()) / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


def fit(folder: Path, *arguments: str, **environment: str) -> int:
    """Run a tiny fit to its end, whichever; returns the exit code (negative: the signal)."""
    process = start(folder, *arguments, **environment)
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def curves(uri: str, run_id: str) -> Curves:
    """All points of a run but those that measure the machine."""
    client = MlflowClient(uri)
    keys = client.get_run(run_id).data.metrics
    measured = ("system/", "train/samples_per_s", "train/data_wait")
    return {
        key: sorted((m.step, m.value) for m in client.get_metric_history(run_id, key))
        for key in keys
        if not key.startswith(measured)
    }


def curves_in(folder: Path) -> Curves:
    """All points of the run of a tiny fit in a folder."""
    return curves(f"sqlite:///{folder}/mlruns/mlflow.db", (folder / "run_id").read_text())


def status_in(folder: Path) -> str:
    """The MLflow status of that run."""
    run = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db").get_run((folder / "run_id").read_text())
    return str(run.info.status)


def differences(a: Curves, b: Curves, tolerance: float = 1e-6) -> list[str]:
    """What is not the same in two sets of curves: keys, steps (each once), values."""
    found = [f"only one has {key}" for key in a.keys() ^ b.keys()]
    for key in a.keys() & b.keys():
        if [step for step, _ in a[key]] != [step for step, _ in b[key]]:
            found.append(f"{key}: steps {[s for s, _ in a[key]]} and {[s for s, _ in b[key]]}")
        else:
            far = [(s, x, y) for (s, x), (_, y) in zip(a[key], b[key], strict=True) if not abs(x - y) <= tolerance]
            found += [f"{key}: {far[:3]}"] if far else []
    return found
