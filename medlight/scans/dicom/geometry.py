"""Where slices lie, whether they make one even volume, and if not, which of them are to blame and by how much."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medlight.scans.dicom.frames import Frame, Vector, Verdict
from medlight.scans.grid import LPS_TO_RAS, Affine

# Positions repeat to the last digit when a place is scanned again; this is ten times the usual rounding of them.
SAME_MM = 0.01
# How far a slice may lie from where an even spacing puts it. Tables are read to 0.1 mm, so positions are rounded by
# half of that; thick slices may be off by a fiftieth; thin ones by a tenth at most, or a missing one goes unseen.
EVEN_MM, EVEN_OF_THICK, EVEN_OF_THIN = 0.05, 0.02, 0.1
# A slice may be off sideways by as much as along the normal. A lean below these is rounding in direction cosines of
# three digits; the affine has it all the same.
SIDEWAYS_MM, TILT_DEGREES, TILT_MM = 0.1, 0.1, 0.1
# Direction cosines are unit vectors at right angles (PS3.3 C.7.6.2.1.1); two digits are the fewest that are met.
COSINE = 0.01
_GAP_OF_STEPS = 1 / 3  # so many steps must be single ones, or what is single can't be told
_TOLD = 3  # gaps that are told one by one


def normal_of(frame: Frame) -> npt.NDArray[np.float64]:
    """The unit vector at right angles to a frame, in LPS: along the row crossed with along the column."""
    assert frame.along_row is not None
    assert frame.along_column is not None
    across = np.cross(np.array(frame.along_row), np.array(frame.along_column))
    return np.asarray(across / np.linalg.norm(across))


def placed(frame: Frame) -> bool:
    """Whether a frame says where it lies, with directions that make sense."""
    if frame.position is None or frame.along_row is None or frame.along_column is None:
        return False
    across, down = np.array(frame.along_row), np.array(frame.along_column)
    off = (abs(across @ across - 1), abs(down @ down - 1), abs(across @ down))
    return bool(max(off) < COSINE)


def slice_positions(frames: Sequence[Frame]) -> npt.NDArray[np.float64]:
    """Where frames lie along the normal of the first, in mm; the frames all have a place."""
    return np.asarray(_positions(frames) @ normal_of(frames[0]))


def usual_step(frames: Sequence[Frame]) -> float:
    """The middle one of the steps between the places of frames, in mm; 0 where all lie at one."""
    steps = np.diff(np.sort(slice_positions(frames)))
    return float(np.median(steps[steps >= SAME_MM])) if (steps >= SAME_MM).any() else 0.0


def _positions(frames: Sequence[Frame]) -> npt.NDArray[np.float64]:
    return np.array([frame.position for frame in frames], dtype=np.float64)


def along_normal(frames: Sequence[Frame]) -> list[Frame]:
    """Frames from the lowest to the highest along the normal; those at one place by InstanceNumber, then by name."""
    if not all(map(placed, frames)):
        return list(frames)
    heights = slice_positions(frames).tolist()
    told = zip(heights, frames, strict=True)
    return [f for _, f in sorted(told, key=lambda pair: (pair[0], pair[1].instance or 0, pair[1].place, pair[1].index))]


def continues(frames: Sequence[Frame], other: Frame) -> bool:
    """Whether a frame lies one step before the first or behind the last of a volume's slices, and looks like them.

    A single slice has no step: any frame in its direction will do.
    """
    first, count = frames[0], len(frames)
    if not placed(first) or not placed(other) or other.shape != first.shape:
        return False
    mine, theirs = ((*(one.along_row or ()), *(one.along_column or ()), *(one.spacing or ())) for one in (first, other))
    if len(mine) != len(theirs) or np.abs(np.array(mine) - np.array(theirs)).max() > COSINE:
        return False
    if count == 1:
        return True
    start, end, there = _positions([first, frames[-1], other])
    step = (end - start) / (count - 1)
    near = SIDEWAYS_MM + tolerance(float(np.linalg.norm(step)))
    return bool(min(np.linalg.norm(there - place) for place in (start - step, end + step)) <= near)


def affine(frames: Sequence[Frame]) -> Affine:
    """The 4x4 affine of one channel's frames in order: column, row and slice to RAS+ millimetres.

    The step from slice to slice is that of the positions, from the first to the last: sheared where the stack is
    tilted. One slice steps by its thickness (1 mm where it has none) along its normal. A picture with no place lies at
    the origin, seen as a radiograph is hung; pixels of no known size are 1 mm.
    """
    first, last = frames[0], frames[-1]
    lps = np.eye(4)
    between_rows, between_columns = first.spacing or (1.0, 1.0)
    if placed(first):
        lps[:3, 0], lps[:3, 1], lps[:3, 3] = _vectors(first)
    lps[:3, 2] = np.cross(lps[:3, 0], lps[:3, 1]) * (first.thickness or 1.0)
    if len(frames) > 1 and placed(first) and placed(last):
        way = np.array(last.position) - np.array(first.position)
        if abs(way @ normal_of(first)) >= SAME_MM:
            lps[:3, 2] = way / (len(frames) - 1)
    lps[:3, 0] *= between_columns
    lps[:3, 1] *= between_rows
    return np.asarray(LPS_TO_RAS @ lps)


def _vectors(frame: Frame) -> tuple[Vector, Vector, Vector]:
    assert frame.along_row is not None
    assert frame.along_column is not None
    assert frame.position is not None
    return frame.along_row, frame.along_column, frame.position


def verdict(frames: Sequence[Frame]) -> Verdict:
    """Whether one channel's frames make an even volume; where several things are wrong, the first of ``problems``."""
    found = problems(frames)
    return found[0] if found else Verdict()


def problems(frames: Sequence[Frame]) -> list[Verdict]:
    """All that keeps frames of one shape and orientation from being an even volume, what is mended first coming first.

    Slices are counted from 1, from the lowest along the normal.
    """
    lost = sum(not placed(frame) for frame in frames)
    if lost:
        whole = "a slice" if len(frames) == 1 else f"{lost} of {len(frames)} slices"
        return [Verdict("not-a-volume", f"{whole} with no place in the patient (0020,0032 and 0020,0037)")]
    if any(frame.spacing is None for frame in frames):
        return [Verdict("not-a-volume", "pixels of no known size (PixelSpacing (0028,0030))")]
    if len(frames) == 1:
        return [Verdict("not-a-volume", "a single slice")]
    ordered = along_normal(frames)
    heights = slice_positions(ordered)
    twice = [at for at, step in enumerate(np.diff(heights).tolist()) if step < SAME_MM]
    if twice:
        return [_duplicates(twice, heights)]
    found = [_pair(ordered, heights)] if len(ordered) == 2 else [_spacing(heights)]
    across = _positions(ordered)
    found += [_sideways(across, heights, normal_of(ordered[0])), _tilt(ordered, across)]
    return [judged for judged in found if judged is not None]


def _duplicates(twice: list[int], heights: npt.NDArray[np.float64]) -> Verdict:
    if heights[-1] - heights[0] < SAME_MM:
        return Verdict("not-a-volume", f"{len(heights)} slices at one place")
    at = twice[0]
    more = f", and {len(twice) - 1} more like that" if len(twice) > 1 else ""
    return Verdict("duplicate", f"slices {at + 1} and {at + 2} of {len(heights)} lie at one place{more}")


def tolerance(step: float) -> float:
    """How far a slice may lie from where it should, in mm."""
    return min(max(EVEN_MM, EVEN_OF_THICK * step), EVEN_OF_THIN * step)


def _pair(frames: Sequence[Frame], heights: npt.NDArray[np.float64]) -> Verdict | None:
    """Two slices can't show that their distance is the usual one: thickness or spacing must say that none is lost."""
    step = float(heights[1] - heights[0])
    said = [length for frame in frames for length in (frame.interval, frame.thickness) if length]
    if any(abs(step - abs(length)) <= tolerance(step) for length in said):
        return None
    detail = f"only 2 slices, {step:.4g} mm apart, and no thickness or spacing says that none is missing between them"
    return Verdict("not-a-volume", detail)


def _spacing(heights: npt.NDArray[np.float64]) -> Verdict | None:
    steps = np.diff(heights)
    if _even(heights, np.ones(len(steps))):
        return None
    for base in (float(np.median(steps)), float(steps.min())):
        counts = np.maximum(np.rint(steps / base), 1)
        if (counts == 1).mean() >= _GAP_OF_STEPS and _even(heights, counts):
            return _gap(steps, counts)
    least, most = int(steps.argmin()), int(steps.argmax())
    ends = (f"{steps[at]:.4g} mm (slices {at + 1} and {at + 2})" for at in (least, most))
    return Verdict("uneven", f"steps from {' to '.join(ends)} among {len(heights)} slices")


def _even(heights: npt.NDArray[np.float64], counts: npt.NDArray[np.float64]) -> bool:
    """Whether slices lie where so many steps of one length each put them."""
    step = (heights[-1] - heights[0]) / counts.sum()
    due = heights[0] + step * np.concatenate([[0], np.cumsum(counts)])
    return bool(np.abs(heights - due).max() <= tolerance(float(step)))


def _gap(steps: npt.NDArray[np.float64], counts: npt.NDArray[np.float64]) -> Verdict:
    usual = float(steps[counts == 1].mean())
    places = np.flatnonzero(counts > 1).tolist()
    told = [f"{steps[at]:.4g} mm between slices {at + 1} and {at + 2}" for at in places[:_TOLD]]
    more = f" and {len(places) - _TOLD} more gaps" if len(places) > _TOLD else ""
    missing = int((counts - 1).sum())
    lost = "1 slice is" if missing == 1 else f"{missing} slices are"
    return Verdict("gap", f"{', '.join(told)}{more}, {usual:.4g} mm between the others: {lost} missing")


def _sideways(
    positions: npt.NDArray[np.float64], heights: npt.NDArray[np.float64], normal: npt.NDArray[np.float64]
) -> Verdict | None:
    """A slice beside the line through the first and the last is another volume's, or was shifted."""
    share = (heights - heights[0]) / (heights[-1] - heights[0])
    off = positions - positions[0] - share[:, None] * (positions[-1] - positions[0])
    distance = np.linalg.norm(off - np.outer(off @ normal, normal), axis=1)
    worst = int(distance.argmax())
    if distance[worst] <= SIDEWAYS_MM:
        return None
    return Verdict("uneven", f"slice {worst + 1} of {len(heights)} lies {distance[worst]:.4g} mm beside the others")


def _tilt(frames: Sequence[Frame], positions: npt.NDArray[np.float64]) -> Verdict | None:
    """The angle between the way the slices go and their normal, as the positions have it; the tag is only mentioned."""
    normal = normal_of(frames[0])
    way = positions[-1] - positions[0]
    shift = float(np.linalg.norm(way - (way @ normal) * normal))
    degrees = float(np.degrees(np.arctan2(shift, abs(way @ normal))))
    if degrees <= TILT_DEGREES or shift <= TILT_MM:
        return None
    tag = frames[0].tilt_tag
    said = f" (Gantry/Detector Tilt says {tag:.4g})" if tag is not None and abs(abs(tag) - degrees) > 1 else ""
    each = shift / (len(frames) - 1)
    return Verdict("tilt", f"{degrees:.1f} degrees: each slice lies {each:.4g} mm beside the one before{said}")
