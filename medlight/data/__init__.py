"""Prepared cases to batches: patches, TorchIO augmentation, the Lightning data modules."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medlight.data.datamodule import ScanDataModule
    from medlight.data.few_labels import FewLabelsDataModule
    from medlight.data.patches import Patch
    from medlight.data.views import PretrainingDataModule, ViewsDataModule

_PLACES = {
    "FewLabelsDataModule": "few_labels",
    "Patch": "patches",
    "PretrainingDataModule": "views",
    "ScanDataModule": "datamodule",
    "ViewsDataModule": "views",
}
__all__ = ["FewLabelsDataModule", "Patch", "PretrainingDataModule", "ScanDataModule", "ViewsDataModule"]


def __getattr__(name: str) -> Any:
    """Import a data module when it is asked for: a run's record of its code holds only what it used."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
