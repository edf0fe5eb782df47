"""Every volume below a path with its verdict, from headers alone, or with the pixels decoded too."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from medlight.errors import MedlightError
from medlight.scans.dicom.archive import open_place
from medlight.scans.dicom.frames import Frame, Place, Stack, Verdict
from medlight.scans.dicom.geometry import affine, placed, usual_step
from medlight.scans.dicom.group import stacks
from medlight.scans.dicom.header import Header, UnreadableError, frames_of, header_of, parse
from medlight.scans.dicom.tree import objects
from medlight.scans.orientation import orientation
from medlight.scans.workers import mapped, surviving

Progress = Callable[[int, int], None]
# Files that a worker takes at once: a process starts in the time in which another has read some thousands of headers.
_CHUNK = 8192
_STEP = 64  # files between two calls of progress
_HEAD_BYTES = 1 << 12


@dataclass
class Survey:
    """What lies below the paths. passed_over: files that are no scans. others: scans of other formats than DICOM."""

    stacks: list[Stack]
    passed_over: int = 0
    others: list[Path] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Fault:
    """An object that can't be read, with what is known of it."""

    place: Place
    cause: str
    series_uid: str = ""
    sop_uid: str = ""
    modality: str = ""


def survey(paths: Sequence[Path], deep: bool = False, workers: int = 0, progress: Progress | None = None) -> Survey:
    """Find every series below the paths (folders, zips, DICOMDIRs, files) and judge it.

    deep: decode the pixels of every frame too, which finds those that are cut off. workers: processes at most, 0 for
    none but this one; with two or more, a decoder that dies of a broken frame takes its worker with it, not the survey.
    progress: called with what is done and the total.

    An object that can't be read makes the volumes of its series ``unreadable``, since they lack it; where its series
    isn't known, or has no other object, it is an ``unreadable`` stack by itself. Raises UsageError where a path is
    absent.
    """
    tree = objects(paths)
    faults = [_Fault(place, cause) for place, cause in tree.faults]
    headers: list[tuple[Header, list[Frame]]] = []
    known: dict[Header, Header] = {}
    for number, found in enumerate(mapped(_read, tree.places, workers, chunk=_CHUNK), start=1):
        if isinstance(found, _Fault):
            faults.append(found)
        else:
            header, frames = found
            headers.append((known.setdefault(header, header), frames))
        if progress and (number % _STEP == 0 or number == len(tree.places)):
            progress(number, len(tree.places))
    judged = _blamed(stacks(headers), faults)
    if deep:
        judged = list(_decoded(judged, workers, progress))
    return Survey(judged, tree.passed_over, tree.others)


def _read(place: Place) -> tuple[Header, list[Frame]] | _Fault:
    """One object's header, in a few hundred bytes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's quote values, which may be a patient's
        try:
            dataset = parse(place)
            return header_of(dataset), frames_of(dataset, place)
        except UnreadableError as error:
            return _Fault(place, error.cause, error.series_uid, error.sop_uid, error.modality)
        except MedlightError as error:
            return _Fault(place, _without(str(error), place))


def _without(text: str, place: Place) -> str:
    return text.removeprefix(f"{place.title}: ")


def _blamed(found: Sequence[Stack], faults: Sequence[_Fault]) -> list[Stack]:
    """Give each fault to the volumes that lack the object, or make it a stack of its own.

    A volume that has an object of the same UID lacks nothing: the fault is a copy's. Among those of several folders it
    is the one beside the object.
    """
    counts = Counter(fault.series_uid for fault in faults)
    by_series: dict[str, list[int]] = {}
    whole: set[tuple[str, str]] = set()
    for number, stack in enumerate(found):
        if stack.kind == "image" and stack.series_uid in counts:
            by_series.setdefault(stack.series_uid, []).append(number)
            whole |= {(stack.series_uid, frame.sop_uid) for frame in stack.frames}
    judged, own = list(found), []
    for fault in faults:
        lacking = [n for n in by_series.get(fault.series_uid, []) if fault.series_uid and not _has(judged[n], fault)]
        beside = [n for n in lacking if any(f.place.path.parent == fault.place.path.parent for f in judged[n].frames)]
        if not beside and (fault.series_uid, fault.sop_uid) in whole:
            lacking = []
        for number in beside or lacking:
            if judged[number].verdict.status != "unreadable":
                many = counts[fault.series_uid]
                more = f" (and {many - 1} more objects of its series can't be read)" if many > 1 else ""
                verdict = Verdict("unreadable", f"{fault.cause}{more}", fault.place)
                judged[number] = replace(judged[number], verdict=verdict)
        if not lacking:
            own.append(_alone(fault))
    return judged + own


def _has(stack: Stack, fault: _Fault) -> bool:
    return any(frame.sop_uid == fault.sop_uid for frame in stack.frames)


def _alone(fault: _Fault) -> Stack:
    """A stack for an object of which little is known; its id is made of its first bytes, the same on every machine."""
    frame = Frame(fault.place, fault.sop_uid or _digest(fault.place), (0, 0))
    verdict = Verdict("unreadable", fault.cause, fault.place)
    return Stack(fault.series_uid, fault.modality, (frame,), verdict=verdict)


def _digest(place: Place) -> str:
    try:
        with open_place(place, _HEAD_BYTES) as file:
            return hashlib.sha256(file.read(_HEAD_BYTES)).hexdigest()
    except (MedlightError, OSError):
        return "nothing"


def _decoded(found: Sequence[Stack], workers: int, progress: Progress | None) -> Iterator[Stack]:
    """The stacks, judged by their pixels too."""
    faults = surviving(_check, found, workers, _died)
    for number, (stack, fault) in enumerate(zip(found, faults, strict=True), start=1):
        if fault and stack.verdict.status != "unreadable":
            cause, place = fault
            yield replace(stack, verdict=Verdict("unreadable", cause, place))
        else:
            yield stack
        if progress:
            progress(number, len(found))


_Blame = tuple[str, Place | None]


def _check(stack: Stack) -> _Blame | None:
    """Decode a stack; what is wrong, and with which object."""
    from medlight.scans.dicom.load import check_pixels

    if stack.verdict.status == "unreadable":
        return None
    fault = check_pixels(stack)
    if fault is None:
        return None
    places = {frame.place for frame in stack.frames}
    to_blame = max((p for p in places if fault.startswith(p.title)), key=lambda p: len(p.title), default=None)
    return (_without(fault, to_blame), to_blame) if to_blame else (fault, None)


def _died(stack: Stack) -> _Blame:
    return "decoding it brings a process down; copy it again or remove it", None


def table(found: Sequence[Stack]) -> list[tuple[str, ...]]:
    """Rows for a person: id, modality, files, shape, spacing in mm, orientation, verdict, detail with files' names."""
    return [row(as_json(stack), stack.verdict.told) for stack in found]


def row(entry: dict[str, Any], told: str) -> tuple[str, ...]:
    """A row for a person, of what a program is told."""
    channels = [entry["channels"]] if entry["channels"] > 1 else []
    shape = "x".join(map(str, [*entry["shape"], *channels]))
    spacing = "x".join(f"{size:.4g}" for size in entry["spacing_mm"])
    files = str(entry["files"])
    return entry["id"], entry["modality"], files, shape, spacing, entry["orientation"], entry["status"], told


def as_json(stack: Stack) -> dict[str, Any]:
    """A stack for a program: numbers and codes, no file's name. What makes no sense for its verdict is empty.

    channels: of the volume as it is read, three for colour. orientation: where the axes point in the patient
    (``LPS``: left, posterior, superior). spacing_mm: along the slices the usual step where steps differ, and none where
    there are no steps.
    """
    first = stack.frames[0]
    slices = len(stack.frames) // len(stack.channels)
    is_image = stack.kind == "image" and first.shape != (0, 0)
    return {
        "id": stack.id,
        "series_uid": stack.series_uid,
        "modality": stack.modality,
        "files": len({frame.place for frame in stack.frames}),
        "shape": [first.shape[1], first.shape[0], slices] if is_image else [],
        "channels": len(stack.channels) * (first.colours if is_image else 1),
        "spacing_mm": _spacing(stack, slices) if is_image else [],
        "orientation": _orientation(stack, slices) if is_image else "",
        "status": stack.verdict.status,
        "detail": stack.verdict.detail,
    }


def _orientation(stack: Stack, slices: int) -> str:
    frames = stack.frames[:slices]
    clear = placed(frames[0]) and stack.verdict.status not in ("mixed-orientation", "mixed-shape")
    return orientation(affine(frames)) if clear else ""


def _spacing(stack: Stack, slices: int) -> list[float]:
    frames = stack.frames[:slices]
    if frames[0].spacing is None:
        return []
    across = [round(size, 6) for size in reversed(frames[0].spacing)]
    match stack.verdict.status:
        case "not-a-volume" | "mixed-orientation" | "mixed-shape":
            return across
        case "gap" | "uneven" | "duplicate":
            return [*across, round(usual_step(frames), 6)]
        case _:
            return [*across, round(float(np.linalg.norm(affine(frames)[:3, 2])), 6)]
