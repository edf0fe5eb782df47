"""How fast a fit is, and how long it waits for data."""

from __future__ import annotations

import time
from typing import Any

import lightning as L


class Throughput(L.Callback):
    """Logs for every epoch ``train/samples_per_s`` (over all ranks) and ``train/data_wait_share``.

    The share is the time between a step's end and the next one's start over the whole; validation is counted in
    neither.
    """

    def __init__(self) -> None:
        self._waited = self._worked = 0.0
        self._samples = 0
        self._last = time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._waited = self._worked = 0.0
        self._samples = 0
        self._last = time.perf_counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The wait is over."""
        now = time.perf_counter()
        self._waited += now - self._last
        self._last = now

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The work is over."""
        now = time.perf_counter()
        self._worked += now - self._last
        self._last = now
        self._samples += len(batch["image"] if isinstance(batch, dict) else batch[0])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the validation out."""
        self._last = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the epoch's figures."""
        whole = self._waited + self._worked
        if self._samples and whole > 0:
            figures = {
                "train/samples_per_s": self._samples * trainer.world_size / whole,
                "train/data_wait_share": self._waited / whole,
            }
            pl_module.log_dict(figures, sync_dist=trainer.world_size > 1)
