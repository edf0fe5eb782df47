"""Running one of a bundle's models: in which runtime, on what, and why."""

from __future__ import annotations

import importlib.util
import os
import warnings
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from medlight.deploy.bundle import Bundle, Model
from medlight.errors import MedlightError, UsageError, needs

Array = npt.NDArray[np.float32]
Provider = str | tuple[str, dict[str, str]]
_CUDA: Provider = ("CUDAExecutionProvider", {"use_tf32": "0"})  # TF32 would move probabilities by 1e-3
_TENSORRT = "TensorrtExecutionProvider"
_HINTS = {"fp32": "f32", "int8": "f32", "bf16": "bf16"}  # OpenVINO's own choice without AMX is slower


class Session(Protocol):
    """Runs a network: ``(B, C, ...)`` in, probabilities ``(B, L, ...)`` or ``(B, L)`` out; ``reason`` says on what."""

    reason: str

    def __call__(self, image: Array) -> Array:
        """Run the network."""


def open_session(bundle: Bundle, model: Model, threads: int | None = None) -> Session:
    """Load one of a bundle's models into its runtime.

    threads: of a runtime on the CPU; by default one for each CPU that this process may use.
    Raises UsageError where the runtime is not installed, MedlightError where the file does not load in it.
    """
    require(model.runtime)
    file, threads = bundle.root / model.file, threads or len(os.sched_getaffinity(0))
    match model.runtime:
        case "onnxruntime":
            return OnnxSession(file, threads)
        case "onnxruntime-tensorrt":
            return OnnxSession(file, threads, tensorrt=model.precision)
        case "openvino":
            return OpenVinoSession(file, model.precision, threads)
        case "torch":
            from medlight.deploy.torch_program import TorchSession

            return TorchSession(file, model.precision, threads)
        case "tensorrt":
            return _engine(bundle, model)
    raise MedlightError(f"{file}: there is no runtime {model.runtime!r}; mend: update medlight")


def require(runtime: str) -> None:
    """Raise UsageError that names what to install, where what a runtime runs in is absent.

    A machine that only predicts has neither torch nor TensorRT by itself: see the bundle's ``requirements.txt``.
    """
    match runtime:
        case "onnxruntime" | "onnxruntime-tensorrt" if importlib.util.find_spec("onnxruntime") is None:
            raise needs("onnx", "onnxruntime")
        case "openvino" if importlib.util.find_spec("openvino") is None:
            raise needs("openvino", "openvino")
        case "torch" | "tensorrt" if importlib.util.find_spec("torch") is None:
            raise UsageError(f"{runtime}: torch is not installed; mend: pip install torch, or take another --runtime")
        case "tensorrt":
            from medlight.deploy import tensorrt

            tensorrt.find()


def _engine(bundle: Bundle, model: Model) -> Session:
    """Load an engine, built again from the graph of its precision where it does not fit this machine."""
    from medlight.deploy import tensorrt

    file = bundle.root / model.file
    if model.engine is None:
        return tensorrt.EngineSession(file.read_bytes())
    graph = bundle.root / bundle.model(f"onnxruntime-{model.precision}").file
    info = tensorrt.EngineInfo.from_dict(model.engine)
    engine, fitting = tensorrt.load_or_rebuild(graph, file, info, cache=cache("engines"), timing_cache=timing_cache())
    session = tensorrt.EngineSession(engine, (fitting.info.package,))
    session.reason += f" ({fitting.note})" if fitting.note else ""
    return session


def cache(name: str) -> Path:
    """Return the folder of the user's cache for what this machine found out or built itself."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medlight" / name


def timing_cache() -> Path:
    """Return the file in the user's cache with how long TensorRT's kernels took in earlier builds."""
    return cache("engines") / "timings"


class OnnxSession:
    """An ONNX model in onnxruntime: on CUDA where onnxruntime really gets it, else on the CPU; or by its TensorRT.

    reason: one line that says which runtime runs and why.
    """

    def __init__(self, file: Path, threads: int, tensorrt: str | None = None) -> None:
        """Load the model.

        tensorrt: the graph's precision, where onnxruntime's TensorRT provider is to run it and nothing else.

        Raises UsageError where onnxruntime is absent, MedlightError where the file does not load or TensorRT was
        asked for and did not come: onnxruntime passes over a provider that does not load and says nothing.
        """
        try:
            import onnxruntime
        except ImportError:
            raise needs("onnx", "onnxruntime") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.use_deterministic_compute = True
        options.log_severity_level = 4
        wanted = _tensorrt(tensorrt) if tensorrt else _providers(onnxruntime.get_available_providers())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the session's real providers are looked at below
                self._session = onnxruntime.InferenceSession(file, options, providers=wanted)
        except Exception as error:  # onnxruntime has an exception class for each of its status codes
            raise MedlightError(f"{file} does not load in onnxruntime: {' '.join(str(error).split())[:300]}") from None
        real = self._session.get_providers()
        if tensorrt and _TENSORRT not in real:
            raise MedlightError(
                f"onnxruntime {onnxruntime.__version__} has no TensorRT here (it has {', '.join(real)}); mend: "
                "pip install 'medlight[gpu]' in place of [onnx], with NVIDIA's libraries, or another --runtime"
            )
        self.reason = _reason(onnxruntime.__version__, real, len(wanted) > 1, threads)

    def __call__(self, image: Array) -> Array:
        """Run ``(B, C, ...)`` through the model; returns probabilities ``(B, L, ...)`` or ``(B, L)``."""
        return np.asarray(self._session.run(None, {"image": image})[0], dtype=np.float32)


class OpenVinoSession:
    """An ONNX model in OpenVINO, on the CPU. It is compiled for each shape it meets: fixed shapes run faster.

    reason: one line that says which runtime runs.
    """

    def __init__(self, file: Path, precision: str, threads: int) -> None:
        """Read the model; UsageError where OpenVINO is absent, MedlightError where the file is not read."""
        try:
            import openvino
        except ImportError:
            raise needs("openvino", "openvino") from None
        self._core, self._file = openvino.Core(), file
        self._options = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._compiled: dict[tuple[int, ...], Any] = {}
        try:
            self._core.read_model(file)
        except RuntimeError as error:
            raise MedlightError(f"{file} does not load in OpenVINO: {' '.join(str(error).split())[:300]}") from None
        version = ".".join(openvino.__version__.split("-")[0].split(".")[:3])
        self.reason = f"openvino {version} on the CPU with {threads} thread{'s' * (threads > 1)}"

    def __call__(self, image: Array) -> Array:
        """Run ``(B, C, ...)`` through the model; returns probabilities ``(B, L, ...)`` or ``(B, L)``."""
        if image.shape not in self._compiled:
            model = self._core.read_model(self._file)
            model.reshape({"image": list(image.shape)})
            self._compiled[image.shape] = self._core.compile_model(model, "CPU", self._options)
        # share_outputs: else the next run writes to the memory of this one's result.
        found = self._compiled[image.shape]([np.ascontiguousarray(image)], share_outputs=False)[0]
        return np.asarray(found, dtype=np.float32)


def _providers(available: list[str]) -> list[Provider]:
    """Return what to ask for; ``available`` is what was compiled in, not what this machine can load."""
    return [*([_CUDA] if _CUDA[0] in available else []), "CPUExecutionProvider"]


def _tensorrt(precision: str) -> list[Provider]:
    """Ask for TensorRT, with engines and timings kept in the user's cache: a build takes minutes."""
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # the provider has no option for it
    place = cache("engines")
    place.mkdir(parents=True, exist_ok=True)
    options = {f"trt_{name}_enable": str(int(precision == name)) for name in ("fp16", "int8")}
    for kept in ("engine", "timing"):
        options |= {f"trt_{kept}_cache_enable": "1", f"trt_{kept}_cache_path": os.fspath(place)}
    return [(_TENSORRT, options), _CUDA, "CPUExecutionProvider"]


def _reason(version: str, real: list[Any], asked_cuda: bool, threads: int) -> str:
    """Say where the model runs; only the session's own list tells (a missing GPU is passed over in silence)."""
    if _TENSORRT in real:
        return f"onnxruntime {version} with TensorRT"
    if "CUDAExecutionProvider" in real:
        return f"onnxruntime {version} on CUDA"
    why = "CUDA did not load" if asked_cuda else "this onnxruntime has no CUDA"
    return f"onnxruntime {version} on the CPU with {threads} thread{'s' * (threads > 1)} ({why})"
