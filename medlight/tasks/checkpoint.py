"""From a checkpoint back to a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from medlight import config
from medlight.errors import MedlightError, UsageError
from medlight.tasks.base import Task


def read(file: Path) -> dict[str, Any]:
    """Return what a checkpoint file holds, no code in it run.

    Raises: UsageError where there is no such file, MedlightError where it is no checkpoint.
    """
    if not file.is_file():
        raise UsageError(f"{file}: no such checkpoint")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes of any kind make the reader fail in any way
        raise MedlightError(
            f"{file}: not a checkpoint, or a damaged one; give a .ckpt that `medlight fit` wrote"
        ) from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise MedlightError(f"{file}: not a checkpoint of a medlight task; train one with `medlight fit`")
    return content


def load(checkpoint: str | Path) -> Task:
    """Return the task of a checkpoint on the CPU, in evaluation mode, with its averaged weights where it has any.

    Lightning's weight averaging (EMA) writes the averaged weights as the checkpoint's ``state_dict``. The file is read
    with ``weights_only=True``: no code in it is run. Raises UsageError where there is no such file, MedlightError where
    it is no checkpoint of a task.
    """
    file = Path(checkpoint)
    content = read(file)
    hparams = dict(content.get("hyper_parameters") or {})
    known = content.get("medlight") or {}
    class_path = known.get("class_path") or hparams.get("_class_path")
    if not class_path:
        raise MedlightError(f"{file}: not a checkpoint of a medlight task; train one with `medlight fit`")
    cls = config.import_class(class_path, f"{file}: class_path")
    names, open_ended = config.arguments(cls)
    hparams.pop("pretrained", None)  # what it began with is in its own weights
    task: Task = cls(**{k: v for k, v in hparams.items() if (k in names or open_ended) and not k.startswith("_")})
    task.configure_model()
    if known.get("pruned"):
        task.prune(float(known["pruned"]))
    task.load_state_dict(content["state_dict"])
    return task.eval()
