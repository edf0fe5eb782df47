"""FSL's files beside a diffusion scan: ``.bval`` (s/mm2, one a frame) and ``.bvec`` (unit vectors, one a frame).

The vectors run along the image's own axes, the first of them turned round where the affine has a positive determinant
(https://fsl.fmrib.ox.ac.uk/fsl/docs/#/diffusion/dtifit, "What conventions do the bvecs use?").
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medlight.errors import MedlightError
from medlight.scans.files import replacing, shown
from medlight.scans.grid import Affine
from medlight.scans.volume import Channel

_MOST_BYTES = 4 << 20  # tens of thousands of frames
_MEND = "correct it or take it away"


def read_table(path: Path, channels: tuple[Channel, ...], affine: Affine) -> tuple[Channel, ...]:
    """Add the b-values and gradients (RAS+) that lie beside the scan ``path`` to its channels, if any do.

    Raises MedlightError where a file holds no numbers or another count than the scan has frames.
    """
    b_values, vectors = _beside(path, ".bval"), _beside(path, ".bvec")
    if not b_values.is_file():
        return channels
    count = len(channels)
    values = _numbers(b_values).ravel()
    if len(values) != count or values.min(initial=0) < 0:
        raise MedlightError(f"{shown(b_values)}: {len(values)} b-values for a scan of {count} frames; {_MEND}")
    directions = _directions(vectors, affine, count) if vectors.is_file() else [None] * count
    described = zip(channels, values.tolist(), directions, strict=True)
    return tuple(replace(channel, b_value=b, gradient=gradient) for channel, b, gradient in described)


def write_table(path: Path, channels: tuple[Channel, ...], affine: Affine) -> None:
    """Write the b-values beside the scan ``path``, and the gradients if any; nothing where b isn't known."""
    b_values = [channel.b_value for channel in channels]
    if not b_values or any(b is None for b in b_values):
        return
    _write(_beside(path, ".bval"), np.array([b_values]), "%g")
    if any(channel.gradient for channel in channels):
        world = np.array([channel.gradient or (0.0, 0.0, 0.0) for channel in channels])
        _write(_beside(path, ".bvec"), np.linalg.solve(_to_world(affine), world.T), "%.6f")


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE) + suffix)


def _numbers(path: Path) -> npt.NDArray[np.float64]:
    """Read a table of numbers, bounded in size."""
    try:
        with path.open(encoding="ascii") as file:
            text = file.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise ValueError("too long")
        table = np.array([line.replace(",", " ").split() for line in text.splitlines() if line.strip()], np.float64)
    except (OSError, ValueError):
        raise MedlightError(f"{shown(path)}: is no table of numbers; {_MEND}") from None
    if not table.size or not np.isfinite(table).all():
        raise MedlightError(f"{shown(path)}: holds no numbers, or some that are not finite; {_MEND}")
    return table


def _directions(path: Path, affine: Affine, count: int) -> list[Any]:
    table = _numbers(path)
    if table.shape != (3, count):
        table = table.T  # some tools write a line for each frame
    if table.shape != (3, count):
        raise MedlightError(f"{shown(path)}: {table.shape[1]}x{table.shape[0]} numbers for {count} gradients; {_MEND}")
    world = (_to_world(affine) @ table).T
    lengths = np.linalg.norm(world, axis=1)
    return [tuple((v / n).tolist()) if n > 0 else None for v, n in zip(world, lengths, strict=True)]


def _to_world(affine: Affine) -> Affine:
    """Turn a vector of a ``.bvec`` to RAS+."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return axes * np.array([-1.0 if np.linalg.det(axes) > 0 else 1.0, 1.0, 1.0])


def _write(path: Path, table: npt.NDArray[np.float64], form: str) -> None:
    with replacing(path) as temporary:
        np.savetxt(temporary, table, fmt=form)
