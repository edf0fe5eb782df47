"""Which of a bundle's models runs fastest on this machine, with how many windows at once: measured and remembered."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medlight.deploy.bundle import DESCRIPTION, Bundle, Model, sha256
from medlight.deploy.runtime import memory
from medlight.deploy.runtime.session import Session, cache, open_session, require
from medlight.errors import MedlightError, UsageError
from medlight.scans.files import replacing

Image = npt.NDArray[np.float32]

_RUNS = 3  # of each model, after one that warms it up
_BATCH = 4  # windows at once; engines are built for as many
_BUSY = 0.02  # seconds: a window that takes as long fills the machine by itself
_GAIN = 0.9  # of the time of a window by itself: what makes up for the memory of several
_ENGINES = ("tensorrt", "onnxruntime-tensorrt")
_FORM = "2"  # of what is remembered


class Pace(NamedTuple):
    """How fast a model runs: seconds a window, with ``batch`` windows in one run."""

    seconds: float
    batch: int


class Choice(NamedTuple):
    """A model of a bundle, loaded, and how many windows it runs at once."""

    session: Session
    batch: int


def fastest(bundle: Bundle, threads: int | None = None) -> Choice:
    """Return the model of a bundle that runs fastest here, loaded.

    Every model whose runtime is installed runs one window a few times, and where windows are many and small, also four
    at once. The times are kept in the user's cache, for this bundle, this machine, its runtimes and the number of
    threads, so that the next call measures nothing. Where the fastest does not run any more (a GPU that others fill),
    the next one is taken, and the session's reason says so.

    Raises UsageError where none of the runtimes is installed, MedlightError where no model loads.
    """
    there = [model for model in runnable(bundle) if installed(model.runtime)]
    if not there:
        extras = ", ".join(sorted({model.runtime for model in bundle.models}))
        raise UsageError(f"{bundle.root} runs in {extras}, and none is installed; mend: pip install 'medlight[onnx]'")
    threads = threads or len(os.sched_getaffinity(0))
    if len(there) == 1:
        session = open_session(bundle, there[0], threads)
        return Choice(session, _batch(bundle, there[0], threads))
    paces = _paces(bundle, there, threads)
    ranked = sorted((model for model in there if model.name in paces), key=lambda model: paces[model.name])
    reasons: list[str] = []
    for best in ranked:
        try:
            session = _tried(bundle, best, threads)
        except Exception as error:  # each runtime has classes of its own
            reasons.append(_reason(best, error))
            continue
        slower = ranked[len(reasons) + 1 :]
        others = ", ".join(f"{model.name} {1000 * paces[model.name].seconds:.1f}" for model in slower)
        said = f"{best.precision}, fastest here: {1000 * paces[best.name].seconds:.1f} ms a window"
        session.reason += f"; {said} ({others})" if others else f"; {best.precision}"
        session.reason += f"; does not run now: {' | '.join(reasons)}" if reasons else ""
        return Choice(session, paces[best.name].batch)
    raise MedlightError(f"{bundle.root}: none of its models runs here: {' | '.join(reasons)}")


def chosen(bundle: Bundle, wanted: str, threads: int | None = None) -> Choice:
    """Return the model that is asked for, as `asked_for` does, loaded."""
    model = asked_for(bundle, wanted)
    session = open_session(bundle, model, threads)
    session.reason += f"; {model.precision}, as asked for"
    return Choice(session, _batch(bundle, model, threads or len(os.sched_getaffinity(0))))


def asked_for(bundle: Bundle, wanted: str) -> Model:
    """Return the model that is asked for as ``runtime`` or ``runtime-precision``.

    Raises UsageError that names the models there are where there is no such one, and what to install where its runtime
    is absent.
    """
    ways = (model for model in runnable(bundle) if wanted in (model.name, model.runtime))
    model = next(ways, None) or bundle.model(wanted)
    require(model.runtime)
    return model


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
    paces = _measure(bundle, there, threads or len(os.sched_getaffinity(0)))
    return {name: pace.seconds for name, pace in paces.items()}


def _batch(bundle: Bundle, model: Model, threads: int) -> int:
    """Return how many windows a model that needs no choice runs at once."""
    return _paces(bundle, [model], threads)[model.name].batch if _may_batch(bundle, model) else 1


def _paces(bundle: Bundle, models: list[Model], threads: int) -> dict[str, Pace]:
    file = cache("runtimes") / f"{_key(bundle, models, threads)}.json"
    paces = _remembered(file, {model.name for model in models})
    if not paces:
        paces = _measure(bundle, models, threads)
        _remember(paces, file)
    return paces


def _measure(bundle: Bundle, models: list[Model], threads: int) -> dict[str, Pace]:
    """Return the best pace of each model; models that don't load or run are left out."""
    image, paces, reasons = _window(bundle), {}, []
    runs = _RUNS if len(models) > 1 else 1  # with nothing to choose from, they only tell whether windows are small
    for model in models:
        try:
            session = open_session(bundle, model, threads)
            session(image)
            paces[model.name] = Pace(min(_seconds(session, image) for _ in range(runs)), 1)
        except Exception as error:  # each runtime has classes of its own
            reasons.append(_reason(model, error))
            continue
        if paces[model.name].seconds < _BUSY and _may_batch(bundle, model):
            paces[model.name] = _faster(session, image, paces[model.name].seconds)
    if not paces:
        raise MedlightError(f"{bundle.root}: none of its models runs here: {' | '.join(reasons)}")
    return paces


def _tried(bundle: Bundle, model: Model, threads: int) -> Session:
    """Load a model. An engine runs a window too, in milliseconds: in a GPU's last memory it loads, and does not run."""
    session = open_session(bundle, model, threads)
    if model.runtime in _ENGINES:
        session(_window(bundle))
    return session


def _window(bundle: Bundle) -> Image:
    """A window of noise, as a model takes it."""
    window = np.random.default_rng(0).standard_normal((1, len(bundle.data["channels"]), *bundle.window["size"]))
    return window.astype(np.float32)


def _reason(model: Model, error: Exception) -> str:
    """Why a model does not run, in one line."""
    return f"{model.name}: {' '.join(str(error).split())[:200] or type(error).__name__}"


def _may_batch(bundle: Bundle, model: Model) -> bool:
    """Whether several windows at once are worth a try: there are several, the model takes them, and they fit.

    onnxruntime's TensorRT would build an engine anew for another size, which takes minutes.
    """
    free = bundle.task == "segmentation" and "batch" in model.dynamic_axes and model.runtime != "onnxruntime-tensorrt"
    return free and memory.network(bundle, bundle.window["size"], _BATCH) < memory.free() / 2


def _faster(session: Session, image: Image, alone: float) -> Pace:
    """Return the pace of several windows at once where it is clearly better, else that of one (``alone`` seconds)."""
    several, together = np.repeat(image, _BATCH, axis=0), float("inf")
    try:
        session(several)
        for _ in range(_RUNS):  # in turns: other work slows both
            together = min(together, _seconds(session, several) / _BATCH)
            alone = min(alone, _seconds(session, image))
    except Exception:  # too many for the device's memory, or for what the model was built for
        return Pace(alone, 1)
    return Pace(together, _BATCH) if together < _GAIN * alone else Pace(alone, 1)


def _remember(paces: dict[str, Pace], file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            temporary.write_text(json.dumps({name: pace._asdict() for name, pace in paces.items()}) + "\n")
    except OSError:
        pass  # a home that can't be written to: the next start measures again


def _seconds(session: Session, image: Image) -> float:
    start = time.perf_counter()
    session(image)
    return time.perf_counter() - start


def _remembered(file: Path, names: Iterable[str]) -> dict[str, Pace]:
    """Return the paces of the models that are there; empty where nothing that can be used is remembered."""
    try:
        known = json.loads(file.read_text())
        return {name: Pace(float(known[name]["seconds"]), int(known[name]["batch"])) for name in names if name in known}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _key(bundle: Bundle, models: list[Model], threads: int) -> str:
    """Digest of all that decides which of some models is fastest, and of the form in which that is remembered."""
    versions = [f"{runtime} {_version(runtime)}" for runtime in sorted({model.runtime for model in models})]
    gpus = Path("/proc/driver/nvidia/gpus")
    machine = [platform.machine(), _processor(), str(threads), *sorted(map(str, gpus.glob("*")))]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")  # which of the GPUs this process may use; none where it is empty
    machine += [] if visible is None else [f"CUDA_VISIBLE_DEVICES {visible}"]
    parts = [_FORM, sha256(bundle.root / DESCRIPTION), *(model.name for model in models), *versions, *machine]
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
