"""How much memory a prediction takes, before it is begun."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from medlight.cgroups import free_memory
from medlight.errors import MedlightError
from medlight.prepare.interpolate import SLAB
from medlight.prepare.preparation import Preparation
from medlight.scans.volume import Volume

_FLOAT = 4
_MAPS = (
    150  # feature maps of a window that a residual U-Net of 32 filters has in memory at its peak: 151 in onnxruntime
)
_SMALL = 2**28  # bytes: there is always as much


def needed(
    bundle: Any, preparation: Preparation, scans: Mapping[str, Volume], *, probabilities: bool = False, batch: int = 1
) -> int:
    """Return the bytes that predicting scans takes on top of what is in memory now, the scans themselves included.

    probabilities: whether all of them are held at once, and not only those that are being worked on.
    """
    first = next(iter(scans.values()))
    own, (_, shape) = prod(first.shape), preparation.grid(first)
    frames = preparation.clip_frames(dict(scans))
    shape = (*shape[:2], frames) if frames else shape
    channels, labels = len(bundle.data["channels"]), len(bundle.outputs)
    image = channels * prod(shape) * _FLOAT
    resampled = 0 if shape == first.shape else (prod(shape) + SLAB) * _FLOAT  # what lies between two axes
    window = [min(n, size) if n == 1 else n for n, size in zip([*bundle.window["size"], 1][:3], shape, strict=True)]
    maps = network(bundle, window, batch)
    if bundle.task == "classification":
        return image + max(resampled, maps)
    rows = min(window[0], shape[0])
    sums = (labels + 1) * window[0] * prod(max(n, w) for n, w in zip(shape[1:], window[1:], strict=True)) * _FLOAT
    whole = labels * prod(shape) * _FLOAT if probabilities or frames else 0
    vote = 4 * _FLOAT * own * (1 if whole else min(1.0, 2 * rows / shape[0]))
    written = 2 * own  # the label map, and its planes as the file has them
    return int(max(image + resampled, image + sums + whole + maps + vote + written))


def network(bundle: Any, window: Sequence[int], batch: int = 1) -> int:
    """Return the bytes that a network takes for ``batch`` windows of a size in voxels."""
    return batch * prod(window) * (len(bundle.data["channels"]) + len(bundle.outputs) + _MAPS) * _FLOAT


def free() -> int:
    """Return the bytes of memory that are free here, in a container what it may still take."""
    return free_memory()


def affordable(
    bundle: Any, preparation: Preparation, scans: Mapping[str, Volume], *, probabilities: bool = False, batch: int = 1
) -> int:
    """Return how many windows may run at once: ``batch``, or 1 where there is no memory for as many.

    Raises MedlightError with the figures where a prediction takes more memory than is free even so.
    """
    there = free()
    for windows in (batch, 1):
        size = needed(bundle, preparation, scans, probabilities=probabilities, batch=windows)
        if size <= max(there, _SMALL):
            return windows
    shape = "x".join(map(str, next(iter(scans.values())).shape))
    raise MedlightError(
        f"its {shape} voxels and the bundle's {len(bundle.outputs)} outputs take {size / 2**30:.1f} GiB of memory, "
        f"and {there / 2**30:.1f} are free; use a machine with more, or leave it out"
    )
