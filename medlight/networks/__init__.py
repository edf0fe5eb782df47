"""What is trained: any network by import path."""

from medlight.networks.build import build, check, spatial_size
from medlight.networks.heads import final_head, heads
from medlight.networks.plan import plan_dynunet
from medlight.networks.shapes import output_shape

__all__ = ["build", "check", "final_head", "heads", "output_shape", "plan_dynunet", "spatial_size"]
