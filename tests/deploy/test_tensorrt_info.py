"""Engines that don't fit are built again; providers that are not there are not passed over."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from medlight.deploy import tensorrt
from medlight.deploy.onnx_export import export_onnx
from medlight.deploy.runtime.session import OnnxSession
from medlight.deploy.tensorrt import EngineInfo, Machine
from medlight.errors import MedlightError

PROFILE = {"image": ((1, 1, 8, 8), (1, 1, 16, 16), (2, 1, 24, 24))}
HERE = Machine("tensorrt", "10.16.1", "SM89", "Linux-x86_64")


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Softmax(1)).eval(), 1, [16, 16], path)
    return path


def test_a_record_survives_json() -> None:
    info = EngineInfo.of(HERE, [PROFILE], workspace=1 << 20, hardware_compatible=True)
    assert EngineInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info
    assert info.architectures == ["SM89"]


def test_an_engine_fits_what_it_was_built_for() -> None:
    info = EngineInfo.of(HERE, PROFILE)

    def said(info: EngineInfo, **changes) -> str | None:
        return info.misfit(dataclasses.replace(HERE, **changes))

    assert said(info) is None
    assert said(info, architecture="SM90") == "it was built for SM89, and this GPU is SM90"
    assert said(info, version="10.17.0") == "it was built by tensorrt 10.16.1, and 10.17.0 is here"
    assert said(info, system="Windows-AMD64") == "it was built on Linux-x86_64, and this is Windows-AMD64"
    assert said(info, package="tensorrt_rtx") == "it was built by tensorrt, and tensorrt_rtx is here"
    lasting = dataclasses.replace(info, version_compatible=True)
    assert said(lasting, version="10.17.0") is None
    assert said(lasting, version="10.15.9") is not None
    assert said(lasting, version="11.0.0") is not None
    wide = dataclasses.replace(info, hardware_compatible=True)
    assert said(wide, architecture="SM90") is said(wide, architecture="SM120") is None
    assert said(wide, architecture="SM75") is not None


def test_what_does_not_fit_is_built_again_and_kept(onnx_file: Path, tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    machine = Machine("tensorrt_rtx", trt.__version__, "SM86", HERE.system)
    engine = tmp_path / "model.engine"
    engine.write_bytes(tensorrt.build(onnx_file, PROFILE, packages=("tensorrt_rtx",), compute_capabilities=["SM86"]))
    info = EngineInfo.of(machine, PROFILE)
    fits = tensorrt.fitting(onnx_file, engine, info, machine)
    assert (fits.plan, fits.info, fits.note) == (engine.read_bytes(), info, None)
    other = dataclasses.replace(machine, architecture="SM120")
    cache = tmp_path / "cache"
    again = tensorrt.fitting(onnx_file, engine, info, other, cache=cache)
    assert again.plan[:4] == b"vtrt"
    assert again.plan != engine.read_bytes()
    assert again.info.architectures == ["SM120"]
    assert again.info.misfit(other) is None
    assert again.note == (
        "the TensorRT engine was built again from model.onnx: it was built for SM86, and this GPU is SM120"
    )
    kept = next(cache.iterdir())
    before = kept.stat().st_mtime_ns
    assert tensorrt.fitting(onnx_file, engine, info, other, cache=cache).plan == again.plan
    assert [file.stat().st_mtime_ns for file in cache.iterdir()] == [before]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_no_engine_to_load(onnx_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    info = EngineInfo.of(dataclasses.replace(HERE, package="tensorrt_rtx"), PROFILE)
    with pytest.raises(MedlightError, match="needs a CUDA device, and there is none; mend: run the bundle's ONNX"):
        tensorrt.load_or_rebuild(onnx_file, tmp_path / "model.engine", info)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_provider_that_is_not_there_is_said(
    onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(MedlightError, match=r"has no TensorRT here \(it has CPUExecutionProvider.*; mend"):
        OnnxSession(onnx_file, 1, tensorrt="fp32")
    said = capfd.readouterr()
    assert said.out + said.err == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_cuda_that_does_not_load_is_said(
    onnx_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """onnxruntime-gpu names CUDA on a machine without it, runs on the CPU and says nothing."""
    version = onnxruntime.__version__
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    plain = OnnxSession(onnx_file, 2)
    assert plain.reason == f"onnxruntime {version} on the CPU with 2 threads (this onnxruntime has no CUDA)"
    built = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: built)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = OnnxSession(onnx_file, 1)
    assert session.reason == f"onnxruntime {version} on the CPU with 1 thread (CUDA did not load)"
    image = np.zeros((1, 1, 16, 16), np.float32)
    np.testing.assert_array_equal(session(image), plain(image))
    said = capfd.readouterr()
    assert said.out + said.err == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_engine_of_another_gpu_is_built_again_and_runs(onnx_file: Path, tmp_path: Path) -> None:
    machine = Machine.here()
    (tmp_path / "model.engine").write_bytes(b"of another machine")
    for architecture in ("SM12", machine.architecture):  # the record says that it doesn't fit; TensorRT does
        info = EngineInfo.of(dataclasses.replace(machine, architecture=architecture), PROFILE)
        engine, found = tensorrt.load_or_rebuild(onnx_file, tmp_path / "model.engine", info)
        assert "built again" in (found.note or "")
        assert engine(image=torch.zeros(1, 1, 16, 16).cuda())["probabilities"].shape == (1, 2, 16, 16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("tensorrt", "said"), [("fp32", "with TensorRT"), (None, "on CUDA")])
def test_providers_give_what_the_cpu_gives(tensorrt, said, onnx_file: Path) -> None:
    image = np.random.default_rng(0).normal(size=(1, 1, 16, 16)).astype(np.float32)
    expected = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"]).run(None, {"image": image})
    session = OnnxSession(onnx_file, 1, tensorrt)
    assert said in session.reason
    np.testing.assert_allclose(session(image), expected[0], atol=1e-4)
