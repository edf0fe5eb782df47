"""Ends a fit that can't learn any more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch

from medlight.errors import MedlightError


class FiniteLoss(L.Callback):
    """Ends the fit where the loss is no finite number: the weights are none either, from that step on.

    Looked at every ``log_every_n_steps`` and at an epoch's last batch, for a look waits for the accelerator. In
    ``16-mixed`` a step whose gradients overflow is left out and the loss scaled down, so there a few are no fault;
    they are once the scale has fallen below 1.

    Raises: MedlightError on all ranks where it is so on one.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss."""
        interval = trainer.log_every_n_steps  # type: ignore[attr-defined]
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, torch.Tensor) or not (trainer.is_last_batch or (batch_idx + 1) % (interval or 1) == 0):
            return
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        lost = not bool(torch.isfinite(loss).all()) and (scaler is None or scaler.get_scale() < 1)
        if trainer.world_size > 1:
            lost = trainer.strategy.reduce_boolean_decision(lost, all=False)
        if lost:
            mends = ["a lower learning rate (model.optimizer.lr)"]
            mends += [] if trainer.gradient_clip_val else ["trainer.gradient_clip_val"]
            mends += [] if trainer.precision == "32-true" else ["precision: 32-true"]
            raise MedlightError(
                f"the loss is no finite number after step {trainer.global_step} (epoch {trainer.current_epoch}); mend: "
                + " or ".join(mends)
            )
