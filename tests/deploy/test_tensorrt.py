"""Engines: built for real by TensorRT for RTX, which needs no GPU; run only where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.networks.nets import UNet
from torch import nn

from medlight.deploy import tensorrt
from medlight.deploy.onnx_export import export_onnx
from medlight.errors import MedlightError, UsageError

PROFILE = {"image": ((1, 1, 8, 8, 8), (1, 1, 16, 16, 16), (2, 1, 24, 24, 24))}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(UNet(3, 1, 2, (4, 8), (2,)), nn.Softmax(1)).eval()


@pytest.fixture(scope="module")
def onnx_file(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    assert export_onnx(network, 1, [16, 16, 16], path).dynamic_axes == ["batch", "i", "j", "k"]
    return path


@pytest.fixture(scope="module")
def rtx() -> tuple[str]:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    return ("tensorrt_rtx",)


def test_an_engine_is_built_without_a_gpu(onnx_file: Path, rtx) -> None:
    plan = tensorrt.build(onnx_file, PROFILE, packages=rtx, compute_capabilities=["SM86", "SM89"])
    assert plan[:4] == b"vtrt"
    assert len(plan) > 10_000


def test_a_missing_profile_and_an_unknown_target_are_refused(onnx_file: Path, rtx) -> None:
    with pytest.raises(UsageError, match="'image' has free sizes"):
        tensorrt.build(onnx_file, {}, packages=rtx, compute_capabilities=["SM86"])
    with pytest.raises(UsageError, match=r"SM12345.*SM86"):
        tensorrt.build(onnx_file, PROFILE, packages=rtx, compute_capabilities=["SM12345"])


def test_a_failed_build_is_an_error_with_a_reason(onnx_file: Path, rtx) -> None:
    with pytest.raises(MedlightError, match=r"can't build the engine: .+"):
        tensorrt.build(onnx_file, PROFILE, packages=rtx, compute_capabilities=["SM75"])  # no fp32 3D convolution


def test_what_is_no_graph_is_an_error(tmp_path: Path, rtx) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"not a graph")
    with pytest.raises(MedlightError, match=r"model\.onnx: TensorRT can't read the graph"):
        tensorrt.build(file, PROFILE, packages=rtx, compute_capabilities=["SM86"])


def test_absent_packages_name_their_extra() -> None:
    with pytest.raises(UsageError, match=r"medlight\[no-such\]"):
        tensorrt.find(("no_such",))  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_engine_gives_what_torch_gives(onnx_file: Path, network: nn.Module) -> None:
    engine = tensorrt.Engine(tensorrt.build(onnx_file, PROFILE))
    for size in (8, 16, 24):
        image = torch.randn(2, 1, size, size, size)
        with torch.no_grad():
            expected = network(image)
        torch.testing.assert_close(engine(image=image.cuda())["probabilities"].cpu(), expected, atol=2e-3, rtol=0)
