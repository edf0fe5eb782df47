"""A smaller network: whole channels are taken out before a fit, which then mends it."""

from __future__ import annotations

import sys
from typing import Any

import lightning as L

from medlight.errors import UsageError
from medlight.tracking.logger import MLflowLogger


class ChannelPruning(L.Callback):
    """Takes a share of the channels out of every layer before the fit begins; the fit is the fine-tuning.

    Meant for a trained network: name it in the task's ``pretrained``, and fit at a lower rate or for fewer epochs. The
    checkpoints are of the pruned network, and load, predict and export as others do. Averaging of the weights
    (``EMAWeightAveraging``) goes after this callback in the list.

    Args:
        ratio: of the channels that go; 0.5 leaves about a quarter of the operations.
    """

    def __init__(self, ratio: float = 0.5) -> None:
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < 1:
            raise UsageError(f"ChannelPruning.ratio: {ratio!r} can't be; write a number between 0 and 1, as 0.5")
        self.ratio = float(ratio)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Prune; UsageError where the task or its network can't be pruned."""
        if stage != "fit":
            return
        task: Any = pl_module
        if getattr(task, "kind", "") not in ("segmentation", "classification") or hasattr(task, "teacher"):
            raise UsageError("trainer.callbacks: ChannelPruning is for supervised tasks; mend: leave it out")
        task.configure_model()
        if task.pruned:
            return
        found = task.prune(self.ratio)
        if trainer.is_global_zero:
            print(f"pruned    {found.line()}", file=sys.stderr)
        if isinstance(trainer.logger, MLflowLogger):
            (parameters, fewer), (flops, less) = found.parameters, found.flops
            trainer.logger.log_metrics({"pruning/parameters": fewer / parameters, "pruning/flops": less / flops}, 0)
