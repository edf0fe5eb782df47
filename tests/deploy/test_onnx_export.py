"""ONNX files: what is claimed of their sizes holds."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from monai.networks.nets import UNETR, DynUNet, ResNet, UNet
from torch import nn

from medlight.deploy import onnx_export
from medlight.deploy.onnx_export import export_onnx, size_multiple
from medlight.deploy.runtime.session import OnnxSession, OpenVinoSession
from medlight.deploy.zoo import ZOO
from medlight.errors import MedlightError, UsageError


def run(path: Path, image: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image.numpy()})[0]


def test_a_u_net_takes_any_batch_and_size(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    network = DynUNet(3, 2, 3, (3, 3, 3), (1, 2, 2), (2, 2), filters=(4, 8, 8), res_block=True)
    module = nn.Sequential(network, nn.Softmax(1)).eval()
    made = export_onnx(module, 2, [24, 40, 24], tmp_path / "m.onnx")
    assert made.dynamic_axes == ["batch", "i", "j", "k"]
    assert made.size_multiple == 8
    assert made.exporter == "dynamo"
    assert [f.name for f in tmp_path.iterdir()] == ["m.onnx"]  # weights inside
    image = torch.randn(3, 2, 16, 48, 32)
    with torch.no_grad():
        np.testing.assert_allclose(run(tmp_path / "m.onnx", image), module(image).numpy(), atol=1e-5)
    said = capfd.readouterr()
    assert said.out + said.err == ""
    assert b"site-packages" not in (tmp_path / "m.onnx").read_bytes()  # nor any other folder of this machine
    assert str(Path(__file__).parents[2]).encode() not in (tmp_path / "m.onnx").read_bytes()


def test_a_window_of_one_multiple_is_free_all_the_same(tmp_path: Path) -> None:
    module = nn.Sequential(UNet(2, 1, 3, (4, 8), (2,)), nn.Softmax(1)).eval()
    made = export_onnx(module, 1, [32, 32], tmp_path / "m.onnx")
    assert made.dynamic_axes == ["batch", "i", "j"]
    assert made.size_multiple == 32


def test_classification(tmp_path: Path) -> None:
    network = ResNet("basic", [1, 1, 1, 1], [4, 4, 8, 8], spatial_dims=2, n_input_channels=1, num_classes=2)
    made = export_onnx(nn.Sequential(network, nn.Softmax(1)), 1, [28, 28], tmp_path / "m.onnx")
    assert "batch" in made.dynamic_axes
    assert run(tmp_path / "m.onnx", torch.zeros(5, 1, 28, 28)).shape == (5, 2)


def test_position_embeddings_fix_the_size(tmp_path: Path) -> None:
    network = UNETR(1, 2, (16, 16, 16), feature_size=2, hidden_size=12, mlp_dim=16, num_heads=2)
    made = export_onnx(nn.Sequential(network, nn.Softmax(1)), 1, [16, 16, 16], tmp_path / "m.onnx")
    assert made.dynamic_axes == ["batch"]
    assert made.size_multiple == 1


def test_the_older_exporter_takes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.onnx.export

    def export(*args, dynamo: bool, **options):
        if dynamo:
            raise RuntimeError("numpy() is not supported for tensor subclasses")
        return real(*args, dynamo=dynamo, **options)

    monkeypatch.setattr(torch.onnx, "export", export)
    made = export_onnx(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Softmax(1)), 1, [8, 8], tmp_path / "m.onnx")
    assert made.exporter == "torchscript"
    assert run(tmp_path / "m.onnx", torch.zeros(3, 1, 24, 16)).shape == (3, 2, 24, 16)


class Unexportable(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.fft.fft(x).real.histc().sum()


def test_what_can_not_be_exported_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(MedlightError, match=r"can't be exported to ONNX: dynamo.*torchscript"):
        export_onnx(Unexportable(), 1, [8, 8], tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_absent_package_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match=r"onnxscript is not installed; mend: pip install 'medlight\[onnx\]'"):
        export_onnx(nn.Identity(), 1, [8, 8], tmp_path / "m.onnx")


def test_the_multiple_divides_every_side() -> None:
    assert [size_multiple(w) for w in ([40, 56, 40], [96, 96, 96], [28, 28], [15, 8], [64, 32, 1])] == [8, 32, 4, 1, 1]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # SwinUNETR takes minutes to export
@pytest.mark.parametrize("name", ZOO)
def test_every_network_has_its_free_sizes_and_says_what_torch_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example, file = ZOO[name], tmp_path / "m.onnx"
    if not example.fixed:
        monkeypatch.setattr(onnx_export, "_SYMBOLIC_SECONDS", 900)  # how busy the machine is must not decide
    module, channels, window = example.module(), len(example.channels), example.window
    made = export_onnx(module, channels, window, file)
    assert made.dynamic_axes == example.free_axes
    assert made.size_multiple == (1 if example.fixed else size_multiple(window))
    sizes = [(1, window), (2, window)]
    if not example.fixed:
        sizes.append((1, [side + made.size_multiple * (axis == 0) for axis, side in enumerate(window)]))
    runtimes = [OnnxSession(file, 1), OpenVinoSession(file, "fp32", 1)]
    for batch, size in sizes:
        image = torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(7))
        with torch.no_grad():
            expected = module(image).numpy()
        for session in runtimes:
            np.testing.assert_allclose(session(image.numpy()), expected, atol=1e-4, rtol=0, err_msg=session.reason)


def test_files_pass_onnx_own_check(tmp_path: Path) -> None:
    export_onnx(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Softmax(1)), 1, [8, 8], tmp_path / "m.onnx")
    onnx.checker.check_model(tmp_path / "m.onnx", full_check=True)
