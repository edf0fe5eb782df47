"""DICOM segmentation objects: binary, fractional, overlapping, and label maps (PS3.3 A.51, C.8.20)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from medlight.errors import MedlightError
from medlight.scans.dicom.archive import check_memory
from medlight.scans.files import shown
from medlight.scans.labels import drawing_of
from medlight.scans.orientation import Affine
from medlight.scans.regions import OFF_GRID, TO_RAS, Array, Code, Grid, Points
from medlight.scans.seg_frames import SegmentFrames
from medlight.scans.seg_writing import write_seg

__all__ = ["Segment", "Segmentation", "own_grid", "read_seg", "write_seg"]

_SAME_SLICE = 0.01  # mm
_MOST_VOXELS = 2**31  # a thousand slices of 1448x1448


@dataclass(frozen=True)
class Segment:
    """One segment on a grid. mask: ``(I, J, K)``, bool, or float32 fractions 0 to 1 where ``fractional``."""

    number: int
    label: str
    code: Code | None
    mask: Array


@dataclass(frozen=True)
class Segmentation:
    """What a DICOM-SEG holds, each segment for itself, so that they may overlap. affine: voxel to RAS+ millimetres."""

    segments: list[Segment]
    affine: Affine
    fractional: bool = False


def read_seg(path: Path, grid: Grid | None = None) -> Segmentation:
    """Read a DICOM-SEG onto a grid; with none, onto the smallest regular one that holds its frames.

    Raises MedlightError, naming the file and the mend, where it is no segmentation, can't be placed or decoded, or its
    segments take more memory than is free.
    """
    drawing = drawing_of(Path(path))
    if not isinstance(drawing, SegmentFrames):
        raise MedlightError(f"{shown(Path(path))}: is no DICOM-SEG; give one")
    grid = grid or own_grid(drawing)
    fractional = drawing.segmentation == "FRACTIONAL"
    check_memory(drawing.place, prod(grid.shape) * len(drawing.regions) * (4 if fractional else 1))
    numbers = [region.number for region in drawing.regions]
    masks = {number: np.zeros(grid.shape, np.float32 if fractional else bool, order="F") for number in numbers}
    for piece in drawing.pieces(grid, numbers):
        there = masks[piece.number][piece.at]
        np.maximum(there, piece.values, out=there)
    segments = [Segment(r.number, r.name, r.code, masks[r.number]) for r in drawing.regions]
    return Segmentation(segments, grid.affine, fractional)


def own_grid(drawing: SegmentFrames) -> Grid:
    """Return the smallest regular grid that holds all frames; MedlightError where there is none."""
    planes = [frame.plane for frame in drawing.frames if frame.plane is not None]
    if len(planes) < len(drawing.frames):
        return Grid((drawing.shape[1], drawing.shape[0], 1), TO_RAS.copy())
    first = planes[0]
    normal = np.cross(first.column_step, first.row_step)
    normal /= np.linalg.norm(normal)
    places = np.array([(plane.corner - first.corner) @ normal for plane in planes])
    step = _step(np.sort(places), drawing.step)
    low, high = planes[int(places.argmin())], planes[int(places.argmax())]
    count = int(np.rint(np.ptp(places) / step)) + 1
    shape = (drawing.shape[1], drawing.shape[0], count)
    if prod(shape) > _MOST_VOXELS:
        raise MedlightError(
            f"{drawing.file}: its frames span absurdly many voxels ({shape}); export the segmentation again"
        )
    along = (high.corner - low.corner) / (count - 1) if count > 1 else normal * step  # tilted slices lie askew
    affine = np.eye(4)
    affine[:3, :3] = np.stack([first.column_step, first.row_step, along], axis=1)
    affine[:3, 3] = low.corner
    return Grid(shape, affine)


def _step(places: Points, said: float) -> float:
    """Return the distance of slices: what the file says where its frames agree, else the smallest between two frames.

    Frames may be left out, so that each lies a whole number of steps from the next; but what is said is often wrong.
    """
    steps = np.diff(places)
    steps = steps[steps > _SAME_SLICE]
    if not len(steps):
        return said or 1.0
    whole = np.rint(steps / said) if said else np.zeros(len(steps))
    agree = (whole >= 1).all() and (np.abs(steps - whole * said) < OFF_GRID * said).all()
    return said if agree else float(steps.min())
