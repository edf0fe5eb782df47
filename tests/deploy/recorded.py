"""A tiny fit with an Export callback, recorded in a store of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medlight.launch.fit import Launch, fit
from medlight.tracking import store
from tests.data import fake
from tests.deploy.trained import UNET


def config_of(root: Path) -> dict[str, Any]:
    data = {
        "source": {
            "class_path": "medlight.prepare.ImageFolders",
            "init_args": {"images": str(root / "images"), "labels": str(root / "labels")},
        },
        "split": {"class_path": "medlight.prepare.RandomSplit", "init_args": {"val": 0.5}},
        "preparation": {"class_path": "medlight.prepare.Preparation", "init_args": {"spacing": [1.5, 1.5, 1.5]}},
        "patch": {"class_path": "medlight.data.Patch", "init_args": {"size": [16, 16, 16]}},
    }
    return {
        "study": "exports",
        "name": "tiny",
        "precision": "32-true",
        "channels_last": False,
        "model": {"class_path": "medlight.tasks.SegmentationTask", "init_args": {"network": UNET}},
        "data": {"class_path": "medlight.data.ScanDataModule", "init_args": data},
        "trainer": {
            "max_epochs": 1,
            "accelerator": "cpu",
            "devices": 1,
            "callbacks": [{"class_path": "medlight.callbacks.export.Export", "init_args": {"cases": 1}}],
        },
    }


class Recorded:
    """A folder with a finished fit in its store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        fake.folders(root, 4, (20, 22, 12), spacing=(1, 1, 2.5), codes="LPS")
        self.config = config_of(root)
        self.run_id = fit(self.config, Launch()).run_id

    def tags(self) -> dict[str, str]:
        return dict(store.client().get_run(self.run_id).data.tags)

    def metrics(self) -> dict[str, float]:
        return dict(store.client().get_run(self.run_id).data.metrics)


@contextmanager
def recorded_fit(root: Path) -> Iterator[Recorded]:
    """Fit in an empty folder, with its own store, and stay there."""
    before = os.getcwd()
    kept = {name: os.environ.pop(name, None) for name in ("MLFLOW_TRACKING_URI", "MEDLIGHT_DATA")}
    os.chdir(root)
    try:
        yield Recorded(root)
    finally:
        os.chdir(before)
        os.environ.update({name: value for name, value in kept.items() if value is not None})
