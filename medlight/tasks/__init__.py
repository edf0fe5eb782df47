"""How networks are trained: one LightningModule a file, maths only."""

from medlight.tasks.base import Task
from medlight.tasks.checkpoint import load
from medlight.tasks.classification import ClassificationTask
from medlight.tasks.segmentation import SegmentationTask

__all__ = ["ClassificationTask", "SegmentationTask", "Task", "load"]
