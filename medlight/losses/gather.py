"""The samples of all ranks in one tensor, with gradients back to the ranks that they came from."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, distributed


def gather_with_gradient(local: Tensor) -> Tensor:
    """Return (W * B, ...) of all ranks in their order from this rank's (B, ...); B is the same on all ranks.

    The gradient of a rank's samples is the sum of what all ranks' losses make of them. With DDP, which averages the
    parameters' gradients over ranks, a mean over ranks of each rank's loss is trained exactly as on one process.
    """
    if world() == 1:
        return local
    return cast(Tensor, _Gather.apply(local))


def world() -> int:
    """Return the number of ranks, 1 where there is no process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Return this process's rank, 0 where there is no process group."""
    return distributed.get_rank() if world() > 1 else 0


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        local = local.contiguous()
        parts = [torch.empty_like(local) for _ in range(world())]
        distributed.all_gather(parts, local)
        ctx.count = len(local)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(summed)
        return summed.narrow(0, rank() * ctx.count, ctx.count)
