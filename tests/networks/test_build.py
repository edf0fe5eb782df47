from __future__ import annotations

import pytest
import torch
from torch import nn

from medlight.errors import UsageError
from medlight.networks import build, final_head, heads

NETS = "monai.networks.nets."
SEGMENTATION = {
    "UNet": {"channels": [4, 8, 8], "strides": [2, 2]},
    "DynUNet": {"filters": [4, 8, 8]},
    "SegResNet": {"init_filters": 8},
    "SegResNetDS": {"init_filters": 8, "dsdepth": 2, "norm": "instance"},
    "SwinUNETR": {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 2},
    "UNETR": {"feature_size": 4, "hidden_size": 24, "mlp_dim": 24, "num_heads": 2},
    "VNet": {},
    "AttentionUnet": {"channels": [4, 8, 8], "strides": [2, 2]},
    "BasicUNet": {"features": [4, 4, 8, 8, 8, 4]},
    "BasicUNetPlusPlus": {"features": [4, 4, 8, 8, 8, 4], "deep_supervision": True},
    "HighResNet": {},
    "MedNeXt": {"init_filters": 4, "deep_supervision": True, "kernel_size": 3},
}
CLASSIFICATION = {
    "resnet10": {},
    "DenseNet121": {"init_features": 8, "growth_rate": 4, "block_config": [1, 1, 1, 1]},
    "EfficientNetBN": {"model_name": "efficientnet-b0"},
    "ViT": {"patch_size": 8, "hidden_size": 24, "mlp_dim": 24, "num_layers": 1, "num_heads": 2},
}


def signature(dims: int, size: int, channels: int = 2, **more) -> dict:
    return {
        "spatial_dims": dims,
        "channels": ["a", "b"][:channels],
        "patch_size": [size] * dims,
        "preparation": {},
    } | more


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", SEGMENTATION)
def test_segmentation_networks_take_the_datas_shape(name, dims):
    size = 64 if name == "SwinUNETR" else 32
    network = build({"class_path": NETS + name, "init_args": SEGMENTATION[name]}, signature(dims, size), 3)
    image = torch.randn(2, 2, *[size] * dims)
    with torch.no_grad():
        for training in (True, False):
            found = heads(network.train(training), network(image), dims)
            assert found[0].shape == (2, 3, *[size] * dims)
            assert all(head.shape[:2] == (2, 3) for head in found)
    assert len(found) in (1, 2, 4, 5)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", CLASSIFICATION)
def test_classification_networks_take_the_datas_shape(name, dims):
    network = build({"class_path": NETS + name, "init_args": CLASSIFICATION[name]}, signature(dims, 32), 4).eval()
    with torch.no_grad():
        logits = final_head(network, network(torch.randn(2, 2, *[32] * dims)), dims)
    assert logits.shape == (2, 4)


def test_vit_gives_logits_without_a_squashing_end():
    network = build({"class_path": NETS + "ViT", "init_args": CLASSIFICATION["ViT"]}, signature(2, 32), 4)
    assert isinstance(network.classification_head, nn.Linear)


def test_deep_supervision_heads_come_final_first():
    network = build(
        {"class_path": NETS + "DynUNet", "init_args": {"filters": [4, 8, 8, 8], "deep_supervision": True}},
        signature(3, 32),
        2,
    )
    image = torch.randn(1, 2, 32, 32, 32)
    output = network.train()(image)
    assert output.ndim == 6
    assert torch.equal(heads(network, output, 3)[0], output[:, 0])
    assert len(heads(network.eval(), network(image), 3)) == 1


def test_unet_plus_plus_counts_its_deepest_head():
    network = build(
        {"class_path": NETS + "BasicUNetPlusPlus", "init_args": SEGMENTATION["BasicUNetPlusPlus"]}, signature(2, 32), 2
    )
    output = network(torch.randn(1, 2, 32, 32))
    assert final_head(network, output, 2) is output[-1]


class Plain(nn.Module):
    """A user's network that asks for nothing but the number of outputs."""

    def __init__(self, out_channels: int, width: int = 4) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LazyConv2d(width, 3, padding=1), nn.Conv2d(width, out_channels, 1))

    def forward(self, image):
        return self.net(image)


def test_a_users_class_works_and_what_is_written_wins():
    spec = {"class_path": f"{__name__}.Plain", "init_args": {"out_channels": 7}}
    assert build(spec, signature(2, 16), 3)(torch.randn(1, 2, 8, 8)).shape == (1, 7, 8, 8)


def test_a_function_that_returns_no_module_is_refused():
    with pytest.raises(UsageError, match="expected a torch module"):
        build({"class_path": "builtins.dict"}, signature(2, 16), 3)


def test_what_the_class_refuses_is_one_line():
    with pytest.raises(UsageError, match="SwinUNETR") as error:
        build({"class_path": NETS + "SwinUNETR", "init_args": {"feature_size": 13}}, signature(3, 32), 3)
    assert "\n" not in str(error.value)


def test_dynunet_keeps_the_strides_that_are_written():
    init = {"filters": [4, 8, 8], "strides": [1, [2, 2, 1], 2]}
    network = build({"class_path": NETS + "DynUNet", "init_args": init}, signature(3, 16), 3)
    assert network(torch.randn(1, 2, 16, 16, 16)).shape == (1, 3, 16, 16, 16)
