"""One view of what networks return: a tensor, stacked heads, or a list of heads."""

from __future__ import annotations

from typing import Any

from monai.networks.nets.basic_unetplusplus import BasicUNetPlusPlus
from torch import Tensor, nn


def heads(network: nn.Module, output: Any, spatial_dims: int) -> list[Tensor]:
    """Return every head's logits (B, C, ...), the final one first.

    MONAI's networks with deep supervision differ in what they return in training: DynUNet stacks its heads along
    dimension 1, SegResNetDS and MedNeXt give a list with the finest first, BasicUNetPlusPlus one with the deepest last.
    """
    if isinstance(output, Tensor):
        return list(output.unbind(1)) if output.ndim == spatial_dims + 3 else [output]
    if isinstance(network, BasicUNetPlusPlus):
        return list(reversed(output))
    return [head for head in output if isinstance(head, Tensor)]


def final_head(network: nn.Module, output: Any, spatial_dims: int) -> Tensor:
    """Return the logits that count at prediction. ViT returns hidden states beside them: those are left out."""
    return heads(network, output, spatial_dims)[0]
