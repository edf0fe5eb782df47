"""Slices that don't make an even, upright grid, resampled onto one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from medlight.scans.dicom.frames import Frame
from medlight.scans.dicom.geometry import SIDEWAYS_MM
from medlight.scans.grid import Affine

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_SAME = 1e-4  # of a voxel or of the way between two slices: as good as on it, and then no value is changed
_TO_RAS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Slices:
    """Where slices lie, seen from the first one's first voxel.

    origin: that voxel in RAS+ millimetres. basis: 3x3, its columns one voxel along I, one along J, and 1 mm along the
    normal. heights: ``(K,)``, millimetres along the normal, growing. shifts: ``(K, 2)``, voxels along I and J.
    """

    origin: Floats
    basis: Floats
    heights: Floats
    shifts: Floats

    @classmethod
    def of(cls, frames: Sequence[Frame], affine: Affine) -> Slices:
        """Take the places of one channel's frames, and the steps within the plane from the affine."""
        places = np.array([frame.position for frame in frames], np.float64) * _TO_RAS
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        normal /= np.linalg.norm(normal)
        if (places[-1] - places[0]) @ normal < 0:
            normal = -normal
        basis = np.column_stack([affine[:3, 0], affine[:3, 1], normal])
        seen = np.linalg.solve(basis, (places - places[0]).T).T
        return cls(places[0], basis, seen[:, 2], seen[:, :2])

    @property
    def places(self) -> Floats:
        """The first voxel of each slice, ``(K, 3)`` in RAS+ millimetres."""
        return self.origin + np.column_stack([self.shifts, self.heights]) @ self.basis.T

    @property
    def affine(self) -> Affine:
        """The grid's affine, the slices taken as even."""
        affine = np.eye(4)
        places = self.places
        affine[:3, :2] = self.basis[:, :2]
        affine[:3, 2] = (places[-1] - places[0]) / (len(places) - 1)
        affine[:3, 3] = places[0]
        return affine

    @property
    def tilt(self) -> float:
        """How far the line from the first slice to the last leans from the normal, in degrees."""
        across = np.linalg.norm(self.basis[:, :2] @ (self.shifts[-1] - self.shifts[0]))
        return float(np.degrees(np.arctan2(across, self.heights[-1])))

    def frames(self, like: Frame) -> list[Frame]:
        """Frames at these places, to be judged as a scanner's are."""
        x_y_z = (self.places * _TO_RAS).tolist()
        return [replace(like, position=(x, y, z)) for x, y, z in x_y_z]

    def filled(self) -> Slices:
        """Put slices into the gaps, as many as are missing; those there are stay where they are."""
        counts = counted(self.heights)
        return self._at(np.interp(np.arange(counts.sum() + 1), np.concatenate([[0], np.cumsum(counts)]), self.heights))

    def even(self) -> Slices:
        """Space slices evenly on a line from the first to the last, as near to the middle spacing as that allows."""
        count = max(2, round(float(self.heights[-1] / np.median(np.diff(self.heights)))))
        straight = replace(self, heights=self.heights[[0, -1]], shifts=self.shifts[[0, -1]])
        return straight._at(np.linspace(0.0, self.heights[-1], count + 1))

    def upright(self) -> Slices:
        """Put every slice straight above the first."""
        return replace(self, shifts=np.zeros_like(self.shifts))

    def _at(self, heights: Floats) -> Slices:
        return replace(self, heights=heights, shifts=self.line(heights))

    def line(self, heights: Floats) -> Floats:
        """The shifts at any heights, linear between slices."""
        return np.stack([np.interp(heights, self.heights, self.shifts[:, axis]) for axis in (0, 1)], axis=1)


def counted(heights: Floats) -> npt.NDArray[np.int64]:
    """How many steps of the usual length lie between slices: more than one where some are missing.

    The usual step is the median, or the shortest where more are missing than not: whichever makes slices more even.
    """
    steps = np.diff(heights)
    guesses = [np.maximum(1, np.rint(steps / base)).astype(np.int64) for base in (np.median(steps), steps.min())]
    return min(guesses, key=lambda counts: float(np.ptp(steps / counts)))


def widened(now: Slices, then: Slices, shape: tuple[int, ...]) -> tuple[Floats, Floats, tuple[int, int]]:
    """Say what bringing slices from where they are to where they are to be takes within their planes.

    Returns the shift of each slice, in voxels; the lowest of them, as whole voxels; and how many voxels along I and J
    hold every slice. Shifts of less than ``SIDEWAYS_MM`` are the rounding of positions, and are left.
    """
    shifts = now.shifts - then.line(now.heights)
    if np.linalg.norm(shifts @ now.basis[:, :2].T, axis=1).max() <= SIDEWAYS_MM:
        return np.zeros_like(shifts), np.zeros(2), (shape[0], shape[1])
    shifts = np.where(np.abs(shifts - np.rint(shifts)) < _SAME, np.rint(shifts), shifts)
    low = np.floor(shifts.min(axis=0))
    room = np.ceil(shifts.max(axis=0)) - low
    return shifts, low, (shape[0] + int(room[0]), shape[1] + int(room[1]))


def reslice(array: Array, now: Slices, then: Slices, fill: float) -> tuple[Array, Affine]:
    """Resample ``(C, I, J, K)`` linearly from one set of slices to another; whole numbers are rounded, types are kept.

    Where slices move within their planes the grid is widened to hold all of them; ``fill`` is what none of them shows.
    """
    shifts, low, size = widened(now, then, array.shape[1:3])
    exact = np.float32 if array.dtype.itemsize <= 2 or array.dtype == np.float32 else np.float64
    made = np.moveaxis(np.empty((len(array), len(then.heights), *size), array.dtype), 1, 3)  # a slice lies in one piece
    for source, target in zip(array, made, strict=True):
        for place, parts in enumerate(_between(now.heights, then.heights)):
            plane: Any = 0.0
            for k, weight in parts:
                plane = plane + weight * _placed(source[..., k].astype(exact), shifts[k] - low, size, fill)
            target[..., place] = np.rint(plane) if array.dtype.kind in "iu" else plane
    affine = then.affine
    affine[:3, 3] += then.basis[:, :2] @ low
    return made, affine


def _between(now: Floats, then: Floats) -> list[list[tuple[int, float]]]:
    """For each wanted height the slices it lies between, with their weights; the one slice that it is on."""
    below = np.clip(np.searchsorted(now, then, side="right") - 1, 0, len(now) - 2)
    share = np.clip((then - now[below]) / (now[below + 1] - now[below]), 0.0, 1.0)
    share = np.where(np.abs(share - np.rint(share)) < _SAME, np.rint(share), share)
    pairs = zip(below.tolist(), share.tolist(), strict=True)
    return [[(k, w) for k, w in ((at, 1 - part), (at + 1, part)) if w > 0] for at, part in pairs]


def _placed(plane: Array, shift: Floats, size: tuple[int, int], fill: float) -> Array:
    """Put a plane on a larger one, shifted by ``shift`` (not negative) voxels; bilinear, ``fill`` round it."""
    if plane.shape == size and not shift.any():
        return plane
    whole = np.floor(shift + _SAME).astype(int)
    canvas = np.full(size, fill, plane.dtype)
    canvas[whole[0] : whole[0] + plane.shape[0], whole[1] : whole[1] + plane.shape[1]] = plane
    for axis, part in enumerate(shift - whole):
        if part > _SAME:
            before = np.roll(canvas, 1, axis)
            before[(slice(None),) * axis + (0,)] = fill
            canvas += part.astype(plane.dtype) * (before - canvas)
    return canvas
