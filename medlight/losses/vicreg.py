"""A loss of pre-training without negatives."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from medlight.losses.gather import gather_with_gradient

EPSILON = 1e-4


class VICReg(nn.Module):
    """Variance, invariance, covariance (Bardes et al., ICLR 2022), with the statistics of the samples of all ranks.

    The two views of a sample shall be the same (invariance); over the samples each dimension shall keep a standard
    deviation of at least 1 (variance) and dimensions shall not repeat each other (covariance). Every rank computes the
    loss of the whole batch, so that it and its gradient under DDP are those of one process.

    invariance, variance, covariance: weights of the three terms.
    """

    def __init__(self, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0) -> None:
        super().__init__()
        for name, weight in (("invariance", invariance), ("variance", variance), ("covariance", covariance)):
            if not weight >= 0:
                raise ValueError(f"{name}: {weight} must be 0 or above")
        self.invariance, self.variance, self.covariance = invariance, variance, covariance

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the loss of two views (B, D) each; B is the same on all ranks, and there are at least two samples."""
        return self.local(gather_with_gradient(first), gather_with_gradient(second))

    def local(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the loss of two views (N, D) each with no other process asked."""
        spread = (_hinge(first) + _hinge(second)) / 2
        redundancy = _off_diagonal(first) + _off_diagonal(second)
        return (
            self.invariance * functional.mse_loss(first, second) + self.variance * spread + self.covariance * redundancy
        )


def _hinge(vectors: Tensor) -> Tensor:
    """By how much standard deviations fall short of 1, mean over the dimensions."""
    return functional.relu(1 - (vectors.var(dim=0) + EPSILON).sqrt()).mean()


def _off_diagonal(vectors: Tensor) -> Tensor:
    """Squared covariances of different dimensions: their sum over the number of dimensions."""
    centred = vectors - vectors.mean(dim=0)
    covariance = centred.T @ centred / (len(vectors) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / vectors.shape[1]
