"""Quantisation-aware fine-tuning: a fit like any other, and an INT8 graph that is worth having."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from medlight import tasks
from medlight.callbacks import QuantizationAware
from medlight.deploy.onnx_export import export_onnx
from medlight.deploy.quantise import quantise
from medlight.errors import UsageError
from medlight.tasks import MeanTeacherSegmentation, SegmentationTask, SimCLRTask
from tests.deploy.test_quantise import run
from tests.deploy.trained import UNET, Trained, segmentation

BATCH, STEPS = 32, 300


def fit(task: L.LightningModule, trained: Trained, root: Path, *callbacks: L.Callback) -> None:
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        max_steps=2,
        num_sanity_val_steps=1,
        limit_val_batches=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        default_root_dir=root,
        use_distributed_sampler=False,
    )
    trainer.fit(task, trained.data)
    trainer.save_checkpoint(root / "aware.ckpt")


class Probe(L.Callback):
    """Notes whether the network is rounded, batch by batch and in validation."""

    def __init__(self, aware: QuantizationAware) -> None:
        self.aware, self.training, self.validation = aware, [], []

    def on_train_batch_start(self, *_: Any) -> None:
        assert self.aware._rounding is not None
        self.training.append(self.aware._rounding.on)

    def on_validation_batch_start(self, *_: Any) -> None:
        assert self.aware._rounding is not None
        self.validation.append(self.aware._rounding.on)


def test_a_fit_with_it_leaves_a_checkpoint_like_any_other(tmp_path: Path) -> None:
    trained = segmentation(tmp_path)
    aware = QuantizationAware()
    probe = Probe(aware)
    task = SegmentationTask(network=UNET, pretrained=str(trained.checkpoint))
    fit(task, trained, tmp_path, aware, probe)
    assert probe.training == [True, False]
    assert probe.validation
    assert all(probe.validation)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in task.modules())
    before, after = tasks.load(trained.checkpoint), tasks.load(tmp_path / "aware.ckpt")
    assert list(after.state_dict()) == list(before.state_dict())
    assert any(not torch.equal(a, b) for a, b in zip(after.parameters(), before.parameters(), strict=True))
    assert after.deployable()(torch.zeros(1, 1, 16, 16, 16)).isfinite().all()


def test_a_fit_that_fails_leaves_no_hooks(tmp_path: Path) -> None:
    class Fails(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise ZeroDivisionError

    trained = segmentation(tmp_path)
    task = SegmentationTask(network=UNET)
    with pytest.raises(ZeroDivisionError):
        fit(task, trained, tmp_path, QuantizationAware(), Fails())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in task.modules())


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (MeanTeacherSegmentation(), "deploys its teacher, which is not what is trained; mend: fit SegmentationTask"),
        (SimCLRTask(), "has no network that is deployed; mend: leave it out"),
    ],
)
def test_a_task_that_deploys_no_trained_network_is_refused(task: L.LightningModule, said: str) -> None:
    with pytest.raises(UsageError, match=f"trainer.callbacks: QuantizationAware: {type(task).__name__} {said}"):
        QuantizationAware().setup(L.Trainer(logger=False), task, "fit")
    QuantizationAware().setup(L.Trainer(logger=False), task, "test")


class Radiographs(L.LightningModule):
    """Pneumonia or not, by a small network with batch norms."""

    kind: ClassVar[str] = "classification"

    def __init__(self) -> None:
        super().__init__()
        sizes, layers = ((1, 8, 2), (8, 16, 1), (16, 16, 2), (16, 16, 1)), []
        for taken, given, stride in sizes:
            layers += [nn.Conv2d(taken, given, 3, stride, 1, bias=False), nn.BatchNorm2d(given), nn.ReLU()]
        self.network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
        self.rate = 3e-3

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), self.rate)
        return [optimizer], [
            {"scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS), "interval": "step"}
        ]

    def spread(self, factor: float) -> None:
        """Scale channels by up to this factor or its inverse, and undo it in the next layer: fp32 stays the same."""
        generator, layers = torch.Generator().manual_seed(1), list(self.network)
        with torch.no_grad():
            for norm, following in ((1, 3), (4, 6), (7, 9)):
                scale = factor ** (2 * torch.rand(layers[norm].num_features, generator=generator) - 1)
                layers[norm].weight *= scale
                layers[norm].bias *= scale
                layers[following].weight /= scale.reshape(1, -1, 1, 1)


@dataclass(frozen=True)
class Score:
    """Share of held-out radiographs that are told right, in fp32 and in INT8, and the two's mean distance."""

    fp32: float
    int8: float
    apart: float


@pytest.mark.slow
def test_int8_is_better_and_nearer_to_fp32_after_it(tmp_path: Path, data_root: Path) -> None:
    """Where post-training quantisation falls short: channels of very unequal size share one scale.

    As measured, right in fp32 and in INT8 and their distance: 0.821, 0.625 (all are told pneumonia) and 0.223 before,
    0.837, 0.625 and 0.225 after the same steps without rounding, 0.812, 0.809 and 0.069 after those with it.
    """
    held = np.load(data_root / "medmnist" / "pneumoniamnist.npz")

    def load(part: str) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.from_numpy(held[f"{part}_images"].astype(np.float32) / 64 - 2)[:, None]
        return images, torch.from_numpy(held[f"{part}_labels"][:, 0].astype(np.int64))

    images, labels = load("train")
    unseen, truth = load("test")

    def train(task: Radiographs, rate: float, *callbacks: L.Callback) -> None:
        L.seed_everything(1, verbose=False)
        task.rate = rate
        data = DataLoader(TensorDataset(images, labels), BATCH, shuffle=True, drop_last=True)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = L.Trainer(
            max_steps=STEPS, accelerator="cpu", callbacks=list(callbacks), enable_model_summary=False, **quiet
        )
        trainer.fit(task, data)

    def score(task: Radiographs) -> Score:
        deployed = nn.Sequential(copy.deepcopy(task.network), nn.Softmax(1)).eval()
        export_onnx(deployed, 1, [28, 28], tmp_path / "model.onnx")
        patches = [images[start : start + 16].numpy() for start in range(0, 256, 16)]
        quantise(tmp_path / "model.onnx", tmp_path / "int8.onnx", patches)  # every layer
        exact, rounded = (run(tmp_path / name, unseen.numpy()) for name in ("model.onnx", "int8.onnx"))
        right = [float((found.argmax(1) == truth.numpy()).mean()) for found in (exact, rounded)]
        return Score(*right, float(np.abs(exact - rounded).mean()))

    L.seed_everything(1, verbose=False)
    task = Radiographs()
    train(task, 3e-3)
    task.spread(32)
    before, statistics = score(task), task.network[1].running_mean.clone()
    without = copy.deepcopy(task)
    train(without, 1e-3)
    longer = score(without)
    train(task, 1e-3, QuantizationAware())
    after = score(task)
    assert torch.equal(task.network[1].running_mean, statistics)
    assert task.network[1].training
    assert after.int8 > before.int8 + 0.1
    assert after.int8 > longer.int8
    assert after.apart < 0.75 * before.apart
    assert after.apart < longer.apart
    assert after.fp32 > before.fp32 - 0.03
