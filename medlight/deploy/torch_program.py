"""The network as a program that torch runs without the code it was written in (``torch.export``)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medlight.deploy.onnx_export import AXES, Exported, quiet
from medlight.errors import MedlightError

Array = npt.NDArray[np.float32]


def export_program(module: nn.Module, channels: int, window: Sequence[int], like: Exported, path: Path) -> None:
    """Write a network as ``model.pt2``; its free sizes are those that were proved of the ONNX export."""
    module = module.cpu().float().eval()
    multiple, free = like.size_multiple, len(like.dynamic_axes) > 1
    sizes = {0: torch.export.Dim("batch", min=1, max=64)}
    if free:
        sizes |= {axis + 2: multiple * torch.export.Dim(name) for axis, name in enumerate(AXES[: len(window)])}
    # a size of one multiple would be taken for the only one there is
    size = [side if side != multiple or not free else 2 * side for side in window]
    with torch.no_grad(), quiet():
        program = torch.export.export(module, (torch.zeros(2, channels, *size),), dynamic_shapes=(sizes,))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # files of this machine, whose folders name people
        torch.export.save(program, path)


def _without_type_checks(program: Any) -> nn.Module:
    """Take out the checks that tensors are float32, as they were when it was traced: autocast makes them bfloat16."""
    checks = [node for node in program.graph.nodes if node.target is torch.ops.aten._assert_tensor_metadata.default]
    for node in checks:
        program.graph.erase_node(node)
    program.recompile()
    module: nn.Module = program
    return module


@contextmanager
def _no_tf32() -> Iterator[None]:
    """Keep cuDNN from TF32, its default, which moves probabilities by 1e-3; the switches are the whole process's."""
    switches: Any = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn)  # type: ignore[attr-defined]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision


class TorchSession:
    """A program of torch, on the GPU where there is one, in bfloat16 by autocast where that is asked for.

    reason: one line that says what runs it.
    """

    def __init__(self, file: Path, precision: str, threads: int) -> None:
        """Load a program; MedlightError where it does not load in this torch."""
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._half, self._threads = precision == "bf16", threads
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._module = _without_type_checks(torch.export.load(file).module()).to(self._device)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise MedlightError(f"{file} does not load in torch {torch.__version__}: {error}") from None
        where = "CUDA" if self._device.type == "cuda" else f"the CPU with {threads} thread{'s' * (threads > 1)}"
        self.reason = f"torch {torch.__version__.split('+')[0]} on {where}"

    def __call__(self, image: Array) -> Array:
        """Run ``(B, C, ...)`` through the program; returns probabilities ``(B, L, ...)`` or ``(B, L)``."""
        if self._device.type == "cpu" and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        batch = torch.from_numpy(np.ascontiguousarray(image)).to(self._device)
        autocast = torch.autocast(self._device.type, torch.bfloat16, enabled=self._half)
        with torch.inference_mode(), autocast, _no_tf32():
            found: Array = self._module(batch).float().cpu().numpy()
        return found
