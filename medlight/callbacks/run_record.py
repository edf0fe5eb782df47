"""Everything that has to be known to repeat a run, written to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.utilities.exceptions import SIGTERMException

from medlight.config import Config, flatten
from medlight.tracking import manifest
from medlight.tracking.logger import MLflowLogger
from medlight.tracking.system import SystemMetrics

RESUMES = "medlight.resumes"  # the tag that counts how often a run was gone on with


class RunRecord(L.Callback):
    """At the start of a fit: ``config.yaml``, ``manifest.json``, uncommitted changes, params, data set and tags.

    Where a run is gone on with, ``manifest-resumed-N.json`` and ``uncommitted-resumed-N.diff`` say what the Nth time
    was made with, and the tag ``medlight.resumes`` how often that was.

    While it runs: the learning rate at every logging interval, and MLflow's system metrics. At the end: the tag
    ``medlight.state`` (complete, failed, stopped), with ``medlight.reason`` after an error.

    Args:
        config: the resolved configuration of the fit.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._monitor: SystemMetrics | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record what the run is."""
        logger = trainer.logger
        if not isinstance(logger, MLflowLogger) or not logger.active:
            return
        tags = {"medlight.state": "running", "medlight.reason": ""}
        tags |= {"medlight.monitor": getattr(pl_module, "monitor", ""), "medlight.mode": getattr(pl_module, "mode", "")}
        mended = getattr(trainer.datamodule, "mended", {})  # type: ignore[attr-defined]
        tags |= {"medlight.mended": f"{len(mended)} cases"} if mended else {}
        logger.set_tags({**tags, "medlight.config_digest": manifest.config_digest(self.config)})
        if not logger.resumed:
            logger.log_params({key: _param(value) for key, value in flatten(self.config).items() if value is not None})
        self._write(trainer, logger)
        self._monitor = SystemMetrics(logger)
        self._monitor.start()

    def _write(self, trainer: L.Trainer, logger: MLflowLogger) -> None:
        fingerprint = manifest.data_fingerprint(trainer.datamodule)  # type: ignore[attr-defined]
        content = {
            "config_digest": manifest.config_digest(self.config),
            "seed": self.config.get("seed_everything"),
            "precision": str(trainer.precision),
            "devices": {"strategy": type(trainer.strategy).__name__, "world_size": trainer.world_size},
            "environment": manifest.environment(),
            "code": manifest.code(self.config),
            "data": fingerprint,
        }
        again = ""
        if logger.resumed:  # the machine or the code may be another than at the start, and each time
            count = int(logger.tags_before.get(RESUMES, 0)) + 1
            logger.set_tags({RESUMES: count})
            again = f"-resumed-{count}"
        logger.log_text(yaml.safe_dump(self.config, sort_keys=False), "config.yaml")
        logger.log_text(json.dumps(content, indent=1), f"manifest{again}.json")
        if not logger.resumed or trainer.ckpt_path is None:  # a checkpoint takes the place of what the file holds now
            _write_weights(logger, trainer.lightning_module)
        diff = manifest.uncommitted_diff()
        if diff:
            logger.log_text(diff, f"uncommitted{again}.diff")
        if not logger.resumed and fingerprint["cases"]:
            logger.log_dataset(_dataset(fingerprint, logger.study), "training")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Record the learning rate of this step."""
        interval = trainer.log_every_n_steps  # type: ignore[attr-defined]
        due = batch_idx == 0 or (interval and (trainer.global_step + 1) % interval == 0)
        if due and isinstance(trainer.logger, MLflowLogger):
            trainer.logger.log_metrics(learning_rates(trainer), trainer.global_step)

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop promptly: Lightning looks for SIGTERM only between training steps."""
        if trainer.received_sigterm and trainer.world_size == 1:
            raise SIGTERMException

    def on_test_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop promptly."""
        self.on_validation_batch_start(trainer, pl_module, batch, batch_idx)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record that the fit came to its end."""
        self._end(trainer, {"medlight.state": "complete"})

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Record why it did not."""
        if isinstance(exception, KeyboardInterrupt | SystemExit):
            self._end(trainer, {"medlight.state": "stopped", "medlight.reason": type(exception).__name__})
        else:
            first = str(exception).splitlines()[0] if str(exception) else ""
            self._end(trainer, {"medlight.state": "failed", "medlight.reason": f"{type(exception).__name__}: {first}"})

    def _end(self, trainer: L.Trainer, tags: dict[str, str]) -> None:
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        if isinstance(trainer.logger, MLflowLogger):
            trainer.logger.set_tags(tags)


def _write_weights(logger: MLflowLogger, task: L.LightningModule) -> None:
    """Record which tensors the network began with, and of which file."""
    given = task.hparams.get("pretrained")  # `medlight.launch.fit` has put the file and its digest there
    digest = given.get("sha256") if isinstance(given, Mapping) else None
    report = getattr(task, "pretrained_report", None)
    if report is not None:
        logger.log_text(json.dumps(report.to_dict(), indent=1), "pretrained.json")
        digest = report.sha256
    if digest:
        logger.set_tags({"medlight.pretrained_sha256": digest})


def learning_rates(trainer: L.Trainer) -> dict[str, float]:
    """Return ``lr``, or ``lr/<group>`` where there are several groups of parameters."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    if len(groups) == 1:
        return {"lr": float(groups[0]["lr"])}
    return {f"lr/{group.get('name', index)}": float(group["lr"]) for index, group in enumerate(groups)}


def _param(value: Any) -> Any:
    """Return a leaf of the configuration; of an absolute path only its last part."""
    return PurePath(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value


def _dataset(fingerprint: dict[str, Any], name: str) -> dict[str, str]:
    """Describe the cases as MLflow's MetaDataset does, with the digests as profile."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    kind: Any = MetaDataset
    described = kind(CodeDatasetSource(tags={}), name=name, digest=fingerprint["digest"]).to_dict()
    counts = {part: len(ids) for part, ids in fingerprint["split"].items()}
    return {**described, "profile": json.dumps({"cases": len(fingerprint["cases"]), **counts})}
