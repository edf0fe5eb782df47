"""A fit of a second, as a process: ``python -m tests.callbacks.tiny`` in any folder. It can be told where to die."""

from __future__ import annotations

import argparse
import os
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader, Dataset

from medlight.callbacks import CaseTable, Checkpoint, RunRecord, StepSeed, Throughput
from medlight.callbacks import checkpoint as checkpoint_module
from medlight.tracking import store
from medlight.tracking.logger import MLflowLogger

warnings.filterwarnings("ignore")
STEPS = 6


class Draws(Dataset[dict[str, torch.Tensor]]):
    """Samples that depend on the epoch and the index only."""

    def __init__(self, trainer: L.Trainer | None, length: int) -> None:
        self.trainer, self.length = trainer, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        epoch = self.trainer.current_epoch if self.trainer else 0
        generator = torch.Generator().manual_seed(epoch * 1000 + index)
        image = torch.randn(8, generator=generator)
        target = image.sum() + 0.1 * torch.randn((), generator=generator)
        return {"image": image, "target": target, "case_id": torch.tensor(index)}


class TinyData(L.LightningDataModule):
    """Six training batches and three validation batches of four."""

    def __init__(self, workers: int = 0) -> None:
        super().__init__()
        self.workers = workers
        self.case_ids = [f"case{i:02d}" for i in range(12)]
        self.digests = {case: f"{i:064x}" for i, case in enumerate(self.case_ids)}

    def train_dataloader(self) -> Any:
        fork = "fork" if self.workers else None
        length = STEPS * 4
        return DataLoader(Draws(self.trainer, length), 4, num_workers=self.workers, multiprocessing_context=fork)

    def val_dataloader(self) -> Any:
        return DataLoader(Draws(None, 12), batch_size=4)

    def test_dataloader(self) -> Any:
        return self.val_dataloader()


class TinyTask(L.LightningModule):
    """A regression with dropout, two schedulers and metrics of every kind."""

    monitor, mode = "val/loss", "min"

    def __init__(self, every: int = 1, pause: float = 0.0) -> None:
        super().__init__()
        self.every, self.pause = every, pause
        self.net = torch.nn.Sequential(
            torch.nn.Linear(8, 16),
            torch.nn.BatchNorm1d(16),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.3),
            torch.nn.Linear(16, 1),
        )
        self.case_metrics: list[dict[str, Any]] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        time.sleep(self.pause)
        loss = torch.nn.functional.mse_loss(self.net(batch["image"])[:, 0], batch["target"])
        self.log("train/loss_step", loss, on_step=True, on_epoch=False)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._measure(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._measure(batch, "test")

    def _measure(self, batch: Any, stage: str) -> None:
        error = (self.net(batch["image"])[:, 0] - batch["target"]) ** 2
        self.case_metrics += [
            {"case_id": int(c), "error": float(e)} for c, e in zip(batch["case_id"], error, strict=True)
        ]
        self.log(f"{stage}/loss", error.mean() + 0.001 * torch.rand(()))  # draws, as test-time augmentation would

    def on_validation_epoch_start(self) -> None:
        self.case_metrics = []

    def on_test_epoch_start(self) -> None:
        self.case_metrics = []

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        step = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.9)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.8, threshold=0.3)
        return [optimizer], [step, {"scheduler": plateau, "monitor": "val/loss", "frequency": self.every}]


class Death(L.Callback):
    """Ends the process, or sends it a signal, at the n-th call of a hook."""

    def __init__(self, where: str, count: int, number: int) -> None:
        self.count, self.number = count, number
        if where == "rename":  # a checkpoint is written but has not got its name
            real = checkpoint_module.replace
            checkpoint_module.replace = lambda a, b: (self.hit(), real(a, b))[1]  # type: ignore[assignment]
        elif where:
            setattr(self, where, lambda *args: self.hit())

    def hit(self) -> None:
        self.count -= 1
        if self.count == 0:
            os.kill(os.getpid(), self.number)


def trainer_of(args: argparse.Namespace, logger: MLflowLogger, *more: L.Callback) -> L.Trainer:
    callbacks: list[L.Callback] = [StepSeed(7), RunRecord({"seed_everything": 7, "model": {"lr": 0.05}}), CaseTable()]
    callbacks += [Throughput(), *more, Checkpoint("val/loss", "min")]
    if args.ema:
        callbacks.insert(0, EMAWeightAveraging(decay=0.9))
    if args.patience:
        callbacks.insert(0, EarlyStopping("val/loss", patience=args.patience))
    return L.Trainer(
        accelerator="cpu",
        devices=args.devices,
        strategy="ddp" if args.devices > 1 else "auto",
        max_epochs=args.epochs,
        logger=logger,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=2,
        check_val_every_n_epoch=args.every,
        accumulate_grad_batches=args.accumulate,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", default="tiny")
    parser.add_argument("--run-id")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--patience", type=int, default=0)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--ema", action="store_true")
    parser.add_argument("--die", default="")
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--signal", type=int, default=signal.SIGKILL)
    args = parser.parse_args()
    store.deliver_leftovers()
    L.seed_everything(7, verbose=False)
    logger = MLflowLogger("tiny", args.name, run_id=args.run_id)
    if logger.active:
        Path("run_id").write_text(logger.run_id)
        os.environ["MEDLIGHT_RUN_ID"] = logger.run_id
    trainer = trainer_of(args, logger, Death(args.die, args.count, args.signal))
    last = logger.local_dir / "checkpoints" / "last.ckpt"
    start = str(last) if args.run_id and last.is_file() else None
    task = TinyTask(args.every, args.pause)
    try:
        trainer.fit(task, datamodule=TinyData(args.workers), ckpt_path=start, weights_only=True if start else None)
    except SIGTERMException:
        raise SystemExit(143) from None


if __name__ == "__main__":
    main()
