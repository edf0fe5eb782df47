"""What an engine is built with: from the command to the builder, into the bundle, and to a rebuild."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import medlight.deploy.export as export_module
from medlight import tasks
from medlight.cli.main import main
from medlight.deploy import tensorrt
from medlight.deploy.bundle import Bundle
from medlight.deploy.export import export
from medlight.deploy.onnx_export import Exported, export_onnx
from medlight.deploy.runtime import choice
from medlight.deploy.runtime.session import open_session
from medlight.deploy.tensorrt import Engine, EngineInfo, Fitting, Machine
from medlight.errors import MedlightError
from tests.deploy.fake_tensorrt import RELEASES, FakeTensorRT, installed
from tests.deploy.trained import Trained, segmentation

PROFILE = {"image": ((1, 1, 8, 8, 8), (1, 1, 16, 16, 16), (2, 1, 24, 24, 24))}
ALL: tensorrt.Options = {"workspace": 3 << 30, "version_compatible": True, "hardware_compatible": True}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return segmentation(tmp_path_factory.mktemp("segmentation"))


@pytest.fixture(scope="module")
def exporter(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Exported]:
    """Gives the network's graph, which was made once."""
    graph = tmp_path_factory.mktemp("graph") / "model.onnx"
    made = export_onnx(tasks.load(trained.checkpoint).deployable(), 1, [16, 16, 16], graph)

    def copied(module: Any, channels: int, window: list[int], path: Path) -> Exported:
        shutil.copyfile(graph, path)
        return made

    return copied


@pytest.fixture(autouse=True)
def quick(exporter: Callable[..., Exported], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "export_onnx", exporter)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "medlight" / "engines"


def options_of(fake: FakeTensorRT) -> tuple[list[Any], ...]:
    return tuple(fake.asked(name) for name in ("set_memory_pool_limit", "set_flag", "hardware_compatibility_level"))


WANTED = (
    [("MemoryPoolType.WORKSPACE", 3 << 30)],
    ["BuilderFlag.VERSION_COMPATIBLE"],
    ["HardwareCompatibilityLevel.AMPERE_PLUS"],
)


@pytest.mark.parametrize("release", RELEASES)
def test_the_builder_of_every_release_is_told(release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = installed(monkeypatch, release)
    assert tensorrt.build(tmp_path / "m.onnx", PROFILE, **ALL) == b"plan"
    assert options_of(fake) == WANTED
    fake.done.clear()
    tensorrt.build(tmp_path / "m.onnx", PROFILE)
    assert options_of(fake) == ([("MemoryPoolType.WORKSPACE", tensorrt.GIB)], [], [])


def test_timings_that_can_not_be_kept_do_not_stop_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    (tmp_path / "file").write_text("")
    timings = tmp_path / "file" / "timings"  # a folder that can't be made
    assert tensorrt.build(tmp_path / "m.onnx", PROFILE, timing_cache=timings) == b"plan"


def test_the_command_line_reaches_the_builder_and_the_bundle(
    trained: Trained, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = installed(monkeypatch)
    monkeypatch.setattr(choice, "installed", lambda runtime: runtime == "onnxruntime")
    words = ["export", str(trained.checkpoint), str(tmp_path / "out"), "--to", "onnx,tensorrt", "--unchecked"]
    flags = ["--workspace", "3GiB", "--version-compatible", "--hardware-compatible"]
    assert main([*words, *flags, "--threads", "1"]) == 0
    assert "no report" not in capsys.readouterr().out
    assert options_of(fake) == WANTED
    bundle = Bundle.load(tmp_path / "out")
    kept = bundle.model("tensorrt").engine
    assert kept is not None
    assert {name: kept[name] for name in ALL} == ALL
    assert fake.asked("engine_host_code_allowed") == [True]  # else a version-compatible engine does not load
    assert json.loads((bundle.root / "model.layers.json").read_text()) == {"Layers": ["convolution"]}
    assert "model.layers.json" in bundle.digests
    assert (cache / "timings").read_bytes() == b"timed;"
    assert main([*words, "--threads", "1"]) == 0
    assert fake.asked("create_timing_cache")[-1] == b"timed;"  # what the first build measured
    assert options_of(fake)[1] == ["BuilderFlag.VERSION_COMPATIBLE"]  # of the first one alone


@pytest.mark.parametrize("flag", [["--workspace", "1GiB"], ["--version-compatible"], ["--hardware-compatible"]])
def test_options_of_engines_need_an_engine(
    flag: list[str], trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(trained.checkpoint), str(tmp_path / "out"), "--unchecked"]
    assert main([*words, "--to", "onnx,openvino", *flag]) == 2
    said = capsys.readouterr().err
    assert f"{flag[0]}: only TensorRT's engines have it; mend: add tensorrt to --to, or leave it out" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_workspace_that_is_no_size_is_refused(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", str(trained.checkpoint), "out", "--unchecked", "--to", "onnx,tensorrt", "--workspace", "much"]
    assert main(words) == 2
    assert "--workspace much: is no size" in capsys.readouterr().err


def test_why_there_is_no_report_is_said(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = installed(monkeypatch)
    fake.layers = "not JSON"
    lines: list[str] = []
    made = export(trained.checkpoint, tmp_path / "out", cases=None, to=["onnx", "tensorrt"], say=lines.append)
    assert len(lines) == 1
    assert lines[0].startswith("model.engine: no report of the engine's layers: Expecting value")
    assert not list(made.root.glob("*.layers.json"))


def test_a_rebuild_takes_the_same_options_and_has_a_report(
    trained: Trained, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = installed(monkeypatch)
    options = ALL | {"version_compatible": False}
    made = export(trained.checkpoint, tmp_path / "out", cases=None, to=["onnx", "tensorrt"], engines=options)
    (cache / "timings").write_bytes(b"earlier;")
    fake.done.clear()
    assert "built again" not in open_session(made, made.model("tensorrt")).reason
    assert options_of(fake) == ([], [], [])
    fake.module.__version__, fake.plan = "11.9.0", b"another plan"
    assert "(the TensorRT engine was built again from model.onnx: it was built by tensorrt " in (
        open_session(made, made.model("tensorrt")).reason
    )
    assert options_of(fake) == (WANTED[0], [], WANTED[2])
    assert fake.asked("create_timing_cache") == [b"earlier;"]
    (engine,) = cache.glob("*.engine")
    assert engine.read_bytes() == fake.asked("deserialize_cuda_engine")[-1] == b"another plan"
    assert json.loads(engine.with_suffix(".layers.json").read_text()) == {"Layers": ["convolution"]}
    reason = open_session(made, made.model("tensorrt")).reason
    assert "that was built here from model.onnx is used" in reason
    assert len(fake.asked("build_serialized_network")) == 1
    assert (made.root / "model.engine").read_bytes() == b"plan"  # a bundle is never changed


def test_a_rebuild_says_why_it_has_no_report(
    trained: Trained, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = installed(monkeypatch)
    made = export(trained.checkpoint, tmp_path / "out", cases=None, to=["onnx", "tensorrt"])
    fake.module.__version__, fake.layers = "11.9.0", "not JSON"
    assert "11.9.0 is here; no report of the engine's layers: " in open_session(made, made.model("tensorrt")).reason
    assert len(list(cache.glob("*.engine"))) == 1
    assert not list(cache.glob("*.json"))


def test_what_was_kept_and_does_not_load_is_built_anew(
    trained: Trained, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = installed(monkeypatch)
    made = export(trained.checkpoint, tmp_path / "out", cases=None, to=["onnx", "tensorrt"])
    fake.module.__version__ = "11.9.0"
    open_session(made, made.model("tensorrt"))
    (engine,) = cache.glob("*.engine")
    engine.write_bytes(b"broken")
    engine.with_suffix(".layers.json").write_text("{}")
    real = fake.module.Runtime

    def runtime(log: Any) -> Any:
        made = real(log)
        load = made._answers["deserialize_cuda_engine"]
        made._answers["deserialize_cuda_engine"] = lambda plan: None if plan == b"broken" else load(plan)
        return made

    fake.module.Runtime = runtime
    assert "built again" in open_session(made, made.model("tensorrt")).reason
    assert engine.read_bytes() == b"plan"
    assert json.loads(engine.with_suffix(".layers.json").read_text()) == {"Layers": ["convolution"]}


def test_where_a_bundles_engine_does_not_load_it_is_built_again_once(
    trained: Trained, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = installed(monkeypatch)
    made = export(trained.checkpoint, tmp_path / "out", cases=None, to=["onnx", "tensorrt"])
    real, built, refused = tensorrt.build, [], [b"plan"]
    runtime = fake.module.Runtime

    def refusing(log: Any) -> Any:
        made = runtime(log)
        load = made._answers["deserialize_cuda_engine"]
        made._answers["deserialize_cuda_engine"] = lambda plan: None if plan in refused else load(plan)
        return made

    def build(*given: Any, **options: Any) -> bytes:
        built.append(real(*given, **options))
        return b"another"

    fake.module.Runtime = refusing
    monkeypatch.setattr("medlight.deploy.tensorrt.info.build", build)
    assert "the TensorRT engine was built again" in open_session(made, made.model("tensorrt")).reason
    assert "that was built here from model.onnx is used" in open_session(made, made.model("tensorrt")).reason
    assert len(built) == 1
    refused.append(b"another")
    with pytest.raises(MedlightError):  # what was just built is not built a third time
        open_session(made, made.model("tensorrt"))
    assert len(built) == 2


def test_a_session_hands_the_timings_on(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    made = export(trained.checkpoint, tmp_path / "out", cases=None, to=["onnx", "tensorrt"], engines=ALL)
    calls = []

    def load_or_rebuild(onnx: Path, engine: Path, info: EngineInfo, **options: Path) -> tuple[Engine, Fitting]:
        calls.append((onnx, engine, info, options))
        return Engine(b"plan", ("tensorrt",)), Fitting(b"plan", info, "a note")

    monkeypatch.setattr(tensorrt, "load_or_rebuild", load_or_rebuild)
    assert open_session(made, made.model("tensorrt")).reason.endswith(" on CUDA (a note)")
    ((onnx, engine, info, options),) = calls
    assert (onnx.name, engine.name) == ("model.onnx", "model.engine")
    assert (info.workspace, info.version_compatible, info.hardware_compatible) == (3 << 30, True, True)
    folder = tmp_path / "cache" / "medlight" / "engines"
    assert options == {"cache": folder, "timing_cache": folder / "timings"}


def test_a_real_builder_is_held_to_the_workspace(
    trained: Trained, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorRT for RTX in the place of tensorrt: it builds without a GPU, and knows a workspace and a timing cache."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    real, machine = tensorrt.build, Machine("tensorrt", "11.4.0", "SM86", "Linux-x86_64")

    def build(onnx: Path, profiles: Any, *, packages: Any, **options: Any) -> bytes:
        assert packages == ("tensorrt",)
        known = {name: value for name, value in options.items() if not name.endswith("_compatible")}
        return real(onnx, profiles, packages=("tensorrt_rtx",), compute_capabilities=["SM86"], **known)

    monkeypatch.setattr(tensorrt, "build", build)
    monkeypatch.setattr(tensorrt, "unavailable", lambda: None)
    monkeypatch.setattr(Machine, "here", lambda packages: machine)
    monkeypatch.setattr(choice, "installed", lambda runtime: runtime == "onnxruntime")
    words = ["export", str(trained.checkpoint), str(tmp_path / "out"), "--to", "onnx,tensorrt", "--unchecked"]
    assert main([*words, "--workspace", "1KiB"]) == 1
    assert "mend: allow a larger --workspace" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*words, "--workspace", "64MiB", "--threads", "1"]) == 0
    said = capsys.readouterr().out
    assert "model.engine: no report of the engine's layers: TensorRT is not installed" in said
    made = Bundle.load(tmp_path / "out")
    assert (made.root / "model.engine").read_bytes()[:4] == b"vtrt"
    kept = made.model("tensorrt").engine
    assert kept is not None
    assert kept["workspace"] == 64 << 20
    assert (cache / "timings").stat().st_size


def test_the_stand_in_is_as_poor_as_the_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = installed(monkeypatch, RELEASES[0])
    with pytest.raises(AttributeError, match="IBuilderConfig has no num_compute_capabilities"):
        fake.module.Builder(None).create_builder_config().num_compute_capabilities = 1
