"""Whether a fit is long enough to be told how good it is."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from medlight.errors import UsageError


def check_first_validation(trainer: L.Trainer, task: Any, data: Any) -> None:
    """Refuse a fit that would be over before its first validation, where that says which epoch is the best.

    data: where it does not say how many batches an epoch has (``batches``), what depends on that is not judged, and
    neither is what depends on the clock.
    """
    monitor = str(getattr(task, "monitor", ""))
    if not monitor.startswith("val") or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    why = f"the best epoch is the one of the best {monitor}"
    if trainer.limit_val_batches == 0:
        raise UsageError(f"trainer.limit_val_batches: with 0 there is no validation; write 1.0 for all cases: {why}")
    every, epochs, interval = trainer.check_val_every_n_epoch, trainer.max_epochs or -1, trainer.val_check_interval
    if every is not None and 0 < epochs < every:
        raise UsageError(
            f"trainer.check_val_every_n_epoch: with {every} there is no validation in {epochs} epochs: {why}"
        )
    if not hasattr(data, "batches") or not isinstance(interval, int | float):
        return
    limit, batches = trainer.limit_train_batches, data.batches(trainer.world_size)
    batches = max(1, min(batches, limit) if isinstance(limit, int) else int(batches * limit))
    if isinstance(interval, float):
        interval = max(1, int(batches * interval))
    elif every is not None and interval > batches:
        raise UsageError(
            f"trainer.val_check_interval: {interval}, but an epoch has {batches} batches; write a smaller number, or "
            "trainer.check_val_every_n_epoch: null to count the batches of all epochs"
        )
    more, rest = divmod(interval - 1, batches)
    whole = more + (0 if every is None else every - 1)  # epochs before the one in which it comes
    accumulated = trainer.accumulate_grad_batches
    first = whole * math.ceil(batches / accumulated) + math.ceil((rest + 1) / accumulated)
    too_few = 0 <= trainer.max_steps < first and _steps_are_counted(trainer, task)
    if too_few or 0 <= epochs <= whole:
        end = f"{trainer.max_steps} steps" if too_few else f"{epochs} epochs"
        raise UsageError(
            f"trainer: {end} end before the first validation, at step {first}; train longer, or validate earlier "
            f"(trainer.val_check_interval): {why}"
        )


def _steps_are_counted(trainer: L.Trainer, task: Any) -> bool:
    """Whether every so many batches make one step, all along."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    changing = any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks)
    return not changing and bool(task.automatic_optimization)
