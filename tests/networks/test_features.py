from __future__ import annotations

import pytest
import torch
from monai.networks import nets
from torch import nn

from medlight.errors import UsageError
from medlight.networks import features, find_place, freeze_unused

CLASSIFIERS = {
    "resnet18-2d": (lambda: nets.resnet18(spatial_dims=2, n_input_channels=1, num_classes=3), (1, 32, 32), 512),
    "resnet18-3d": (lambda: nets.resnet18(spatial_dims=3, n_input_channels=1, num_classes=3), (1, 16, 16, 16), 512),
    "densenet-2d": (lambda: nets.DenseNet121(spatial_dims=2, in_channels=1, out_channels=3), (1, 32, 32), 1024),
    "efficientnet-2d": (
        lambda: nets.EfficientNetBN("efficientnet-b0", False, True, 2, 1, 3),
        (1, 32, 32),
        1280,
    ),
    "vit-2d": (lambda: nets.ViT(1, (16, 16), 4, 24, 32, 2, 2, classification=True, spatial_dims=2), (1, 16, 16), 24),
    "vit-3d": (lambda: nets.ViT(1, (8,) * 3, 4, 24, 32, 2, 2, classification=True, num_classes=24), (1, 8, 8, 8), 24),
}
STRIDES = {"strides": [1, 2, 2], "kernel_size": [3] * 3, "upsample_kernel_size": [2, 2]}
SEGMENTERS = {
    "dynunet-2d": (lambda: nets.DynUNet(2, 1, 3, filters=[4, 8, 12], res_block=True, **STRIDES), (1, 16, 16), 12),
    "dynunet-3d": (
        lambda: nets.DynUNet(3, 1, 3, filters=[4, 8, 12], deep_supervision=True, deep_supr_num=1, **STRIDES),
        (1, 16, 16, 16),
        12,
    ),
    "unet-3d": (lambda: nets.UNet(3, 1, 3, [4, 8, 16], [2, 2], num_res_units=1), (1, 16, 16, 16), 24),
    "segresnet-3d": (lambda: nets.SegResNet(3, 8, 1, 3, blocks_down=[1, 1, 1], blocks_up=[1, 1]), (1, 16, 16, 16), 32),
    "attention-unet-3d": (lambda: nets.AttentionUnet(3, 1, 3, [4, 8, 16], [2, 2]), (1, 16, 16, 16), 16),
    "swin-unetr-3d": (lambda: nets.SwinUNETR(1, 3, feature_size=12, spatial_dims=3), (1, 64, 64, 64), 192),
    "swin-unetr-2d": (lambda: nets.SwinUNETR(1, 3, feature_size=12, spatial_dims=2), (1, 64, 64), 192),
    "unetr-3d": (
        lambda: nets.UNETR(1, 3, (16, 16, 16), 4, 24, 32, 2),
        (1, 16, 16, 16),
        24,
    ),
    "flexible-unet-2d": (lambda: nets.FlexibleUNet(1, 3, "efficientnet-b0", spatial_dims=2), (1, 64, 64), 1152),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_input_of_the_last_layer(name):
    build, shape, width = CLASSIFIERS[name]
    torch.manual_seed(0)
    network, image = build().eval(), torch.randn(2, *shape)
    inputs = []
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    last.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.no_grad():
        found = features(network, image)
        inputs.clear()
        network(image)
    assert found.shape == (2, width) == (2, find_place(network, (2, *shape)).width)
    assert torch.equal(found, inputs[0])


@pytest.mark.parametrize("name", SEGMENTERS)
def test_the_coarsest_map_and_nothing_of_the_decoder(name):
    build, shape, width = SEGMENTERS[name]
    torch.manual_seed(0)
    network, image = build().train(), torch.randn(2, *shape)
    place = find_place(network, (2, *shape))
    assert network.training
    found = features(network, image, place)
    assert found.shape == (2, place.width)
    assert place.width == width, place
    frozen = freeze_unused(network, lambda: features(network, image, place))
    assert 0 < len(frozen) < len(list(network.parameters()))
    features(network, image, place).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in network.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_a_network_without_such_a_place_is_refused():
    with pytest.raises(UsageError, match="Sequential: has no"):
        find_place(nn.Sequential(nn.Flatten(), nn.Softmax(1)), (1, 1, 8, 8))
