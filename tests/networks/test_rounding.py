"""Quantisation-aware fine-tuning: it rounds as the INT8 graph does, and leaves a plain network behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from medlight import tasks
from medlight.callbacks import QuantizationAware
from medlight.deploy.quantise import quantise
from medlight.errors import UsageError
from medlight.networks.rounding import fake_weight, rounded
from medlight.tasks import SegmentationTask
from tests.deploy import small_graphs
from tests.deploy.test_quantise import run
from tests.deploy.trained import UNET, Trained, segmentation


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


def test_a_rounded_network_gives_what_its_int8_graph_gives(tmp_path: Path) -> None:
    """With the ranges of the graph's calibration: in training those of values behind rounded layers differ a little."""
    network, image = small().eval(), noise()
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["probabilities"]}
    torch.onnx.export(network, (image,), tmp_path / "model.onnx", dynamo=False, opset_version=17, **names)
    quantise(tmp_path / "model.onnx", tmp_path / "int8.onnx", [image.numpy()])
    seen: dict[nn.Module, dict[str, torch.Tensor]] = {}

    def look(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen[module] = {"input": inputs[0].abs().max(), "output": output.abs().max()}

    with torch.no_grad():
        handles = [module.register_forward_hook(look) for module in (network[0], network[3], network[5])]
        exact = network(image).numpy()
        for handle in handles:
            handle.remove()
        with rounded(network):
            for module, ranges in seen.items():
                next(iter(module._forward_pre_hooks.values())).__self__.ranges = ranges  # type: ignore[attr-defined]
            found = network(image).numpy()
    by_graph = run(tmp_path / "int8.onnx", image.numpy(), exact=True)
    assert np.abs(exact - by_graph).mean() > 1e-3
    assert np.mean(np.abs(found - by_graph) > 1e-4) < 0.005  # a value half-way may round the other way


def test_gradients_pass_as_if_nothing_was_rounded() -> None:
    weight = torch.randn(4, 3, 2, 2, requires_grad=True)
    factor = torch.randn(4, 3, 2, 2)
    (fake_weight(weight, 0) * factor).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, factor)
    network = small()
    with rounded(network):
        network(noise()).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network[3].parameters())


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
    assert not torch.equal(changed, expected)
    assert torch.equal(network(image), expected)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


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


def fit(task: L.LightningModule, trained: Trained, root: Path, *callbacks: L.Callback) -> None:
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        max_steps=2,
        num_sanity_val_steps=1,
        limit_val_batches=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        default_root_dir=root,
        use_distributed_sampler=False,
    )
    trainer.fit(task, trained.data)
    trainer.save_checkpoint(root / "aware.ckpt")


class Probe(L.Callback):
    """Notes whether the network is rounded during training."""

    def __init__(self) -> None:
        self.hooks: list[int] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        layers = [m for m in pl_module.network.modules() if isinstance(m, nn.Conv3d)]
        self.hooks.append(sum(len(layer._forward_pre_hooks) for layer in layers) // len(layers))


def test_a_fit_with_it_leaves_a_checkpoint_like_any_other(tmp_path: Path) -> None:
    trained = segmentation(tmp_path)
    probe = Probe()
    task = SegmentationTask(network=UNET, pretrained=str(trained.checkpoint))
    fit(task, trained, tmp_path, QuantizationAware(), probe)
    assert probe.hooks == [1, 1]
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in task.modules())
    before, after = tasks.load(trained.checkpoint), tasks.load(tmp_path / "aware.ckpt")
    assert list(after.state_dict()) == list(before.state_dict())
    assert any(not torch.equal(a, b) for a, b in zip(after.parameters(), before.parameters(), strict=True))
    assert after.deployable()(torch.zeros(1, 1, 16, 16, 16)).isfinite().all()


def test_a_fit_that_fails_leaves_no_hooks(tmp_path: Path) -> None:
    class Fails(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise ZeroDivisionError

    trained = segmentation(tmp_path)
    task = SegmentationTask(network=UNET)
    with pytest.raises(ZeroDivisionError):
        fit(task, trained, tmp_path, QuantizationAware(), Fails())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in task.modules())


def test_fine_tuning_with_it_loses_less_than_fine_tuning_without() -> None:
    """A network of three layers learns a filter; measured by how far rounding moves what it gives."""
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(1, 1, 5, 5, generator=generator)
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Conv2d(8, 1, 3, padding=1))

    def train(steps: int, rate: float) -> None:
        optimizer = torch.optim.Adam(network.parameters(), rate)
        for _ in range(steps):
            image = torch.randn(4, 1, 16, 16, generator=generator)
            wanted = 3 * nn.functional.conv2d(image, kernel, padding=2).tanh()
            optimizer.zero_grad()
            nn.functional.mse_loss(network(image), wanted).backward()
            optimizer.step()

    def error() -> float:
        image = torch.randn(16, 1, 16, 16, generator=torch.Generator().manual_seed(9))
        with torch.no_grad():
            exact = network(image)
            with rounded(network):
                network(image)
                return float((network(image) - exact).abs().mean())

    train(400, 1e-2)
    begin = {name: value.clone() for name, value in network.state_dict().items()}
    train(300, 2e-3)
    without = error()
    network.load_state_dict(begin)
    with rounded(network):
        train(300, 2e-3)
    assert error() < 0.8 * without  # 0.61 as measured
