"""What is trained: any network by import path."""

from medlight.networks.build import build, check, spatial_size
from medlight.networks.features import Place, features, find_place, freeze_unused
from medlight.networks.heads import final_head, heads
from medlight.networks.plan import plan_dynunet
from medlight.networks.shapes import output_shape

__all__ = [
    "Place",
    "build",
    "check",
    "features",
    "final_head",
    "find_place",
    "freeze_unused",
    "heads",
    "output_shape",
    "plan_dynunet",
    "spatial_size",
]
