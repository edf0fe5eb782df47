"""A fit that was killed goes on as if it had not been."""

from __future__ import annotations

import random
import signal
import tempfile
import time
from functools import cache
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from tests.callbacks.processes import curves_in, differences, fit, start, status_in

OPTIONS = {
    "plain": [],
    "ema-stop": ["--ema", "--patience", "3", "--epochs", "12"],
    "accumulate": ["--accumulate", "4", "--ema"],
    "sparse-validation": ["--every", "2"],
    "workers": ["--workers", "2", "--ema"],
}


LIMITS = {"on_train_batch_end": 30, "on_validation_batch_end": 8, "rename": 6, "on_train_epoch_end": 4}
DEATHS = [
    ("plain", "on_train_batch_end"),
    ("plain", "rename"),
    ("ema-stop", "on_train_batch_end"),
    ("ema-stop", "on_train_epoch_end"),
    ("accumulate", "on_train_batch_end"),
    ("sparse-validation", "on_validation_batch_end"),
    ("workers", "on_train_batch_end"),
]


@cache
def undisturbed(options: str) -> Path:
    folder = Path(tempfile.mkdtemp())
    assert fit(folder, *OPTIONS[options]) == 0
    return folder


@pytest.mark.parametrize(("name", "where"), DEATHS)
def test_resumed_curve_is_the_undisturbed_one(name: str, where: str, tmp_path: Path) -> None:
    options, whole = OPTIONS[name], undisturbed(name)
    count = random.randint(1, LIMITS[where])
    assert fit(tmp_path, *options, "--die", where, "--count", str(count)) == -signal.SIGKILL, count
    run_id = (tmp_path / "run_id").read_text()
    assert status_in(tmp_path) == "RUNNING"
    assert fit(tmp_path, *options, "--run-id", run_id) == 0
    assert differences(curves_in(whole), curves_in(tmp_path)) == [], f"killed in {where} {count}"
    assert status_in(tmp_path) == "FINISHED"


def test_killed_twice(tmp_path: Path) -> None:
    assert fit(tmp_path / "whole", "--ema") == 0
    folder = tmp_path / "killed"
    assert fit(folder, "--ema", "--die", "on_train_batch_end", "--count", "9") == -signal.SIGKILL
    run_id = (folder / "run_id").read_text()
    again = ["--ema", "--run-id", run_id]
    assert fit(folder, *again, "--die", "on_train_batch_end", "--count", "15") == -signal.SIGKILL
    assert fit(folder, *again) == 0
    assert differences(curves_in(tmp_path / "whole"), curves_in(folder)) == []
    records = sorted(file.name for file in folder.rglob("manifest*.json"))
    assert records == ["manifest-resumed-1.json", "manifest-resumed-2.json", "manifest.json"]


@pytest.mark.parametrize("where", ["on_train_batch_end", "on_validation_batch_end"])
def test_sigterm_ends_promptly_and_resumably(tmp_path: Path, where: str) -> None:
    assert fit(tmp_path / "whole") == 0
    folder = tmp_path / "stopped"
    assert fit(folder, "--die", where, "--count", "8", "--signal", "15") == 143
    assert status_in(folder) == "KILLED"
    assert fit(folder, "--run-id", (folder / "run_id").read_text()) == 0
    assert differences(curves_in(tmp_path / "whole"), curves_in(folder)) == []
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    assert client.get_run((folder / "run_id").read_text()).data.tags["medlight.state"] == "complete"


def test_sigterm_from_outside_is_quick(tmp_path: Path) -> None:
    process = start(tmp_path, "--pause", "0.2", "--epochs", "50")
    while not (tmp_path / "run_id").exists():  # written once the run is there
        time.sleep(0.1)
    time.sleep(2)
    process.terminate()
    begun = time.monotonic()
    process.join(30)
    assert process.exitcode == 143
    assert time.monotonic() - begun < 5
    assert status_in(tmp_path) == "KILLED"


def test_checkpoints_hold_plain_values(tmp_path: Path) -> None:
    assert fit(tmp_path, "--ema", "--patience", "9") == 0
    files = sorted(tmp_path.rglob("*.ckpt"))
    assert [file.name for file in files] == ["best.ckpt", "last.ckpt"]
    for file in files:
        assert torch.load(file, weights_only=True)["state_dict"]
    assert not list(tmp_path.rglob("*.partial"))
    assert not list((tmp_path / "mlruns" / "spool").glob("*.jsonl"))
