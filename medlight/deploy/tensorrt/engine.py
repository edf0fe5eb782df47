"""Running an engine on a CUDA device, and what it is made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medlight.deploy.tensorrt.package import ANY, Package, find, logger, said
from medlight.errors import MedlightError
from medlight.scans.files import replacing


class Engine:
    """Runs an engine on a CUDA device, tensors by name on torch's memory.

    A shape is run with the first of the engine's profiles that holds it.
    """

    def __init__(self, plan: bytes, packages: Sequence[Package] = ANY, *, version_compatible: bool = False) -> None:
        """Load an engine; MedlightError where it was built for another GPU or release.

        version_compatible: the engine was built so, and brings code of its release along which may be run.
        """
        self._trt = find(packages)
        log = logger(self._trt)
        log.errors.clear()
        self._runtime = self._trt.Runtime(log)
        self._runtime.engine_host_code_allowed = version_compatible
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            import torch

            mend = "export it again here" if torch.cuda.is_available() else "run it where there is a CUDA device"
            raise MedlightError(f"the engine does not load on this machine: {said(log)}; mend: {mend}")
        self._context = self._engine.create_execution_context()
        self._names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]

    def __call__(self, **inputs: Any) -> dict[str, Any]:
        """Run CUDA tensors through the engine; returns its outputs by name, when they are ready."""
        import torch

        trt, kept, outputs = self._trt, [], {}
        logger(trt).errors.clear()
        stream = torch.cuda.current_stream()
        types = {trt.float32: torch.float32, trt.float16: torch.float16, trt.int64: torch.int64, trt.int32: torch.int32}
        self._choose_profile({name: tuple(tensor.shape) for name, tensor in inputs.items()}, stream.cuda_stream)
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
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise MedlightError(f"the engine did not run: {said(logger(trt))}")
        stream.synchronize()
        return outputs

    def layers(self) -> dict[str, Any]:
        """Return what the engine is made of: ``Layers`` (each with its type, tensors and formats), ``Bindings``."""
        inspector = self._engine.create_engine_inspector()
        text = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        return dict(json.loads(text))

    def _choose_profile(self, shapes: dict[str, tuple[int, ...]], stream: int) -> None:
        """Switch to a profile that holds the shapes; where none does, the shape is refused when it is set."""
        current = self._context.active_optimization_profile
        for index in range(self._engine.num_optimization_profiles):
            limits = {name: self._engine.get_tensor_profile_shape(name, index) for name in shapes}
            if all(_holds(limits[name], shape) for name, shape in shapes.items()):
                if index != current and not self._context.set_optimization_profile_async(index, stream):
                    raise MedlightError(f"the engine's profile {index} can't be used: {said(logger(self._trt))}")
                return


def _holds(limits: Sequence[Any], shape: tuple[int, ...]) -> bool:
    """Whether a shape lies between the smallest and the largest of a profile."""
    smallest, _, largest = (tuple(limit) for limit in limits)
    return len(shape) == len(smallest) and all(
        low <= side <= high for low, side, high in zip(smallest, shape, largest, strict=True)
    )


class EngineSession:
    """An engine as a predictor takes it: arrays in, arrays out.

    reason: one line that says what runs it.
    """

    def __init__(self, plan: bytes | Engine, packages: Sequence[Package] = ("tensorrt",)) -> None:
        """Take an engine, or load one; MedlightError where it was built for another GPU or release."""
        self._engine = plan if isinstance(plan, Engine) else Engine(plan, packages)
        trt = find(packages)
        self.reason = f"{'TensorRT' if trt.__name__ == 'tensorrt' else 'TensorRT for RTX'} {trt.__version__} on CUDA"

    def __call__(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Run ``(B, C, ...)`` through the engine."""
        import torch

        found = self._engine(image=torch.from_numpy(np.ascontiguousarray(image)).cuda())["probabilities"]
        return np.asarray(found.float().cpu().numpy(), dtype=np.float32)


def write_report(
    plan: bytes | Engine, out: Path, packages: Sequence[Package] = ANY, *, version_compatible: bool = False
) -> str | None:
    """Write what an engine is made of, layer by layer, as JSON; returns why there is no report, or None.

    TensorRT tells it of a loaded engine only, and loads none without a GPU.
    """
    try:
        engine = plan if isinstance(plan, Engine) else Engine(plan, packages, version_compatible=version_compatible)
        text = json.dumps(engine.layers(), indent=1)
        with replacing(out) as temporary:
            temporary.write_text(text + "\n")
    except (MedlightError, OSError, ValueError) as error:  # ValueError: what TensorRT says is no JSON
        return f"no report of the engine's layers: {' '.join(str(error).split())}"
    return None
