"""The frames of a stack to one array of real values.

Padding (PixelPaddingValue and its range limit, PS3.3 C.7.5.1.1.2) stands for no measurement: in a CT it becomes
-1024 HU, elsewhere the least real value of the rest of the volume.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.dataelem import RawDataElement

from medlight.cgroups import free_memory
from medlight.errors import MedlightError
from medlight.scans.dicom import pixels, values
from medlight.scans.dicom.archive import reason_of, title
from medlight.scans.dicom.elements import tag
from medlight.scans.dicom.frames import Frame, Place, Stack
from medlight.scans.dicom.opened import Opened, opened
from medlight.scans.regions import origin
from medlight.scans.suv import suv_factor

Pixels = npt.NDArray[Any]

# Bytes of pixel data that are kept between reading the headers and decoding; what goes beyond is read a second time.
KEPT_BYTES = 2**30


@dataclass(frozen=True, eq=False, slots=True)
class Source:
    """What an object says of its pixels, checked. scales: by frame."""

    layout: pixels.Layout
    scales: Mapping[int, values.Scale]
    padding: tuple[int, int] | None
    palette: tuple[values.Lut, values.Lut, values.Lut] | None

    @property
    def colours(self) -> int:
        """1 for grey, 3 for red, green and blue."""
        return 1 if self.palette is None and self.layout.samples == 1 else 3

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of what ``planes`` gives."""
        return self.layout.dtype if self.palette is None else self.palette[0].table.dtype

    def planes(self, stored: Pixels) -> Pixels:
        """A decoded frame as ``(colours, rows, columns)``."""
        if self.palette is not None:
            return np.stack([lut(stored) for lut in self.palette])
        return stored[np.newaxis] if stored.ndim == 2 else np.moveaxis(stored, -1, 0)


@contextmanager
def naming(place: Place) -> Iterator[None]:
    """Turn any fault in an object's pixels into one line that names the file."""
    try:
        yield
    except MedlightError:
        raise
    except MemoryError:
        raise MedlightError(f"{title(place)}: needs more memory than there is") from None
    except Exception as error:  # decoders raise whatever they like
        raise MedlightError(f"{title(place)}: {reason_of(error)}; export it again or take it out") from None


def source(one: Opened, indices: Mapping[int, object]) -> Source:
    """Check what an object says of its pixels. Raises ValueError for what is missing, impossible or not read here."""
    dataset = one.dataset
    layout = pixels.layout(dataset, one.keyword)
    if any(index >= layout.frames for index in indices):
        raise ValueError(f"says {layout.frames} frames (NumberOfFrames), and its groups describe more")
    is_palette = layout.photometric == "PALETTE COLOR"
    grey = layout.samples == 1 and not is_palette
    return Source(
        layout=layout,
        scales={index: values.scale(dataset, layout, index) if grey else values.Scale() for index in indices},
        padding=values.padding(dataset, layout) if grey else None,
        palette=values.palette(dataset, layout) if is_palette else None,
    )


# What a Source is made of, as long as it is plain numbers and words.
_PLAIN = [
    tag(keyword)
    for keyword in (
        *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
        *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue"),
        *("PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "RescaleType", "Units", "DoseGridScaling"),
    )
]
_NESTED = [
    tag(keyword)
    for keyword in (
        *("ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
        *("RedPaletteColorLookupTableDescriptor", "FloatPixelData", "DoubleFloatPixelData"),
    )
]


def _likeness(dataset: Dataset) -> tuple[object, ...] | None:
    """The bytes that a Source is made of: most slices of a series share them, and parsing them takes long.

    None where there is more to it than numbers and words.
    """
    held = dataset._dict
    if any(at in held for at in _NESTED):
        return None
    found: list[object] = [pixels.syntax(dataset)]
    for at in _PLAIN:
        element = held.get(at)
        if element is not None and not isinstance(element, RawDataElement):
            return None
        found.append((element.VR, element.value, element.is_little_endian) if element else None)
    return tuple(found)


def _acquired(dataset: Dataset) -> tuple[str, str]:
    return str(dataset.get("AcquisitionDate") or "9"), str(dataset.get("AcquisitionTime") or "9")


def _suv(dataset: Dataset) -> dict[str, Any]:
    """The factor to SUV; the weight and the times that it takes are kept nowhere."""
    try:
        factor, note = suv_factor(dataset)
    except MedlightError as error:
        return {"suv_factor": None, "suv_note": str(error)}
    return {"suv_factor": factor, "suv_note": note}


class Decoder:
    """Decodes the frames of one stack.

    held: objects that were parsed already, emptied as it goes.
    array: ``(channels, colours, slices, rows, columns)`` of what is stored.
    facts: what the middle slice says of its values (windows differ between slices, and the middle is what is shown),
    what it was made of (``origin``), and the factor to SUV of a PET series.
    """

    def __init__(self, stack: Stack, held: dict[Place, Opened]) -> None:
        self.stack = stack
        self.held = held
        self.slices = len(stack.frames) // len(stack.channels)
        self.wanted: dict[Place, dict[int, list[int]]] = {}
        for number, frame in enumerate(stack.frames):
            self.wanted.setdefault(frame.place, {}).setdefault(frame.index, []).append(number)
        self.facts: dict[str, Any] = {}
        self.sources = self._sources()
        self.extremes: dict[int, tuple[float, float]] = {}
        self.padded: set[int] = set()
        self.array = self._allocate()

    def _sources(self) -> dict[Place, Source]:
        found: dict[Place, Source] = {}
        known: dict[tuple[object, ...] | None, Source] = {}
        room = KEPT_BYTES
        middle = self.stack.frames[self.slices // 2]
        first: Dataset | None = None
        for place, indices in self.wanted.items():
            with naming(place):
                one = self.held.pop(place, None) or opened(place)
                dataset = one.dataset
                likeness = _likeness(dataset) if list(indices) == [0] else None
                found[place] = known.get(likeness) or source(one, indices)
                if likeness is not None:
                    known[likeness] = found[place]
                if place == middle.place:
                    self.facts["origin"] = origin(self.stack.series_uid, str(dataset.get("FrameOfReferenceUID") or ""))
                if place == middle.place and found[place].colours == 1:
                    self.facts |= values.facts(dataset, found[place].layout, middle.index)
                if self.stack.modality == "PT":
                    first = min(first or dataset, dataset, key=_acquired)
                room -= one.in_memory
                if room > 0:
                    self.held[place] = one
        if first is not None:
            self.facts |= _suv(first)
        if len({one.colours for one in found.values()}) > 1:
            raise MedlightError(f"{title(self.stack.frames[0].place)}: its series mixes grey and colour; separate them")
        return found

    def _allocate(self) -> Pixels:
        first = self.stack.frames[0]
        colours = self.sources[first.place].colours
        shape = (len(self.stack.channels), colours, self.slices, *first.shape)
        kind = np.result_type(*(one.dtype for one in self.sources.values()))
        needed = int(np.prod(shape, dtype=object)) * kind.itemsize
        free = free_memory()
        if needed > free:
            sizes = f"{needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} are free"
            raise MedlightError(f"{title(first.place)}: its volume takes {sizes}")
        return np.empty(shape, kind)

    def run(self) -> Pixels:
        """Decode everything; return ``(C, I, J, K)``: columns, rows, slices, colours within channels."""
        tasks = [task for place in self.wanted for task in self._tasks(place)]
        compressed = any(one.layout.encapsulated for one in self.sources.values())
        if compressed and len(tasks) > 1:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(_call, tasks))
        else:
            for task in tasks:
                task()
        real = self._to_real()
        return real.reshape(-1, *real.shape[2:]).transpose(0, 3, 2, 1)

    def _tasks(self, place: Place) -> list[Callable[[], None]]:
        """One task an object, or one a frame where there is but one compressed object."""
        if len(self.wanted) > 1 or not self.sources[place].layout.encapsulated:
            return [lambda: self._object(place, list(self.wanted[place]))]
        with naming(place):
            read = self._open(place)
        return [lambda index=index: self._frame(place, read, index) for index in self.wanted[place]]  # type: ignore[misc]

    def _open(self, place: Place) -> pixels.Read:
        one = self.held.pop(place, None) or opened(place)
        return pixels.frames(one.dataset, self.sources[place].layout, one.data)

    def _object(self, place: Place, indices: list[int]) -> None:
        with naming(place):
            read = self._open(place)
        for index in indices:
            self._frame(place, read, index)

    def _frame(self, place: Place, read: pixels.Read, index: int) -> None:
        with naming(place):
            one, numbers = self.sources[place], self.wanted[place][index]
            whole = len(numbers) == 1 and one.palette is None and one.dtype == self.array.dtype
            out = self._target(self.array, numbers[0])[0] if whole else None
            stored = read(index, out)
            for number in numbers:
                part = _cut(stored, self.stack.frames[number])
                self._note(number, part, one, index)
                if stored is not out:
                    self._target(self.array, number)[...] = one.planes(part)

    def _target(self, array: Pixels, number: int) -> Pixels:
        """The part of an array that a frame fills."""
        channel, place = divmod(number, self.slices)
        return array[channel, :, place]

    def _note(self, number: int, stored: Pixels, one: Source, index: int) -> None:
        """Keep the least and the greatest real value of a frame, padding left out."""
        rest = stored
        if one.padding is not None:
            mask = _within(stored, one.padding)
            if mask.any():
                self.padded.add(number)
                rest = stored[~mask]
        scale = one.scales[index]
        if rest.size and not (scale.identity and one.padding is None):
            ends = scale(rest) if scale.lut is not None else scale(np.array([rest.min(), rest.max()]))
            self.extremes[number] = (float(ends.min()), float(ends.max()))

    def _to_real(self) -> Pixels:
        scales = [self.sources[frame.place].scales[frame.index] for frame in self.stack.frames]
        if not self.padded and all(scale.identity for scale in scales):
            return self.array
        low = min((low for low, _ in self.extremes.values()), default=0.0)
        high = max((high for _, high in self.extremes.values()), default=0.0)
        fill = values.filling(self.stack.modality, low)
        ends = (min(low, fill), max(high, fill)) if self.padded else (low, high)
        kind = values.result_type(scales, self.array.dtype, *ends)
        same = kind.itemsize == self.array.dtype.itemsize and "f" not in (kind.kind, self.array.dtype.kind)
        real = self.array.view(kind) if same else np.empty(self.array.shape, kind)
        for number, scale in enumerate(scales):
            stored = self._target(self.array, number)
            padding = self.sources[self.stack.frames[number].place].padding if number in self.padded else None
            mask = _within(stored, padding) if padding is not None else None
            target = self._target(real, number)
            values.to_real(stored, target, scale)
            if mask is not None:
                target[mask] = fill
        return real


def _call(task: Callable[[], None]) -> None:
    task()


def _within(stored: Pixels, limits: tuple[int, int]) -> npt.NDArray[np.bool_]:
    return stored == limits[0] if limits[0] == limits[1] else (stored >= limits[0]) & (stored <= limits[1])


def _cut(stored: Pixels, frame: Frame) -> Pixels:
    """A frame of its stack's shape out of what was decoded: all of it, or a mosaic's tile."""
    rows, columns = frame.shape
    top, left = frame.tile or (0, 0)
    part = stored[top : top + rows, left : left + columns]
    if part.shape[:2] != frame.shape or (frame.tile is None and stored.shape[:2] != frame.shape):
        raise ValueError(f"has {stored.shape[:2]} pixels a frame where {frame.shape} were announced")
    return part
