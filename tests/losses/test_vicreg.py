from __future__ import annotations

import numpy as np
import pytest
import torch

from medlight.losses import VICReg


def by_hand(a, b):
    """The paper's equations in numpy, loop by loop."""
    total = 25 * np.mean((a - b) ** 2)
    for z in (a, b):
        d = z.shape[1]
        total += 25 * sum(max(0.0, 1 - np.sqrt(np.var(z[:, j], ddof=1) + 1e-4)) for j in range(d)) / d / 2
        covariance = np.cov(z, rowvar=False)
        total += sum(covariance[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d
    return total


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_equals_the_paper(scale):
    torch.manual_seed(0)
    a, b = scale * torch.randn(2, 12, 5, dtype=torch.float64)
    assert VICReg()(a, b).item() == pytest.approx(by_hand(a.numpy(), b.numpy()), rel=1e-9)


def test_collapse_costs_more_than_spread_vectors():
    torch.manual_seed(0)
    spread = 2 * torch.randn(4000, 5)
    assert VICReg()(spread, spread) < 1
    assert VICReg()(torch.ones(12, 5), torch.ones(12, 5)) > 24


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="covariance"):
        VICReg(covariance=-1.0)
