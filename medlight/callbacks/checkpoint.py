"""The best and the last state of a fit as files, from which it goes on as if it had never been stopped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint

from medlight.callbacks.best import Best, Mode, scalars
from medlight.errors import MedlightError
from medlight.tasks.weight_files import sha256
from medlight.tracking.logger import MLflowLogger
from medlight.tracking.store import BEST_TAG


class Checkpoint(LightningCheckpoint):
    """Writes ``checkpoints/best.ckpt`` and ``checkpoints/last.ckpt`` in the run's folder, each whole or not at all.

    ``best.ckpt`` is written when validation ends with a better value of ``monitor``: it holds the very weights that
    were measured (an average of weights, where a callback keeps one). ``last.ckpt`` is written before the first step of
    the next epoch (and at the end of the fit). Only there everything of an epoch is settled: Lightning 2.6 steps
    plateau schedulers, early stopping and epoch-wise averages after validation, some of them after the hook in which
    its own ModelCheckpoint saves, so that a fit resumed from that one takes another course.

    Where the run's folder is on a server, the files are sent when the fit ends. The run's tag ``medlight.best_sha256``
    then tells what ``best.ckpt`` was: whoever takes it for the run's refuses another file.

    Args:
        monitor: the metric that decides; a UsageError names those there are, if it isn't logged.
        mode: whether small (``min``) or large (``max``) is good.
    """

    def __init__(self, monitor: str, mode: Mode) -> None:
        self.monitor, self.mode = monitor, mode
        self.best_metrics: dict[str, float] = {}
        self.best_model_path = ""
        self._best = Best(monitor, mode)
        self._best_epoch = -1
        self._judged = self._validated = -1
        self._saved = 0
        self._metrics: dict[str, float] = {}

    @property
    def best_score(self) -> float | None:
        """The best value of the monitored metric."""
        return self._best.score

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Make the folder, known to all ranks."""
        self._folder = folder(trainer)
        if trainer.is_global_zero and stage == "fit":
            self._folder.mkdir(parents=True, exist_ok=True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the weights that were just measured, if they are the best."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._validated = trainer.current_epoch
        if self.monitor in trainer.callback_metrics and not self.monitor.startswith("train"):  # that of the last epoch
            self._judge(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge a metric of the training itself, and complete the metrics of the best epoch with those."""
        logged = self._validated == trainer.current_epoch or not self._waits_for_validation
        if self._judged < trainer.current_epoch and logged:
            self._judge(trainer)
        if self._best_epoch == trainer.current_epoch:
            self.best_metrics = scalars(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the state in which the last epoch ended."""
        if trainer.global_step > self._saved:
            self._save_last(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the state in which the fit ended."""
        self._save_last(trainer)
        self._send(trainer)
        best = self._folder / "best.ckpt"
        if isinstance(trainer.logger, MLflowLogger) and trainer.is_global_zero and best.is_file():
            trainer.logger.set_tags({BEST_TAG: sha256(best)})

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raise MedlightError where the fit was over, its time up, before the first validation."""
        if self._best.score is None and self._waits_for_validation:
            raise MedlightError(
                f"the fit ended at step {trainer.global_step} before its first validation; let it run longer, or "
                f"validate earlier (trainer.val_check_interval): the best epoch is the one of the best {self.monitor}"
            )

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Send what there is."""
        self._send(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin the epoch after the saved one from its first step.

        Lightning would take the restored counters for those of an epoch to be ended once more, and skip one. Metrics
        of the epochs before are put back for schedulers that look at them where an epoch has no validation.
        """
        if trainer.fit_loop.restarting:
            trainer.fit_loop.restarting = False
            # A schedule that asked for the number of steps made the loader before the counters were restored, and its
            # workers have begun with epoch 0: have the loop make it again.
            trainer.fit_loop._combined_loader = None
            self._saved = trainer.global_step
            trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self._metrics.items()})

    @property
    def _waits_for_validation(self) -> bool:
        return self.monitor.startswith("val")

    def state_dict(self) -> dict[str, Any]:
        """Plain values, so that the file loads with ``weights_only=True``."""
        return {
            "best_score": self._best.score,
            "best_epoch": self._best_epoch,
            "best_metrics": dict(self.best_metrics),
            "metrics": dict(self._metrics),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back."""
        self._best.score = state_dict["best_score"]
        self._best_epoch = int(state_dict["best_epoch"])
        self.best_metrics = dict(state_dict["best_metrics"])
        self._metrics = dict(state_dict["metrics"])
        best = self._folder / "best.ckpt"
        self.best_model_path = str(best) if best.is_file() else ""

    def _judge(self, trainer: L.Trainer) -> None:
        self._judged = trainer.current_epoch
        if self._best.improved(trainer):
            self._best_epoch = trainer.current_epoch
            self.best_metrics = self._metrics = scalars(trainer)
            self.best_model_path = str(self._save(trainer, "best.ckpt"))

    def _save_last(self, trainer: L.Trainer) -> None:
        self._saved = trainer.global_step
        self._metrics = scalars(trainer)
        if isinstance(trainer.logger, MLflowLogger):
            trainer.logger.flush(0)  # on disk: no value older than the checkpoint is lost with the process
        self._save(trainer, "last.ckpt")

    def _save(self, trainer: L.Trainer, name: str) -> Path:
        """Write a checkpoint under another name, bring it to the disk, then give it its own."""
        path = self._folder / name
        partial = path.with_suffix(".partial")
        trainer.save_checkpoint(partial, weights_only=False)
        if trainer.is_global_zero:
            replace(partial, path)
        trainer.strategy.barrier("medlight checkpoint")
        return path

    def _send(self, trainer: L.Trainer) -> None:
        logger = trainer.logger
        if isinstance(logger, MLflowLogger) and not logger.is_local:
            for name in ("best.ckpt", "last.ckpt"):
                if (self._folder / name).is_file():
                    logger.log_artifact(self._folder / name, "checkpoints")


def folder(trainer: L.Trainer) -> Path:
    """Return where a trainer's checkpoints lie."""
    root = trainer.logger.local_dir if isinstance(trainer.logger, MLflowLogger) else Path(trainer.default_root_dir)
    return root / "checkpoints"


def replace(partial: Path, path: Path) -> None:
    """Rename a complete file so that after a crash there is the old or the new one."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
