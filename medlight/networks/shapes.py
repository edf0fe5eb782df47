"""What a network makes of an image, found without computing it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from medlight.errors import UsageError
from medlight.networks.heads import final_head


def output_shape(network: nn.Module, image_shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of the final logits for an image (B, C, I, J[, K]); UsageError where the network can't take it.

    Shapes alone are computed, on torch's meta device; a network that can't do that is run once on zeros.
    """
    try:
        return _run(copy.deepcopy(network).to("meta"), torch.zeros(*image_shape, device="meta"))
    except Exception:
        pass  # a wrong size, or an operation that has no meta kernel: the real device tells which
    training = network.training
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    try:
        return _run(network, torch.zeros(*image_shape, device=device))
    except Exception as error:
        size = "x".join(str(n) for n in image_shape[2:])
        why = " ".join(str(error).split())[:200]
        raise UsageError(f"network {type(network).__name__} can't take images of {size}: {why}") from error
    finally:
        network.train(training)


def _run(network: nn.Module, image: torch.Tensor) -> tuple[int, ...]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return tuple(final_head(network, network.eval()(image), image.ndim - 2).shape)
