"""Engines: built for real by TensorRT for RTX, which needs no GPU; run only where there is one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from monai.networks.nets import UNet
from onnx import TensorProto as T
from onnx import helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from torch import nn

from medlight.deploy import tensorrt
from medlight.deploy.half import to_fp16
from medlight.deploy.onnx_export import export_onnx
from medlight.deploy.quantise import quantise
from medlight.deploy.zoo import ZOO
from medlight.errors import MedlightError, UsageError

PROFILE = {"image": ((1, 1, 8, 8, 8), (1, 1, 16, 16, 16), (2, 1, 24, 24, 24))}
LARGE = {"image": ((1, 1, 32, 32, 32), (1, 1, 32, 32, 32), (1, 1, 64, 64, 64))}


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
def half_file(onnx_file: Path) -> Path:
    to_fp16(onnx_file, onnx_file.with_name("half.onnx"))
    return onnx_file.with_name("half.onnx")


@pytest.fixture(scope="module")
def batches() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.normal(size=(1, 1, 16, 16, 16)).astype(np.float32) for _ in range(2)]


@pytest.fixture(scope="module")
def int8_file(onnx_file: Path, batches: list[np.ndarray]) -> Path:
    assert quantise(onnx_file, onnx_file.with_name("int8.onnx"), batches).nodes > 0
    return onnx_file.with_name("int8.onnx")


def build(file: Path, profiles=PROFILE, target: str | list[str] = "SM86", **options) -> bytes:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    targets = [target] if isinstance(target, str) else target
    plan = tensorrt.build(file, profiles, packages=("tensorrt_rtx",), compute_capabilities=targets, **options)
    assert plan[:4] == b"vtrt"
    assert len(plan) > 10_000
    return plan


def one_node(path: Path, nodes: list, inputs: dict, outputs: dict, weights: list) -> Path:
    def described(values: dict) -> list:
        return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in values.items()]

    graph = helper.make_graph(nodes, "graph", described(inputs), described(outputs), weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_engine_of_each_precision_for_several_gpus(
    precision: str, onnx_file: Path, half_file: Path, int8_file: Path
) -> None:
    file = {"fp32": onnx_file, "fp16": half_file, "int8": int8_file}[precision]
    build(file, target=["SM80", "SM86", "SM89", "SM120"])


def test_several_profiles(onnx_file: Path) -> None:
    assert len(build(onnx_file, [PROFILE, LARGE])) > 1.5 * len(build(onnx_file))  # kernels for both


def test_an_older_gpu_takes_half_precision_only(onnx_file: Path, half_file: Path) -> None:
    with pytest.raises(MedlightError, match=r"can't build the engine: .*3D convolution"):
        build(onnx_file, target="SM75")
    build(half_file, target="SM75")


def test_a_missing_profile_and_an_unknown_target_are_refused(onnx_file: Path) -> None:
    with pytest.raises(UsageError, match="'image' has free sizes"):
        build(onnx_file, {})
    with pytest.raises(UsageError, match=r"SM12345.*SM86"):
        build(onnx_file, target="SM12345")


def test_a_profile_that_can_not_be_is_refused(onnx_file: Path) -> None:
    smallest, best, largest = PROFILE["image"]
    with pytest.raises(MedlightError, match="image"):
        build(onnx_file, {"image": (largest, best, smallest)})


def test_what_needs_more_memory_than_it_may_have_is_not_built(onnx_file: Path) -> None:
    with pytest.raises(MedlightError, match=r"workspace.*; mend: allow a larger --workspace$"):
        build(onnx_file, LARGE, workspace=1 << 10)


def test_what_is_no_graph_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"not a graph")
    with pytest.raises(MedlightError, match=r"model\.onnx: TensorRT can't read the graph"):
        build(file)


def test_a_graph_that_is_read_may_not_be_built(tmp_path: Path) -> None:
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "overlap"], ["picked"])
    weights = [helper.make_tensor("most", T.INT64, [1], [3]), helper.make_tensor("overlap", T.FLOAT, [1], [0.5])]
    inputs = {"boxes": (T.FLOAT, [1, 8, 4]), "scores": (T.FLOAT, [1, 1, 8])}
    file = one_node(tmp_path / "m.onnx", [node], inputs, {"picked": (T.INT64, ["n", 3])}, weights)
    with pytest.raises(MedlightError, match="can't build the engine"):
        build(file, {})


@pytest.mark.parametrize(
    "kind", ["FLOAT16", pytest.param("BFLOAT16", marks=pytest.mark.xfail(raises=MedlightError, strict=True))]
)
def test_deconvolution_in_3d(kind: str, tmp_path: Path) -> None:
    """Of bfloat16 TensorRT says "Could not infer output types"; once it builds, TensorRT can be offered bf16."""
    half = getattr(T, kind)
    nodes = [
        helper.make_node("Cast", ["image"], ["narrow"], to=half),
        helper.make_node("Cast", ["weight"], ["kernel"], to=half),
        helper.make_node("ConvTranspose", ["narrow", "kernel"], ["wide"], strides=[2, 2, 2]),
        helper.make_node("Cast", ["wide"], ["probabilities"], to=T.FLOAT),
    ]
    inputs = {"image": (T.FLOAT, [1, 1, 8, 8, 8])}
    outputs = {"probabilities": (T.FLOAT, [1, 2, 16, 16, 16])}
    weights = [helper.make_tensor("weight", T.FLOAT, [1, 2, 2, 2, 2], np.ones(16))]
    build(one_node(tmp_path / "m.onnx", nodes, inputs, outputs, weights), {})


def test_quantised_biases_are_refused(onnx_file: Path, batches: list[np.ndarray], tmp_path: Path) -> None:
    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self):
            return next(({"image": batch} for batch in self.left), None)

    quantize_static(onnx_file, tmp_path / "m.onnx", Reader(), quant_format=QuantFormat.QDQ)
    with pytest.raises(MedlightError, match="TensorRT can't"):
        build(tmp_path / "m.onnx")


def test_timings_are_kept_and_what_is_no_timing_cache_is_begun_anew(onnx_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "cache" / "timings"
    build(onnx_file, timing_cache=file)
    kept = file.read_bytes()
    assert kept
    build(onnx_file, timing_cache=file)
    assert file.read_bytes() == kept  # TensorRT for RTX measures nothing: its cache is a header
    file.write_bytes(b"something else")
    build(onnx_file, timing_cache=file)
    assert file.read_bytes() == kept
    assert [f.name for f in file.parent.iterdir()] == ["timings"]
    with pytest.raises(MedlightError):
        build(onnx_file, LARGE, workspace=1 << 10, timing_cache=file.with_name("none"))
    assert not file.with_name("none").exists()


@pytest.mark.parametrize("flag", ["version_compatible", "hardware_compatible"])
def test_what_rtx_has_not_is_refused(onnx_file: Path, flag: str) -> None:
    with pytest.raises(UsageError, match=r"compatible engines are made with tensorrt only.*; mend: "):
        build(onnx_file, **{flag: True})


def test_absent_packages_name_their_extra() -> None:
    with pytest.raises(UsageError, match=r"medlight\[no-such\]"):
        tensorrt.find(("no_such",))  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_an_engine_is_not_run_and_not_told_of(onnx_file: Path, tmp_path: Path) -> None:
    plan = build(onnx_file)
    with pytest.raises(
        MedlightError,
        match=r"does not load on this machine: .*CUDA driver.*; mend: run it where there is a CUDA device",
    ):
        tensorrt.Engine(plan, ("tensorrt_rtx",))
    said = tensorrt.write_report(plan, tmp_path / "report.json", ("tensorrt_rtx",))
    assert said is not None
    assert said.startswith("no report of the engine's layers: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(1800)  # SwinUNETR takes minutes to export
@pytest.mark.parametrize("name", ZOO)
def test_every_network_is_built(name: str, tmp_path: Path) -> None:
    example = ZOO[name]
    source, half, int8 = (tmp_path / f"{kind}.onnx" for kind in ("fp32", "fp16", "int8"))
    export_onnx(example.module(), len(example.channels), example.window, source)
    shapes = [(batch, len(example.channels), *example.window) for batch in (1, 1, 4)]
    profile = {"image": (shapes[0], shapes[1], shapes[2])}
    build(source, profile)
    images = [np.random.default_rng(0).normal(size=shapes[0]).astype(np.float32)]
    to_fp16(source, half, images)
    build(half, profile)
    quantise(source, int8, images)
    build(int8, profile)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_engine_gives_what_torch_gives(onnx_file: Path, network: nn.Module, tmp_path: Path) -> None:
    plan = tensorrt.build(onnx_file, [PROFILE, LARGE], timing_cache=tmp_path / "timings")
    engine = tensorrt.Engine(plan)
    for size in (8, 16, 24, 48, 16):
        image = torch.randn(1, 1, size, size, size)
        with torch.no_grad():
            expected = network(image)
        torch.testing.assert_close(engine(image=image.cuda())["probabilities"].cpu(), expected, atol=1e-4, rtol=0)
    with pytest.raises(MedlightError, match="takes no image of shape"):
        engine(image=torch.zeros(1, 1, 128, 128, 128).cuda())
    assert tensorrt.write_report(plan, tmp_path / "report.json") is None
    assert json.loads((tmp_path / "report.json").read_text())["Layers"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precisions_are_close(
    precision: str, network: nn.Module, half_file: Path, int8_file: Path, batches: list[np.ndarray]
) -> None:
    file, close = {"fp16": (half_file, 5e-3), "int8": (int8_file, 0.1)}[precision]
    session = tensorrt.EngineSession(tensorrt.build(file, PROFILE), ("tensorrt", "tensorrt_rtx"))
    with torch.no_grad():
        expected = network(torch.from_numpy(batches[0])).numpy()
    np.testing.assert_allclose(session(batches[0]), expected, atol=close)
