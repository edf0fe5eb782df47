"""Quantisation-aware fine-tuning: it rounds as the INT8 graph does, and leaves a plain network behind."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import pytest
import torch
from monai.networks.nets import ResNet, UNet
from onnx import numpy_helper
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from medlight.deploy.onnx_export import export_onnx
from medlight.deploy.quantise import quantise
from medlight.errors import UsageError
from medlight.networks import rounding
from medlight.networks.rounding import fake_weight, rounded
from tests.deploy import small_graphs
from tests.deploy.test_quantise import run


def small() -> nn.Sequential:
    torch.manual_seed(0)
    first, second = nn.Conv3d(2, 4, 3, padding=1), nn.ConvTranspose3d(4, 3, 2, stride=2)
    return nn.Sequential(first, nn.InstanceNorm3d(4), nn.ReLU(), second, nn.LeakyReLU(), nn.Conv3d(3, 2, 1))


def noise(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 2, 8, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("op", "axis"), [("Conv", 0), ("ConvTranspose", 1)])
def test_a_weight_is_rounded_to_what_the_int8_graph_holds(tmp_path: Path, op: str, axis: int) -> None:
    weight = np.random.default_rng(0).normal(size=(4, 3, 2, 2)).astype(np.float32)
    weight[0] *= 100
    weight[:, 1] *= 0.01
    source = small_graphs.layer(tmp_path / "one.onnx", weight, op)
    channels = 3 if op == "Conv" else 4
    quantise(source, tmp_path / "int8.onnx", [np.ones((1, channels, 4, 4), np.float32)])
    known = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    integers = next(value for value in known.values() if value.shape == weight.shape)
    scale = next(
        value for value in known.values() if value.shape == (weight.shape[axis],) and value.dtype == np.float32
    )
    expected = integers * scale.reshape([-1 if a == axis else 1 for a in range(4)])
    np.testing.assert_allclose(fake_weight(torch.from_numpy(weight), axis).numpy(), expected, rtol=1e-5, atol=1e-9)


class Mixed(nn.Module):
    """Tokens of a convolution, attention by plain products, a normalised linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 2, 2)
        self.value, self.hidden = nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(image).flatten(2).transpose(1, 2)
        weights = (tokens @ tokens.transpose(-2, -1)).softmax(-1)
        tokens = tokens + torch.matmul(weights, self.value(tokens))
        return self.head(self.norm(self.hidden(tokens.mean(1))).relu())


def normalised(network: nn.Module) -> nn.Module:
    """Give the batch norms statistics and weights that are far from none, negative ones too."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            with torch.no_grad():
                module.running_mean.normal_(0, 0.5, generator=generator)
                module.running_var.uniform_(0.2, 3, generator=generator)
                module.weight.uniform_(-2, 2, generator=generator)
                module.bias.normal_(0, 0.5, generator=generator)
    return network.eval()


def network(name: str) -> tuple[nn.Module, list[int]]:
    """A network and the shape of its image."""
    torch.manual_seed(0)
    match name:
        case "instance norm, 3D":
            return small(), [2, 8, 8, 8]
        case "resnet, 2D":
            layers = {"block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [8, 8, 16, 16]}
            return ResNet(**layers, spatial_dims=2, n_input_channels=1, num_classes=3), [1, 32, 32]
        case "resnet, 3D":
            layers = {"block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [4, 4, 8, 8]}
            return ResNet(**layers, n_input_channels=1, num_classes=3, conv1_t_size=3), [1, 16, 16, 16]
        case "unet, 3D":  # transposed convolutions with a norm, skip connections, sums
            return UNet(3, 1, 3, (4, 8, 8), (2, 2), num_res_units=1, norm="batch"), [1, 8, 8, 8]
    return Mixed(), [1, 8, 8]


@contextmanager
def rounded_as_calibrated(network: nn.Module, image: torch.Tensor) -> Iterator[None]:
    """Round with the ranges of the exact network, as the graph does: rounded ones are seen a little off in training."""
    with rounded(network):
        with (
            patch.object(torch, "fake_quantize_per_tensor_affine", lambda value, *_: value.clone()),
            patch.object(rounding, "fake_weight", lambda weight, _: weight),
        ):
            network(image)
        yield


NETWORKS = ("instance norm, 3D", "resnet, 2D", "resnet, 3D", "unet, 3D", "mixed, 2D")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_rounded_network_gives_what_its_int8_graph_gives(tmp_path: Path, name: str) -> None:
    made, shape = network(name)
    made = normalised(made)
    image = torch.randn(8, *shape, generator=torch.Generator().manual_seed(2))
    export_onnx(made, shape[0], shape[1:], tmp_path / "model.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert "BatchNormalization" not in kinds  # all are folded
    quantise(tmp_path / "model.onnx", tmp_path / "int8.onnx", [image.numpy()])
    by_graph = run(tmp_path / "int8.onnx", image.numpy(), exact=True)
    with torch.no_grad():
        exact = made(image).numpy()
        with rounded_as_calibrated(made, image):
            found = made(image).numpy()
    axes = tuple(range(1, exact.ndim))
    error, apart = np.abs(by_graph - exact).mean(axes), np.abs(found - by_graph).mean(axes)
    assert error.mean() > 1e-3
    # A value half-way may round the other way, and turn others behind it: most samples have none.
    assert np.median(apart / error) < 0.05
    assert np.corrcoef((found - exact).ravel(), (by_graph - exact).ravel())[0, 1] > 0.9


def test_gradients_pass_as_if_nothing_was_rounded() -> None:
    weight = torch.randn(4, 3, 2, 2, requires_grad=True)
    factor = torch.randn(4, 3, 2, 2)
    (fake_weight(weight, 0) * factor).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, factor)
    network = nn.Sequential(nn.Conv3d(2, 2, 3, padding=1), nn.BatchNorm3d(2), *small())
    with rounded(network):
        network(noise()).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for i in (0, 1, 5) for p in network[i].parameters())


def test_the_network_keeps_its_parameters_and_their_names() -> None:
    network, image = small(), noise()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    parameters, expected = list(network.parameters()), network(image)
    with rounded(network):
        changed = network(image)
        assert list(network.state_dict()) == list(before)
        assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
        small().load_state_dict(network.state_dict())
        with pytest.raises(RuntimeError):
            network(torch.zeros(1, 5, 8, 8, 8))
        assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))  # after an error too
        assert torch.equal(network.eval()(image), network(image))
    network.train()
    assert not torch.equal(changed, expected)
    assert torch.equal(network(image), expected)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_it_can_be_turned_off_between_passes() -> None:
    network = normalised(small())
    with torch.no_grad():
        exact = network(noise())
        with rounded(network) as rounding:
            changed = network(noise())
            rounding.on = False
            assert torch.equal(network(noise()), exact)
            rounding.on = True
            assert torch.equal(network(noise()), changed)
    assert not torch.equal(changed, exact)


def test_a_pass_that_is_cut_leaves_torch_as_it_was() -> None:
    class Cut(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            raise KeyboardInterrupt

    layer = nn.Conv3d(2, 4, 3)
    exact = layer(noise())
    network = nn.Sequential(layer, Cut())
    with pytest.raises(KeyboardInterrupt), rounded(network):
        network(noise())
    assert torch.equal(layer(noise()), exact)
    assert not torch.overrides._get_current_function_mode_stack()


def test_a_network_may_be_copied_while_it_is_rounded() -> None:
    network = normalised(small())
    with rounded(network), torch.no_grad():
        expected = network(noise())
        copied = copy.deepcopy(network)
        assert torch.equal(copied(noise()), expected)
        assert torch.equal(network(noise()), expected)


def test_a_layer_may_be_called_by_keyword() -> None:
    for layer, image in ((nn.Conv3d(2, 3, 3), noise()), (nn.Linear(8, 3), noise()), (nn.BatchNorm3d(2), noise())):
        network = nn.ModuleList([layer, nn.Linear(1, 1)])
        with rounded(network), torch.no_grad():
            assert torch.equal(layer(input=image), layer(image))


@pytest.mark.parametrize("normed", [weight_norm, spectral_norm, nn.utils.weight_norm, nn.utils.spectral_norm])
def test_a_weight_that_is_computed_is_rounded_too(normed: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    layer = normed(nn.Conv3d(2, 4, 3)).eval()
    layer(noise())  # computes the weight
    plain = nn.Conv3d(2, 4, 3)
    plain.weight, plain.bias = nn.Parameter(layer.weight.detach().clone()), layer.bias
    with torch.no_grad(), rounded(plain):
        expected = plain(noise())
    before = list(layer.state_dict())
    with rounded(layer):
        found = layer(noise())
        found.square().mean().backward()
    assert torch.equal(found.detach(), expected)
    assert list(layer.state_dict()) == before
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())


def test_ranges_follow_training_and_rest_in_validation() -> None:
    layer = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False))
    nn.init.ones_(layer[0].weight)
    image = torch.tensor([0.3, 1.0]).reshape(1, 1, 1, 2)
    with rounded(layer), torch.no_grad():
        layer.train()(image)
        assert layer.eval()(image * 10).max() == pytest.approx(1.0)  # clipped: validation sets no range
        layer.train()(image * 10)
        assert layer.eval()(image * 10).max() == pytest.approx(10.0)
        for _ in range(300):
            layer.train()(image)
        assert layer.eval()(image * 10).max() == pytest.approx(1.0)


def test_a_network_with_nothing_to_round_is_refused() -> None:
    with pytest.raises(UsageError, match="no convolution"), rounded(nn.Sequential(nn.ReLU())):
        pass
