from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.losses import DiceCELoss

from medlight.losses.consistency import confident_cross_entropy, entropy, squared_distance, two_part_loss
from medlight.losses.ramp_up import sigmoid_ramp_up


def probabilities(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).softmax(dim=1)


def test_the_ramp_is_the_written_formula():
    assert sigmoid_ramp_up(0, 40) == pytest.approx(math.exp(-5))
    assert sigmoid_ramp_up(10, 40) == pytest.approx(math.exp(-5 * 0.75**2))
    assert sigmoid_ramp_up(20, 40) == pytest.approx(0.2865, abs=1e-4)
    assert sigmoid_ramp_up(40, 40) == sigmoid_ramp_up(999, 40) == sigmoid_ramp_up(0, 0) == 1.0


@given(st.integers(1, 1000), st.integers(0, 1000))
def test_the_ramp_never_falls(length, step):
    assert 0 < sigmoid_ramp_up(step, length) <= sigmoid_ramp_up(step + 1, length) <= 1


def test_the_distance_is_numpys_with_and_without_a_mask():
    one, two = probabilities(2, 3, 4, 5), probabilities(2, 3, 4, 5)
    square = (one.numpy() - two.numpy()) ** 2
    assert float(squared_distance(one, two)) == pytest.approx(square.mean(), rel=1e-5)
    mask = torch.rand(2, 1, 4, 5) < 0.4
    kept = np.broadcast_to(mask.numpy(), square.shape)
    assert float(squared_distance(one, two, mask)) == pytest.approx(square[kept].mean(), rel=1e-5)
    assert float(squared_distance(one, two, torch.zeros_like(mask))) == 0
    assert squared_distance(one.bfloat16(), two.bfloat16()).dtype == torch.float32


def test_entropy_is_scipys_and_knows_certainty():
    found = entropy(probabilities(4, 3, 2))
    assert found.shape == (4, 1, 2)
    torch.manual_seed(1)
    several = probabilities(4, 3, 2)
    assert np.allclose(entropy(several)[:, 0], scipy.stats.entropy(several.numpy(), axis=1), atol=1e-6)
    assert entropy(torch.tensor([[1.0, 0.0]])).item() == 0
    assert entropy(torch.full((1, 3), 1 / 3)).item() == pytest.approx(math.log(3))


def test_only_the_sure_teach_and_the_mean_is_over_all():
    weak = torch.tensor([[0.96, 0.04], [0.9, 0.1], [0.03, 0.97]], requires_grad=True)
    strong = torch.tensor([[0.0, 1.0], [3.0, 1.0], [0.5, 0.0]], requires_grad=True)
    loss, counts = confident_cross_entropy(strong, weak, 0.95)
    assert counts.tolist() == [True, False, True]
    first, third = -math.log(1 / (1 + math.e)), -math.log(1 / (1 + math.exp(0.5)))
    assert float(loss) == pytest.approx((first + third) / 3)
    loss.backward()
    assert weak.grad is None
    assert strong.grad[1].abs().sum() == 0
    assert strong.grad[0].abs().sum() > 0


def test_each_part_has_its_own_loss_and_weight():
    logits, target = torch.randn(2, 3, 6, 5), torch.randint(0, 3, (2, 1, 6, 5))
    part = torch.zeros(2, 1, 6, 5, dtype=torch.bool)
    part[..., :3] = True
    alone = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, squared_pred=True, batch=True)
    left = float(alone(logits[..., :3], target[..., :3]))
    right = float(alone(logits[..., 3:], target[..., 3:]))
    assert float(two_part_loss(logits, target, part, 0.5)) == pytest.approx(left + 0.5 * right, abs=1e-4)
    assert float(two_part_loss(logits, target, part, 0.0)) == pytest.approx(left, abs=1e-4)
    assert float(two_part_loss(logits, target, torch.ones_like(part), 0.5)) == pytest.approx(
        float(alone(logits, target)), abs=1e-4
    )


def test_gradients_stay_in_the_part_that_weighs():
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    part = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    part[..., :2] = True
    two_part_loss(logits, torch.ones(1, 1, 4, 4), part, 0.0).backward()
    assert logits.grad[..., 2:].abs().sum() == 0
    assert logits.grad[..., :2].abs().sum() > 0
