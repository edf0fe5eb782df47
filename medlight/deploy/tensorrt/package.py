"""The Python package that is there, ``tensorrt`` or ``tensorrt_rtx``, and what it says when something fails."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Literal

from medlight.errors import UsageError

Package = Literal["tensorrt", "tensorrt_rtx"]
ANY: tuple[Package, ...] = ("tensorrt", "tensorrt_rtx")

_loggers: dict[str, Any] = {}  # TensorRT keeps the first logger of a process, so there is one per package


def find(packages: Sequence[Package] = ANY) -> Any:
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


def is_rtx(trt: Any) -> bool:
    """Whether a package is TensorRT for RTX, which builds for named compute capabilities without a GPU."""
    return hasattr(trt, "ComputeCapability")


def logger(trt: Any) -> Any:
    """Return the logger of a package; its ``errors`` grow until they are cleared."""
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


def said(log: Any) -> str:
    """Return the last errors in one line."""
    return " | ".join(" ".join(line.split()) for line in log.errors[-3:])
