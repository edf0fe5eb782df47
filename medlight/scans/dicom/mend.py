"""Mends of a series that can't be read as it is: each is asked for by name, and recorded in the volume it made.

Before decoding, frames are left out (``duplicate``) or a stack is cut in pieces (``gap: split``); after it, slices are
resampled onto an even, upright grid (``gap: interpolate``, ``uneven``, ``tilt``), all in one pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Any, Literal, get_args, get_type_hints

import numpy as np

from medlight.config import nearest
from medlight.errors import MedlightError, UsageError
from medlight.scans.dicom.frames import Frame, Stack, Status, Verdict
from medlight.scans.dicom.geometry import SAME_MM, slice_positions, verdict
from medlight.scans.dicom.geometry import affine as affine_of
from medlight.scans.dicom.reslice import Array, Floats, Slices, counted, reslice, widened
from medlight.scans.grid import Affine

MENDS: dict[Status, str] = {"gap": "interpolate", "uneven": "resample", "tilt": "deskew", "duplicate": "first"}
_AFTER_DECODING: dict[Status, str] = {"gap": "interpolate", "uneven": "resample", "tilt": "deskew"}
_AIR = -1024.0  # HU, what scanners write where there is nothing
_MOST_WIDENED = 4  # times the area of a slice: a lean that needs more is no gantry's


@dataclass(frozen=True)
class Mends:
    """What is done about a series with a fault; ``error`` refuses it.

    gap: slices are missing. ``interpolate`` makes them up between their neighbours, ``split`` makes each run of slices
    a volume of its own. uneven: ``resample`` linearly, to the middle one of the spacings. tilt: ``deskew`` moves each
    slice within its plane onto an upright grid, wide enough for all. duplicate: ``first`` keeps the first of the frames
    at one place.
    """

    gap: Literal["error", "interpolate", "split"] = "error"
    uneven: Literal["error", "resample"] = "error"
    tilt: Literal["error", "deskew"] = "error"
    duplicate: Literal["error", "first"] = "error"

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Mends:
        """Build from a mapping, as in a YAML's ``on``; UsageError names the nearest key or choice."""
        known = {field.name: get_args(get_type_hints(cls)[field.name]) for field in fields(cls)}
        for key, value in values.items():
            if key not in known:
                raise UsageError(
                    f"on: no fault is called {key!r}{nearest(str(key), known)}; there are {', '.join(known)}"
                )
            if value not in known[key]:
                choices = " or ".join(known[key])
                raise UsageError(f"on.{key}: {value!r} is not {choices}{nearest(str(value), known[key])}")
        return cls(**values)

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Mends:
        """Build from flags such as ``gap=interpolate``; of two for one fault, the last holds."""
        values = {}
        for text in texts:
            key, equals, value = text.partition("=")
            if not equals:
                raise UsageError(f"--on {text}: give a fault and what is done about it, as --on gap=interpolate")
            values[key.strip()] = value.strip()
        return cls.from_mapping(values)

    def to_dict(self) -> dict[str, str]:
        """Return what is not ``error``."""
        return {key: value for key, value in asdict(self).items() if value != "error"}

    def covers(self, status: Status) -> bool:
        """Whether a stack with this verdict is read: it is ``ok``, or its fault is mended after decoding."""
        return status == "ok" or self.to_dict().get(status, "") == _AFTER_DECODING.get(status)


def mended_frames(stack: Stack, mends: Mends) -> list[Stack]:
    """Mend what can be mended before decoding: duplicates are left out, a stack with gaps is cut into its runs.

    Returns the stack as it is where nothing is to be done, or nothing can be. Each new stack has its own verdict (a run
    of one slice is no volume), and says in ``facts["mended"]`` what was done.
    """
    if stack.verdict.status == "duplicate" and mends.duplicate == "first":
        stack = _firsts(stack)
    if stack.verdict.status == "gap" and mends.gap == "split":
        return _runs(stack)
    return [stack]


def mend_array(array: Array, affine: Affine, stack: Stack, mends: Mends) -> tuple[Array, Affine, list[str]]:
    """Resample a decoded stack whose verdict isn't ``ok`` onto an even, upright grid, as ``mends`` allows.

    array: ``(C, I, J, K)``, its slices in the order of the stack's. affine: of the stack as it is, to RAS+.
    Returns the array, its affine, and a note for each mend, those made before decoding too. Voxels that no slice shows
    are -1024 in CT, else the lowest value there is. Raises MedlightError where another fault is left that ``mends``
    says nothing of, or more would be made up than was scanned.
    """
    if stack.verdict.status == "ok":
        return array, affine, list(stack.facts.get("mended", []))
    now = Slices.of(stack.frames[: array.shape[3]], affine)
    then, _, _, notes = _planned(stack, now, array.shape[1:3], mends)
    made, placed = reslice(array, now, then, _nothing(array, stack.modality))
    return made, placed, notes


def mended_header(stack: Stack, mends: Mends) -> tuple[tuple[int, int, int], Affine, list[str]]:
    """Say what ``mend_array`` would make of a stack, from its headers alone: no pixel is decoded.

    Returns the shape ``(I, J, K)``, the affine to RAS+ and the notes. Raises MedlightError where it would.
    """
    frames = stack.frames[: len(stack.frames) // len(stack.channels)]
    rows, columns = frames[0].shape
    placed = affine_of(frames)
    if stack.verdict.status == "ok":
        return (columns, rows, len(frames)), placed, list(stack.facts.get("mended", []))
    then, low, size, notes = _planned(stack, Slices.of(frames, placed), (columns, rows), mends)
    placed = then.affine
    placed[:3, 3] += then.basis[:, :2] @ low
    return (*size, len(then.heights)), placed, notes


def _planned(
    stack: Stack, now: Slices, shape: tuple[int, ...], mends: Mends
) -> tuple[Slices, Floats, tuple[int, int], list[str]]:
    """Return where slices are to lie, the lowest shift and the size of their planes, and a note for each mend."""
    notes = list(stack.facts.get("mended", []))
    then, done = now, set[Status]()
    while (judged := verdict(then.frames(stack.frames[0]))).status != "ok":
        if judged.status in done or not mends.covers(judged.status):
            raise MedlightError(_still(stack, judged, done))
        done.add(judged.status)
        then, note = _mended(judged.status, then, stack)
        notes.append(note)
    _, low, size = widened(now, then, shape)
    if size[0] * size[1] > _MOST_WIDENED * shape[0] * shape[1]:
        said = f"its slices lie so far beside each other that {size[0]}x{size[1]} voxels would hold them"
        raise MedlightError(f"{stack.id}: {said} ({now.tilt:.1f} degrees); leave it out")
    return then, low, size, notes


def _mended(status: Status, slices: Slices, stack: Stack) -> tuple[Slices, str]:
    """Return where slices are to lie once a fault is mended, and a note of it (figures only, no file's name).

    The notes say ``interpolated``, ``resampled`` or ``deskewed``: labels drawn on such a series are known by it.
    """
    count, steps = len(slices.heights), np.diff(slices.heights)
    match status:
        case "gap":
            then = slices.filled()
            note = f"gap: {count} slices made {len(then.heights)}, those missing interpolated"
        case "uneven":
            then = slices.even()
            was, now = f"{steps.min():.4g} to {steps.max():.4g} mm", f"{then.heights[1]:.4g} mm"
            note = f"uneven: {count} slices {was} apart resampled to {len(then.heights)} slices {now} apart"
        case _:
            then = slices.upright()
            note = f"tilt: {slices.tilt:.4g} degrees deskewed"
    if len(then.heights) > 2 * count:
        mend = "use gap=split" if status == "gap" else "leave it out"
        raise MedlightError(f"{stack.id}: {status}: more slices would be made up than there are; {mend}")
    return then, note


def _still(stack: Stack, fault: Verdict, done: set[Status]) -> str:
    after = f" once {' and '.join(sorted(done))} is mended" if done else ""
    wanted = _AFTER_DECODING.get(fault.status)
    mend = f"--on {fault.status}={wanted} mends it" if wanted and fault.status not in done else "leave it out"
    return f"{stack.id}: {fault.status}{after}: {fault.detail}; {mend}"


def _nothing(array: Array, modality: str) -> float:
    """The value of a voxel that no slice shows: air in CT, where values are in HU, else the lowest."""
    lowest = float(np.nanmin(array))
    return _AIR if modality == "CT" and lowest < 0 else lowest


def _firsts(stack: Stack) -> Stack:
    """Keep the first frame at each place of each channel, by InstanceNumber, then by UID: the same on every machine."""
    heights = slice_positions(stack.frames).tolist()
    channels: list[list[list[Frame]]] = [[[]]]  # for each channel, the frames at each of its places
    for before, height, frame in zip([heights[0], *heights], heights, stack.frames, strict=False):
        if height < before - SAME_MM:
            channels.append([[]])
        elif height > before + SAME_MM:
            channels[-1].append([])
        channels[-1][-1].append(frame)
    kept = [[min(place, key=_order) for place in places] for places in channels]
    grids = np.array([slice_positions(frames) for frames in kept if len(frames) == len(kept[0])])
    if len(grids) != len(stack.channels) or np.abs(grids - grids[0]).max() > SAME_MM:
        return stack
    frames = tuple(frame for channel in kept for frame in channel)
    note = f"duplicate: {len(stack.frames) - len(frames)} frames left out, the first at each place kept"
    return replace(stack, frames=frames, verdict=verdict(kept[0]), facts=_noted(stack, note))


def _order(frame: Frame) -> tuple[float, str, int]:
    return (np.inf if frame.instance is None else frame.instance, frame.sop_uid, frame.index)


def _runs(stack: Stack) -> list[Stack]:
    """Cut every channel where slices are missing; the pieces, from the lowest along the normal."""
    count = len(stack.frames) // len(stack.channels)
    channels = [stack.frames[start : start + count] for start in range(0, len(stack.frames), count)]
    missing = np.flatnonzero(counted(slice_positions(channels[0])) > 1) + 1
    ends = list(pairwise([0, *missing.tolist(), count]))
    pieces = []
    for number, (start, end) in enumerate(ends, 1):
        note = f"gap: split, piece {number} of {len(ends)}: slices {start + 1} to {end}"
        frames = tuple(frame for channel in channels for frame in channel[start:end])
        judged = verdict(channels[0][start:end])
        pieces.append(replace(stack, frames=frames, verdict=judged, facts=_noted(stack, note)))
    return pieces


def _noted(stack: Stack, note: str) -> dict[str, Any]:
    return {**stack.facts, "mended": [*stack.facts.get("mended", []), note]}
