"""How networks are trained: one LightningModule a file, maths only."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medlight.tasks.base import Task
    from medlight.tasks.checkpoint import load
    from medlight.tasks.classification import ClassificationTask
    from medlight.tasks.copy_paste import CopyPasteSegmentation
    from medlight.tasks.fixmatch import FixMatchTask
    from medlight.tasks.masked_autoencoder import MaskedAutoencoderTask
    from medlight.tasks.mean_teacher import MeanTeacherClassification, MeanTeacherSegmentation
    from medlight.tasks.segmentation import SegmentationTask
    from medlight.tasks.simclr import SimCLRTask
    from medlight.tasks.uncertainty import UncertaintyAwareSegmentation
    from medlight.tasks.vicreg import VICRegTask

_PLACES = {
    "ClassificationTask": "classification",
    "CopyPasteSegmentation": "copy_paste",
    "FixMatchTask": "fixmatch",
    "MaskedAutoencoderTask": "masked_autoencoder",
    "MeanTeacherClassification": "mean_teacher",
    "MeanTeacherSegmentation": "mean_teacher",
    "SegmentationTask": "segmentation",
    "SimCLRTask": "simclr",
    "Task": "base",
    "UncertaintyAwareSegmentation": "uncertainty",
    "VICRegTask": "vicreg",
    "load": "checkpoint",
}
__all__ = [
    "ClassificationTask",
    "CopyPasteSegmentation",
    "FixMatchTask",
    "MaskedAutoencoderTask",
    "MeanTeacherClassification",
    "MeanTeacherSegmentation",
    "SegmentationTask",
    "SimCLRTask",
    "Task",
    "UncertaintyAwareSegmentation",
    "VICRegTask",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import a task when it is asked for: a run's record of its code holds only what it used."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
