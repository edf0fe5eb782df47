"""Kernel sizes and strides of a U-Net from the patch that it sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LEVELS = 6
SMALLEST = 4


def plan_dynunet(
    patch_size: Sequence[int], spacing: Sequence[float] | None = None, levels: int | None = None
) -> dict[str, Any]:
    """Return ``kernel_size``, ``strides`` and ``upsample_kernel_size`` for MONAI's DynUNet.

    After nnU-Net's heuristic (Isensee et al., Nature Methods 2021): an axis is halved while it stays even and keeps at
    least 4 voxels; an axis whose voxels are more than twice as thick as the finest is left alone, with a kernel of 1,
    until the others have caught up. So a patch size with many factors of two gives a deep network.

    patch_size: voxels along each spatial axis (2 or 3 of them).
    spacing: mm along each axis; ``None`` means isotropic.
    levels: how many resolutions, at least 3; by default as many as the patch allows, 6 at most. Levels that the patch
        does not allow keep the size of the one before.
    """
    size, mm = list(patch_size), list(spacing or [1.0] * len(patch_size))[: len(patch_size)]
    kernels, strides = [_kernel(mm)], [[1] * len(size)]
    while len(strides) < (levels or LEVELS):
        step = _step(size, mm)
        if levels is None and len(strides) >= 3 and max(step) == 1:
            break
        size = [n // s for n, s in zip(size, step, strict=True)]
        mm = [m * s for m, s in zip(mm, step, strict=True)]
        kernels.append(_kernel(mm))
        strides.append(step)
    return {"kernel_size": kernels, "strides": strides, "upsample_kernel_size": strides[1:]}


def _step(size: Sequence[int], mm: Sequence[float]) -> list[int]:
    able = [n % 2 == 0 and n // 2 >= SMALLEST for n in size]
    finest = min((m for m, can in zip(mm, able, strict=True) if can), default=0.0)
    return [2 if can and m <= 2 * finest else 1 for m, can in zip(mm, able, strict=True)]


def _kernel(mm: Sequence[float]) -> list[int]:
    return [3 if m <= 2 * min(mm) else 1 for m in mm]
