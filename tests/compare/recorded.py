"""Runs as a fit and a sweep record them, written straight into a SQLite store."""

from __future__ import annotations

import csv
import math
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

STEPS = (10, 20, 30, 40)


@cache
def empty_store() -> Path:
    """A store without runs, made once: its tables take seconds."""
    file = Path(tempfile.mkdtemp()) / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@dataclass
class Recorder:
    """A tracking store in ``root/mlruns``, as the package lays it out."""

    root: Path
    study: str = "hippocampus"
    client: MlflowClient = field(init=False)
    experiment: str = field(init=False)

    def __post_init__(self) -> None:
        folder = self.root / "mlruns"
        folder.mkdir(exist_ok=True)
        shutil.copy(empty_store(), folder / "mlflow.db")
        self.client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
        self.experiment = self.client.create_experiment(self.study, f"file://{folder / 'artifacts'}")

    def run(
        self,
        name: str,
        *,
        kind: str = "fit",
        state: str = "complete",
        reason: str = "",
        parent: str = "",
        params: Mapping[str, object] = {},
        curves: Mapping[str, list[float]] = {},
        cases: Mapping[str, Mapping[str, Mapping[str, object]]] = {},
    ) -> str:
        """Record one run; ``curves`` over STEPS, ``cases`` split -> case -> column -> value. Returns its id."""
        tags = {"medlight.kind": kind, "medlight.study": self.study, "medlight.name": name, "medlight.state": state}
        tags |= {"medlight.monitor": "val/dice", "medlight.mode": "max", "mlflow.runName": name}
        tags |= {"medlight.reason": reason} if reason else {}
        tags |= {"mlflow.parentRunId": parent} if parent else {}
        made = self.client.create_run(self.experiment, tags=tags)
        run_id: str = made.info.run_id
        now = int(time.time() * 1000)
        points = [
            Metric(key, v, now, step) for key, line in curves.items() for step, v in zip(STEPS, line, strict=False)
        ]
        self.client.log_batch(run_id, points, [Param(k, str(v)) for k, v in params.items()], [RunTag("made", "test")])
        if cases:
            self._cases(run_id, cases)
        status = {"complete": "FINISHED", "failed": "FAILED", "pruned": "KILLED"}.get(state)
        if status:
            self.client.set_terminated(run_id, status)
        return run_id

    def _cases(self, run_id: str, cases: Mapping[str, Mapping[str, Mapping[str, object]]]) -> None:
        file = self.root / "cases.csv"
        names = list(dict.fromkeys(c for rows in cases.values() for row in rows.values() for c in row))
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["case_id", "split", "epoch", *names])
            writer.writeheader()
            for split, rows in cases.items():
                writer.writerows({"case_id": case, "split": split, "epoch": 2, **row} for case, row in rows.items())
        self.client.log_artifact(run_id, str(file))


def dice_cases(mean: float, count: int = 20, seed: int = 0, first: int = 0) -> dict[str, dict[str, object]]:
    """Scores of two labels for ``count`` cases, harder and easier ones alike in every run."""
    hardness = np.random.default_rng(99).normal(0, 0.04, first + count)[first:]
    noise = np.random.default_rng(seed).normal(0, 0.01, (count, 2))
    rows: dict[str, dict[str, object]] = {}
    for index in range(count):
        anterior, posterior = (float(np.clip(mean + hardness[index] + n, 0, 1)) for n in noise[index])
        distance = math.nan if index == 3 else 20 * (1 - anterior)
        rows[f"hippocampus_{first + index:03d}"] = {
            "loss": 1 - anterior,
            "dice": (anterior + posterior) / 2,
            "dice/Anterior": anterior,
            "dice/Posterior": posterior,
            "hd95": distance,
        }
    return rows


def dice_curves(best: float) -> dict[str, list[float]]:
    """Curves whose best validation is the third of four."""
    return {
        "train/loss": [0.9, 0.6, 0.4, 0.3],
        "val/loss": [0.8, 0.5, 0.4, 0.45],
        "val/dice": [best - 0.3, best - 0.1, best, best - 0.02],
        "val/hd95": [9.0, 6.0, 4.0, 5.0],
        "val/dice/Anterior": [best - 0.3, best - 0.1, best + 0.01, best - 0.02],
        "val/dice/Posterior": [best - 0.3, best - 0.1, best - 0.01, best - 0.02],
    }


def spec(network: str, channels: str, rate: float) -> dict[str, object]:
    """Parameters as a fit logs them: the flattened configuration."""
    return {
        "name": f"{network}-{rate}",
        "seed_everything": 0,
        "model.class_path": "medlight.tasks.SegmentationTask",
        "model.init_args.network.class_path": f"monai.networks.nets.{network}",
        "model.init_args.network.init_args.channels": channels,
        "model.init_args.optimizer.class_path": "torch.optim.AdamW",
        "model.init_args.optimizer.init_args.lr": rate,
        "data.init_args.batch_size": 6,
    }


def sweep(recorder: Recorder, name: str = "hippocampus-sweep") -> tuple[str, list[str]]:
    """A finished sweep: five complete trials of three networks, one pruned, one failed. Returns parent and children."""
    parent = recorder.run(name, kind="sweep", params={"trials": 7})
    setups = [("DynUNet", "[24, 48]", 1e-3, 0.88), ("UNet", "[16, 32]", 3e-4, 0.86), ("SegResNet", "16", 1e-4, 0.84)]
    setups += [("DynUNet", "[16, 32]", 3e-3, 0.875), ("UNet", "[24, 48]", 1e-2, 0.80)]
    children = []
    for index, (network, channels, rate, level) in enumerate(setups):
        children.append(
            recorder.run(
                f"{name}-{index}",
                kind="trial",
                parent=parent,
                params=spec(network, channels, rate),
                curves=dice_curves(level),
                cases={"val": dice_cases(level, seed=index)},
            )
        )
    stopped = {key: line[:2] for key, line in dice_curves(0.6).items()}
    for index, (state, reason) in enumerate([("pruned", "below the median at step 20"), ("failed", "over 4 GB")], 5):
        children.append(
            recorder.run(
                f"{name}-{index}",
                kind="trial",
                parent=parent,
                state=state,
                reason=reason,
                params=spec("UNet", "[4, 8]", 1e-3),
                curves=stopped if state == "pruned" else {},
            )
        )
    return parent, children


def picture(recorder: Recorder, run_id: str) -> None:
    """Log a picture at a step, and one as a file in ``images/``."""
    from PIL import Image

    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, :48, 0] = 255
    recorder.client.log_image(run_id, pixels, key="val/example", step=30)
    file = recorder.root / "panel.png"
    Image.fromarray(pixels).save(file)
    recorder.client.log_artifact(run_id, str(file), "images")
