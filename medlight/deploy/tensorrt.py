"""ONNX -> a TensorRT engine, by one builder for ``tensorrt`` 10.12 to 11 and TensorRT for RTX.

Networks are strongly typed: the precision is that of the ONNX graph. What TensorRT says between releases:
explicit batch is the only mode (its flag is gone in 11), precision flags and calibrators are gone in 11, a failed build
is ``None`` and a logged line, never an exception. TensorRT for RTX builds without a GPU for named compute capabilities.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medlight.errors import MedlightError, UsageError

Package = Literal["tensorrt", "tensorrt_rtx"]
Shape = tuple[int, ...]
Profile = tuple[Shape, Shape, Shape]  # smallest, best, largest
GIB = 1 << 30

_loggers: dict[str, Any] = {}  # TensorRT keeps the first logger of a process, so there is one per package


def find(packages: Sequence[Package] = ("tensorrt", "tensorrt_rtx")) -> Any:
    """Import the first package that works; UsageError where none does."""
    for name in packages:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError):  # OSError: the bindings are there, NVIDIA's libraries are not
            continue
        if hasattr(module, "Builder"):
            return module
    extras = " or ".join(f"'medlight[{name.replace('_', '-')}]'" for name in packages)
    raise UsageError(f"TensorRT is not installed; mend: pip install {extras}")


def unavailable() -> str | None:
    """Return why TensorRT can't be used on this machine, or None where it can."""
    import torch

    try:
        find(("tensorrt",))
    except UsageError as error:
        return str(error)
    return None if torch.cuda.is_available() else "no CUDA device"


def build(
    onnx: Path,
    profiles: Mapping[str, Profile],
    *,
    packages: Sequence[Package] = ("tensorrt", "tensorrt_rtx"),
    workspace: int = GIB,
    compute_capabilities: Sequence[str] = (),
) -> bytes:
    """Build an engine and return its bytes.

    profiles: for every input with free sizes, the smallest, best and largest shape.
    workspace: bytes of scratch memory a kernel may ask for.
    compute_capabilities: ``SM86`` and the like, with TensorRT for RTX only; none means this machine's GPU.

    Raises MedlightError with TensorRT's own words where the graph can't be parsed or built.
    """
    trt = find(packages)
    log = _logger(trt)
    log.errors.clear()
    try:
        builder = trt.Builder(log)
    except Exception as error:  # tensorrt proper: no CUDA device
        raise MedlightError(f"{trt.__name__}: no engine can be built here: {_said(log) or error}") from None
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(os.fspath(onnx)):
        raise MedlightError(f"{onnx}: TensorRT can't read the graph: {_parse_errors(parser) or _said(log)}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default; it would move probabilities by 1e-3
    _set_targets(trt, config, compute_capabilities)
    _set_profiles(builder, network, config, profiles, onnx)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise MedlightError(f"{onnx}: TensorRT can't build the engine: {_said(log) or 'it gives no reason'}")
    return bytes(plan)


def _set_targets(trt: Any, config: Any, names: Sequence[str]) -> None:
    if not names:
        return
    if not hasattr(trt, "ComputeCapability"):
        raise UsageError("compute capabilities can be named with tensorrt-rtx only; tensorrt builds for this GPU")
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        target = getattr(trt.ComputeCapability, name, None)
        if target is None or not config.set_compute_capability(target, index):
            known = ", ".join(n for n in dir(trt.ComputeCapability) if n.startswith("SM"))
            raise UsageError(f"TensorRT builds for no compute capability {name!r}; mend: one of {known}")


def _set_profiles(builder: Any, network: Any, config: Any, profiles: Mapping[str, Profile], onnx: Path) -> None:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    free = [tensor for tensor in inputs if -1 in tuple(tensor.shape)]
    if not free:
        return
    profile = builder.create_optimization_profile()
    for tensor in free:
        if tensor.name not in profiles:
            raise UsageError(f"{onnx}: the input {tensor.name!r} has free sizes; give a profile for it")
        profile.set_shape(tensor.name, *profiles[tensor.name])
    if config.add_optimization_profile(profile) < 0:
        raise MedlightError(f"{onnx}: TensorRT refuses the profile {dict(profiles)}")


def _logger(trt: Any) -> Any:
    if trt.__name__ not in _loggers:

        class Errors(trt.ILogger):
            """Keeps what TensorRT calls an error; it has no other way to say why."""

            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.errors: list[str] = []

            def log(self, severity: Any, message: str) -> None:
                if severity <= trt.ILogger.Severity.ERROR:
                    self.errors.append(message)

        _loggers[trt.__name__] = Errors()
    return _loggers[trt.__name__]


def _said(log: Any) -> str:
    return " | ".join(" ".join(line.split()) for line in log.errors[-3:])


def _parse_errors(parser: Any) -> str:
    found = [parser.get_error(index) for index in range(parser.num_errors)]
    return "; ".join(f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in found)


class Engine:
    """Runs an engine on a CUDA device, tensors by name on torch's memory."""

    def __init__(self, plan: bytes, packages: Sequence[Package] = ("tensorrt", "tensorrt_rtx")) -> None:
        """Load an engine; MedlightError where it was built for another GPU or release."""
        self._trt = find(packages)
        log = _logger(self._trt)
        log.errors.clear()
        self._runtime = self._trt.Runtime(log)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise MedlightError(f"the engine does not load on this machine: {_said(log)}; mend: export it again here")
        self._context = self._engine.create_execution_context()
        self._names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]

    def __call__(self, **inputs: Any) -> dict[str, Any]:
        """Run CUDA tensors through the engine; returns its outputs by name, ready once the stream is."""
        import torch

        trt, kept, outputs = self._trt, [], {}
        types = {trt.float32: torch.float32, trt.float16: torch.float16, trt.int64: torch.int64, trt.int32: torch.int32}
        for name, tensor in inputs.items():
            value = tensor.to(types[self._engine.get_tensor_dtype(name)]).contiguous()
            kept.append(value)  # its memory must live until the engine has run
            if not self._context.set_input_shape(name, tuple(value.shape)):
                raise MedlightError(f"the engine takes no {name} of shape {tuple(value.shape)}")
            self._context.set_tensor_address(name, value.data_ptr())
        for name in self._names:
            if self._engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT:
                shape, kind = tuple(self._context.get_tensor_shape(name)), types[self._engine.get_tensor_dtype(name)]
                outputs[name] = torch.empty(shape, dtype=kind, device="cuda")
                self._context.set_tensor_address(name, outputs[name].data_ptr())
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise MedlightError(f"the engine did not run: {_said(_logger(trt))}")
        torch.cuda.current_stream().synchronize()
        return outputs


class EngineSession:
    """An engine as a predictor takes it: arrays in, arrays out.

    reason: one line that says what runs it.
    """

    def __init__(self, plan: bytes) -> None:
        """Load an engine of ``tensorrt``; MedlightError where it was built for another GPU or release."""
        self._engine = Engine(plan, ("tensorrt",))
        self.reason = f"TensorRT {find(('tensorrt',)).__version__} on CUDA"

    def __call__(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Run ``(B, C, ...)`` through the engine."""
        import torch

        found = self._engine(image=torch.from_numpy(np.ascontiguousarray(image)).cuda())["probabilities"]
        return np.asarray(found.float().cpu().numpy(), dtype=np.float32)
