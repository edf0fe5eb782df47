"""Where a patch lies in a prepared case."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from medlight.errors import UsageError

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Patch:
    """Training patches.

    Args:
        size: voxels along I, J, K of the prepared image; two numbers for 2D images.
        foreground: share of the patches, in [0, 1], that are centred on a random voxel of a random class of those the
            case has (background aside); the others lie anywhere in the image with equal probability.
    """

    size: list[int]
    foreground: float = 0.33

    def __post_init__(self) -> None:
        if len(self.size) not in (2, 3) or min(self.size) < 1:
            raise UsageError(f"data.patch.size: {self.size} is no patch size; write two or three whole numbers above 0")
        if not 0 <= self.foreground <= 1:
            raise UsageError(f"data.patch.foreground: {self.foreground} is no share; write a number from 0 to 1")

    @property
    def shape(self) -> Triple:
        """Size along I, J, K; 1 along K in 2D."""
        i, j, k = (*self.size, 1)[:3]
        return i, j, k


@dataclass(frozen=True)
class Window:
    """A box of voxels, ``low`` inclusive; parts of it may lie outside the image."""

    low: Triple
    size: Triple

    def wider(self, reach: Triple) -> Window:
        """Return this window with ``reach`` voxels more on both sides of each axis."""
        low = [a - r for a, r in zip(self.low, reach, strict=True)]
        size = [n + 2 * r for n, r in zip(self.size, reach, strict=True)]
        return Window((low[0], low[1], low[2]), (size[0], size[1], size[2]))

    def inside(self, shape: Triple) -> Window:
        """The part of this window that lies within an image of this shape; at least one voxel."""
        low = [min(max(a, 0), n - 1) for a, n in zip(self.low, shape, strict=True)]
        ends = zip(self.low, self.size, shape, low, strict=True)
        size = [max(min(a + s, n) - b, 1) for a, s, n, b in ends]
        return Window((low[0], low[1], low[2]), (size[0], size[1], size[2]))

    def seen_from(self, other: Window) -> Window:
        """Return this window in voxels counted from another window's low corner."""
        low = [a - b for a, b in zip(self.low, other.low, strict=True)]
        return Window((low[0], low[1], low[2]), self.size)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Slices of the three spatial axes; the window must lie inside."""
        i, j, k = (slice(a, a + n) for a, n in zip(self.low, self.size, strict=True))
        return i, j, k


def place(size: Triple, shape: Triple, rng: np.random.Generator, around: npt.NDArray[np.integer] | None) -> Window:
    """Choose where a patch lies.

    Along an axis where the image is larger than the patch the patch stays within the image: as near as it can to be
    centred on the voxel ``around``, or anywhere with equal probability where that is None. Along an axis where the
    image is smaller, the image is in the middle of the patch, where sliding-window inference puts it too.
    """
    low = []
    for axis in range(3):
        spare = shape[axis] - size[axis]
        if spare <= 0:
            low.append(-(-spare // 2))
        elif around is None:
            low.append(int(rng.integers(spare + 1)))
        else:
            low.append(min(max(int(around[axis]) - size[axis] // 2, 0), spare))
    return Window((low[0], low[1], low[2]), size)


def cut(array: torch.Tensor, window: Window, value: float = 0.0) -> torch.Tensor:
    """Return the window of a ``(C, I, J, K)`` tensor; where it reaches outside, ``value``. A view where it can be."""
    shape = (int(array.shape[1]), int(array.shape[2]), int(array.shape[3]))
    if window.low == (0, 0, 0) and window.size == shape:
        return array
    low = [max(a, 0) for a in window.low]
    high = [min(a + s, n) for a, s, n in zip(window.low, window.size, shape, strict=True)]
    part = array[:, low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    if tuple(part.shape[1:]) == window.size:
        return part
    pads: list[int] = []
    for axis in (2, 1, 0):
        pads += [low[axis] - window.low[axis], window.low[axis] + window.size[axis] - high[axis]]
    return functional.pad(part, pads, value=value)
