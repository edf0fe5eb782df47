"""The frames of a DICOM-SEG: which segment each shows, and where it lies (PS3.3 A.51, C.8.20)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from medlight.errors import MedlightError
from medlight.scans.dicom import pixels
from medlight.scans.dicom.archive import title
from medlight.scans.dicom.decode import naming
from medlight.scans.dicom.frames import Place
from medlight.scans.dicom.items import code_of, first_of, items_of
from medlight.scans.regions import Array, Grid, Piece, Plane, Points, Region, Seat, seat
from medlight.scans.values import values_of

THINNEST = 1e-4  # mm: no scanner's voxel is as small
_FARTHEST, _NOT_UNIT = 1e6, 1e-2  # mm, and how far a direction's length may be from 1
_BACKGROUND = ("125040", "DCM")
_AGAIN = "export the segmentation again"
Kind = Literal["BINARY", "FRACTIONAL", "LABELMAP"]


@dataclass(frozen=True)
class SegmentFrame:
    """One frame: its segment (None in a label map, which holds several), and where it lies (None where not said)."""

    index: int
    number: int | None
    plane: Plane | None


@dataclass(frozen=True)
class SegmentFrames:
    """A DICOM-SEG whose headers are read and whose frames are decoded as they are asked for.

    decode: a frame's stored values by its index. step: the distance of slices by the file, 0 where it says none.
    full: what is 1 in a fractional one (Maximum Fractional Value). background: values of a label map that are none.
    """

    place: Place
    regions: tuple[Region, ...]
    segmentation: Kind
    shape: tuple[int, int]
    frames: tuple[SegmentFrame, ...]
    decode: Callable[[int], Array] = field(repr=False)
    step: float = 0.0
    full: int = 1
    background: frozenset[int] = frozenset({0})
    series: frozenset[str] = frozenset()
    frame_of_reference: str = ""
    kind: Literal["segment"] = "segment"

    @property
    def file(self) -> str:
        """What it is called in an error."""
        return title(self.place)

    def pieces(self, grid: Grid, wanted: Collection[int], cut: bool = False) -> Iterator[Piece]:
        """Give the frames of the wanted segments that lie on a grid, fractions as float32 0 to 1.

        cut: the grid is known to be a part of what was drawn on. Raises MedlightError for a frame whose pixels are no
        voxels of the grid, for one that can't be decoded, and, unless ``cut``, for a segment that goes on outside.
        """
        for frame, at in self._seats(grid, wanted):
            if at.outside and cut:
                continue
            if not at.outside:
                self._check_seat(frame, at)
            with naming(self.place):
                stored = self.decode(frame.index)
            for number, values in self._values(stored, frame.number, wanted):
                where, placed = at.take(values, grid.shape)
                if not cut and np.count_nonzero(placed) < np.count_nonzero(values):
                    self._refuse_outside(number, frame)
                if placed.size:
                    yield Piece(number, where, placed)

    def _seats(self, grid: Grid, wanted: Collection[int]) -> Iterator[tuple[SegmentFrame, Seat]]:
        """Give the wanted frames with their places on a grid: one behind the other, each of a segment elsewhere."""
        seen: set[tuple[int | None, int]] = set()
        column: tuple[int, ...] = ()
        for frame in self.frames:
            if frame.number is not None and frame.number not in wanted:
                continue
            at = seat(self._plane(frame, grid), grid)
            across = 3 - sum(at.axes)
            own = (*at.axes, *at.steps, *(at.start[axis] for axis in at.axes))
            column = column or own
            if own != column:
                raise MedlightError(f"{self.file}: frame {frame.index + 1} lies aside of those before it; {_AGAIN}")
            if (frame.number, at.start[across]) in seen:
                raise MedlightError(
                    f"{self.file}: frame {frame.index + 1} lies where another of its segment does; {_AGAIN}"
                )
            seen.add((frame.number, at.start[across]))
            yield frame, at

    def _refuse_outside(self, number: int, frame: SegmentFrame) -> None:
        raise MedlightError(
            f"{self.file}: segment {number} goes on outside the image (frame {frame.index + 1}); "
            "give the whole image, or the segmentation made of this one"
        )

    def _plane(self, frame: SegmentFrame, grid: Grid) -> Plane:
        """Where a frame lies; one with no place is of a radiograph, whose columns and rows are I and J."""
        if frame.plane is not None:
            return frame.plane
        if grid.shape != (self.shape[1], self.shape[0], 1):
            raise MedlightError(
                f"{self.file}: doesn't say where its frames lie, and their {self.shape[1]}x{self.shape[0]} pixels are "
                f"not the image's {'x'.join(map(str, grid.shape))} voxels; give the image it was made of"
            )
        return Plane(self.shape, grid.affine[:3, 3], grid.affine[:3, 0], grid.affine[:3, 1])

    def _check_seat(self, frame: SegmentFrame, at: Seat) -> None:
        if not at.fits:
            raise MedlightError(
                f"{self.file}: frame {frame.index + 1} lies {min(at.off, 999):.2g} voxels off the image's grid; "
                "give the image it was made of, or resample the segmentation to this one"
            )

    def _values(self, stored: Array, number: int | None, wanted: Collection[int]) -> Iterator[tuple[int, Array]]:
        """Tell a frame's segments apart, and turn stored numbers into what they mean."""
        if number is None:
            known = {region.number for region in self.regions}
            for value in values_of(stored).tolist():
                if value not in known and value not in self.background:
                    raise MedlightError(f"{self.file}: has the value {value}, which is no segment; {_AGAIN}")
                if value in wanted:
                    yield value, stored == value
        elif self.segmentation == "FRACTIONAL":
            yield number, stored.astype(np.float32) / np.float32(self.full)
        else:
            yield number, stored != 0


def parse_segments(dataset: Any, place: Place) -> SegmentFrames:
    """Read the headers of a DICOM-SEG data set; MedlightError names what is missing, lies, or isn't finite."""
    file = title(place)
    with naming(place):
        layout = pixels.layout(dataset)
        decode = pixels.frames(dataset, layout)
    kind, shape = _kind(dataset, file), (layout.rows, layout.columns)
    if layout.samples != 1 or layout.allocated not in (1, 8, 16) or layout.signed or layout.keyword != "PixelData":
        raise MedlightError(f"{file}: its pixels are not of 1, 8 or 16 bits, as a segmentation's are; {_AGAIN}")
    if "TotalPixelMatrixRows" in dataset:
        raise MedlightError(f"{file}: is of a microscope's slide, which is not read here; give it as a picture")
    groups = items_of(dataset, "PerFrameFunctionalGroupsSequence")
    if len(groups) != layout.frames:
        raise MedlightError(f"{file}: says {layout.frames} frames and describes {len(groups)}; {_AGAIN}")
    regions = _regions(dataset, file)
    shared = next(iter(items_of(dataset, "SharedFunctionalGroupsSequence")), None)
    full = _whole(dataset, "MaximumFractionalValue", file) if kind == "FRACTIONAL" else 1
    if full < 1:
        raise MedlightError(f"{file}: Maximum Fractional Value (0062,000E) is {full}; {_AGAIN}")
    background = _background(dataset, regions) if kind == "LABELMAP" else frozenset({0})
    return SegmentFrames(
        place,
        tuple(region for region in regions if region.number not in background),
        kind,
        shape,
        _frames(groups, shared, kind, shape, {region.number for region in regions}, file),
        decode,
        _said_step(shared),
        full,
        background,
        frozenset(str(item.get("SeriesInstanceUID", "")) for item in items_of(dataset, "ReferencedSeriesSequence")),
        str(dataset.get("FrameOfReferenceUID", "") or ""),
    )


def _frames(
    groups: Sequence[Any], shared: Any, kind: Kind, shape: tuple[int, int], known: Collection[int], file: str
) -> tuple[SegmentFrame, ...]:
    frames = []
    for index, group in enumerate(groups):
        number = None if kind == "LABELMAP" else _segment_of(group, shared, index, file)
        if number is not None and number not in known:
            raise MedlightError(f"{file}: frame {index + 1} shows segment {number}, which is not listed; {_AGAIN}")
        frames.append(SegmentFrame(index, number, _plane(group, shared, shape, f"{file}: frame {index + 1}")))
    return tuple(frames)


def _said_step(shared: Any) -> float:
    """What the file says of the distance of slices, in millimetres; often wrong."""
    try:
        step = abs(float(first_of("PixelMeasuresSequence", shared).get("SpacingBetweenSlices")))
    except (TypeError, ValueError, AttributeError):
        return 0.0
    return step if THINNEST < step < _FARTHEST else 0.0


def _kind(dataset: Any, file: str) -> Kind:
    said = str(dataset.get("SegmentationType", "") or "").strip()
    match said:
        case "BINARY" | "FRACTIONAL" | "LABELMAP":
            return said
        case _:
            raise MedlightError(f"{file}: Segmentation Type (0062,0001) is none that is known; {_AGAIN}")


def _regions(dataset: Any, file: str) -> tuple[Region, ...]:
    items = items_of(dataset, "SegmentSequence")
    if not items:
        raise MedlightError(f"{file}: lists no segments (0062,0002); {_AGAIN}")
    regions = {}
    for item in items:
        number = _whole(item, "SegmentNumber", file)
        code = first_of("SegmentedPropertyTypeCodeSequence", item)
        regions[number] = Region(number, str(item.get("SegmentLabel", "") or ""), code_of(code))
    if len(regions) < len(items):
        raise MedlightError(f"{file}: lists a segment number twice; {_AGAIN}")
    return tuple(regions[number] for number in sorted(regions))


def _background(dataset: Any, regions: Sequence[Region]) -> frozenset[int]:
    """Return the values of a label map that mean no segment: padding, a segment coded as background, else 0."""
    found = {region.number for region in regions if region.code and region.code[:2] == _BACKGROUND}
    padding = dataset.get("PixelPaddingValue")
    if isinstance(padding, int):
        found.add(padding)
    return frozenset(found or {0} - {region.number for region in regions})


def _segment_of(group: Any, shared: Any, index: int, file: str) -> int:
    item = first_of("SegmentIdentificationSequence", group, shared)
    if item is None:
        raise MedlightError(f"{file}: frame {index + 1} doesn't say its segment (0062,000B); {_AGAIN}")
    return _whole(item, "ReferencedSegmentNumber", file)


def _plane(group: Any, shared: Any, shape: tuple[int, int], frame: str) -> Plane | None:
    """Where a frame lies; None where it says nothing of its place, as that of a radiograph does."""
    position = first_of("PlanePositionSequence", group, shared)
    if position is None:
        return None
    turned = first_of("PlaneOrientationSequence", group, shared)
    measures = first_of("PixelMeasuresSequence", group, shared)
    corner = _numbers(position, "ImagePositionPatient", 3, frame)
    axes = _numbers(turned, "ImageOrientationPatient", 6, frame)
    spacing = _numbers(measures, "PixelSpacing", 2, frame)
    lengths = np.linalg.norm(axes.reshape(2, 3), axis=1)
    if np.abs(lengths - 1).max() > _NOT_UNIT or abs(axes[:3] @ axes[3:]) > _NOT_UNIT or spacing.min() <= THINNEST:
        raise MedlightError(f"{frame} has axes or a pixel spacing that can't be; {_AGAIN}")
    return Plane.from_dicom(shape, corner, axes, spacing)


def _numbers(item: Any, keyword: str, count: int, frame: str) -> Points:
    try:
        values = np.array(item.get(keyword), dtype=np.float64)
    except (TypeError, ValueError, AttributeError):
        values = np.empty(0)
    if values.shape != (count,) or not (np.abs(values) < _FARTHEST).all():  # NaN too
        raise MedlightError(f"{frame} has no usable {keyword}; {_AGAIN}")
    return values


def _whole(item: Any, keyword: str, file: str) -> int:
    try:
        return int(item.get(keyword))
    except (TypeError, ValueError):
        raise MedlightError(f"{file}: has no {keyword} that is a number; {_AGAIN}") from None
