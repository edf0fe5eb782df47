"""Where a file says its voxels lie: read from the header alone, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medlight.cgroups import free_memory
from medlight.errors import MedlightError
from medlight.scans.files import shown

Affine = npt.NDArray[np.float64]

MOST_BYTES = 16 << 30  # a 4D scan of a thousand heads' size; more is a header that lies
_FURTHEST = 1e6  # millimetres: more is a damaged header, or another unit
_SMALL = 1 << 30  # below this the machine's free memory isn't asked

# DICOM, NRRD and ITK count positions to the left, back and up (LPS); here they run right, forward and up (RAS).
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class FileGrid:
    """A file's voxels before they are read.

    shape: ``(C, I, J, K)``. affine: voxel index to RAS+ millimetres.
    fault: why the file isn't read, one sentence with the mend; empty where nothing is wrong.
    remarks: what is odd about it and doesn't keep it from being read.
    """

    shape: tuple[int, int, int, int]
    affine: Affine
    fault: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along I, J, K in millimetres."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return i, j, k

    @property
    def meta(self) -> dict[str, Any]:
        """What a Volume's meta keeps of it."""
        return {"remarks": list(self.remarks)} if self.remarks else {}

    def checked(self, path: Path) -> FileGrid:
        """Return the grid; MedlightError where it has a fault."""
        if self.fault:
            raise MedlightError(f"{shown(path)}: {self.fault}")
        return self


def affine_fault(affine: Affine, mend: str) -> str:
    """Say why an affine gives voxels no place: not finite, singular or absurd; the empty string where it does."""
    if not np.isfinite(affine).all():
        return f"the affine has values that are not finite; {mend}"
    if np.abs(affine[:3]).max() > _FURTHEST:
        return f"the affine speaks of {np.abs(affine[:3]).max():.3g} mm, which no patient measures; {mend}"
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if (spacing <= 0).any() or abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-3:
        return f"the affine is singular, so voxels have no place; {mend}"
    return ""


def affine_from(steps: npt.NDArray[np.float64], origin: npt.NDArray[np.float64]) -> Affine:
    """Build an affine from what a header says: a step along each of two to four axes, and the first voxel's place.

    steps: a row for each axis of the image, in two to four dimensions. A missing third axis gets 1 mm, at right angles.
    Raises ValueError where the fourth (time, echoes) runs through space.
    """
    if steps.ndim != 2 or not (2 <= steps.shape[1] <= 4 and 2 <= len(steps) <= 4) or len(origin) != steps.shape[1]:
        raise ValueError("its axes run through fewer than two dimensions of space, or more than four")
    axes, dimensions = steps.shape
    if np.any(steps[3:, :3]) or np.any(steps[:3, 3:]):
        raise ValueError("its fourth axis runs through space")
    affine = np.eye(4)
    rows = np.zeros((3, 3))
    rows[: min(axes, 3), : min(dimensions, 3)] = steps[:3, :3]
    if axes < 3:
        normal = np.cross(rows[0], rows[1])
        rows[2] = normal / (np.linalg.norm(normal) or 1)
    affine[:3, :3] = rows.T
    affine[: min(dimensions, 3), 3] = origin[:3]
    return affine


def corners_apart(one: Affine, other: Affine, shape: tuple[int, ...]) -> float:
    """The furthest that two affines put any corner voxel of an ``(I, J, K)`` grid apart, in millimetres."""
    corners = np.array([[i, j, k, 1] for i in (0, shape[0] - 1) for j in (0, shape[1] - 1) for k in (0, shape[2] - 1)])
    return float(np.linalg.norm(corners @ (one - other)[:3].T, axis=1).max())


def bytes_needed(sizes: tuple[int, ...], dtype: np.dtype[Any], path: Path) -> int:
    """Return how many bytes an array takes; MedlightError where a size isn't positive or it doesn't fit in memory."""
    if not sizes or min(sizes) < 1:
        raise MedlightError(f"{shown(path)}: has no voxels (shape {sizes}); copy it again or remove it")
    needed = prod(sizes) * dtype.itemsize
    most = MOST_BYTES if needed <= _SMALL else min(MOST_BYTES, free_memory())
    if needed > most:
        said = f"its header says {'x'.join(map(str, sizes))} voxels, {needed / 2**30:.3g} GiB"
        raise MedlightError(f"{shown(path)}: {said}, and {most / 2**30:.3g} GiB fit; crop it or copy it again")
    return needed
