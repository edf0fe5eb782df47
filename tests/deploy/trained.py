"""Checkpoints of tiny tasks, trained for a few steps on fake scans."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L

from medlight.data import Patch, ScanDataModule
from medlight.prepare import ImageFolders, MedMNIST, Preparation, RandomSplit, Window, ZScore
from medlight.prepare.splits import GivenSplit
from medlight.tasks import ClassificationTask, SegmentationTask
from tests.data import fake

UNET: dict[str, Any] = {
    "class_path": "monai.networks.nets.DynUNet",
    "init_args": {
        "filters": [4, 8, 8],
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "res_block": True,
    },
}


@dataclass
class Trained:
    """A checkpoint and the data it was trained on."""

    checkpoint: Path
    data: ScanDataModule

    @property
    def cases(self) -> list[Any]:
        return [prepared.case for prepared in self.data.prepared["val"]]


def fit(task: L.LightningModule, data: ScanDataModule, root: Path, steps: int = 2) -> Trained:
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        max_steps=steps,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=root,
        use_distributed_sampler=False,
    )
    trainer.fit(task, data)
    trainer.save_checkpoint(root / "best.ckpt")
    return Trained(root / "best.ckpt", data)


def segmentation(
    root: Path,
    *,
    shape: tuple[int, int, int] = (20, 22, 12),
    spacing: tuple[float, float, float] = (1.0, 1.0, 2.5),
    prepared: list[float] | None = None,
    codes: str = "LPS",
    window: bool = False,
    patch: list[int] | None = None,
    channels: int = 1,
    cases: int = 4,
    steps: int = 2,
) -> Trained:
    """A small U-Net on anisotropic scans that are not RAS, resampled to 1.5 mm unless told otherwise."""
    fake.folders(root, cases, shape, labels=2, spacing=spacing, codes=codes, channels=channels)
    data = ScanDataModule(
        ImageFolders(str(root / "images"), str(root / "labels"), {1: "one", 2: "two"}),
        RandomSplit(val=0.5),
        Preparation(spacing=prepared or [1.5, 1.5, 1.5]),
        Window(0.0, 800.0) if window else ZScore(),
        patch=Patch(patch or [16, 16, 16]),
        store_dir=str(root / "store"),
    )
    task = SegmentationTask(network=UNET, optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}})
    return fit(task, data, root, steps)


def classification(root: Path, **options: Any) -> Trained:
    """A small ResNet on pictures."""
    data = ScanDataModule(
        MedMNIST(str(fake.medmnist(root / "fake.npz", counts=(12, 6, 4), **options))),
        GivenSplit(),
        store_dir=str(root / "store"),
        batch_size=4,
    )
    network = {
        "class_path": "monai.networks.nets.ResNet",
        "init_args": {"block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [4, 4, 8, 8]},
    }
    return fit(ClassificationTask(network=network), data, root)
