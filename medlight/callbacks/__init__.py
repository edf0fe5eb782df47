"""What happens around a fit: checkpoints, seeds, records, pictures, tables, pruning."""

from medlight.callbacks.case_table import CaseTable
from medlight.callbacks.channel_pruning import ChannelPruning
from medlight.callbacks.checkpoint import Checkpoint
from medlight.callbacks.finite_loss import FiniteLoss
from medlight.callbacks.freeze import Freeze
from medlight.callbacks.images import ValidationImages
from medlight.callbacks.pruning import Pruning
from medlight.callbacks.quantization_aware import QuantizationAware
from medlight.callbacks.run_record import RunRecord
from medlight.callbacks.step_seed import StepSeed
from medlight.callbacks.throughput import Throughput

__all__ = [
    "CaseTable",
    "ChannelPruning",
    "Checkpoint",
    "FiniteLoss",
    "Freeze",
    "Pruning",
    "QuantizationAware",
    "RunRecord",
    "StepSeed",
    "Throughput",
    "ValidationImages",
]
