"""ONNX graphs through onnxruntime's own TensorRT and CUDA providers."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medlight.errors import MedlightError, needs

Array = npt.NDArray[np.float32]
Name = Literal["tensorrt", "cuda"]
_NAMES = {"tensorrt": "TensorrtExecutionProvider", "cuda": "CUDAExecutionProvider"}


class ProviderSession:
    """An ONNX model on the GPU by onnxruntime, or nothing: a provider that is not there is never passed over.

    reason: one line that says what runs it.
    """

    def __init__(self, file: Path, provider: Name, precision: str = "fp32", cache: Path | None = None) -> None:
        """Load the model.

        precision: of the graph: ``fp32``, ``fp16`` (by its casts) or ``int8`` (by Q/DQ).
        cache: folder for the engines and timings of the TensorRT provider, which else builds anew at every start.

        Raises UsageError where onnxruntime is absent, MedlightError where the provider did not load: onnxruntime
        itself goes on with the CPU and says nothing; its list of available providers is what was compiled in.
        """
        try:
            import onnxruntime
        except ImportError:
            raise needs("gpu", "onnxruntime") from None
        wanted = _NAMES[provider]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if provider == "tensorrt":  # the provider has no option for it; TF32 would move probabilities by 1e-3
            os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
        try:
            with _quiet():
                asked = _asked(provider, precision, cache)
                self._session = onnxruntime.InferenceSession(file, options, providers=asked)
        except Exception as error:  # onnxruntime has an exception class for each of its status codes
            raise MedlightError(f"{file} does not load in onnxruntime: {' '.join(str(error).split())[:300]}") from None
        real = self._session.get_providers()
        if wanted not in real:
            raise MedlightError(
                f"onnxruntime {onnxruntime.__version__} has no {wanted} here (it has {', '.join(real)}); "
                "mend: pip install 'medlight[gpu]' in place of [onnx], with NVIDIA's libraries and a GPU"
            )
        self.reason = f"onnxruntime {onnxruntime.__version__} with {wanted.removesuffix('ExecutionProvider')}"

    def __call__(self, image: Array) -> Array:
        """Run ``(B, C, ...)`` through the model; returns probabilities ``(B, L, ...)`` or ``(B, L)``."""
        return np.asarray(self._session.run(None, {"image": image})[0], dtype=np.float32)


def _asked(provider: Name, precision: str, cache: Path | None) -> list[Any]:
    cuda = (_NAMES["cuda"], {"use_tf32": "0"})
    if provider == "cuda":
        return [cuda, "CPUExecutionProvider"]
    options = {
        "trt_fp16_enable": str(int(precision == "fp16")),
        "trt_int8_enable": str(int(precision == "int8")),
    }
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        place = os.fspath(cache)
        options |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": place}
        options |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": place}
    return [(_NAMES["tensorrt"], options), cuda, "CPUExecutionProvider"]


@contextlib.contextmanager
def _quiet() -> Any:
    """Silence what onnxruntime warns of: the session's real providers are looked at afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
