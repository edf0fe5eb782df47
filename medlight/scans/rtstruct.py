"""RTSTRUCT: contours drawn on the slices of an image (PS3.3 A.19, C.8.8.5, C.8.8.6)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from medlight.errors import MedlightError
from medlight.scans.dicom.archive import title
from medlight.scans.dicom.frames import Place
from medlight.scans.dicom.items import code_of, first_of, items_of
from medlight.scans.polygon import fill
from medlight.scans.regions import TO_RAS, Code, Grid, Piece, Points, Region

_AREAS = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")  # points and open lines have no area
_MOST_CROSSINGS = 500_000_000  # of contours and rows of voxels: ten times a large plan's
_MARGIN = 1.0  # voxels: an outline may run round the outermost voxels
_DECIMALS = 4  # of a voxel: a point on a centre stays on it, whatever the affine's rounding
_EXPORT = "export the structure set again"


@dataclass(frozen=True)
class StructureSet:
    """The structures of an RTSTRUCT that have an area. contours: by structure, each ``(N, 3)`` in RAS+ millimetres."""

    place: Place
    regions: tuple[Region, ...]
    contours: dict[int, list[Points]]
    series: frozenset[str] = frozenset()
    frame_of_reference: str = ""
    kind: Literal["structure"] = "structure"

    @property
    def file(self) -> str:
        """What it is called in an error."""
        return title(self.place)

    def pieces(self, grid: Grid, wanted: Collection[int], cut: bool = False) -> Iterator[Piece]:
        """Give each wanted structure slice by slice: voxels whose centre lies inside an odd number of its contours.

        cut: the grid is known to be a part of what was drawn on. Raises MedlightError for a contour that lies between
        the grid's planes, and, unless ``cut``, outside.
        """
        budget = _MOST_CROSSINGS
        for number in sorted(wanted):
            axis, slices = self._slices(number, grid, cut)
            self._check_every_slice(number, sorted(slices))
            for place, contours in sorted(slices.items()):
                budget -= sum(_crossing(contour, grid.shape) for contour in contours)
                if budget < 0:
                    raise MedlightError(f"{self.file}: its contours have absurdly many points; {_EXPORT}")
                yield _piece(number, axis, place, contours, grid)

    def _slices(self, number: int, grid: Grid, cut: bool) -> tuple[int, dict[int, list[Points]]]:
        """Return the axis of the grid that a structure's slices lie along, and the contours of each slice.

        A contour becomes ``(N, 2)`` voxels along the other two axes.
        """
        contours = self.contours[number]
        ends = np.cumsum([len(contour) for contour in contours])[:-1]
        placed = np.split(grid.voxels(np.concatenate(contours)), ends)
        axis = int(np.sum([np.ptp(at, axis=0) for at in placed], axis=0).argmin())
        slices: dict[int, dict[bytes, Points]] = defaultdict(dict)
        for at in placed:
            place = int(np.rint(at[:, axis].mean()))
            if not cut:
                self._check_inside(number, at, axis, grid)
            if not 0 <= place < grid.shape[axis]:
                continue
            self._check_between(number, at[:, axis], place, axis, grid)
            flat = np.round(np.delete(at, axis, axis=1), _DECIMALS)
            slices[place][flat.tobytes()] = flat  # a contour that stands twice is one contour, not a hole
        return axis, {place: list(found.values()) for place, found in slices.items()}

    def _check_inside(self, number: int, at: Points, axis: int, grid: Grid) -> None:
        margin = np.full(3, _MARGIN)
        margin[axis] = 0.5
        if (at.min(axis=0) < -margin).any() or (at.max(axis=0) > np.array(grid.shape) - 1 + margin).any():
            raise MedlightError(
                f"{self.file}: structure {number} goes on outside the image; "
                "give the whole image, or the structures drawn on this one"
            )

    def _check_between(self, number: int, depth: Points, place: int, axis: int, grid: Grid) -> None:
        off = float(np.abs(depth - place).max())
        if off > grid.slack[axis]:
            away = off * float(np.linalg.norm(grid.affine[:3, axis]))
            raise MedlightError(
                f"{self.file}: structure {number} has a contour {away:.2g} mm from the nearest slice "
                f"({place + 1} of {grid.shape[axis]}); draw it on this image's slices, or give the image it is of"
            )

    def _check_every_slice(self, number: int, places: list[int]) -> None:
        """Refuse a structure drawn on every second slice or so: what lies between was left to be filled in."""
        if len(places) > 2 and np.diff(places).min() > 1:
            first = ", ".join(str(place + 1) for place in places[:3])
            raise MedlightError(
                f"{self.file}: structure {number} is drawn on slices {first}, ... and on none between; "
                "interpolate it where it was drawn"
            )


def parse_structures(dataset: Any, place: Place) -> StructureSet:
    """Read the structures and contours of an RTSTRUCT data set; MedlightError names what is missing or not finite."""
    file = title(place)
    frames = items_of(dataset, "ReferencedFrameOfReferenceSequence")
    described = {_number(item, "ROINumber", file): item for item in _needed(dataset, "StructureSetROISequence", file)}
    codes = _codes(dataset, file)
    contours: dict[int, list[Points]] = {}
    for item in _needed(dataset, "ROIContourSequence", file):
        number = _number(item, "ReferencedROINumber", file)
        if number not in described:
            raise MedlightError(f"{file}: ROIContourSequence draws structure {number}, which is not listed; {_EXPORT}")
        drawn = [_points(part, number, file) for part in items_of(item, "ContourSequence")]
        contours.setdefault(number, []).extend(points for points in drawn if points is not None)
    regions = tuple(
        Region(number, str(item.get("ROIName", "") or ""), codes.get(number))
        for number, item in described.items()
        if contours.get(number)
    )
    if not regions:
        raise MedlightError(f"{file}: no structure has a closed contour; {_EXPORT} or remove it")
    uids = {str(item.get("ReferencedFrameOfReferenceUID", "") or "") for item in described.values()}
    uids = (uids | {str(item.get("FrameOfReferenceUID", "") or "") for item in frames}) - {""}
    return StructureSet(place, regions, contours, _series(frames), uids.pop() if len(uids) == 1 else "")


def _series(frames: list[Any]) -> frozenset[str]:
    """Return the UIDs of the series that were drawn on (PS3.3 C.8.8.5)."""
    found = set()
    for frame in frames:
        for study in items_of(frame, "RTReferencedStudySequence"):
            for series in items_of(study, "RTReferencedSeriesSequence"):
                found.add(str(series.get("SeriesInstanceUID", "") or ""))
    return frozenset(found - {""})


def _codes(dataset: Any, file: str) -> dict[int, Code]:
    """Return the coded terms of structures, from the observations made of them."""
    found: dict[int, Code] = {}
    for item in items_of(dataset, "RTROIObservationsSequence"):
        if code := code_of(first_of("RTROIIdentificationCodeSequence", item)):
            found[_number(item, "ReferencedROINumber", file)] = code
    return found


def _points(item: Any, number: int, file: str) -> Points | None:
    """Return a contour's points in RAS+ millimetres; nothing where it encloses no area."""
    if str(item.get("ContourGeometricType", "")).strip() not in _AREAS:
        return None
    where = f"{file}: a contour of structure {number}"
    try:
        raw = item.get_item("ContourData")
        text = b"" if raw is None or raw.value is None else raw.value
        numbers = np.array(text.split(b"\\") if isinstance(text, bytes) else text, dtype=np.float64)
    except (ValueError, TypeError, KeyError):
        raise MedlightError(f"{where} has coordinates that are no numbers; {_EXPORT}") from None
    count = item.get("NumberOfContourPoints")
    if numbers.size % 3 or (count is not None and int(count) * 3 != numbers.size):
        raise MedlightError(f"{where} has {numbers.size} coordinates for {count} points; {_EXPORT}")
    if not (np.abs(numbers) < 1e6).all():  # NaN too
        raise MedlightError(f"{where} has coordinates that are not finite or a kilometre away; {_EXPORT}")
    return numbers.reshape(-1, 3) @ TO_RAS[:3, :3] if numbers.size >= 9 else None


def _needed(dataset: Any, keyword: str, file: str) -> list[Any]:
    items = items_of(dataset, keyword)
    if not items:
        raise MedlightError(f"{file}: has no {keyword}; {_EXPORT}")
    return items


def _number(item: Any, keyword: str, file: str) -> int:
    try:
        return int(item.get(keyword))
    except (TypeError, ValueError):
        raise MedlightError(f"{file}: a structure has no {keyword}; {_EXPORT}") from None


def _crossing(contour: Points, shape: tuple[int, ...]) -> int:
    """How many rows of voxels a contour's edges cross, at most."""
    across = np.abs(np.diff(contour[:, 1], append=contour[:1, 1]))
    return len(contour) + int(np.minimum(across, max(shape)).sum())


def _piece(number: int, axis: int, place: int, contours: list[Points], grid: Grid) -> Piece:
    """Fill contours within the box round them."""
    size = np.delete(np.array(grid.shape), axis)
    corners = np.concatenate(contours)
    low = np.clip(np.floor(corners.min(axis=0)), 0, size).astype(int)
    high = np.clip(np.ceil(corners.max(axis=0)) + 1, low, size).astype(int)
    width, height = (high - low).tolist()
    inside = fill([contour - low for contour in contours], (width, height))
    at = [slice(int(a), int(b)) for a, b in zip(low, high, strict=True)]
    at.insert(axis, slice(place, place + 1))
    return Piece(number, (at[0], at[1], at[2]), np.expand_dims(inside, axis))
