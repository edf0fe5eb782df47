"""Layers that keep their weights for a while, or for good."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

import lightning as L
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch.optim import Optimizer

from medlight.config import nearest
from medlight.errors import UsageError


class Freeze(L.Callback):
    """Freezes the parameters whose names fit a pattern until an epoch begins.

    ``until: {"network.*": 3, "network.encoder.*": null, "network._fc.*": 0}``: all of the network waits for epoch 3
    (epochs count from 0), its encoder for ever, its last layer trains from the start. Of several patterns that fit a
    name the last one counts.

    What is frozen is a function of the epoch alone, so a resumed fit is frozen as one that was never stopped. The
    optimiser has all parameters from the start and passes over those without a gradient (no momentum, no weight decay),
    so schedules and learning rates by group stay as they are; gradient clipping sees the others alone. On one device no
    gradient is computed for what is frozen; among several devices it is, and dropped before the step: each rank's
    backward pass has to give DistributedDataParallel the gradients that it was set up for. Normalisation layers with
    running statistics keep those while their parameters are frozen.

    Args:
        until: the first epoch in which the parameters of a pattern (``*``, ``?``) are trained, by pattern; null: never.
    """

    def __init__(self, until: dict[str, int | None]) -> None:
        for pattern, epoch in until.items():
            if epoch is not None and (isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0):
                raise UsageError(f"Freeze.until: {pattern}: {epoch!r} is no epoch; write a number from 0, or null")
        self.until = dict(until)

    def check(self, module: nn.Module) -> None:
        """Raise UsageError where a pattern fits no parameter, or nothing would be trained at first."""
        names = [name for name, _ in module.named_parameters()]
        for pattern in self.until:
            if not any(fnmatchcase(name, pattern) for name in names):
                prefixes = {".".join(name.split(".")[:n]) for name in names for n in range(1, name.count(".") + 2)}
                near = nearest(pattern.rstrip("*."), prefixes)
                raise UsageError(f"Freeze.until: no parameter is named like {pattern!r}{near}")
        if names and all(self.frozen(name, 0) for name in names):
            raise UsageError("Freeze.until: every parameter is frozen in epoch 0; let some train, as network._fc.*: 0")

    def frozen(self, name: str, epoch: int) -> bool:
        """Whether a tensor keeps its value in an epoch."""
        first: int | None = 0
        for pattern, wanted in self.until.items():
            first = wanted if fnmatchcase(name, pattern) else first
        return first is None or epoch < first

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse what fits nothing."""
        self.check(pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Freeze what the epoch freezes, and let go of the rest."""
        alone = isinstance(trainer.strategy, SingleDeviceStrategy)
        for name, parameter in pl_module.named_parameters():
            if self._meant(name):
                parameter.requires_grad_(not (alone and self.frozen(name, trainer.current_epoch)))

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, index: int) -> None:
        """Keep the statistics of frozen layers; validation puts the whole network back into training mode."""
        for name, layer in _with_statistics(pl_module):
            if self._meant(f"{name}.weight"):
                layer.train(pl_module.training and not self.frozen(f"{name}.weight", trainer.current_epoch))

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Drop the gradients of what is frozen, before they are clipped."""
        for name, parameter in pl_module.named_parameters():
            if self._meant(name) and self.frozen(name, trainer.current_epoch):
                parameter.grad = None

    def _meant(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.until)


def _with_statistics(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, layer in module.named_modules():
        buffers: Mapping[str, object] = layer._buffers
        if buffers.get("running_mean") is not None:
            yield name, layer
