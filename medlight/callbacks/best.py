"""The best value of a metric so far."""

from __future__ import annotations

import math
from typing import Literal

import lightning as L
import torch

from medlight.config import nearest
from medlight.errors import UsageError

Mode = Literal["min", "max"]


class Best:
    """Follows one metric; ``score`` is None until it was seen. A value that is not a number is worse than any other."""

    def __init__(self, monitor: str, mode: Mode) -> None:
        self.monitor, self.mode = monitor, mode
        self.score: float | None = None

    def improved(self, trainer: L.Trainer) -> bool:
        """Take the trainer's present value and say whether it beats all before; the same answer on all ranks.

        Raises: UsageError that names the metrics there are, where the monitored one is not logged.
        """
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            listed = ", ".join(sorted(metrics)) or "none"
            raise UsageError(
                f"monitor {self.monitor!r} is not logged{nearest(self.monitor, metrics)}; logged: {listed}"
            )
        value = float(metrics[self.monitor])
        better = self.beats(value)
        if trainer.world_size > 1:
            better = bool(trainer.strategy.broadcast(better))
        if better:
            self.score = value
        return better

    def beats(self, value: float) -> bool:
        """Whether a value is better than the best."""
        if self.score is None:
            return True
        if math.isnan(value):
            return False
        return math.isnan(self.score) or (value < self.score if self.mode == "min" else value > self.score)


def scalars(trainer: L.Trainer) -> dict[str, float]:
    """Return the trainer's metrics as plain numbers."""
    return {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if not isinstance(value, torch.Tensor) or value.numel() == 1
    }
