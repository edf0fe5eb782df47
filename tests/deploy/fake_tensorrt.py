"""A ``tensorrt`` that builds nothing: it has the names of a real release and no other, and writes down what is asked.

What it has is in ``tensorrt_api.json`` (see `test_tensorrt_api`), so a name that it lacks is an AttributeError.
"""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from medlight.deploy.tensorrt import package

KNOWN = json.loads((Path(__file__).parent / "tensorrt_api.json").read_text())
RELEASES = [release for release in KNOWN if release.startswith("tensorrt ")]
ENUMS = ["BuilderFlag", "HardwareCompatibilityLevel", "LayerInformationFormat", "MemoryPoolType"]
ENUMS += ["ProfilingVerbosity", "TensorIOMode"]


class Thing:
    """An object of a class of the API: calls and settings are written down as (name, arguments...)."""

    def __init__(self, kind: str, release: str, done: list[tuple[Any, ...]], **answers: Any) -> None:
        vars(self).update(_names=KNOWN[release][kind], _kind=kind, _done=done, _answers=answers)

    def __getattr__(self, name: str) -> Any:
        if name not in self._names:
            raise AttributeError(f"{self._kind} has no {name}")
        answer = self._answers.get(name)
        if name in self._answers and not callable(answer):
            return answer

        def call(*given: Any) -> Any:
            self._done.append((name, *given))
            return answer(*given) if answer else None

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._names:
            raise AttributeError(f"{self._kind} has no {name}")
        self._done.append((name, value))


class FakeTensorRT:
    """What was asked of the module that stands in for ``tensorrt``.

    done: calls and settings, in their order. layers: what the inspector says; plan: what the next build gives.
    """

    def __init__(self, release: str) -> None:
        self.release, self.done = release, []
        self.layers, self.plan = '{"Layers": ["convolution"]}', b"plan"
        self.module: Any = types.ModuleType("tensorrt")
        self.module.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
        self.module.__version__ = release.split()[1]
        for kind in ENUMS:
            names = KNOWN[release][kind]
            setattr(self.module, kind, types.SimpleNamespace(**{name: f"{kind}.{name}" for name in names}))
        self.module.NetworkDefinitionCreationFlag = types.SimpleNamespace(STRONGLY_TYPED=1)
        self.module.ILogger = type("ILogger", (), {"Severity": types.SimpleNamespace(ERROR=1)})
        self.module.Builder, self.module.Runtime = self._builder, self._runtime
        self.module.OnnxParser = lambda network, log: self._thing("OnnxParser", parse_from_file=lambda path: True)

    def asked(self, name: str) -> list[Any]:
        """The arguments of the calls and settings of a name."""
        return [given[0] if len(given) == 1 else tuple(given) for called, *given in self.done if called == name]

    def _thing(self, kind: str, **answers: Any) -> Thing:
        return Thing(kind, self.release, self.done, **answers)

    def _builder(self, log: Any) -> Thing:
        image = self._thing("ITensor", name="image", shape=(-1, 1, -1, -1, -1))
        network = self._thing("INetworkDefinition", num_inputs=1, get_input=lambda index: image)
        cache: dict[str, bytes] = {}

        def begun(content: bytes) -> Thing:
            cache["content"] = content + b"timed;"
            return self._thing("ITimingCache", serialize=lambda: cache["content"])

        config = self._thing(
            "IBuilderConfig",
            add_optimization_profile=lambda profile: 0,
            create_timing_cache=begun,
            set_timing_cache=lambda cache, ignore_mismatch: True,
            get_timing_cache=lambda: self._thing("ITimingCache", serialize=lambda: cache["content"]),
        )
        return self._thing(
            "Builder",
            create_network=lambda flags: network,
            create_builder_config=lambda: config,
            create_optimization_profile=lambda: self._thing("IOptimizationProfile"),
            build_serialized_network=lambda network, config: self.plan,
        )

    def _runtime(self, log: Any) -> Thing:
        inspector = self._thing("EngineInspector", get_engine_information=lambda form: self.layers)
        engine = self._thing("ICudaEngine", num_io_tensors=0, create_engine_inspector=lambda: inspector)
        return self._thing("Runtime", deserialize_cuda_engine=lambda plan: engine)


def installed(monkeypatch: pytest.MonkeyPatch, release: str = RELEASES[-1]) -> FakeTensorRT:
    """Let medlight find it, and a GPU of compute capability 8.6."""
    fake = FakeTensorRT(release)
    monkeypatch.setitem(sys.modules, "tensorrt", fake.module)
    monkeypatch.setattr(package, "_loggers", {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    return fake
