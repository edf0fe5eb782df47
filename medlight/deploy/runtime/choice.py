"""Which of a bundle's models runs fastest on this machine: measured once and remembered."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import time
from pathlib import Path

import numpy as np

from medlight.deploy.bundle import DESCRIPTION, Bundle, Model, sha256
from medlight.deploy.runtime.session import Session, cache, open_session
from medlight.errors import MedlightError, UsageError
from medlight.scans.files import replacing

_RUNS = 3  # of each model, after one that warms it up


def fastest(bundle: Bundle, threads: int | None = None) -> Session:
    """Return the model of a bundle that runs fastest here, loaded.

    Every model whose runtime is installed runs one window a few times. The times are kept in the user's cache, for
    this bundle, this machine, its runtimes and the number of threads, so that the next call measures nothing.

    Raises UsageError where none of the runtimes is installed, MedlightError where no model loads.
    """
    there = [model for model in runnable(bundle) if installed(model.runtime)]
    if not there:
        extras = ", ".join(sorted({model.runtime for model in bundle.models}))
        raise UsageError(f"{bundle.root} runs in {extras}, and none is installed; mend: pip install 'medlight[onnx]'")
    threads = threads or len(os.sched_getaffinity(0))
    if len(there) == 1:
        return open_session(bundle, there[0], threads)
    file = cache("runtimes") / f"{_key(bundle, there, threads)}.json"
    times = _remembered(file)
    if times is None:
        times = _measure(bundle, there, threads)
        _remember(times, file)
    best = min((model for model in there if model.name in times), key=lambda model: times[model.name])
    session = open_session(bundle, best, threads)
    others = ", ".join(f"{name} {1000 * times[name]:.1f}" for name in sorted(times, key=lambda n: times[n])[1:])
    said = f"{best.precision}, fastest here: {1000 * times[best.name]:.1f} ms a window"
    session.reason += f"; {said} ({others})" if others else f"; {best.precision}"
    return session


def chosen(bundle: Bundle, wanted: str, threads: int | None = None) -> Session:
    """Return the model that is asked for as ``runtime`` or ``runtime-precision``, loaded.

    Raises UsageError that names the models there are where there is no such one.
    """
    ways = (model for model in runnable(bundle) if wanted in (model.name, model.runtime))
    model = next(ways, None) or bundle.model(wanted)
    session = open_session(bundle, model, threads)
    session.reason += f"; {model.precision}, as asked for"
    return session


def runnable(bundle: Bundle) -> list[Model]:
    """Return the bundle's models, and its ONNX graphs a second time for onnxruntime's own TensorRT."""
    graphs = [model for model in bundle.models if model.runtime == "onnxruntime"]
    return [*bundle.models, *(dataclasses.replace(model, runtime="onnxruntime-tensorrt") for model in graphs)]


def installed(runtime: str) -> bool:
    """Return whether a runtime's package is there (it may still not run: TensorRT needs a GPU)."""
    package, _, provider = runtime.partition("-")
    if importlib.util.find_spec(package) is None or not provider:
        return importlib.util.find_spec(package) is not None
    import onnxruntime

    return "TensorrtExecutionProvider" in onnxruntime.get_available_providers()


def seconds_a_window(bundle: Bundle, threads: int | None = None) -> dict[str, float]:
    """Return the best time of a window on this machine, by model; those whose runtime is not installed are left out."""
    there = [model for model in runnable(bundle) if installed(model.runtime)]
    return _measure(bundle, there, threads or len(os.sched_getaffinity(0)))


def _measure(bundle: Bundle, models: list[Model], threads: int) -> dict[str, float]:
    """Return the best time of a window in seconds, by model; models that don't load or run are left out."""
    window = np.random.default_rng(0).standard_normal((1, len(bundle.data["channels"]), *bundle.window["size"]))
    image, times, reasons = window.astype(np.float32), {}, []
    for model in models:
        try:
            session = open_session(bundle, model, threads)
            session(image)
            times[model.name] = min(_seconds(session, image) for _ in range(_RUNS))
        except (MedlightError, RuntimeError, OSError) as error:
            reasons.append(f"{model.name}: {' '.join(str(error).split())[:200]}")
    if not times:
        raise MedlightError(f"{bundle.root}: none of its models runs here: {' | '.join(reasons)}")
    return times


def _remember(times: dict[str, float], file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(times) + "\n")
    except OSError:
        pass  # a home that can't be written to: the next start measures again


def _seconds(session: Session, image: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> float:
    start = time.perf_counter()
    session(image)
    return time.perf_counter() - start


def _remembered(file: Path) -> dict[str, float] | None:
    try:
        times = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return times if isinstance(times, dict) and times else None


def _key(bundle: Bundle, models: list[Model], threads: int) -> str:
    """Digest of all that decides which model is fastest."""
    versions = [f"{runtime} {_version(runtime)}" for runtime in sorted({model.runtime for model in models})]
    gpus = Path("/proc/driver/nvidia/gpus")
    machine = [platform.machine(), _processor(), str(threads), *sorted(map(str, gpus.glob("*")))]
    parts = [sha256(bundle.root / DESCRIPTION), *versions, *machine]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _version(runtime: str) -> str:
    for package in (runtime, f"{runtime}-gpu"):  # onnxruntime comes under two names
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
