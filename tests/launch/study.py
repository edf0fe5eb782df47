"""A small real fit on fake scans, as a user would write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.data import fake


def config(**trainer: Any) -> dict[str, Any]:
    """Segmentation of two blobs from 16^3 patches with augmentation; no BatchNorm, dropout in the network."""
    return {
        "study": "blobs",
        "name": "tiny",
        "seed_everything": 3,
        "precision": "32-true",
        "channels_last": False,
        "model": {
            "class_path": "medlight.tasks.SegmentationTask",
            "init_args": {
                "network": {
                    "class_path": "monai.networks.nets.UNet",
                    "init_args": {"channels": [4, 8], "strides": [2], "dropout": 0.1},
                },
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-2}},
                "scheduler": {
                    "class_path": "torch.optim.lr_scheduler.PolynomialLR",
                    "init_args": {},
                    "interval": "step",
                },
            },
        },
        "data": {
            "class_path": "medlight.data.ScanDataModule",
            "init_args": {
                "source": {
                    "class_path": "medlight.prepare.ImageFolders",
                    "init_args": {"images": "images", "labels": "labels"},
                },
                "split": {"class_path": "medlight.prepare.RandomSplit", "init_args": {"val": 0.34}},
                "patch": {"class_path": "medlight.data.Patch", "init_args": {"size": [16, 16, 16]}},
                "augment": [
                    {"class_path": "medlight.data.augment.RandomSpatial", "init_args": {"degrees": 15}},
                    {"class_path": "torchio.RandomNoise", "init_args": {"p": 0.5}},
                ],
                "batch_size": 2,
                "steps_per_epoch": 4,
            },
        },
        "trainer": {"accelerator": "cpu", "max_epochs": 3, "log_every_n_steps": 1, **trainer},
    }


def write(folder: Path, whole: dict[str, Any], cases: int = 6) -> Path:
    """Put the scans and ``fit.yaml`` into a folder; returns the YAML's path."""
    fake.folders(folder, cases=cases, shape=(20, 20, 20))
    path = folder / "fit.yaml"
    path.write_text(yaml.safe_dump(whole, sort_keys=False))
    return path


def runs(folder: Path) -> list[Run]:
    """Every run of the folder's store."""
    client = _client(folder)
    return list(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))


def _client(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")


def curves(folder: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Every run of the folder's store: its metrics as (step, value) in order, by run id."""
    client, found = _client(folder), {}
    for run in runs(folder):
        names = [n for n in run.data.metrics if n.startswith(("train/loss", "val/", "lr"))]
        found[run.info.run_id] = {
            name: sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)) for name in names
        }
    return found
