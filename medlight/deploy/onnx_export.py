"""torch -> ONNX, with the sizes that are claimed to be free proved by running other ones."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import math
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from medlight.errors import MedlightError, needs

Exporter = Literal["dynamo", "torchscript"]
AXES = ("i", "j", "k")
_LARGEST_MULTIPLE = 32  # SwinUNETR's; U-Nets of five stages need 16
_SYMBOLIC_SECONDS = 90  # symbolic shapes of some networks (DenseNet, SwinUNETR) take minutes: not worth the wait
_CLOSE = 1e-3  # of probabilities on random input; the parity check on real cases is the strict one


@dataclass(frozen=True)
class Exported:
    """What the exporter made of a network.

    dynamic_axes: axes of the input that were run with another size than the example's, and were right.
    size_multiple: a free spatial size must be a multiple of this (1 where none is free).
    exporter: which of torch's exporters made it.
    """

    dynamic_axes: list[str]
    size_multiple: int
    exporter: Exporter


def export_onnx(module: nn.Module, channels: int, window: Sequence[int], path: Path) -> Exported:
    """Write a network as one ONNX file: input ``image`` (B, C, *window), output ``probabilities``, float32.

    Batch and spatial sizes are free where the network really allows it: each claim is run in onnxruntime at another
    size and compared with torch, and given up where it is wrong (position embeddings, fixed reshapes). torch's
    current exporter is tried first, the TorchScript one after it.

    Raises MedlightError with the exporters' reasons where no attempt gave a right file, UsageError where the extra
    ``onnx`` is absent.
    """
    require_packages()
    module = module.cpu().float().eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    multiple = size_multiple(window)
    reasons: list[str] = []
    exporters: tuple[Exporter, ...] = ("dynamo", "torchscript")
    for exporter, free in itertools.product(exporters, (True, False)):
        attempt = _Attempt(module, channels, list(window), multiple if free else None, exporter)
        reason = attempt.make(path)
        if reason is None:
            axes = ["batch", *AXES[: len(window)]] if free else ["batch"]
            return Exported(axes, multiple if free else 1, exporter)
        reasons.append(f"{exporter}{', free size' if free else ''}: {reason}")
    path.unlink(missing_ok=True)
    raise MedlightError(f"the network can't be exported to ONNX: {' | '.join(reasons)}")


def size_multiple(window: Sequence[int]) -> int:
    """Return the largest power of two (at most 32) that divides every side of the window.

    The network was trained on such windows, so any stride it has divides them.
    """
    common = math.gcd(*window)
    return min(common & -common, _LARGEST_MULTIPLE)


@dataclass(frozen=True)
class _Attempt:
    module: nn.Module
    channels: int
    window: list[int]
    multiple: int | None  # None: the spatial size is fixed
    exporter: Exporter

    def make(self, path: Path) -> str | None:
        """Export and verify; return the reason where it went wrong."""
        limit = _SYMBOLIC_SECONDS if self.multiple else None
        try:
            with torch.no_grad(), quiet(), _time_limit(limit):
                self._export(self._example(2, self._example_size()), path)
                _without_traces(path)
            return self._verify(path)
        except Exception as error:  # exporters fail in every way there is; the reason is kept
            root = error.__cause__ or error  # the exporter's own error is a page of advice; its cause is the reason
            return f"{type(root).__name__}: {(str(root).strip() or 'no text').splitlines()[0][:200]}"

    def _example_size(self) -> list[int]:
        """A free size must be at least two multiples: torch.export takes one for the only size there is."""
        return [side if side != self.multiple else 2 * side for side in self.window]

    def _export(self, example: torch.Tensor, path: Path) -> None:
        spatial = AXES[: len(self.window)] if self.multiple else ()
        names: dict[str, Any] = {"input_names": ["image"], "output_names": ["probabilities"]}
        if self.exporter == "torchscript":
            axes = {0: "batch"} | {axis + 2: name for axis, name in enumerate(spatial)}
            free = {"image": axes, "probabilities": {0: "batch"}}
            torch.onnx.export(self.module, (example,), path, dynamo=False, opset_version=17, dynamic_axes=free, **names)
            return
        sizes: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=64)}
        for axis, name in enumerate(spatial):
            sizes[axis + 2] = (self.multiple or 1) * torch.export.Dim(name)
        names |= {"dynamic_shapes": (sizes,), "external_data": False, "verbose": False}
        torch.onnx.export(self.module, (example,), path, dynamo=True, **names)

    def _verify(self, path: Path) -> str | None:
        """Run the file at the example's size and at others; return what differs from torch."""
        run = _session(path)
        others = [(1, self.window), (3, self.window)]
        if self.multiple:
            grown = [side + self.multiple * (1 + axis % 2) for axis, side in enumerate(self.window)]
            others.append((1, grown))
        for batch, size in others:
            image = self._example(batch, size)
            with torch.no_grad():
                expected = self.module(image).numpy()
            got = run(image.numpy())
            if got.shape != expected.shape:
                return f"gives {got.shape} and not {expected.shape} for a batch of {batch} of {size}"
            if (difference := float(np.abs(got - expected).max())) > _CLOSE or math.isnan(difference):
                return f"differs from torch by {difference:.2g} for a batch of {batch} of {size}"
        return None

    def _example(self, batch: int, size: Sequence[int]) -> torch.Tensor:
        """Seeded noise; a batch of 1 would make the exporter take 1 for the only size."""
        generator = torch.Generator().manual_seed(batch)
        return torch.randn(batch, self.channels, *size, generator=generator)


def _without_traces(path: Path) -> None:
    """Take out where in which file of this machine each node was written: exporters note it, folders name people."""
    import onnx

    model = onnx.load(path)
    for item in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        item.ClearField("doc_string")
        if hasattr(item, "metadata_props"):
            item.ClearField("metadata_props")
    for value in (*model.graph.input, *model.graph.output, *model.functions):
        value.ClearField("metadata_props")
    onnx.save(model, path)


def _session(path: Path) -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a wrong claim is an answer here, not news for the terminal
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image})[0]


def require_packages() -> None:
    """Raise UsageError that names the extra where a package that the export needs is absent."""
    for module in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(module)
        except ImportError:
            raise needs("onnx", module) from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters: progress prints, deprecation warnings and pages of log on a failed attempt."""
    chatty = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in chatty]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        for logger in chatty:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(chatty, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    """Raise TimeoutError after a while (in the main thread only: elsewhere there is no alarm to set)."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
