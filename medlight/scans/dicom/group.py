"""Headers to stacks: which frames make one volume, and what keeps the others from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from pydicom import Dataset

from medlight.scans.dicom.arrange import arranged
from medlight.scans.dicom.frames import ChannelKey, Frame, Stack, Verdict
from medlight.scans.dicom.geometry import SAME_MM, along_normal, normal_of, placed
from medlight.scans.dicom.header import Header, header_of

# Modalities whose picture is whole by itself, and has no place in the patient: a volume of one slice.
_PICTURES = ("CR", "DG", "DX", "ES", "GM", "IO", "IVOCT", "MG", "OP", "OPT", "PX", "RF", "RTIMAGE", "US", "XA", "XC")
_TURNED = 1e-3  # direction cosines that differ by more are another orientation; less is rounding
_RESIZED = 1e-3  # of the pixel spacing, relative
_MOST_PARTS = 100  # shapes and orientations in a series; a head cut in 100 ways is no set of volumes
_OWN_VOLUME = 3  # slices: fewer don't show by themselves that they are evenly spaced
_BESIDE = {
    "seg": "a segmentation: a label of its images, not a volume of its own",
    "rtstruct": "contours: a label of their images, not a volume of their own",
    "other": "no image: not a volume",
}

Entry = tuple[Header, Frame]


def stacks(headers: Iterable[tuple[Header | Dataset, list[Frame]]]) -> list[Stack]:
    """Group the frames of objects into volumes, in the order in which their series are met.

    Frames of one series that differ in shape or orientation are volumes of their own where each has three slices or
    more, and one ``mixed-shape`` or ``mixed-orientation`` stack otherwise. Sets of frames at the same places that
    differ in time, echo, b-value or gradient are the channels of one 4D stack. Localizers and pictures with no place
    are ``not-a-volume``; a radiograph, an ultrasound picture and the like are volumes of one slice. What is no image
    (a segmentation, contours, a report) is ``ok``: nothing is wrong with it, and nobody takes it for a volume.
    """
    series: dict[Hashable, list[Entry]] = {}
    for header, frames in headers:
        known = header if isinstance(header, Header) else header_of(header)
        where = known.series_uid or (frames[0].place.path.parent, frames[0].place.member.rpartition("/")[0])
        key: tuple[Hashable, ...] = (where, known.modality, known.kind)
        if known.kind in ("seg", "rtstruct"):
            key = (*key, frames[0].place)
        series.setdefault(key, []).extend((known, frame) for frame in frames)
    return [stack for entries in series.values() for one in _copies(entries) for stack in _series(one)]


def _copies(entries: Sequence[Entry]) -> list[Sequence[Entry]]:
    """A series of which several folders hold the same objects is as many series: its copies.

    What lies twice in one folder is no copy but a duplicate, and so is the little that two folders share of a series
    that is spread over them.
    """
    if len({_name(frame) for _, frame in entries}) == len(entries):
        return [entries]
    folders: dict[Hashable, list[Entry]] = {}
    for entry in entries:
        place = entry[1].place
        folders.setdefault((place.path.parent, place.member.rpartition("/")[0]), []).append(entry)
    if len(folders) == 1:
        return [entries]
    first, *others = sorted(({_name(frame) for _, frame in own} for own in folders.values()), key=len, reverse=True)
    shared = all(len(first & names) >= len(names) / 2 for names in others)
    return list(folders.values()) if shared else [entries]


def _name(frame: Frame) -> tuple[str, int, tuple[int, int] | None]:
    return frame.sop_uid, frame.index, frame.tile


def _series(entries: Sequence[Entry]) -> list[Stack]:
    header, frames = entries[0][0], [frame for _, frame in entries]
    if header.kind != "image":
        return [_stack(entries, frames, Verdict("ok", _BESIDE[header.kind]))]
    parts: dict[str, list[Frame]] = {}
    for frame in frames:
        parts.setdefault(_family(frame, header.modality), []).append(frame)
    placed_beside = len(parts.get("placed", ()))
    found = []
    for family, members in parts.items():
        match family:
            case "placed":
                found += _placed(entries, members)
            case "localizer":
                found.append(_stack(entries, members, Verdict("not-a-volume", f"a localizer ({len(members)} slices)")))
            case "picture":
                found += _pictures(entries, members)
            case _:
                found.append(_stack(entries, members, _nowhere(header.modality, members, placed_beside)))
    return found


def _family(frame: Frame, modality: str) -> Literal["placed", "localizer", "picture", "nowhere"]:
    if "LOCALIZER" in frame.variant.split("\\"):
        return "localizer"
    if placed(frame):
        return "placed"
    return "picture" if modality in _PICTURES else "nowhere"


def _nowhere(modality: str, frames: Sequence[Frame], others: int) -> Verdict:
    """Frames with no place; beside others of their series that have one, those may lack just these."""
    count = len(frames)
    if others:
        return Verdict("not-a-volume", f"{count} of {count + others} slices of a series have no place in the patient")
    if modality == "SM":
        return Verdict("not-a-volume", "a slide of pathology, which is not read here")
    what = "a picture" if count == 1 else f"{count} pictures"
    return Verdict("not-a-volume", f"{what} with no place in the patient: a secondary capture, or positions left out")


def _pictures(entries: Sequence[Entry], frames: Sequence[Frame]) -> list[Stack]:
    """Each object by itself: a picture, or a film whose frames are channels."""
    objects: dict[Any, list[Frame]] = {}
    for frame in frames:
        objects.setdefault(frame.place, []).append(frame)
    return [replace(_stack(entries, own), channels=tuple(frame.channel for frame in own)) for own in objects.values()]


def _placed(entries: Sequence[Entry], frames: Sequence[Frame]) -> list[Stack]:
    """Frames with a place: one volume for each shape and orientation, if there is enough of each."""
    parts = _parts(frames)
    if len(parts) > _MOST_PARTS or (len(parts) > 1 and any(_places(part) < _OWN_VOLUME for part in parts)):
        return [_stack(entries, along_normal(frames), _mixed(parts))]
    modality = entries[0][0].modality
    found = []
    for part in parts:
        for channels, members, judged in arranged(part):
            if _is_picture(modality, channels, members):
                judged = Verdict()
            elif len(members) == len(channels) > 1 and judged.status == "not-a-volume":
                judged = Verdict("not-a-volume", f"a single slice, {len(channels)} times")
            found.append(replace(_stack(entries, members, judged), channels=channels))
    return found


def _is_picture(modality: str, channels: Sequence[ChannelKey], frames: Sequence[Frame]) -> bool:
    """Whether a plane is whole by itself: a radiograph, or a film. CT repeats a plane to wait for contrast to come."""
    if len(frames) > len(channels):
        return False
    times = {key.time_ms for key in channels}
    return modality in _PICTURES or (modality != "CT" and len(times) == len(channels) > 1)


def _parts(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Frames by shape, pixel spacing and orientation, the largest part first; what is beyond ``_MOST_PARTS`` is one."""
    parts: list[list[Frame]] = []
    known: dict[Hashable, list[Frame]] = {}
    for frame in frames:
        key = (frame.shape, frame.spacing, frame.along_row, frame.along_column)
        part = known.get(key)
        if part is None:
            part = next((p for p in parts if _same_shape(frame, p[0]) and _same_way(frame, p[0])), None)
            if part is None:
                part = parts[-1] if len(parts) > _MOST_PARTS else []
            if not part:
                parts.append(part)
            known[key] = part
        part.append(frame)
    return sorted(parts, key=len, reverse=True)


def _same_shape(one: Frame, other: Frame) -> bool:
    if one.shape != other.shape or (one.spacing is None) != (other.spacing is None):
        return False
    pairs = zip(one.spacing or (), other.spacing or (), strict=True)
    return all(abs(mine - theirs) <= _RESIZED * theirs for mine, theirs in pairs)


def _same_way(one: Frame, other: Frame) -> bool:
    mine, theirs = ((*(f.along_row or ()), *(f.along_column or ())) for f in (one, other))
    return all(abs(a - b) <= _TURNED for a, b in zip(mine, theirs, strict=True))


def _places(part: Sequence[Frame]) -> int:
    """How many places frames lie at."""
    heights = np.sort(np.array([frame.position for frame in part]) @ normal_of(part[0]))
    return 1 + int((np.diff(heights) > SAME_MM).sum())


def _mixed(parts: Sequence[Sequence[Frame]]) -> Verdict:
    """What the frames differ in: where the orientation is another, so may the shape be."""
    first = parts[0][0]
    if not all(_same_way(part[0], first) for part in parts):
        counts = " and ".join(_counted(len(part)) for part in parts[:4])
        way = normal_of(first)
        widest = max(float(np.degrees(np.arccos(min(1.0, abs(float(normal_of(p[0]) @ way)))))) for p in parts)
        return Verdict(
            "mixed-orientation", f"{counts} lie in {len(parts)} directions, up to {widest:.1f} degrees apart"
        )
    sizes = Counter({_size(part[0], first): len(part) for part in parts})
    told = ", ".join(f"{_counted(count)} of {size}" for size, count in sizes.most_common(4))
    return Verdict("mixed-shape", told)


def _counted(count: int) -> str:
    return "1 slice" if count == 1 else f"{count} slices"


def _size(frame: Frame, usual: Frame) -> str:
    size = f"{frame.shape[1]}x{frame.shape[0]}"
    if frame.shape == usual.shape or frame.spacing != usual.spacing:
        across = "unknown" if frame.spacing is None else f"{frame.spacing[1]:.4g}x{frame.spacing[0]:.4g} mm"
        return f"{size} at {across}"
    return size


def _stack(entries: Sequence[Entry], frames: Sequence[Frame], judged: Verdict | None = None) -> Stack:
    header = entries[0][0]
    shared = set(header.facts)
    for other, _ in entries:
        if other.facts is not header.facts:
            shared &= set(other.facts)
    said = Verdict() if judged is None else judged
    return Stack(
        header.series_uid, header.modality, tuple(frames), kind=header.kind, verdict=said, facts=dict(sorted(shared))
    )
