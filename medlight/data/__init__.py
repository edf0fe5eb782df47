"""Prepared cases to batches: patches, TorchIO augmentation, the Lightning data module."""

from medlight.data.datamodule import ScanDataModule
from medlight.data.patches import Patch

__all__ = ["Patch", "ScanDataModule"]
