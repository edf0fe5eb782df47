"""A tiny study on fake scans: a fit of a few seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.data import fake

UNET = {"class_path": "monai.networks.nets.UNet", "init_args": {"channels": [4, 8], "strides": [2], "num_res_units": 0}}
BASIC = {"class_path": "monai.networks.nets.BasicUNet", "init_args": {"features": [4, 4, 8, 8, 8, 4]}}


def fit_yaml(root: Path, **trainer: Any) -> dict[str, Any]:
    return {
        "study": "tiny",
        "precision": "32-true",
        "channels_last": False,
        "model": {
            "class_path": "medlight.tasks.SegmentationTask",
            "init_args": {
                "network": UNET,
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-2}},
            },
        },
        "data": {
            "class_path": "medlight.data.ScanDataModule",
            "init_args": {
                "source": {
                    "class_path": "medlight.prepare.ImageFolders",
                    "init_args": {"images": str(root / "images"), "labels": str(root / "labels")},
                },
                "split": {"class_path": "medlight.prepare.RandomSplit", "init_args": {"val": 0.25}},
                "patch": {"class_path": "medlight.data.Patch", "init_args": {"size": [16, 16, 16]}},
                "batch_size": 2,
                "steps_per_epoch": 2,
            },
        },
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "devices": 1, **trainer},
    }


def sweep_yaml(**changes: Any) -> dict[str, Any]:
    return {
        "fit": "fit.yaml",
        "name": "net",
        "space": {
            "model.network": {"type": "categorical", "choices": {"unet": UNET, "basic": BASIC}},
            "model.optimizer.lr": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True},
        },
        "objectives": [{"metric": "val/dice", "direction": "maximize"}],
        "sampler": {"class_path": "optuna.samplers.RandomSampler"},
        "trials": 3,
        "workers": 1,
        "threads": 1,
        **changes,
    }


def write(folder: Path, sweep: dict[str, Any] | None = None, **trainer: Any) -> Path:
    """Write scans, fit.yaml and sweep.yaml; returns the last."""
    if not (folder / "scans").exists():
        fake.folders(folder / "scans", cases=4, shape=(20, 20, 20))
    (folder / "fit.yaml").write_text(yaml.safe_dump(fit_yaml(folder / "scans", **trainer), sort_keys=False))
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep or sweep_yaml(), sort_keys=False))
    return folder / "sweep.yaml"
