"""Running a bundle's model: which runtime, on what, and why."""

from __future__ import annotations

import os
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from medlight.deploy.bundle import Bundle
from medlight.errors import MedlightError, needs

Array = npt.NDArray[np.float32]
Provider = str | tuple[str, dict[str, str]]


class Session(Protocol):
    """Runs a network: ``(B, C, ...)`` in, probabilities ``(B, L, ...)`` or ``(B, L)`` out; ``reason`` says on what."""

    reason: str

    def __call__(self, image: Array) -> Array:
        """Run the network."""


class OnnxSession:
    """A bundle's ONNX model in onnxruntime, on the GPU where onnxruntime really gets one, else on the CPU.

    reason: one line that says which runtime runs and why.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        """Load the model; UsageError where onnxruntime is absent, MedlightError where the file does not load."""
        try:
            import onnxruntime
        except ImportError:
            raise needs("onnx", "onnxruntime") from None
        threads = threads or len(os.sched_getaffinity(0))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.use_deterministic_compute = True
        options.log_severity_level = 4
        wanted = _providers(onnxruntime.get_available_providers())
        file = bundle.root / bundle.model("onnxruntime").file
        try:
            self._session = onnxruntime.InferenceSession(file, options, providers=wanted)
        except Exception as error:  # onnxruntime has an exception class for each of its status codes
            raise MedlightError(f"{file} does not load in onnxruntime: {' '.join(str(error).split())[:300]}") from None
        self.reason = _reason(onnxruntime.__version__, self._session.get_providers(), len(wanted) > 1, threads)

    def __call__(self, image: Array) -> Array:
        """Run ``(B, C, ...)`` through the model; returns probabilities ``(B, L, ...)`` or ``(B, L)``."""
        return np.asarray(self._session.run(None, {"image": image})[0], dtype=np.float32)


def _providers(available: list[str]) -> list[Provider]:
    """Return what to ask for; ``available`` is what was compiled in, not what this machine can load."""
    cuda: list[Provider] = [("CUDAExecutionProvider", {"use_tf32": "0"})]  # TF32 would move probabilities by 1e-3
    return [*(cuda if "CUDAExecutionProvider" in available else []), "CPUExecutionProvider"]


def _reason(version: str, real: list[Any], asked_cuda: bool, threads: int) -> str:
    """Say where the model runs; only the session's own list tells (a missing GPU is passed over in silence)."""
    if "CUDAExecutionProvider" in real:
        return f"onnxruntime {version} on CUDA"
    why = "CUDA did not load" if asked_cuda else "this onnxruntime has no CUDA"
    return f"onnxruntime {version} on the CPU with {threads} thread{'s' * (threads > 1)} ({why})"
