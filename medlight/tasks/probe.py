"""A linear classifier on features that are still being learnt."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from medlight.losses.gather import world
from medlight.tasks.representation import UNKNOWN

MOMENTUM = 0.9
EPSILON = 1e-8


class OnlineProbe(nn.Module):
    """Softmax regression on standardised features, by gradient descent with momentum and a rate of its own.

    It shows how well classes can be told from the features while these are learnt, and has no part in that: its
    weights are buffers, moved by `learn` with the gradient written out. So nothing of it reaches the encoder, the
    optimiser, gradient clipping or DDP, and its whole state is in the checkpoint. With several ranks each learns from
    the samples of all.

    width: number of features; classes: of classes; lr: step size.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    variance: Tensor
    seen: Tensor
    speed: Tensor

    def __init__(self, width: int, classes: int, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.register_buffer("weight", torch.zeros(classes, width))
        self.register_buffer("bias", torch.zeros(classes))
        self.register_buffer("speed", torch.zeros(classes, width + 1))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.zeros(width))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, L) for features (B, F)."""
        return functional.linear(self._standardised(features.float()), self.weight, self.bias)

    @torch.no_grad()
    def learn(self, features: Tensor, truth: Tensor) -> None:
        """Take one step on features (B, F) and their classes (B,); those of class -1 don't count."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.detach().float()
            self._follow(features)
            known = (truth != UNKNOWN).float()
            standard = self._standardised(features)
            error = functional.linear(standard, self.weight, self.bias).softmax(dim=1)
            error = (error - functional.one_hot(truth.clamp_min(0), len(self.bias))) * known[:, None]
            gradient = torch.cat([error.T @ standard, error.sum(dim=0)[:, None]], dim=1)
            self.speed.mul_(MOMENTUM).add_(_summed(gradient) / _summed(known.sum()).clamp_min(1))
            self.weight.sub_(self.lr * self.speed[:, :-1])
            self.bias.sub_(self.lr * self.speed[:, -1])

    def _standardised(self, features: Tensor) -> Tensor:
        """Features of mean 0 and variance 1 over samples, so scaled that their length is about 1."""
        return (features - self.mean) / (self.variance + EPSILON).sqrt() / len(self.mean) ** 0.5

    def _follow(self, features: Tensor) -> None:
        """Keep the features' mean and variance: of all samples at first, later of the last hundred steps."""
        mean = _summed(features.mean(dim=0)) / world()
        variance = _summed((features - mean).square().mean(dim=0)) / world()
        self.seen.add_(1)
        share = (1 / self.seen).clamp_min(0.01)
        apart = (mean - self.mean).square() * (1 - share)
        self.variance.lerp_(variance + apart, share)
        self.mean.lerp_(mean, share)


def _summed(values: Tensor) -> Tensor:
    """Sum over all ranks."""
    if world() > 1:
        distributed.all_reduce(values)
    return values
