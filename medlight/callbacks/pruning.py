"""Ends a trial early when the sweep says so."""

from __future__ import annotations

from collections.abc import Callable

import lightning as L

Report = Callable[[int, dict[str, float]], bool]


class Pruning(L.Callback):
    """After each validation, tell the sweep the metrics and stop the fit where it answers that the trial is hopeless.

    The fit ends as one that reached its last epoch does (checkpoints whole, run closed); ``pruned`` says why.

    Args:
        report: called on rank zero with the validation's number (from 0) and every scalar metric that the fit logged
            so far; returns True where the trial is to stop. None: nobody listens.
    """

    def __init__(self, report: Report | None = None) -> None:
        self.report = report
        self.pruned = False
        self.validations = 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report, and share the answer with the other ranks."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        stop = False
        if self.report is not None and trainer.is_global_zero:
            metrics = {name: value.item() for name, value in trainer.callback_metrics.items() if value.numel() == 1}
            stop = self.report(self.validations, metrics)
        self.validations += 1
        if trainer.world_size > 1:  # ranks that Lightning starts as scripts have no listener of their own
            stop = trainer.strategy.broadcast(stop)
        if stop:
            self.pruned = True
            trainer.should_stop = True

    def state_dict(self) -> dict[str, int]:
        """What a resumed fit needs: how many validations were reported."""
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take it back."""
        self.validations = int(state_dict["validations"])
