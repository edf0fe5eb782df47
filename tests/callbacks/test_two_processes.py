"""A fit in two processes is one run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_one_run_and_each_point_once(workdir: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.callbacks.tiny", "--devices", "2", "--epochs", "3"]
    subprocess.run(command, cwd=workdir, env=environment, check=True, timeout=200)
    client = MlflowClient(f"sqlite:///{workdir}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"]
    for key in ("val/loss", "train/loss", "train/samples_per_s", "lr"):
        steps = [m.step for m in client.get_metric_history(runs[0].info.run_id, key)]
        assert len(steps) == len(set(steps)) >= 3
    assert sorted(file.name for file in workdir.rglob("*.ckpt")) == ["best.ckpt", "last.ckpt"]
