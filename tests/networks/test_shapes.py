from __future__ import annotations

import pytest
import torch
from monai.networks.nets import DynUNet, SwinUNETR, ViT

from medlight.errors import UsageError
from medlight.networks import output_shape


def test_shapes_without_computing():
    network = DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[2, 2, 2]).train()
    weights = [parameter.clone() for parameter in network.parameters()]
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    assert output_shape(network, (1, 1, 512, 512, 512)) == (1, 2, 512, 512, 512)  # 2 GiB of activations, were they real
    assert torch.rand(1) == expected
    assert network.training
    assert all(torch.equal(a, b) for a, b in zip(weights, network.parameters(), strict=True))


def test_transformers():
    swin = SwinUNETR(1, 3, spatial_dims=2, feature_size=12, depths=[1] * 4, num_heads=[1] * 4, window_size=2)
    assert output_shape(swin, (2, 1, 64, 64)) == (2, 3, 64, 64)
    vit = ViT(1, [16, 16], [8, 8], 24, 24, 1, 2, classification=True, num_classes=4, spatial_dims=2)
    assert output_shape(vit, (2, 1, 16, 16)) == (2, 4)


class Decides(torch.nn.Module):
    """Looks at the values, which no meta tensor has."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image if float(image.sum()) == 0 else image[:, :, :1]


def test_a_network_that_looks_at_values_is_run_for_real():
    assert output_shape(Decides(), (1, 1, 4, 4)) == (1, 1, 4, 4)


def test_sizes_that_do_not_divide_are_refused():
    network = DynUNet(2, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[2, 2, 2])
    with pytest.raises(UsageError, match="DynUNet can't take images of 30x30"):
        output_shape(network, (1, 1, 30, 30))
    assert network.training
