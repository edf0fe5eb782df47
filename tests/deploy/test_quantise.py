"""INT8 graphs: their numbers against numpy, their runtimes against each other, and what they leave behind."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.networks.nets import DynUNet, ResNet, UNet
from onnx import numpy_helper
from torch import nn

from medlight.deploy import qdq, tensorrt
from medlight.deploy.onnx_export import export_onnx
from medlight.deploy.quantise import layers, quantise, quantise_within, sensitive_layers
from medlight.deploy.runtime.session import OpenVinoSession
from medlight.errors import MedlightError, UsageError
from tests.deploy import small_graphs

QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SIZES = {"unet": (1, 16, 16, 16), "dynunet": (1, 16, 16, 16), "resnet": (3, 32, 32)}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    match name:
        case "unet":
            return UNet(3, 1, 3, (4, 8, 8), (2, 2), num_res_units=1)
        case "dynunet":
            return DynUNet(3, 1, 3, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 8], res_block=True)
    return ResNet("basic", [2, 2, 2, 2], [8, 8, 16, 16], spatial_dims=2, n_input_channels=3, num_classes=4)


def batches(shape: tuple[int, ...], count: int = 3, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(0, 1 + index, (1, *shape)).astype(np.float32) for index in range(count)]


@pytest.fixture(scope="module", params=list(SIZES))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[int, ...]]:
    size = SIZES[request.param]
    file = tmp_path_factory.mktemp(request.param) / "model.onnx"
    export_onnx(nn.Sequential(network(request.param), nn.Softmax(1)).eval(), size[0], list(size[1:]), file)
    return file, size


def run(file: Path, image: np.ndarray, exact: bool = False) -> np.ndarray:
    """Run in onnxruntime; ``exact`` leaves its own INT8 kernels out: each Q/DQ node is computed as it is written."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    if exact:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(file, options).run(None, {"image": image})[0]


def run_openvino(file: Path, image: np.ndarray) -> np.ndarray:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    core = openvino.Core()
    model = core.read_model(file)
    model.reshape({"image": list(image.shape)})
    return np.array(core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(image)[0])


def weights_of(file: Path) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, int]]:
    """For each layer in INT8: its integers, scales, zero points and the axis of its channels, read off the file."""
    model = onnx.load(file)
    made = {name: node for node in model.graph.node for name in node.output}
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        source = made.get(node.input[1]) if node.op_type in qdq.LAYERS else None
        if source is not None and source.op_type == "DequantizeLinear":
            axis = next((attribute.i for attribute in source.attribute if attribute.name == "axis"), 1)
            found[node.name] = (*(known[name] for name in source.input), axis)
    return found


def check_weights(source: Path, out: Path) -> int:
    """Each weight is its integer times its channel's scale, to half a step; returns how many layers were looked at."""
    model = onnx.load(source)
    original = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    of_layer = {node.name: original.get(node.input[1]) for node in model.graph.node if node.op_type in qdq.LAYERS}
    found = weights_of(out)
    for name, (integers, scale, zero, axis) in found.items():
        weight = of_layer[name]
        assert weight is not None
        shape = [1] * weight.ndim
        shape[axis] = -1
        assert integers.dtype == np.int8
        assert not zero.any()  # TensorRT takes no other
        assert scale.shape == (weight.shape[axis],)
        error = np.abs(weight.astype(np.float64) - integers.astype(np.float64) * scale.reshape(shape))
        assert (error <= 0.5 * scale.reshape(shape) * (1 + 1e-5)).all()
        largest = np.abs(weight).max(axis=tuple(a for a in range(weight.ndim) if a != axis))
        np.testing.assert_allclose(scale[largest > 1e-30], largest[largest > 1e-30] / 127, rtol=1e-6)
    return len(found)


def test_weights_are_those_of_the_network_to_half_a_step(exported, tmp_path: Path) -> None:
    source, size = exported
    done = quantise(source, tmp_path / "int8.onnx", batches(size))
    assert done.nodes == len(layers(source)) == check_weights(source, tmp_path / "int8.onnx")
    assert done.kept == []


@QUICK
@given(
    op=st.sampled_from(["Conv", "ConvTranspose"]),
    dims=st.integers(2, 3),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.sampled_from([1, 2]),
    exponents=st.lists(st.integers(-6, 4), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
def test_any_weights_are_rounded_per_channel(tmp_path: Path, op, dims, channels, groups, exponents, seed) -> None:
    """Channels of very different size, and one of nothing but zeros."""
    given_, taken = channels
    shape = (given_ * groups, taken, *[2] * dims)
    weight = np.random.default_rng(seed).normal(size=shape)
    axis = 0 if op == "Conv" else 1
    factors = 10.0 ** np.resize(exponents, shape[axis])
    factors[-1] = 0
    weight = weight * factors.reshape([-1 if a == axis else 1 for a in range(weight.ndim)])
    source = small_graphs.layer(tmp_path / "one.onnx", weight, op, groups)
    inputs = shape[0] if op == "ConvTranspose" else taken * groups
    image = batches((inputs, *[4] * dims), 1)
    quantise(source, tmp_path / "int8.onnx", image)
    assert check_weights(source, tmp_path / "int8.onnx") == 1
    assert np.isfinite(run(tmp_path / "int8.onnx", image[0])).all()


def test_the_range_of_the_input_is_the_largest_of_all_batches(exported, tmp_path: Path) -> None:
    """Ranges of a few batches only would be those of the last ones."""
    source, size = exported
    patches = batches(size, 4)
    patches[1][0, 0].flat[5] = -100.0
    quantise(source, tmp_path / "int8.onnx", patches)
    model = onnx.load(tmp_path / "int8.onnx")
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    first = [node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "image"]
    assert [float(known[node.input[1]]) for node in first] == pytest.approx([100 / 127])


def test_only_standard_operators_and_no_integer_biases(exported, tmp_path: Path) -> None:
    source, size = exported
    quantise(source, tmp_path / "int8.onnx", batches(size))
    model = onnx.load(tmp_path / "int8.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert {tensor.data_type for tensor in model.graph.initializer}.isdisjoint({onnx.TensorProto.INT32})
    assert (tmp_path / "int8.onnx").stat().st_size < source.stat().st_size


def test_onnxruntime_and_openvino_say_the_same(exported, tmp_path: Path) -> None:
    """Rounding the other way at one step goes on through the network, so they differ, but by less than INT8 does."""
    source, size = exported
    patches = batches(size, 3)
    quantise(source, tmp_path / "int8.onnx", patches)
    exact = run(source, patches[1])
    one, two = run(tmp_path / "int8.onnx", patches[1]), run_openvino(tmp_path / "int8.onnx", patches[1])
    assert np.abs(one - exact).mean() < 0.03
    assert np.abs(two - exact).mean() < 0.03
    assert np.abs(one - two).mean() < 0.03


def test_tensorrt_builds_it(exported, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    source, size = exported
    quantise(source, tmp_path / "int8.onnx", batches(size))
    profile = {"image": ((1, *size), (1, *size), (2, *size))}
    options = {"packages": ("tensorrt_rtx",), "compute_capabilities": ["SM86"]}
    assert tensorrt.build(tmp_path / "int8.onnx", profile, **options)[:4] == b"vtrt"


@pytest.mark.parametrize("between", [(), ("Relu",), ("Mul", "Add"), ("Mul", "Relu"), ("Identity",)])
def test_openvino_is_right_behind_a_concat(tmp_path: Path, between: tuple[str, ...]) -> None:
    source = small_graphs.skip(tmp_path / "skip.onnx", between)
    patches = batches((4, 8, 8, 8), 2)
    quantise(source, tmp_path / "int8.onnx", patches)
    exact = run(tmp_path / "int8.onnx", patches[1], exact=True)
    for found in (run_openvino(tmp_path / "int8.onnx", patches[1]), run(tmp_path / "int8.onnx", patches[1])):
        assert np.abs(found - exact).max() < 0.02 * np.abs(exact).max()


def test_the_next_run_leaves_a_result_alone(exported) -> None:
    file, shape = exported
    session = OpenVinoSession(file, "fp32", 1)
    first, second = batches(shape, 2)
    found = session(first)
    kept = found.copy()
    session(second)
    np.testing.assert_array_equal(found, kept)


def test_openvino_still_needs_the_clip_behind_a_concat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where this fails OpenVINO was mended, and the Clip can go."""
    monkeypatch.setattr(qdq, "_hold_after_concat", lambda model: None)
    source = small_graphs.skip(tmp_path / "skip.onnx")
    patches = batches((4, 8, 8, 8), 2)
    quantise(source, tmp_path / "int8.onnx", patches)
    exact = run(tmp_path / "int8.onnx", patches[1], exact=True)
    assert np.abs(run_openvino(tmp_path / "int8.onnx", patches[1]) - exact).max() > 0.05 * np.abs(exact).max()


def test_the_same_input_gives_the_same_bytes(exported, tmp_path: Path) -> None:
    source, size = exported
    for name in ("one", "two"):
        quantise(source, tmp_path / name, batches(size))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_another_process_gives_the_same_bytes(tmp_path: Path) -> None:
    """Sets of strings come in another order there."""
    source = small_graphs.skip(tmp_path / "skip.onnx")
    quantise(source, tmp_path / "here", batches((4, 8, 8, 8)))
    code = """
import sys
from pathlib import Path
from medlight.deploy.quantise import quantise
from tests.deploy.test_quantise import batches
quantise(Path(sys.argv[1]), Path(sys.argv[2]), batches((4, 8, 8, 8)))
"""
    env = os.environ | {"PYTHONHASHSEED": "7"}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, source, tmp_path / "there"], check=True, cwd=root, env=env)
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()


def test_nothing_is_left_behind_and_nothing_is_said(tmp_path: Path, monkeypatch, capfd) -> None:
    scratch, work = tmp_path / "scratch", tmp_path / "work"
    scratch.mkdir()
    work.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.chdir(work)
    handlers = list(logging.root.handlers)
    source = small_graphs.skip(work / "skip.onnx")
    quantise(source, work / "int8.onnx", batches((4, 8, 8, 8)))
    sensitive_layers(source, batches((4, 8, 8, 8)))
    assert {file.name for file in work.iterdir()} == {"skip.onnx", "int8.onnx"}
    assert list(scratch.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert logging.root.handlers == handlers
    assert logging.root.manager.disable == logging.NOTSET


def test_kept_layers_stay_as_they_are(exported, tmp_path: Path) -> None:
    source, size = exported
    names = layers(source)
    done = quantise(source, tmp_path / "some.onnx", batches(size), keep=names[1:3])
    assert (done.nodes, done.kept) == (len(names) - 2, names[1:3])
    assert set(weights_of(tmp_path / "some.onnx")) == set(names) - set(names[1:3])
    done = quantise(source, tmp_path / "none.onnx", batches(size), keep=names)
    assert done.nodes == 0
    patch = batches(size)[0]
    assert np.array_equal(run(tmp_path / "none.onnx", patch), run(source, patch))


def test_patches_of_nothing_but_zeros_give_a_graph_that_runs(tmp_path: Path) -> None:
    source = small_graphs.skip(tmp_path / "skip.onnx")
    zeros = np.zeros((1, 4, 8, 8, 8), np.float32)
    quantise(source, tmp_path / "int8.onnx", [zeros])
    for runtime in (run, run_openvino):
        assert np.isfinite(runtime(tmp_path / "int8.onnx", zeros)).all()
        assert np.isfinite(runtime(tmp_path / "int8.onnx", zeros + 1)).all()


def test_what_can_not_be_calibrated_is_refused(tmp_path: Path) -> None:
    source, out = small_graphs.skip(tmp_path / "skip.onnx"), tmp_path / "int8.onnx"
    good = batches((4, 8, 8, 8), 1)
    with pytest.raises(UsageError, match="no batches"):
        quantise(source, out, [])
    with pytest.raises(MedlightError, match="not finite"):
        quantise(source, out, [good[0], np.full_like(good[0], np.nan)])
    with pytest.raises(MedlightError, match=r"a batch of shape \(1, 3, 8, 8, 8\) does not run"):
        quantise(source, out, batches((3, 8, 8, 8), 1))
    with pytest.raises(UsageError, match="has no layer 'third'; mend: one of first, second"):
        quantise(source, out, good, keep=["third"])
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(MedlightError, match=r"text\.onnx: not an ONNX graph"):
        quantise(tmp_path / "text.onnx", out, good)
    huge = small_graphs.layer(tmp_path / "huge.onnx", np.full((1, 1, 1, 1), 3e38))
    with pytest.raises(MedlightError, match="is not finite on the calibration patches"):
        quantise(huge, out, batches((1, 4, 4), 1))
    relu = small_graphs.save(
        tmp_path / "relu.onnx", [onnx.helper.make_node("Relu", ["image"], ["probabilities"])], {}, 1, 2
    )
    with pytest.raises(MedlightError, match="no layer that could be INT8"):
        quantise(relu, out, batches((1, 4, 4), 1))
    assert not out.exists()


def fragile(tmp_path: Path, which: int, count: int = 6) -> Path:
    """A chain of layers of which one weighs a channel that is always 0 by 100: its other weights all round to 0."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(0, 0.5, (4, 4, 1, 1)) for _ in range(count)]
    weights[which - 1][1] = 0.0
    weights[which] = np.abs(weights[which]).clip(0.05, 0.35)
    weights[which][:, 1] = 100.0
    return small_graphs.chain(tmp_path / "chain.onnx", weights)


def test_errors_of_layers_are_those_of_a_graph_with_that_layer_alone(tmp_path: Path) -> None:
    source = fragile(tmp_path, 3)
    patches = batches((4, 8, 8), 2)
    found = sensitive_layers(source, patches)
    assert found[0].node == "layer3"
    assert found[0].error > 5 * found[1].error
    assert sorted(layer.node for layer in found) == layers(source)
    assert [layer.error for layer in found] == sorted((layer.error for layer in found), reverse=True)
    for layer in found[:2]:
        quantise(source, tmp_path / "one.onnx", patches, keep=[n for n in layers(source) if n != layer.node])
        errors = [np.abs(run(tmp_path / "one.onnx", p) - run(source, p)).mean() for p in patches]
        assert layer.error == pytest.approx(np.mean(errors), rel=1e-4)
    limit = found[1].error
    assert sensitive_layers(source, patches, tolerance=limit) == found[:1]


@QUICK
@given(needed=st.integers(0, 9), count=st.integers(4, 9))
def test_as_few_layers_as_it_takes_stay_in_fp32(tmp_path: Path, needed: int, count: int) -> None:
    """A score that falls below the limit once ``needed`` layers are kept; bisection finds just that number."""
    source, out = fragile(tmp_path, 1, count), tmp_path / "within.onnx"
    patches = batches((4, 4, 4), 1)
    calls = []

    def score(file: Path) -> float:
        calls.append(count - len(weights_of(file)))
        return 1.0 if calls[-1] >= needed else 2.0

    if needed > int(0.75 * count):
        with pytest.raises(MedlightError, match=r"loses 2, and 2 with .* the limit is 1; mend"):
            quantise_within(source, out, patches, score, 1.0)
        assert not out.exists()
        return
    done = quantise_within(source, out, patches, score, 1.0)
    assert len(done.kept) == needed
    assert count - len(weights_of(out)) == needed
    assert len(calls) <= 2 + np.ceil(np.log2(count))
    worst = [layer.node for layer in sensitive_layers(source, patches)[:needed]]
    assert set(done.kept) == set(worst)


def test_a_real_score_decides(tmp_path: Path) -> None:
    source, out = fragile(tmp_path, 2), tmp_path / "within.onnx"
    patches = batches((4, 8, 8), 2)

    def score(file: Path) -> float:
        return float(np.mean([np.abs(run(file, p) - run(source, p)).mean() for p in patches]))

    quantise(source, out, patches)
    everything = score(out)
    done = quantise_within(source, out, patches, score, everything / 2)
    assert done.kept == ["layer2"]
    assert score(out) <= everything / 2


def test_a_score_that_is_no_number_does_not_pass(tmp_path: Path) -> None:
    with pytest.raises(MedlightError, match="loses nan"):
        quantise_within(
            fragile(tmp_path, 2), tmp_path / "out.onnx", batches((4, 8, 8), 1), lambda file: float("nan"), 1
        )
