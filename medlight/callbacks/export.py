"""Export at the end of a fit, and what of an export goes to its run."""

from __future__ import annotations

import logging
import math
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L

from medlight.deploy import tensorrt
from medlight.deploy.bundle import Bundle
from medlight.deploy.export import check_targets, export
from medlight.deploy.onnx_export import require_packages
from medlight.errors import UsageError, one_line
from medlight.prepare.case import Case
from medlight.tracking import store
from medlight.tracking.identity import scrub
from medlight.tracking.logger import MLflowLogger


class Export(L.Callback):
    """Turns ``best.ckpt`` into a bundle when the fit is over, checks it and records it under ``bundle/`` of the run.

    An export that fails does not undo the fit, whatever the reason: the run is tagged ``medlight.export=failed``, and a
    line says why (with ``--debug`` the traceback too); of a bundle that differs, the figures are in the run's metrics.

    Args:
        to: ``onnx``, and perhaps ``openvino``, ``tensorrt`` and ``torch``.
        precision: of the models: ``fp32``, ``fp16``, ``bf16``, ``int8``; each target makes those it can run.
        cases: how many validation cases the bundle is compared with torch on; 8, or up to 500 whole images, if None.
    """

    def __init__(
        self, to: list[str] | None = None, precision: list[str] | None = None, cases: int | None = None
    ) -> None:
        self.to, self.precision, self.cases = list(to or ["onnx"]), list(precision or ["fp32"]), cases
        check_targets(self.to, self.precision)
        if cases is not None and cases < 1:
            raise UsageError(f"Export.cases: {cases} must be at least 1: nothing is published unchecked")

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a fit whose end could not be exported: UsageError for pre-training, or without the extra ``onnx``."""
        if getattr(pl_module, "kind", "") == "pretraining":
            raise UsageError("trainer.callbacks: Export has nothing to export of a pre-training; mend: leave it out")
        if stage == "fit":
            require_packages()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Export on rank zero."""
        if not trainer.is_global_zero:
            return
        checkpoint = best_checkpoint(trainer)
        if checkpoint is None:
            _say("nothing, for the fit wrote no checkpoint")
            return
        logger = trainer.logger if isinstance(trainer.logger, MLflowLogger) else None
        try:
            self._export(trainer, str(pl_module.kind), checkpoint, logger)
        except Exception as error:  # of any library: the fit is through, and has its record to finish
            _say_failed("failed", error)
            if logger:
                logger.set_tags({"medlight.export": "failed"})
                logger.log_metrics(metrics(getattr(error, "figures", {})), trainer.global_step)

    def _export(self, trainer: L.Trainer, kind: str, checkpoint: Path, logger: MLflowLogger | None) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        cases = compared([prepared.case for prepared in data.prepared["val"]], self.cases, kind)
        targets, skipped = available(self.to)
        options: dict[str, Any] = {"to": targets, "precision": self.precision, "training": data.prepared["train"]}
        options |= {"recorded": getattr(data, "recorded", {}), "run_id": logger.run_id if logger else None, "say": _say}
        with tempfile.TemporaryDirectory() as folder:
            bundle = export(checkpoint, Path(folder) / "bundle", cases=cases, **options)
            if logger:
                logger.log_artifact(bundle.root)
                logger.log_metrics(metrics(bundle.parity), trainer.global_step)
                logger.set_tags(tags(bundle, skipped))
                try:
                    logger.set_tags({"medlight.model": registered(bundle, logger.run_id)})
                except Exception as error:  # the bundle is in the run; medlight export registers it later
                    _say_failed("not registered", error)
            else:
                shutil.copytree(bundle.root, Path(trainer.default_root_dir) / "bundle", dirs_exist_ok=True)
        _say(f"probabilities differ from torch by up to {bundle.parity['max_abs_diff']:.2g}")


def _say(line: str) -> None:
    """Tell where a fit tells of its weights: Lightning's own lines are not shown."""
    print(f"export    {line}", file=sys.stderr)


def _say_failed(what: str, error: Exception) -> None:
    """Tell why in one line, without files of patients, for what a trial of a sweep says is kept."""
    _say(f"{what}: {scrub(one_line(error))}")
    if logging.getLogger("medlight").isEnabledFor(logging.DEBUG):
        traceback.print_exception(error)


def best_checkpoint(trainer: L.Trainer) -> Path | None:
    """Return the best checkpoint that the fit has written."""
    written = [getattr(c, "best_model_path", "") for c in trainer.callbacks]  # type: ignore[attr-defined]
    return next((Path(path) for path in written if path and Path(path).is_file()), None)


def compared(cases: Sequence[Case], count: int | None, kind: str) -> list[Case]:
    """Return ``count`` cases spread evenly over the list, all of it where it is shorter.

    count: 8 by default; of a classification 500, since an AUROC over 8 images moves in steps of 1/16.
    """
    count = count or (500 if kind == "classification" else 8)
    if len(cases) <= count:
        return list(cases)
    return [cases[index * len(cases) // count] for index in range(count)]


def available(to: Sequence[str]) -> tuple[list[str], str | None]:
    """Return the targets that this machine can make, and why TensorRT is left out (None if it is not)."""
    reason = tensorrt.unavailable() if "tensorrt" in to else None
    return [target for target in to if not (target == "tensorrt" and reason)], reason


def metrics(figures: dict[str, Any]) -> dict[str, float]:
    """Return what of the parity goes into the run's metrics: of the ONNX model, and below their names of the others."""
    names = ("max_abs_diff", "mean_abs_diff", "dice_diff", "auroc_diff")
    found = {f"export/{name}": figures.get(name) for name in names}
    for model, of_model in figures.get("models", {}).items():
        found |= {f"export/{model}/{name}": of_model.get(name) for name in ("max_abs_diff", "score_diff", "overlap")}
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


def registered(bundle: Bundle, run_id: str) -> str:
    """Put a checked bundle into MLflow's model registry as STUDY-NAME of its run; returns its ``models:/`` address."""
    from medlight.deploy.registry import register

    run = store.find_run(run_id)
    study = run.data.tags.get("medlight.study") or "medlight"
    name = re.sub(r"[/:]", "-", f"{study}-{run.info.run_name}")
    return f"models:/{name}/{register(bundle, name, run_id)}"


def tags(bundle: Bundle, tensorrt_skipped: str | None) -> dict[str, str]:
    """Return what a run is tagged with after an export."""
    found = {"medlight.export": "complete" if bundle.parity.get("checked") else "unchecked"}
    if tensorrt_skipped:
        found["medlight.tensorrt"] = f"skipped: {tensorrt_skipped}"
    elif any(model.runtime == "tensorrt" for model in bundle.models):
        found["medlight.tensorrt"] = "complete"
    return found
