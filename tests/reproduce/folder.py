"""A study folder with a tiny classifier on fake pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.data import fake

BASE: dict[str, Any] = {
    "precision": "32-true",
    "channels_last": False,
    "model": {
        "class_path": "medlight.tasks.ClassificationTask",
        "init_args": {
            "network": {
                "class_path": "monai.networks.nets.DenseNet",
                "init_args": {"init_features": 4, "growth_rate": 4, "block_config": [1, 1], "bn_size": 1},
            },
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-2}},
        },
    },
    "data": {
        "class_path": "medlight.data.ScanDataModule",
        "init_args": {
            "source": {"class_path": "medlight.prepare.MedMNIST", "init_args": {"path": "fake.npz"}},
            "split": {"class_path": "medlight.prepare.GivenSplit"},
            "batch_size": 8,
            "steps_per_epoch": 2,
        },
    },
    "trainer": {"max_epochs": 2, "accelerator": "cpu", "devices": 1},
}
FAST = {"model": {"class_path": "medlight.tasks.ClassificationTask"}, "trainer": {"max_epochs": 3}}
TUNED = {
    "model": {"class_path": "medlight.tasks.ClassificationTask", "init_args": {"pretrained": "variant:slow"}},
}
EXPECTED: dict[str, Any] = {
    "study": "fakes",
    "paper": "Nobody, Nowhere, 2020",
    "seeds": 2,
    "variants": {"slow": ["base.yaml"], "fast": ["base.yaml", "fast.yaml"]},
    "expected": [
        {"variant": "slow", "metric": "test/auroc", "value": 0.9, "tolerance": 0.6, "reason": "r", "source": "Table 1"},
        {"claim": "fast.test/loss < slow.test/loss", "source": "Table 2"},
    ],
    "deviations": ["the pictures are fake"],
    "quick": {"trainer.max_epochs": 1},
}


def write(root: Path, **changes: Any) -> Path:
    """Write pictures and the study ``root/studies/fakes``; returns its folder."""
    if not (root / "fake.npz").exists():
        fake.medmnist(root / "fake.npz", counts=(16, 8, 10))
    folder = root / "studies" / "fakes"
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"base": BASE, "fast": FAST, "tuned": TUNED, "expected": {**EXPECTED, **changes}}
    for name, content in parts.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder
