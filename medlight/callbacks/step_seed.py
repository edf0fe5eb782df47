"""Random numbers that depend on where a fit is, and not on how it got there."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import lightning as L
import numpy as np
import torch


class StepSeed(L.Callback):
    """Seeds torch, NumPy and ``random`` from (seed, step, batch, rank) before each training step, and each evaluation.

    So dropout and whatever else draws from the global generators is the same after a resume, and no generator's state
    has to be kept. Data modules seed their own draws.

    Args:
        seed: the run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed the step."""
        seed_all(self.seed, "train", trainer.global_step, batch_idx, trainer.global_rank)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Seed a validation."""
        seed_all(self.seed, "validate", trainer.global_step, 0, trainer.global_rank)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Seed a test."""
        seed_all(self.seed, "test", 0, 0, trainer.global_rank)


def derived(*parts: int | str) -> int:
    """Return 63 bits that depend on all parts, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


def seed_all(*parts: int | str) -> None:
    """Seed the global generators of torch (all devices), NumPy and ``random``."""
    value = derived(*parts)
    torch.manual_seed(value)
    random.seed(value)
    np.random.seed(value % 2**32)  # libraries draw from it
