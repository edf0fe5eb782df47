"""Regions drawn on an image, before they are one label map: segments of a DICOM-SEG, structures of an RTSTRUCT."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from medlight.scans.orientation import Affine

Code = tuple[str, str, str]
Array = npt.NDArray[Any]
Points = npt.NDArray[np.float64]

# How far a drawing may be from the voxels it is of. Slices of a series that is read may lie a tenth of a step, or
# 0.1 mm sideways, from an even grid (dicom/geometry.py), and headers round; another grid is off by more.
OFF_GRID, _OFF_MM, _OFF_MOST = 0.15, 0.11, 0.3  # voxels, mm, voxels
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's axes run to the left, to the back and up


@dataclass(frozen=True)
class Region:
    """One thing that was drawn: its number in the file, its name, and its coded term (value, scheme, meaning)."""

    number: int
    name: str
    code: Code | None = None


@dataclass(frozen=True)
class Piece:
    """A part of a region on a grid: ``array[at]`` has the shape of ``values``, which are bool, or fractions 0 to 1."""

    number: int
    at: tuple[slice, slice, slice]
    values: Array


@dataclass(frozen=True)
class Grid:
    """Voxels and where they lie: shape ``(I, J, K)``, affine from voxel index to RAS+ millimetres."""

    shape: tuple[int, int, int]
    affine: Affine

    @property
    def slack(self) -> npt.NDArray[np.float64]:
        """How far a drawing may be from the voxels it is of, in voxels along I, J, K."""
        spacing = np.linalg.norm(self.affine[:3, :3], axis=0)
        return np.clip(_OFF_MM / spacing, OFF_GRID, _OFF_MOST)

    def voxels(self, points: Points) -> Points:
        """Turn ``(N, 3)`` points in RAS+ millimetres into voxel indices."""
        inverse = np.linalg.inv(self.affine)
        return points @ inverse[:3, :3].T + inverse[:3, 3]


def origin(series_uid: str, frame_of_reference: str) -> dict[str, str]:
    """Say of what series and frame of reference an image is by digests, so that a drawing of another one is known."""
    uids = {"series": series_uid, "frame_of_reference": frame_of_reference}
    return {name: digest_of(uid) for name, uid in uids.items() if uid}


def digest_of(uid: str) -> str:
    """A short name for a UID, the same on every machine, from which the UID can't be had."""
    return hashlib.sha256(uid.encode()).hexdigest()[:10]


class Drawing(Protocol):
    """A file of regions."""

    @property
    def regions(self) -> tuple[Region, ...]:
        """What it holds."""

    @property
    def series(self) -> frozenset[str]:
        """UIDs of the series that it refers to."""

    @property
    def frame_of_reference(self) -> str:
        """The UID of the frame of reference that it was drawn in, empty where not said."""

    @property
    def file(self) -> str:
        """What it is called in an error."""

    @property
    def kind(self) -> Literal["segment", "structure"]:
        """What its regions are called."""

    def pieces(self, grid: Grid, wanted: Collection[int], cut: bool = False) -> Iterator[Piece]:
        """Give the wanted regions on a grid; MedlightError for what lies between its voxels.

        cut: the grid is known to be a part of what was drawn on; else what lies outside is an error too.
        """


@dataclass(frozen=True)
class Plane:
    """A plane of pixels in the patient, in RAS+ millimetres. shape: rows and columns.

    corner: the first pixel's centre. column_step, row_step: from there to the next column, to the next row.
    """

    shape: tuple[int, int]
    corner: Points
    column_step: Points
    row_step: Points

    @classmethod
    def from_dicom(cls, shape: tuple[int, int], position: Points, orientation: Points, spacing: Points) -> Plane:
        """Take Image Position, Image Orientation and Pixel Spacing as DICOM has them (PS3.3 C.7.6.2.1.1)."""
        turn = TO_RAS[:3, :3]
        return cls(shape, turn @ position, turn @ orientation[:3] * spacing[1], turn @ orientation[3:] * spacing[0])


@dataclass(frozen=True)
class Seat:
    """Where a plane's pixels sit on a grid.

    fits: every pixel's centre is a voxel's. off: how far the furthest is from one, in voxels.
    outside: no pixel is on the grid. axes: of the grid, along the plane's columns and its rows. steps: 1 or -1 each.
    start: the voxel of the first pixel.
    """

    fits: bool
    off: float
    outside: bool
    axes: tuple[int, int]
    steps: tuple[int, int]
    start: tuple[int, int, int]

    def take(self, pixels: Array, shape: tuple[int, int, int]) -> tuple[tuple[slice, slice, slice], Array]:
        """Turn ``(rows, columns)`` pixels into an index of an ``(I, J, K)`` array and the values there, cut to it."""
        at = [slice(n, n + 1) for n in self.start]
        turned = pixels.T
        for axis, step, dimension in zip(self.axes, self.steps, (0, 1), strict=True):
            count = turned.shape[dimension]
            if step < 0:
                turned = np.flip(turned, dimension)
            first = self.start[axis] - (count - 1 if step < 0 else 0)
            low = min(max(first, 0), shape[axis])
            high = max(min(first + count, shape[axis]), low)
            kept = slice(low - first, high - first) if high > low else slice(0)
            turned = turned[kept] if dimension == 0 else turned[:, kept]
            at[axis] = slice(low, high)
        if self.axes[0] > self.axes[1]:
            turned = turned.T
        across = 3 - sum(self.axes)
        if not 0 <= self.start[across] < shape[across]:
            turned, at = turned[:0, :0], [slice(0)] * 3
            return (at[0], at[1], at[2]), turned[:, :, None]
        return (at[0], at[1], at[2]), np.expand_dims(turned, across)


def seat(plane: Plane, grid: Grid) -> Seat:
    """Find the voxels that a plane's pixels are, whichever way the grid's axes run."""
    inverse = np.linalg.inv(grid.affine)[:3, :3]
    steps = np.stack([inverse @ plane.column_step, inverse @ plane.row_step])
    axes = _axes(steps)
    signs = [1 if step[axis] > 0 else -1 for step, axis in zip(steps, axes, strict=True)]
    straight = np.zeros((2, 3))
    straight[(0, 1), axes] = signs
    rows, columns = plane.shape
    corners = np.array([(c, r) for c in (0, columns - 1) for r in (0, rows - 1)], float)
    lead = grid.voxels(plane.corner[None]) + corners @ (steps - straight)
    start = np.rint(lead.mean(axis=0))
    covered = start + corners @ straight
    outside = bool((covered.max(axis=0) < 0).any() or (covered.min(axis=0) >= grid.shape).any())
    first = tuple(int(n) for n in np.clip(start, -1e9, 1e9))
    off = np.abs(lead - start).max(axis=0)
    return Seat(bool((off <= grid.slack).all()), float(off.max()), outside, axes, (signs[0], signs[1]), first)  # type: ignore[arg-type]


def _axes(steps: Points) -> tuple[int, int]:
    """Return the two different grid axes that the columns and the rows run along, the clearer one first to choose."""
    size = np.abs(steps)
    across = int(size[0].argmax())
    size[1, across] = -1
    return across, int(size[1].argmax())
