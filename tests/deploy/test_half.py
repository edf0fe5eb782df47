"""Graphs in half precision: they load everywhere, and say nearly the same."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from medlight import tasks
from medlight.data import Patch, ScanDataModule
from medlight.deploy import tensorrt
from medlight.deploy.half import to_fp16
from medlight.deploy.onnx_export import export_onnx
from medlight.deploy.runtime.sliding import fitted
from medlight.errors import MedlightError
from medlight.prepare import ImageFolders, Preparation, RandomSplit, ZScore
from medlight.prepare.normalise import normaliser_from
from medlight.tasks import SegmentationTask
from tests.deploy import trained

WINDOW = [32, 48, 32]
CLOSE = 2e-3  # of probabilities


def run(path: Path, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})[0]


def run_exactly(path: Path, image: np.ndarray) -> np.ndarray:
    """Run by ONNX's own reference: onnxruntime on a CPU passes over float16 between its kernels."""
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(onnx.load(path)).run(None, {"image": image})[0]


def run_openvino(path: Path, image: np.ndarray) -> np.ndarray:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(str(path), "CPU", options)(image)[0]


def kinds(path: Path) -> dict[str, int]:
    """Return the element types of what nodes of each operator give: ``Conv -> {FLOAT16}`` and so on."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    types = {v.name: v.type.tensor_type.elem_type for v in [*model.graph.value_info, *model.graph.output]}
    found = collections.defaultdict(set)
    for node in model.graph.node:
        found[node.op_type] |= {onnx.TensorProto.DataType.Name(types[name]) for name in node.output}
    return dict(found)


class Net(nn.Module):
    """Convolutions, a written-out instance normalisation, and the scanner's own values at the entrance."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.first, self.last = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 2, 1)
        self.gain = gain

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        image = (image.clamp(-1000.0, 3000.0) - 1000.0) / 500.0
        found = self.first(image) * self.gain
        found = found - found.mean((2, 3, 4), keepdim=True)
        found = found * torch.rsqrt((found * found).mean((2, 3, 4), keepdim=True) + 1e-5)
        return self.last(found.relu()).softmax(1)


@pytest.fixture
def scan() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1000, 3000, (2, 1, 16, 16, 16)).astype(np.float32)


def exported(network: nn.Module, path: Path) -> Path:
    torch.manual_seed(0)
    export_onnx(network.eval(), 1, [16, 16, 16], path)
    return path


def test_products_are_in_half_precision_and_sums_are_not(tmp_path: Path, scan: np.ndarray) -> None:
    torch.manual_seed(0)
    source = exported(Net(), tmp_path / "m.onnx")
    assert to_fp16(source, tmp_path / "half.onnx") == 2
    found = kinds(tmp_path / "half.onnx")
    assert found["Conv"] == found["Relu"] == {"FLOAT16"}
    assert found["ReduceMean"] == found["Softmax"] == found["Sub"] == {"FLOAT"}
    model = onnx.load(tmp_path / "half.onnx")
    for value in (model.graph.input[0], model.graph.output[0]):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    expected = run(source, scan)
    np.testing.assert_allclose(run(tmp_path / "half.onnx", scan), expected, atol=CLOSE)
    np.testing.assert_allclose(run_openvino(tmp_path / "half.onnx", scan), expected, atol=CLOSE)


def test_what_would_overflow_stays_in_float32(tmp_path: Path, scan: np.ndarray) -> None:
    torch.manual_seed(0)
    network = Net()
    network.first.weight.data *= 1e5
    source = exported(network, tmp_path / "m.onnx")
    assert to_fp16(source, tmp_path / "blind.onnx") == 2
    small = scan[:1, :, :8, :8, :8]
    assert np.isnan(run_exactly(tmp_path / "blind.onnx", small)).any()
    assert to_fp16(source, tmp_path / "half.onnx", [scan]) == 1
    np.testing.assert_allclose(run_exactly(tmp_path / "half.onnx", small), run_exactly(source, small), atol=CLOSE)
    network.first.weight.data *= 1e3  # beyond float16's range by themselves
    assert to_fp16(exported(network, tmp_path / "m.onnx"), tmp_path / "half.onnx") == 1


def test_a_graph_without_products_is_refused(tmp_path: Path) -> None:
    source = exported(nn.Sequential(nn.AvgPool3d(3, 1, 1), nn.Softmax(1)), tmp_path / "m.onnx")
    with pytest.raises(MedlightError, match=r"m\.onnx: nothing of this graph can be in float16"):
        to_fp16(source, tmp_path / "half.onnx")
    assert not (tmp_path / "half.onnx").exists()


@pytest.mark.slow
def test_a_trained_network_on_real_patches(data_root: Path, tmp_path: Path) -> None:
    made = _hippocampus(data_root / "hippocampus", tmp_path)
    task = tasks.load(made.checkpoint)
    source, half = tmp_path / "model.onnx", tmp_path / "model_fp16.onnx"
    export_onnx(task.deployable(), 1, WINDOW, source)
    patches = _patches(task, made.cases[:8])
    assert to_fp16(source, half, [patches]) == 16  # every one of them
    expected = run(source, patches)
    assert (expected.argmax(1) > 0).mean() > 0.02  # it has learnt something
    np.testing.assert_allclose(run(half, patches), expected, atol=CLOSE)
    np.testing.assert_allclose(run_openvino(half, patches), expected, atol=CLOSE)
    rounded = _as_a_gpu_rounds(task.deployable(), patches)
    np.testing.assert_allclose(rounded, expected, atol=5e-3)  # a voxel at a border; by far most are closer
    assert np.abs(rounded - expected).mean() < 1e-4
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    targets = ["SM75", "SM86", "SM89", "SM120"]
    shapes = {"image": ((1, 1, *WINDOW), (1, 1, *WINDOW), (4, 1, *WINDOW))}
    assert len(tensorrt.build(half, shapes, packages=("tensorrt_rtx",), compute_capabilities=targets)) > 100_000


def _as_a_gpu_rounds(network: nn.Module, patches: np.ndarray) -> np.ndarray:
    """Run torch with convolutions whose weights, input and output are rounded to float16, and sums in float32."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            module.weight.data = module.weight.data.half().float()
            module.register_forward_pre_hook(lambda _, inputs: tuple(tensor.half().float() for tensor in inputs))
            module.register_forward_hook(lambda _, __, output: output.half().float())
    with torch.no_grad():
        return network(torch.from_numpy(patches)).numpy()


def _hippocampus(folder: Path, root: Path) -> trained.Trained:
    data = ScanDataModule(
        ImageFolders(str(folder / "images"), str(folder / "labels"), {1: "anterior", 2: "posterior"}),
        RandomSplit(val=0.1),
        Preparation(spacing=[1.0, 1.0, 1.0]),
        ZScore(),
        patch=Patch(WINDOW),
        store_dir=str(root / "store"),
    )
    network = {**trained.UNET, "init_args": {**trained.UNET["init_args"], "filters": [8, 16, 32]}}
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.02}}
    return trained.fit(SegmentationTask(network=network, optimizer=optimizer), data, root, steps=100)


def _patches(task, cases) -> np.ndarray:
    preparation, found = Preparation(**task.data["preparation"]), []
    for case in cases:
        prepared = preparation.prepare(case, [])
        scaling = normaliser_from(task.data["normalise"][0]).scaling(prepared.stats[0])
        found.append(fitted(scaling.apply(prepared.image[0])[None], WINDOW, [0.0]))
    return np.stack(found).astype(np.float32)
