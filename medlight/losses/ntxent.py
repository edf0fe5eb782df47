"""The loss of SimCLR."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from medlight.losses.gather import gather_with_gradient, rank

BLOCK = 1024


class NTXent(nn.Module):
    """Normalised temperature-scaled cross-entropy (Chen et al., ICML 2020, equation 1) over the samples of all ranks.

    Each of the 2 N vectors (N samples of all ranks, two views each) has to tell the other view of its own sample among
    the 2 N - 1 others by cosine similarity. A rank's loss is the mean over its own 2 B anchors: what DDP makes of it
    is loss and gradient of one process with the whole batch.

    temperature: above 0; the similarities are divided by it.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature: {temperature} must be above 0")
        self.temperature = temperature

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the loss of two views (B, D) each; B is the same on all ranks."""
        views = _normalised(first, second)
        anchors, keys = views.flatten(0, 1), gather_with_gradient(views).flatten(0, 1)
        return self._mean(anchors, keys, rank() * len(anchors))

    def local(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the loss of two views (N, D) each with no other process asked, in little memory for any N."""
        keys = _normalised(first, second).flatten(0, 1)
        parts = list(zip(keys.split(BLOCK), range(0, len(keys), BLOCK), strict=True))
        return torch.stack([self._mean(part, keys, start) * len(part) for part, start in parts]).sum() / len(keys)

    def _mean(self, anchors: Tensor, keys: Tensor, start: int) -> Tensor:
        """Mean over anchors, which are the keys from ``start`` on; views of one sample are neighbours."""
        own = torch.arange(start, start + len(anchors), device=anchors.device)
        similarity = (anchors @ keys.T) / self.temperature
        return functional.cross_entropy(similarity.scatter(1, own[:, None], -math.inf), own ^ 1)


def _normalised(first: Tensor, second: Tensor) -> Tensor:
    """Return unit vectors (B, 2, D)."""
    return functional.normalize(torch.stack([first, second], dim=1), dim=2)
