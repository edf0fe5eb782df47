"""Many frames in one object: functional groups (PS3.3 C.7.6.16), dose grids, nuclear medicine, films."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag

from medlight.scans.dicom import elements
from medlight.scans.dicom.elements import GROUP, TAG, first, items_in, number, numbers, perhaps, text, vector
from medlight.scans.dicom.frames import ChannelKey, Frame
from medlight.scans.dicom.moments import direction, milliseconds, whole

# What a frame's functional groups may take: real ones need some KiB and some dozens of items.
_FRAME_BYTES, _FRAME_ITEMS = 1 << 18, 1 << 10
_SPARE = 1 << 20

Lookup = Callable[[BaseTag], Dataset]


def is_enhanced(dataset: Dataset) -> bool:
    """Whether an object describes its frames in functional groups."""
    return TAG.PerFrameFunctionalGroupsSequence in dataset or TAG.SharedFunctionalGroupsSequence in dataset


def enhanced(dataset: Dataset, count: int, base: Frame) -> list[Frame]:
    """The frames of an object with functional groups, in the order they are stored.

    base: what the whole object says. Raises ValueError where there are more or fewer groups than frames.
    """
    described = _items(dataset, TAG.PerFrameFunctionalGroupsSequence, count)
    shared = _items(dataset, TAG.SharedFunctionalGroupsSequence, count)
    if len(described) != count:
        raise ValueError(f"NumberOfFrames (0028,0008) is {count}, and {len(described)} frames are described")
    common = shared[0] if shared else Dataset()
    kept: dict[BaseTag, Dataset] = {}

    def from_common(at: BaseTag) -> Dataset:
        if at not in kept:
            kept[at] = first(common, at)
        return kept[at]

    found = []
    for index, own in enumerate(described):

        def group(at: BaseTag, own: Dataset = own) -> Dataset:
            return first(own, at) if at in own else from_common(at)

        found.append(_frame(replace(base, index=index), group))
    return found


def _items(dataset: Dataset, at: BaseTag, count: int) -> Any:
    """The items of a sequence that grows with the frames. Raises ValueError where it is far longer than any is."""
    element: Any = dataset._dict.get(at)
    if element is None or not element.value:
        return []
    if isinstance(element, RawDataElement):
        long = len(element.value) > _FRAME_BYTES * count + _SPARE
        if long or items_in(element.value) > _FRAME_ITEMS * (count + 1):
            raise ValueError(f"{elements.name(at)} is too long to be true")
        element = dataset[at]
    return element.value if element.VR == "SQ" else []


def _frame(base: Frame, group: Lookup) -> Frame:
    measures, content = group(GROUP.PixelMeasures), group(GROUP.FrameContent)
    orientation = vector(group(GROUP.PlaneOrientation), TAG.ImageOrientationPatient, 6)
    spacing = vector(measures, TAG.PixelSpacing, 2)
    return replace(
        base,
        spacing=spacing if spacing and min(spacing) > 0 else base.spacing,  # type: ignore[arg-type]
        position=vector(group(GROUP.PlanePosition), TAG.ImagePositionPatient, 3) or base.position,  # type: ignore[arg-type]
        along_row=orientation[:3] if orientation else base.along_row,  # type: ignore[arg-type]
        along_column=orientation[3:] if orientation else base.along_column,  # type: ignore[arg-type]
        thickness=perhaps(measures, TAG.SliceThickness) or base.thickness,
        interval=perhaps(measures, TAG.SpacingBetweenSlices) or base.interval,
        channel=_channel(group, content, base.channel),
        moments=_moments(group, content, base.moments),
        variant="\\".join(part for part in (base.variant, *_variant(group, content)) if part),
    )


def _channel(group: Lookup, content: Dataset, key: ChannelKey) -> ChannelKey:
    diffusion = group(GROUP.Diffusion)
    b_value = perhaps(diffusion, TAG.DiffusionBValue)
    turned = first(diffusion, GROUP.DiffusionDirection)
    echo = perhaps(group(GROUP.Echo), GROUP.EffectiveEchoTime)
    acquisition = whole(perhaps(content, GROUP.FrameAcquisitionNumber))
    return ChannelKey(
        b_value=key.b_value if b_value is None else b_value,
        gradient=direction(_perhaps_numbers(turned, TAG.DiffusionGradientOrientation)) if b_value else None,
        echo_time_ms=key.echo_time_ms if echo is None else echo,
        acquisition=key.acquisition if acquisition is None else acquisition,
    )


def _perhaps_numbers(dataset: Dataset, at: BaseTag) -> tuple[float, ...]:
    try:
        return numbers(dataset, at)
    except ValueError:
        return ()


def _moments(group: Lookup, content: Dataset, of_object: tuple[float | None, ...]) -> tuple[float | None, ...]:
    offset = perhaps(group(GROUP.TemporalPosition), GROUP.TemporalPositionTimeOffset)
    found = (
        perhaps(content, GROUP.TemporalPositionIndex),
        None if offset is None else offset * 1000,
        perhaps(group(GROUP.Cardiac), GROUP.TriggerDelay),
        milliseconds(text(content, GROUP.FrameAcquisitionDateTime)),
        None,
    )
    return tuple(own if own is not None else other for own, other in zip(found, of_object, strict=True))


def _variant(group: Lookup, content: Dataset) -> tuple[str, ...]:
    """Frame type, part of a complex number, and stack: what tells frames apart that are no channels of one volume."""
    kinds = [group(at) for at in GROUP.FrameTypes]
    types = [text(kind, at) for kind in kinds for at in (GROUP.FrameType, GROUP.ComplexImageComponent)]
    return (*types, text(content, GROUP.StackID))


def plain(dataset: Dataset, count: int, base: Frame) -> list[Frame]:
    """The frames of an object with no functional groups: a grid of slices if it says so, else a film of one plane."""
    detector = first(dataset, TAG.DetectorInformationSequence)
    offsets = numbers(dataset, TAG.GridFrameOffsetVector)  # PS3.3 C.8.8.3.2: from the first plane, or along z
    step = perhaps(dataset, TAG.SpacingBetweenSlices)
    if offsets:
        if len(offsets) != count:
            raise ValueError(f"NumberOfFrames (0028,0008) is {count}, and {len(offsets)} offsets are given")
        return _stacked(base, [offset - offsets[0] for offset in offsets])
    if detector and step and "TOMO" in base.variant:  # PS3.3 C.8.4.15: reconstructed slices of nuclear medicine
        orientation = vector(detector, TAG.ImageOrientationPatient, 6)
        position = vector(detector, TAG.ImagePositionPatient, 3)
        if orientation and position:
            placed = replace(base, position=position, along_row=orientation[:3], along_column=orientation[3:])  # type: ignore[arg-type]
            return _stacked(placed, [index * step for index in range(count)])
    return _film(dataset, count, base)


def _stacked(base: Frame, offsets: list[float]) -> list[Frame]:
    """Frames at distances along the normal of the first."""
    if base.position is None or base.along_row is None:
        return [replace(base, index=index) for index in range(len(offsets))]
    normal = np.cross(np.array(base.along_row), np.array(base.along_column))
    places = np.array(base.position) + np.array(offsets)[:, None] * normal
    return [replace(base, index=index, position=(x, y, z)) for index, (x, y, z) in enumerate(places.tolist())]


def _film(dataset: Dataset, count: int, base: Frame) -> list[Frame]:
    """Frames of one plane, with the times at which they were taken where the object tells them (PS3.3 C.7.6.5)."""
    steps = _perhaps_numbers(dataset, TAG.FrameTimeVector)
    every = number(dataset, TAG.FrameTime) if not steps else None
    times = (
        list(accumulate(steps)) if len(steps) == count else [every * index for index in range(count)] if every else []
    )
    return [
        replace(
            base,
            index=index,
            channel=replace(base.channel, time_ms=times[index] if times else None, acquisition=index + 1),
        )
        for index in range(count)
    ]
