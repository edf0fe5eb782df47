"""Networks with fewer channels: they run, train and export like others."""

from __future__ import annotations

import pytest
import torch
from monai.networks import nets
from torch import nn

from medlight.errors import UsageError
from medlight.networks.prune import prune

BLOCKS = {"kernel_size": [3] * 3, "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [16, 32, 64]}
NETWORKS = {
    "residual U-Net": lambda: nets.DynUNet(3, 1, 3, **BLOCKS, res_block=True),
    "deep supervision": lambda: nets.DynUNet(3, 1, 3, **BLOCKS, res_block=True, deep_supervision=True, deep_supr_num=1),
    "UNet": lambda: nets.UNet(3, 1, 3, channels=[16, 32, 64], strides=[2, 2], num_res_units=2),
    "AttentionUnet": lambda: nets.AttentionUnet(3, 1, 3, channels=[16, 32, 64], strides=[2, 2]),
    "BasicUNet": lambda: nets.BasicUNet(3, 1, 3, features=[16, 16, 32, 32, 64, 16]),
    "ResNet": lambda: nets.resnet18(spatial_dims=3, n_input_channels=1, num_classes=3),
    "DenseNet": lambda: nets.DenseNet121(3, 1, 3),
}


def example(name: str) -> torch.Tensor:
    return torch.randn(2, 1, *[32] * 3)


@pytest.mark.parametrize("name", NETWORKS)
def test_half_of_the_channels_go_and_the_rest_trains(name: str) -> None:
    torch.manual_seed(0)
    network, image = NETWORKS[name](), example(name)
    network.eval()
    shape = network(image).shape
    found = prune(network, image[:1], 0.5, outputs=3)
    before, after = found.flops
    assert after < 0.55 * before
    assert not network.training
    assert sum(p.numel() for p in network.parameters()) == found.parameters[1] < 0.55 * found.parameters[0]
    assert network(image).shape == shape
    network.train()
    network(image).sum().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    channels = [m.out_channels for m in network.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    assert all(count % 8 == 0 for count in channels if count not in (1, 3))


def test_what_is_left_has_the_largest_weights() -> None:
    """By hand: of a chain of two layers, the half of the hidden channels with the larger weights stays."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(32, 2, 1, bias=False))
    first, second = network[0].weight.detach().clone(), network[2].weight.detach().clone()
    importance = (first**2).sum((1, 2, 3)) + (second**2).sum((0, 2, 3))
    kept = importance.topk(16).indices.sort().values
    prune(network, torch.randn(1, 1, 8, 8), 0.5, outputs=2)
    assert torch.equal(network[0].weight, first[kept])
    assert torch.equal(network[2].weight, second[:, kept])


@pytest.mark.parametrize("name", ["residual U-Net", "UNet", "DenseNet"])
def test_shapes_do_not_depend_on_the_weights(name: str) -> None:
    """A checkpoint's network is built, pruned and only then given its weights."""
    shapes = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = NETWORKS[name]()
        prune(network, example(name), 0.5, outputs=3)
        shapes.append({key: value.shape for key, value in network.state_dict().items()})
    assert shapes[0] == shapes[1]


def test_what_can_not_be_pruned_says_so() -> None:
    with pytest.raises(UsageError, match="VNet can't be pruned: "):
        prune(nets.VNet(3, 1, 3), torch.randn(1, 1, 32, 32, 32), 0.5, outputs=3)
    narrow = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))
    with pytest.raises(UsageError, match=r"no channels to spare at a ratio of 0\.5; mend"):
        prune(narrow, torch.randn(1, 1, 8, 8), 0.5, outputs=2)
    for wrong in (0, 1, -0.5, float("nan"), True, "half"):
        with pytest.raises(UsageError, match="a pruning ratio of"):
            prune(narrow, torch.randn(1, 1, 8, 8), wrong, outputs=2)  # type: ignore[arg-type]
